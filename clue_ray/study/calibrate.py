"""How fast each encoder trains here: a few real steps are timed before a study starts.

Gives, for each encoder (as JSON), seconds a step costs whatever its size, and seconds a FLOP.
"""

import time

import numpy as np
import torch

from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.specs import EvaluationSpec, RunSpec
from clue_ray.training.loop import LocalContext, Trainer

TIMED_STEPS = 5
Rates = dict[str, tuple[float, float]]


def given_rate(runs: list[RunSpec], flops_per_second: float) -> Rates:
    """Take one speed for every encoder, without timing any."""
    return {run.encoder.model_dump_json(): (0.0, 1 / flops_per_second) for run in runs}


def calibrate(runs: list[RunSpec], corpus: Corpus, evaluation: EvaluationSpec) -> Rates:
    """Time a few real steps of each encoder at its smallest and largest batches, counted in events."""
    rates = {}
    threads = torch.get_num_threads()
    for encoder in {run.encoder.model_dump_json(): run.encoder for run in runs}.values():
        same = sorted((r for r in runs if r.encoder == encoder), key=events_a_step)
        torch.set_num_threads(same[0].resources.cpus_per_worker)
        cheap, short = time_step(same[0], corpus, evaluation)
        dear, long = (cheap, short) if len(same) == 1 else time_step(same[-1], corpus, evaluation)
        rates[encoder.model_dump_json()] = speed(cheap, short, dear, long)
    torch.set_num_threads(threads)
    return rates


def events_a_step(run: RunSpec) -> int:
    """Bound the events of a step, for ordering."""
    return run.sequence_length * run.train.global_batch_size


def speed(cheap: float, short: float, dear: float, long: float) -> tuple[float, float]:
    """Draw the line through two timings (FLOPs, seconds): its (seconds at no FLOPs, seconds a FLOP)."""
    if not dear:  # diverged at once; the run will say so itself
        return 0.0, 0.0
    per_flop = max(long - short, 0.2 * long) / max(dear - cheap, 0.2 * dear)
    return max(0.0, long - per_flop * dear), per_flop


def time_step(run: RunSpec, corpus: Corpus, evaluation: EvaluationSpec) -> tuple[float, float]:
    """Return one training step's (executed FLOPs, seconds), after a first one to warm up."""
    train = run.train.model_copy(update={"steps": 1 + TIMED_STEPS, "users_seen": None, "train_flops": None})
    trainer = Trainer(run.model_copy(update={"train": train}), corpus, evaluation, LocalContext())
    trainer.step(trainer.prepare(trainer.state.step))
    before, seconds = trainer.state.executed, []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        trainer.step(trainer.prepare(trainer.state.step))
        seconds.append(time.perf_counter() - started)
    executed = Work(*(a - b for a, b in zip(trainer.state.executed, before, strict=True)))
    return train_flops(run.encoder, executed) / TIMED_STEPS, float(np.median(seconds))
