"""Timing encoders on a node, and joining a cluster: each error is one sentence."""

import pytest
import ray

from clue_ray.cluster.session import join
from clue_ray.errors import ClusterError
from clue_ray.spec.specs import EvaluationSpec, ResourcesSpec
from clue_ray.study import costs as timing


def test_a_cluster_of_another_ray_is_named_with_ours(monkeypatch):
    def refuse(**options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 1.0.0\n    Python: 3.9.1"
        )

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        ClusterError, match=r"10\.0\.0\.1:6379 cannot be joined \(Version mismatch.*Ray: 1\.0\.0"
    ) as error:
        join("10.0.0.1:6379")
    assert f"Ray {ray.__version__}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_encoders_that_find_no_room_are_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(timing, "ROOM_SECONDS", 0.5)
    greedy = ResourcesSpec(cpus_per_worker=10_000)
    with pytest.raises(ClusterError, match=r"No node had room to time the encoders within 0\.5 s"):
        timing.time_on_a_node([], "nowhere", EvaluationSpec(), greedy)
