"""A dry run: every run of a study with its parameters, tokens, FLOPs and expected time, before anything starts."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from clue_ray.compute import Work, forward_flops, train_flops
from clue_ray.corpus.reading import plan_reading
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.batches import BatchSampler, count_executed, pack, recent_windows
from clue_ray.errors import SpecError
from clue_ray.scaling.laws import find_law
from clue_ray.spec import CorpusSpec, EvaluationSpec, RunSpec, StudySpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.grid import expand
from clue_ray.training.evaluate import make_pools
from clue_ray.training.loop import LocalContext, Trainer
from clue_ray.training.progress import describe_run
from clue_ray.training.schedule import mean_work, resolve_steps

TIMED_STEPS = 5
STARTUP_SECONDS = {True: 1.0, False: 20.0}
"""Start of a run in a reused actor, and through Ray Train."""
BYTES_PER_PARAM = 12
"""A checkpoint's weights and two moments in float32."""


@dataclass(frozen=True)
class PlannedRun:
    """One run before it starts."""

    run: RunSpec
    known: dict[str, Any]
    steps: int
    train_tokens: int
    train_flops: float
    expected_seconds: float
    finished: bool

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return str(self.known["run_id"])


@dataclass(frozen=True)
class Plan:
    """What a study will do here."""

    study: str
    runs: list[PlannedRun]
    concurrency: int
    disk_bytes: int
    warnings: list[str]

    @property
    def pending(self) -> list[PlannedRun]:
        """Runs still to train, the longest first."""
        return sorted((r for r in self.runs if not r.finished), key=lambda r: -r.expected_seconds)

    @property
    def expected_minutes(self) -> float:
        """Wall minutes of what is pending, shared evenly over the concurrent runs."""
        alone = sum(r.expected_seconds for r in self.pending if r.run.resources.workers > 1)
        shared = sum(r.expected_seconds for r in self.pending if r.run.resources.workers == 1)
        return (alone + shared / self.concurrency) / 60

    def to_dict(self) -> dict[str, Any]:
        """Return what plan.json holds."""
        runs = [{**r.known, **{k: v for k, v in asdict(r).items() if k not in {"run", "known"}}} for r in self.runs]
        return {
            "study": self.study,
            "concurrency": self.concurrency,
            "expected_minutes": self.expected_minutes,
            "disk_bytes": self.disk_bytes,
            "warnings": self.warnings,
            "runs": runs,
        }


def plan_runs(study: StudySpec, corpus: Corpus, directory: StudyDirectory, have: dict[str, float]) -> Plan:
    """Plan a study on a prepared corpus; refuse what cannot train or be scored.

    Args:
        have: the cluster's CPU and GPU, for the concurrency.
    """
    runs = expand(study)
    make_pools(corpus, study.evaluation.candidates)
    for run in runs:
        check_run(run, corpus)
    rates = calibrate(runs, corpus, study.evaluation)
    planned = [plan_run(run, corpus, study, directory, rates) for run in runs]
    disk = sum(BYTES_PER_PARAM * r.known["total_params"] for r in planned)
    return Plan(study.name, planned, concurrency(study, have), disk, find_warnings(planned, corpus, study))


def check_study(study: StudySpec) -> None:
    """Refuse what can be known to fail from the study file and the log's columns alone, before anything starts."""
    for law in study.fit.laws:
        find_law(law)
    for run in expand(study):
        if run.train.global_batch_size % run.resources.workers:
            raise SpecError(
                f"global_batch_size {run.train.global_batch_size} does not divide over {run.resources.workers} "
                "workers; use a multiple."
            )
    if isinstance(study.corpus, CorpusSpec):
        plan_reading(study.corpus)


def check_run(run: RunSpec, corpus: Corpus) -> None:
    """Refuse a run whose data do not fit."""
    if run.corpus_users is not None and run.corpus_users > len(corpus.train_users):
        raise SpecError(
            f"corpus_users {run.corpus_users} is more than the {len(corpus.train_users)} training users of the corpus; "
            "use fewer, or leave it out for all."
        )
    BatchSampler(run, corpus)


def concurrency(study: StudySpec, have: dict[str, float]) -> int:
    """Runs at a time: as asked, or as many as find their cores and GPUs; at least one."""
    resources = study.resources
    if resources.concurrency != "auto":
        return resources.concurrency
    fit = have.get("CPU", 1) / resources.cpus_per_worker
    if resources.gpus_per_worker:
        fit = min(fit, have.get("GPU", 0) / resources.gpus_per_worker)
    return max(1, int(fit))


