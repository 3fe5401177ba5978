"""Several processes under gloo, for tests of what workers do together."""

import multiprocessing
import socket

import torch.distributed as dist


def on_workers(world_size, job, *args):
    """Call `job(rank, world_size, *args)` in as many processes and return what the first gave."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_worker, args=(rank, world_size, port, results, job, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = results.get(timeout=120)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return found


def _worker(rank, world_size, port, results, job, args):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    found = job(rank, world_size, *args)
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()
