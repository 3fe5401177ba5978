"""Tables of other tools are read as runs, or refused in one sentence."""

import gzip
import zipfile

import pandas as pd
import pytest

from clue_ray.errors import RunsError
from clue_ray.runs import read_runs

TABLE = pd.DataFrame({"train_flops": [1e3, 1e4, 1e5], "loss": [3.5, 2.25, 1.5]})


@pytest.mark.parametrize(
    ("words", "statuses"),
    [
        (["finished", "Crashed", "running"], ["done", "failed", "missing"]),
        (["COMPLETED", "OUT_OF_MEMORY", "PENDING"], ["done", "failed", "missing"]),
        (["COMPLETE", "PRUNED", "Succeeded"], ["done", "failed", "done"]),
        (["done", "diverged", "missing"], ["done", "diverged", "missing"]),
    ],
)
def test_statuses_of_other_tools(tmp_path, words, statuses):
    TABLE.assign(status=words).to_csv(tmp_path / "runs.csv")
    assert read_runs(tmp_path / "runs.csv").table["status"].tolist() == statuses


@pytest.mark.parametrize("name", ["State", "Status", "state", "Run Status"])
def test_the_column_of_statuses_has_other_names_too(tmp_path, name):
    TABLE.assign(**{name: ["finished", "crashed", "RUNNING"]}).to_csv(tmp_path / "runs.csv")
    runs = read_runs(tmp_path / "runs.csv")
    assert runs.table["status"].tolist() == ["done", "failed", "missing"]
    assert len(runs.done) == 1


def test_a_state_may_be_a_place(tmp_path):
    TABLE.assign(state=["finished", "Ohio", "Utah"]).to_csv(tmp_path / "runs.csv")
    assert len(read_runs(tmp_path / "runs.csv").done) == 3


def test_an_unknown_status_is_named(tmp_path):
    TABLE.assign(status=["done", "purple", "done"]).to_csv(tmp_path / "runs.csv")
    with pytest.raises(RunsError, match=r"'status' .* holds 'purple' in row 1"):
        read_runs(tmp_path / "runs.csv")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separators(tmp_path, separator, decimal):
    TABLE.to_csv(tmp_path / "runs.csv", sep=separator, decimal=decimal, index=False)
    pd.testing.assert_frame_equal(read_runs(tmp_path / "runs.csv").table, TABLE)


@pytest.mark.parametrize("name", ["runs.csv.gz", "runs.csv.zip", "runs.csv.bz2", "runs.tsv.xz"])
def test_packed(tmp_path, name):
    TABLE.to_csv(tmp_path / name, index=False)
    pd.testing.assert_frame_equal(read_runs(tmp_path / name).table, TABLE)


def test_json_lines(tmp_path):
    TABLE.to_json(tmp_path / "runs.jsonl", orient="records", lines=True)
    pd.testing.assert_frame_equal(read_runs(tmp_path / "runs.jsonl").table, TABLE)


def test_damaged_and_doubtful_tables_are_refused_in_a_sentence(tmp_path):
    text = TABLE.to_csv(index=False)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", text)
        archive.writestr("b.csv", text)
    contents = {
        "cut.csv.gz": gzip.compress(text.encode())[:-10],
        "bad.csv.zip": b"PK\x03\x04 and no more",
        "two.csv.zip": (tmp_path / "two.zip").read_bytes(),
        "twice.csv": b"loss,x,loss\n1,2,3\n",
        "empty.csv": b"",
        "list.jsonl": b"[1, 2]\n",
        "junk.parquet": b"junk",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunsError, match=f"{name} cannot be read as a runs table") as error:
            read_runs(tmp_path / name)
        assert "\n" not in str(error.value)
