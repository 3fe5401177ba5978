"""The faults: each takes the scene and the random draw, and says what it did."""

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit
from typing import TYPE_CHECKING

import psutil

from benchmarks.chaos.storage import MOODS

if TYPE_CHECKING:
    from benchmarks.chaos.__main__ import Scene

STOP_SECONDS = 20.0
BAD_STORAGE_SECONDS = 10.0
FULL_SECONDS = 10.0
FULL_BYTES = 4096
"""Size to which a file may grow on a full disk."""
CLOCK_SECONDS = 3600.0
"""How far a clock is moved, forwards or back."""
TRIALS = ("RayTrainWorker", "ImplicitFunc", "run_trial")
"""Parts of the titles of the processes that train."""
Fault = Callable[["Scene", random.Random], str]


def _kill_one(scene: "Scene", draw: random.Random, what: str, *words: str) -> str:
    processes = scene.machines.processes(*words)
    if not processes:
        return f"no {what} to kill"
    process = draw.choice(processes)
    with suppress(psutil.NoSuchProcess):  # it may have ended since it was listed
        process.kill()
    return f"{what} {process.pid} killed"


def kill_worker(scene: "Scene", draw: random.Random) -> str:
    """Kill a worker of a run of several workers."""
    return _kill_one(scene, draw, "worker", "RayTrainWorker")


def kill_trial(scene: "Scene", draw: random.Random) -> str:
    """Kill the actor of a trial."""
    return _kill_one(scene, draw, "trial actor", "ImplicitFunc", "run_trial")


def kill_raylet(scene: "Scene", draw: random.Random) -> str:
    """Kill a node's raylet, and so the node."""
    number = draw.randrange(scene.machines.count)
    scene.machines.kill_node(number)
    return f"raylet of node {number} killed, another node added"


def kill_driver(scene: "Scene", draw: random.Random) -> str:
    """Kill the command."""
    scene.driver.kill()
    return f"driver {scene.driver.pid} killed"


def kill_gcs(scene: "Scene", draw: random.Random) -> str:
    """Kill the GCS, which starts again with the state on its disk."""
    scene.machines.kill_gcs()
    return "GCS killed and started again"


def kill_head(scene: "Scene", draw: random.Random) -> str:
    """Kill the head's machine, where the command runs too."""
    scene.driver.kill()
    scene.machines.kill_head()
    return "head and driver killed, cluster started again"


def stop_process(scene: "Scene", draw: random.Random) -> str:
    """Suspend a process for a while."""
    processes = scene.machines.processes(*TRIALS)
    if not processes:
        return "no process to stop"
    process = draw.choice(processes)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)

    def resume() -> None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)

    threading.Timer(STOP_SECONDS, resume).start()
    return f"process {process.pid} stopped for {STOP_SECONDS:g} s"


def spoil_storage(scene: "Scene", draw: random.Random) -> str:
    """Make storage refuse, crawl, or cut uploads or downloads short for a while."""
    scene.storage.mood = draw.choice(MOODS)

    def recover() -> None:
        scene.storage.mood = "well"

    threading.Timer(BAD_STORAGE_SECONDS, recover).start()
    return f"storage {scene.storage.mood} for {BAD_STORAGE_SECONDS:g} s"


def fill_disk(scene: "Scene", draw: random.Random) -> str:
    """Let no file of one process grow for a while, as if its disk were full."""
    pids = [scene.driver.pid, *(process.pid for process in scene.machines.processes(*TRIALS))]
    pid = draw.choice(pids)
    with suppress(ProcessLookupError):
        prlimit(pid, RLIMIT_FSIZE, (FULL_BYTES, RLIM_INFINITY))

    def recover() -> None:
        with suppress(ProcessLookupError):
            prlimit(pid, RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))

    threading.Timer(FULL_SECONDS, recover).start()
    return f"disk of process {pid} full for {FULL_SECONDS:g} s"


def move_clock(scene: "Scene", draw: random.Random) -> str:
    """Move the clock of the processes that start from now on."""
    offset = draw.choice([-CLOCK_SECONDS, CLOCK_SECONDS])
    if float(scene.clock.read_text()) == offset:
        return "no move of the clock, which is off by as much already"
    scene.clock.write_text(str(offset))
    return f"clock of processes that start from now on moved by {offset:+g} s"


def truncate_cache(scene: "Scene", draw: random.Random) -> str:
    """Cut a file of the corpus that a node has fetched in half."""
    files = sorted(scene.cache.glob("*/**/*.i[48]"))
    if not files:
        return "no fetched corpus to truncate"
    file = draw.choice(files)
    os.truncate(file, file.stat().st_size // 2)
    return f"{file.relative_to(scene.cache)} truncated"


def _run_of(name: str) -> str:
    """Return the run that an object on storage belongs to."""
    return name.split("/runs/")[-1].split("/")[0]


def truncate_checkpoint(scene: "Scene", draw: random.Random) -> str:
    """Cut a checkpoint on storage in half, of a run that has not ended: no other is read again."""
    ended = {_run_of(name) for name in scene.storage.names(scene.disturbed, "/record.json")}
    kept = scene.storage.names(scene.disturbed, ".pt")
    names = [name for name in kept if _run_of(name) not in ended]
    if not names:
        return "no checkpoint to truncate"
    name = draw.choice(names)
    scene.storage.truncate(name)
    return f"{name.split('/runs/')[-1]} truncated"


FAULTS: dict[str, tuple[int, Fault]] = {
    "worker": (3, kill_worker),
    "trial": (3, kill_trial),
    "raylet": (2, kill_raylet),
    "driver": (2, kill_driver),
    "gcs": (1, kill_gcs),
    "head": (1, kill_head),
    "stop": (2, stop_process),
    "storage": (3, spoil_storage),
    "truncate": (2, truncate_checkpoint),
    "cache": (1, truncate_cache),
    "disk": (2, fill_disk),
    "clock": (1, move_clock),
}
"""Each fault with its weight in the draw."""
