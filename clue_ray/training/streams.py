"""Ray Data packs the batches that a worker trains on: `resources.feed: ray_data`.

A worker packs its own batches in a thread. Where its node has few cores for its GPU, that thread is
slower than the GPU. A dataset of step numbers is then packed by a pool of tasks on any node with
free cores (the data pool, if there is one), in order, with one stream per worker. Global batch k is
a function of its step alone (decision D7), so the batches are the same, and a stream starts at the
step from which a run resumes.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions
from ray.exceptions import GetTimeoutError

from clue_ray.batches.bag import Bag
from clue_ray.batches.layout import Layout
from clue_ray.batches.packing import Items, Packed, Sequences
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import open_corpus
from clue_ray.spec.compute import Work
from clue_ray.spec.specs import RunSpec
from clue_ray.training.checkpoints import load_state
from clue_ray.training.feed import Batch, pack_share
from clue_ray.training.schedule import resolve_steps

STEPS_PER_TASK = 4
"""Batches that one task packs; small ones would cost more to schedule than to pack."""
PACKERS = 4
"""Most processes that pack for one worker; Ray Data starts them where cores are free."""
AHEAD = 2
"""Batches that a worker fetches early."""
PACKER_SECONDS = 600
"""Longest wait for the first process that packs; Ray Data's own has no end."""
TUPLES: dict[str, Any] = {
    kind.__name__: kind for kind in (Batch, Packed, Items, Sequences, Layout, Bag, Work)
}
"""The named tuples that a share is made of."""


class Packer:
    """A process that packs one worker's shares of global batches, from step `first` on."""

    def __init__(self, run: dict[str, Any], corpus: str, rank: int, world_size: int, first: int):
        self.run = RunSpec(**run)
        self.sampler = BatchSampler(self.run, open_corpus(corpus, verify=False))
        self.rank, self.world_size, self.first = rank, world_size, first

    def __call__(self, rows: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        """Yield a row per step: its number and its packed share."""
        for step in (self.first + rows["id"]).tolist():
            share = pack_share(self.sampler, self.rank, self.world_size, step)
            yield pa.table({"step": [step], "share": pa.array([_write(share)], pa.large_binary())})


def make_stream(run: RunSpec, corpus: str, checkpoints: str, rank: int, world_size: int) -> Dataset:
    """Make the dataset of one worker's batches, from the last checkpoint of the run to its end.

    Args:
        corpus: folder or URI that the packing nodes can read.
        checkpoints: folder or URI of the run's states.
    """
    steps = resolve_steps(run, BatchSampler(run, open_corpus(corpus, verify=False)))
    state = load_state(checkpoints, where="meta")
    first = min(state["progress"]["step"] if state else 0, steps - 1)
    tasks = -(-(steps - first) // STEPS_PER_TASK)
    packed = ray.data.range(steps - first, override_num_blocks=tasks).map_batches(
        Packer,
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=PACKERS),
        num_cpus=1,
        fn_constructor_args=(run.model_dump(mode="json"), corpus, rank, world_size, first),
    )
    packed.context.execution_options = ordered()
    packed.context.wait_for_min_actors_s = PACKER_SECONDS
    return packed


def ordered() -> ExecutionOptions:
    """Return options that keep the order of steps, on the nodes that Ray Data may use."""
    selector = DataContext.get_current().execution_options.label_selector
    return ExecutionOptions(preserve_order=True, label_selector=selector)


def _write(share: Batch) -> memoryview:
    """Write a share in torch's format, from which only tensors and plain values can be read."""
    file = io.BytesIO()
    torch.save(_to_plain(share), file)
    return file.getbuffer()


def _read(content: pa.Buffer) -> Batch:
    share: Batch = _from_plain(torch.load(io.BytesIO(content), weights_only=True))
    return share


def _to_plain(value: Any) -> Any:
    """Replace named tuples by their name and values."""
    if type(value).__name__ in TUPLES:
        return {type(value).__name__: [_to_plain(part) for part in value]}
    return [_to_plain(part) for part in value] if isinstance(value, list) else value


def _from_plain(value: Any) -> Any:
    """Undo `_to_plain`."""
    if isinstance(value, dict):
        ((name, content),) = value.items()
        return TUPLES[name](*map(_from_plain, content))
    return [_from_plain(part) for part in value] if isinstance(value, list) else value


class Stream:
    """Takes a worker's shares from its dataset, step by step.

    A dataset may start after the step that is asked for, if its checkpoint was damaged; those
    shares are packed here.

    Args:
        rows: of `make_stream`.
        pack: packs a share in this process.
    """

    def __init__(self, rows: DataIterator, pack: Callable[[int], Batch]):
        self.pack = pack
        self.rows = iter(
            rows.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=AHEAD)
        )
        self.step, self.row = -1, pa.table({})

    def __call__(self, step: int) -> Batch:
        """Return the share of a step; steps may not go back.

        Raises:
            TimeoutError: no process that packs has started for long; like other trouble outside
                the run, it lets Ray Tune start the run again.
        """
        while self.step < step:
            self.row = self._next_row()
            self.step = self.row["step"][0].as_py()
        if self.step > step:
            return self.pack(step)
        return _read(self.row["share"][0].as_buffer())

    def _next_row(self) -> pa.Table:
        try:
            return next(self.rows)
        except GetTimeoutError:
            raise TimeoutError(
                f"No process that packs batches has started in {PACKER_SECONDS} s, as no node "
                f"where Ray Data runs has a free core; run again when the cluster is less busy, or "
                f"set resources.feed to worker."
            ) from None
