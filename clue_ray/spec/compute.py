"""Parameters and FLOPs from a spec alone; no model is built and torch is not imported.

Counted as torch's FLOP counter counts: matrix products only, two FLOPs a multiply-add, backward
twice the forward. Embedding look-ups, norms and activations are left out on both sides.
"""

from typing import NamedTuple

from clue_ray.spec.specs import EncoderSpec


class Work(NamedTuple):
    """What passes through an encoder; adds up over batches with `+`.

    Squares are summed per sequence, because attention compares every position of a sequence with
    every other.
    """

    users: int = 0
    "user embeddings made (two a positive pair)"
    events: int = 0
    events_squared: int = 0
    tokens: int = 0
    "item tokens, guide tokens included"
    tokens_squared: int = 0
    similarities: int = 0
    "entries of the batch's similarity matrix"

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Vocabulary(NamedTuple):
    """Rows of the encoder's look-up tables."""

    tokens: int
    "byte-level BPE tokens and guide tokens"
    item_positions: int
    sequence_length: int


def block_params(encoder: EncoderSpec) -> tuple[int, int]:
    """Return one transformer block's (matrix entries, biases and norms)."""
    d, hidden = encoder.width, encoder.width * encoder.ffn_multiple
    matrices = 3 * d * d + d * d + 2 * d * hidden
    vectors = 3 * d + d + hidden + d + 4 * d
    return matrices, vectors


def count_params(encoder: EncoderSpec, vocabulary: Vocabulary) -> dict[str, int]:
    """Count parameters by group; `non_embedding` is Kaplan's N (decision D4), `total` is all of
    them.
    """
    d = encoder.width
    embedding = (vocabulary.tokens + vocabulary.item_positions + vocabulary.sequence_length) * d
    block = sum(block_params(encoder))
    groups = {
        "embedding": embedding,
        "item_transformer": encoder.item_layers * block + 2 * d,
        "service_transformer": encoder.service_layers * block + 2 * d,
        "output": d * encoder.output_width + encoder.output_width,
        "logits": 2,
    }
    total = sum(groups.values())
    return {**groups, "non_embedding": total - embedding, "total": total}


def forward_flops(encoder: EncoderSpec, work: Work) -> int:
    """FLOPs of encoding `work`: 2 a matrix entry and position, 4 x width an attended pair, 2 a
    projected number.
    """
    d = encoder.width
    matrices, _ = block_params(encoder)
    items = encoder.item_layers * (2 * matrices * work.tokens + 4 * d * work.tokens_squared)
    events = encoder.service_layers * (2 * matrices * work.events + 4 * d * work.events_squared)
    projection = 2 * d * encoder.output_width * work.users
    similarity = 2 * encoder.output_width * work.similarities
    return items + events + projection + similarity


def users_for_budget(encoder: EncoderSpec, work: Work, budget: float) -> float:
    """Return how many positive pairs a budget of training FLOPs pays for, `work` being typical of
    `users / 2` pairs.
    """
    return budget * (work.users / 2) / train_flops(encoder, work)


def size_for_budget(work: Work, budget: float, encoders: dict[str, EncoderSpec]) -> str | None:
    """Name the encoder that spends most of a budget of training FLOPs on `work` and stays within
    it, if one does.
    """
    costs = {name: train_flops(encoder, work) for name, encoder in encoders.items()}
    within = {name: cost for name, cost in costs.items() if cost <= budget}
    return max(within, key=lambda name: within[name], default=None)


def train_flops(encoder: EncoderSpec, work: Work) -> int:
    """FLOPs of training on `work`: forward once, backward twice the forward (6N a token, plus
    attention and logits).
    """
    return 3 * forward_flops(encoder, work)
