"""Storage is looked at from every node before anything trains."""

import shutil
import tempfile

import pytest

from clue_ray.errors import ClusterError
from clue_ray.spec import ResourcesSpec, RunSpec, read_study
from clue_ray.study import storage
from clue_ray.study.storage import check_storage, find_trouble
from clue_ray.study.trial import checkpoint_place


def test_what_a_node_may_lack(tmp_path):
    (tmp_path / "corpus").mkdir()
    seen = str(tmp_path / "corpus")
    assert find_trouble([seen], str(tmp_path / "states")) == ""
    assert find_trouble([seen, str(tmp_path / "other")], None) == f"does not see {tmp_path / 'other'}"
    assert find_trouble([str(tmp_path / "out" / ".probe.1"), seen], None) == f"does not see {tmp_path / 'out'}"
    assert "cannot keep checkpoints" in find_trouble([seen], "ftp://x/y")


def test_where_a_run_keeps_its_states(tmp_path):
    def place(kept):
        run = RunSpec(train={"steps": 1}, resources={"checkpoints": kept})
        return checkpoint_place(run, "me", tmp_path / "runs" / "me")

    assert place(None) == str(tmp_path / "runs" / "me" / "checkpoints")
    assert place("s3://bucket/states/?region=r") == "s3://bucket/states/me?region=r"
    assert place("/scratch/states") == "/scratch/states/me"


@pytest.mark.multinode
@pytest.mark.ray
def test_every_other_node_is_asked(planted_log, write_study, corpus, tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        study = read_study(write_study(planted_log))
        kept = study.model_copy(update={"resources": ResourcesSpec(checkpoints=str(tmp_path / "states"))})
        check_storage(kept, tmp_path / "out", corpus.path)
        assert not list((tmp_path / "out").iterdir())
        monkeypatch.setattr(storage, "find_trouble", lambda needed, place: f"does not see {needed[1]}")
        with pytest.raises(ClusterError, match=rf"^Node \S+ does not see {corpus.path}; give an --output"):
            check_storage(study, tmp_path / "out", corpus.path)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
