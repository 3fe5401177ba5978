"""Shared by all tests: a planted corpus, and one small Ray session for modules that ask for it."""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("no deadline", deadline=None)  # machines may be busy
hypothesis.settings.load_profile("no deadline")
# Two workers of pytest share two cores: more threads of torch and BLAS would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ.setdefault("RAY_num_workers_soft_limit", "8")  # idle ones kept: each starts for seconds

LONGEST = (
    "study/test_run.py",
    "study/test_scoring.py",
    "corpus/test_build.py",
    "study/test_mirror.py",
    "cli/test_cli.py",
    "training/test_loop.py",
    "report/test_page.py",
    "transfer/test_embed.py",
    "training/test_ray_train.py",
    "study/test_costs.py",
    "training/test_rates.py",
    "report/test_browser.py",
    "transfer/test_tasks.py",
    "spec/test_columns.py",
    "report/test_predict.py",
)
"""The test files that take longest, most of them on Ray, which waits more than it computes."""


def pytest_collection_modifyitems(session, items):
    """Run files on Ray first, the longest ones before the others.

    So no worker is left alone with one of them at the end, and each worker starts Ray once. Workers
    take the files in this order, given xdist's --no-loadscope-reorder.
    """
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    on_ray = session.stash[ON_RAY] = {i.path for i in items if "ray_session" in i.fixturenames}
    items.sort(  # stable: files stay together
        key=lambda item: (item.path not in on_ray, place.get(item.path, len(place)))
    )


ON_RAY = pytest.StashKey[set[Path]]()
"""The files with tests on Ray."""
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
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


@pytest.fixture(scope="session")
def ray_folder():
    """Ray's own short temporary folder; whatever session is open at the end is shut down."""
    folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
    yield folder
    _end_ray()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_session(ray_folder):
    """A Ray session of two cores, shared by the modules that ask for it: `pytest_runtest_setup`.

    Its processes inherit the credentials of `s3_query`.
    """
    import ray

    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in S3_KEYS:
            patch.setenv(name, "testing")
        ray.init(
            num_cpus=2,
            resources={"trial_slot": 8},
            object_store_memory=200_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=ray_folder,
        )


def _end_ray():
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def pytest_runtest_setup(item):
    """Shut Ray down before the first test of a module that does not ask for `ray_session`.

    A start costs some 20 seconds of a core, so modules in a row share one.
    """
    if item.path not in item.session.stash[ON_RAY]:
        _end_ray()


@pytest.fixture(scope="module")
def s3_query():
    """The query that leads an S3 URI to moto's server on loopback."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in S3_KEYS:
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


@pytest.fixture(scope="session")
def write_study(tmp_path_factory):
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
        path = tmp_path_factory.mktemp("study") / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    return write
