"""A planted study for the tests of reports: a grid of runs whose law is known, one failed, one
diverged."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from clue_ray.runs import RUN_COLUMNS, Runs

HOSTILE = '<script>alert("x")</script> | `"'
STUDY = """\
name: planted
question: Is <script>alert(1)</script> a law?
corpus: {events: logs/*.parquet}
base: {train: {steps: 400}, sequence_length: 4}
axes: {encoder.size: [xxs, xs, s], sequence_length: [2, 4, 8]}
fit: {laws: [power_law, log_linear]}
"""


def planted(runs: int = 9) -> pd.DataFrame:
    """Runs of a size by length grid whose loss falls log-linearly in compute; one failed, one
    diverged."""
    rng = np.random.default_rng(3)
    params = {"xxs": 5_000, "xs": 20_000, "s": 90_000}
    rows = []
    for number, (size, length) in enumerate(
        [(size, length) for size in params for length in (2, 4, 8)][:runs]
    ):
        flops = 6.0 * params[size] * 400 * 64 * length * 24
        rows.append(
            dict.fromkeys(RUN_COLUMNS)
            | {
                "run_id": f"{number:012x}",
                "status": "done",
                "error": "",
                "study": "planted",
                "corpus_digest": "9f8e7d6c5b4a",
                "encoder_size": size,
                "non_embedding_params": params[size],
                "corpus_users": 8000,
                "sequence_length": length,
                "global_batch_size": 64,
                "learning_rate": 3e-3,
                "seed": 0,
                "steps": 400,
                "train_flops": flops,
                "loss_candidates": 256,
                "num_workers": 1,
                "loss": 6.9 - 0.15 * math.log10(flops) + rng.normal(0, 0.003),
                "recall_at_10": 0.1,
                "mrr": 0.05,
                "wall_seconds": 60.0 + number,
                "device": "cpu",
                "clue_ray_version": "0.1.0",
            }
        )
    lost = {"loss": None, "recall_at_10": None, "mrr": None, "wall_seconds": None}
    rows.append(
        rows[0]
        | lost
        | {"run_id": "lost0", "status": "failed", "error": HOSTILE, "sequence_length": 16}
    )
    rows.append(
        rows[0] | lost | {"run_id": "lost1", "status": "diverged", "error": "nan at step 7"}
    )
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def write_study(directory: Path, table: pd.DataFrame) -> Path:
    """Write a study directory with everything a report can use."""
    directory.mkdir(parents=True, exist_ok=True)
    Runs(table).write(directory)
    (directory / "study.yaml").write_text(STUDY)
    curves = pd.concat(
        [table.assign(step=s, train_flops=table["train_flops"] * s / 400) for s in (200, 400)]
    )
    curves[["run_id", "step", "train_flops", "loss"]].to_parquet(directory / "curves.parquet")
    plan = {"runs": [{"run_id": run_id, "expected_seconds": 30.0} for run_id in table["run_id"]]}
    baseline = {
        "name": "TF-IDF",
        "loss": 5.3,
        "recall_at_10": 0.05,
        "mrr": 0.04,
        "loss_candidates": 256,
    }
    corpus = {
        "digest": "9f8e7d6c5b4a",
        "users": 10_000,
        "rejected": {"empty text": 1234},
        "licence_note": "CC0",
    }
    for name, document in (
        ("plan", plan),
        ("baselines", {"baselines": [baseline]}),
        ("corpus", corpus),
    ):
        (directory / f"{name}.json").write_text(json.dumps(document))
    return directory
