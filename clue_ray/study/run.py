"""Plan, run and report a study on Ray: the functions behind `clue-ray plan`, `run` and `train`.

Each checks the study (study/checks.py), opens its corpus and plans what is missing. `run_study`
then trains the missing runs (study/tune.py), writes the tables, evaluates the downstream tasks and
writes the report.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from clue_ray.cluster.machine import usable_cpus
from clue_ray.cluster.session import TRIAL_SLOTS, cluster_nodes, connect, data_pool
from clue_ray.corpus.build import build_corpus, source_key
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.planted import planted_floor
from clue_ray.corpus.store import Corpus, holds_corpus, open_corpus, share_corpus
from clue_ray.errors import RunsError, SpecError
from clue_ray.report.page import write_report
from clue_ray.runs import RunRecord, Runs
from clue_ray.spec.grid import MOST_POINTS, Point, expand
from clue_ray.spec.specs import StudySpec
from clue_ray.storage.files import read_json, write_json
from clue_ray.storage.place import place_below, resolve_place
from clue_ray.study.add_runs import AddedRuns, AddRunsRequest, add_in_rounds
from clue_ray.study.checks import check_resources, check_study
from clue_ray.study.costs import choose_timing
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import open_directory
from clue_ray.study.planned import Plan
from clue_ray.study.planner import plan_runs
from clue_ray.study.probes import check_storage
from clue_ray.study.progress import OnProgress, ignore_progress
from clue_ray.study.scoring import score_runs
from clue_ray.study.trackers import send_study
from clue_ray.study.tune import train_pending
from clue_ray.training.baselines import score_baselines
from clue_ray.transfer.tasks.columns import join_results
from clue_ray.transfer.tasks.spec import read_tasks


def plan_study(
    study: StudySpec,
    output: str | Path = "results",
    *,
    address: str | None = None,
    storage: str | None = None,
    most_points: int | None = MOST_POINTS,
    flops_per_second: float | None = None,
) -> Plan:
    """Plan a study without running it; prepare its corpus where there is none yet.

    Args:
        address: HOST:PORT of a Ray cluster to plan for; this machine where it is left out.
        storage: Folder or URI of corpora and studies, as for `run_study`.
        most_points: Number of grid points above which the study is refused; None for any number.
        flops_per_second: Speed of a worker; otherwise a few steps are timed.

    Raises:
        ClueRayError: The study cannot be run.
    """
    output = Path(output).absolute()
    check_study(study, most_points)
    directory = open_directory(output / study.name, storage)
    directory.fetch()
    here = {
        "CPU": float(usable_cpus()),
        "GPU": float(torch.cuda.device_count()),
        "trial_slot": TRIAL_SLOTS,
    }
    added = AddedRuns.read(directory.path).points
    # A GPU is timed in a task, because this process would keep memory of it.
    on_ray = bool(address or (study.resources.gpus_per_worker and here["GPU"]))
    with connect(address) if on_ray else nullcontext():
        corpus = _open_study_corpus(study, output, storage)
        nodes = cluster_nodes() if on_ray else [here]
        timed = choose_timing(
            corpus, study.evaluation, study.resources, nodes, address, flops_per_second
        )
        return plan_runs(study, corpus, directory, nodes, added=added, timed=timed)


def run_study(
    study: StudySpec,
    output: str | Path = "results",
    *,
    address: str | None = None,
    storage: str | None = None,
    on_progress: OnProgress = ignore_progress,
    retry_failed: bool = False,
    most_points: int | None = MOST_POINTS,
    add_runs: AddRunsRequest | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> Runs:
    """Train the runs that a study still lacks, write its tables and report, and return the table.

    Everything is written to `<output>/<name>/`: runs.csv, runs.parquet, curves.parquet, fits.json
    and report/index.html.

    Args:
        address: HOST:PORT of a Ray cluster; this machine where it is left out.
        storage: Folder or URI that all nodes can write. Corpora and studies are then kept there,
            and `output` mirrors the study.
        on_progress: Called with the plan and then with a `Snapshot` whenever a run makes progress.
        retry_failed: Whether runs that failed before are trained again.
        most_points: Number of grid points above which the study is refused; None for any number.
        add_runs: Runs to add beyond the grids, where they narrow a prediction most.
        callbacks: Further callbacks of Ray Tune, such as
            `ray.air.integrations.mlflow.MLflowLoggerCallback`.

    Raises:
        ClueRayError: The study cannot be run. Nothing was trained, unless storage was lost.
    """
    output = Path(output).absolute()
    directory = open_directory(output / study.name, storage)
    check_study(study, most_points)
    with directory.held():  # which pushes the report at its end, whatever a tracker does
        with connect(address):
            check_storage(study, directory)  # before the corpus is prepared, which can take hours
            corpus = _open_study_corpus(study, output, storage)
            train = partial(
                _train_study, study, corpus, directory, output, address, on_progress, callbacks
            )
            if add_runs:
                runs = add_in_rounds(study, corpus, directory.path, add_runs, train, retry_failed)
            else:
                runs, _ = train(retry_failed)
        write_report(directory.path)
        send_study(directory, study.name, study.trackers, runs)
    return runs


def train_point(
    study: StudySpec,
    point: Point,
    output: str | Path = "results",
    *,
    address: str | None = None,
    storage: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> tuple[RunRecord, Path]:
    """Train the base run with some fields set; return its record and folder.

    The run is kept in the study's directory. A run that is done is not trained again, here or by
    `run_study`; a run that failed is. The runs table does not change.

    Args:
        point: Dotted fields and their values, on the study's grids or not.
        storage: Folder or URI of corpora and studies, as for `run_study`.

    Raises:
        ClueRayError: The point cannot be trained; nothing was trained.
    """
    output = Path(output).absolute()
    directory = open_directory(output / study.name, storage)
    alone = study.model_copy(update={"axes": {name: [value] for name, value in point.items()}})
    check_study(alone)
    if len(expand(alone)) > 1:
        raise SpecError(
            f"--point {', '.join(point)} makes {len(expand(alone))} runs; name fields of one run."
        )
    with directory.held(), connect(address):
        check_storage(study, directory)  # before the corpus is prepared, which can take hours
        corpus = _open_study_corpus(study, output, storage)
        plan = _plan_checked(alone, corpus, directory, output, address, retry_failed=True)
        plan = replace(plan, warnings=[], notes=[])  # they are about grids; this is one run
        directory.claim(study, corpus.digest)
        with _logged(plan, directory, address):
            train_pending(plan, corpus, alone, directory, on_progress)
        directory.fetch_run(plan.runs[0].run_id)
    (planned,) = plan.runs
    record = directory.read_record(planned.run_id)
    assert record is not None
    return record, directory.run_path(planned.run_id)


def _open_study_corpus(study: StudySpec, output: Path, storage: str | None) -> Corpus:
    """Open the study's corpus; prepare it below `storage`, or `output`, where there is none yet."""
    corpora = place_below(storage or str(output), "corpora")
    if isinstance(study.corpus, str):
        corpus = open_corpus(resolve_place(study.corpus))
        return share_corpus(corpus, place_below(corpora, corpus.digest)) if storage else corpus
    place = place_below(corpora, source_key(plan_reading(study.corpus)))
    if holds_corpus(place):
        return open_corpus(place)
    with connect(), data_pool():
        return build_corpus(study.corpus, place)


