"""Train the pending runs of a plan through Ray Tune.

One-worker runs train inside reused Tune actors. Multi-worker runs go through Ray Train; their
drivers hold a `trial_slot` and no CPU (decisions D9, D11). Each number of workers has its own Tune
experiment, the largest number first: otherwise small runs would take the freed cores one by one,
and a multi-worker run would never find enough of them at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from clue_ray.cluster.placement import count_workers, multi_worker_concurrency
from clue_ray.cluster.session import cluster_nodes, without_tune_loggers
from clue_ray.corpus.store import Corpus
from clue_ray.errors import StudyError, describe_error
from clue_ray.spec.specs import ResourcesSpec, RunSpec, StudySpec
from clue_ray.storage.place import resolve_place
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.metrics import StudyMetrics
from clue_ray.study.observer import RunObserver
from clue_ray.study.patience import DEATHS_IN_PLACE, ForgivingProgress, PatientCsv, PatientJson
from clue_ray.study.planned import Plan, PlannedRun, chosen_resources
from clue_ray.study.probes import RunFetcher, StorageStopper
from clue_ray.study.progress import OnProgress, StudyProgress
from clue_ray.study.trial import run_trial


def train_pending(
    plan: Plan,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    on_progress: OnProgress,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Train the pending runs: those with most workers first, one-worker runs last.

    Raises:
        StudyError: Storage was lost.
    """
    progress = StudyProgress(plan, on_progress)
    progress.report()
    observer = RunObserver(plan, directory.events, StudyMetrics(study.name))
    for workers in sorted({r.workers for r in plan.pending}, reverse=True):
        pending = [r for r in plan.pending if r.workers == workers]
        _tune_runs(pending, plan, corpus, study, directory, [progress, observer, *callbacks])


def tune_results(directory: str | Path) -> dict[str, tune.ResultGrid]:
    """Open the results that Ray Tune keeps in a study directory.

    Returns:
        A `ResultGrid` for the one-worker runs (`inline`), and one for each other number of workers
        (such as `workers-2`).

    Raises:
        StudyError: Ray Tune keeps none there.
    """
    folders = [
        folder
        for folder in sorted((Path(directory) / "tune").glob("*"))
        if tune.Tuner.can_restore(str(folder))
    ]
    if not folders:
        raise StudyError(
            f"{directory} holds no results of Ray Tune (neither tune/inline nor tune/workers-2); "
            f"run the study."
        )
    return {
        folder.name: tune.Tuner.restore(str(folder), run_trial).get_results() for folder in folders
    }


def _tune_runs(
    pending: list[PlannedRun],
    plan: Plan,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Train runs with the same number of workers through one Tune experiment."""
    for planned in pending:
        directory.reopen(planned.run_id)
    workers = pending[0].workers
    tuner = tune.Tuner(
        tune.with_resources(run_trial, trial_resources(pending[0].run)),
        param_space=_describe_trials(pending, corpus, study, directory),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=_concurrency(
                workers, plan, chosen_resources(pending[0].run.resources, pending)
            ),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.config["run"]["run_id"],
        ),
        run_config=tune.RunConfig(
            name=f"workers-{workers}" if workers > 1 else "inline",
            storage_path=str(directory.path / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=DEATHS_IN_PLACE),
            callbacks=[
                *callbacks,
                ForgivingProgress(),
                RunFetcher(directory),
                PatientCsv(),
                PatientJson(),
            ],
            stop=StorageStopper(directory),
        ),
    )
    with without_tune_loggers():  # runs write TensorBoard files themselves
        results = tuner.fit()
    if directory.failure:
        raise StudyError(directory.failure)
    _keep_failures(results, pending, directory)


def _describe_trials(
    pending: list[PlannedRun], corpus: Corpus, study: StudySpec, directory: StudyDirectory
) -> dict[str, Any]:
    """Return Tune's search space: the settings that trials share, and a grid over runs."""
    return {
        "corpus": corpus.place,
        "evaluation": study.evaluation.model_dump(mode="json"),
        "study": study.name,
        "directory": directory.place,
        "run": tune.grid_search(
            [
                {
                    "run_id": r.run_id,
                    "spec": trial_spec(r.run),
                    "description": r.description.model_dump(),
                }
                for r in pending
            ]
        ),
    }


def trial_spec(run: RunSpec) -> dict[str, Any]:
    """Return a run's spec for a trial, with an absolute place for checkpoints.

    A trial has another working folder than this process, so a relative path would lead elsewhere.
    """
    document = run.model_dump(mode="json")
    if kept := run.resources.checkpoints:
        document["resources"]["checkpoints"] = resolve_place(kept)
    return document


def trial_resources(run: RunSpec) -> dict[str, float]:
    """Return the resources of a trial: a slot if it only drives workers, else cores and GPUs."""
    resources = run.resources
    if resources.workers > 1:
        return {"trial_slot": 1.0}
    need = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def _keep_failures(
    results: tune.ResultGrid, pending: list[PlannedRun], directory: StudyDirectory
) -> None:
    """Write a failed record for each run whose trial died before it could write one."""
    errors = {result.config["run"]["run_id"]: result.error for result in results if result.config}
    for planned in pending:
        directory.fetch_run(planned.run_id)
        if directory.read_record(planned.run_id) is None:
            if not errors.get(planned.run_id):  # on Ctrl-C, Tune returns what it has so far
                raise KeyboardInterrupt
            error = errors[planned.run_id]
            cause = describe_error(getattr(error, "cause", None) or error)[0]
            reason = f"the trial died: {cause}"
            directory.write_run(
                planned.run, planned.description.to_record("failed", error=reason), []
            )


def _concurrency(workers: int, plan: Plan, resources: ResourcesSpec) -> int:
    """Return how many runs with `workers` workers train concurrently."""
    if workers == 1:
        return plan.concurrency
    if resources.concurrency != "auto":
        return plan.multi_worker_runs
    # The plan counts its largest runs; more runs of fewer workers fit the same nodes.
    nodes = cluster_nodes()
    return multi_worker_concurrency(workers, count_workers(resources, nodes), nodes)
