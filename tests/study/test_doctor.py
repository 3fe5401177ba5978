"""`clue-ray doctor` on a real cluster, healthy and with nodes that promise what they lack."""

import json
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.cluster.diagnose import Finding
from clue_ray.study import doctor

CLOCK = Path(__file__).parents[2] / "benchmarks" / "chaos" / "clock"
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_the_command_prints_a_table_and_tells_problems_by_its_exit_code(monkeypatch, verdict, code):
    asked = []

    def examine(address, places):
        asked.append((address, places))
        return [Finding("a [b]", "clock", verdict, "+9 s", "set it")]

    monkeypatch.setattr(doctor, "examine", examine)
    where = ["--address", "h:1", "--storage", "s3://x/y", "--output", "/z"]
    result = CliRunner().invoke(app, ["doctor", *where])
    assert result.exit_code == code
    assert "a [b]" in result.output
    assert f"1 {verdict}" in result.output
    result = CliRunner().invoke(app, ["doctor", *where, "--json"])
    assert json.loads(result.output)[0]["remedy"] == "set it"
    assert asked == [("h:1", ["s3://x/y", "/z"])] * 2


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    head = {**NODE, "resources": {"trial_slot": 4}, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.multinode
@pytest.mark.ray
def test_a_healthy_cluster_has_no_problem(cluster, tmp_path):
    places = [str(tmp_path / "lake"), f"file://{tmp_path}/bucket"]
    found = doctor.examine(cluster.address, places)
    assert {f.check for f in found} > {"clock", "ports", "places", "versions"}
    assert [f for f in found if f.verdict == "problem"] == []


@pytest.mark.multinode
@pytest.mark.ray
def test_broken_nodes_are_told_with_what_to_do(cluster, tmp_path, monkeypatch):
    promising = cluster.add_node(**{**NODE, "num_cpus": 512}, num_gpus=3)
    few_files = cluster.add_node(**NODE)
    for raylet in few_files.all_processes["raylet"]:
        resource.prlimit(raylet.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    (tmp_path / "clock").write_text("3600")
    monkeypatch.setenv("CHAOS_CLOCK", str(tmp_path / "clock"))
    monkeypatch.setenv("PYTHONPATH", str(CLOCK))
    fast_clock = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    (tmp_path / "file").write_text("")
    try:
        found = doctor.examine(cluster.address, [str(tmp_path / "file" / "below")])
    finally:
        for node in (promising, few_files, fast_clock):
            cluster.remove_node(node)
    bad = [f for f in found if f.verdict != "ok" and f.check != "/dev/shm"]
    assert {(f.check, f.verdict) for f in bad} >= {
        ("GPUs", "problem"),
        ("cores", "warning"),
        ("open files", "problem"),
        ("clock", "problem"),
        ("places", "problem"),
    }
    assert all(f.remedy for f in bad)
    told = [f for f in bad if f.verdict == "problem" and f.check in ("GPUs", "open files", "clock")]
    assert len({f.node for f in told}) == len(told) == 3  # each of its own node alone
