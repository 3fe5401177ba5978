"""Storage is checked from every node before anything trains."""

import shutil
import tempfile

import pytest
from ray.exceptions import RayTaskError, TaskUnschedulableError

from clue_ray.cluster.places import Places, find_failure
from clue_ray.corpus.store import share_corpus
from clue_ray.errors import ClusterError, StudyError
from clue_ray.spec.specs import ResourcesSpec, RunSpec, read_study
from clue_ray.storage import lease
from clue_ray.storage.files import RETRY_SECONDS, write_file
from clue_ray.storage.place import resolve_place
from clue_ray.study import probes as storage
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import StoredDirectory
from clue_ray.study.probes import check_storage, node_failure, probes
from clue_ray.study.trial import checkpoint_place


def test_what_a_node_may_lack(tmp_path):
    states, uri = str(tmp_path / "states"), f"file://{tmp_path}/lake"

    def found(*written, corpus=None):
        return find_failure(Places(written, ".probe", corpus))

    with pytest.raises(StudyError), probes([states, "ftp://x/y"]):
        pass
    assert not list((tmp_path / "states").iterdir())
    assert found(states) == f"does not see {states}"
    for place in (states, uri):
        write_file(place, ".probe", b"")
    assert found(states, uri) == ""
    for place in (str(tmp_path / "corpus"), f"{uri}/c"):
        assert found(states, corpus=place) == f"does not see {place}"
        write_file(place, "corpus.json", b"{}")
        assert found(states, corpus=place) == ""
    assert found("ftp://x/y").startswith("cannot use storage: Storage ftp://x/y cannot be used (")


def test_an_error_of_a_node_is_one_sentence():
    trouble = node_failure(
        "Node 1.2.3.4", RayTaskError("f", "a\nb\n", MemoryError("no room\nfor it"))
    )
    assert str(trouble) == "Node 1.2.3.4 failed a task (no room); repair or remove it."
    unplaced = str(node_failure("Node", TaskUnschedulableError("gone.")))
    assert (
        unplaced == "Node failed a task (The task is not schedulable: gone); repair or remove it."
    )


@pytest.mark.parametrize("place", ["s3://", "s3:bucket/x", "s3://[b/x"])
def test_a_place_that_names_no_bucket_is_no_folder(place):
    with pytest.raises(StudyError, match=r"^Storage .* names no bucket; give a folder or a URI"):
        resolve_place(place)


def test_no_run_fails_before_its_study_gives_storage_up():
    answer = 20.0  # of a signature that storage let hang
    assert sum(RETRY_SECONDS) > lease.LOST_SECONDS + lease.RENEW_SECONDS + answer


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
        kept = study.model_copy(
            update={"resources": ResourcesSpec(checkpoints=str(tmp_path / "states"))}
        )
        here = StudyDirectory(tmp_path / "out" / "tiny")
        check_storage(kept, here, corpus.place)
        assert [path.name for path in (tmp_path / "out").rglob("*")] == ["tiny"]
        stored = StoredDirectory(here.path, f"file://{tmp_path}/lake")
        check_storage(kept, stored, share_corpus(corpus, f"file://{tmp_path}/lake/c").place)
        monkeypatch.setattr(storage, "find_failure", lambda places: f"does not see {places.corpus}")
        with pytest.raises(
            ClusterError,
            match=rf"^Node \S+ does not see {corpus.path}; the study's folder is .*--output",
        ):
            check_storage(study, here, corpus.place)
        monkeypatch.setattr(
            storage, "find_failure", lambda places: f"cannot write {places.written[0]}"
        )
        with pytest.raises(
            ClusterError,
            match=r"^Node \S+ cannot write file:/\S+/lake/tiny; .*--storage that all can",
        ):
            check_storage(study, stored, corpus.place)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
