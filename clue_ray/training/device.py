"""The device of a run: which one, what it cannot do, how much fits, and how it is left behind."""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clue_ray.batches.packing import Packed
from clue_ray.errors import ClusterError
from clue_ray.spec.specs import EncoderSpec, RunSpec

MEMORY_SETTING = "PYTORCH_CUDA_ALLOC_CONF"
"""Environment variable of torch's allocator; batches of changing sizes fragment fixed segments."""
OLDEST = (8, 0)
"""Compute capability from which on GPUs have bf16 and the attention kernels: A100 and later."""
BYTES_PER_POSITION = 28
"""Activations of one position and block in bf16, in units of the width: 22 in the layers that torch
saves and 6 of queries, keys and values. In fp32 they are twice that."""
USABLE = 0.7
"""Share of the free memory that activations may take; the rest is for what is not counted."""

logger = logging.getLogger(__name__)


def choose_device(gpus: float, precision: str = "fp32") -> torch.device:
    """Return a GPU if some are requested and torch sees one, otherwise the CPU.

    A requested GPU that torch does not see is a warning.

    Raises:
        ClusterError: the GPU is too old for bf16.
    """
    os.environ.setdefault(MEMORY_SETTING, "expandable_segments:True")
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
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def fitting_share(encoder: EncoderSpec, packed: Packed, precision: str, free: int) -> float:
    """Estimate the share of a worker's batch whose activations fit, from 0 to 1.

    Args:
        encoder: shape.
        packed: a batch like the others.
        precision: of the run.
        free: bytes of free memory.
    """
    positions = (
        encoder.item_layers * packed.items.layout.positions
        + encoder.service_layers * packed.sequences.layout.positions
    )
    size = BYTES_PER_POSITION * encoder.width * positions * (1 if precision == "bf16" else 2)
    return min(1.0, USABLE * free / max(1, size))


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
        # On a GPU torch raises its OutOfMemoryError, on the CPU a plain RuntimeError.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
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
