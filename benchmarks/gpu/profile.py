"""Profile: where the time of a step goes, by kind of kernel, and how many kernels are launched."""

from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run, make_trainer, synchronise

KINDS = {
    "attention": ("flash", "fmha", "attend", "attention"),
    "gemm": ("gemm", "cutlass", "mm", "cublas", "nvjet"),
    "embedding": ("embedding",),
    "index": ("index", "gather", "scatter", "sort", "radix", "unique", "scan"),
    "copies": ("memcpy", "memset", "copy"),
}
"""Fragments of kernel names by kind, tried in this order; what fits none is elementwise."""
KEPT = 15


def run(record: Recorder, setting: Setting) -> None:
    """Profile one step of a large and of a small encoder."""
    corpus = make_corpus(setting)
    for size, batch in (("xs", 16),) if setting.dry else (("clue-110m", 256), ("s", 4096)):
        trainer = make_trainer(make_run(setting, size, batch, "bf16"), corpus)
        for step in range(3):
            trainer.step(trainer.prepare(step))
        batch_made = trainer.prepare(3)
        synchronise(setting.device)
        activities = [ProfilerActivity.CUDA] if setting.gpus else [ProfilerActivity.CPU]
        with profiler(activities=activities) as seen:
            trainer.step(batch_made)
            synchronise(setting.device)
        events = list(seen.key_averages())
        if setting.gpus:  # the calls that launch kernels are events, too
            events = [event for event in events if event.device_type == DeviceType.CUDA]
        _keep(record, f"{size} B {batch}", events, setting)


def _keep(record: Recorder, name: str, events: list[Any], setting: Setting) -> None:
    taken = "self_device_time_total" if setting.gpus else "self_cpu_time_total"
    by_kind: dict[str, float] = {}
    for event in events:
        kind = _kind(event.key)
        by_kind[kind] = by_kind.get(kind, 0.0) + getattr(event, taken) / 1000
    largest = sorted(events, key=lambda event: -getattr(event, taken))[:KEPT]
    record(
        f"profile {name}",
        launches=sum(event.count for event in events),
        **{f"{kind}_ms": value for kind, value in sorted(by_kind.items(), key=lambda x: -x[1])},
        top=[[event.key[:60], getattr(event, taken) / 1000, event.count] for event in largest],
    )


def _kind(kernel: str) -> str:
    name = kernel.lower()
    return next(
        (kind for kind, signs in KINDS.items() if any(sign in name for sign in signs)),
        "elementwise",
    )
