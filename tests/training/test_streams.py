"""Ray Data packs the same batches as a worker's own thread, from any step on."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from clue_ray.batches.sampler import BatchSampler
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training.checkpoints import save_state
from clue_ray.training.context import LocalContext
from clue_ray.training.feed import pack_share
from clue_ray.training.loop import train_with
from clue_ray.training.streams import Stream, make_stream

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
RUN = RunSpec(
    encoder={"time": True},
    train=TrainSpec(
        steps=11, global_batch_size=16, token_dropout=0.1, event_dropout=0.2, past_future=0.4
    ),
    sequence_length=4,
    resources=ResourcesSpec(users_per_chunk=3),
)


def tensors(batch):
    """List the bytes of all tensors of a batch, and what else it says."""
    return [
        part.numpy().tobytes() if isinstance(part, torch.Tensor) else part
        for part in tree_leaves(batch)
    ]


def test_a_stream_holds_the_batches_from_the_checkpoint_on(corpus, tmp_path):
    save_state(tmp_path, {"progress": {"step": 3}})
    sampler, here = BatchSampler(RUN, corpus), []

    def prepare(step):
        here.append(step)
        return pack_share(sampler, 1, 2, step)

    stream = make_stream(RUN, str(corpus.path), str(tmp_path), rank=1, world_size=2)
    share_of = Stream(stream.iterator(), prepare)
    found = {step: tensors(share_of(step)) for step in (2, 3, 4, 5, 8, 9, 10)}
    assert here == [2]  # before the checkpoint, so packed here
    assert found == {step: tensors(prepare(step)) for step in found}


def test_training_from_a_stream_loses_no_digit(corpus, tmp_path):
    class Streamed(LocalContext):
        def source(self, pack):
            return Stream(make_stream(RUN, str(corpus.path), str(tmp_path), 0, 1).iterator(), pack)

    columns = {"wall_seconds", "tokens_per_second", "started_at"}
    curves, records = [], []
    for context in (LocalContext(), Streamed(str(tmp_path))):
        record, curve = train_with(RUN, corpus, EvaluationSpec(candidates=16), context)
        records.append(record.model_dump(exclude=columns))
        curves.append([[point["loss"], point["train_loss"]] for point in curve])
    assert records[0] == records[1]
    assert curves[0] == curves[1]
