"""The account of `benchmarks.chaos`: what a disturbed study lost, and where."""

from datetime import UTC, datetime

import pytest

from benchmarks.chaos.losses import Spent, spent, tell


def event(at, name, run="", shift=0):
    time = datetime.fromtimestamp(1e9 + at + shift, UTC).isoformat()
    return {"time": time, "event": name, "run_id": run}


def test_attempts_starts_and_training_of_a_killed_study():
    """Two runs of 10 s; the command dies in the second, which is trained again."""
    events = [
        event(5, "training_started"),
        event(10, "run_started", "a"),
        event(20, "run_ended", "a"),
        event(20, "run_started", "b"),
        event(45, "training_started"),  # the command of 30 s, the first having died
        event(50, "run_started", "b"),
        event(60, "run_ended", "b"),
    ]
    assert spent(events, [1e9, 1e9 + 30]) == Spent(attempts=30, starting=20, training=50)


def test_a_command_whose_clock_is_an_hour_off():
    events = [
        event(0, "training_started"),
        event(1, "run_started", "a"),
        event(30, "training_started", shift=-3600),
        event(31, "run_started", "a", shift=-3600),
        event(40, "run_ended", "a", shift=-3600),
    ]
    assert spent(events, [1e9, 1e9 + 20]).training == pytest.approx(39)
    assert spent(events, [1e9, 1e9 + 20]).starting == pytest.approx(11)


def test_what_is_beyond_lost_work_and_starts_of_ray(capsys):
    quiet, loud = Spent(20, 0, 20), Spent(30, 20, 50)
    assert tell(quiet, loud, seconds=40, starts=1, bare=14) == pytest.approx((20 - 14) / 40)
    assert "30 s longer: 10 s of attempts repeated, 20 s in 1 starts" in capsys.readouterr().out
