"""Which nodes of a cluster do what: corpora are prepared in its data pool, and runs of each kind fill its slots.

A data pool is made of nodes labelled `pool: data`. Where a cluster has one, Ray Data reads logs and finds texts there
alone, so as not to take the cores of those who train. The shuffle that gathers users keeps to no label in Ray 2.60: its
tasks run wherever a core is free.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from clue_ray.spec.specs import ResourcesSpec
from clue_ray.study.placement import gangs_at_once, worker_slots
from clue_ray.study.plan import Plan
from clue_ray.study.session import cluster_nodes

DATA_POOL = {"pool": "data"}
"""Label of nodes for Ray Data, as `ray start --labels=pool=data` and the files in `cluster/` set it."""


@contextmanager
def data_pool() -> Iterator[None]:
    """Keep Ray Data to the data pool of the connected cluster; without one, it runs on any node."""
    options = DataContext.get_current().execution_options
    before = options.label_selector
    if any(node["Alive"] and DATA_POOL.items() <= node["Labels"].items() for node in ray.nodes()):
        options.label_selector = {**(before or {}), **DATA_POOL}
    try:
        yield
    finally:
        options.label_selector = before


def lanes_now(workers: int, plan: Plan, resources: ResourcesSpec) -> int:
    """Count the runs of so many workers at a time; of smaller gangs than the plan's largest, more find room."""
    if workers == 1 or resources.concurrency != "auto":
        return plan.lanes(workers > 1)
    nodes = cluster_nodes()
    return gangs_at_once(workers, worker_slots(resources, nodes), nodes)
