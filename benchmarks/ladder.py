"""Print the ladder of encoder sizes with their parameters by group.

    python -m benchmarks.ladder [--tokens 50258] [--item-positions 32] [--sequence-length 128]

The output is the Markdown table of docs/reference/encoder.md.
"""

import argparse

from clue_ray.spec.compute import Vocabulary, count_params
from clue_ray.spec.ladder import LADDER
from clue_ray.spec.specs import EncoderSpec

GROUPS = (
    "embedding",
    "item_transformer",
    "service_transformer",
    "output",
    "bag",
    "non_embedding",
    "total",
)


def ladder_table(vocabulary: Vocabulary) -> str:
    """Return the table as Markdown, one row per rung."""
    heads = [
        "size",
        "width",
        "item layers",
        "service layers",
        "heads",
        *(group.replace("_", " ") for group in GROUPS),
    ]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for size, rung in LADDER.items():
        params = count_params(EncoderSpec(size=size), vocabulary)
        shape = (rung.width, rung.item_layers, rung.service_layers, rung.heads)
        rows.append([f"`{size}`", *map(str, shape), *(f"{params[group]:,}" for group in GROUPS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table for a vocabulary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"tokens": 50_258, "item-positions": 32, "sequence-length": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(ladder_table(Vocabulary(args.tokens, args.item_positions, args.sequence_length)))


if __name__ == "__main__":
    main()
