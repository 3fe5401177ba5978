"""Checkpoints: the last two states, on a disk or in a bucket, despite damage and bad storage."""

import logging
import threading
import zipfile

import pyarrow.fs
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clue_ray.errors import StudyError
from clue_ray.spec.specs import ResourcesSpec, RunSpec, TrainSpec
from clue_ray.storage import files
from clue_ray.storage.place import place_below, resolve_place
from clue_ray.study.tune import trial_spec
from clue_ray.training import checkpoints, tensorboard
from clue_ray.training.checkpoints import check_owner, load_state, save_state
from clue_ray.training.tensorboard import CurveEvents, log_to
from tests.described import make_description


def make_state(step: int, run_id: str = "me") -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "run_id": run_id,
        "progress": {"step": step},
        "weights": torch.randn(1000, generator=generator),
    }


def assert_state(state, step):
    assert state["progress"]["step"] == step
    assert torch.equal(state["weights"], make_state(step)["weights"])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept(tmp_path):
    assert load_state(tmp_path / "none") is None
    for step in (3, 9, 12):
        save_state(tmp_path / "states", make_state(step))
    assert names(tmp_path / "states") == ["step_00000009.pt", "step_00000012.pt"]
    assert_state(load_state(tmp_path / "states"), 12)
    assert_state(load_state(str(tmp_path / "states"), step=9), 9)


def test_the_step_of_a_state_is_known_without_its_weights(tmp_path):
    save_state(tmp_path, make_state(9))
    file = tmp_path / "step_00000009.pt"
    content = bytearray(file.read_bytes())
    weights = make_state(9)["weights"].numpy().tobytes()
    content[content.index(weights) + 100] ^= 1
    file.write_bytes(content)
    assert load_state(tmp_path, where="meta")["progress"]["step"] == 9
    assert load_state(tmp_path) is None


@pytest.mark.parametrize("size", [0, 10, 3000])
def test_a_truncated_state_gives_way_to_the_one_before(tmp_path, caplog, size):
    for step in (3, 9):
        save_state(tmp_path, make_state(step))
    last, before = tmp_path / "step_00000009.pt", tmp_path / "step_00000003.pt"
    last.write_bytes(last.read_bytes()[:size])
    assert_state(load_state(tmp_path), 3)
    assert "step_00000009.pt is damaged" in caplog.text
    assert "that of step 3 is used" in caplog.text
    before.write_bytes(b"junk")
    assert load_state(tmp_path) is None
    assert "the run starts again" in caplog.text


def test_an_end_that_storage_refuses_once_is_no_damage(tmp_path, monkeypatch):
    for step in (3, 9):
        save_state(tmp_path, make_state(step))
    whole, asked = zipfile.is_zipfile, []
    monkeypatch.setattr("time.sleep", asked.append)
    # zipfile hides an OSError of its reads, and says that there is no archive.
    monkeypatch.setattr(zipfile, "is_zipfile", lambda file: bool(asked) and whole(file))
    assert_state(load_state(tmp_path), 9)
    assert len(asked) == 1


def test_other_bytes_than_were_written_are_damage(tmp_path, caplog):
    for step in (3, 9):
        save_state(tmp_path, make_state(step))
    last = tmp_path / "step_00000009.pt"
    content = bytearray(last.read_bytes())
    middle = content.index(make_state(9)["weights"].numpy().tobytes()[:64]) + 2000
    content[middle] ^= 0xFF
    last.write_bytes(content)
    assert_state(load_state(tmp_path), 3)
    assert "wrong checksum" in caplog.text


def test_states_of_a_run_that_starts_again_outlive_the_damaged_ones(tmp_path):
    for step in (57, 60):
        (tmp_path / f"step_{step:08d}.pt").write_bytes(b"junk")
    for step in (3, 6, 9):
        save_state(tmp_path, make_state(step))
        assert_state(load_state(tmp_path), step)
    assert names(tmp_path) == ["step_00000006.pt", "step_00000009.pt"]


def test_a_folder_is_the_driver_s_not_the_trial_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunSpec(train=TrainSpec(steps=1), resources=ResourcesSpec(checkpoints="kept"))
    assert trial_spec(run)["resources"]["checkpoints"] == str(tmp_path / "kept")
    assert resolve_place("s3://bucket/kept") == "s3://bucket/kept"
    assert not resolve_place("~/kept").startswith("~")


def test_what_a_kill_leaves_half_written_is_no_state(tmp_path):
    save_state(tmp_path, make_state(3))
    (tmp_path / "step_00000009.pt.0123.tmp").write_bytes(b"half")
    assert_state(load_state(tmp_path), 3)
    save_state(tmp_path, make_state(6))
    assert names(tmp_path) == ["step_00000003.pt", "step_00000006.pt"]


def test_another_run_s_states_are_refused(tmp_path):
    save_state(tmp_path, make_state(3, run_id="other"))
    with pytest.raises(StudyError, match="are of run other, not of me; move that folder away"):
        check_owner(tmp_path, "me")
    check_owner(tmp_path, "other")
    check_owner(tmp_path / "none", "me")


class Moody(pyarrow.fs.FileSystemHandler):
    """A disk that refuses so many writes first; and, as buckets, knows no rename."""

    def __init__(self, refusals, kind=OSError):
        self.disk, self.refusals, self.kind = pyarrow.fs.LocalFileSystem(), refusals, kind

    def open_output_stream(self, path, metadata):
        self.refusals -= 1
        if self.refusals >= 0:
            raise self.kind("503 Slow Down")
        return self.disk.open_output_stream(path)

    def get_type_name(self):
        return "moody"

    def get_file_info_selector(self, selector):
        return self.disk.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.disk.create_dir(path, recursive=recursive)

    def open_input_file(self, path):
        return self.disk.open_input_file(path)

    def delete_file(self, path):
        raise OSError("may not delete")


