"""The progress that a study reports while it runs."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from clue_ray.cli.tables import law_table
from clue_ray.cli.terminal import StudyView, one_line, render
from clue_ray.spec.specs import RunSpec, TrainSpec
from clue_ray.study.planned import Plan, PlannedRun
from clue_ray.study.progress import StudyProgress
from tests.described import make_description


def make_plan(finished=()):
    runs = []
    for index in range(4):
        description = make_description(run_id=f"r{index}")
        run = RunSpec(train=TrainSpec(steps=10))
        runs.append(
            PlannedRun(
                run,
                description,
                10,
                100,
                1e6,
                expected_seconds=60.0,
                status="done" if index in finished else "missing",
            )
        )
    return Plan("tiny", runs, 2, 10**6, ["a warning"])


def trial(run_id, **result):
    return SimpleNamespace(config={"run": {"run_id": run_id}}, last_result=result)


def test_counts_and_time_left():
    heard = []
    progress = StudyProgress(make_plan(finished=[3]), heard.append)
    progress.report()
    assert heard[-1].finished == 1
    assert heard[-1].seconds_left == pytest.approx(
        120, rel=0.1
    )  # 3 runs of a minute, 2 at a time: two rounds
    progress.on_trial_start(0, [], trial("r0"))
    progress.on_trial_result(0, [], trial("r0"), {"step": 5, "steps": 10, "loss": 5.5})
    assert (heard[-1].running[0].share, heard[-1].running[0].loss) == (0.5, 5.5)
    assert heard[-1].seconds_left < 110
    progress.on_trial_complete(0, [], trial("r0", status="done", loss=5.4))
    assert heard[-1].finished == 2
    assert not heard[-1].running
    assert heard[-1].ended == ["done size xs, length 8, users 1,200, batch 16  loss 5.4000"]


def test_a_resumed_run_that_dies_is_reported():
    heard = []
    progress = StudyProgress(make_plan(), heard.append)
    progress.on_trial_error(0, [], trial("r1"))
    assert heard[-1].ended[0].startswith("failed size xs")
    assert heard[-1].finished == heard[-1].failed == 1
    progress.on_trial_start(0, [], trial("r0"))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render(heard[-1]))
    assert "tiny: 1 of 4 runs ended, 1 of them failed, 1 running" in captured.get()


def test_tune_can_pickle_it():
    import pickle

    progress = StudyProgress(make_plan(), Console().print)
    assert pickle.loads(pickle.dumps(progress)).expected == progress.expected


def test_plain_terminal_says_what_runs_and_what_is_left(capsys):
    heard = []
    progress = StudyProgress(make_plan(), heard.append)
    progress.on_trial_start(0, [], trial("r0"))
    with StudyView(Console(width=120)) as view:
        view.update(heard[-1])
    out = capsys.readouterr().out
    assert "tiny: 4 runs, 0 finished before, 4 to train, 2 concurrently, about 2.0 minutes." in out
    assert "warning: a warning" in out
    assert "[0/4] now: size xs, length 8" in out
    assert "left" in out
    assert one_line(heard[-1]) in out


def test_law_table_says_what_is_not_identified():
    row = {
        "law": "power_law", "formula": "2 x^-0.1",
        "backtest_error_nats": 0.0312, "held_out_error_nats": -0.02,
        "exponent": 0.1, "exponent_low": None, "exponent_high": None,
        "loss_at_10x": 4.5, "loss_at_10x_low": 4.0, "loss_at_10x_high": None,
    }  # fmt: skip
    console = Console(width=160)
    with console.capture() as captured:
        console.print(law_table({"laws": [row], "preferred": "power_law"}))
    text = captured.get()
    for words in (
        "power_law *",
        "0.031 nats",
        "-0.020 nats",
        "not identified",
        "4.5 [4, unbounded]",
    ):
        assert words in text
