"""Where the time of a disturbed study went: attempts that were repeated, and starts of commands."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
        starting: From each command but the first to its first run, or to its own death.
        training: From the first run's start to the end of training.
    """

    attempts: float
    starting: float
    training: float


def time_bare_start(address: str) -> float:
    """Return the seconds in which an empty experiment of Ray Tune runs on the cluster."""
    started = time.monotonic()
    quiet = {**os.environ, "RAY_AIR_NEW_OUTPUT": "0"}
    subprocess.run(
        [sys.executable, "-c", BARE, address], check=True, capture_output=True, env=quiet
    )
    return time.monotonic() - started


def spent(events: Sequence[Event], began: Sequence[float]) -> Spent:
    """Account for the time of a study.

    Args:
        events: Its event log.
        began: When each command was given, seconds since the epoch; the one before is dead then.
    """
    told = list(_on_one_clock(events, began[0]))
    bounds = [*began, float("inf")]
    attempts = starting = 0.0
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        own = [(at, event) for at, event in told if start <= at < end]
        first = [at for at, event in own if event["event"] == "run_started"]
        last = own[-1][0] if own else start
        death = last if end == float("inf") else end
        starting += (first[0] if first else death) - start if number else 0.0
        attempts += _attempts(own, death)
    runs = [at for at, event in told if event["event"] in ("run_started", "run_ended")]
    return Spent(attempts, starting, runs[-1] - runs[0])


def _on_one_clock(events: Sequence[Event], now: float) -> Iterator[tuple[float, Event]]:
    """Yield each event with its time; the clocks that the faults move are whole hours off."""
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp()
        now = at - CLOCK_SECONDS * round((at - now) / CLOCK_SECONDS)
        yield now, event


def _attempts(own: Sequence[tuple[float, Event]], death: float) -> float:
    """Add up the attempts of one command; those still open end with it."""
    begun: dict[str, float] = {}
    total = 0.0
    for at, event in own:
        if event["event"] == "run_started":
            begun[event["run_id"]] = at
        elif event["event"] == "run_ended" and event["run_id"] in begun:
            total += at - begun.pop(event["run_id"])
    return total + sum(death - at for at in begun.values())


def tell(quiet: Spent, loud: Spent, seconds: float, starts: int, bare: float) -> float:
    """Print where the time went; return the share lost beyond lost work and Ray's own starts.

    Args:
        seconds: How long the undisturbed study took.
        starts: Number of commands after the first.
        bare: Seconds of an empty experiment on the same cluster.
    """
    lost = loud.training - quiet.training
    repeated = (loud.attempts - quiet.attempts) * quiet.training / quiet.attempts
    own = loud.starting - starts * bare
    other = lost - repeated - loud.starting
    print(
        f"training took {lost:.0f} s longer: {repeated:.0f} s of attempts repeated, "
        f"{loud.starting:.0f} s in {starts} starts of the command "
        f"({bare:.1f} s each with Ray alone), {other:.0f} s other"
    )
    share = (own + other) / seconds
    print(f"beyond lost work and Ray's own starts: {share:+.0%} of the undisturbed study")
    return share
