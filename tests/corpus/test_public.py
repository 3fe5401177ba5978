"""The public log, with its words in the log or in a catalogue, from a package of four products."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus import public
from clue_ray.corpus.logs.catalogue import load_catalogues
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    products = pd.DataFrame(
        {
            "product_id": [5, 6, 7, 8],
            "department": ["MEAT", "GROCERY", "TOYS", "MISCELLANEOUS"],
            "brand": ["National", "Private", "National", "National"],
            "product_category": ["BEEF", "TEA", "DOLLS", None],
            "product_type": ["STEAK", "GREEN/BLACK TEA", "DOLL", None],
            "package_size": [None, "1 LB", None, None],
        }
    )
    baskets = pd.DataFrame(
        {
            "household_id": [2, 1, 1, 1],
            "product_id": [7, 6, 5, 8],
            "transaction_timestamp": pd.to_datetime(
                ["2017-01-02 10:00:05"] * 2 + ["2017-01-01 09:00:00"] * 2
            ),
            "quantity": 1,
            "sales_value": [1.5, 2.0, 3.0, 4.0],
            "week": 1,
        }
    )
    products.to_parquet(tmp_path / "data" / "products.parquet")
    baskets.to_parquet(tmp_path / "data" / "transactions.parquet")
    monkeypatch.setattr(public, "_package_folder", lambda *_: tmp_path)
    return tmp_path


def test_the_catalogue_has_the_words_of_the_joined_log(package, tmp_path):
    assert public.fetch_source("completejourney", tmp_path / "log.parquet") == 3
    assert public.fetch_source("completejourney-products", tmp_path / "journey") == 3
    joined = pq.read_table(tmp_path / "log.parquet").to_pandas()
    items = {"table": f"{tmp_path}/journey/products.parquet", "key": "product_id"}
    spec = CorpusSpec.parse(
        {
            "events": f"{tmp_path}/journey/baskets.parquet",
            "columns": {"user_id": "household_id", "timestamp": "transaction_timestamp"},
            "items": {"events.product_id": {**items, "text": "{product_type}"}},
        },
        "corpus",
    )
    reading = load_catalogues(plan_reading(spec))
    (batch,) = read_part(reading.parts[0], reading.logs[0])
    rows = normalise(batch.table, reading.logs[0], spec, first_row=batch.first_row).to_pandas()
    assert rows["service"].tolist() == joined["service"].tolist() == ["meat", "grocery", "other"]
    assert ("h_" + rows["user_id"]).tolist() == joined["user_id"].tolist()
    assert rows["timestamp"].tolist() == joined["timestamp"].tolist()
    assert rows["text"].tolist() == ["STEAK", "GREEN/BLACK TEA", "DOLL"]
    assert joined["text"].str.startswith("green / black tea; tea; private brand; 1 lb").sum() == 1


@pytest.mark.parametrize("name", public.SOURCES)
def test_an_output_that_cannot_be_written_is_one_sentence(package, name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EventLogError, match=r"file/x.* cannot be written \(.*choose another"):
        public.fetch_source(name, tmp_path / "file" / "x")
