"""The doctor finds what is broken and says what to do; a healthy cluster has no findings."""

import math
from dataclasses import replace

import pytest

from clue_ray.cluster.diagnose import NodeReport, judge_nodes, worst
from clue_ray.cluster.node import NodeFacts, describe_node

VERSIONS = {
    "python": "3.11.7",
    "clue-ray": "0.1.0",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "pyarrow": "26.0.1",
    "numpy": "2.4.0",
}
GOOD = NodeFacts(VERSIONS, 8, 1, 20_000_000_000, 1_000_000, 80_000_000_000, 0.4)
OFFERED = {"CPU": 8.0, "GPU": 1.0, "trial_slot": 64.0, "object_store_memory": 9e9}
HEALTHY = [NodeReport(name, OFFERED, GOOD, skew=0.1, skew_error=0.1) for name in ("a", "b")]


def broken(name="b", *, facts=None, resources=None, **report):
    """Return the healthy cluster with changes to its second node."""
    changed = replace(GOOD, **(facts or {}))
    return [HEALTHY[0], NodeReport(name, {**OFFERED, **(resources or {})}, changed, **report)]


def findings(nodes):
    return [f for f in judge_nodes(GOOD, nodes) if f.verdict != "ok"]


def test_a_healthy_cluster_has_no_findings():
    assert findings(HEALTHY) == []
    assert worst(judge_nodes(GOOD, HEALTHY)) == "ok"
    assert len(judge_nodes(GOOD, HEALTHY)) == 2 + 2 * 9


@pytest.mark.parametrize(
    ("nodes", "check", "verdict", "found", "remedy"),
    [
        (
            broken(facts={"versions": {**VERSIONS, "ray": "2.59.0"}}),
            "versions", "problem", "ray 2.59.0, here 2.60.0", "same versions",
        ),
        (
            broken(facts={"versions": {**VERSIONS, "torch": ""}}),
            "versions", "warning", "torch missing, here 2.13.0", "same versions",
        ),
        (
            broken(facts={"unreachable": ("10.0.0.1:6380",)}),
            "ports", "problem", "cannot reach 10.0.0.1:6380", "firewall",
        ),
        (
            broken(facts={"failures": {"/shared": "does not see /shared"}}),
            "places", "problem", "does not see /shared", "mount",
        ),
        (
            broken(facts={"gpus": 0}),
            "GPUs", "problem", "Ray offers 1, torch sees 0", "CUDA",
        ),
        (
            broken(resources={"GPU": 0.0}),
            "GPUs", "warning", "Ray offers 0, torch sees 1", "--num-gpus=1",
        ),
        (
            broken(facts={"shm_bytes": 67_108_864}),
            "/dev/shm", "warning", "0.067 GB, object store 9 GB", "--shm-size",
        ),
        (
            broken(facts={"open_files": 1024}),
            "open files", "problem", "at most 1,024", "ulimit -n 65536",
        ),
        (
            broken(facts={"disk_used": 0.97}),
            "disk of TMPDIR", "problem", "97% used", "TMPDIR",
        ),
        (
            broken(facts={"cpus": 2}),
            "cores", "warning", "Ray offers 8 of 2", "--num-cpus=2",
        ),
        (
            broken(skew=-40.0, skew_error=0.2),
            "clock", "warning", "-40.00 s", "chrony",
        ),
        (
            broken(skew=1000.0, skew_error=0.2),
            "clock", "problem", "+1000.00 s", "chrony",
        ),
        (
            broken(skew=0.0, skew_error=math.inf),
            "clock", "warning", "not known to within 5 s", "less busy",
        ),
        (
            [HEALTHY[0], NodeReport("b", OFFERED, None, "no answer within 120 s")],
            "answer", "problem", "no answer within 120 s", "repair or remove",
        ),
    ],
)  # fmt: skip
def test_each_broken_node_is_the_only_finding(nodes, check, verdict, found, remedy):
    (finding,) = findings(nodes)
    assert (finding.node, finding.check, finding.verdict) == ("b", check, verdict)
    assert found in finding.found
    assert remedy in finding.remedy


def test_a_slow_answer_does_not_make_a_clock_wrong():
    assert findings(broken(skew=8.0, skew_error=4.0)) == []


def test_a_cluster_without_cores_or_slots():
    empty = [NodeReport("a", {"object_store_memory": 9e9}, replace(GOOD, gpus=0))]
    assert [(f.check, f.verdict) for f in findings(empty)] == [
        ("cores", "problem"),
        ("trial slots", "warning"),
    ]


def test_a_node_describes_itself():
    facts = describe_node(("127.0.0.1:1",))
    assert set(facts.versions) == set(VERSIONS)
    assert all(facts.versions.values())
    assert facts.cpus >= 1
    assert facts.disk_free > 0
    assert 0 <= facts.disk_used <= 1
    assert facts.unreachable == ("127.0.0.1:1",)  # nothing may listen on port 1
