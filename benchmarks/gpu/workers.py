"""Several training processes over gloo on one machine, without Ray."""

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def on_workers(workers: int, job: Callable[..., Any]) -> Any:
    """Call `job(rank=..., world_size=...)` in processes; return what the first one returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_work, args=(rank, workers, port, results, job))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    found = results.get(timeout=100)
    for process in processes:
        process.join(timeout=30)
    return found


def _work(rank: int, workers: int, port: int, results: Any, job: Callable[..., Any]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    found = job(rank=rank, world_size=workers)
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()
