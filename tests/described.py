"""A run's description for tests that train nothing."""

from typing import Any

from clue_ray.runs import RunDescription


def make_description(**changes: Any) -> RunDescription:
    """Return the description of a small run, with some columns changed."""
    description = RunDescription(
        run_id="r0",
        corpus_digest="c",
        encoder_size="xs",
        width=16,
        item_layers=1,
        service_layers=1,
        heads=1,
        non_embedding_params=5000,
        total_params=10_000,
        corpus_users=1200,
        corpus_tokens=9000,
        sequence_length=8,
        global_batch_size=16,
        learning_rate=0.003,
        seed=0,
        loss_candidates=16,
        num_workers=1,
        device="cpu",
        clue_ray_version="0",
    )
    return description.model_copy(update=changes)
