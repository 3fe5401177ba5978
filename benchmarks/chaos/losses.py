"""Where the time of a disturbed study went: attempts that were repeated, and starts of commands."""

import itertools
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chaos.faults import CLOCK_SECONDS

BARE = """
import ray, sys
from ray import tune
ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
def trial(config):
    import torch
tune.Tuner(trial, tune_config=tune.TuneConfig(num_samples=3, max_concurrent_trials=3)).fit()
"""
"""The same start with nothing of ours: a driver, Ray Tune, and three trials that import torch."""
BEGAN = re.compile(r" Run \w+ (?:starts|resumes after step (\d+))")
"""A line of a run's log with which an attempt begins."""
Event = dict[str, Any]


@dataclass(frozen=True)
class Undisturbed:
    """What the undisturbed study took, in seconds, and when it began."""

    began: float
    seconds: float
    bare: float
    "of an empty experiment on the same cluster"


@dataclass(frozen=True)
class Spent:
    """Seconds of a study's commands.

    Attributes:
        attempts: Sum over all attempts of runs, from their start to their end or death.
        lost_work: Of these, the attempts that died, less what the last attempt of the same run
            found in its checkpoint.
        training: From the first run's start to the last run's end.
        starts: From each command but the first to its first run, or to its own death.
    """

    attempts: float
    lost_work: float
    training: float
    starts: tuple[float, ...]


class Attempt(NamedTuple):
    """A run's life from its start, or from a restart, to its end or death."""

    run: str
    seconds: float
    died: bool


def time_bare_start(address: str) -> float:
    """Return the seconds in which an empty experiment of Ray Tune runs on the cluster."""
    started = time.monotonic()
    quiet = {**os.environ, "RAY_AIR_NEW_OUTPUT": "0"}
    subprocess.run(
        [sys.executable, "-c", BARE, address], check=True, capture_output=True, env=quiet
    )
    return time.monotonic() - started


def kept_steps(study: Path) -> dict[str, int]:
    """Return the step after which the last attempt of each run went on, by the run's own log."""
    found = {}
    for log in study.glob("runs/*/log.txt"):
        steps = BEGAN.findall(log.read_text(encoding="utf-8", errors="replace"))
        found[log.parent.name] = int(steps[-1] or 0) if steps else 0
    return found


def spent(events: Sequence[Event], began: Sequence[float], kept: Mapping[str, float]) -> Spent:
    """Account for the time of a study.

    Args:
        events: Its event log.
        began: When each command was given, seconds since the epoch; the one before is dead then.
        kept: Seconds that the work took which the last attempt of a run found in its checkpoint.
    """
    told = list(_on_one_clock(events, began[0]))
    bounds = [*began, float("inf")]
    attempts: list[Attempt] = []
    starts = []
    for start, end in itertools.pairwise(bounds):
        own = [(at, event) for at, event in told if start <= at < end]
        first = [at for at, event in own if event["event"] == "run_started"]
        death = end if end < float("inf") else (own[-1][0] if own else start)
        starts.append((first[0] if first else death) - start)
        attempts += _attempts(own, death)
    died: defaultdict[str, float] = defaultdict(float)
    for each in attempts:
        died[each.run] += each.seconds if each.died else 0.0
    lost = sum(max(0.0, seconds - kept.get(run, 0.0)) for run, seconds in died.items())
    runs = [at for at, event in told if event["event"] in ("run_started", "run_ended")]
    whole = sum(each.seconds for each in attempts)
    return Spent(whole, lost, runs[-1] - runs[0], tuple(starts[1:]))


def _on_one_clock(events: Sequence[Event], now: float) -> Iterator[tuple[float, Event]]:
    """Yield each event with its time; the clocks that the faults move are whole hours off."""
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp()
        now = at - CLOCK_SECONDS * round((at - now) / CLOCK_SECONDS)
        yield now, event


def _attempts(own: Sequence[tuple[float, Event]], death: float) -> Iterator[Attempt]:
    """Yield the attempts of one command; those still open die with it."""
    begun: dict[str, float] = {}
    for at, event in own:
        if event["event"] in ("run_ended", "run_restarted") and event["run_id"] in begun:
            run = event["run_id"]
            yield Attempt(run, at - begun.pop(run), event["event"] == "run_restarted")
        if event["event"] in ("run_started", "run_restarted"):
            begun[event["run_id"]] = at
    yield from (Attempt(run, death - at, True) for run, at in begun.items())


def tell(quiet: Spent, loud: Spent, seconds: tuple[float, float], bare: float) -> float:
    """Print where the time went; return the share lost beyond lost work and Ray's own starts.

    Args:
        seconds: How long the undisturbed and the disturbed study took.
        bare: Seconds of an empty experiment on the same cluster.
    """
    lost = seconds[1] - seconds[0]
    # Several runs train at once, so a second of work is less than one of the clock.
    work = loud.lost_work * quiet.training / quiet.attempts
    own = sum(min(bare, each) for each in loud.starts)
    share = (lost - work - own) / seconds[0]
    print(
        f"{lost:.0f} s lost: {work:.0f} s of lost work, {own:.0f} s for {len(loud.starts)} starts "
        f"of Ray alone ({bare:.1f} s each; ours took {sum(loud.starts):.0f} s), "
        f"{lost - work - own:.0f} s other"
    )
    print(f"beyond lost work and Ray's own starts: {share:+.0%} of the undisturbed study")
    return share
