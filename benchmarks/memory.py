"""The memory of a process and its descendants over time, and its figure."""

import csv
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

PAUSE = 0.5
"""Seconds between samples. Shared pages do not count: the object store, and mapped files."""


class Sample(NamedTuple):
    """Private memory at one moment, in MB."""

    seconds: float
    driver: float
    largest: float
    "of all processes, the driver included"
    total: float


class MemoryTrace:
    """Samples a process and its descendants until it ends or `stop` is called."""

    def __init__(self, pid: int):
        self.samples: list[Sample] = []
        self.started, self.ended = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._sample, args=(pid,), daemon=True)
        self.thread.start()

    def _sample(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(pid)
            while not self.ended.wait(PAUSE):
                own = _private(driver)
                others = [_private(child) for child in driver.children(recursive=True)]
                each = own, max([own, *others]), own + sum(others)
                seconds = time.monotonic() - self.started
                self.samples.append(Sample(seconds, *(bytes_ / 1e6 for bytes_ in each)))

    def stop(self) -> list[Sample]:
        """Return the samples; at least one."""
        self.ended.set()
        self.thread.join()
        return self.samples or [Sample(0.0, 0.0, 0.0, 0.0)]


def _private(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - memory.shared)


def write_samples(file: Path, samples: list[Sample]) -> None:
    """Write samples as CSV."""
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(Sample._fields)
        writer.writerows(samples)


def _read_samples(file: Path) -> list[Sample]:
    with open(file, newline="") as source:
        return [Sample(*map(float, row)) for row in list(csv.reader(source))[1:]]


def plot_memory(sizes: Mapping[int, Path], phases: tuple[str, ...], target: Path) -> None:
    """Plot the samples of each phase, one line per size, over the phase's share of its time.

    Args:
        sizes: events -> folder with a file `memory-PHASE.csv` for each phase.
    """
    from matplotlib.figure import Figure

    figure = Figure((3.2 * len(phases), 3.2), layout="constrained")
    axes = figure.subplots(1, len(phases), squeeze=False)[0]
    for axis, phase in zip(axes, phases, strict=True):
        for number, (events, folder) in enumerate(sizes.items()):
            samples = _read_samples(folder / f"memory-{phase}.csv")
            seconds = samples[-1].seconds or 1.0
            share = [sample.seconds / seconds for sample in samples]
            style = {"color": f"C{number}", "linewidth": 1.2}
            largest = [sample.largest for sample in samples]
            axis.plot(share, largest, label=f"{events:,} events, {seconds:,.0f} s", **style)
            driver = [sample.driver for sample in samples]
            axis.plot(share, driver, linestyle=":", **style)
        axis.set(title=phase, xlabel="share of the time", ylim=(0, None))
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("private memory, MB\nlargest process (line), driver (dots)")
    figure.savefig(target, dpi=110)
