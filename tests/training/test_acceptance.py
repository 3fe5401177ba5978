"""The acceptance command for a GPU runs on a CPU in tiny sizes; docs/gpu.md is what it wrote."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import attention, phases, speed
from benchmarks.gpu.results import Recorder, read_results
from benchmarks.gpu.setting import CATALOGUES, choose_setting
from benchmarks.gpu.table import MOST_LINES, PAGE, WAITING, render_page, render_table

ROOT = Path(__file__).parents[2]
WITHOUT_RAY = [phase for phase in phases.PHASES if phase != "cluster"]


def run_dry(output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--output", output, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def check(ended: subprocess.CompletedProcess, output: Path, expected: list[str]) -> None:
    results = read_results(output)
    assert not [each for each in results if each["passed"] is False], ended.stderr
    assert {each["phase"] for each in results} == set(expected)
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert f"{sum(each['passed'] is True for each in results)} of" in lines[0]


@pytest.mark.slow
def test_a_dry_run_passes_every_phase_without_ray(tmp_path):
    ended = run_dry(tmp_path, "--phases", ",".join(WITHOUT_RAY))
    check(ended, tmp_path, WITHOUT_RAY)


@pytest.mark.slow
@pytest.mark.ray
def test_a_dry_run_passes_every_phase(tmp_path):
    check(run_dry(tmp_path), tmp_path, list(phases.PHASES))


def die(phase: str, output: Path, dry: bool, limit: float, sender: object) -> None:
    Recorder(output, phase)("measured", True, value=1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(phase: str, output: Path, dry: bool, limit: float, sender: object) -> None:
    Recorder(output, phase)("measured", True, value=1.0)
    time.sleep(60)


@pytest.mark.parametrize(("job", "reason"), [(die, "code -9"), (hang, "not done within 2 s")])
def test_a_phase_that_dies_or_hangs_keeps_what_it_measured(tmp_path, monkeypatch, job, reason):
    monkeypatch.setattr(phases, "_run_phase", job)
    monkeypatch.setitem(phases.PHASES, "facts", 1.6 / phases.DRY_SLACK)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda modules: None)
    monkeypatch.setattr(phases.multiprocessing, "get_context", lambda method: fork)
    phases.run_phases(["facts"], tmp_path, dry=True)
    measured, ended = read_results(tmp_path)
    assert measured["values"] == {"value": 1.0}
    assert ended["passed"] is False
    assert reason in ended["note"]


def test_the_phases_fit_nine_minutes_and_later_ones_have_what_earlier_ones_leave(
    tmp_path, monkeypatch
):
    assert sum(phases.PHASES.values()) <= phases.TOTAL_SECONDS == 540
    limits = []
    monkeypatch.setattr(phases, "_run_apart", lambda *a: limits.append(a[-1]) or "")
    phases.run_phases(["facts", "speed"], tmp_path, dry=False)
    assert limits == pytest.approx([20, 20 + phases.PHASES["speed"]], abs=2)


def test_a_row_that_would_not_end_in_time_does_not_keep_out_smaller_ones(tmp_path, monkeypatch):
    clock, measured = [0.0], []

    def measure(record, setting, corpus, row, peak):
        measured.append(row)
        clock[0] += 10 * speed._cost(*row[:2]) / speed._cost("clue-110m", 1024)

    monkeypatch.setattr(speed.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(speed, "_measure", measure)
    monkeypatch.setattr(speed, "make_corpus", lambda setting, name: None)
    record = Recorder(tmp_path, "speed", ends=60.0)
    speed.run(record, choose_setting(dry=False))
    left_out = {each["name"] for each in read_results(tmp_path)}
    assert left_out == {f"clue-110m B 4096 {name} bf16" for name in CATALOGUES}
    assert ("clue-110m", 256, "zipf", "bf16") in measured


def test_time_in_which_two_streams_are_busy_counts_once():
    assert speed.total_length([(5, 6), (0, 2), (1, 4), (2, 3)]) == 5
    assert speed.total_length([]) == 0


def test_an_attention_that_is_not_done_in_time_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "LIMIT", 0.1)
    monkeypatch.setattr(attention, "_send_attended", lambda sender, *_: time.sleep(60))
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda modules: None)
    monkeypatch.setattr(attention.multiprocessing, "get_context", lambda method: fork)
    attention._record_apart(Recorder(tmp_path, "attention"), "row", ())
    (found,) = read_results(tmp_path)
    assert (found["passed"], found["note"]) == (None, "not done in time")


def test_the_table_has_at_most_sixty_lines_and_failures_first(tmp_path):
    record = Recorder(tmp_path, "speed")
    for number in range(2 * MOST_LINES):
        record(f"row {number}", number != 100, value=number / 3)
    lines = render_table(read_results(tmp_path))
    assert len(lines) <= MOST_LINES
    assert "row 100 " in lines[1]
    assert "FAIL" in lines[1]
    assert "119 of 120 checks passed" in lines[0]


def test_the_page_says_that_no_card_was_at_hand_or_what_it_did(tmp_path):
    record = Recorder(tmp_path, "facts")
    record("machine", card="H100", cores=16)
    record("s B 16", True, step_ms=3.14159)
    assert "| s B 16 | ok | step_ms 3.142 |" in render_page(read_results(tmp_path))
    page = (ROOT / PAGE).read_text()
    assert page.startswith(render_page([])) or "Required figures are marked" in page
    phases_named = {phase for phase, _ in WAITING.values()}
    assert phases_named < set(phases.PHASES)
