"""The loop: learns, repeats itself, survives a kill, and stops when the loss is no number."""

import itertools
import json
import math
import time

import pytest
import torch

from clue_ray.encoder.blocks import Block
from clue_ray.encoder.loss import OBJECTIVES, info_nce
from clue_ray.encoder.model import MIN_TEMPERATURE, Encoder
from clue_ray.errors import ClusterError
from clue_ray.runs import RUN_COLUMNS
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.study.directory import StudyDirectory
from clue_ray.training import loop
from clue_ray.training.checkpoints import load_state
from clue_ray.training.context import LocalContext
from clue_ray.training.device import choose_device, is_lost
from clue_ray.training.evaluate import Evaluation
from clue_ray.training.feed import Prefetch
from clue_ray.training.loop import Trainer, train_run, train_with
from clue_ray.training.schedule import learning_rate_share, make_optimizer

EVALUATION = EvaluationSpec(candidates=32, every=0.25)
CLOCK = {"wall_seconds", "tokens_per_second", "started_at"}
CURVE_CLOCK = {"tokens_per_second", "memory_bytes"}


def make_run(steps=12, **train):
    return RunSpec(
        encoder=EncoderSpec(size="xs", output_width=16),
        train=TrainSpec(**{"steps": steps, "global_batch_size": 32, **train}),
        sequence_length=6,
    )


def without_clock(record):
    return record.model_dump(exclude=CLOCK)


def points(curve):
    return [{column: point[column] for column in point.keys() - CURVE_CLOCK} for point in curve]


def test_learns_what_was_planted(corpus):
    record = train_run(make_run(steps=120), corpus, EVALUATION)
    assert record.status == "done"
    assert record.loss < math.log(32) - 0.4
    assert record.recall_at_10 > 1.3 * 10 / 32
    assert record.model_dump().keys() == set(RUN_COLUMNS)


def test_same_spec_same_record(corpus):
    assert without_clock(train_run(make_run(), corpus, EVALUATION)) == without_clock(
        train_run(make_run(), corpus, EVALUATION)
    )


def test_every_choice_of_the_recipe_trains(corpus):
    chosen = {
        "event_dropout": 0.4,
        "token_dropout": 0.1,
        "same_service": 0.3,
        "past_future": 0.3,
        "objective": "sigmoid",
        "schedule": "warmup_stable_decay",
    }
    plain, regularised = (
        train_run(make_run(), corpus, EVALUATION),
        train_run(make_run(**chosen), corpus, EVALUATION),
    )
    assert regularised.loss != plain.loss
    assert regularised.train_flops < plain.train_flops


def test_bf16_stays_near_fp32(corpus):
    rough = train_run(make_run(precision="bf16"), corpus, EVALUATION)
    exact = train_run(make_run(), corpus, EVALUATION)
    losses = [run.loss_at_training_temperature for run in (rough, exact)]
    assert losses[0] == pytest.approx(losses[1], abs=0.04)
    assert rough.loss != exact.loss


def test_under_bf16_vectors_logits_and_loss_stay_in_fp32(corpus, monkeypatch):
    seen = []

    def watched(a, b, logit, duplicate_ids=None):
        loss = info_nce(a, b, logit, duplicate_ids)
        seen.extend([a, b, logit, loss])
        return loss

    monkeypatch.setitem(OBJECTIVES, "info_nce", watched)
    trainer = Trainer(make_run(precision="bf16"), corpus, EVALUATION, LocalContext())
    assert trainer.step(trainer.prepare(0))
    assert {one.dtype for one in seen} == {torch.float32}
    norms = torch.cat([seen[0], seen[1]]).double().norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6  # of bf16 numbers it would be off by 1e-3


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_stream_of_a_transformer_has_the_precision_of_its_products(corpus, precision, dtype):
    encoder = {"width": 16, "item_layers": 2, "service_layers": 2, "heads": 2, "dropout": 0.3}
    run = make_run(precision=precision).model_copy(update={"encoder": EncoderSpec(**encoder)})
    trainer, seen = Trainer(run, corpus, EVALUATION, LocalContext()), []
    for block in trainer.model.modules():
        if isinstance(block, Block):
            block.register_forward_hook(lambda _, given, made: seen.extend([given[0], made]))
    assert trainer.step(trainer.prepare(0))
    assert len(seen) == 2 * 4
    assert {one.dtype for one in seen} == {dtype}


