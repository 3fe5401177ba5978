"""Storage is looked at from every node before anything trains."""

import shutil
import tempfile

import pytest

from clue_ray.corpus.storage import WAITS, write_file
from clue_ray.corpus.store import share_corpus
from clue_ray.errors import ClusterError
from clue_ray.spec import ResourcesSpec, RunSpec, read_study
from clue_ray.study import claim, storage
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import StoredDirectory
from clue_ray.study.storage import check_storage, find_trouble
from clue_ray.study.trial import checkpoint_place


def test_what_a_node_may_lack(tmp_path):
    (tmp_path / "corpus").mkdir()
    seen, uri = str(tmp_path / "corpus"), f"file://{tmp_path}/lake"
    assert find_trouble([seen], [str(tmp_path / "states"), uri]) == ""
    assert find_trouble([seen, str(tmp_path / "other")], []) == f"does not see {tmp_path / 'other'}"
    assert find_trouble([str(tmp_path / "out" / ".probe.1"), seen], []) == f"does not see {tmp_path / 'out'}"
    assert find_trouble([f"{uri}/c"], []) == f"does not see {uri}/c"
    write_file(f"{uri}/c", "corpus.json", b"{}")
    assert find_trouble([f"{uri}/c"], []) == ""
    assert find_trouble([seen], ["ftp://x/y"]).startswith("cannot use storage: Storage ftp://x/y cannot be used (")
    (tmp_path / "file").touch()
    assert "file cannot be written (" in find_trouble([seen], [str(tmp_path / "file")])


def test_no_run_fails_before_its_study_gives_storage_up():
    answer = 20.0  # of a signature that storage let hang
    assert sum(WAITS) > claim.LOST_SECONDS + claim.SIGN_SECONDS + answer


def test_where_a_run_keeps_its_states(tmp_path):
    def place(kept):
        run = RunSpec(train={"steps": 1}, resources={"checkpoints": kept})
        return checkpoint_place(run, "me", str(tmp_path / "runs" / "me"))

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
        here = StudyDirectory(tmp_path / "out" / "tiny")
        check_storage(kept, here, corpus.place)
        assert [path.name for path in (tmp_path / "out").rglob("*")] == ["tiny"]
        stored = StoredDirectory(here.path, f"file://{tmp_path}/lake")
        check_storage(kept, stored, share_corpus(corpus, f"file://{tmp_path}/lake/c").place)
        monkeypatch.setattr(storage, "find_trouble", lambda needed, written: f"does not see {needed[1]}")
        with pytest.raises(
            ClusterError, match=rf"^Node \S+ does not see {corpus.path}; the study's folder is .*--output"
        ):
            check_storage(study, here, corpus.place)
        monkeypatch.setattr(storage, "find_trouble", lambda needed, written: f"cannot write {written[0]}")
        with pytest.raises(ClusterError, match=r"^Node \S+ cannot write file:/\S+/lake/tiny; .*--storage that all can"):
            check_storage(study, stored, corpus.place)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
