"""Measure a planted log from preparation to training: time, private and shared memory, disk.

    python -m benchmarks.scale --measure --events 1e6 5e6        # two sizes and their ratio

Each step runs in its own process: draw the log (with Ray), prepare (with Ray), open, plan, score
the baselines, and train in two processes at once. What a step measured is kept at once in
`FOLDER/EVENTS/measured.json`, and its memory over time in `memory-STEP.csv`: the same command goes
on where it was stopped. Log and corpus are deleted when a size is measured.

Private memory of a step is the largest sample of its largest process; that of a trainer is its
unique set size after some steps. Files that a process has mapped count for it as far as it shares
them with no other (PSS).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.memory import MemoryTrace, plot_memory, write_samples
from benchmarks.prepare import ray_session
from clue_ray.corpus.planted import PlantedSpec, write_planted
from clue_ray.spec.specs import CorpusSpec, EvaluationSpec, RunSpec, StudySpec, TrainSpec

SERVICES, EVENTS_PER_HISTORY, TOPICS = 2, 25, 64
STEPS, WARM_UP = 20, 5
RUN = RunSpec(train=TrainSpec(steps=STEPS, global_batch_size=256), sequence_length=16)
EVALUATION = EvaluationSpec(candidates=256)


def planted(events: int) -> PlantedSpec:
    """Return the spec of a log with 50 events per user and one distinct item per ten events."""
    items = events // 10 // (SERVICES * TOPICS)
    return PlantedSpec(
        users=events // (SERVICES * EVENTS_PER_HISTORY),
        services=SERVICES,
        topics=TOPICS,
        events=EVENTS_PER_HISTORY,
        items_per_topic=max(1, items),
    )


def draw(folder: Path, events: int) -> dict[str, float]:
    """Draw the log; its workers keep the catalogue, so they must not prepare."""
    started = time.perf_counter()
    with ray_session():
        write_planted(planted(events), folder / "log")
    return {"draw the log, s": time.perf_counter() - started, "log, MB": _size(folder / "log")}


def prepare(folder: Path, events: int) -> dict[str, float]:
    """Prepare the log; time is that of the preparation, without the start of Ray."""
    from clue_ray.corpus.build import build_corpus

    shutil.rmtree(folder / "corpus", ignore_errors=True)  # of a killed measurement
    with ray_session():
        started = time.perf_counter()
        corpus = build_corpus(_spec(folder), folder / "corpus")
        seconds = time.perf_counter() - started
    profile = corpus.profile()
    return {
        "events": profile["events"],
        "users": profile["users"],
        "distinct items": profile["distinct_items"],
        "prepare, events/s": profile["events"] / seconds,
        "shards and items, MB": _size(folder / "corpus" / "shards")
        + _size(folder / "corpus" / "items"),
        "training layout, MB": _size(folder / "corpus" / "train"),
    }


def _spec(folder: Path) -> CorpusSpec:
    split = {"validation": 0.05, "test": 0.05}
    return CorpusSpec(events=str(folder / "log"), vocab_size=1024, split=split)


def _size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def open_it(folder: Path, events: int) -> dict[str, float]:
    """Open the corpus and every array; then with all checksums."""
    from clue_ray.corpus.layout.arrays import DTYPES
    from clue_ray.corpus.store import open_corpus

    started = time.perf_counter()
    corpus = open_corpus(folder / "corpus", verify=False)
    found = [getattr(corpus, name) for name in DTYPES]
    opened = time.perf_counter()
    open_corpus(folder / "corpus")
    assert len(found[0]) == corpus.layout.facts["events"]
    return {"open, s": opened - started, "verify, s": time.perf_counter() - opened}


def plan(folder: Path, events: int) -> dict[str, float]:
    """Plan a grid of four runs, one of them on a subset."""
    from clue_ray.study.run import plan_study

    study = StudySpec(
        name="scale",
        corpus=str(folder / "corpus"),
        base={"train": {"steps": STEPS, "global_batch_size": 256}},
        axes={"encoder.size": ["xs", "s"], "corpus_users": [events // 100, None]},
        evaluation=EVALUATION,
    )
    started = time.perf_counter()
    plan_study(study, folder / "out", flops_per_second=1e12)
    return {"plan, s, checksums included": time.perf_counter() - started}


def baselines(folder: Path, events: int) -> dict[str, float]:
    """Score the baselines of one history length."""
    from clue_ray.corpus.store import open_corpus
    from clue_ray.training.baselines import score_baselines

    started = time.perf_counter()
    score_baselines(open_corpus(folder / "corpus", verify=False), 256, [16])
    return {"baselines, s": time.perf_counter() - started}


def train(folder: Path, events: int) -> dict[str, float]:
    """Train some steps; memory is read when the other trainer holds the corpus too."""
    from clue_ray.corpus.store import open_corpus
    from clue_ray.training.loop import LocalContext, Trainer

    corpus = open_corpus(folder / "corpus", verify=False)
    trainer, seconds = Trainer(RUN, corpus, EVALUATION, LocalContext()), []
    for step in range(STEPS):
        started = time.perf_counter()
        trainer.step(trainer.prepare(step))
        seconds.append(time.perf_counter() - started)
    print("trained", flush=True)
    sys.stdin.readline()
    memory = psutil.Process().memory_full_info()
    return {
        "a step, ms": 1e3 * float(np.median(seconds[WARM_UP:])),
        "a trainer, private, MB": memory.uss / 1e6,
        "a trainer, its share of all pages (PSS), MB": memory.pss / 1e6,
        "a trainer, mapped of the layout, MB": _mapped(folder) / 1e6,
    }


def _mapped(folder: Path) -> int:
    """Return the bytes of the layout that are in this process's resident set."""
    maps = psutil.Process().memory_maps()
    return sum(each.rss for each in maps if each.path.startswith(str(folder / "corpus")))


