"""Atomic writes: a reader sees the old file or the new one, and nothing temporary is left."""

from types import SimpleNamespace

import pytest

from clue_ray.errors import StudyError
from clue_ray.storage import files
from clue_ray.storage.documents import read_bounded
from clue_ray.storage.files import (
    RETRY_SECONDS,
    atomic_write,
    read_bytes,
    read_file,
    with_retries,
    write_file,
)


def write_and_fail(path):
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        raise ValueError("fails")


def test_a_local_file_is_replaced_only_if_the_block_succeeds(tmp_path):
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ValueError, match="fails"):
        write_and_fail(path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_at_a_place_is_replaced_only_if_the_write_succeeds(tmp_path):
    place = f"file://{tmp_path}/lake"
    write_file(place, "folder/file", b"old")
    with pytest.raises(TypeError):
        write_file(place, "folder/file", "no bytes")  # fails once the temporary file is open
    assert read_file(place, "folder/file") == b"old"
    assert [file.name for file in (tmp_path / "lake" / "folder").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("seconds", "tries"), [(0, len(RETRY_SECONDS) + 1), (100, 3), (500, 3)], ids=str
)
def test_storage_that_refuses_or_stalls_ends_in_a_sentence(monkeypatch, seconds, tries):
    """Each try takes as long as the client of the storage waits for an answer."""
    clock, called = [0.0], []

    def wait(pause):
        clock[0] += pause

    def stall():
        called.append(clock[0])
        wait(seconds)
        raise OSError("Operation too slow.")

    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=wait))
    with pytest.raises(StudyError, match=rf"^x fails after {tries} tries \(Operation too slow\); "):
        with_retries(stall, "x fails")
    assert len(called) == tries


def test_slow_storage_that_answers_again_is_used(monkeypatch):
    clock, answers = [0.0], iter([OSError("cut"), OSError("cut"), "content"])

    def read():
        clock[0] += 400.0
        if isinstance(answer := next(answers), OSError):
            raise answer
        return answer

    sleep = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: None)
    monkeypatch.setattr(files, "time", sleep)
    assert with_retries(read, "x fails") == "content"


@pytest.mark.parametrize(
    "read", [lambda place: read_file(place, "huge"), lambda place: read_bytes(f"{place}/huge", 9)]
)
def test_what_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch, read):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it is read again"))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(50_000_000_000)  # takes no disk
    with pytest.raises((StudyError, OSError), match="it has 50,000,000,000 bytes, more than"):
        read(f"file://{tmp_path}")
    with pytest.raises(OSError, match="it has 50,000,000,000 bytes, more than 256,000,000"):
        read_bounded(tmp_path / "huge")
