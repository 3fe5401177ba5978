"""Atomic writes: a reader sees the old file or the new one, and nothing temporary is left."""

import pytest

from clue_ray.storage.files import atomic_write, read_file, write_file


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
