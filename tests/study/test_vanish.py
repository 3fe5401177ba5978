"""A bucket deleted while a study trains: one error, nothing left behind, and the study resumes."""

import time
from contextlib import suppress

import pyarrow.fs
import pytest
import ray

from clue_ray.errors import StudyError
from clue_ray.spec.specs import read_study
from clue_ray.storage import lease
from clue_ray.storage.files import list_files
from clue_ray.storage.lease import LEASE_FILE
from clue_ray.storage.place import place_below
from clue_ray.study.run import run_study

LOST = (
    r"has been unavailable for \d+ s \(the bucket does not exist: check its name\); fix it and run "
    r"the same command again"
)


@pytest.fixture
def bucket(s3_query):
    """A new bucket and its filesystem, which may delete it."""
    store = pyarrow.fs.FileSystem.from_uri(
        f"s3://lake{s3_query}&allow_bucket_creation=1&allow_bucket_deletion=1"
    )[0]
    store.create_dir("lake")
    return store


def vanish(store):
    """Delete the bucket, to which others are writing."""
    while store.get_file_info("lake").type != pyarrow.fs.FileType.NotFound:
        with suppress(OSError):
            store.delete_dir("lake")


def wait_until(done, seconds):
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert done()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_study_whose_bucket_vanishes_ends_and_goes_on_when_it_is_back(
    write_study, planted_log, corpus, bucket, s3_query, tmp_path, monkeypatch
):
    for name, seconds in {"RENEW": 0.5, "SETTLE": 0.5, "LOST": 5.0}.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    file = write_study(
        planted_log,
        corpus=str(corpus.path),
        base__train={"global_batch_size": 16, "steps": 600},
        axes={"sequence_length": [2, 4]},
        evaluation={"candidates": 16, "every": 0.02},
    )
    study, storage = read_study(file), f"s3://lake/vanishing{s3_query}"

    def look(snapshot):
        if any(run.share > 0.05 for run in snapshot.running):
            vanish(bucket)

    with pytest.raises(StudyError, match=LOST):
        run_study(study, tmp_path / "a", storage=storage, on_progress=look)
    wait_until(lambda: ray.available_resources().get("CPU") == 2, 60)

    bucket.create_dir("lake")
    monkeypatch.setattr(lease, "LOST_SECONDS", 60.0)
    runs = run_study(study, tmp_path / "a", storage=storage)
    assert runs.table["status"].tolist() == ["done"] * 2
    there = list_files(place_below(storage, "tiny"))
    assert {f"runs/{run_id}/record.json" for run_id in runs.table["run_id"]} <= set(there)
    assert LEASE_FILE not in there
