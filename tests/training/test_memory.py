"""A GPU that is full is answered by less at a time, here by errors that a CPU is made to raise."""

from types import SimpleNamespace

import pytest
import torch

from clue_ray.batches.bag import Bag
from clue_ray.batches.device import DeviceBatch, ResidentCorpus
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training import loop
from clue_ray.training.context import LocalContext
from clue_ray.training.device import explaining_memory
from clue_ray.training.loop import Trainer
from clue_ray.training.memory import MemoryShare, share_that_fits, times_that_fit
from tests.batches.test_device import same

FULL = torch.OutOfMemoryError("CUDA out of memory")


def make_run(precision="fp32", size="xs", **resources) -> RunSpec:
    return RunSpec(
        encoder=EncoderSpec(size=size, output_width=16, bag=size == "xs"),
        train=TrainSpec(steps=4, global_batch_size=24, precision=precision),
        sequence_length=6,
        resources=ResourcesSpec(**resources),
    )


def make_trainer(corpus, context=None, **resources) -> Trainer:
    evaluation = EvaluationSpec(candidates=32)
    return Trainer(make_run(**resources), corpus, evaluation, context or LocalContext())


def test_the_share_that_fits_a_card():
    packed = SimpleNamespace(
        items=SimpleNamespace(layout=SimpleNamespace(positions=4_460_000)),
        sequences=SimpleNamespace(layout=SimpleNamespace(positions=262_144)),
    )
    free = 70 * 10**9
    fits = times_that_fit(make_run("bf16", "clue-110m"), packed, free)
    assert 0.05 < fits < 0.1  # about 575 GB of activations for 1,024 users
    in_fp32 = times_that_fit(make_run("fp32", "clue-110m"), packed, free)
    assert in_fp32 == pytest.approx(fits / 2)
    assert times_that_fit(make_run("bf16"), packed, free) > 1


def test_several_workers_encode_a_batch_whole_only_by_a_margin():
    assert [share_that_fits(fits, 1) for fits in (0.1, 0.9, 1.1, 3.0)] == [0.1, 0.9, 1, 1]
    assert [share_that_fits(fits, 2) for fits in (0.1, 0.9, 1.9, 2.0)] == [0.1, 0.5, 0.5, 1]


def test_a_gpu_without_room_for_a_batch_is_asked_again_with_less(corpus):
    trainer, errors = make_trainer(corpus), [FULL, FULL]

    def batches(step):
        if errors:
            raise errors.pop()
        return step

    trainer.memory = MemoryShare(1.0, adapts=True)
    assert trainer._next_batch(batches) == 0
    assert trainer.memory.share == 0.25
    errors.append(FULL)
    trainer.context = LocalContext(world_size=2)
    assert trainer._next_batch(batches) == 0  # in chunks each worker may halve its own
    assert trainer.memory.share == 0.125
    errors.append(FULL)
    trainer.memory = MemoryShare(1.0, adapts=True)
    with pytest.raises(torch.OutOfMemoryError):
        trainer._next_batch(batches)
    assert trainer.memory.share == 1


def test_what_a_gpu_cannot_pack_the_host_packs(corpus, monkeypatch, caplog):
    trainer = make_trainer(corpus)
    expected = trainer.prepare(2)

    def full(*args):
        raise FULL

    monkeypatch.setattr(DeviceBatch, "pack", full)
    trainer.prepare.resident = ResidentCorpus(corpus, torch.device("cpu"))
    assert same(trainer.prepare(2), expected)
    assert trainer.prepare.resident is None
    assert "the host packs them" in caplog.text


def test_an_evaluation_that_does_not_fit_encodes_fewer_users(corpus, monkeypatch):
    trainer, asked, evaluate = make_trainer(corpus), [], loop.evaluate

    def limited(model, *args):
        asked.append(args[-1])
        if asked[-1] > 100:
            model.eval()
            raise FULL
        return evaluate(model, *args)

    trainer.memory = MemoryShare(1.0, adapts=True)
    monkeypatch.setattr(loop, "evaluate", limited)
    for _ in range(2):
        trainer._evaluate()
    assert asked == [256, 128, 64, 64]
    assert trainer.memory.share == 1  # other workers, which do not evaluate, keep theirs
    assert trainer.model.training
    trainer = make_trainer(corpus)
    trainer.memory = MemoryShare(0.1, adapts=True)
    trainer._evaluate()
    assert asked[-1] == 25


def test_batches_are_cut_where_they_are_packed(corpus, monkeypatch):
    """The bounds of a bag cross to the host, for which a step on a GPU would wait."""
    trainer, again = (make_trainer(corpus, users_per_chunk=5) for _ in range(2))
    for each in (trainer, again):
        each.step(each.prepare(0))  # says how much is encoded at a time
    batch = trainer.prepare(1)
    assert len(batch.chunks.sequences) > 3
    again.step(batch._replace(chunks=None))

    def split(*args):
        raise AssertionError("a step splits a bag")

    monkeypatch.setattr(Bag, "split", split)
    trainer.step(batch)
    assert same(tuple(trainer.model.parameters()), tuple(again.model.parameters()))


def test_a_driver_without_memory_is_told_as_such():
    told = pytest.raises(MemoryError, match="Out of memory: global_batch_size 24")
    with told, explaining_memory(make_run(), 1):
        raise RuntimeError("Triton Error [CUDA]: out of memory")
