"""The device of a run: which one, what it cannot do, what is free, and how it is left behind."""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clue_ray.errors import ClusterError
from clue_ray.spec.specs import RunSpec

MEMORY_SETTING = "PYTORCH_CUDA_ALLOC_CONF"
"""Environment variable of torch's allocator; batches of changing sizes fragment fixed segments."""
OLDEST = (8, 0)
"""Compute capability from which on GPUs have bf16 and the attention kernels: A100 and later."""
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")
"""What such errors say where torch raises a plain RuntimeError: of a GPU's driver, of the CPU."""
LOST = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")
"""How torch, its driver calls and Triton begin an error of CUDA."""

logger = logging.getLogger(__name__)


def choose_device(gpus: float, precision: str = "fp32") -> torch.device:
    """Return a GPU if some are requested and torch sees one, otherwise the CPU.

    A requested GPU that torch does not see is a warning.

    Raises:
        ClusterError: the GPU is too old for bf16.
    """
    os.environ.update(memory_setting())
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        logger.warning("%g GPUs were requested and torch sees none: this run uses the CPU.", gpus)
        return torch.device("cpu")
    if precision == "bf16":
        _check_capability(torch.cuda.get_device_capability())
    if gpus < 1:  # other runs have the rest of the memory
        torch.cuda.set_per_process_memory_fraction(gpus)
    return torch.device("cuda", torch.cuda.current_device())


def memory_setting() -> dict[str, str]:
    """Return the environment of torch's allocator, which it reads before its first allocation."""
    return {MEMORY_SETTING: os.environ.get(MEMORY_SETTING, "expandable_segments:True")}


def _check_capability(found: tuple[int, int]) -> None:
    if found < OLDEST:
        raise ClusterError(
            f"The GPU has compute capability {found[0]}.{found[1]}, and train.precision bf16 needs "
            f"{OLDEST[0]}.{OLDEST[1]} or later; set train.precision to fp32, or use a newer GPU."
        )


def free_device() -> None:
    """Free the GPU memory of earlier runs of this process, and reset its peak counters."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_lost(error: BaseException) -> bool:
    """Return whether an error leaves CUDA unusable in this process, as an illegal access does."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        return False
    return isinstance(error, RuntimeError) and any(sign in text for sign in LOST)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of this process's share of a GPU, those that torch keeps included."""
    free, size = torch.cuda.mem_get_info(device)
    used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    share = int(size * torch.cuda.get_per_process_memory_fraction())
    return max(0, min(free + reserved, share) - used)


def log_peaks(device: torch.device) -> None:
    """Log the largest amounts of memory that tensors took and that torch reserved."""
    if device.type == "cuda":
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        logger.info("GPU memory: tensors took up to %d bytes, torch reserved up to %d.", *peaks)


@contextmanager
def explaining_memory(run: RunSpec, workers: int) -> Iterator[None]:
    """Turn an out-of-memory error of a GPU, of torch on the CPU or of numpy into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        batch, asked = run.train.global_batch_size, run.resources.users_per_chunk
        chunk = min(batch if asked == "auto" else asked, batch // workers)
        smaller = (
            f"set resources.users_per_chunk to {chunk // 2} or less (same gradient), or "
            if chunk > 1
            else ""
        )
        raise MemoryError(
            f"Out of memory: global_batch_size {batch} on {workers} workers, {chunk} users encoded "
            f"at a time; {smaller}lower global_batch_size, sequence_length or the encoder's size."
        ) from error
