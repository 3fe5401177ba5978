"""One worker's shares of the global batches: drawn, packed and on its device before they train.

A thread does all of it while the model trains. On a GPU it packs on the card if the corpus fits
there (`batches/device.py`). Otherwise it packs with numpy, and the copies start in pinned memory.
Either way the work runs on a stream of its own, so that training does not wait for it.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import torch

from clue_ray.batches.device import DeviceBatch, ResidentCorpus
from clue_ray.batches.packing import Packed
from clue_ray.batches.sampler import BatchSampler, GlobalBatch
from clue_ray.batches.transfer import copy_to, keep_for
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.model import Encoder
from clue_ray.spec.compute import Work
from clue_ray.training.device import free_bytes
from clue_ray.training.gradient_cache import Chunks

logger = logging.getLogger(__name__)
Prepared = TypeVar("Prepared")
RESIDENT_SHARE = 0.25
"""Share of a GPU's free memory that the corpus may take; a larger one is packed on the host."""


class Prefetch(Generic[Prepared]):
    """Calls `prepare(step)` up to `ahead` steps early; a context that ends its thread.

    A batch is a function of its step alone (decision D7), so a checkpoint need not hold what was
    prepared.
    """

    def __init__(self, prepare: Callable[[int], Prepared], last: int, ahead: int = 2):
        self.prepare, self.last, self.ahead = prepare, last, ahead
        self.pool = ThreadPoolExecutor(1, initializer=_use_device, initargs=(_current_device(),))
        self.waiting: dict[int, Future[Prepared]] = {}

    def __enter__(self) -> "Prefetch[Prepared]":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Prepared:
        """Return the batch of a step, and start preparing the next ones."""
        for coming in range(step, min(step + self.ahead, self.last - 1) + 1):
            if coming not in self.waiting:
                self.waiting[coming] = self.pool.submit(self.prepare, coming)
        return self.waiting.pop(step).result()


def _current_device() -> int | None:
    """Return the index of the GPU that this thread uses; None without one."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.cuda.current_device() if used else None


def _use_device(index: int | None) -> None:
    """Use a GPU in this thread: the current one is a thread's own, and starts as the first."""
    if index is not None:
        torch.cuda.set_device(index)


class Batch(NamedTuple):
    """One worker's share of a global batch."""

    packed: Packed
    duplicate_ids: torch.Tensor | None
    "as in `GlobalBatch`, in the order in which the embeddings of all workers are gathered"
    work: Work
    "of the whole batch"
    masked_pairs: int
    is_cut_in_time: bool
    "these two as in `GlobalBatch`"
    masks: torch.Tensor | None = None
    "dropout masks of the step"
    chunks: Chunks | None = None
    "what of it is encoded at once, where that is known and not all of it"
    ready: torch.cuda.Event | None = None
    "on a GPU, when the batch is there"


Pack = Callable[[int], Batch]
"""Returns the share of a step; steps are asked for in order."""


def pack_share(
    sampler: BatchSampler,
    rank: int,
    world_size: int,
    step: int,
    *,
    resident: ResidentCorpus | None = None,
) -> Batch:
    """Draw global batch `step` and pack one worker's share of it.

    Args:
        sampler: draws the batch.
        rank: of the worker.
        world_size: number of workers.
        step: number of the batch.
        resident: the corpus on a device, to pack there instead of with numpy.
    """
    drawn = sampler.batch(step)
    made: GlobalBatch | DeviceBatch = drawn
    if resident is not None:
        mask = drawn.mask_false_negatives
        made = DeviceBatch(resident, drawn.windows, drawn.dropout, mask, drawn.views, drawn.cuts)
    packed = made.pack(drawn.rows_of(rank, world_size))
    ids = None if made.duplicate_ids is None else torch.as_tensor(made.duplicate_ids)
    if ids is not None and world_size > 1:
        ids = ids[torch.from_numpy(drawn.deal(world_size).ravel())]
    return Batch(packed, ids, made.work, made.masked_pairs, drawn.is_cut_in_time)


class Feed:
    """Gives one worker its batches, on its device.

    Args:
        sampler: draws the global batches.
        share: rank of the worker and number of workers.
        source: chooses who packs, given how this process would do it.
        model: draws the dropout masks, and needs the batches on its device.
        cut: cuts a share for gradient caching, or returns None.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        share: tuple[int, int],
        source: Callable[[Pack], Pack],
        model: Encoder,
        cut: Callable[[Packed], Chunks | None],
    ):
        self.device = device = model.log_scale.device
        self.draw_masks, self.cut = model.draw_masks, cut
        self.resident: ResidentCorpus | None = None
        # Packing is many small kernels that the host waits for; training is few large ones.
        on_gpu = device.type == "cuda"
        self.copies = torch.cuda.Stream(device, priority=-1) if on_gpu else None

        def pack(step: int) -> Batch:
            return pack_share(sampler, *share, step, resident=self.resident)

        self.source = source(pack)
        if self.copies is not None and self.source is pack:
            self._keep_resident(sampler.corpus, times=sampler.reads_time)

    def _keep_resident(self, corpus: Corpus, *, times: bool) -> None:
        """Copy the corpus to the GPU if it is small enough."""
        if ResidentCorpus.size(corpus, times=times) < RESIDENT_SHARE * free_bytes(self.device):
            self.resident = ResidentCorpus(corpus, self.device, times=times)

    def __call__(self, step: int) -> Batch:
        """Return this worker's share of a global batch; numpy packs it once the GPU is too full."""
        try:
            return self._prepare(step)
        except torch.OutOfMemoryError:
            if self.resident is None:
                raise
        # Outside the handler: the traceback would keep the tensors of the failed call.
        logger.warning("The GPU has no room left to pack batches on it; the host packs them.")
        self.resident = None
        torch.cuda.empty_cache()
        return self._prepare(step)

    def _prepare(self, step: int) -> Batch:
        if self.copies is None:
            return self._make(step)
        with torch.cuda.stream(self.copies):
            batch = self._make(step)
            ready = torch.cuda.Event()
            ready.record(self.copies)
        return batch._replace(ready=ready)

    def _make(self, step: int) -> Batch:
        share = self.source(step)
        share = share._replace(masks=self.draw_masks(share.packed.mask_key))
        share = copy_to(share, self.device)
        return share._replace(chunks=self.cut(share.packed))


def wait_for(batch: Batch) -> None:
    """Let the current stream of a GPU wait for a batch's copies; the host does not wait."""
    if batch.ready is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(batch.ready)
        keep_for(batch, stream)
