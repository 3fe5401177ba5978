"""Ray: studies on whole cards and on shares, Ray Train against bare PyTorch, and a lost worker.

The studies run by the command line, each in a Ray session of its own on this machine.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.gpu.phases import DRY_SLACK
from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run
from benchmarks.gpu.workers import on_workers
from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.corpus.store import open_corpus
from clue_ray.errors import SpecError
from clue_ray.runs import read_runs
from clue_ray.spec.specs import EvaluationSpec, read_study
from clue_ray.study.checks import check_study
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import train_with

SAME_LOSS = 1e-4
OVERHEAD = 0.03
"""Time that Ray Train may add to a run's steps."""
EVALUATION = EvaluationSpec(candidates=16)
STUDY_SECONDS = 90


def run(record: Recorder, setting: Setting) -> None:
    """Run studies one by one; each leaves its measurement."""
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        place = Path(folder)
        users = 240 if setting.dry else 5000
        pq.write_table(planted_events(PlantedSpec(users=users, services=2)), place / "log.parquet")
        _compare_two_workers(record, setting)
        _refuse_shares(record, place)
        _run_study(record, setting, place, "whole card", {"gpus_per_worker": setting.gpus})
        if setting.dry:  # the rest needs a card, or takes longer than a dry run may
            return
        corpora = list((place / "out" / "corpora").iterdir())
        corpus = next(str(found) for found in corpora if (found / "corpus.json").exists())
        _compare_ray_train(record, setting, corpus, place)
        _kill_a_worker(record, setting, place)
        _run_study(record, setting, place, "quarter of a card", {"gpus_per_worker": 0.25})


def _write_study(place: Path, name: str, resources: dict[str, Any], steps: int, sizes: Any) -> Path:
    study = {
        "name": name.replace(" ", "-"),
        "question": "Does it run?",
        "corpus": {
            "events": str(place / "log.parquet"),
            "vocab_size": 400,
            "split": {"validation": 0.1, "test": 0.25},
        },
        "base": {
            "encoder": {"output_width": 16},
            "train": {"global_batch_size": 32, "steps": steps},
            "sequence_length": 8,
        },
        "axes": {"encoder.size": sizes},
        "evaluation": {"candidates": 16, "every": 0.5},
        "resources": resources,
    }
    file = place / f"{study['name']}.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def _command(place: Path, file: Path) -> list[str]:
    return [sys.executable, "-m", "clue_ray", "run", str(file), "--output", str(place / "out")]


