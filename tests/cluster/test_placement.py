"""How many workers and runs fit on nodes, and how long the runs take."""

import itertools

import pytest

from clue_ray.cluster.placement import count_workers, makespan, multi_worker_concurrency
from clue_ray.errors import ClusterError
from clue_ray.spec.specs import ResourcesSpec, StudySpec
from clue_ray.study.checks import check_cluster, check_nodes
from tests.study.test_progress import make_plan


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [{"CPU": 4}], 4),
        ({"cpus_per_worker": 2}, [{"CPU": 5}], 2),
        ({"cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 5}], 2),
        ({"gpus_per_worker": 1}, [{"CPU": 16, "GPU": 1}], 1),
        ({"gpus_per_worker": 0.25}, [{"CPU": 16, "GPU": 1}], 4),
        ({"gpus_per_worker": 0.1}, [{"CPU": 16, "GPU": 1}], 10),
        (
            {"gpus_per_worker": 0.4},
            [{"CPU": 16, "GPU": 2}],
            4,
        ),  # two on each GPU, the fifth would span both
        ({"gpus_per_worker": 2}, [{"CPU": 16, "GPU": 3}, {"CPU": 16, "GPU": 4}], 3),
        ({"gpus_per_worker": 1}, [{"CPU": 64}, {"CPU": 1, "GPU": 8}], 1),
    ],
)
def test_a_worker_runs_on_one_node(resources, nodes, expected):
    assert count_workers(ResourcesSpec(**resources), nodes) == expected


POOL = {"CPU": 64, "data_pool": 1}


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [{"CPU": 4}], 2),
        ({"cpus_per_worker": 3}, [{"CPU": 8}], 2),
        ({"cpus_per_worker": 3}, [{"CPU": 3}, {"CPU": 1}], 1),  # its packer is on the other node
        ({"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 8}, POOL], 8),
        ({"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 8}, {"CPU": 64}], 8),
        ({"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 8}], 4),
        ({"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 8}, POOL | {"CPU": 2}, {"CPU": 64}], 2),
        ({}, [{"CPU": 8}, POOL], 32),  # workers may take cores of the pool, too
        ({}, [{"CPU": 80}, POOL | {"CPU": 1}], 0),
    ],
)
def test_ray_data_packs_on_the_data_pool_or_else_on_any_node(resources, nodes, expected):
    assert count_workers(ResourcesSpec(feed="ray_data", **resources), nodes) == expected


def test_runs_of_several_workers_wait_for_all_their_workers_and_a_slot():
    assert multi_worker_concurrency(4, 9, [{"trial_slot": 64}]) == 2
    assert multi_worker_concurrency(2, 9, [{"trial_slot": 3}]) == 3
    assert multi_worker_concurrency(4, 2, [{"trial_slot": 3}]) == 1


def test_makespan_is_that_of_the_longest_first():
    assert makespan([1, 1, 2], 2) == 2
    assert makespan([3, 3, 2, 2, 2], 2) == 7
    assert makespan([], 2) == 0
    assert makespan([5], 4) == 5
    seconds = [9, 7, 6, 5, 4, 4, 2]
    best = min(
        max(sum(side), sum(seconds) - sum(side))
        for n in range(8)
        for side in itertools.combinations(seconds, n)
    )
    assert best <= makespan(seconds, 2) <= best * 7 / 6  # Graham's bound for two concurrent runs


def test_what_no_node_holds_is_refused_with_the_arithmetic():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}]
    with pytest.raises(
        ClusterError,
        match=r"2 concurrent workers of 4 CPU and 0 GPU .* \(at most 3 CPU .* hold 0; a worker",
    ):
        check_nodes(2, ResourcesSpec(cpus_per_worker=4), nodes)
    check_nodes(2, ResourcesSpec(cpus_per_worker=3), nodes)
    with pytest.raises(ClusterError, match=r"and a core each where Ray Data packs .* hold 1; a"):
        check_nodes(2, ResourcesSpec(cpus_per_worker=3, feed="ray_data"), nodes)
    document = {
        "name": "s",
        "corpus": "c",
        "base": {"train": {"steps": 1}},
        "axes": {},
        "resources": {"concurrency": 2},
    }
    study = StudySpec.parse(document, "s.yaml")
    check_cluster(make_plan(), study, nodes)
    with pytest.raises(
        ClusterError,
        match=r"needs 2 CPU \(1 workers or 2 concurrent runs\), but the cluster has 1;",
    ):
        check_cluster(make_plan(), study, [{"CPU": 1.0}])
