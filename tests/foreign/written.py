"""Runs with a planted law, written as each tool writes them."""

import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

RUNS = pd.DataFrame({"train_flops": [10.0**k for k in range(12, 20)]}).assign(
    n_params=lambda runs: (runs["train_flops"] / 1e6) ** 0.5,
    val_loss=lambda runs: 1.5 + 3 * (runs["train_flops"] / 1e12) ** -0.15,
)
"""The ends of eight runs; loss is 1.5 + 3 (C / 1e12)^-0.15."""


def rows() -> list[dict[str, Any]]:
    return [{f"{key}": value for key, value in row.items()} for row in RUNS.to_dict("records")]


def mlflow_files(root: Path) -> Path:
    for number, row in enumerate(rows()):
        run = root / "1" / f"run{number}"
        (run / "metrics").mkdir(parents=True)
        (run / "params").mkdir()
        state = 4 if number == 7 else 3
        meta = {"run_id": f"run{number}", "run_name": "r", "status": state}
        (run / "meta.yaml").write_text(yaml.safe_dump({**meta, "lifecycle_stage": "active"}))
        (run / "params" / "n_params").write_text(str(row["n_params"]))
        for name in ("train_flops", "val_loss"):
            lines = f"1000 {row[name] * 2} 1\n1001 {row[name]} 2\n"
            (run / "metrics" / name).write_text(lines)
    (root / "1" / "meta.yaml").write_text("experiment_id: '1'\nname: scale\n")
    return root


def mlflow_database(file: Path) -> Path:
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as store:
        store.executescript(
            "CREATE TABLE experiments (experiment_id, name);"
            "INSERT INTO experiments VALUES (1, 'scale'), (2, 'other');"
            "CREATE TABLE runs (run_uuid, name, status, lifecycle_stage, experiment_id);"
            "CREATE TABLE params (key, value, run_uuid);"
            "CREATE TABLE latest_metrics (key, value, timestamp, step, is_nan, run_uuid);"
        )
        for number, row in enumerate(rows()):
            run, state = f"run{number}", "FAILED" if number == 7 else "FINISHED"
            store.execute("INSERT INTO runs VALUES (?, 'r', ?, 'active', 1)", (run, state))
            store.execute(
                "INSERT INTO params VALUES ('n_params', ?, ?)", (str(row["n_params"]), run)
            )
            for name in ("train_flops", "val_loss"):
                values = (name, row[name], 1, 2, 0, run)
                store.execute("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, ?, ?)", values)
        store.execute("INSERT INTO runs VALUES ('gone', 'r', 'FINISHED', 'deleted', 1)")
        store.commit()
    return file


def ray_tune(root: Path) -> Path:
    for number, row in enumerate(rows()):
        trial = root / f"train_{number:05d}"
        trial.mkdir(parents=True)
        (trial / "params.json").write_text(json.dumps({"n_params": row["n_params"]}))
        last = {**row, "training_iteration": 2, "done": False, "config": {}}
        first = {**last, "val_loss": 9.0, "training_iteration": 1}
        (trial / "result.json").write_text(f"{json.dumps(first)}\n{json.dumps(last)}\n")
    (root / "train_00007" / "error.txt").write_text("killed")
    # Functions report `done: false` to the end; the experiment knows that their trials ended.
    states = [
        {
            "relative_logdir": f"train_{number:05d}",
            "status": "ERROR" if number == 7 else "TERMINATED",
        }
        for number in range(len(RUNS))
    ]
    trials = [[json.dumps(state), "{}"] for state in states]
    (root / "experiment_state-2026.json").write_text(json.dumps({"trial_data": trials}))
    return root


def tensorboard(root: Path) -> Path:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for number, row in enumerate(rows()):
        writer = EventFileWriter(str(root / f"run{number}"))
        for step, share in enumerate((2.0, 1.0)):
            values = [Summary.Value(tag=name, simple_value=row[name] * share) for name in row]
            writer.add_event(Event(step=step, summary=Summary(value=values)))
        writer.close()
        # Where torch's and other writers put hyperparameters.
        settings = EventFileWriter(str(root / f"run{number}" / "1795889000.5"))
        settings.add_event(Event(summary=hparams_pb({"lr": 0.5, "data": "c4"})))
        settings.close()
    return root


def wandb(root: Path, project: str = "scale") -> Path:
    for number, row in enumerate(rows()):
        folder = root / "wandb" / f"offline-run-2026-{number}"
        folder.mkdir(parents=True)
        run = field(1, f"run{number}") + field(3, project) + field(8, f"r{number}")
        run += field(4, field(1, item(1, "n_params", row["n_params"])))
        history = b"".join(field(1, item(1, name, row[name] * 2)) for name in row)
        summary = b"".join(field(1, item(2, name, row[name])) for name in row)
        records = [field(17, run), field(2, history), field(3, summary)]
        records.append(field(18, bytes([1 << 3, 1]) if number == 7 else b""))
        (folder / f"run-run{number}.wandb").write_bytes(log_of(records))
    return root


def item(key_field: int, key: str, value: float) -> bytes:
    return field(key_field, key) + field(16, json.dumps(value))


def field(number: int, content: bytes | str) -> bytes:
    """Encode one length-delimited field of a protobuf message."""
    encoded = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(encoded)) + encoded


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def log_of(records: list[bytes]) -> bytes:
    """Write a LevelDB log as W&B does: blocks of 32 kB, records in fragments, a header first."""
    log = b":W&B\xe1\xbe\x00"
    for record in records:
        first = True
        while True:
            room = 32_768 - len(log) % 32_768 - 7
            if room < 0:
                log += b"\0" * (room + 7)
                continue
            piece, record = record[:room], record[room:]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            log += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
            if not record:
                break
    return log


WRITERS = {
    "mlflow-files": lambda folder: mlflow_files(folder / "mlruns"),
    "mlflow-database": lambda folder: mlflow_database(folder / "mlflow.db"),
    "ray-tune": lambda folder: ray_tune(folder / "tune"),
    "tensorboard": lambda folder: tensorboard(folder / "tb"),
    "wandb": lambda folder: wandb(folder),
}
