"""The phases of the acceptance command, each in a process of its own with its own limit."""

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import Recorder

PHASES = {
    "facts": 20,
    "correctness": 60,
    "attention": 30,
    "speed": 110,
    "profile": 25,
    "candidates": 50,
    "cluster": 115,
    "embedding": 20,
    "large": 110,
}
"""Seconds that each phase may take, in order, and besides them what the earlier ones left; those
with many rows end by themselves before."""
ENDING_SECONDS = 8.0
"""Seconds before its limit at which a phase of many rows ends."""
TOTAL_SECONDS = 540
"""Sum of the limits, at most."""
DRY_SLACK = 5
"""Times its limit that a phase may take in a dry run, as on a CPU that is busy with other work."""


def run_phases(phases: list[str], output: Path, dry: bool) -> None:
    """Run phases one after the other, each in a process that ends at its limit."""
    deadline = time.monotonic()
    for phase in phases:
        started = time.monotonic()
        deadline += PHASES[phase] * (DRY_SLACK if dry else 1)
        limit = max(1.0, deadline - started)
        failure = _run_apart(phase, output, dry, limit)
        seconds = time.monotonic() - started
        Recorder(output, phase)("phase", not failure, failure, seconds=seconds)


def _run_apart(phase: str, output: Path, dry: bool, limit: float) -> str:
    """Run a phase in a process of its own; return what went wrong, or an empty string.

    The processes are forks of a server that has imported torch and used no device: importing it
    again for each phase would take a minute of the nine.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.setting"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_phase, args=(phase, output, dry, limit, sender))
    process.start()
    sender.close()
    process.join(limit)
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
        process.kill()
        process.join()
        return f"not done within {limit:.0f} s; what it had measured is kept"
    if process.exitcode:
        told = receiver.poll() and _received(receiver)
        return told or f"the process ended with code {process.exitcode}"
    return ""


def _received(receiver: Any) -> str:
    """Return what a process sent before it ended, if anything."""
    try:
        return str(receiver.recv())
    except EOFError:
        return ""


def _run_phase(phase: str, output: Path, dry: bool, limit: float, sender: Any) -> None:
    """Run a phase in this process, the first of a group; send the reason where it fails."""
    os.setsid()
    record = Recorder(output, phase, time.monotonic() + limit - ENDING_SECONDS)
    from benchmarks.gpu.setting import choose_setting

    try:
        module = importlib.import_module(f"benchmarks.gpu.{phase}")
        module.run(record, choose_setting(dry))
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        sender.send(f"{type(error).__name__}: {lines[0]}"[:200])
        sys.exit(1)