def test_another_seed_another_loss(corpus):
    assert (
        train_run(make_run(), corpus, EVALUATION).loss
        != train_run(make_run(seed=1), corpus, EVALUATION).loss
    )


class KilledError(Exception):
    """The process is gone."""


class DyingContext(LocalContext):
    """Dies when it has heard of so much progress."""

    patience = 5

    def progress(self, metrics):
        self.patience -= 1
        if not self.patience:
            raise KilledError


def test_killed_and_resumed_equals_uninterrupted(corpus, tmp_path):
    whole, whole_curve = train_with(
        make_run(), corpus, EVALUATION, LocalContext(tmp_path / "whole")
    )
    with pytest.raises(KilledError):
        train_with(make_run(), corpus, EVALUATION, DyingContext(tmp_path / "killed"))
    assert 0 < load_state(tmp_path / "killed")["progress"]["step"] < 12
    resumed, resumed_curve = train_with(
        make_run(), corpus, EVALUATION, LocalContext(tmp_path / "killed")
    )
    assert without_clock(resumed) == without_clock(whole)
    assert points(resumed_curve) == points(whole_curve)
    ends = [load_state(tmp_path / name)["model"] for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_damaged_checkpoint_starts_again(corpus, tmp_path):
    whole, _ = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path))
    for state in tmp_path.glob("step_*.pt"):
        state.write_bytes(b"junk")
    again, _ = train_with(make_run(), corpus, EVALUATION, LocalContext(tmp_path))
    assert without_clock(again) == without_clock(whole)


def test_divergence_is_a_result(corpus, monkeypatch):
    real = loop.OBJECTIVES["info_nce"]
    calls = iter(range(100))

    def broken(*args, **kwargs):
        return real(*args, **kwargs) * (math.nan if next(calls) == 4 else 1)

    monkeypatch.setitem(loop.OBJECTIVES, "info_nce", broken)
    record = train_run(make_run(), corpus, EVALUATION)
    assert record.status == "diverged"
    assert record.error == "loss or gradient was not finite at step 5"
    assert record.steps == 4


@pytest.mark.parametrize("place", ["OBJECTIVES", "Encoder", "BatchSampler", "evaluate"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate"),
        MemoryError("Unable to allocate 728. TiB for an array"),
    ],
)
def test_out_of_memory_says_what_to_lower(corpus, monkeypatch, error, place):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(loop, place, {"info_nce": full} if place == "OBJECTIVES" else full)
    words = (
        r"^Out of memory: global_batch_size 32.*32 users encoded at a time"
        r".*resources.users_per_chunk to 16 or less"
    )
    with pytest.raises(MemoryError, match=words):
        train_run(make_run(), corpus, EVALUATION)
    one_by_one = make_run().model_copy(update={"resources": ResourcesSpec(users_per_chunk=1)})
    with pytest.raises(MemoryError, match=r"1 users encoded at a time; lower global_batch_size"):
        train_run(one_by_one, corpus, EVALUATION)


def test_a_held_out_loss_that_is_no_number_is_divergence(corpus, monkeypatch, tmp_path):
    nothing = Evaluation(math.nan, 0.5, 0.5, math.nan, math.nan)
    monkeypatch.setattr(loop, "evaluate", lambda *_: nothing)
    record, curve = train_with(make_run(), corpus, EVALUATION, LocalContext())
    assert (record.status, record.loss, record.recall_at_10) == ("diverged", None, 0.5)
    StudyDirectory(tmp_path).write_run(make_run(), record, curve)
    assert (
        json.loads((tmp_path / "runs" / record.run_id / "curve.json").read_text())[0]["loss"]
        is None
    )


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
    shares = [
        learning_rate_share(step, 100, TrainSpec(steps=100, warmup=0.1)) for step in range(100)
    ]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] or max(shares) == shares[10]
    assert shares[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_rate_stays_then_falls():
    train = TrainSpec(steps=100, warmup=0.1, schedule="warmup_stable_decay")
    shares = [learning_rate_share(step, 100, train) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9:81] == pytest.approx([1.0] * 72)
    assert shares[90] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.05)


