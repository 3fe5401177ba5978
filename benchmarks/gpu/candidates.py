"""Candidates: each faster path of the training step against the one that it replaced."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run, make_trainer, time_ms
from benchmarks.gpu.speed import measure_steps
from clue_ray.batches.device import DeviceBatch, ResidentCorpus
from clue_ray.batches.layout import group_lengths, lay_out
from clue_ray.batches.transfer import copy_to
from clue_ray.corpus.store import Corpus
from clue_ray.encoder import attention, blocks, transformer
from clue_ray.encoder.attention import attend, attend_by_length
from clue_ray.encoder.tiles import has_triton, with_tiles
from clue_ray.training import feed
from clue_ray.training.loop import Trainer

FASTER_SMALL = 20
"""Steps per second of `s` that the new path must have, in those of the earlier one."""


def run(record: Recorder, setting: Setting) -> None:
    """Compare one path after the other, then whole steps."""
    corpus = make_corpus(setting, "zipf")
    _compare_whole_steps(record, setting, corpus)
    _compare_packers(record, setting, corpus)
    _compare_gradients(record, setting, "event items", _look_up_items)
    _compare_gradients(record, setting, "segment mean", _average)
    _compare_gradients(record, setting, "attention of items", _attend)
    _compare_compiled(record, setting, corpus)


@contextmanager
def earlier_path(trainer: Trainer) -> Iterator[None]:
    """Train as before this path was built: packed on the host, copied and read with waiting."""
    trainer.prepare.resident, trainer.lag = None, 0
    with ExitStack() as stack:
        for module, name, replaced in (
            (transformer.F, "embedding", lambda index, table: table[index]),
            (blocks, "_segment_mean", _mean_by_loops),
            (attention, "has_triton", lambda: False),
            (feed, "copy_to", _copy_pageable),
        ):
            # `nn.Embedding` calls the same function with more arguments; those stay.
            if name == "embedding":
                plain = F.embedding
                replaced = lambda index, table, *more, plain=plain: (  # noqa: E731
                    plain(index, table, *more) if more else table[index]
                )
            stack.enter_context(patch.object(module, name, replaced))
        yield


def _mean_by_loops(x: Tensor, layout: Any) -> Tensor:
    sizes = [count * length for count, length in layout.groups]
    parts = zip(x.split(sizes), layout.groups, strict=True)
    return torch.cat([part.view(count, length, -1).mean(1) for part, (count, length) in parts])


def _copy_pageable(batch: Any, device: torch.device) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, batch)


def _compare_whole_steps(record: Recorder, setting: Setting, corpus: Corpus) -> None:
    """Train steps of small encoders as before and as now, in one process."""
    for size, batch in (("xs", 16),) if setting.dry else (("s", 4096), ("l", 1024)):
        run = make_run(setting, size, batch, "bf16")
        trainer = make_trainer(run, corpus)
        with earlier_path(trainer):
            before = measure_steps(trainer, setting.device, None)
        after = measure_steps(make_trainer(run, corpus), setting.device, None)
        gain = before["step_ms"] / after["step_ms"]
        required = size == "s" and not setting.dry
        record(
            f"step of {size}, B {batch}",
            gain >= FASTER_SMALL if required else None,
            before_ms=before["step_ms"],
            after_ms=after["step_ms"],
            gain=gain,
        )


def _compare_packers(record: Recorder, setting: Setting, corpus: Corpus) -> None:
    """Pack one batch with numpy and on the device: bits of all integers, and milliseconds."""
    trainer = make_trainer(make_run(setting, "xs", 16 if setting.dry else 4096), corpus)
    resident = ResidentCorpus(corpus, setting.device)
    drawn = trainer.sampler.batch(0)
    rows = drawn.rows_of(0, 1)

    def on_device() -> Any:
        made = DeviceBatch(resident, drawn.windows, drawn.dropout, drawn.mask_false_negatives)
        return made.pack(rows), made.work, made.duplicate_ids

    def on_host() -> Any:
        made = trainer.sampler.batch(0)
        return made.pack(rows), made.work, made.duplicate_ids

    expected, found = on_host()[0], copy_to(on_device()[0], torch.device("cpu"))
    same = all(
        torch.equal(a, b) if not a.is_floating_point() else torch.allclose(a, b, rtol=1e-6)
        for a, b in zip(_tensors(found), _tensors(expected), strict=True)
    )
    before, after = (time_ms(work, setting.device, 5, 1) for work in (on_host, on_device))
    record("packing", same, before_ms=before, after_ms=after, gain=before / after)


def _tensors(batch: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [part for part in tree_leaves(batch) if isinstance(part, Tensor)]


Paths = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]
"""The earlier path, the new one, and their input."""


def _compare_gradients(
    record: Recorder, setting: Setting, name: str, make: Callable[[Setting], Paths]
) -> None:
    """Compare results, gradients and milliseconds of two paths, forward and backward."""
    *paths, source = make(setting)
    results, taken = [], []
    for path in paths:
        leaf = source.detach().clone().requires_grad_()

        def both(path: Any = path, leaf: Tensor = leaf) -> Tensor:
            leaf.grad = None
            found = path(leaf)
            found.float().square().sum().backward()
            return found

        taken.append(time_ms(both, setting.device))
        results.append((both().float(), leaf.grad.float()))
    errors = [
        ((a - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in zip(*results, strict=True)
    ]
    allowed = 2e-2 if source.dtype == torch.bfloat16 else 1e-4
    record(
        name,
        max(errors) <= allowed,
        before_ms=taken[0],
        after_ms=taken[1],
        gain=taken[0] / taken[1],
        error=max(errors),
    )


def _look_up_items(setting: Setting) -> Paths:
    """Items of events, with the repetitions of a Zipf catalogue."""
    items, events, width = (50, 300, 8) if setting.dry else (100_000, 262_144, 768)
    rng = np.random.default_rng(0)
    ranks = np.exp(rng.random(events) * np.log(items)).astype(np.int64).clip(max=items - 1)
    index = torch.from_numpy(ranks).to(setting.device)
    table = torch.randn(items, width, device=setting.device)
    return lambda t: t[index], lambda t: F.embedding(index, t), table


def _average(setting: Setting) -> Paths:
    lengths = np.sort(np.random.default_rng(0).integers(1, 129, 20 if setting.dry else 8192))
    layout = copy_to(lay_out(group_lengths(lengths)), setting.device)
    x = torch.randn(layout.positions, 8 if setting.dry else 128, device=setting.device)
    return lambda t: _mean_by_loops(t, layout), lambda t: blocks._segment_mean(t, layout), x


def _attend(setting: Setting) -> Paths:
    """Items of 14 to 18 tokens; without a card and Triton, the same path twice."""
    lengths = np.sort(np.random.default_rng(0).integers(14, 19, 20 if setting.dry else 20_000))
    layout = with_tiles(copy_to(lay_out(group_lengths(lengths)), setting.device))
    heads, width = (2, 16) if setting.dry else (12, 768)
    qkv = torch.randn(layout.positions, 3 * width, device=setting.device, dtype=torch.bfloat16)
    if setting.dry or not has_triton():
        return (
            lambda t: attend_by_length(t, layout.groups, heads),
            lambda t: attend(t, layout, heads),
            qkv,
        )
    return (
        lambda t: attention.attend_by_varlen(t, layout, heads),
        lambda t: attend(t, layout, heads),
        qkv,
    )


def _compare_compiled(record: Recorder, setting: Setting, corpus: Corpus) -> None:
    """Train steps with and without compiled blocks; nothing is compiled in a dry run."""
    if setting.dry:
        return
    taken = []
    for compiles in (False, True):
        run = make_run(setting, "clue-110m", 256, "bf16", compile=compiles)
        trainer = make_trainer(run, corpus)
        taken.append(measure_steps(trainer, setting.device, None)["step_ms"])
    record("compiled blocks", None, before_ms=taken[0], after_ms=taken[1], gain=taken[0] / taken[1])
