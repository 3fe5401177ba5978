"""What `benchmarks.soak` counts as left behind, and which memory it calls flat."""

from benchmarks.soak import judge_slopes, temporary_files


def test_leaked_files_and_empty_folders_are_listed(tmp_path):
    for name in (
        "ray/session/logs",
        "clue-ray-me/corpora/ab",
        "clue-ray-me/work",
        "clue-ray-transfer-x",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ray" / "session" / "raylet.out").write_text("")
    assert temporary_files(tmp_path) == ["empty folder clue-ray-transfer-x"]
    (tmp_path / "clue-ray-me" / "work" / "tmpabc").mkdir()
    (tmp_path / "clue-ray-transfer-x" / "result.json").write_text("")
    assert temporary_files(tmp_path) == [
        "empty folder clue-ray-me/work/tmpabc",
        "file clue-ray-transfer-x/result.json",
    ]


def test_a_memory_that_grows_is_named(capsys):
    slopes = {
        "driver": (889e6, 24e6),
        "trial actors": (500e6, -6e6),
        "raylet": (50e6, 0.9e6),  # less than 1 MB
        "GCS": (400e6, 3.9e6),  # less than 1 %
        "open files": (90.0, 9.0),
    }
    assert judge_slopes(slopes) == ["growing memory: driver"]
    told = capsys.readouterr().out
    assert "889.0 MB, +24.00 MB per 100 runs: not flat" in told
    assert told.count(": flat") == 3
