"""What `benchmarks.soak` counts as left behind, and what it calls flat."""

from pathlib import Path

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
        f"empty folder {Path('clue-ray-me', 'work', 'tmpabc')}",
        "file clue-ray-transfer-x/result.json",
    ]


def test_what_grows_is_named(capsys):
    slopes = {
        "driver": (889.0, 24.0),
        "trial actors": (500.0, -6.0),
        "raylet": (50.0, 0.9),  # less than 1 MB
        "GCS": (400.0, 3.9),  # less than 1 %
        "open files": (90.0, 9.0),
        "threads": (40.0, 0.0),
    }
    assert judge_slopes(slopes) == ["growing: driver", "growing: open files"]
    told = capsys.readouterr().out
    assert "889.0 MB, +24.00 MB per 100 runs: not flat" in told
    assert "90.0, +9.00 per 100 runs: not flat" in told
    assert told.count(": flat") == 4
