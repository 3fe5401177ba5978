"""Matrices of vectors: exactly the users of a list, in its order, views side by side."""

import hashlib

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from clue_ray.errors import EventLogError, StudyError
from clue_ray.transfer.embed import client_list, matrix
from clue_ray.transfer.embed.client_list import read_clients
from clue_ray.transfer.embed.embed import embed_users
from clue_ray.transfer.encode import load_encoder

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def numbered(events, tmp_path_factory):
    """The planted events of forty users with integer ids 100 ... 139, and user 500 of bad rows."""
    some = sorted(set(events["user_id"].to_pylist()))[:40]
    frame = events.to_pandas()
    frame = frame[frame["user_id"].isin(some)]
    frame["user_id"] = frame["user_id"].map({user: 100 + n for n, user in enumerate(some)})
    bad = pd.DataFrame([{**frame.iloc[0].to_dict(), "user_id": 500, "text": None}])
    path = tmp_path_factory.mktemp("numbered") / "log.parquet"
    pd.concat([frame, bad]).to_parquet(path)
    return path


def expected(encoder_folder, log, **how):
    frame = pd.read_parquet(log).dropna()
    return load_encoder(encoder_folder).encode(
        frame.assign(user_id=frame["user_id"].astype(str)), **how
    )


def test_a_list_gives_its_users_in_its_order(encoder_folder, numbered, tmp_path):
    wanted = np.random.default_rng(0).permutation(np.r_[100:130, 900, 500])
    np.save(tmp_path / "clients.npy", wanted)
    output = tmp_path / "out"
    manifest = embed_users(
        encoder_folder, str(numbered), str(output), users=str(tmp_path / "clients.npy"), form="npy"
    )
    ids = np.load(output / "matrix" / "client_ids.npy")
    values = np.load(output / "matrix" / "embeddings.npy")
    assert ids.dtype == np.int64
    assert values.dtype == np.float16
    assert np.array_equal(ids, wanted)
    plain = expected(encoder_folder, numbered)
    found = dict(zip(plain.user_ids, plain.values, strict=True))
    for user, row in zip(ids, values, strict=True):
        assert np.allclose(row, found.get(str(user), np.zeros(8)), atol=1e-3)
    missing = pq.read_table(output / "matrix" / "without_vector.parquet").to_pylist()
    assert {row["user_id"]: row["reason"] for row in missing} == {
        "500": "text is null or empty",
        "900": "no events in the log",
    }
    assert manifest["users"] == 30  # strangers of the list were not encoded
    assert manifest["matrix"]["without_vector"] == 2
    assert not list((output / "matrix").glob(".*"))
    again = embed_users(
        encoder_folder, str(numbered), str(output), users=str(tmp_path / "clients.npy"), form="npy"
    )
    assert again == manifest
    with pytest.raises(StudyError, match="other settings"):
        embed_users(encoder_folder, str(numbered), str(output))


def test_views_lie_side_by_side(encoder_folder, numbered, tmp_path, monkeypatch):
    log, first, second = str(numbered), str(tmp_path / "a"), str(tmp_path / "b")
    embed_users(encoder_folder, log, first)
    monkeypatch.setattr(matrix, "ROWS_PER_GROUP", 7)
    manifest = embed_users(encoder_folder, log, second, per_service=True, join=[first])
    table = pq.read_table(tmp_path / "b" / "matrix" / "embeddings.parquet")
    services = sorted(load_encoder(encoder_folder).card.services)
    assert manifest["matrix"]["views"] == [8 * len(services), 8]
    values = np.array(table["vector"].to_pylist())
    whole, each = (expected(encoder_folder, numbered, per_service=flag) for flag in (False, True))
    row = {user: n for n, user in enumerate(whole.user_ids)}
    reference = np.zeros((len(row), 8 * len(services) + 8))
    for user, service, vector in zip(*each, strict=True):
        start = 8 * services.index(service)
        reference[row[user], start : start + 8] = vector
    reference[:, -8:] = whole.values
    assert table["user_id"].to_pylist() == sorted(row)
    assert np.allclose(values, reference, atol=1e-5)
    monkeypatch.setattr(matrix, "MOST_COLUMNS", 20)
    with pytest.raises(StudyError, match="at most 20 are allowed"):
        embed_users(encoder_folder, log, str(tmp_path / "c"), per_service=True, join=[first])
    with pytest.raises(StudyError, match="not a finished embedding"):
        embed_users(encoder_folder, log, str(tmp_path / "d"), join=[str(tmp_path)])
    with pytest.raises(StudyError, match="leave out --since"):
        embed_users(encoder_folder, log, str(tmp_path / "e"), since=first, form="npy")


