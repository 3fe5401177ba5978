"""Runs on Ray: check that the study fits, let Ray Tune train what is not finished, collect the table.

Runs with one worker train inside reused Tune actors; runs with more go through Ray Train, whose drivers hold a
`trial_slot` and no CPU (decisions D9, D11). Numbers of workers take turns, the largest first: otherwise small runs
would take the freed cores one by one and a gang of workers would wait for ever.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from clue_ray.corpus.prepare import build_corpus, source_key
from clue_ray.corpus.reading import plan_reading
from clue_ray.corpus.storage import place_below, resolve_place
from clue_ray.corpus.store import Corpus, holds_corpus, open_corpus, share_corpus
from clue_ray.corpus.synthetic import planted_floor
from clue_ray.errors import SpecError, StudyError
from clue_ray.runs import RunRecord, Runs, write_json
from clue_ray.spec import RunSpec, StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.grid import MOST_POINTS, Point, expand
from clue_ray.study.grown import Grown
from clue_ray.study.growth import Growth, grow
from clue_ray.study.mirror import open_directory
from clue_ray.study.plan import Plan, PlannedRun, check_study, plan_runs
from clue_ray.study.pools import data_pool, lanes_now
from clue_ray.study.preflight import check_cluster, check_disk
from clue_ray.study.progress import Listener, StudyProgress, ignore
from clue_ray.study.session import TRIAL_SLOTS, cluster_nodes, connect
from clue_ray.study.storage import Gatherer, StorageStopper, check_checkpoints, check_storage
from clue_ray.study.trial import run_trial
from clue_ray.transfer.baselines import tfidf_baseline
from clue_ray.transfer.linear import linear_baseline
from clue_ray.transfer.runs import score_runs
from clue_ray.transfer.tasks import read_task

ACTOR_FAILURES = 3
"""Times that a trial goes on after its process was lost."""


def open_study_corpus(study: StudySpec, output: Path, storage: str | None = None) -> Corpus:
    """Open the study's corpus, preparing it below storage, else `output`, when it is not there yet."""
    corpora = place_below(storage or str(output), "corpora")
    if isinstance(study.corpus, str):
        corpus = open_corpus(study.corpus)
        return share_corpus(corpus, place_below(corpora, corpus.digest)) if storage else corpus
    place = place_below(corpora, source_key(plan_reading(study.corpus)))
    if holds_corpus(place):
        return open_corpus(place)
    with connect(), data_pool():
        return build_corpus(study.corpus, place)


def plan_study(
    study: StudySpec,
    output: str | Path = "results",
    *,
    most_points: int | None = MOST_POINTS,
    flops_per_second: float | None = None,
) -> Plan:
    """Plan a study without running it; its corpus is prepared where that is not done yet.

    Args:
        most_points: grid points above which the study is refused; None for any number.
        flops_per_second: speed of a worker, instead of timing a few steps here.
    """
    output = Path(output).absolute()
    check_study(study, most_points)
    corpus = open_study_corpus(study, output)
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count()), "trial_slot": TRIAL_SLOTS}
    directory = StudyDirectory(output / study.name)
    added = Grown.read(directory.path).points
    return plan_runs(study, corpus, directory, [here], added=added, flops_per_second=flops_per_second)


