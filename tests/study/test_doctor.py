"""`clue-ray doctor` on a real cluster, healthy and with nodes that promise what they lack."""

import json
import shutil
import tempfile

import pytest
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.cluster.diagnose import Finding
from clue_ray.study import doctor

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


@pytest.mark.multinode
@pytest.mark.ray
def test_a_cluster_is_examined(tmp_path):
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    head = {**NODE, "resources": {"trial_slot": 4}, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        places = [str(tmp_path / "lake"), f"file://{tmp_path}/bucket"]
        healthy = doctor.examine(cluster.address, places)
        assert {f.check for f in healthy} > {"clock", "ports", "places", "versions"}
        assert [f for f in healthy if f.verdict == "problem"] == []
        (tmp_path / "file").write_text("")
        cluster.add_node(**{**NODE, "num_cpus": 512}, num_gpus=3)
        cluster.wait_for_nodes()
        found = doctor.examine(cluster.address, [str(tmp_path / "file" / "below")])
        assert {(f.node, f.check, f.verdict) for f in found} >= {
            ("this machine", "places", "problem")
        }
        assert {(f.check, f.verdict) for f in found} >= {("GPUs", "problem"), ("cores", "warning")}
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
