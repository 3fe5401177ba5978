"""Files are hashed once, and again when they change, whatever their times claim."""

import os

import pytest

from clue_ray.corpus import checksums
from clue_ray.corpus.checksums import MISSING, find_sums, remember_sums
from clue_ray.corpus.hashes import sha256
from clue_ray.storage.sync import node_folder


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The names of the files that are read, on this test's own node disk."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    monkeypatch.setattr(checksums, "SETTLED_NS", 0)
    names = []
    monkeypatch.setattr(
        checksums, "sha256", lambda file: (names.append(file.name), sha256(file))[1]
    )
    return names


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c").mkdir()
    for name in "ab":
        (tmp_path / "c" / name).write_text(name)
    return tmp_path / "c"


def test_a_file_is_read_again_only_when_it_has_changed(folder, read):
    expected = {name: sha256(folder / name) for name in "ab"} | {"gone": MISSING}
    assert find_sums(folder, [*"ab", "gone"]) == expected
    assert sorted(read) == ["a", "b"]
    assert find_sums(folder, [*"ab", "gone"]) == expected
    assert sorted(read) == ["a", "b"]
    before = (folder / "b").stat()
    (folder / "b").write_text("c")  # of the same size, its time put back as a copy would
    os.utime(folder / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_sums(folder, "ab") == {"a": expected["a"], "b": sha256(folder / "b")}
    assert read[2:] == ["b"]
    (folder / "a").unlink()
    assert find_sums(folder, "a") == {"a": MISSING}


def test_files_that_were_just_written_need_not_be_read(folder, read):
    remember_sums(folder, {name: name * 64 for name in "ab"})
    assert find_sums(folder, "ab") == {"a": "a" * 64, "b": "b" * 64}
    assert read == []


def test_a_young_file_is_read_again(folder, read, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED_NS", 10**12)
    for _ in range(2):
        find_sums(folder, "a")
    assert read == ["a", "a"]


@pytest.mark.parametrize("content", ["[1", "[]", '{"a": 1}', '{"a": ["x", "y", 1, 2]}'])
def test_a_damaged_memory_is_no_memory(folder, read, content):
    find_sums(folder, "a")
    (memory,) = node_folder("checksums").iterdir()
    memory.write_text(content)
    assert find_sums(folder, "a") == {"a": sha256(folder / "a")}
    assert read == ["a", "a"]


def test_without_a_place_to_remember_all_is_read(folder, read, tmp_path):
    node_folder("checksums").parent.chmod(0o777)
    for _ in range(2):
        assert find_sums(folder, "a") == {"a": sha256(folder / "a")}
    assert read == ["a", "a"]