def calibrate(runs: list[RunSpec], corpus: Corpus, evaluation: EvaluationSpec) -> dict[str, tuple[float, float]]:
    """Time a few real steps of each encoder at its shortest and longest histories.

    Returns:
        for each encoder (as JSON), seconds a step costs whatever its size, and seconds a FLOP.
    """
    rates = {}
    threads = torch.get_num_threads()
    for encoder in {run.encoder.model_dump_json(): run.encoder for run in runs}.values():
        same = sorted((r for r in runs if r.encoder == encoder), key=lambda r: r.sequence_length)
        torch.set_num_threads(same[0].resources.cpus_per_worker)
        (cheap, short), (dear, long) = (time_step(run, corpus, evaluation) for run in (same[0], same[-1]))
        if not dear:  # diverged at once; the run will say so itself
            rates[encoder.model_dump_json()] = (0.0, 0.0)
            continue
        per_flop = max(long - short, 0.2 * long) / max(dear - cheap, 0.2 * dear)
        rates[encoder.model_dump_json()] = (max(0.0, long - per_flop * dear), per_flop)
    torch.set_num_threads(threads)
    return rates


def time_step(run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec) -> tuple[float, float]:
    """Return one training step's (executed FLOPs, seconds), after a first one to warm up."""
    short = run.model_copy(update={"train": run.train.model_copy(update={"steps": 1 + TIMED_STEPS})})
    trainer = Trainer(short, corpus, evaluation, LocalContext())
    trainer.step(trainer.prepare(trainer.state.step))
    before, seconds = trainer.state.executed, []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        trainer.step(trainer.prepare(trainer.state.step))
        seconds.append(time.perf_counter() - started)
    executed = Work(*(a - b for a, b in zip(trainer.state.executed, before, strict=True)))
    return train_flops(run.encoder, executed) / TIMED_STEPS, float(np.median(seconds))


def plan_run(
    run: RunSpec,
    corpus: Corpus,
    study: StudySpec,
    directory: StudyDirectory,
    rates: dict[str, tuple[float, float]],
) -> PlannedRun:
    """Plan one run from its spec and the corpus alone."""
    sampler = BatchSampler(run, corpus)
    steps, work = resolve_steps(run, sampler), mean_work(sampler)
    known = describe_run(run, corpus, study.evaluation, study.name)
    per_step, per_flop = rates[run.encoder.model_dump_json()]
    executed = count_executed(pack(corpus, sampler.windows(0)), similarities=run.train.global_batch_size**2)
    train_seconds = steps * (per_step + per_flop * train_flops(run.encoder, executed)) / run.resources.workers
    evaluations = -(-1 // study.evaluation.every)
    score_seconds = evaluations * per_flop * evaluation_flops(run, corpus)
    return PlannedRun(
        run=run,
        known=known,
        steps=steps,
        train_tokens=work.tokens * steps,
        train_flops=float(train_flops(run.encoder, work) * steps),
        expected_seconds=train_seconds + score_seconds + STARTUP_SECONDS[run.resources.workers == 1],
        finished=directory.is_finished(str(known["run_id"])),
    )


def evaluation_flops(run: RunSpec, corpus: Corpus) -> int:
    """FLOPs of embedding every held-out user in every service once."""
    users = corpus.test_users
    total = Work()
    for service in range(len(corpus.services)):
        present = users[corpus.counts[users, service] > 0]
        windows = recent_windows(corpus, present, np.full(len(present), service), run.sequence_length)
        total += count_executed(pack(corpus, windows))
    return forward_flops(run.encoder, total)


def find_warnings(planned: list[PlannedRun], corpus: Corpus, study: StudySpec) -> list[str]:
    """Say what would weaken the study's answer."""
    warnings = []
    compute = [r.train_flops for r in planned]
    decades = np.log10(max(compute) / min(compute))
    if decades < 1.5:
        warnings.append(f"compute spans {decades:.1f} decades; a law wants at least 1.5")
    for column in ("non_embedding_params", "sequence_length"):
        scales = len({r.known[column] for r in planned})
        if 1 < scales < 4:
            warnings.append(f"{column} takes {scales} values; a law along it wants at least 4")
    scored = len(make_pools(corpus, study.evaluation.candidates))
    if scored < len(corpus.pairs()):
        warnings.append(
            f"{len(corpus.pairs()) - scored} of {len(corpus.pairs())} service pairs have too few held-out users "
            "to be scored"
        )
    return warnings
