"""Runs on Ray: connect, check that the study fits, let Ray Tune train what is not finished, collect the table.

Runs with one worker train inside reused Tune actors; runs with more go through Ray Train, whose drivers hold a
`trial_slot` and no CPU (decisions D9, D11). The two kinds take turns, several workers first: otherwise one-worker runs
would take the freed cores one by one and a gang of workers would wait for ever.
"""

import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import ray
import torch
from ray import tune

from clue_ray.corpus.prepare import build_corpus, source_key
from clue_ray.corpus.reading import plan_reading
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.errors import ClusterError
from clue_ray.runs import RunRecord, Runs, write_json
from clue_ray.spec import EvaluationSpec, RunSpec, StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.plan import Plan, PlannedRun, check_study, plan_runs
from clue_ray.study.preflight import check_cluster, check_disk
from clue_ray.study.progress import Listener, StudyProgress, ignore
from clue_ray.training.distributed import train_on_workers
from clue_ray.training.loop import LocalContext, train_with
from clue_ray.training.progress import describe_run
from clue_ray.transfer.baselines import tfidf_baseline

TRIAL_SLOTS = 64
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0
ACTOR_FAILURES = 1


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start one on this machine; a session already open is used as it is."""
    quieten_ray_data()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's newer output prints whatever verbose says
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2" if address is None else "1")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init("local", include_dashboard=False, resources={"trial_slot": TRIAL_SLOTS}, **quiet)
    else:
        check_reachable(address)
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def quieten_ray_data() -> None:
    """Leave of Ray Data's messages its warnings; what fails is raised too, and told in one sentence."""
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.WARNING)  # its bars on a terminal stay
    for handler in logger.handlers:
        handler.addFilter(is_no_error)


def is_no_error(record: logging.LogRecord) -> bool:
    """Tell whether a log record is at most a warning."""
    return record.levelno < logging.ERROR