def run_study(
    study: StudySpec,
    output: str | Path = "results",
    *,
    address: str | None = None,
    storage: str | None = None,
    listener: Listener = ignore,
    retry_failed: bool = False,
    most_points: int | None = MOST_POINTS,
    growth: Growth | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> Runs:
    """Run what a study still lacks and return its runs table, which is also written to `<output>/<name>/`.

    Args:
        address: HOST:PORT of a Ray cluster; this machine alone when omitted.
        storage: folder or URI that all nodes can write, where corpora and studies then have their home; `output`
            mirrors it.
        listener: is told of the plan and of progress.
        retry_failed: train runs again that failed before.
        most_points: grid points above which the study is refused; None for any number.
        growth: runs to add beyond the grids, where they most narrow a prediction.
        callbacks: further ones of Ray Tune's, such as `ray.air.integrations.mlflow.MLflowLoggerCallback`.

    Raises:
        ClueRayError: the study cannot run; nothing was trained then.
    """
    output = Path(output).absolute()
    directory = open_directory(output / study.name, storage)
    check_study(study, most_points)
    for task in study.transfer:
        read_task(task)  # a mistake is told before anything trains
    with directory.held(), connect(address):
        corpus = open_study_corpus(study, output, storage)

        def train() -> tuple[Runs, int]:
            added = Grown.read(directory.path).points
            plan = plan_checked(study, corpus, directory, output, retry_failed, added)
            directory.claim(study, corpus.digest)
            write_json(directory.path / "plan.json", plan.to_dict())
            write_side_files(plan, corpus, study, directory)
            directory.publish()
            try:
                train_pending(plan, corpus, study, directory, listener, callbacks)
            finally:
                runs = directory.collect([r.known for r in plan.runs])
            return score_runs(directory.path, study.transfer, runs), plan.concurrency

        return grow(study, corpus, directory.path, growth, train) if growth else train()[0]


def write_side_files(plan: Plan, corpus: Corpus, study: StudySpec, directory: StudyDirectory) -> None:
    """Write what the report sets beside the runs: the corpus, baselines, and the lowest loss of a planted log."""
    candidates = study.evaluation.candidates
    lengths = {planned.run.sequence_length for planned in plan.runs}
    floor = planted_floor(corpus.manifest.get("planted"), lengths, candidates)
    write_json(directory.path / "corpus.json", corpus.summary() | floor)
    file = directory.path / "baselines.json"
    if not file.exists():  # the folder's owner fixes corpus and candidates, and so the baselines
        baselines = [tfidf_baseline(corpus, candidates), linear_baseline(corpus, candidates)]
        write_json(file, {"baselines": baselines})


def train_point(
    study: StudySpec,
    point: dict[str, Any],
    output: str | Path = "results",
    *,
    address: str | None = None,
    listener: Listener = ignore,
) -> tuple[RunRecord, Path]:
    """Train the base run with some fields set, on the grid or off it; return its record and folder.

    It lies in the study's directory, so what is done is not trained again, here or by `run_study`; what failed is. The
    runs table stays as it is.

    Args:
        point: dotted fields and their values.

    Raises:
        ClueRayError: the point cannot be trained; nothing was trained then.
    """
    output = Path(output).absolute()
    directory = StudyDirectory(output / study.name)
    alone = study.model_copy(update={"axes": {name: [value] for name, value in point.items()}})
    check_study(alone)
    if len(expand(alone)) > 1:
        raise SpecError(f"--point {', '.join(point)} makes {len(expand(alone))} runs; name fields of one run.")
    with directory.held(), connect(address):
        corpus = open_study_corpus(study, output)
        plan = plan_checked(alone, corpus, directory, output, retry_failed=True)
        plan = replace(plan, warnings=[], notes=[])  # one run shows no law
        directory.claim(study, corpus.digest)
        train_pending(plan, corpus, alone, directory, listener)
    (planned,) = plan.runs
    record = directory.read_record(planned.run_id)
    assert record is not None
    return record, directory.run_path(planned.run_id)


def plan_checked(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    output: Path,
    retry_failed: bool,
    added: Sequence[Point] = (),
) -> Plan:
    """Plan a study on the cluster at hand; refuse what cannot run there."""
    check_storage(study, directory, corpus.place)
    plan = plan_runs(study, corpus, directory, cluster_nodes(), added=added, retry_failed=retry_failed)
    check_cluster(plan, study, cluster_nodes())
    check_disk(plan, output)
    check_checkpoints(plan.pending, directory)
    return plan


def train_pending(
    plan: Plan,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    listener: Listener,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Train what a plan still lacks: runs of most workers first, those of one last."""
    progress = StudyProgress(plan, listener)
    progress.tell()
    for workers in sorted({r.workers for r in plan.pending}, reverse=True):
        pending = [r for r in plan.pending if r.workers == workers]
        tune_runs(pending, plan, corpus, study, directory, [progress, *callbacks])


def tune_results(directory: str | Path) -> dict[str, tune.ResultGrid]:
    """Open what Ray Tune kept on a study directory: a ResultGrid for `inline`, one for each number, `workers-2`.

    Raises:
        StudyError: Ray Tune kept nothing there.
    """
    folders = [folder for folder in sorted((Path(directory) / "tune").glob("*")) if tune.Tuner.can_restore(str(folder))]
    if not folders:
        raise StudyError(f"{directory} holds nothing of Ray Tune's (no tune/inline, no tune/workers-2); run the study.")
    return {folder.name: tune.Tuner.restore(str(folder), run_trial).get_results() for folder in folders}


def tune_runs(
    pending: list[PlannedRun],
    plan: Plan,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Train runs of one kind (all of as many workers) through one Tune experiment."""
    workers = pending[0].workers
    shared = {
        "corpus": corpus.place,
        "evaluation": study.evaluation.model_dump(mode="json"),
        "study": study.name,
        "directory": directory.place,
    }
    for planned in pending:
        directory.reopen(planned.run_id)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # runs write TensorBoard files themselves
    runs = [{"run_id": r.run_id, "spec": spelled_out(r.run)} for r in pending]
    tuner = tune.Tuner(
        tune.with_resources(run_trial, trial_resources(pending[0].run)),
        param_space={**shared, "run": tune.grid_search(runs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=lanes_now(workers, plan, study.resources),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.config["run"]["run_id"],
        ),
        run_config=tune.RunConfig(
            name=f"workers-{workers}" if workers > 1 else "inline",
            storage_path=str(directory.path / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=ACTOR_FAILURES),
            callbacks=[*callbacks, Gatherer(directory), CSVLoggerCallback(), JsonLoggerCallback()],
            stop=StorageStopper(directory),
        ),
    )
    results = tuner.fit()
    if directory.trouble:
        raise StudyError(directory.trouble)
    keep_failures(results, pending, directory)


def spelled_out(run: RunSpec) -> dict[str, Any]:
    """Write a run for a trial, which has a working folder of its own: its place for checkpoints is made absolute."""
    document = run.model_dump(mode="json")
    if kept := run.resources.checkpoints:
        document["resources"]["checkpoints"] = resolve_place(kept)
    return document


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
        directory.gather(planned.run_id)
        if directory.read_record(planned.run_id) is None:
            if not errors.get(planned.run_id):  # Tune swallows Ctrl-C and returns what it has
                raise KeyboardInterrupt
            reason = f"the trial died: {str(errors[planned.run_id]).splitlines()[0]}"
            directory.write_run(planned.run, RunRecord(**planned.known, status="failed", error=reason), [])
