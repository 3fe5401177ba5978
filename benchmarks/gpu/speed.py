"""Speed: by size, batch and catalogue, what a step takes and what of it the card works.

`asked` FLOPs are those of the mathematics, every event's item counted; `executed` are those that
ran, each distinct item once and a second forward pass where the batch is cut into chunks.
"""

import gc
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
from clue_ray.spec.compute import train_flops
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
    ("clue-725m", 4096),
)
"""Sizes and batches, the most valuable first: the phase ends at its limit."""
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
    longest = 0.0
    for size, batch, name, precision in wanted:
        if record.left < longest:  # a row may take as long as the longest so far
            return
        started = time.monotonic()
        _measure(record, setting, corpora[name], name, size, batch, precision, peak)
        longest = max(longest, time.monotonic() - started)


def _measure(
    record: Recorder,
    setting: Setting,
    corpus: Corpus,
    catalogue: str,
    size: str,
    batch: int,
    precision: str,
    peak: float | None,
) -> None:
    name = f"{size} B {batch} {catalogue} {precision}"
    try:
        trainer = make_trainer(make_run(setting, size, batch, precision), corpus)
        measured = measure_steps(trainer, setting.device, peak)
    except (RuntimeError, MemoryError) as error:
        return record(name, False, str(error).splitlines()[0][:120])
    finally:
        gc.collect()  # a trainer's thread and hooks refer to it in circles
        torch.cuda.empty_cache()
    record(name, _required(name, measured), **measured)


def _required(name: str, measured: dict[str, Any]) -> bool | None:
    """Say whether a row meets what is asked of it; None where nothing is, or in a dry run."""
    if "executed_share" not in measured or "gpu_busy" not in measured:
        return None
    asked = {
        "clue-110m B 1024 uniform bf16": ("executed_share", 0.35),
        "clue-110m B 1024 zipf bf16": ("asked_share", 0.60),
        "l B 4096 uniform bf16": ("gpu_busy", 0.80),
    }
    return measured[asked[name][0]] >= asked[name][1] if name in asked else None


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
            measured["gpu_busy"] = _busy_ms(trainer, batches, count + 1) / measured["step_ms"]
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
    """Return the milliseconds that kernels of one step take on the card, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    batch = batches(step)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        trainer.step(batch)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1000
