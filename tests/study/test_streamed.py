"""Ray Data feeds a study from a data pool: runs of one and of two workers, two runs at a time."""

import pytest
import ray

from clue_ray.cluster.session import DATA_POOL
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import EvaluationSpec, read_study
from clue_ray.study.run import run_study
from clue_ray.training.loop import train_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STORE = {"object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture
def cluster(ray_folder):
    """A node with cores for two workers, and one of the data pool for workers and packers."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "resources": {"trial_slot": 4}, "temp_dir": ray_folder, **STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=4, labels=DATA_POOL, **STORE)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def packing_nodes():
    """Return the nodes on which processes that pack were started."""
    actors = ray._private.state.actors().values()
    return {each["Address"]["NodeID"] for each in actors if "Packer" in each["ActorClassName"]}


def test_a_data_pool_feeds_runs_of_one_and_of_two_workers(
    cluster, corpus, planted_log, write_study, tmp_path
):
    axes = [{"sequence_length": [4], "resources.workers": [2]}, {"sequence_length": [2, 3]}]
    resources = {"feed": "ray_data", "concurrency": 2}
    study = read_study(
        write_study(planted_log, corpus=str(corpus.path), axes=axes, resources=resources)
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    table = run_study(study, tmp_path).table.set_index("sequence_length")
    assert table["status"].to_dict() == {4: "done", 2: "done", 3: "done"}
    assert table["num_workers"].to_dict() == {4: 2, 2: 1, 3: 1}
    for run in expand(study):
        alone = train_run(run, corpus, EvaluationSpec(**study.evaluation.model_dump()))
        exact = 1e-5 if run.resources.workers == 2 else 0
        found = table.loc[run.sequence_length]
        assert found["loss"] == pytest.approx(alone.loss, abs=exact)
        assert found["train_loss"] == pytest.approx(alone.train_loss, abs=exact)
    (pool,) = [
        node["NodeID"] for node in ray.nodes() if DATA_POOL.items() <= node["Labels"].items()
    ]
    assert packing_nodes() == {pool}
