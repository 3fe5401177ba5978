"""A study on Ray: check that it fits, train what is not finished (`tuning`), collect the table."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from clue_ray.cluster.session import TRIAL_SLOTS, cluster_nodes, connect, data_pool
from clue_ray.corpus.build import build_corpus, source_key
from clue_ray.corpus.logs.reading import plan_reading
from clue_ray.corpus.planted import planted_floor
from clue_ray.corpus.store import Corpus, holds_corpus, open_corpus, share_corpus
from clue_ray.errors import SpecError
from clue_ray.runs import RunRecord, Runs
from clue_ray.spec.grid import MOST_POINTS, Point, expand
from clue_ray.spec.specs import StudySpec
from clue_ray.storage.files import write_json
from clue_ray.storage.place import place_below
from clue_ray.study.add_runs import AddedRuns, AddRunsRequest, add_runs
from clue_ray.study.costs import choose_timing
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import open_directory
from clue_ray.study.planned import Plan
from clue_ray.study.planner import check_cluster, check_disk, check_study, plan_runs
from clue_ray.study.probes import check_checkpoints, check_storage
from clue_ray.study.progress import Listener, ignore
from clue_ray.study.scoring import score_runs
from clue_ray.study.tune import train_pending
from clue_ray.training.baselines import linear_baseline, tfidf_baseline
from clue_ray.transfer.tasks.columns import join_results
from clue_ray.transfer.tasks.spec import read_tasks


def _open_study_corpus(study: StudySpec, output: Path, storage: str | None = None) -> Corpus:
    """Open the study's corpus, preparing it below storage, else `output`, when it is not there
    yet.
    """
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
    address: str | None = None,
    storage: str | None = None,
    most_points: int | None = MOST_POINTS,
    flops_per_second: float | None = None,
) -> Plan:
    """Plan a study without running it; its corpus is prepared where that is not done yet.

    Args:
        address: HOST:PORT of a Ray cluster to plan for; this machine alone when omitted.
        storage: where corpora and studies have their home, as `run_study` takes it.
        most_points: grid points above which the study is refused; None for any number.
        flops_per_second: speed of a worker, instead of timing a few steps.
    """
    output = Path(output).absolute()
    check_study(study, most_points)
    directory = open_directory(output / study.name, storage)
    directory.look()
    here = {
        "CPU": float(os.cpu_count() or 1),
        "GPU": float(torch.cuda.device_count()),
        "trial_slot": TRIAL_SLOTS,
    }
    added = AddedRuns.read(directory.path).points
    with connect(address) if address else nullcontext():
        corpus = _open_study_corpus(study, output, storage)
        nodes = cluster_nodes() if address else [here]
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
    listener: Listener = ignore,
    retry_failed: bool = False,
    most_points: int | None = MOST_POINTS,
    growth: AddRunsRequest | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> Runs:
    """Run what a study still lacks and return its runs table, which is also written to
    `<output>/<name>/`.

    Args:
        address: HOST:PORT of a Ray cluster; this machine alone when omitted.
        storage: folder or URI that all nodes can write, where corpora and studies then have their
            home; `output` mirrors it.
        listener: is told of the plan and of progress.
        retry_failed: train runs again that failed before.
        most_points: grid points above which the study is refused; None for any number.
        growth: runs to add beyond the grids, where they most narrow a prediction.
        callbacks: further ones of Ray Tune's, such as
            `ray.air.integrations.mlflow.MLflowLoggerCallback`.

    Raises:
        ClueRayError: the study cannot run; nothing was trained then.
    """
    output = Path(output).absolute()
    directory = open_directory(output / study.name, storage)
    check_study(study, most_points)
    read_tasks(study.transfer)  # a mistake is told before anything trains
    with directory.held(), connect(address):
        check_storage(study, directory)  # before hours of preparation
        corpus = _open_study_corpus(study, output, storage)
        train = partial(
            _train_study, study, corpus, directory, output, address, listener, callbacks
        )
        if growth:
            return add_runs(study, corpus, directory.path, growth, train, retry_failed)
        return train(retry_failed)[0]


def _train_study(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    output: Path,
    address: str | None,
    listener: Listener,
    callbacks: Sequence[tune.Callback],
    retry_failed: bool,
) -> tuple[Runs, int]:
    """Train what the grids and what was grown still lack; return the runs table and how many runs
    go at a time.
    """
    added = AddedRuns.read(directory.path).points
    plan = _plan_checked(study, corpus, directory, output, address, retry_failed, added)
    directory.claim(study, corpus.digest)
    write_json(directory.path / "plan.json", plan.to_dict())
    _write_side_files(plan, corpus, study, directory)
    directory.publish()
    try:
        train_pending(plan, corpus, study, directory, listener, callbacks)
    finally:
        runs = directory.collect([r.description for r in plan.runs])
    score_runs(directory, read_tasks(study.transfer), list(runs.done["run_id"]))
    return join_results(directory.path, runs), plan.concurrency


def _write_side_files(
    plan: Plan, corpus: Corpus, study: StudySpec, directory: StudyDirectory
) -> None:
    """Write what the report sets beside the runs: the corpus, baselines, and the lowest loss of a
    planted log.
    """
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
    storage: str | None = None,
    listener: Listener = ignore,
) -> tuple[RunRecord, Path]:
    """Train the base run with some fields set, on the grid or off it; return its record and folder.

    It lies in the study's directory, so what is done is not trained again, here or by `run_study`;
    what failed is. The runs table stays as it is.

    Args:
        point: dotted fields and their values.
        storage: where corpora and studies have their home, as `run_study` takes it.

    Raises:
        ClueRayError: the point cannot be trained; nothing was trained then.
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
        check_storage(study, directory)  # before hours of preparation
        corpus = _open_study_corpus(study, output, storage)
        plan = _plan_checked(alone, corpus, directory, output, address, retry_failed=True)
        plan = replace(plan, warnings=[], notes=[])  # one run shows no law
        directory.claim(study, corpus.digest)
        train_pending(plan, corpus, alone, directory, listener)
        directory.gather(plan.runs[0].run_id)
    (planned,) = plan.runs
    record = directory.read_record(planned.run_id)
    assert record is not None
    return record, directory.run_path(planned.run_id)


def _plan_checked(
    study: StudySpec,
    corpus: Corpus,
    directory: StudyDirectory,
    output: Path,
    address: str | None,
    retry_failed: bool,
    added: Sequence[Point] = (),
) -> Plan:
    """Plan a study on the cluster at hand; refuse what cannot run there."""
    check_storage(study, directory, corpus.place)
    nodes = cluster_nodes()
    timed = choose_timing(corpus, study.evaluation, study.resources, nodes, address)
    plan = plan_runs(
        study, corpus, directory, nodes, added=added, retry_failed=retry_failed, timed=timed
    )
    check_cluster(plan, study, nodes)
    check_disk(plan, output, study.resources.checkpoints or directory.place)
    check_checkpoints(plan.pending, directory)
    return plan