def rates(corpus, **shape):
    """Rate and decay of each kind of weight, and how many weights there are."""
    encoder = EncoderSpec(
        **{"width": 32, "item_layers": 1, "service_layers": 1, "heads": 2, **shape}
    )
    model = Encoder(encoder, corpus.vocabulary(4), 0.1, 0)
    train = TrainSpec(steps=1, learning_rate=1.0, weight_decay=0.1)
    groups = make_optimizer(model, train).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    rate_of = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    return {name: rate_of[id(parameter)] for name, parameter in model.named_parameters()}


def test_wider_and_deeper_matrices_move_slower(corpus):
    base, wide, deep = rates(corpus), rates(corpus, width=64), rates(corpus, item_layers=4)
    item, service = (f"transformer.{part}_blocks.0.ffn_up.weight" for part in ("item", "service"))
    output = "transformer.output.weight"
    assert base[item] == base[service] == base[output] == (1.0, pytest.approx(0.1))
    assert wide[item] == wide[output] == (0.5, pytest.approx(0.2))
    assert deep[item] == (0.5, pytest.approx(0.2))
    assert deep[service] == base[service]
    for name in (
        "bag.table.weight",
        "transformer.token_embedding.weight",
        "transformer.token_position.weight",
        "transformer.item_norm.weight",
        "mixer.down.bias",
        "log_scale",
    ):
        assert (
            base[name]
            == wide[name]
            == deep[name]
            == (6.0 if "token_emb" in name or "table" in name else 1.0, 0.0)
        )


def test_batches_are_prepared_ahead_and_in_order():
    asked = []

    def prepare(step):
        asked.append(step)
        return step * 10

    with Prefetch(prepare, last=6, ahead=2) as batches:
        assert batches(1) == 10
        deadline = time.monotonic() + 30
        while (
            len(asked) < 3 and time.monotonic() < deadline
        ):  # the next two, before they are asked for
            time.sleep(0.001)
        assert len(asked) == 3
        found = [batches(step) for step in range(2, 6)]
    assert found == [20, 30, 40, 50]
    assert asked == [1, 2, 3, 4, 5]


