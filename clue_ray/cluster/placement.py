"""Where runs find room: how many fit the nodes at a time, and how long they then take. Imports no
ray.
"""

import heapq
import math
from collections.abc import Iterable

from clue_ray.spec.specs import ResourcesSpec

Node = dict[str, float]
"""What one node of the cluster offers: CPU, GPU, trial_slot."""


def worker_slots(resources: ResourcesSpec, nodes: list[Node]) -> int:
    """Count the workers that find their cores and GPUs at a time; one worker never spans two
    nodes.
    """
    return sum(slots_of(resources, node) for node in nodes)


def slots_of(resources: ResourcesSpec, node: Node) -> int:
    """Count the workers one node holds; a share of a GPU never spans two GPUs."""
    slots = int(node.get("CPU", 0) // resources.cpus_per_worker)
    gpus, share = node.get("GPU", 0.0), resources.gpus_per_worker
    if not share:
        return slots
    return min(slots, int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9))


def total(nodes: list[Node], resource: str) -> float:
    """Add up a resource over the cluster."""
    return sum(node.get(resource, 0.0) for node in nodes)


def makespan(seconds: Iterable[float], lanes: int) -> float:
    """Return when the last run ends if each takes the first free lane, the longest first."""
    free = [0.0] * max(1, lanes)
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def largest(nodes: list[Node], resource: str) -> float:
    """Return what the best-equipped node has of a resource."""
    return max((node.get(resource, 0.0) for node in nodes), default=0.0)


def multi_worker_runs_at_once(workers: int, slots: int, nodes: list[Node]) -> int:
    """Count the runs of several workers at a time: each waits for all its workers, and its driver
    for a trial slot.
    """
    return max(1, min(slots // workers, math.floor(total(nodes, "trial_slot")) or 1))
