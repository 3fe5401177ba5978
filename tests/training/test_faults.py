"""Whatever is killed, a run ends with the record of an undisturbed one."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from clue_ray.corpus.store import open_corpus
from clue_ray.runs import RunRecord
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import EvaluationSpec, RunSpec, read_study
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.run import run_study, train_point
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import train_run, train_with

CLOCK = {"wall_seconds", "tokens_per_second", "started_at", "study"}
LONG = {
    "base": {
        "encoder": {"size": "xs", "output_width": 16},
        "train": {"global_batch_size": 16, "steps": 200},
        "sequence_length": 4,
    },
    "axes": {"sequence_length": [4]},
    "evaluation": {"candidates": 16, "every": 0.05},
}
KEPT = "Checkpoint of step 30 is kept"


@pytest.fixture
def study(write_study, planted_log, corpus):
    """A study of one run long enough to be killed, on a prepared corpus."""
    return write_study(planted_log, corpus=str(corpus.path), **LONG)


def log_of(output, study):
    """Return where the study's only run logs."""
    spec = read_study(study)
    (run,) = expand(spec)
    run_id = run.run_id(open_corpus(spec.corpus).digest, spec.evaluation.candidates)
    return StudyDirectory(output / spec.name).run_path(run_id) / "log.txt"


def undisturbed(study):
    """Train the study's only run here, with a worker's number of threads, on which sums depend in
    their last bits."""
    spec, threads = read_study(study), torch.get_num_threads()
    torch.set_num_threads(spec.resources.cpus_per_worker)
    record = train_run(expand(spec)[0], open_corpus(spec.corpus), spec.evaluation)
    torch.set_num_threads(threads)
    return record.model_dump(exclude=CLOCK)


def wait_for(words, log, seconds=240):
    """Wait until a log holds some words; return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if log.exists() and words in log.read_text():
            return log.read_text()
        time.sleep(0.01)
    raise TimeoutError(f"{words} is not in {log}")


def kill_when_kept(log, find):
    """In a thread: once a run has kept some states, kill the process that `find` finds in its
    log."""

    def act():
        os.kill(find(wait_for(KEPT, log)), signal.SIGKILL)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def first_process(log):
    return int(re.findall(r"first in process (\d+)", log)[-1])


def second_worker(log):
    """Find the worker that does not log, among the processes of this session."""
    workers = [
        p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()
    ]
    return next(pid for pid in workers if pid != first_process(log))


def test_a_truncated_checkpoint_costs_no_result(corpus, tmp_path, caplog):
    run = RunSpec(
        train={"global_batch_size": 16, "steps": 8}, encoder={"size": "xxs"}, sequence_length=4
    )
    evaluation = EvaluationSpec(candidates=16, every=0.25)
    whole, curve = train_with(run, corpus, evaluation, LocalContext(tmp_path))
    last = tmp_path / "step_00000008.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    again, curve_again = train_with(run, corpus, evaluation, LocalContext(tmp_path))
    assert "that of step 6 is used" in caplog.text
    assert again.model_dump(exclude=CLOCK) == whole.model_dump(exclude=CLOCK)
    assert [point["loss"] for point in curve_again] == [point["loss"] for point in curve]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_trial_goes_on(study, tmp_path):
    log = log_of(tmp_path, study)
    killer = kill_when_kept(log, first_process)
    row = run_study(read_study(study), tmp_path).table.iloc[0].to_dict()
    killer.join()
    assert RunRecord(**row).model_dump(exclude=CLOCK) == undisturbed(study)
    assert re.search(r"resumes after step \d+ of 200", log.read_text())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_no_result(study, tmp_path):
    point = {"resources.workers": 2}
    whole, _ = train_point(read_study(study), point, tmp_path / "whole")
    log = log_of(tmp_path / "disturbed", study)
    killer = kill_when_kept(log, second_worker)
    disturbed, folder = train_point(read_study(study), point, tmp_path / "disturbed")
    killer.join()
    assert disturbed.model_dump(exclude=CLOCK) == whole.model_dump(exclude=CLOCK)
    assert "Workers were lost" in log.read_text()
    assert "resumes after step" in log.read_text()
    assert disturbed.num_workers == 2
    assert folder == log.parent


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_command_goes_on_after_its_driver_was_killed(study, tmp_path):
    log = log_of(tmp_path, study)
    command = [
        sys.executable,
        "-c",
        "from clue_ray.cli.main import main; main()",
        "run",
        str(study),
        "--output",
        tmp_path,
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(KEPT, log)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(first_process(log.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    last = max((log.parent / "checkpoints").glob("step_*.pt"))
    last.write_bytes(last.read_bytes()[:1000])

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    (record,) = (log.parent.parent).glob("*/record.json")
    found = RunRecord.model_validate_json(record.read_text()).model_dump(exclude=CLOCK)
    assert found == undisturbed(study), again.stderr
    assert f"{last} is damaged" in again.stderr
    assert f"{last} is damaged" in log.read_text()
    assert re.search(r"resumes after step \d+ of 200", log.read_text())


@pytest.mark.multinode
@pytest.mark.ray
def test_a_study_survives_a_worker_a_node_and_its_driver():
    root = Path(__file__).parents[2]
    played = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    assert len(re.findall("resumes after step", played.stdout)) >= 3
    assert "All 3 rows agree in all" in played.stdout