def _train_study(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    output: Path,
    address: str | None,
    on_progress: OnProgress,
    callbacks: Sequence[tune.Callback],
    retry_failed: bool,
) -> tuple[Runs, int]:
    """Train what the grids and the added runs lack; return the runs table and the concurrency."""
    added = AddedRuns.read(directory.path).points
    plan = _plan_checked(study, corpus, directory, output, address, retry_failed, added)
    directory.claim(study, corpus.digest)
    write_json(directory.path / "plan.json", plan.to_dict())
    lengths = {planned.run.sequence_length for planned in plan.runs}
    candidates = study.evaluation.candidates
    floor = planted_floor(corpus.manifest.get("planted"), lengths, candidates)
    write_json(directory.path / "corpus.json", corpus.summary() | floor)
    directory.publish()
    with _logged(plan, directory, address):
        try:
            with _scoring_baselines(corpus, directory, candidates, lengths):
                train_pending(plan, corpus, study, directory, on_progress, callbacks)
        finally:  # an interrupted study leaves its tables too
            runs = directory.write_tables([r.description for r in plan.runs])
    finished, gpus = list(runs.finished["run_id"]), study.resources.gpus_per_worker
    score_runs(directory, read_tasks(study.transfer), finished, gpus_per_worker=gpus)
    return join_results(directory.path, runs), plan.concurrency


def _plan_checked(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    output: Path,
    address: str | None,
    retry_failed: bool,
    added: Sequence[Point] = (),
) -> Plan:
    """Plan a study on the connected cluster; raise where it cannot run there."""
    check_storage(study, directory, corpus.place)
    nodes = cluster_nodes()
    timed = choose_timing(corpus, study.evaluation, study.resources, nodes, address)
    plan = plan_runs(
        study, corpus, directory, nodes, added=added, retry_failed=retry_failed, timed=timed
    )
    check_resources(plan, study, nodes, output, directory)
    return plan


def _logged(
    plan: Plan, directory: StudyDirectory, address: str | None
) -> AbstractContextManager[None]:
    """Log the start and the end of training, with what is trained, and by which process."""
    return directory.events.logged(
        "training",
        runs=len(plan.runs),
        pending=len(plan.pending),
        concurrency=plan.concurrency,
        address=address or "this machine",
        host=socket.gethostname(),
        pid=os.getpid(),
        versions={name: version(name) for name in ("clue-ray", "ray", "torch")},
    )


@contextmanager
def _scoring_baselines(
    corpus: Corpus, directory: StudyDirectory, candidates: int, lengths: set[int]
) -> Iterator[None]:
    """Score the baselines that a study lacks while its runs train, and write baselines.json.

    A task does it and not the driver: Ray limits a task to one thread, and a driver with a thread
    per core would slow down the runs.
    """
    file = directory.path / "baselines.json"
    # The folder belongs to one corpus and number of candidates, so a baseline never changes.
    if lengths <= _scored_lengths(file):
        yield
        return
    task = ray.remote(num_cpus=0)(_score_at)
    scored = task.remote(corpus.place, candidates, sorted(lengths))
    yield
    write_json(file, {"baselines": ray.get(scored)})


def _score_at(place: str, candidates: int, lengths: list[int]) -> list[dict[str, Any]]:
    return score_baselines(open_corpus(place, verify=False), candidates, lengths)


def _scored_lengths(file: Path) -> set[int]:
    """Return the history lengths whose calibrated baselines a file holds.

    Raises:
        RunsError: The file is damaged.
    """
    if not file.exists():
        return set()
    remedy = "delete it, and clue-ray run writes it again"
    entries = read_json(file, remedy).get("baselines")
    if not isinstance(entries, list) or not all(map(_is_baseline, entries)):
        raise RunsError(f"{file} is damaged (it has no list of baselines); {remedy}.")
    return {entry["sequence_length"] for entry in entries if "calibrated_temperature" in entry}


def _is_baseline(entry: Any) -> bool:
    """Return whether a value of JSON is a baseline; one of whole histories has no length."""
    return isinstance(entry, dict) and isinstance(entry.get("sequence_length", ""), int | None)