def _run_study(
    record: Recorder, setting: Setting, place: Path, name: str, resources: dict[str, Any]
) -> None:
    """Run a study of four runs, and watch what its driver holds on the card."""
    sizes, steps = (["xxs"], 4) if setting.dry else (["xs", "s", "m", "l"], 200)
    file = _write_study(place, name, resources, steps, sizes)
    started, held, seen = time.perf_counter(), 0, False
    limit = STUDY_SECONDS * (DRY_SLACK if setting.dry else 1)
    driver = subprocess.Popen(
        _command(place, file), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while driver.poll() is None and time.perf_counter() - started < limit:
        on_card = _megabytes_on_card() if setting.gpus else {}
        held = max(held, on_card.get(driver.pid, 0))
        seen = seen or not on_card.keys().isdisjoint(_trials())
        time.sleep(0.5)
    if driver.poll() is None:
        driver.kill()
    errors = driver.communicate()[1].strip().splitlines()
    done = _finished(place / "out" / file.stem)
    record(
        f"study, {name}",
        done == len(sizes),
        errors[-1][:120] if done < len(sizes) and errors else "",
        done=done,
        runs=len(sizes),
        seconds=time.perf_counter() - started,
    )
    if setting.gpus:
        # In a container nvidia-smi may know processes by other ids than this machine does.
        note = "" if seen else "nvidia-smi shows no process that trains here"
        record(f"driver, {name}", not held if seen or held else None, note, mb_on_card=held)


def _finished(directory: Path) -> int:
    """Count the runs of a study that are done, on the device that they asked for."""
    if not (directory / "runs.csv").exists():
        return 0
    return int((read_runs(directory).table["status"] == "done").sum())


def _megabytes_on_card() -> dict[int, int]:
    """Return the megabytes that each process holds on the card, by nvidia-smi."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split(",") for line in lines.splitlines() if "," in line]
    return {int(owner): int(used) for owner, used in rows if used.strip().isdigit()}


def _compare_two_workers(record: Recorder, setting: Setting) -> None:
    """Train one run by one process and by two over gloo on the same device."""
    small = setting._replace(users=min(setting.users, 4000), items=min(setting.items, 20_000))
    losses = [on_workers(workers, partial(_train_share, small)) for workers in (1, 2)]
    error = abs(losses[0] - losses[1])
    record("two workers against one", error <= SAME_LOSS, loss=error)


def _train_share(setting: Setting, rank: int, world_size: int) -> float | None:
    context = LocalContext(rank=rank, world_size=world_size)
    run = make_run(setting, "xs", 32, steps=6).model_copy(update={"sequence_length": 8})
    return train_with(run, make_corpus(setting), EVALUATION, context)[0].loss


def _refuse_shares(record: Recorder, place: Path) -> None:
    """A share of a card cannot serve several workers, and a worker uses one card."""
    for name, resources in {
        "several workers on a share": {"workers": 2, "gpus_per_worker": 0.5},
        "two cards for a worker": {"gpus_per_worker": 2},
    }.items():
        file = _write_study(place, name, resources, 4, ["xxs"])
        try:
            check_study(read_study(file))
            record(f"refused: {name}", False, "was accepted")
        except SpecError as error:
            record(f"refused: {name}", True, str(error)[:100])


def _compare_ray_train(record: Recorder, setting: Setting, corpus: str, place: Path) -> None:
    """Compare the steps of a run under Ray Train, one worker over NCCL, with those without Ray."""
    import ray
    from ray import tune

    from clue_ray.cluster.session import connect
    from clue_ray.training.ray_train import train_on_workers

    run = make_run(setting, "l", 256, "bf16", steps=2000).model_copy(update={"sequence_length": 32})
    opened = open_corpus(corpus, verify=False)
    alone, curve = train_with(run, opened, EVALUATION, LocalContext())
    torch.cuda.empty_cache()

    def trial(config: dict[str, Any]) -> None:
        states = str(place / "states")
        record, curve = train_on_workers(run, corpus, EVALUATION, place, str(place / "ray"), states)
        tune.report({"rate": _warm_rate(curve), "loss": record.loss})

    with connect():
        slots = tune.with_resources(trial, {"trial_slot": 1})
        storage = tune.RunConfig(storage_path=str(place / "tune"), verbose=0)
        found = tune.Tuner(slots, run_config=storage).fit()[0].metrics
        ray.shutdown()
    slower = _warm_rate(curve) / found["rate"] - 1
    record(
        "Ray Train against bare PyTorch",
        slower <= OVERHEAD,
        slower=slower,
        loss=abs(found["loss"] - alone.loss),
    )


def _warm_rate(curve: list[dict[str, float]]) -> float:
    """Return the FLOP per second after the first point of a curve, up to which kernels start."""
    first, last = curve[0], curve[-1]
    spent = [point["train_flops"] / point["tokens_per_second"] for point in (first, last)]
    return (last["train_flops"] - first["train_flops"]) / (spent[1] - spent[0])


def _kill_a_worker(record: Recorder, setting: Setting, place: Path) -> None:
    """Kill the process that trains a run; the study must go on and end with all runs done."""
    resources = {"gpus_per_worker": setting.gpus}
    file = _write_study(place, "killed", resources, 2000, ["m"])
    driver = subprocess.Popen(
        _command(place, file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline, killed = time.monotonic() + STUDY_SECONDS, False
    while driver.poll() is None and time.monotonic() < deadline:
        states = list((place / "out" / "killed").glob("runs/*/checkpoints/*.pt"))
        if states and not killed:
            killed = _kill_trial()
        time.sleep(0.2)
    if driver.poll() is None:
        driver.kill()
    record("a worker killed", killed and _finished(place / "out" / "killed") == 1, killed=killed)


def _kill_trial() -> bool:
    """Kill the Tune actor that trains; return whether there was one."""
    trials = _trials()
    for pid in trials[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(trials)


def _trials() -> list[int]:
    """Return the processes of the Tune actors that train on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if command.startswith((b"ray::ImplicitFunc", b"ray::run_trial")):
                found.append(int(entry.name))
    return found
