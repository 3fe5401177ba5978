"""Speed: by size, batch and catalogue, what a step takes and what of it the card works.

`asked` FLOPs are those of the mathematics, every event's item counted; `executed` are those that
ran, each distinct item once and a second forward pass where the batch is cut into chunks.
"""

import gc
import math
import statistics
import time
from typing import Any

import torch

from benchmarks.gpu.results import Recorder, find, read_results
from benchmarks.gpu.setting import (
    CATALOGUES,
    Setting,
    make_corpus,
    make_run,
    make_trainer,
    peak_bytes,
    synchronise,
)
from clue_ray.corpus.store import Corpus
from clue_ray.spec.compute import block_params, train_flops
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.feed import Prefetch
from clue_ray.training.loop import Trainer

ROWS = (
    ("clue-110m", 1024),
    ("s", 4096),
    ("l", 4096),
    ("clue-15m", 1024),
    ("clue-110m", 4096),
    ("m", 4096),
    ("xl", 1024),
    ("clue-65m", 1024),
    ("s", 1024),
    ("l", 1024),
    ("s", 256),
    ("clue-110m", 256),
)
"""Sizes and batches, the most valuable first: one that would not end in time is left out."""
REQUIRED = {
    ("clue-110m", 1024, "uniform", "bf16"): ("executed_share", 0.35),
    ("clue-110m", 1024, "zipf", "bf16"): ("asked_share", 0.60),
    ("l", 4096, "uniform", "bf16"): ("gpu_busy", 0.80),
}
"""Least value of a measurement of a row; these rows run with compiled blocks."""
FP32_AFTER = 4
"""Rows of bf16 before the one in fp32."""
SECONDS, MOST_STEPS = 2.0, 8
"""Seconds of steps that one row takes at most, and steps; at least two are timed."""
PEAK = "matmul 8192x8192x8192"


def run(record: Recorder, setting: Setting) -> None:
    """Measure each row on both catalogues, bf16, and two in fp32."""
    peak = find(read_results(record.folder), PEAK).get("tflops")
    corpora = {name: make_corpus(setting, name) for name in CATALOGUES}
    rows = [("xs", 16), ("s", 16)] if setting.dry else ROWS
    wanted = [(*row, name, "bf16") for row in rows for name in CATALOGUES]
    wanted[2 * FP32_AFTER : 2 * FP32_AFTER] = [(*row, "uniform", "fp32") for row in rows[1:2]]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CATALOGUES}
    for row in wanted:
        size, batch, name, _ = row
        cost, started = _cost(size, batch), time.monotonic()
        if record.left < most_seconds(cost, taken[name]):
            record(_name(row), None, "left out: it would not end in time")
            continue
        _measure(record, setting, corpora[name], row, peak)
        taken[name].append((cost, time.monotonic() - started))


Row = tuple[str, int, str, str]
"""Size, batch, catalogue and precision."""


def _name(row: Row) -> str:
    return "{} B {} {} {}".format(*row)


def _cost(size: str, batch: int) -> float:
    """Return what the time of a step is about proportional to, where launches do not take it."""
    encoder = EncoderSpec(size=size)
    return batch * encoder.item_layers * sum(block_params(encoder))


def most_seconds(cost: float, taken: list[tuple[float, float]]) -> float:
    """Return the most seconds that a row may take, by the costs and seconds of the rows so far.

    A row takes no longer than a costlier one, nor than a cheaper one times what it costs more.
    """
    return min((seconds * max(1.0, cost / other) for other, seconds in taken), default=0.0)


def _measure(
    record: Recorder, setting: Setting, corpus: Corpus, row: Row, peak: float | None
) -> None:
    try:
        measured = _train_row(setting, corpus, row, peak)
    except (RuntimeError, MemoryError) as error:
        return record(_name(row), False, str(error).splitlines()[0][:120])
    finally:
        gc.collect()  # a trainer's thread and hooks refer to it in circles
        torch.cuda.empty_cache()
    record(_name(row), _passes(row, measured), **measured)


def _train_row(setting: Setting, corpus: Corpus, row: Row, peak: float | None) -> dict[str, Any]:
    """Measure a row; its trainer ends with this call."""
    size, batch, _, precision = row
    run = make_run(setting, size, batch, precision, compile=row in REQUIRED)
    return measure_steps(make_trainer(run, corpus), setting.device, peak)


def _passes(row: Row, measured: dict[str, Any]) -> bool | None:
    """Say whether a row meets what is asked of it; None where nothing is, or in a dry run."""
    name, least = REQUIRED.get(row, ("", 0.0))
    return measured[name] >= least if name in measured else None


def measure_steps(trainer: Trainer, device: torch.device, peak: float | None) -> dict[str, Any]:
    """Train steps as a run does, with batches made ahead, and return what they took."""
    with Prefetch(trainer.prepare, 1000) as batches:
        trainer.step(batches(0))
        trainer._read(all_but=0)  # on a card a step is counted once the next one runs
        synchronise(device)
        peak_bytes(device)
        before, seconds = trainer.state, []
        first, work, executed = before.step, before.work, before.executed_flops(trainer.run)
        started = time.perf_counter()
        limit = SECONDS if device.type == "cuda" else 0.0
        while len(seconds) < 2 or (
            len(seconds) < MOST_STEPS and time.perf_counter() - started < limit
        ):
            start = time.perf_counter()
            trainer.step(batches(len(seconds) + 1))
            synchronise(device)
            seconds.append(time.perf_counter() - start)
        step, count = statistics.median(seconds), len(seconds)
        measured = {"step_ms": 1000 * step}
        if device.type == "cuda":
            busy = _busy_ms(trainer, batches, count + 1)
            measured["gpu_busy"] = busy / measured["step_ms"]
    trainer._read(all_but=0)
    state, asked = trainer.state, trainer.state.work
    steps = max(1, state.step - first)
    tokens = (asked.tokens - work.tokens) / steps
    asked_flops, before_flops = (train_flops(trainer.run.encoder, w) for w in (asked, work))
    asked_flops = (asked_flops - before_flops) / steps
    executed_flops = (state.executed_flops(trainer.run) - executed) / steps
    host = time.perf_counter()
    trainer.prepare(900)
    measured |= {
        "tokens_s": tokens / step,
        "asked_tflops": asked_flops / step / 1e12,
        "executed_tflops": executed_flops / step / 1e12,
        "prepare_ms": 1000 * (time.perf_counter() - host),
        "peak_gb": peak_bytes(device) / 1e9,
    }
    if peak and device.type == "cuda":
        measured["executed_share"] = measured["executed_tflops"] / peak
        measured["asked_share"] = measured["asked_tflops"] / peak
    return measured


def _busy_ms(trainer: Trainer, batches: Prefetch[Any], step: int) -> float:
    """Return the milliseconds of one step in which the card runs any kernel, by the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    batch = batches(step)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        trainer.step(batch)
        torch.cuda.synchronize()
    ranges = [
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == DeviceType.CUDA
    ]
    return total_length(ranges) / 1000


def total_length(ranges: list[tuple[float, float]]) -> float:
    """Return the length of the union of ranges: kernels of two streams run at the same time."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(ranges):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
