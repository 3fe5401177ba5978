"""A study whose driver is killed several times ends with the same results."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from clue_ray.runs import read_runs
from clue_ray.spec.specs import read_study
from clue_ray.study.run import run_study

COST = ["wall_seconds", "tokens_per_second", "started_at"]
"""Columns about the machine, next to those with `seconds` or `memory` in their names."""
KILLS = 3
KILL_SEED = 20221122
STUDY_SECONDS = 240


@pytest.mark.slow
@pytest.mark.ray
def test_killed_three_times_is_the_same_study(planted_log, write_study, tmp_path):
    file = write_study(planted_log, base__train={"global_batch_size": 16, "steps": 400})
    undisturbed = run_study(read_study(file), tmp_path / "undisturbed").table
    command = [
        Path(sys.executable).with_name("clue-ray"),
        "run",
        file,
        "--output",
        tmp_path / "killed",
    ]
    draw, directory = random.Random(KILL_SEED), tmp_path / "killed" / "tiny"
    seen = [kill_while_training(command, directory, draw.uniform(0, 4)) for _ in range(KILLS)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=STUDY_SECONDS)
    assert again.returncode == 0, again.stderr
    finished = read_runs(directory).table
    science = [c for c in undisturbed if c not in COST and "memory" not in c and "seconds" not in c]
    pd.testing.assert_frame_equal(finished[science], undisturbed[science], check_dtype=False)
    assert seen[-1] < len(undisturbed)  # the last kill came before the end


def kill_while_training(command: list, directory: Path, delay: float) -> int:
    """Start a study, kill its driver some seconds after its first trial began, and count what had
    ended."""
    before = len(list(directory.glob("tune/*/experiment_state*.json")))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + STUDY_SECONDS
    while driver.poll() is None and time.monotonic() < deadline:
        if len(list(directory.glob("tune/*/experiment_state*.json"))) > before:
            time.sleep(delay)
            break
        time.sleep(0.1)
    assert driver.poll() is None, "the study ended before it could be killed; give it more steps"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return len(list(directory.glob("runs/*/record.json")))