@pytest.mark.parametrize("name", ["users.csv", "users.parquet", "users.npy"])
def test_lists_of_any_format(name, tmp_path):
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, np.array(["007", "12"]))
    else:
        frame = pd.DataFrame({"client_id": ["007", "12"], "other": [1, 2]})
        (frame.to_csv if name.endswith("csv") else frame.to_parquet)(path, index=False)
    assert read_clients(str(path)).users.to_pylist() == ["007", "12"]


def test_users_of_any_view_have_a_row(encoder_folder, numbered, tmp_path):
    frame = pd.read_parquet(numbered)
    logs = [tmp_path / "few.parquet", tmp_path / "others.parquet"]
    frame[frame["user_id"] < 110].to_parquet(logs[0])
    frame[frame["user_id"].between(105, 115)].to_parquet(logs[1])
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    embed_users(encoder_folder, str(logs[0]), first)
    embed_users(encoder_folder, str(logs[1]), second, join=[first])
    table = pq.read_table(tmp_path / "b" / "matrix" / "embeddings.parquet")
    assert table["user_id"].to_pylist() == [str(user) for user in range(100, 116)]
    values = np.array(table["vector"].to_pylist())
    assert (np.abs(values[:5, :8]) == 0).all()
    assert (np.abs(values[:5, 8:]).sum(1) > 0).all()


def test_bad_lists_are_one_sentence(encoder_folder, numbered, tmp_path):
    def message(values):
        np.save(tmp_path / "bad.npy", np.array(values))
        with pytest.raises(StudyError) as caught:
            read_clients(str(tmp_path / "bad.npy"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "repeats a user in 1 rows (such as '7')" in message([7, 8, 7])
    assert "has 2 dimensions, not 1" in message([[1, 2]])
    assert "is empty" in message(np.zeros(0, int))
    assert "1 rows without an id" in message(["a", ""])
    (tmp_path / "nothing.npy").write_bytes(b"")
    np.savez(tmp_path / "two.npz", a=[1])
    (tmp_path / "two.npz").rename(tmp_path / "archive.npy")
    for name in ("nothing.npy", "archive.npy"):
        with pytest.raises(StudyError, match="cannot be read"):
            read_clients(str(tmp_path / name))
    with pytest.raises(StudyError, match="does not exist"):
        read_clients(str(tmp_path / "none.npy"))
    pd.DataFrame({"a": [1], "b": [2]}).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(StudyError, match="none is user_id"):
        read_clients(str(tmp_path / "two.csv"))
    np.save(tmp_path / "strangers.npy", np.array([1, 2]))
    strangers = str(tmp_path / "strangers.npy")
    with pytest.raises(EventLogError, match="None of the 2 users"):
        embed_users(encoder_folder, str(numbered), str(tmp_path / "o"), users=strangers)


def test_a_ragged_list_of_users_is_one_sentence(tmp_path):
    (tmp_path / "users.csv").write_text("user_id,segment\n1,a\n2\n")
    with pytest.raises(StudyError, match="line 3 has 1 fields, and the header 2"):
        read_clients(str(tmp_path / "users.csv"))


def test_a_list_of_too_many_users_is_refused(encoder_folder, numbered, tmp_path, monkeypatch):
    file = tmp_path / "users.csv"
    file.write_text("user_id\n1\n2\n3\n")
    plain = hashlib.sha256(b"1\n2\n3").hexdigest()[:12]
    for block in (1, 2, 3, 100):
        monkeypatch.setattr(client_list, "BLOCK", block)
        assert read_clients(str(file)).digest == plain
    monkeypatch.setattr(client_list, "MOST_USERS", 2)
    with pytest.raises(StudyError, match=r"users\.csv has 3 users, and a matrix can have 2; split"):
        read_clients(str(file))
    with pytest.raises(StudyError, match=r"An embedding has \d+ users, and a matrix can have 2"):
        embed_users(encoder_folder, str(numbered), str(tmp_path / "o"), form="npy")