Moody.__abstractmethods__ = frozenset()  # what checkpoints do not need is left out


@pytest.fixture
def moody(monkeypatch, tmp_path):
    """Keep states on a moody disk; return the waits it caused."""

    def use(refusals, **how):
        store, waits = pyarrow.fs.PyFileSystem(Moody(refusals, **how)), []
        for module in (checkpoints, files):
            monkeypatch.setattr(module, "open_place", lambda place: (store, str(tmp_path)))
        monkeypatch.setattr("time.sleep", waits.append)
        return waits

    return use


def test_storage_that_refuses_for_a_while_is_waited_for(moody, tmp_path, caplog):
    waits = moody(3)
    save_state("bucket", make_state(3))
    assert waits == [1, 2, 4]
    assert "503 Slow Down" in caplog.text
    assert_state(load_state("bucket"), 3)


def test_storage_that_refuses_for_good_is_a_clear_failure(moody):
    waits = moody(99)
    words = (
        r"^Checkpoint of step 3 cannot be written to bucket after 9 tries \(503 Slow Down\); "
        "fix the storage"
    )
    with pytest.raises(StudyError, match=words):
        save_state("bucket", make_state(3))
    assert len(waits) == 8
    assert sum(waits) > 120


def test_a_permanent_error_fails_at_once(moody):
    waits = moody(99, kind=PermissionError)
    with pytest.raises(StudyError, match="after 1 try"):
        save_state("bucket", make_state(3))
    assert not waits


def test_old_states_that_cannot_be_deleted_are_told_of(moody, caplog):
    moody(0)
    for step in (1, 2, 3):
        save_state("bucket", make_state(step))
    assert "Old checkpoints stay at bucket (may not delete)" in caplog.text
    assert_state(load_state("bucket"), 3)


def test_a_bucket_keeps_states_like_a_folder(s3_query):
    pyarrow.fs.FileSystem.from_uri(f"s3://states{s3_query}&allow_bucket_creation=true")[
        0
    ].create_dir("states")
    place = place_below(f"s3://states/mine/{s3_query}", "run")
    assert place == f"s3://states/mine/run{s3_query}"
    for step in (1, 2, 3):
        save_state(place, make_state(step))
    assert_state(load_state(place), 3)
    store, folder = checkpoints.open_place(place)
    assert len(store.get_file_info(pyarrow.fs.FileSelector(folder))) == 2
    with store.open_output_stream(f"{folder}/step_00000003.pt") as sink:
        sink.write(b"cut short")
    assert_state(load_state(place), 2)


def test_unknown_storage_is_refused():
    with pytest.raises(StudyError, match="Storage ftp://x/y cannot be used"):
        load_state("ftp://x/y")
    with pytest.raises(StudyError, match=r"^s3://me:\.\.\.@states/mine holds a password"):
        load_state("s3://me:secret@states/mine")


def test_the_log_holds_what_the_package_says_meanwhile(tmp_path):
    logger = logging.getLogger("clue_ray.anything")
    with log_to(tmp_path):
        logger.info("within")
    logger.warning("after")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO within" in text
    assert "after" not in text


def test_event_files_hold_the_curve_once(tmp_path):
    curve = [{"step": s, "users_seen": 10 * s, "loss": 5.0 / s} for s in (1, 2, 3)]
    for known in (curve[:2], curve):  # killed after two points, then whole
        with CurveEvents(tmp_path, make_description()) as events:
            events.show(known[:1])
            events.show(known)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (10, 5.0),
        (20, 2.5),
        (30, pytest.approx(5 / 3)),
    ]
    plugins = found.summary_metadata
    assert any(tag.startswith("_hparams_") for tag in plugins)


def test_a_disk_that_refuses_event_files_ends_no_run(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    curve = [{"step": 1, "users_seen": 10, "loss": 5.0}]
    with CurveEvents(tmp_path, make_description()) as events:
        monkeypatch.setattr(events.writer, "add_scalar", refuse)
        events.show(curve)
    assert "events of this run are incomplete" in caplog.text
    monkeypatch.setattr(tensorboard, "SummaryWriter", refuse)
    with CurveEvents(tmp_path, make_description()) as events:
        events.show(curve)


def test_training_goes_on_while_a_state_is_written(tmp_path, monkeypatch):
    go, real = threading.Event(), checkpoints.save_state

    def slow(place, state):
        go.wait(30)
        real(place, state)

    monkeypatch.setattr(checkpoints, "save_state", slow)
    weights = torch.zeros(3)
    writer = checkpoints.StateWriter(tmp_path)
    writer.write({"model": {"w": weights}, "progress": {"step": 1}})
    weights += 1  # the next step of training
    assert load_state(tmp_path) is None
    go.set()
    writer.close()
    assert load_state(tmp_path)["model"]["w"].tolist() == [0, 0, 0]


def test_a_state_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(place, state):
        raise StudyError("the disk is full")

    monkeypatch.setattr(checkpoints, "save_state", full)
    writer = checkpoints.StateWriter(tmp_path)
    writer.write({"progress": {"step": 1}})
    with pytest.raises(StudyError, match="the disk is full"):
        writer.write({"progress": {"step": 2}})
    writer.close()
