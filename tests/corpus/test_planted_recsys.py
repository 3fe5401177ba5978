"""The planted edition of the RecSys Challenge 2025: formats, truth, and the path through it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from clue_ray.corpus import build, planted_recsys
from clue_ray.corpus.build import build_corpus
from clue_ray.corpus.planted_recsys import WRITTEN, PlantedRecsysSpec, write_planted_recsys
from clue_ray.errors import EventLogError, StudyError
from clue_ray.spec.specs import CorpusSpec, EvaluationSpec, RunSpec, read_study
from clue_ray.training.checkpoints import load_state
from clue_ray.training.loop import LocalContext, train_with
from clue_ray.transfer.embed import embed
from clue_ray.transfer.embed.embed import embed_users
from clue_ray.transfer.encode import load_encoder
from clue_ray.transfer.encoder_file import export_encoder
from clue_ray.transfer.submission import check_submission
from clue_ray.transfer.tasks.evaluate import evaluate_task, prepare_examples
from clue_ray.transfer.tasks.examples import plan_events
from clue_ray.transfer.tasks.spec import read_task

SPEC = PlantedRecsysSpec(users=1_000, skus=200, urls=200, topics=4)
TYPES = {
    "product_buy": {"client_id": "int64", "timestamp": "string", "sku": "int64"},
    "add_to_cart": {"client_id": "int64", "timestamp": "string", "sku": "int64"},
    "remove_from_cart": {"client_id": "int64", "timestamp": "string", "sku": "int64"},
    "page_visit": {"client_id": "int64", "timestamp": "string", "url": "int64"},
    "search_query": {"client_id": "int64", "timestamp": "string", "query": "string"},
    "product_properties": {
        "sku": "int64",
        "category": "int64",
        "price": "int64",
        "name": "string",
    },
}


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edition")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted_recsys, "USERS_PER_BLOCK", 350)
        return folder, write_planted_recsys(SPEC, folder)


def test_files_have_the_formats_of_the_challenge(edition):
    folder, rows = edition
    found = 0
    for name, types in TYPES.items():
        table = pq.read_table(folder / f"{name}.parquet")
        assert {field.name: str(field.type) for field in table.schema} == types
        found += table.num_rows * (name != "product_properties")
    assert found == rows
    codes = pq.read_table(folder / "search_query.parquet")["query"][0].as_py()
    assert codes[0] + codes[-1] == "[]"
    numbers = [int(code) for code in codes[1:-1].split()]
    assert len(numbers) == 16
    assert set(numbers) <= set(range(256))
    time = pq.read_table(folder / "page_visit.parquet")["timestamp"][0].as_py()
    assert pd.Timestamp(time).strftime("%Y-%m-%d %H:%M:%S") == time
    for name in ("sku", "category"):
        labels = np.load(folder / "target" / f"propensity_{name}.npy")
        bought = np.load(folder / "target" / f"popularity_propensity_{name}.npy")
        assert (np.diff(bought) <= 0).all()
        assert len(labels) == len(bought) <= 100


def test_files_of_another_origin_are_kept(tmp_path):
    small = SPEC.model_copy(update={"users": 100})
    for name in ("product_buy.parquet", "input/relevant_clients.npy"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"mine")
        with pytest.raises(EventLogError, match=f"{name} was not drawn here"):
            write_planted_recsys(small, folder)
        assert (folder / name).read_bytes() == b"mine"
    write_planted_recsys(small, tmp_path / "own")
    write_planted_recsys(small, tmp_path / "own")  # its own files may be drawn again
    assert set(WRITTEN) == {
        str(file.relative_to(tmp_path / "own")) for file in (tmp_path / "own").rglob("*.*")
    } - {"truth/drawn.json"}
    (tmp_path / "own" / "page_visit.parquet").write_bytes(b"the real one, copied over it")
    with pytest.raises(EventLogError, match=r"page_visit\.parquet was not drawn here"):
        write_planted_recsys(small, tmp_path / "own")
    (tmp_path / "file").write_text("")
    with pytest.raises(EventLogError, match="cannot be written"):
        write_planted_recsys(SPEC, tmp_path / "file")


def test_traps_are_there(edition):
    folder, _ = edition
    files = [pq.read_table(folder / f"{name}.parquet") for name in list(TYPES)[:-1]]
    clients = set(np.concatenate([table["client_id"].to_numpy() for table in files]))
    relevant = np.load(folder / "input" / "relevant_clients.npy")
    assert relevant.dtype == np.int64
    assert len(set(relevant)) == len(relevant)
    assert set(relevant) - clients
    assert set(np.load(folder / "target" / "active_clients.npy")) < set(relevant)
    skus = set(pq.read_table(folder / "product_properties.parquet")["sku"].to_pylist())
    assert set(files[0]["sku"].to_pylist()) - skus


def test_tastes_and_leaving_are_those_of_the_truth(edition):
    folder, _ = edition
    truth = pd.read_parquet(folder / "truth" / "users.parquet").set_index("client_id")
    visits = pd.read_parquet(folder / "page_visit.parquet")
    own = truth.loc[visits["client_id"]]
    share = ((visits["url"] - 1) % SPEC.topics == own["topic"].to_numpy()).mean()
    assert share == pytest.approx(SPEC.loyalty + (1 - SPEC.loyalty) / SPEC.topics, abs=0.03)
    times = pd.to_datetime(visits["timestamp"]).astype("datetime64[s]").astype("int64")
    assert (times.to_numpy() <= own["gone"].to_numpy()).all()
    assert (truth["gone"] < truth["gone"].max()).mean() == pytest.approx(0.5, abs=0.1)


def test_blocks_do_not_repeat_each_other(edition):
    folder, _ = edition
    truth = pd.read_parquet(folder / "truth" / "users.parquet")
    assert len(truth) == SPEC.users == truth["client_id"].nunique()
    assert truth["activity"].nunique() == SPEC.users


def submit(folder, ids, matrix):
    np.save(folder / "client_ids.npy", ids)
    np.save(folder / "embeddings.npy", matrix)
    return folder


def test_the_checker_knows_each_rule(edition, tmp_path):
    folder, _ = edition
    relevant = np.load(folder / "input" / "relevant_clients.npy")
    rows = len(relevant)
    good = np.zeros((rows, 8), np.float16)
    assert check_submission(folder, submit(tmp_path, relevant[::-1], good)) == {
        "clients": rows,
        "columns": 8,
    }
    infinite = good.copy()
    infinite[rows // 2, 3] = np.inf
    wrong = {
        "int64 of one is required": (relevant.astype(np.int32), good),
        "repeats a client": (np.r_[relevant[:-1], relevant[0]], good),
        "lacks 1 of": (relevant[1:], good[1:]),
        "has 1 clients that are not relevant": (np.r_[relevant, -1], np.zeros((rows + 1, 8), "f2")),
        "float16 of two is required": (relevant, good.astype(np.float32)),
        "rows for": (relevant, good[1:]),
        "2,049 columns": (relevant, np.zeros((rows, 2049), np.float16)),
        f"row {rows // 2:,} that is not finite": (relevant, infinite),
    }
    for words, arrays in wrong.items():
        with pytest.raises(StudyError, match=words):
            check_submission(folder, submit(tmp_path, *arrays))
    (tmp_path / "embeddings.npy").unlink()
    with pytest.raises(StudyError, match="does not exist"):
        check_submission(folder, tmp_path)


STUDIES = Path(__file__).parents[2] / "studies" / "recsys2025"


@pytest.mark.slow
@pytest.mark.ray
def test_the_shipped_study_leads_to_a_valid_submission(edition, ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "partitions_for", lambda buckets: 2)
    monkeypatch.setattr(embed, "MIN_PARTS", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recsys2025").symlink_to(edition[0])
    monkeypatch.chdir(tmp_path)
    study = read_study(STUDIES / "study.yaml")
    corpus = build_corpus(study.corpus, tmp_path / "corpus")
    profile = corpus.profile()
    columns = profile["typed_columns"]
    assert {name: found["type"] for name, found in columns.items()} == {
        "category": "category",
        "name": "codes",
        "price": "number",
        "query": "codes",
        "sku": "category",
        "url": "category",
    }
    joined = profile["catalogues"]["events.sku"]
    assert 0 < joined["unmatched"] < joined["matched"]
    changes = {"encoder": {"size": "xxs"}, "train": {"global_batch_size": 16, "steps": 3}}
    run = RunSpec.parse({**changes, "sequence_length": 8}, "run")
    train_with(run, corpus, EvaluationSpec(candidates=16), LocalContext(tmp_path / "state"))
    weights = load_state(tmp_path / "state")["model"]
    export_encoder(tmp_path / "run" / "encoder", weights, run, "planted", corpus)
    clients = "data/recsys2025/input/relevant_clients.npy"
    spec = CorpusSpec.parse(yaml.safe_load((STUDIES / "corpus.yaml").read_text()), "corpus.yaml")
    manifest = embed_users(tmp_path / "run", spec, str(tmp_path / "out"), users=clients, form="npy")
    valid = check_submission("data/recsys2025", tmp_path / "out" / "matrix")
    assert valid == {"clients": len(np.load(clients)), "columns": 64}
    assert 0 < manifest["matrix"]["without_vector"] < valid["clients"] / 4
    for name in ("churn", "category", "sku"):
        task = read_task(STUDIES / f"{name}.yaml")
        if task.multi_label:  # few users of so small an edition buy one thing
            few = task.multi_label.model_copy(update={"min_users": 2})
            task = task.model_copy(update={"multi_label": few})
        examples = prepare_examples(task, plan_events(task))
        assert len(examples.names) >= 2
        assert all(name.isdigit() for name in examples.names) == bool(task.multi_label)
    task = task.model_copy(update={"seeds": (0,)})
    result = evaluate_task(load_encoder(tmp_path / "run"), {}, task, examples)
    assert "counts, 1/7/30 days" in {row["method"] for row in result["methods"]}