def check_reachable(address: str) -> None:
    """Refuse an address where no Ray answers, in seconds rather than Ray's minutes."""
    place = urlparse(address if "://" in address else f"ray-gcs://{address}")
    try:
        if not place.hostname or not place.port:
            raise ValueError("no host and port")
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()
        if "://" not in address:  # Ray's own health check; a Ray Client address has none
            check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
            subprocess.run(check, check=True, timeout=HEALTH_SECONDS, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = "no Ray answers there" if isinstance(error, subprocess.SubprocessError) else error
        raise ClusterError(
            f"Ray cannot be reached at {address!r} ({reason}); give HOST:PORT of a running head node, "
            "or leave --address out."
        ) from None


def open_study_corpus(study: StudySpec, output: Path) -> Corpus:
    """Open the study's corpus, preparing it below `output` when it is not there yet."""
    if isinstance(study.corpus, str):
        return open_corpus(study.corpus)
    folder = output / "corpora" / source_key(plan_reading(study.corpus))
    if folder.exists():
        return open_corpus(folder)
    with connect():
        return build_corpus(study.corpus, folder)


def plan_study(study: StudySpec, output: str | Path = "results") -> Plan:
    """Plan a study without running it; its corpus is prepared where that is not done yet."""
    output = Path(output).absolute()
    check_study(study)
    corpus = open_study_corpus(study, output)
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return plan_runs(study, corpus, StudyDirectory(output / study.name), here)


def run_study(
    study: StudySpec, output: str | Path = "results", address: str | None = None, listener: Listener = ignore
) -> Runs:
    """Run what a study still lacks and return its runs table, which is also written to `<output>/<name>/`.

    Args:
        address: HOST:PORT of a Ray cluster; this machine alone when omitted.
        listener: is told of the plan and of progress.

    Raises:
        ClueRayError: the study cannot run; nothing was trained then.
    """
    output = Path(output).absolute()
    directory = StudyDirectory(output / study.name)
    check_study(study)
    with connect(address):
        corpus = open_study_corpus(study, output)
        plan = plan_runs(study, corpus, directory, ray.cluster_resources())
        check_cluster(plan, study, ray.cluster_resources())
        check_disk(plan, output)
        directory.claim(study, corpus.digest)
        write_json(directory.path / "plan.json", plan.to_dict())
        write_json(directory.path / "corpus.json", corpus.summary())
        write_json(directory.path / "baseline.json", tfidf_baseline(corpus, study.evaluation.candidates))
        progress = StudyProgress(plan, listener)
        progress.tell()
        try:
            for several in (True, False):
                pending = [r for r in plan.pending if (r.run.resources.workers > 1) == several]
                if pending:
                    tune_runs(pending, plan, corpus, study, directory, progress)
        finally:
            runs = directory.collect([r.known for r in plan.runs])
    return runs


def tune_runs(
    pending: list[PlannedRun],
    plan: Plan,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    progress: StudyProgress,
) -> None:
    """Train runs of one kind (all with one worker, or all with more) through one Tune experiment."""
    several = pending[0].run.resources.workers > 1
    shared = {
        "corpus": str(corpus.path),
        "evaluation": study.evaluation.model_dump(mode="json"),
        "study": study.name,
        "directory": str(directory.path),
    }
    runs = [{"run_id": r.run_id, "spec": r.run.model_dump(mode="json")} for r in pending]
    tuner = tune.Tuner(
        tune.with_resources(run_trial, trial_resources(pending[0].run)),
        param_space={**shared, "run": tune.grid_search(runs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=1 if several else plan.concurrency,
            reuse_actors=not several,
            trial_dirname_creator=lambda trial: trial.config["run"]["run_id"],
        ),
        run_config=tune.RunConfig(
            name="workers" if several else "inline",
            storage_path=str(directory.path / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=ACTOR_FAILURES),
            callbacks=[progress],
        ),
    )
    keep_failures(tuner.fit(), pending, directory)


def trial_resources(run: RunSpec) -> dict[str, float]:
    """Return what a trial holds itself: a slot where it only drives workers, else the cores and GPUs it trains on."""
    resources = run.resources
    if resources.workers > 1:
        return {"trial_slot": 1.0}
    need = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def keep_failures(results: tune.ResultGrid, pending: list[PlannedRun], directory: StudyDirectory) -> None:
    """Write a row for each run whose trial died before it could write one itself."""
    errors = {result.config["run"]["run_id"]: result.error for result in results if result.config}
    for planned in pending:
        if directory.read_record(planned.run_id) is None:
            if not errors.get(planned.run_id):  # Tune swallows Ctrl-C and returns what it has
                raise KeyboardInterrupt
            reason = f"the trial died: {str(errors[planned.run_id]).splitlines()[0]}"
            directory.write_run(planned.run, RunRecord(**planned.known, status="failed", error=reason), [])


def run_trial(config: dict[str, Any]) -> None:
    """Train one run where Tune has put us; a run that raises is recorded as failed, not raised."""
    run = RunSpec(**config["run"]["spec"])
    evaluation = EvaluationSpec(**config["evaluation"])
    directory = StudyDirectory(config["directory"])
    corpus = cached_corpus(config["corpus"])
    folder = directory.run_path(config["run"]["run_id"])
    try:
        if run.resources.workers > 1:
            record, curve = train_on_workers(run, corpus.path, evaluation, config["study"], folder)
        else:
            torch.set_num_threads(run.resources.cpus_per_worker)
            record, curve = train_with(run, corpus, evaluation, TrialContext(folder / "checkpoints"), config["study"])
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        known = describe_run(run, corpus, evaluation, config["study"])
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        record, curve = RunRecord(**known, status="failed", error=reason), []
    directory.write_run(run, record, curve)
    tune.report(
        {
            "status": record.status,
            "error": record.error,
            "loss": record.loss,
            "step": record.steps,
            "steps": record.steps,
        }
    )


class TrialContext(LocalContext):
    """A one-worker run inside a Tune trial: state in the run's folder, progress to Tune."""

    def progress(self, metrics: dict[str, Any]) -> None:
        """Report to Tune."""
        tune.report(metrics)


@lru_cache(maxsize=2)
def cached_corpus(path: str) -> Corpus:
    """Open a corpus once for all the runs of a reused actor; the study has verified it."""
    return open_corpus(path, verify=False)
