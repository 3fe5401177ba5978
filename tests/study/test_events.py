"""The event log: whole lines whatever dies, one order, and what a study's callbacks write."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from clue_ray.errors import StudyError
from clue_ray.study.events import EventLog, join_events, read_events
from clue_ray.study.observer import RunObserver
from clue_ray.training.ray_train import LOST, WAITING
from tests.study.test_progress import make_plan

WRITER = """
import sys
from pathlib import Path
from clue_ray.study.events import EventLog
log = EventLog(Path(sys.argv[1]))
number = 0
while True:
    log.add("tick", number=number, padding="x" * 5000)
    number += 1
"""


def names(file):
    return [event["event"] for event in read_events(file)]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.add("failed", reason="/data/\udce9t is gone, as is /data/été")
    log.add("after")
    failed, after = read_events(tmp_path / "events.jsonl")
    assert failed["reason"] == "/data/\udce9t is gone, as is /data/été"
    assert after["event"] == "after"


def test_a_killed_writer_leaves_whole_lines_and_the_next_goes_on(tmp_path):
    file = tmp_path / "events.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)])
    while not file.exists() or file.stat().st_size < 100_000:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    numbers = [event["number"] for event in read_events(file)]
    assert numbers == list(range(len(numbers)))
    whole = len(numbers)
    with open(file, "ab") as stream:  # a crash of the machine may tear a line
        stream.write(b'{"time": "2026-')
    EventLog(file).add("after")
    assert len(read_events(file)) == whole + 1
    assert read_events(file)[-1]["event"] == "after"


def test_what_cannot_be_written_comes_with_the_next_event(tmp_path):
    log = EventLog(tmp_path / "later" / "events.jsonl")
    log.add("first", loss=float("nan"))  # there is no folder yet
    assert read_events(log.file) == []
    log.file.parent.mkdir()
    log.add("second")
    assert names(log.file) == ["first", "second"]
    assert "loss" not in read_events(log.file)[0]  # JSON has no NaN


def test_a_start_without_an_end_is_told_to_the_next(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with log.logged("training", runs=2):
        log.add("run_started", run_id="a")
    with pytest.raises(KeyboardInterrupt), log.logged("training"):
        raise KeyboardInterrupt
    log.add("training_started")  # and then the command is killed
    log.add("run_started", run_id="b")
    last = read_events(log.file)[-1]["time"]
    with log.logged("training"):
        pass
    events = read_events(log.file)
    assert [e.get("killed_after") for e in events if e["event"] == "training_started"] == [
        None,
        None,
        None,
        last,
    ]
    failed = next(e for e in events if e["event"] == "training_failed")
    assert (failed["reason"], failed["kind"]) == ("interrupted", "KeyboardInterrupt")


def test_a_log_that_would_fill_the_memory_is_refused_unread(tmp_path):
    file = tmp_path / "events.jsonl"
    with file.open("wb") as stream:
        stream.truncate(50_000_000_000)  # takes no disk
    with pytest.raises(StudyError, match=r"it has 50,000,000,000 bytes.*move it elsewhere"):
        read_events(file)


def test_two_copies_of_a_log_join_in_the_order_of_time(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(4):
        log.add("tick", number=number)
    lines = log.file.read_bytes().splitlines(keepends=True)
    log.file.write_bytes(lines[0] + lines[2])
    join_events(log.file, lines[0] + lines[1] + lines[3] + b'{"time": "2026-')  # one is torn
    assert [event["number"] for event in read_events(log.file)] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"1e999"])
def test_foreign_lines_are_left_out(tmp_path, line):
    file = tmp_path / "events.jsonl"
    file.write_bytes(line + b'\n{"event": "mine"}\n')
    assert read_events(file) == [{"event": "mine"}]


class Recorded:
    """Metrics that only remember."""

    def __init__(self):
        self.values = {}

    def set(self, name, value, **tags):
        self.values[name, *tags.values()] = value

    def add(self, name, value=1.0, **tags):
        self.values[name, *tags.values()] = self.values.get((name, *tags.values()), 0) + value


def make_trial(run_id="r0", **result):
    config = {"run": {"run_id": run_id, "spec": {"resources": {"workers": 1}}}}
    error = "Failure # 1\n  Traceback\n  The actor died: SIGKILL\n"
    return SimpleNamespace(config=config, last_result=result, get_error=lambda: error)


def test_a_restart_costs_the_time_that_became_no_training(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 30.0, 35.0, 70.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    log, metrics, trial = EventLog(tmp_path / "events.jsonl"), Recorded(), make_trial()
    observer = RunObserver(make_plan(), log, metrics)

    def report(step, trained):
        facts = {"step": step, "trained_seconds": trained, "tokens_per_second": 7.0, "loss": 2.5}
        observer.on_trial_result(0, [], trial, facts)

    observer.on_trial_start(0, [], trial)  # at 0
    report(4, 9.0)  # at 10
    observer.on_trial_recover(0, [], trial)
    observer.on_trial_start(0, [], trial)
    report(3, 8.0)  # at 30: twenty seconds passed, and one of training was undone
    report(4, 9.0)  # at 35
    observer.on_trial_result(0, [], trial, {LOST: "node gone"})
    observer.on_trial_result(0, [], trial, {WAITING: "no room"})  # is no restart
    report(6, 14.0)  # at 70: 35 seconds passed, 5 of them trained
    trial.last_result = {"status": "done", "loss": 2.5, "error": ""}
    observer.on_trial_complete(0, [], trial)

    events = read_events(log.file)
    assert [e["event"] for e in events] == [
        "run_started",
        "run_restarted",
        "run_resumed",
        "run_restarted",
        "run_waiting",
        "run_resumed",
        "run_ended",
    ]
    assert [e["reason"] for e in events if e["event"] == "run_restarted"] == [
        "The actor died: SIGKILL",
        "node gone",
    ]
    assert [e["seconds_lost"] for e in events if e["event"] == "run_resumed"] == [21.0, 30.0]
    assert {k: events[-1][k] for k in ("status", "restarts", "loss")} == {
        "status": "done",
        "restarts": 2,
        "loss": 2.5,
    }
    assert metrics.values == {
        ("clue_ray_runs_planned",): 4,
        ("clue_ray_runs_pending",): 3,
        ("clue_ray_restarts",): 2,
        ("clue_ray_seconds_lost",): 51.0,
        ("clue_ray_runs_ended", "done"): 1,
        ("clue_ray_loss", "r0"): 2.5,
        ("clue_ray_tokens_per_second", "r0"): 0.0,
    }


def test_a_run_that_is_given_up_says_why(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    observer = RunObserver(make_plan(), log, Recorded())
    observer.on_trial_start(0, [], make_trial())
    observer.on_trial_error(0, [], make_trial())
    ended = read_events(log.file)[-1]
    assert (ended["status"], ended["error"]) == ("failed", "The actor died: SIGKILL")
