"""The account of `benchmarks.chaos`: what a disturbed study lost, and where."""

from datetime import UTC, datetime

import pytest

from benchmarks.chaos.losses import Spent, spent, tell


def event(at, name, run="", shift=0, **facts):
    time = datetime.fromtimestamp(1e9 + at + shift, UTC).isoformat()
    return {"time": time, "event": name, "run_id": run, **facts}


def test_attempts_starts_and_lost_work_of_a_killed_study():
    """Two runs of 10 s; the command dies in the second, which begins again."""
    events = [
        event(5, "training_started"),
        event(10, "run_started", "a"),
        event(20, "run_ended", "a"),
        event(20, "run_started", "b"),
        event(45, "training_started"),  # the command of 30 s, the first having died
        event(50, "run_started", "b"),
        event(60, "run_ended", "b"),
    ]
    found = spent(events, [1e9, 1e9 + 30])
    assert found == Spent(attempts=30, lost_work=10, training=50, starts=(20,))


def test_a_run_that_resumes_loses_what_followed_its_checkpoint():
    events = [
        event(0, "run_started", "a"),
        event(40, "run_restarted", "a"),
        event(45, "run_resumed", "a", seconds_lost=7.0),
        event(60, "run_ended", "a"),
    ]
    found = spent(events, [1e9])
    assert (found.attempts, found.lost_work, found.starts) == (60, 7, ())


def test_a_command_whose_clock_is_an_hour_off():
    events = [
        event(0, "training_started"),
        event(1, "run_started", "a"),
        event(30, "training_started", shift=-3600),
        event(31, "run_started", "a", shift=-3600),
        event(40, "run_ended", "a", shift=-3600),
    ]
    found = spent(events, [1e9, 1e9 + 20])
    assert found.training == pytest.approx(39)
    assert found.starts == pytest.approx((11,))


def test_a_command_that_dies_at_once_is_no_credit(capsys):
    quiet, loud = Spent(20, 0, 20, ()), Spent(30, 10, 50, (20, 2))
    share = tell(quiet, loud, seconds=(40, 80), bare=14)
    assert share == pytest.approx((40 - 10 - 14 - 2) / 40)
    assert "40 s lost: 10 s of lost work, 16 s for 2 starts of Ray alone" in capsys.readouterr().out
