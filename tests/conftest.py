"""Shared by all tests: a planted corpus, and one small Ray session a module that asks for it."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

SPLIT = {"validation": 0.1, "test": 0.25}


@pytest.fixture(scope="session")
def planted_log(tmp_path_factory):
    """A Parquet log of 240 users in three services."""
    import pyarrow.parquet as pq

    from clue_ray.corpus.planted import PlantedSpec, planted_events

    path = tmp_path_factory.mktemp("log") / "events.parquet"
    spec = PlantedSpec(
        users=240, services=3, topics=12, concentration=2, items_per_topic=20, events=24
    )
    pq.write_table(planted_events(spec), path)
    return path


@pytest.fixture(scope="module")
def ray_session():
    """A Ray session with two cores and its own short temporary folder."""
    import ray

    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    ray.init(
        num_cpus=2,
        resources={"trial_slot": 8},
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def s3_query():
    """The query that leads an S3 URI to moto's server on loopback."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port)
        server.start()
        yield f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        server.stop()


@pytest.fixture(scope="session")
def corpus(planted_log, tmp_path_factory):
    """The planted log as a corpus, prepared without Ray Data's executor: see `plain_corpus`."""
    from tests.plain import plain_corpus

    return plain_corpus(planted_log, tmp_path_factory.mktemp("corpus") / "c", SPLIT)


@pytest.fixture
def write_study(tmp_path):
    """Write a study file over a log, with changes to its dotted fields; return its path."""
    import yaml

    def write(log: Path, **changes) -> Path:
        study = {
            "name": "tiny",
            "question": "Does it learn?",
            "corpus": {"events": str(log), "vocab_size": 400, "split": SPLIT},
            "base": {
                "encoder": {"size": "xxs", "output_width": 16},
                "train": {"global_batch_size": 16, "steps": 6},
                "sequence_length": 4,
            },
            "axes": {"sequence_length": [2, 4], "encoder.size": ["xxs", "xs"]},
            "evaluation": {"candidates": 16, "every": 0.5},
            "fit": {"laws": ["power_law", "log_linear"]},
        }
        for dotted, value in changes.items():
            *parents, key = dotted.split("__")
            node = study
            for parent in parents:
                node = node[parent]
            node[key] = value
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    return write
