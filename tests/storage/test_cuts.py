"""Uploads and downloads that storage cuts short are errors; `benchmarks.chaos` has the proxy."""

import pytest

from benchmarks.chaos.storage import CUT_AFTER, Storage
from clue_ray.errors import StudyError
from clue_ray.storage import files

CONTENT = bytes(range(256)) * (3 * CUT_AFTER // 256)


@pytest.fixture
def storage(monkeypatch):
    pytest.importorskip("moto")
    monkeypatch.setattr(files, "RETRY_SECONDS", (0.0,))
    started = Storage()
    yield started
    started.end()


def test_what_is_cut_short_is_an_error_and_works_once_the_storage_is_well(storage, tmp_path):
    place = storage.place("study")
    (tmp_path / "whole").write_bytes(CONTENT)
    storage.mood = "cutting uploads"
    with pytest.raises(StudyError, match="whole cannot be written"):
        files.push_files(tmp_path, ["whole"], place)
    assert storage.names("study", "whole") == []
    storage.mood = "cutting downloads"
    files.push_files(tmp_path, ["whole"], place)
    for read in (
        lambda: files.read_file(place, "whole"),
        lambda: files.fetch_files(place, ["whole"], tmp_path / "copy"),
    ):
        with pytest.raises(StudyError, match="whole cannot be read"):
            read()
    assert not (tmp_path / "copy" / "whole").exists()
    storage.mood = "well"
    assert files.read_file(place, "whole") == CONTENT
