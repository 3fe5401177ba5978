"""Facts: the machine, and the rates that nothing on it can exceed."""

import os
import platform
import shutil
from importlib.util import find_spec

import torch

from benchmarks.gpu.results import NO_CARD, Recorder
from benchmarks.gpu.setting import Setting, time_ms

SHAPES = ((8192, 8192, 8192), (465_000, 768, 3072), (465_000, 768, 2304), (465_000, 768, 768))
"""Rows, inner width and columns: a square, and the matrices of clue-110m at 1,024 users a chunk."""
DRY_SHAPES = ((64, 64, 64),)
COPIED = 1 << 30


def run(record: Recorder, setting: Setting) -> None:
    """Record versions, sizes and ceilings."""
    record("software", **_software())
    record("machine", **_machine(setting.device))
    for rows, inner, columns in DRY_SHAPES if setting.dry else SHAPES:
        _multiply(record, setting, rows, inner, columns)
    _copy(record, setting)
    one = torch.ones(1, device=setting.device)
    milliseconds = time_ms(lambda: [one.add_(1) for _ in range(1000)], setting.device)
    record("launch", microseconds=milliseconds)  # of one of the thousand


def _software() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": str(find_spec("triton") is not None),
        "ray": str(find_spec("ray") is not None),
    }


def _machine(device: torch.device) -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, object] = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": memory / 1e9,
        "shm_gb": shutil.disk_usage("/dev/shm").total / 1e9,
        "card": NO_CARD,
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        capability = f"{found.major}.{found.minor}"
        gpu = {"card": found.name, "card_gb": found.total_memory / 1e9, "capability": capability}
        facts |= gpu
    return facts


def _multiply(record: Recorder, setting: Setting, rows: int, inner: int, columns: int) -> None:
    dtype = torch.bfloat16
    a = torch.randn(rows, inner, device=setting.device, dtype=dtype)
    b = torch.randn(inner, columns, device=setting.device, dtype=dtype)
    seconds = time_ms(lambda: a @ b, setting.device) / 1000
    tflops = 2 * rows * inner * columns / seconds / 1e12
    record(f"matmul {rows}x{inner}x{columns}", tflops=tflops)


def _copy(record: Recorder, setting: Setting) -> None:
    count = 1 << 16 if setting.dry else COPIED
    device, host = setting.device, torch.empty(count, dtype=torch.uint8)
    source = host.to(device)
    target = torch.empty_like(source)
    rates = {"on_card": 2 * count / time_ms(lambda: target.copy_(source), device)}
    rates["pageable"] = count / time_ms(lambda: target.copy_(host), device)
    if device.type == "cuda":
        pinned = host.pin_memory()
        rates["pinned"] = count / time_ms(lambda: target.copy_(pinned, non_blocking=True), device)
    record("copies", **{f"{name}_gb_s": rate / 1e6 for name, rate in rates.items()})
