"""How many workers and runs fit on a cluster's nodes, and how long runs take. Imports no ray."""

import heapq
import math
from collections.abc import Iterable

from clue_ray.spec.specs import ResourcesSpec

Node = dict[str, float]
"""Resources of one node of the cluster: CPU, GPU, trial_slot; and IN_DATA_POOL."""
IN_DATA_POOL = "data_pool"
"""1 for a node of the data pool, on whose cores Ray Data packs; missing elsewhere."""


def count_workers(resources: ResourcesSpec, nodes: list[Node]) -> int:
    """Count the workers that fit on the nodes concurrently; a worker runs on one node.

    Where Ray Data packs, there is also a core for each worker, in the data pool if there is one.
    """
    fitting = sum(count_workers_on(node, resources) for node in nodes)
    if resources.feed != "ray_data":
        return fitting
    packing = [node for node in nodes if node.get(IN_DATA_POOL)] or nodes
    cores = sum(int(node.get("CPU", 0)) for node in packing)
    # Ray may place workers on the packing nodes first, whose cores they take.
    there = sum(count_workers_on(node, resources) for node in packing)
    return next(
        workers
        for workers in range(fitting, -1, -1)
        if workers + min(workers, there) * resources.cpus_per_worker <= cores
    )


def cores_per_worker(resources: ResourcesSpec) -> int:
    """Return the cores of a worker, and one more where Ray Data packs its batches."""
    return resources.cpus_per_worker + (resources.feed == "ray_data")


def count_workers_on(node: Node, resources: ResourcesSpec) -> int:
    """Count the workers that fit on one node, without cores to pack their batches."""
    by_cpu = int(node.get("CPU", 0) // resources.cpus_per_worker)
    gpus, share = node.get("GPU", 0.0), resources.gpus_per_worker
    if not share:
        return by_cpu
    if share >= 1:
        return min(by_cpu, int(gpus // share))
    # Ray places a fraction of a GPU on a single GPU, so what is left of two does not add up.
    # 1e-9 keeps 1 / 0.1 from being rounded down to 9.
    return min(by_cpu, int(gpus) * int(1 / share + 1e-9))


def total(nodes: list[Node], resource: str) -> float:
    """Return the amount of a resource on all nodes together."""
    return sum(node.get(resource, 0.0) for node in nodes)


def largest(nodes: list[Node], resource: str) -> float:
    """Return the largest amount of a resource on any one node."""
    return max((node.get(resource, 0.0) for node in nodes), default=0.0)


def multi_worker_concurrency(workers: int, fitting: int, nodes: list[Node]) -> int:
    """Return how many runs of several workers can run concurrently, at least 1.

    A run starts when all its workers fit, and its driver occupies a trial slot.

    Args:
        workers: number of workers per run.
        fitting: number of workers that fit on the nodes.
    """
    return max(1, min(fitting // workers, math.floor(total(nodes, "trial_slot")) or 1))


def makespan(seconds: Iterable[float], concurrency: int) -> float:
    """Return when the last run ends if runs start longest first, each as soon as one has ended."""
    ends = [0.0] * max(1, concurrency)
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
