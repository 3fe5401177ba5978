"""The lock of a study directory: one command at a time, and a dead one holds nothing."""

import json
import os
import signal
import subprocess
import sys

import pytest

from clue_ray.errors import StudyError
from clue_ray.storage.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from clue_ray.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_command(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "study"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_command_is_refused_and_a_dead_holder_holds_nothing(other_command, tmp_path):
    directory = tmp_path / "study"
    words = rf"in use by process {other_command.pid} on \S+ since 20\S+; wait"
    with pytest.raises(StudyError, match=words), locked(directory):
        pass
    assert not directory.exists()
    os.kill(other_command.pid, signal.SIGKILL)
    other_command.wait()
    with locked(directory):
        assert json.loads((tmp_path / ".study.holder.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".study.holder.json").exists()


def test_a_command_that_fails_releases_the_lock(tmp_path):
    with pytest.raises(ValueError, match="fails"), locked(tmp_path / "study"):
        raise ValueError("fails")
    with locked(tmp_path / "study"):
        pass
