"""What the phases share: the device, sizes for a card and a dry run, a corpus, timing."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.corpus.store import Corpus
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, ResourcesSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import Trainer

WARM_UPS, REPEATS = 3, 5
SERVICES = 2
CATALOGUES = ("uniform", "zipf")


class Setting(NamedTuple):
    """Where a phase runs, and how large."""

    dry: bool
    device: torch.device
    users: int
    items: int
    events: int
    "per user and service"
    tokens: int
    "size of the vocabulary"

    @property
    def gpus(self) -> int:
        """GPUs that a run asks for."""
        return int(self.device.type == "cuda")


def choose_setting(dry: bool) -> Setting:
    """Return the sizes of the acceptance run, or tiny ones on the CPU."""
    if dry:
        return Setting(True, torch.device("cpu"), 400, 300, 6, 500)
    return Setting(False, torch.device("cuda"), 200_000, 1_000_000, 130, 50_256)


class MemoryCorpus(Corpus):
    """A corpus in memory, whose users all have events in both services."""

    def training_pool(self, pair: tuple[int, int], users: int | None) -> NDArray[np.int64]:
        """Return the positions of all training users, or of the first."""
        return np.arange(len(self.train_users))[:users]

    def held_out_pool(
        self, split: str, pair: tuple[int, int], places: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.int64]:
        """Return all users of a split, or those at some places."""
        return getattr(self, f"{split}_users")[places]


def make_corpus(setting: Setting, catalogue: str = "uniform") -> Corpus:
    """Draw a corpus in memory: items of 13 to 17 tokens, events from a uniform or Zipf catalogue.

    Log-uniform ranks have the density 1 / rank, which is Zipf's law.
    """
    rng = np.random.default_rng(0)
    services = [f"service {number}" for number in range(SERVICES)]
    manifest = {
        "digest": f"memory-{catalogue}",
        "services": services,
        "vocab_size": setting.tokens + SERVICES,
        "max_item_tokens": 17,
    }
    corpus = MemoryCorpus(Path(), manifest)
    events = setting.users * SERVICES * setting.events
    if catalogue == "zipf":
        ranks = np.exp(rng.random(events, np.float32) * np.float32(np.log(setting.items)))
        corpus.events = np.minimum(ranks.astype(np.int32) - 1, setting.items - 1)
    else:
        corpus.events = rng.integers(setting.items, size=events, dtype=np.int32)
    corpus.offsets = np.arange(0, events + 1, setting.events)
    corpus.user_ids = np.arange(setting.users)
    _draw_items(corpus, setting, rng)
    held_out = max(64, setting.users // 100)
    order = rng.permutation(setting.users)
    corpus.test_users = np.sort(order[:held_out])
    corpus.validation_users = np.sort(order[held_out : 2 * held_out])
    corpus.train_users = order[2 * held_out :]
    # Every user has as many events, of about as many tokens.
    tokens = SERVICES * setting.events * len(corpus.item_tokens) // setting.items
    corpus.train_tokens = tokens * np.arange(len(corpus.train_users) + 1)
    lengths = np.diff(corpus.item_offsets).astype(np.int8)
    tokens = lengths[corpus.events].reshape(setting.users, -1).sum(axis=1, dtype=np.int64)
    corpus.train_tokens = np.append(0, np.cumsum(tokens[corpus.train_users]))
    corpus.layout = EveryUser(corpus)
    return corpus


class EveryUser:
    """The pools of a corpus in memory, all of whose users have events in every service."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def pool(self, split: str, pair: tuple[int, int]) -> np.ndarray:
        """Return the positions of all users of a split."""
        return np.arange(len(getattr(self.corpus, f"{split}_users")))


def _draw_items(corpus: Corpus, setting: Setting, rng: np.random.Generator) -> None:
    lengths = rng.integers(13, 18, setting.items)
    corpus.item_offsets = np.concatenate([[0], np.cumsum(lengths)])
    corpus.item_tokens = rng.integers(setting.tokens, size=corpus.item_offsets[-1], dtype=np.int32)
    # An item's guide token names its service; items alternate, which nothing here depends on.
    corpus.item_tokens[corpus.item_offsets[:-1]] = (
        setting.tokens + np.arange(setting.items) % SERVICES
    )


def make_run(
    setting: Setting,
    size: str,
    batch: int,
    precision: str = "fp32",
    steps: int = 100_000,
    gpus: int | None = None,
    **resources,
) -> RunSpec:
    """Describe a run of 128 events, or of as many as a dry run's histories have."""
    gpus = setting.gpus if gpus is None else gpus
    return RunSpec(
        encoder=EncoderSpec(size=size),
        train=TrainSpec(global_batch_size=batch, steps=steps, precision=precision),
        sequence_length=min(128, setting.events),
        resources=ResourcesSpec(gpus_per_worker=gpus, **resources),
    )


def make_trainer(run: RunSpec, corpus: Corpus, place: Path | None = None) -> Trainer:
    """Make a trainer on a corpus; it restores the state of a place that has one."""
    return Trainer(run, corpus, EvaluationSpec(candidates=64), LocalContext(place))


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_ms(
    work: Callable[[], object],
    device: torch.device,
    repeats: int = REPEATS,
    warm_ups: int = WARM_UPS,
) -> float:
    """Return the median wall milliseconds of calls, each until the device is idle again."""
    for _ in range(warm_ups):
        work()
    synchronise(device)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        synchronise(device)
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes of tensors since the last call, and reset the peak."""
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