def test_trouble_while_preparing_reaches_the_step():
    with (
        Prefetch(lambda step: 1 // (2 - step), last=9) as batches,
        pytest.raises(ZeroDivisionError),
    ):
        [batches(step) for step in range(9)]


def test_the_temperature_comes_back_from_its_bound(corpus):
    run = RunSpec(
        train=TrainSpec(global_batch_size=16, steps=2, temperature=MIN_TEMPERATURE),
        sequence_length=4,
    )
    model = Trainer(run, corpus, EvaluationSpec(candidates=16), LocalContext()).model
    optimizer = torch.optim.Adam([model.log_scale], lr=0.01)
    scales = []
    for sign in [-1] * 5 + [1] * 20:  # up beyond the bound, then down again
        optimizer.zero_grad()
        (sign * model.scale).backward()
        optimizer.step()
        model.clamp_temperature()
        scales.append(float(model.scale.detach()))
    assert max(scales) == pytest.approx(100, rel=1e-5)
    assert scales[-1] < 99


def test_a_step_ends_with_the_temperature_in_its_bound(corpus):
    run = RunSpec(train=TrainSpec(global_batch_size=16, steps=2), sequence_length=4)
    trainer = Trainer(run, corpus, EvaluationSpec(candidates=16), LocalContext())
    trainer.model.log_scale.data.fill_(math.log(150))
    assert trainer.step(trainer.prepare(0))
    assert float(trainer.model.scale.detach()) == pytest.approx(100, rel=1e-5)


def test_a_gradient_that_is_not_finite_ends_a_run_with_its_weights(corpus, monkeypatch):
    run = RunSpec(train=TrainSpec(global_batch_size=16, steps=2), sequence_length=4)
    trainer = Trainer(run, corpus, EvaluationSpec(candidates=16), LocalContext())
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    assert not trainer.step(trainer.prepare(0))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_gpu_that_is_not_there_is_told(caplog, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(0.5).type == "cpu"
    assert "0.5 GPUs were requested and torch sees none" in caplog.text
    caplog.clear()
    assert choose_device(0).type == "cpu"
    assert not caplog.text
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    assert choose_device(1) == torch.device("cuda:0")
    assert choose_device(1).type == "cuda"
    assert choose_device(0).type == "cpu"
    assert not caplog.text


def test_a_step_that_is_read_late_is_the_same_step(corpus):
    """A GPU reads the loss of a step after it has launched the next one."""
    weights = []
    for lag in (0, 1):
        trainer = Trainer(make_run(), corpus, EVALUATION, LocalContext())
        trainer.lag = lag
        assert trainer.train()
        weights.append([trainer.state.train_loss, *trainer.model.state_dict().values()])
    assert weights[0][0] == weights[1][0]
    assert all(torch.equal(a, b) for a, b in zip(weights[0][1:], weights[1][1:], strict=True))


def test_a_broken_step_that_is_read_late_keeps_the_weights(corpus, monkeypatch):
    kept = Trainer(make_run(), corpus, EVALUATION, LocalContext())
    for step in range(4):
        kept.step(kept.prepare(step))
    trainer = Trainer(make_run(), corpus, EVALUATION, LocalContext())
    trainer.lag = 1
    real, calls = loop.OBJECTIVES["info_nce"], iter(range(100))

    def broken(*args, **kwargs):
        return real(*args, **kwargs) * (math.nan if next(calls) == 4 else 1)

    monkeypatch.setitem(loop.OBJECTIVES, "info_nce", broken)
    assert not trainer.train()
    assert trainer.state.step == 4
    pairs = zip(trainer.model.parameters(), kept.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpoints_are_kept_by_time_too(corpus, tmp_path, monkeypatch):
    whole = train_run(make_run(), corpus, EvaluationSpec(candidates=32, every=1))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    saved = []
    context = LocalContext(tmp_path)
    monkeypatch.setattr(context, "progress", lambda metrics: saved.append(metrics["step"]))
    record, _ = train_with(make_run(), corpus, EvaluationSpec(candidates=32, every=1), context)
    assert saved == list(range(1, 13))
    assert without_clock(record) == without_clock(whole)
    assert load_state(tmp_path)["progress"]["step"] == 12


def test_an_old_card_and_a_lost_one_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ClusterError, match=r"compute capability 7\.0, and train\.precision bf16"):
        choose_device(1, "bf16")
    assert choose_device(1, "fp32").type == "cuda"
    for kind in ("CUDA error", "CUDA driver error", "Triton Error [CUDA]"):
        assert is_lost(RuntimeError(f"{kind}: an illegal memory access was encountered"))
        assert not is_lost(RuntimeError(f"{kind}: out of memory"))
    assert not is_lost(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_lost(ValueError("CUDA error"))


def test_masks_that_are_drawn_during_an_evaluation_are_those_of_training(corpus):
    """The thread that makes batches does not know whether the model is being evaluated."""
    run = make_run().model_copy(
        update={"encoder": EncoderSpec(size="xs", output_width=16, dropout=0.2)}
    )
    trainer = Trainer(run, corpus, EVALUATION, LocalContext())
    expected = trainer.prepare(3).masks
    trainer.model.eval()
    assert torch.equal(trainer.prepare(3).masks, expected)
    assert 0.1 < (expected == 0).float().mean() < 0.3
