"""Ask every node of a cluster how it is, and judge the answers: `clue-ray doctor`."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from clue_ray.cluster.asking import NODE_SECONDS, ask_nodes
from clue_ray.cluster.diagnose import Finding, NodeReport, judge_nodes
from clue_ray.cluster.node import NodeFacts, describe_node, read_clock
from clue_ray.cluster.places import Places, find_failure
from clue_ray.cluster.session import connect
from clue_ray.errors import ClueRayError
from clue_ray.storage.place import check_writable, resolve_place
from clue_ray.study.probes import node_failure, probes

PORTS = ("NodeManagerPort", "ObjectManagerPort")
"""Services of a node that every other node must reach."""
CLOCK_READINGS = 3


def examine(address: str | None, places: Sequence[str]) -> list[Finding]:
    """Examine this machine, or each node of a cluster.

    Args:
        address: HOST:PORT of a Ray cluster; this machine where it is left out.
        places: Folders and URIs that all nodes must see and write.

    Raises:
        ClusterError: The cluster cannot be joined, or Ray does not start here.
    """
    with connect(address):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = ask_nodes(describe_node, nodes, _list_ports(nodes))
        reports = [_report(node, answer) for node, answer in zip(nodes, answers, strict=True)]
        here = describe_node()
        found = []
        for place in map(resolve_place, places):
            found += _try_place(place, nodes, reports)
        return [*found, *judge_nodes(here, reports)]


def _list_ports(nodes: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{node['NodeManagerAddress']}:{node[port]}" for node in nodes for port in PORTS)


def _report(node: dict[str, Any], answer: Any) -> NodeReport:
    """Return what a node said, with the difference of its clock."""
    name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
    report = partial(NodeReport, name, node["Resources"])
    if isinstance(answer, NodeFacts):
        skew, error = _measure_skew(node)
        return report(answer, skew=skew, skew_error=error)
    if isinstance(answer, ray.exceptions.GetTimeoutError):
        return report(None, f"no answer within {NODE_SECONDS:g} s")
    return report(None, str(node_failure("it", answer)).partition(";")[0])


def _measure_skew(node: dict[str, Any]) -> tuple[float, float]:
    """Return a node's clock less ours, and half the time of the shortest question, in seconds.

    The error is infinite where the node did not answer.
    """
    return min((_read_skew(node) for _ in range(CLOCK_READINGS)), key=lambda found: found[1])


def _read_skew(node: dict[str, Any]) -> tuple[float, float]:
    before = time.time()
    (clock,) = ask_nodes(read_clock, [node])
    after = time.time()
    if isinstance(clock, ray.exceptions.RayError):
        return 0.0, math.inf
    return clock - (before + after) / 2, (after - before) / 2


def _try_place(place: str, nodes: list[dict[str, Any]], reports: list[NodeReport]) -> list[Finding]:
    """Write a file to a place and ask each node to see it; add failures to the reports.

    Returns:
        A finding where this machine itself cannot write to the place.
    """
    try:
        check_writable(place, "-")
        with ExitStack() as stack:
            probe = stack.enter_context(probes([place]))
            answers = ask_nodes(find_failure, nodes, Places((place,), probe, None))
    except ClueRayError as error:
        remedy = "check the path, its rights, and the credentials in the environment"
        return [Finding("this machine", "places", "problem", _reason(error), remedy)]
    for number, answer in enumerate(answers):
        facts = reports[number].facts
        if answer and facts:
            failed = facts.failures | {place: str(answer)}
            reports[number] = replace(reports[number], facts=replace(facts, failures=failed))
    return []


def _reason(error: ClueRayError) -> str:
    return str(error).partition(";")[0]
