"""Evaluate the runs of a study on downstream tasks and print the table of docs/guide/transfer.md.

    python -m benchmarks.transfer STUDY_DIR TASK.yaml ... [--neighbours EVENTS]

The runs with the lowest `train.same_service` are the encoders; those with the highest are the
single-service baseline, matched by seed. Values are means over the encoders. The interval spans the
lowest and the highest interval end among them. `--neighbours` prints sample users with their
nearest neighbours.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from clue_ray.runs import read_runs
from clue_ray.scaling.downstream import MEASURES
from clue_ray.transfer.encode import Vectors, load_encoder
from clue_ray.transfer.tasks.evaluate import run_task
from clue_ray.transfer.tasks.spec import read_task

FIRST = {"next_item": "mrr", "attribute": "auc", "retrieval": "mrr"}


def pair_runs(study: Path) -> list[tuple[Path, Path]]:
    """Match each encoder of a study with the single-service encoder of the same seed."""
    runs: dict[float, dict[int, Path]] = {}
    # The folder may also hold runs of an earlier study file, so the table decides.
    for run_id in read_runs(study).done["run_id"]:
        run = study / "runs" / run_id
        train = json.loads((run / "spec.json").read_text())["train"]
        runs.setdefault(train["same_service"], {})[train["seed"]] = run
    several, single = runs[min(runs)], runs[max(runs)]
    return [(several[seed], single[seed]) for seed in sorted(several)]


def table(results: list[dict]) -> str:
    """Format the methods of one task as Markdown."""
    measure = FIRST[results[0]["kind"]]
    users = " and ".join(
        f"{count:,} {part}" for part, count in results[0]["users"].items() if part != "validation"
    )
    lines = [
        f"**{results[0]['task']}**: {users} users, {results[0]['labels']} labels, {len(results)} "
        f"encoders",
        "",
        f"| method | {MEASURES[measure]} [95 %] | encoder's lead [95 %] |",
        "|---|---|---|",
    ]
    for rows in zip(*(result["methods"] for result in results), strict=True):
        value, lead = (
            format_mean([row[key] for row in rows if key in row])
            for key in (measure, f"{measure}_lead")
        )
        lines.append(f"| {rows[0]['method']} | {value} | {lead} |")
    return "\n".join(lines)


def format_mean(found: list[dict[str, float]]) -> str:
    """Format the mean of several values and the span of their intervals."""
    if not found:
        return ""
    low, high = min(one["low"] for one in found), max(one["high"] for one in found)
    return f"{np.mean([one['value'] for one in found]):.3f} [{low:.3f}, {high:.3f}]"


def encode_log(run: Path, events: Path) -> tuple[pd.DataFrame, Vectors]:
    """Read the events of an encoder's services and encode their users."""
    log, encoder = pq.read_table(events), load_encoder(run)
    log = log.filter(np.isin(log["service"].to_numpy(zero_copy_only=False), encoder.card.services))
    return log.to_pandas(), encoder.encode(log)


def directions(log: pd.DataFrame, vectors: Vectors, count: int = 4) -> str:
    """Describe the leading directions of the vectors: variance, and correlation with activity."""
    left, spread, _ = np.linalg.svd(vectors.values - vectors.values.mean(0), full_matrices=False)
    shares = spread**2 / (spread**2).sum()
    activity = np.log(log["user_id"].value_counts()[vectors.user_ids].to_numpy())
    held = [abs(np.corrcoef(left[:, number], activity)[0, 1]) for number in range(count)]
    effective = np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return (
        f"variance in the first {count} directions "
        f"{', '.join(f'{share:.2f}' for share in shares[:count])} "
        f"(equivalent to {effective:.1f} equal directions); their correlation with the log of a "
        f"user's events {', '.join(f'{one:.2f}' for one in held)}\n"
    )


def neighbours(log: pd.DataFrame, vectors: Vectors, count: int = 3) -> str:
    """Describe sample users and the nearest neighbour of each by their most frequent texts."""
    centred = vectors.values - vectors.values.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    lines = []
    for index in np.random.default_rng(0).choice(len(centred), count, replace=False):
        cosines = centred @ centred[index]
        near = int(np.argsort(-cosines)[1])
        for label, row in (("user", index), (f"nearest, cosine {cosines[near]:.2f}", near)):
            own = log[log["user_id"] == vectors.user_ids[row]]
            texts = own["text"].str.split(";").str[0].value_counts().index[:8]
            lines.append(f"{label:22} {vectors.user_ids[row]:8} {', '.join(texts)}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("tasks", type=Path, nargs="*")
    parser.add_argument("--neighbours", type=Path)
    asked = parser.parse_args()
    pairs = pair_runs(asked.study)
    for task in map(read_task, asked.tasks):
        print(
            table([run_task(run, task, {"one service": single}) for run, single in pairs]),
            end="\n\n",
            flush=True,
        )
    if asked.neighbours:
        found = encode_log(pairs[0][0], asked.neighbours)
        print(directions(*found), neighbours(*found), sep="\n")


if __name__ == "__main__":
    main()
