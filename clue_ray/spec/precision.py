"""The precision of a study that asks for GPUs and does not name one."""

from typing import Any


def with_bf16_on_gpus(document: Any) -> Any:
    """Set bf16 in a study's document, still unchecked; its runs record it like any other value.

    A GPU computes in bf16 ten times as fast as in fp32, so that fp32 there is a choice to be made.
    """
    match document:
        case {"resources": resources, "base": {"train": dict(train)} as base} if (
            "precision" not in train and _asks_for_gpus(resources)
        ):
            return {**document, "base": {**base, "train": {**train, "precision": "bf16"}}}
    return document


def _asks_for_gpus(resources: Any) -> bool:
    key = "gpus_per_worker"
    gpus = resources.get(key) if isinstance(resources, dict) else getattr(resources, key, 0)
    return isinstance(gpus, int | float) and gpus > 0
