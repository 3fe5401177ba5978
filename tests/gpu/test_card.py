"""What must stay right on a card; `pytest -m gpu` runs it where there is one."""

import copy

import numpy as np
import pytest
import torch

from clue_ray.batches.device import DeviceBatch, ResidentCorpus
from clue_ray.batches.layout import group_lengths, lay_out
from clue_ray.batches.sampler import BatchSampler
from clue_ray.batches.transfer import copy_to
from clue_ray.encoder.attention import attend
from clue_ray.encoder.blocks import compile_blocks
from clue_ray.encoder.loss import info_nce
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.feed import wait_for
from clue_ray.training.loop import Trainer, train_with
from tests.batches.test_device import same
from tests.encoder.test_attention import plain_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CARD, CPU = torch.device("cuda"), torch.device("cpu")
EVALUATION = EvaluationSpec(candidates=32)


def make_run(gpus: int = 1, precision: str = "fp32", steps: int = 20, **resources) -> RunSpec:
    return RunSpec(
        encoder=EncoderSpec(size="m", output_width=16, dropout=0.1),
        train=TrainSpec(
            global_batch_size=24,
            steps=steps,
            precision=precision,
            event_dropout=0.1,
            token_dropout=0.1,
        ),
        sequence_length=6,
        resources=ResourcesSpec(gpus_per_worker=gpus, **resources),
    )


def test_packing_on_the_card_has_the_bits_of_the_host(corpus):
    sampler, resident = BatchSampler(make_run(), corpus), ResidentCorpus(corpus, CARD)
    for step in range(20):
        drawn = sampler.batch(step)
        made = DeviceBatch(resident, drawn.windows, drawn.dropout, drawn.mask_false_negatives)
        rows = drawn.rows_of(0, 1)
        found, expected = copy_to(made.pack(rows), CPU), drawn.pack(rows)
        # Sums of the bag's weights are in another order on a card.
        weights = [packed.sequences.bag.weights for packed in (found, expected)]
        assert torch.allclose(*weights, rtol=1e-6)
        bag = found.sequences.bag._replace(weights=weights[1])
        assert same(found._replace(sequences=found.sequences._replace(bag=bag)), expected)
        assert made.work == drawn.work


def test_tensors_that_lie_on_the_card_are_not_copied_again():
    """A run's device is "cuda", and that of its tensors "cuda:0"."""
    there = torch.ones(3, device=CARD)
    assert copy_to((there,), torch.device("cuda"))[0] is there


@pytest.mark.parametrize("width", [8, 16, 32, 64, 128, 256, 264])
@pytest.mark.parametrize("longest", [20, 100])
def test_attention_is_that_of_each_sequence_alone(width, longest):
    lengths = np.sort(np.random.default_rng(0).integers(1, longest, 60))
    layout = copy_to(lay_out(group_lengths(lengths)), CARD)
    qkv = torch.randn(int(lengths.sum()), 3 * 2 * width, device=CARD, dtype=torch.bfloat16)
    results = []
    exact = qkv.double()
    paths = (lambda x: attend(x, layout, 2), lambda x: plain_attention(x, lengths, 2))
    for path, start in zip(paths, (qkv, exact), strict=True):
        leaf = start.clone().requires_grad_()
        found = path(leaf)
        found.square().sum(dtype=torch.float64).backward()
        results.append((found, leaf.grad))
    for one, other in zip(*results, strict=True):
        assert (one.double() - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("count", [21_846, 65_536, 100_000])
def test_any_number_of_items_is_attended(count):
    layout = copy_to(lay_out([(count, 80)]), CARD)  # too long for a tile
    qkv = torch.randn(
        layout.positions, 3 * 32, device=CARD, dtype=torch.bfloat16, requires_grad=True
    )
    attend(qkv, layout, 2).float().sum().backward()
    assert qkv.grad.isfinite().all()


def test_steps_on_the_card_equal_those_on_the_cpu(corpus):
    losses = [
        train_with(make_run(gpus), corpus, EVALUATION, LocalContext())[0].train_loss
        for gpus in (0, 1)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_state_is_the_same_on_either_device(corpus, tmp_path):
    saved = Trainer(make_run(), corpus, EVALUATION, LocalContext(tmp_path))
    saved.train()
    saved.context.flush()
    for gpus in (0, 1):
        resumed = Trainer(make_run(gpus), corpus, EVALUATION, LocalContext(tmp_path))
        assert resumed.state.step == 20
        assert same(
            copy_to(tuple(resumed.model.state_dict().values()), CPU),
            copy_to(tuple(saved.model.state_dict().values()), CPU),
        )


@pytest.mark.parametrize("resources", [{}, {"users_per_chunk": 5}])
def test_a_step_does_not_wait_for_the_card(corpus, resources):
    run = make_run(precision="bf16", **resources)
    trainer = Trainer(run, corpus, EVALUATION, LocalContext())
    for step in range(3):
        trainer.step(trainer.prepare(step))
    batch = trainer.prepare(3)
    torch.cuda.synchronize()
    trainer._read(all_but=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_chunks_and_compiled_blocks_have_the_same_gradient(corpus):
    gradients = []
    for resources in ({}, {"users_per_chunk": 5}):
        trainer = Trainer(make_run(**resources), corpus, EVALUATION, LocalContext())
        trainer._backward(trainer.prepare(0))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-4 * gradients[0].abs().max().item())
    batch = trainer.prepare(0)
    wait_for(batch)
    packed = batch.packed
    compiled = copy.deepcopy(trainer.model).eval()
    compile_blocks(compiled)
    results = [info_nce(*m(packed)[0].chunk(2), m.logit) for m in (trainer.model.eval(), compiled)]
    assert torch.allclose(*results, atol=1e-4)
