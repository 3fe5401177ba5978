"""`benchmarks.chaos`: the account of what a disturbed study lost, and what counts as equal."""

import json
import random
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.chaos.faults import move_clock, truncate_checkpoint
from benchmarks.chaos.losses import Spent, kept_steps, spent, tell
from clue_ray.report.page import write_report
from tests.described import make_description


def event(at, name, run="", shift=0, **facts):
    time = datetime.fromtimestamp(1e9 + at + shift, UTC).isoformat()
    return {"time": time, "event": name, "run_id": run, **facts}


KILLED = [
    event(5, "training_started"),
    event(10, "run_started", "a"),
    event(20, "run_ended", "a"),
    event(20, "run_started", "b"),
    event(45, "training_started"),  # the command of 30 s, the first having died
    event(50, "run_started", "b"),
    event(60, "run_ended", "b"),
]
"""Two runs of 10 s; the command dies in the second."""


@pytest.mark.parametrize(("kept", "lost"), [({}, 10), ({"b": 4.0}, 6), ({"a": 9, "b": 99}, 0)])
def test_attempts_starts_and_lost_work_of_a_killed_study(kept, lost):
    """The second run goes on from what its checkpoint kept, and only the rest is lost work."""
    found = spent(KILLED, [1e9, 1e9 + 30], kept)
    assert found == Spent(attempts=30, lost_work=lost, training=50, starts=(20,))


def test_a_run_that_dies_again_and_again_keeps_what_its_last_attempt_found():
    events = [
        event(0, "run_started", "a"),
        event(40, "run_restarted", "a"),
        event(45, "run_resumed", "a", seconds_lost=7.0),
        event(50, "run_restarted", "a"),
        event(70, "run_ended", "a"),
    ]
    found = spent(events, [1e9], {"a": 33.0})
    assert (found.attempts, found.lost_work, found.starts) == (70, 17, ())


def test_what_was_kept_is_read_from_the_logs_of_the_runs(tmp_path):
    line = "2026-11-29 05:52:00,355 INFO Run {} {} 400 on 1 worker, the first in process 1 of vm."
    logs = {
        "a": ["starts, of", "resumes after step 120 of", "resumes after step 40 of"],
        "b": ["resumes after step 80 of", "starts,"],  # its checkpoints were damaged
        "c": [],
    }
    for run, lines in logs.items():
        (tmp_path / "runs" / run).mkdir(parents=True)
        text = "\n".join(line.format(run, words) for words in lines)
        (tmp_path / "runs" / run / "log.txt").write_text(text)
    assert kept_steps(tmp_path) == {"a": 40, "b": 0, "c": 0}


def test_a_command_whose_clock_is_an_hour_off():
    events = [
        event(0, "training_started"),
        event(1, "run_started", "a"),
        event(30, "training_started", shift=-3600),
        event(31, "run_started", "a", shift=-3600),
        event(40, "run_ended", "a", shift=-3600),
    ]
    found = spent(events, [1e9, 1e9 + 20], {})
    assert found.training == pytest.approx(39)
    assert found.starts == pytest.approx((11,))


def test_a_command_that_dies_at_once_is_no_credit(capsys):
    quiet, loud = Spent(20, 0, 20, ()), Spent(30, 10, 50, (20, 2))
    share = tell(quiet, loud, seconds=(40, 80), bare=14)
    assert share == pytest.approx((40 - 10 - 14 - 2) / 40)
    assert "40 s lost: 10 s of lost work, 16 s for 2 starts of Ray alone" in capsys.readouterr().out


class Lake:
    """Storage of two runs, of which the first has ended."""

    def __init__(self):
        self.cut = []

    def names(self, folder, ending):
        found = [f"{folder}/chaos/runs/{run}/checkpoints/step_00000003.pt" for run in "ab"]
        found.append(f"{folder}/chaos/runs/a/record.json")
        return [name for name in found if name.endswith(ending)]

    def truncate(self, name):
        self.cut.append(name)


def test_only_what_can_do_harm_counts_as_a_fault(tmp_path):
    clock = tmp_path / "clock"
    scene = SimpleNamespace(storage=Lake(), disturbed="seed1", clock=clock)
    for seed in range(9):
        clock.write_text("0")
        assert truncate_checkpoint(scene, random.Random(seed)).startswith("b/checkpoints/")
        assert not move_clock(scene, random.Random(seed)).startswith("no ")
        assert move_clock(scene, random.Random(seed)).startswith("no ")
    assert set(scene.storage.cut) == {"seed1/chaos/runs/b/checkpoints/step_00000003.pt"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of four runs with its plan, curves, fits and page."""
    folder = tmp_path_factory.mktemp("chaos") / "one"
    folder.mkdir()
    runs = [
        make_description(run_id=f"r{number}")
        .to_record("done", loss=2 + 0.5**number, steps=6, train_flops=1e9 * 4**number)
        .model_dump()
        for number in range(4)
    ]
    (folder / "plan.json").write_text(json.dumps({"runs": runs}))
    table = pd.DataFrame(runs)
    table.to_parquet(folder / "runs.parquet")
    points = {"run_id": table["run_id"], "step": 6, "train_flops": 1e9, "loss": table["loss"]}
    pd.DataFrame(points).to_parquet(folder / "curves.parquet")
    write_report(folder)
    return folder


def change_loss(folder):
    table = pd.read_parquet(folder / "runs.parquet")
    table.loc[2, "loss"] += 1e-12
    table.to_parquet(folder / "runs.parquet")
    write_report(folder)


def change_curve(folder):
    curves = pd.read_parquet(folder / "curves.parquet")
    curves.loc[0, "loss"] += 1e-12
    curves.to_parquet(folder / "curves.parquet")
    write_report(folder)


def change_status(folder):
    table = pd.read_parquet(folder / "runs.parquet")
    table.loc[3, "status"] = "failed"
    table.to_parquet(folder / "runs.parquet")
    write_report(folder)


def change_fit(folder):
    fits = json.loads((folder / "fits.json").read_text())
    (folder / "fits.json").write_text(json.dumps({**fits, "answer": "another"}))


def change_page(folder):
    page = folder / "report" / "index.html"
    page.write_text(page.read_text().replace("2", "3", 1))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda folder: None, ""),
        (change_loss, "runs.csv: "),
        (change_curve, "curves.parquet: "),
        (change_status, "runs.csv: 3 of 4 runs are done"),
        (change_fit, "fits.json: answer"),
        (change_page, "has not the page of its files"),
    ],
)
def test_one_changed_digit_is_a_difference(study, tmp_path, change, found):
    pytest.importorskip("moto")
    from benchmarks.chaos.__main__ import differences

    other = shutil.copytree(study, tmp_path / "other")
    change(other)
    told = differences(study, other)
    assert any(found in line for line in told) if found else not told


def test_runs_that_failed_in_both_studies_are_not_equal(study, tmp_path):
    pytest.importorskip("moto")
    from benchmarks.chaos.__main__ import differences

    folder = shutil.copytree(study, tmp_path / "one")
    change_status(folder)
    told = differences(folder, folder)
    assert told == ["runs.csv: 3 of 4 runs are done"] * 2
