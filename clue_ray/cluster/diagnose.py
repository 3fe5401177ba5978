"""Judge what the nodes of a cluster say of themselves: what is wrong, and what to do about it.

Imports no ray; `study/doctor.py` asks the nodes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from clue_ray.cluster.node import PACKAGES, NodeFacts

Verdict = Literal["ok", "warning", "problem"]
ORDER: tuple[Verdict, ...] = ("ok", "warning", "problem")
MUST_AGREE = ("python", "ray", "clue-ray")
"""Versions that must be the same on all nodes; others may change digits of a result."""
FEW_FILES, TOO_FEW_FILES = 65_536, 4_096
"""Limits of open files: below the first, large clusters fail; below the second, small ones."""
FULL_DISK, LOW_DISK = 0.95, 5e9
"""Share in use from which Ray stores no more objects on disk; free bytes that are few."""
SKEW_SECONDS, MOST_SKEW_SECONDS = 5.0, 300.0
"""Differences of clocks that confuse readers of logs, and that make S3 refuse signatures soon."""


@dataclass(frozen=True)
class NodeReport:
    """One node, seen from the machine that asks.

    Attributes:
        name: Its address.
        resources: What Ray offers there.
        facts: What the node says; None where it did not answer.
        failure: Why it did not answer.
        skew: Its clock less ours, seconds.
        skew_error: Half the time that reading the clock took, seconds.
    """

    name: str
    resources: dict[str, float]
    facts: NodeFacts | None
    failure: str = ""
    skew: float = 0.0
    skew_error: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        node: Address of the node, or `cluster`.
        check: What was checked.
        found: What was found, in a few words.
        remedy: What to do; empty where all is well.
    """

    node: str
    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def judge_nodes(here: NodeFacts, nodes: list[NodeReport]) -> list[Finding]:
    """Judge all nodes of a cluster.

    Args:
        here: What the machine that asks says of itself, with which nodes must agree.
    """
    return [*_judge_cluster(nodes), *(finding for node in nodes for finding in _judge(here, node))]


def worst(findings: list[Finding]) -> Verdict:
    """Return the worst verdict."""
    return max((finding.verdict for finding in findings), key=ORDER.index, default="ok")


def _judge_cluster(nodes: list[NodeReport]) -> Iterator[Finding]:
    cores = sum(node.resources.get("CPU", 0) for node in nodes)
    gpus = sum(node.resources.get("GPU", 0) for node in nodes)
    found = f"{len(nodes)} nodes, {cores:g} cores, {gpus:g} GPUs"
    start_nodes = "" if cores else "start nodes with cores"
    yield Finding("cluster", "cores", "ok" if cores else "problem", found, start_nodes)
    slots = sum(node.resources.get("trial_slot", 0) for node in nodes)
    add = "start the head with --resources='{\"trial_slot\": 64}' to train on several workers"
    yield Finding(
        "cluster", "trial slots", "ok" if slots else "warning", f"{slots:g}", "" if slots else add
    )


def _judge(here: NodeFacts, node: NodeReport) -> Iterator[Finding]:
    if node.facts is None:
        remedy = "repair or remove the node; it needs the same clue-ray as this machine"
        yield Finding(node.name, "answer", "problem", node.failure, remedy)
        return
    for check, judge in CHECKS.items():
        yield Finding(node.name, check, *judge(here, node, node.facts))


Judged = tuple[Verdict, str, str]


def _versions(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    differ = [name for name in ("python", *PACKAGES) if facts.versions[name] != here.versions[name]]
    if not differ:
        return "ok", ", ".join(f"{name} {facts.versions[name]}" for name in MUST_AGREE), ""
    found = ", ".join(
        f"{name} {facts.versions[name] or 'missing'}, here {here.versions[name]}" for name in differ
    )
    verdict: Verdict = "problem" if set(differ) & set(MUST_AGREE) else "warning"
    return verdict, found, "install the same versions on every node, as from constraints.txt"


def _ports(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    if not facts.unreachable:
        return "ok", "reaches all nodes", ""
    found = f"cannot reach {', '.join(facts.unreachable)}"
    return "problem", found, "open the ports of Ray between the nodes (firewall, NetworkPolicy)"


def _places(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    if not facts.failures:
        return "ok", "no failure, where asked", ""
    found = "; ".join(facts.failures.values())
    remedy = "mount the folder on every node, or give a --storage and credentials in each"
    return "problem", found, remedy


def _cores(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    offered = node.resources.get("CPU", 0)
    found = f"Ray offers {offered:g} of {facts.cpus}"
    if offered <= facts.cpus:
        return "ok", found, ""
    return "warning", found, f"start the node with --num-cpus={facts.cpus}, or workers share cores"


def _gpus(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    offered = node.resources.get("GPU", 0)
    found = f"Ray offers {offered:g}, torch sees {facts.gpus}"
    if offered > facts.gpus:
        return "problem", found, "install a torch built for CUDA that fits the driver"
    if facts.gpus and not offered:
        return "warning", found, f"start the node with --num-gpus={facts.gpus} to use them"
    return "ok", found, ""


def _shared_memory(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    store = node.resources.get("object_store_memory", 0)
    if facts.shm_bytes is None:
        return "ok", "none; Ray keeps objects in its temporary folder", ""
    found = f"{facts.shm_bytes / 1e9:.2g} GB, object store {store / 1e9:.2g} GB"
    if facts.shm_bytes >= store:
        return "ok", found, ""
    return "warning", found, "give the container a larger one (--shm-size, an emptyDir of memory)"


def _open_files(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    found = "no limit" if facts.open_files >= 1 << 40 else f"at most {facts.open_files:,}"
    if facts.open_files >= FEW_FILES:
        return "ok", found, ""
    verdict: Verdict = "problem" if facts.open_files < TOO_FEW_FILES else "warning"
    return verdict, found, f"raise the limit before Ray starts: ulimit -n {FEW_FILES}"


def _disk(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    found = f"{facts.disk_free / 1e9:.3g} GB free, {facts.disk_used:.0%} used"
    remedy = "free some space, or set TMPDIR and Ray's --temp-dir to another disk"
    if facts.disk_used >= FULL_DISK:
        return "problem", found, remedy
    return ("ok", found, "") if facts.disk_free >= LOW_DISK else ("warning", found, remedy)


def _clock(here: NodeFacts, node: NodeReport, facts: NodeFacts) -> Judged:
    if node.skew_error > SKEW_SECONDS:
        found = f"not known to within {SKEW_SECONDS:g} s"
        return "warning", found, "ask again while the node is less busy"
    certain = max(0.0, abs(node.skew) - node.skew_error)
    found = f"{node.skew:+.2f} s, give or take {node.skew_error:.2f} s"
    if certain <= SKEW_SECONDS:
        return "ok", found, ""
    verdict: Verdict = "problem" if certain > MOST_SKEW_SECONDS else "warning"
    return verdict, found, "synchronise the clock (chrony, systemd-timesyncd)"


CHECKS: dict[str, Callable[[NodeFacts, NodeReport, NodeFacts], Judged]] = {
    "versions": _versions,
    "ports": _ports,
    "places": _places,
    "cores": _cores,
    "GPUs": _gpus,
    "/dev/shm": _shared_memory,
    "open files": _open_files,
    "disk of TMPDIR": _disk,
    "clock": _clock,
}
