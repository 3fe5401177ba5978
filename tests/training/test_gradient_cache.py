"""A batch in chunks has the gradient of the whole batch, on one worker and on two."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from clue_ray.batches.packing import pack
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import open_corpus
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import Work, forward_flops
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training import gradient_cache, loop
from clue_ray.training.context import LocalContext
from clue_ray.training.counters import Counters
from clue_ray.training.gradient_cache import cached_backward
from clue_ray.training.loop import Trainer, train_run
from clue_ray.training.memory import MemoryShare
from tests.gloo import on_workers

RUN = RunSpec(
    encoder=EncoderSpec(size="xs", output_width=16),
    train=TrainSpec(global_batch_size=24, steps=5),
    sequence_length=6,
)


def make_model(corpus) -> Encoder:
    model = Encoder(RUN.encoder, corpus.vocabulary(6), temperature=0.1, seed=3).double()
    with torch.no_grad():
        transformer = model.transformer  # what starts at zero would hide the rest
        for part in (transformer.event_position, transformer.output, model.mixer.down):
            part.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def share(corpus, rank):
    batch = BatchSampler(RUN, corpus).batch(0)
    return batch, batch.rows_of(rank, 2)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(found, expected):
    for name, gradient in expected.items():
        assert torch.allclose(
            found[name], gradient, rtol=1e-12, atol=1e-12 * gradient.abs().max().item()
        ), name
        assert gradient.abs().max() > 0 or name == "bias", name  # a softmax does not see the bias


@pytest.fixture(scope="module")
def plain(corpus):
    """Loss and gradients of one whole batch in float64."""
    model = make_model(corpus)
    users, scale = model(pack(corpus, BatchSampler(RUN, corpus).batch(0).windows))
    loss = info_nce(*users.chunk(2), scale)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("users_per_chunk", [1, 5, 12, 23])
def test_chunks_equal_the_whole(corpus, plain, users_per_chunk):
    model = make_model(corpus)
    batch = BatchSampler(RUN, corpus).batch(0)
    packed = batch.pack(np.arange(2 * 24))
    loss = cached_backward(model, packed, MemoryShare(users_per_chunk / 24), info_nce)
    assert loss.item() == pytest.approx(plain[0], abs=1e-12)
    assert_equal(gradients(model), plain[1])


def test_chunks_equal_the_whole_where_views_join_services(corpus):
    train = RUN.train.model_copy(update={"past_future": 1.0})
    batch = BatchSampler(RUN.model_copy(update={"train": train}), corpus).batch(0)
    packed = batch.pack(batch.rows_of(0, 1))
    whole, model = make_model(corpus), make_model(corpus)
    users, scale = whole(packed)
    assert len(users) == 48 < len(packed.order)
    loss = info_nce(*users.chunk(2), scale)
    loss.backward()
    cached = cached_backward(model, packed, MemoryShare(0.2), info_nce)
    assert cached.item() == pytest.approx(loss.item(), abs=1e-12)
    assert_equal(gradients(model), gradients(whole))


def test_accumulation_without_the_cache_is_another_gradient(corpus, plain):
    model = make_model(corpus)
    for rank in range(2):  # a control: the check has power
        batch, rows = share(corpus, rank)
        users, scale = model(batch.pack(rows))
        (info_nce(*users.chunk(2), scale) / 2).backward()
    name = "transformer.service_blocks.0.query_key_value.weight"
    difference = (gradients(model)[name] - plain[1][name]).norm() / plain[1][name].norm()
    assert difference > 0.01


def chunked_gradients(rank, world_size, path):
    corpus = open_corpus(path, verify=False)
    model = make_model(corpus)
    batch, rows = share(corpus, rank)
    cached_backward(model, batch.pack(rows), MemoryShare(5 / 12), info_nce)
    return {name: gradient.numpy() for name, gradient in gradients(model).items()}


@pytest.mark.slow
def test_chunks_on_two_workers_equal_one_process(corpus, plain):
    found = on_workers(2, chunked_gradients, corpus.path)
    assert_equal({name: torch.from_numpy(gradient) for name, gradient in found.items()}, plain[1])


def hook_on_cpus(state, bucket):
    """DDP knows the hook by its name and refuses it without NCCL; gloo sums bf16 as well."""
    return bf16_compress_hook(state, bucket)


def averaged_gradients(rank, world_size, path, half):
    """Return what two workers average, whole and in chunks, as on GPUs in bf16 if `half`."""
    corpus, found = open_corpus(path, verify=False), []
    for users in ("auto", 5):
        run = RUN.model_copy(update={"resources": ResourcesSpec(users_per_chunk=users)})
        context = LocalContext(rank=rank, world_size=world_size)
        trainer = Trainer(run, corpus, EvaluationSpec(candidates=32), context)
        with (
            patch.object(loop, "reduces_in_bf16", lambda model: half),
            patch.object(loop, "bf16_compress_hook", hook_on_cpus),
            patch.object(gradient_cache, "reduces_in_bf16", lambda model: half),
        ):
            trainer._backward(trainer.prepare(0))
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).numpy())
    return found


@pytest.mark.slow
def test_gradients_that_travel_in_bf16_are_those_of_one_process(corpus):
    expected = averaged_gradients(0, 1, corpus.path, half=False)
    for half, least, most in ((False, 0, 1e-5), (True, 1e-5, 1e-2)):
        found = on_workers(2, averaged_gradients, corpus.path, half)
        for one, other in zip(found, expected, strict=True):
            assert least <= np.linalg.norm(one - other) / np.linalg.norm(other) <= most


def test_a_run_in_chunks_ends_like_the_whole(corpus):
    evaluation = EvaluationSpec(candidates=32)
    whole = train_run(RUN, corpus, evaluation)
    in_chunks = RUN.model_copy(update={"resources": ResourcesSpec(users_per_chunk=7)})
    chunked = train_run(in_chunks, corpus, evaluation)
    assert chunked.run_id == whole.run_id
    assert chunked.train_flops == whole.train_flops
    # In fp32, AdamW's first steps turn rounding of vanishing gradients into steps of full size.
    assert chunked.loss == pytest.approx(whole.loss, abs=1e-4)
    # Each item is encoded once as before, and passes forward a second time.
    assert 1.3 < chunked.executed_flops / whole.executed_flops < 4 / 3


def test_the_second_forward_pass_is_counted():
    work = Work(users=16, events=64, events_squared=256, tokens=300, tokens_squared=1500)
    for cached, passes in ((False, 3), (True, 4)):
        counters = Counters()
        counters.add(work, work, 1.0, 0, users=8, cached=cached)
        assert Counters.from_dict(counters.to_dict()).executed_flops(RUN) == passes * forward_flops(
            RUN.encoder, work
        )


def test_a_full_device_is_answered_by_smaller_chunks(corpus, plain, monkeypatch):
    """Nothing that was encoded before the error may be left in the gradient."""
    model, encode, most = make_model(corpus), Encoder.encode_items, 60

    def limited(self, items, masks=None):
        if torch.is_grad_enabled() and len(items.tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, items, masks)

    monkeypatch.setattr(Encoder, "encode_items", limited)
    packed = BatchSampler(RUN, corpus).batch(0).pack(np.arange(2 * 24))
    memory = MemoryShare(1.0, adapts=True)
    loss = cached_backward(model, packed, memory, info_nce)
    assert memory.share <= most / packed.items.layout.positions
    assert loss.item() == pytest.approx(plain[0], abs=1e-12)
    assert_equal(gradients(model), plain[1])
    with pytest.raises(torch.OutOfMemoryError):
        cached_backward(model, packed, MemoryShare(1.0), info_nce)
