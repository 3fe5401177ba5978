"""The table of docs/guide/transfer.md: every task put to the runs of a study, and users beside
those nearest to them.

    python -m benchmarks.transfer STUDY_DIR TASK.yaml ... [--neighbours EVENTS]

A study's runs of the lowest `train.same_service` are the encoders, those of the highest the
single-service baseline, matched by seed. Values are means over the encoders, with the least and the
greatest interval end among them."""

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
    """Match each encoder of a study with the single-service one of the same seed."""
    runs: dict[float, dict[int, Path]] = {}
    for run_id in read_runs(study).done[
        "run_id"
    ]:  # runs of an earlier study file may lie in the folder too
        run = study / "runs" / run_id
        train = json.loads((run / "spec.json").read_text())["train"]
        runs.setdefault(train["same_service"], {})[train["seed"]] = run
    several, single = runs[min(runs)], runs[max(runs)]
    return [(several[seed], single[seed]) for seed in sorted(several)]


def table(results: list[dict]) -> str:
    """Write one task's methods as Markdown."""
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
            spell([row[key] for row in rows if key in row]) for key in (measure, f"{measure}_lead")
        )
        lines.append(f"| {rows[0]['method']} | {value} | {lead} |")
    return "\n".join(lines)


def spell(found: list[dict[str, float]]) -> str:
    """Write the mean of several values and how far their intervals reach."""
    if not found:
        return ""
    low, high = min(one["low"] for one in found), max(one["high"] for one in found)
    return f"{np.mean([one['value'] for one in found]):.3f} [{low:.3f}, {high:.3f}]"


def encode_log(run: Path, events: Path) -> tuple[pd.DataFrame, Vectors]:
    """Read the events of an encoder's services, and encode their users."""
    log, encoder = pq.read_table(events), load_encoder(run)
    log = log.filter(np.isin(log["service"].to_numpy(zero_copy_only=False), encoder.card.services))
    return log.to_pandas(), encoder.encode(log)


def directions(log: pd.DataFrame, vectors: Vectors, count: int = 4) -> str:
    """Write how much of the vectors' variance lies in each leading direction, and how it goes with
    activity."""
    left, spread, _ = np.linalg.svd(vectors.values - vectors.values.mean(0), full_matrices=False)
    shares = spread**2 / (spread**2).sum()
    activity = np.log(log["user_id"].value_counts()[vectors.user_ids].to_numpy())
    held = [abs(np.corrcoef(left[:, number], activity)[0, 1]) for number in range(count)]
    effective = np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return (
        f"variance in the first {count} directions "
        f"{', '.join(f'{share:.2f}' for share in shares[:count])} "
        f"(as good as {effective:.1f} equal ones); their correlation with the log of a user's "
        f"events "
        f"{', '.join(f'{one:.2f}' for one in held)}\n"
    )


def neighbours(log: pd.DataFrame, vectors: Vectors, count: int = 3) -> str:
    """Write three users, and the user nearest to each, with their most frequent texts."""
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
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
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
