"""Compare corpus preparation with scripts that do the same work in one process.

    python -m benchmarks.prepare            # about nine minutes on 2 cores

Prepares 5 million planted events with clue-ray, pyarrow and pandas, then with clue-ray on two
nodes, then 20 million events with clue-ray. Each contender runs in its own process and must write
the same shards, byte for byte.

Times exclude imports and the start of Ray (3 to 5 s per session), which has its own column. Memory
is the peak private memory of the largest process, sampled five times per second. It excludes the
object store, which has a fixed size (600 MB here) and spills to disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"

from benchmarks import plain_prepare
from clue_ray.corpus.planted import PlantedSpec
from clue_ray.spec.specs import CorpusSpec

STORE = 600_000_000
CONTENDERS = ("clue-ray", "pyarrow", "pandas")


def planted(events: int) -> PlantedSpec:
    """Return the spec of a log of about `events` events over 51,200 items in two services."""
    return PlantedSpec(users=events // 96, items_per_topic=400)


@contextmanager
def ray_session(nodes: int = 1, cpus: int = 2) -> Iterator[float]:
    """Run a session of one or more nodes on this machine; yield the seconds that its start took."""
    import ray
    from ray.cluster_utils import Cluster

    start = time.perf_counter()
    args = {
        "num_cpus": cpus // nodes,
        "object_store_memory": STORE // nodes,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=nodes > 1, head_node_args=args if nodes > 1 else None)
    for _ in range(nodes - 1):
        cluster.add_node(**args)
    where = {"address": cluster.address} if nodes > 1 else args
    ray.init(log_to_driver=False, logging_level="error", **where)
    yield time.perf_counter() - start
    ray.shutdown()
    cluster.shutdown()


def contend(name: str, log: Path, folder: Path, nodes: int, cpus: int) -> dict[str, object]:
    """Prepare a log with one contender; measure time and memory."""
    spec = CorpusSpec(events=str(log))
    work: dict[str, Callable[[], object]] = {
        "clue-ray": lambda: _build(spec, folder),
        "pyarrow": lambda: plain_prepare.with_pyarrow(log, folder, spec),
        "pandas": lambda: plain_prepare.with_pandas(log, folder, spec),
    }
    with ray_session(nodes, cpus) if name == "clue-ray" else nullcontext(0.0) as started:
        watch = Watch()
        start = time.perf_counter()
        work[name]()
        seconds = time.perf_counter() - start
        memory = watch.stop()
    return {
        "seconds": seconds,
        "start": started,
        "memory": memory,
        "digest": plain_prepare.digest(folder),
    }


def _build(spec: CorpusSpec, folder: Path) -> None:
    from clue_ray.corpus.build import build_corpus

    build_corpus(spec, folder)


class Watch:
    """Sample the private memory of this process and of each of its descendants."""

    def __init__(self) -> None:
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.ended.wait(0.2):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.peak = max(self.peak, memory.rss - memory.shared)

    def stop(self) -> int:
        """Return the largest sample in bytes."""
        self.ended.set()
        self.thread.join()
        return self.peak


def run(name: str, log: Path, *, nodes: int = 1, cpus: int = 2) -> dict[str, float]:
    """Run a contender in its own process."""
    folder = Path(tempfile.mkdtemp(prefix="prepare-")) / "corpus"
    command = [sys.executable, "-m", "benchmarks.prepare", "--contender", name, "--log", str(log)]
    command += ["--folder", str(folder), "--nodes", str(nodes), "--cpus", str(cpus)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    shutil.rmtree(folder.parent)
    return json.loads(output.splitlines()[-1])


def make_log(events: int, folder: Path) -> Path:
    """Write a planted log in its own process, unless it exists."""
    log = folder / f"planted-{events}"
    if not log.exists():
        code = (
            "from pathlib import Path; from benchmarks.prepare import planted, ray_session\n"
            "from clue_ray.corpus.planted import write_planted\n"
            f"with ray_session(): write_planted(planted({events}), Path({str(log)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    return log


def main() -> None:
    """Run all contenders in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=float, default=5e6)
    parser.add_argument(
        "--repeats", type=int, default=3, help="alternating runs, of which the median counts"
    )
    parser.add_argument(
        "--logs", type=Path, default=Path(tempfile.gettempdir()), help="folder of the planted logs"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--cpus", type=int, default=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(contend(args.contender, args.log, args.folder, args.nodes, args.cpus)))
    else:
        compare(int(args.events), args.repeats, args.logs)


def compare(events: int, repeats: int, folder: Path) -> None:
    """Time the contenders in alternation, then clue-ray on two nodes and on four times the log."""
    log, large = make_log(events, folder), make_log(4 * events, folder)
    rows = sum(pq.read_metadata(file).num_rows for file in log.glob("*.parquet"))
    large_rows = sum(pq.read_metadata(file).num_rows for file in large.glob("*.parquet"))
    found = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name in CONTENDERS:
            found[name].append(run(name, log))
    middle = {
        name: sorted(runs, key=lambda r: r["seconds"])[len(runs) // 2]
        for name, runs in found.items()
    }
    table = Table(
        "contender",
        "events",
        "seconds",
        "events/s",
        "time relative to clue-ray",
        "memory, MB",
        "Ray start, s",
    )
    ours = middle["clue-ray"]
    entries = [(name, rows, middle[name]) for name in CONTENDERS]
    entries += [
        ("clue-ray, two nodes", rows, run("clue-ray", log, nodes=2)),
        ("clue-ray", large_rows, run("clue-ray", large)),
    ]
    for name, count, result in entries:
        ratio = result["seconds"] / count / (ours["seconds"] / rows)
        numbers = [
            f"{count:,}",
            f"{result['seconds']:.1f}",
            f"{count / result['seconds']:,.0f}",
            f"{ratio:.2f}x",
        ]
        table.add_row(name, *numbers, f"{result['memory'] / 1e6:.0f}", f"{result['start']:.1f}")
    Console(width=110).print(table)
    digests = {result["digest"] for _, count, result in entries if count == rows}
    growth = entries[-1][2]["memory"] / ours["memory"] - 1
    print(
        f"The shards of {rows:,} events are "
        f"{'identical for all contenders' if len(digests) == 1 else 'NOT IDENTICAL'}."
    )
    print(f"The largest process grew by {growth:.0%} from {rows:,} to {large_rows:,} events.")


if __name__ == "__main__":
    main()
