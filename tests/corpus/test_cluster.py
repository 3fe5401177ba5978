"""Build corpora on one core, eight cores and two nodes: the same bytes, also after kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.fs
import pytest

from clue_ray.corpus.store import holds_corpus, open_corpus, read_manifest
from clue_ray.storage.files import list_files
from tests.nodes import Nodes

PREPARE = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from clue_ray.corpus.build import build_corpus
from clue_ray.spec.specs import CorpusSpec

log, output, nodes, cpus, temporary = sys.argv[1:]
node = {"num_cpus": int(cpus), "object_store_memory": 120_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=int(nodes) > 1, head_node_args={**node, "temp_dir": temporary})
for _ in range(int(nodes) - 1):
    cluster.add_node(**node)
where = {"address": cluster.address} if int(nodes) > 1 else {**node, "_temp_dir": temporary}
ray.init(log_to_driver=False, **where)
build_corpus(CorpusSpec(events=log, vocab_size=400), output)
print(json.dumps({"nodes": len(ray.nodes())}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def start(planted_log, tmp_path):
    """Start a preparation in its own process group."""
    folders = []

    def run(name: str, nodes: int = 1, cpus: int = 2) -> subprocess.Popen:
        folders.append(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
        command = [
            sys.executable,
            "-c",
            PREPARE,
            planted_log,
            tmp_path / name,
            str(nodes),
            str(cpus),
            folders[-1],
        ]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    yield run
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def finish(process: subprocess.Popen) -> dict:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def layout(folder: Path) -> dict:
    """Read the sizes and checksums of a corpus' training layout."""
    return json.loads((folder / "train" / "layout.json").read_text())


@pytest.mark.slow
@pytest.mark.ray
def test_same_bytes_on_one_core_and_on_eight(start, tmp_path):
    for name, cpus in (("one", 1), ("eight", 8)):
        finish(start(name, cpus=cpus))
    assert read_manifest(tmp_path / "one")["files"] == read_manifest(tmp_path / "eight")["files"]
    assert layout(tmp_path / "one") == layout(tmp_path / "eight")


@pytest.mark.multinode
@pytest.mark.ray
def test_same_bytes_on_two_nodes(start, tmp_path):
    finish(start("one"))
    assert finish(start("two", nodes=2, cpus=1)) == {"nodes": 2}
    assert read_manifest(tmp_path / "one")["digest"] == read_manifest(tmp_path / "two")["digest"]
    assert layout(tmp_path / "one") == layout(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_preparation_starts_again_and_leaves_nothing(start, tmp_path):
    killed = start("corpus")
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob(".corpus.*.partial/shards/*.parquet"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "corpus").exists()
    assert len(list(tmp_path.glob(".corpus.*.partial"))) == 1
    finish(start("corpus"))
    finish(start("undisturbed"))
    assert (
        read_manifest(tmp_path / "corpus")["files"]
        == read_manifest(tmp_path / "undisturbed")["files"]
    )
    assert not list(Path(tmp_path).glob(".corpus.*"))


STORE = """
import sys
import ray
from clue_ray.corpus.build import build_corpus
from clue_ray.spec.specs import CorpusSpec

log, output, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
build_corpus(CorpusSpec(events=log, vocab_size=400), output)
"""


@pytest.mark.multinode
@pytest.mark.ray
def test_same_bytes_on_storage_from_three_nodes_of_which_one_is_killed(
    start, planted_log, s3_query, tmp_path
):
    finish(start("one"))
    store = pyarrow.fs.FileSystem.from_uri(f"s3://corpora{s3_query}&allow_bucket_creation=true")[0]
    store.create_dir("corpora")
    place = f"s3://corpora/c{s3_query}"
    with Nodes() as nodes:
        command = [sys.executable, "-c", STORE, str(planted_log), place, nodes.address]
        disturbed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not list_files(f"s3://corpora/c/shards{s3_query}") and time.monotonic() < deadline:
            time.sleep(0.1)
        nodes.ask("kill")
        # Ray Data's shuffle may have lost blocks with the node: run the same command again.
        if disturbed.wait(timeout=400) != 0:
            assert not holds_corpus(place)
            nodes.ask("add")
            subprocess.run(command, check=True, timeout=400, stderr=subprocess.DEVNULL)
    fetched = open_corpus(place)
    assert fetched.manifest["files"] == read_manifest(tmp_path / "one")["files"]
    assert fetched.layout.facts == layout(tmp_path / "one")
