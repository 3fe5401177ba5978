"""Kill a node while three nodes prepare a planted log: the corpus must be the same to the byte.

    python -m benchmarks.scale --kill --events 2e6

The log is prepared once on one node, and then once per moment on three nodes of one core, which
are processes of this machine. At the moment one node's raylet is killed and another node is added.
Where the command ends with an error, because the shuffle lost rows with the node, it is given
again, as a user would.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chaos.cluster import Machines

NODES = 3
MOMENTS = {"nobody": "", "shards are written": "shards", "layout is built": "build"}
"""When a node is killed: as soon as the unfinished corpus has files in a folder."""
PREPARE = """
import sys
from pathlib import Path
import ray
from clue_ray.cluster.session import quieten_ray_data
from clue_ray.corpus.build import build_corpus
from clue_ray.spec.specs import CorpusSpec

log, output, address = sys.argv[1:]
quieten_ray_data()
ray.init(address=address, log_to_driver=False, logging_level="error")
build_corpus(CorpusSpec(events=log, vocab_size=1024), Path(output))
"""
DRAW = """
import sys
from pathlib import Path
from benchmarks.prepare import ray_session
from benchmarks.scale_measured import planted
from clue_ray.corpus.planted import write_planted

with ray_session():
    write_planted(planted(int(sys.argv[1])), Path(sys.argv[2]))
"""


def kill_nodes(events: int, where: Path) -> list[tuple[str, ...]]:
    """Prepare a log without and with kills; return a row per moment."""
    folder = where / f"killed-{events}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log"
    subprocess.run([sys.executable, "-c", DRAW, str(events), str(log)], check=True)
    rows, expected = [], None
    try:
        for moment, watched in MOMENTS.items():
            seconds, commands = _prepare(folder, log, watched)
            found = _identity(folder / "corpus")
            expected = expected or found
            same = ["yes" if a == b else "NO" for a, b in zip(found, expected, strict=True)]
            rows.append((moment, f"{seconds:.0f}", str(commands), *same))
            print(" | ".join(rows[-1]), flush=True)
            shutil.rmtree(folder / "corpus")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _identity(corpus: Path) -> tuple[str, dict[str, object]]:
    """Return the digest of a corpus, and the sizes and checksums of its layout."""
    manifest = json.loads((corpus / "corpus.json").read_text())
    return manifest["digest"], json.loads((corpus / "train" / "layout.json").read_text())


def _prepare(folder: Path, log: Path, watched: str) -> tuple[float, int]:
    """Prepare a log on three nodes; return the seconds and how often the command was given."""
    machines = Machines(folder / f"cluster-{watched or 'none'}", NODES if watched else 1)
    command = [sys.executable, "-c", PREPARE, str(log), str(folder / "corpus"), machines.address]
    started, commands = time.monotonic(), 0
    try:
        while not (folder / "corpus").exists():
            commands += 1
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            if watched and commands == 1 and _wait_for(folder, watched, process):
                machines.kill_node(0)
            if process.wait() and commands == 3:
                raise RuntimeError("three commands failed")
    finally:
        machines.end()
    return time.monotonic() - started, commands


def _wait_for(folder: Path, watched: str, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the unfinished corpus has files in a folder; False if the command ends before."""
    while process.poll() is None:
        if next(folder.glob(f".corpus.*.partial/{watched}/*"), None):
            return True
        time.sleep(0.05)
    return False
