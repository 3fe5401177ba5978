"""Ray Data packs the same batches as a worker's own thread, from any step on."""

import os

import pytest
import ray
import torch
from ray.exceptions import WorkerCrashedError
from ray.util import placement_group, remove_placement_group
from torch.utils._pytree import tree_leaves

from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import open_corpus
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training import streams
from clue_ray.training.checkpoints import load_state, save_state
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


def train(place, folder, dies_at=None, feed="ray_data"):
    """Train RUN from a stream, or let its process die when it has kept the state of a step."""

    class Context(LocalContext):
        def source(self, pack):
            def refuse(step):
                raise AssertionError(f"step {step} was packed here")

            if feed == "worker":
                return pack
            return Stream(make_stream(RUN, place, folder, 0, 1).iterator(), refuse)

        def save(self, state, metrics):
            super().save(state, metrics)
            if metrics["step"] == dies_at:
                self.flush()
                os._exit(1)

    record, curve = train_with(
        RUN, open_corpus(place), EvaluationSpec(candidates=16, every=0.5), Context(folder)
    )
    columns = {"wall_seconds", "tokens_per_second", "started_at"}
    points = [[point["step"], point["loss"], point["train_loss"]] for point in curve]
    return record.model_dump(exclude=columns), points


def test_a_run_killed_within_its_stream_resumes_without_losing_a_digit(corpus, tmp_path):
    place, folder = str(corpus.path), str(tmp_path / "streamed")
    killed = ray.remote(num_cpus=0, max_retries=0)(train).remote(place, folder, dies_at=6)
    with pytest.raises(WorkerCrashedError):
        ray.get(killed)
    assert load_state(folder)["progress"]["step"] == 6
    assert train(place, folder) == train(place, str(tmp_path / "here"), feed="worker")


def test_a_packer_that_finds_no_core_is_not_waited_for_for_ever(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PACKER_SECONDS", 1)
    taken = placement_group([{"CPU": 2}])  # both cores
    ray.get(taken.ready())
    rows = make_stream(RUN, str(corpus.path), str(tmp_path), 0, 1).iterator()
    with pytest.raises(
        TimeoutError, match=r"No process that packs .* started in 1 s, .*feed to worker"
    ):
        Stream(rows, pytest.fail)(0)
    remove_placement_group(taken)
