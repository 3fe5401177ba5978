"""Where a study's encoders are timed before it starts: here, or on a node of the cluster that could train them."""

from collections.abc import Callable
from functools import partial

import ray
from ray.exceptions import GetTimeoutError, RayError

from clue_ray.corpus.store import Corpus
from clue_ray.errors import ClusterError
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec, RunSpec
from clue_ray.study.calibrate import Rates, calibrate, given_rate
from clue_ray.study.placement import Node, worker_slots
from clue_ray.study.storage import node_trouble
from clue_ray.study.trial import cached_corpus

ROOM_SECONDS = 1800.0
"""Longest wait for a node's room, a corpus fetched there and the timing itself."""
Timed = Callable[[list[RunSpec]], Rates]


def choose_timing(
    corpus: Corpus,
    evaluation: EvaluationSpec,
    resources: ResourcesSpec,
    nodes: list[Node],
    address: str | None,
    flops_per_second: float | None = None,
) -> Timed:
    """Choose how a study's runs are timed.

    Args:
        address: of a cluster, whose nodes and GPUs may differ from this machine; None where all trains here.
        flops_per_second: speed of a worker, instead of timing any.
    """
    if flops_per_second:
        return partial(given_rate, flops_per_second=flops_per_second)
    if address and worker_slots(resources, nodes):  # a cluster without room is refused in a moment, and would wait here
        return partial(time_on_a_node, place=corpus.place, evaluation=evaluation, resources=resources)
    return partial(calibrate, corpus=corpus, evaluation=evaluation)


def time_on_a_node(runs: list[RunSpec], place: str, evaluation: EvaluationSpec, resources: ResourcesSpec) -> Rates:
    """Time runs in a task that holds what a worker would hold.

    Raises:
        ClusterError: others hold the cluster, or the task failed.
    """
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(calibrate_there)
    asked = task.remote(runs, place, evaluation)
    try:
        rates: Rates = ray.get(asked, timeout=ROOM_SECONDS)
    except GetTimeoutError:
        ray.cancel(asked)
        raise ClusterError(
            f"No node had room to time the encoders within {ROOM_SECONDS:g} s; give the same command again when the "
            "cluster has less to do."
        ) from None
    except RayError as error:
        raise node_trouble("A node of the cluster", error) from None
    return rates


def calibrate_there(runs: list[RunSpec], place: str, evaluation: EvaluationSpec) -> Rates:
    """Time runs in this process, on a corpus that it opens itself."""
    return calibrate(runs, cached_corpus(place), evaluation)
