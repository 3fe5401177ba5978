"""The loop: learns, repeats itself, survives a kill, and stops when the loss is no number."""

import itertools
import math

import pytest
import torch

from clue_ray.runs import COLUMNS
from clue_ray.spec import EncoderSpec, EvaluationSpec, RunSpec, TrainSpec
from clue_ray.training.checkpoints import load_state
from clue_ray.training.loop import LocalContext, train_run, train_with
from clue_ray.training.prefetch import Prefetch
from clue_ray.training.schedule import learning_rate_share, make_optimizer

EVALUATION = EvaluationSpec(candidates=32, every=0.25)
CLOCK = {"wall_seconds", "tokens_per_second", "started_at"}


def make_run(steps=12, **train):
    return RunSpec(
        encoder=EncoderSpec(size="xs", output_width=16),
        train=TrainSpec(**{"steps": steps, "global_batch_size": 32, **train}),
        sequence_length=6,
    )


def without_clock(record):
    return record.model_dump(exclude=CLOCK)


def test_learns_what_was_planted(corpus):
    record = train_run(make_run(steps=120), corpus, EVALUATION)
    assert record.status == "done"
    assert record.loss < math.log(32) - 0.4
    assert record.recall_at_10 > 1.3 * 10 / 32
    assert list(record.model_dump()) == COLUMNS


def test_same_spec_same_record(corpus):
    assert without_clock(train_run(make_run(), corpus, EVALUATION)) == without_clock(
        train_run(make_run(), corpus, EVALUATION)
    )


def test_another_seed_another_loss(corpus):
    assert train_run(make_run(), corpus, EVALUATION).loss != train_run(make_run(seed=1), corpus, EVALUATION).loss


class Killed(Exception):
    """The process is gone."""


class DyingContext(LocalContext):
    """Dies when it has heard of so much progress."""

    patience = 5

    def progress(self, metrics):
        self.patience -= 1
        if not self.patience:
            raise Killed


def test_killed_and_resumed_equals_uninterrupted(corpus, tmp_path):
    whole, whole_curve = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path / "whole"))
    with pytest.raises(Killed):
        train_with(make_run(), corpus, EVALUATION, DyingContext(tmp_path / "killed"))
    assert 0 < load_state(tmp_path / "killed")["progress"]["step"] < 12
    resumed, resumed_curve = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path / "killed"))
    assert without_clock(resumed) == without_clock(whole)
    assert resumed_curve == whole_curve
    ends = [load_state(tmp_path / name)["model"] for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_damaged_checkpoint_starts_anew(corpus, tmp_path):
    whole, _ = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path))
    (tmp_path / "state.pt").write_bytes(b"junk")
    again, _ = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path))
    assert without_clock(again) == without_clock(whole)


def test_divergence_is_a_result(corpus, monkeypatch):
    from clue_ray.training import loop

    real = loop.info_nce
    calls = iter(range(100))
    monkeypatch.setattr(loop, "info_nce", lambda a, b, s: real(a, b, s) * (math.nan if next(calls) == 4 else 1))
    record = train_run(make_run(), corpus, EVALUATION)
    assert record.status == "diverged" and record.error == "loss was not finite at step 5" and record.steps == 4


@pytest.mark.parametrize(("horizon", "steps"), [({"steps": 3}, 3), ({"users_seen": 96}, 3)])
def test_horizons(corpus, horizon, steps):
    record = train_run(make_run(**{"steps": None, **horizon}), corpus, EVALUATION)
    assert (record.steps, record.users_seen) == (steps, steps * 32)


def test_flops_horizon_is_met(corpus):
    budget = 3 * train_run(make_run(steps=4), corpus, EVALUATION).train_flops
    record = train_run(make_run(steps=None, train_flops=budget), corpus, EVALUATION)
    assert record.train_flops == pytest.approx(budget, rel=0.1)


def test_dedup_executes_less_than_it_counts(corpus):
    record = train_run(make_run(), corpus, EVALUATION)
    assert record.executed_flops < record.train_flops


def test_schedule_rises_then_falls():
    shares = [learning_rate_share(step, 100, warmup=0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] or max(shares) == shares[10]
    assert shares[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_wider_matrices_move_slower(corpus):
    from clue_ray.encoder.model import Encoder

    rates = {}
    for size in ("s", "m"):
        encoder = EncoderSpec(size=size)
        model = Encoder(encoder, corpus.vocabulary(4), 0.1, 0)
        groups = make_optimizer(model, TrainSpec(steps=1), encoder.width).param_groups
        rates[size] = [group["lr"] for group in groups]
        assert [group["weight_decay"] > 0 for group in groups] == [True, False, False]
        assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())
    assert rates["m"][0] == rates["s"][0] / 2 and rates["m"][1:] == rates["s"][1:]


def test_batches_are_prepared_ahead_and_in_order():
    asked = []

    def prepare(step):
        asked.append(step)
        return step * 10

    with Prefetch(prepare, last=6, ahead=2) as batches:
        assert batches(1) == 10
        found = [batches(step) for step in range(2, 6)]
    assert found == [20, 30, 40, 50] and asked == [1, 2, 3, 4, 5]


def test_trouble_while_preparing_reaches_the_step():
    with Prefetch(lambda step: 1 // (2 - step), last=9) as batches, pytest.raises(ZeroDivisionError):
        [batches(step) for step in range(9)]
