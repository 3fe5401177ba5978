"""Data on CPU nodes, runs of one, two and four workers on GPU nodes, with no deadlock or idling.

The GPUs are only declared, so nothing trains: each run holds its resources through Ray Tune and Ray
Train, and writes down where and when."""

import json
import shutil
import subprocess
import sys
import tempfile

import pandas as pd
import pytest

from clue_ray.cluster.placement import count_workers, multi_worker_concurrency
from clue_ray.spec.specs import ResourcesSpec

STUDY = """
import json, sys, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from clue_ray.spec.specs import EvaluationSpec, RunSpec, read_study
from clue_ray.study import run as study_run, tune as study_tune

file, output, temporary = sys.argv[1:]
HOLD = 4.0
store = {"object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "resources": {"trial_slot": 8}, "temp_dir": temporary, **store},
)
cluster.add_node(num_cpus=1, labels={"pool": "data"}, **store)
for _ in range(2):
    cluster.add_node(num_cpus=2, num_gpus=2, labels={"pool": "train"}, **store)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")


def hold(asked):
    context, begin = ray.get_runtime_context(), time.time()
    time.sleep(HOLD)
    held = {"node": context.get_node_id(), "gpus": context.get_accelerator_ids()["GPU"], **asked}
    file = Path(asked["log"]) / f"{asked['run_id']}-{time.time_ns()}.json"
    file.write_text(json.dumps({**held, "begin": begin, "end": time.time()}))


def place(config):
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer

    from clue_ray.corpus.store import open_corpus
    from clue_ray.study.directory import write_run
    from clue_ray.training.counters import describe_run
    from clue_ray.training.ray_train import make_trainer

    run, run_id = RunSpec(**config["run"]["spec"]), config["run"]["run_id"]
    folder = Path(config["directory"]) / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"run_id": run_id, "workers": run.resources.workers, "log": output}
    if run.resources.workers == 1:
        hold(asked)
    else:
        real = make_trainer(run, {"folder": str(folder)})  # its workers, without CUDA's library
        TorchTrainer(
            hold,
            train_loop_config=asked,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=real.scaling_config,
            run_config=train.RunConfig(name="workers", storage_path=str(folder)),
        ).fit()
    corpus, evaluation = open_corpus(config["corpus"]), EvaluationSpec(**config["evaluation"])
    description = describe_run(run, corpus, evaluation, config["study"])
    record = description.to_record("done", loss=1.0)
    write_run(folder, run, record, [])
    tune.report({"status": "done", "error": "", "loss": 1.0, "step": 1, "steps": 1})


def where(batch):
    time.sleep(0.2)
    return {"id": batch["id"], "node": [ray.get_runtime_context().get_node_id()] * len(batch["id"])}


def probe(*asked):
    blocks = ray.data.range(6, override_num_blocks=6).map_batches(where)
    rows = blocks.repartition(3, keys=["id"]).take_all()
    nodes = {row["node"] for row in rows}
    pools = [node["Labels"].get("pool") for node in ray.nodes() if node["NodeID"] in nodes]
    (Path(output) / "pools").write_text(json.dumps(pools))
    return real_build(*asked)


real_build, study_run.build_corpus, study_tune.run_trial = study_run.build_corpus, probe, place
runs = study_run.run_study(read_study(file), output)
print(json.dumps(runs.table["status"].tolist()), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def session_folder():
    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def most_at_once(held: pd.DataFrame) -> int:
    """Count the intervals that overlap most."""
    ends = [(row.begin, 1) for row in held.itertuples()] + [
        (row.end, -1) for row in held.itertuples()
    ]
    counts = pd.Series([step for _, step in sorted(ends)]).cumsum()
    return int(counts.max())


@pytest.mark.multinode
@pytest.mark.ray
def test_data_and_runs_of_every_size_find_their_nodes(
    planted_log, write_study, tmp_path, session_folder
):
    axes = [
        {"resources.workers": [1], "train.seed": [0, 1, 2, 3]},
        {"resources.workers": [4], "train.seed": [4]},
        {"resources.workers": [2], "train.seed": [5, 6]},
    ]
    file = write_study(planted_log, axes=axes, resources={"gpus_per_worker": 1})
    command = [sys.executable, "-c", STUDY, str(file), str(tmp_path), session_folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    # Ray prints warnings too.
    (printed,) = (line for line in ended.stdout.splitlines() if line.startswith("["))
    assert json.loads(printed) == ["done"] * 7
    assert json.loads((tmp_path / "pools").read_text()) == ["data"]

    held = pd.DataFrame([json.loads(each.read_text()) for each in tmp_path.glob("*-*.json")])
    workers = held.groupby("run_id").size().sort_values().tolist()
    assert workers == [1, 1, 1, 1, 2, 2, 4]  # every worker of every run
    assert held["gpus"].str.len().eq(1).all()
    assert held["node"].nunique() == 2
    for _, same in held.assign(gpu=held["gpus"].str[0]).groupby(["node", "gpu"]):
        assert most_at_once(same) == 1  # no GPU is held twice
    spans = held.groupby(["workers", "run_id"]).agg(begin=("begin", "min"), end=("end", "max"))
    assert most_at_once(spans.loc[2]) == 2  # two runs of two workers; of four, only one
    assert most_at_once(spans.loc[1]) == 4  # every GPU has a run
    turns = spans.groupby("workers").agg(begin=("begin", "min"), end=("end", "max")).loc[[4, 2, 1]]
    ordered = turns["end"].to_numpy()[:-1] <= turns["begin"].to_numpy()[1:]
    assert ordered.all()  # the runs with most workers first


def test_more_runs_of_fewer_workers_fit():
    nodes = [{"trial_slot": 64.0}, *[{"CPU": 64.0, "GPU": 8.0}] * 8]
    slots = count_workers(ResourcesSpec(gpus_per_worker=1), nodes)
    assert [multi_worker_concurrency(workers, slots, nodes) for workers in (64, 8, 2)] == [
        1,
        8,
        32,
    ]
