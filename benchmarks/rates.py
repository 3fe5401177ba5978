"""Check whether the best learning rate transfers over width (decision D6).

    python -m benchmarks.rates CORPUS [--widths 64 256] [--steps 200] [--batch 64] [--seeds 2]

Trains every width at every rate of a grid of factors of two. Prints the training loss, smoothed
over the last steps and averaged over seeds. Rates are those of the study file, which hold at width
32; the rate of the matrices follows from the width.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import Trainer

RATES = [0.003 * 2**power for power in range(-3, 3)]


def final_loss(
    corpus: Corpus, width: int, rate: float, seed: int, args: argparse.Namespace
) -> float:
    """Train one run and return its smoothed training loss in nats."""
    encoder = EncoderSpec(width=width, item_layers=1, service_layers=1, heads=max(1, width // 32))
    train = TrainSpec(global_batch_size=args.batch, steps=args.steps, learning_rate=rate, seed=seed)
    run = RunSpec(encoder=encoder, train=train, sequence_length=args.sequence_length)
    trainer = Trainer(run, corpus, EvaluationSpec(candidates=2, every=1.0), LocalContext())
    for step in range(args.steps):
        if not trainer.step(trainer.prepare(step)):
            return float("inf")
    return trainer.state.train_loss


def main() -> None:
    """Print the table and the best rate per width."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    for name, default in {
        "steps": 200,
        "batch": 64,
        "sequence-length": 16,
        "seeds": 2,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    corpus = open_corpus(args.corpus, verify=False)
    table = Table("learning rate", *(f"width {width}" for width in args.widths))
    losses: dict[int, list[float]] = {width: [] for width in args.widths}
    for rate in RATES:
        for width, found in losses.items():
            found.append(
                sum(final_loss(corpus, width, rate, s, args) for s in range(args.seeds))
                / args.seeds
            )
        table.add_row(f"{rate:.2e}", *(f"{found[-1]:.3f}" for found in losses.values()))
    Console(width=100).print(table)
    best = {width: found.index(min(found)) for width, found in losses.items()}
    print(", ".join(f"width {width}: best at {RATES[place]:.2e}" for width, place in best.items()))
    print(f"They differ by {max(best.values()) - min(best.values())} factors of two.")
    if edges := [f"width {width}" for width, place in best.items() if place in (0, len(RATES) - 1)]:
        print(f"At the edge of the grid, so the optimum may lie outside: {', '.join(edges)}.")


if __name__ == "__main__":
    main()
