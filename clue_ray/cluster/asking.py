"""Ask every node of a cluster something: a task on each, and an answer or an error from each."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NODE_SECONDS = 120.0
"""Longest wait for the answer of a node, which starts a process for its first task."""


def ask_nodes(
    question: Callable[..., Any],
    nodes: Sequence[dict[str, Any]],
    *arguments: Any,
    seconds: float = NODE_SECONDS,
) -> list[Any]:
    """Call a function on each node, in tasks that occupy no core.

    Args:
        nodes: Entries of `ray.nodes()`.

    Returns:
        One answer per node, or the `RayError` that came instead: `GetTimeoutError` for a node that
        did not answer in time.
    """
    tasks = [
        ray.remote(question)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(*arguments)
        for node in nodes
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    return [_answer(task) for task in tasks]


def _answer(task: Any) -> Any:
    try:
        return ray.get(task, timeout=0)
    except ray.exceptions.RayError as error:
        return error
