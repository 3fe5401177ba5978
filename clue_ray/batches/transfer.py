"""Copies of batches to a device, without waiting for them where it is a GPU."""

from typing import TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

Batch = TypeVar("Batch")


def copy_to(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of nested tuples to a device.

    A copy to a GPU from pinned memory does not block the thread that asks for it.
    """

    def copy(part: object) -> object:
        # "cuda" is not equal to "cuda:0", where its tensors lie; memory there cannot be pinned.
        if not isinstance(part, torch.Tensor) or part.device.type == device.type:
            return part
        if device.type == "cuda":
            return part.pin_memory().to(device, non_blocking=True)
        return part.to(device)

    copied: Batch = tree_map(copy, batch)
    return copied


def keep_for(batch: object, stream: torch.cuda.Stream) -> None:
    """Keep the memory of a batch's tensors until a stream that did not make them has used them."""
    for part in tree_leaves(batch):
        if isinstance(part, torch.Tensor) and part.is_cuda:
            part.record_stream(stream)
