"""Count parameters and FLOPs from a spec alone, without building a model or importing torch.

FLOPs are counted as torch's FlopCounterMode counts them: matrix products only, two FLOPs per
multiply-add, and a backward pass of twice the forward pass. Embedding look-ups, norms and
activations are not counted.
"""

from typing import NamedTuple

from clue_ray.spec.specs import EncoderSpec

GAPS, HOURS, WEEKDAYS = 32, 24, 7
CLOCK_ROWS = (GAPS + 1) + GAPS + HOURS + WEEKDAYS
"""Rows of the table of an encoder that reads time: gaps to the event before (and that there is
none) and to the cut, hour, weekday."""


class Work(NamedTuple):
    """What passes through an encoder; `+` adds up batches.

    Squared lengths are summed over sequences: attention compares all positions of one sequence.
    """

    users: int = 0
    "histories encoded: two per positive pair, more where a view joins all services"
    events: int = 0
    events_squared: int = 0
    tokens: int = 0
    "item tokens, including guide tokens"
    tokens_squared: int = 0
    similarities: int = 0
    "entries of the batch's similarity matrix"
    bag_tokens: int = 0
    "tokens of the events' items, guide tokens included, that the bag adds up"

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Vocabulary(NamedTuple):
    """Number of rows of the encoder's embedding tables."""

    tokens: int
    "byte-level BPE tokens plus guide tokens"
    item_positions: int
    sequence_length: int


def block_params(encoder: EncoderSpec) -> tuple[int, int]:
    """Return the parameters of one transformer block: in matrices, and in biases and norms."""
    d, hidden = encoder.width, encoder.width * encoder.ffn_multiple
    # In order: queries, keys and values; output projection; feed-forward. Then two norms.
    matrices = 3 * d * d + d * d + 2 * d * hidden
    vectors = 3 * d + d + hidden + d + 4 * d
    return matrices, vectors


def count_params(encoder: EncoderSpec, vocabulary: Vocabulary) -> dict[str, int]:
    """Return the number of parameters by group.

    `non_embedding` is N of the scaling laws (Kaplan et al. 2020; decision D4); `total` is the sum
    of all groups.
    """
    d = encoder.width
    rows = vocabulary.tokens + vocabulary.item_positions + vocabulary.sequence_length
    embedding = (rows + (CLOCK_ROWS if encoder.time else 0)) * d
    block = sum(block_params(encoder))
    groups = {
        "embedding": embedding,
        "item_transformer": encoder.item_layers * block + 2 * d,
        "service_transformer": encoder.service_layers * block + 2 * d,
    }
    if not encoder.transformer:
        groups = dict.fromkeys(groups, 0)
    bag = vocabulary.tokens * encoder.output_width if encoder.bag else 0
    groups = {**groups, "bag": bag, "output": sum(_output_params(encoder)), "logits": 2}
    total = sum(groups.values())
    return {**groups, "non_embedding": total - groups["embedding"] - bag, "total": total}


def _output_params(encoder: EncoderSpec) -> tuple[int, int]:
    """Return the parameters behind the transformer: in matrices, and in biases."""
    d, out, hidden = encoder.width, encoder.output_width, encoder.width * encoder.ffn_multiple
    if not encoder.transformer:
        return 0, 0
    matrices, biases = d * out, out
    if encoder.bag:
        matrices, biases = matrices + (d + out) * hidden + hidden * out, biases + hidden + out
    return matrices, biases


def forward_flops(encoder: EncoderSpec, work: Work) -> int:
    """Return the FLOPs of encoding `work`.

    Each matrix entry costs 2 FLOPs per position, each pair of attended positions 4 x width, each
    entry of the similarity matrix 2 x output width, and each token of a bag 2 x output width.
    """
    similarity = 2 * encoder.output_width * work.similarities
    bag = 2 * encoder.output_width * work.bag_tokens if encoder.bag else 0
    return similarity + bag + (_transformer_flops(encoder, work) if encoder.transformer else 0)


def _transformer_flops(encoder: EncoderSpec, work: Work) -> int:
    d = encoder.width
    matrices, _ = block_params(encoder)
    items = encoder.item_layers * (2 * matrices * work.tokens + 4 * d * work.tokens_squared)
    events = encoder.service_layers * (2 * matrices * work.events + 4 * d * work.events_squared)
    projection = 2 * _output_params(encoder)[0] * work.users
    return items + events + projection


def users_for_budget(encoder: EncoderSpec, work: Work, pairs: int, budget: float) -> float:
    """Return the number of positive pairs that a budget of training FLOPs pays for.

    Args:
        work: Typical work of a batch.
        pairs: Positive pairs of the batch.
        budget: Training FLOPs.
    """
    return budget * pairs / train_flops(encoder, work)


def size_for_budget(work: Work, budget: float, encoders: dict[str, EncoderSpec]) -> str | None:
    """Return the name of the encoder whose training on `work` costs most within a budget of FLOPs.

    None where every encoder costs more than the budget.
    """
    costs = {name: train_flops(encoder, work) for name, encoder in encoders.items()}
    within = {name: cost for name, cost in costs.items() if cost <= budget}
    return max(within, key=lambda name: within[name], default=None)


def train_flops(encoder: EncoderSpec, work: Work) -> int:
    """Return the FLOPs of training on `work`: one forward pass, and a backward pass of twice that.

    With N parameters this is 6N per token, plus attention and similarities.
    """
    return 3 * forward_flops(encoder, work)