STEPS_OF_IT = {f.__name__: f for f in (draw, prepare, open_it, plan, baselines, train)}
PLOTTED = ("prepare", "plan", "baselines", "train")
BYTES_PER_EVENT = 300
"""Free disk that a measurement asks for: log, corpus, and what shuffle and layout exchange."""


def _command(step: str, folder: Path, events: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.scale_measured", step, str(folder), str(events)]


@contextmanager
def _traced(step: str, pid: int, folder: Path, found: dict[str, float]) -> Iterator[None]:
    """Sample the memory of a step's processes, keep the samples, and add the peaks to `found`."""
    trace = MemoryTrace(pid)
    try:
        yield
    finally:
        samples = trace.stop()
        write_samples(folder / f"memory-{step}.csv", samples)
    if step in ("prepare", "plan", "baselines"):
        found[f"{step}, largest process, MB"] = max(sample.largest for sample in samples)
    if step == "prepare":
        found["prepare, driver, MB"] = max(sample.driver for sample in samples)


def _run(step: str, folder: Path, events: int) -> dict[str, float]:
    """Run a step in its own process."""
    process = subprocess.Popen(_command(step, folder, events), stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = {}
    with _traced(step, process.pid, folder, found):
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{step} of {events:,} events failed; the same command goes on there")
    return json.loads(out.splitlines()[-1]) | found


def _train_two(folder: Path, events: int) -> dict[str, float]:
    """Train in two processes at once; return the means of what both measure."""
    two = [
        subprocess.Popen(
            _command("train", folder, events),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    found = []
    with _traced("train", os.getpid(), folder, {}):
        for process in two:
            while process.stdout.readline().strip() != "trained":
                if process.poll() is not None:
                    raise RuntimeError("a trainer died")
        for process in two:  # both hold the corpus until the first has been asked
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        for process in two:
            process.communicate()
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def measure(events: int, folder: Path) -> dict[str, float]:
    """Measure one size, from the log to two trainers, except what is measured already."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.json"
    steps: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [step for step in STEPS_OF_IT if step not in steps]
    if missing and not (folder / "corpus" / "corpus.json").exists():
        steps.pop("prepare", None)  # the later steps need it again
    if missing and not (folder / "log").exists():
        steps.pop("draw", None)
    _check_disk(folder, events if missing else 0)
    for step in STEPS_OF_IT:
        if step not in steps:
            run = partial(_run, step) if step != "train" else _train_two
            steps[step] = run(folder, events)
            kept.write_text(json.dumps(steps, indent=2))
            _tell(step, folder, steps[step])
    for name in ("log", "corpus", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {name: value for step in STEPS_OF_IT for name, value in steps[step].items()}


def _tell(step: str, folder: Path, found: dict[str, float]) -> None:
    """Print what a step measured, and the disk that its size takes now."""
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    told = "; ".join(f"{name} {_show(value)}" for name, value in found.items())
    print(f"{step}: {told} ({used / 1e9:.2f} GB on disk)", flush=True)


def _check_disk(folder: Path, events: int) -> None:
    free, need = shutil.disk_usage(folder).free, events * BYTES_PER_EVENT
    if free < need:
        sys.exit(
            f"{folder} has {free / 1e9:.1f} GB of free disk, and {events:,} events take about "
            f"{need / 1e9:.0f} GB; give --folder a larger disk."
        )


def measure_sizes(sizes: list[int], where: Path) -> list[tuple[str, ...]]:
    """Measure some sizes; return rows of a table, with the ratio of the last to the first."""
    folders = {events: where / str(events) for events in sizes}
    found = [measure(events, folder) for events, folder in folders.items()]
    plot_memory(folders, PLOTTED, where / "memory.png")
    return [
        (name, *(_show(each[name]) for each in found), f"{found[-1][name] / found[0][name]:.2f}")
        for name in found[0]
    ]


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Run one step in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS_OF_IT)
    parser.add_argument("folder", type=Path)
    parser.add_argument("events", type=int)
    args = parser.parse_args()
    print(json.dumps(STEPS_OF_IT[args.step](args.folder, args.events)), flush=True)
    if args.step == "train":
        sys.stdin.readline()  # until the other trainer has been measured


if __name__ == "__main__":
    main()
