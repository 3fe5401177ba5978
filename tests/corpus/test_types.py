"""Typed columns: one token per category, quantile or code, learned on training users."""

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.corpus import types
from clue_ray.corpus.logs.reading import plan_reading, read_part
from clue_ray.corpus.logs.schema import normalise
from clue_ray.corpus.tokenizer import ItemTokenizer, train_tokenizer
from clue_ray.corpus.types import TypeWriter, add_types, describe_types, without_types
from clue_ray.errors import EventLogError
from clue_ray.report.profile_items import types_table
from clue_ray.spec.specs import CorpusSpec

TEMPLATE = "{name} {kind:category} {price:number} {codes:codes}"


def read(tmp_path, table, template=TEMPLATE):
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    spec = CorpusSpec(events=str(tmp_path / "log.parquet"), text=template)
    plan = plan_reading(spec)
    batches = [b for part in plan.parts for b in read_part(part, plan.logs[0])]
    return [row for b in batches for row in normalise(b.table, plan.logs[0], spec).to_pylist()]


def log(rows=60):
    rng = np.random.default_rng(0)
    return {
        "user_id": [f"u{n}" for n in range(rows)],
        "service": ["s"] * rows,
        "name": ["red shoe", "old map"] * (rows // 2),
        "kind": (np.arange(rows) % 5).astype(float),
        "price": np.round(rng.lognormal(3, 1, rows), 2) - 20,  # some are negative
        "codes": [f"[{n % 7} {n % 3}  11]" for n in range(rows)],
    }


@pytest.fixture
def trained(tmp_path):
    texts = [row["text"] for row in read(tmp_path, log())]
    tokenizer = train_tokenizer(map(without_types, texts), 300)
    return texts, tokenizer, add_types(tokenizer, Counter(texts))


def test_each_value_is_one_token(trained):
    texts, tokenizer, described = trained
    items = ItemTokenizer(tokenizer, 50)(texts, np.zeros(len(texts), int))
    words = {text: len(tokenizer.encode(text).ids) for text in ("red shoe", "old map")}
    for text, tokens in zip(texts, items.tokens.to_pylist(), strict=True):
        assert len(tokens) == 1 + words[text[: text.index(" ⟦")]] + 1 + 1 + 3
    assert {name: found["type"] for name, found in described.items()} == {
        "codes": "codes",
        "kind": "category",
        "price": "number",
    }
    assert described["kind"]["tokens"] == 5 + types.BUCKETS
    assert described["codes"]["tokens"] == (7 + 3 + 1) + 3
    found = describe_types(tokenizer)
    assert {n: f["tokens"] for n, f in found.items()} == {
        n: f["tokens"] for n, f in described.items()
    }


def test_quantiles_hold_equal_shares_and_keep_order(trained):
    _, tokenizer, _ = trained
    write = TypeWriter(tokenizer)
    prices = np.sort(log()["price"])
    tokens = [write(f"⟦price:number={price}⟧") for price in prices]
    uppers = [float(types.TOKEN.fullmatch(token)[5]) for token in tokens]
    assert uppers == sorted(uppers)
    assert all(price <= upper for price, upper in zip(prices, uppers, strict=True))
    assert np.unique(uppers, return_counts=True)[1].max() <= 3  # 60 prices, 32 quantiles
    assert write("⟦price:number=1e9⟧") == "⟦price:number<=inf⟧"
    assert write("⟦price:number=soon⟧") == "⟦price:number#⟧"


def test_rare_and_unknown_values_share_tokens(trained, monkeypatch):
    _, tokenizer, _ = trained
    write = TypeWriter(tokenizer)
    assert write("⟦kind:category=3⟧") == "⟦kind:category=3⟧"
    bucket = types.TOKEN.fullmatch(write("⟦kind:category=new⟧"))
    assert bucket[4] == "#"
    assert 0 <= int(bucket[5]) < types.BUCKETS
    assert write("⟦codes:codes=[99 1]⟧") == "⟦codes:codes[0]#⟧⟦codes:codes[1]=1⟧"
    assert write("⟦colour:category=red⟧ x") == " red  x"  # no tokens for it: words
    monkeypatch.setattr(types, "MOST_CATEGORIES", 3)
    many = {f"⟦id:category={n}⟧": 2 for n in range(50_000)}
    found = add_types(train_tokenizer([], 257), many)
    assert found["id"]["tokens"] == 3 + types.BUCKETS
    told = "Column 'id' is a category of 50,000 values, of which 3 have a token of their own and"
    assert told in types_table({"typed_columns": found}).note
    few = add_types(train_tokenizer([], 257), {f"⟦id:category={n}⟧": 2 for n in range(4)})
    assert "Column" not in types_table({"typed_columns": few}).note


def test_a_category_of_its_own_for_each_item_is_ranked_by_events():
    ids = {f"⟦id:category={n}⟧": n for n in range(1, 9)}
    tokenizer = train_tokenizer([], 257)
    assert add_types(tokenizer, ids)["id"]["own"] == 7  # item 1 has a single event
    write = TypeWriter(tokenizer)
    assert write("⟦id:category=8⟧") == "⟦id:category=8⟧"
    assert "#" in write("⟦id:category=1⟧")


def test_a_log_of_typed_columns_alone_needs_no_words(tmp_path):
    template = "{kind:category} {codes:codes}"
    texts = [row["text"] for row in read(tmp_path, log(), template)]
    tokenizer = train_tokenizer(filter(None, map(without_types, texts)), 300)
    add_types(tokenizer, Counter(texts))
    items = ItemTokenizer(tokenizer, 50)(texts, np.zeros(len(texts), int))
    assert set(map(len, items.tokens.to_pylist())) == {1 + 4}


def test_times_are_quantiles_of_their_seconds(tmp_path):
    days = pd.date_range("2024-01-01", periods=60, freq="D").astype(str).tolist()
    table = log() | {"listed": [*days[:-1], "soon"]}
    rows = read(tmp_path, table, "{name} {listed:time}")
    texts = [row["text"] for row in rows]
    assert texts[0] == "red shoe ⟦listed:number=1704067200⟧"
    assert texts[-1] == "old map ⟦listed:number=soon⟧"  # the token of other values
    tokenizer = train_tokenizer(map(without_types, texts), 300)
    assert add_types(tokenizer, Counter(texts))["listed"]["tokens"] == types.QUANTILES + 1


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.int64()), pa.large_list(pa.large_string()), pa.list_(pa.int32(), 2)],
)
def test_lists_of_a_parquet_file_are_codes(tmp_path, type_):
    table = {"user_id": ["a", "b"], "service": ["s", "s"], "name": ["x", "y"]}
    lists = [[7, 11], [None, 5]]
    if type_.value_type != pa.int64() and type_.value_type != pa.int32():
        lists = [["7", "11"], [None, "5"]]
    pq.write_table(pa.table({**table, "codes": pa.array(lists, type_)}), tmp_path / "log.parquet")

    def texts_of(template):
        reading = plan_reading(CorpusSpec(events=str(tmp_path / "log.parquet"), text=template))
        (part,), (log,) = reading.parts, reading.logs
        rows = [normalise(b.table, log, reading.spec) for b in read_part(part, log)]
        return pa.concat_tables(rows)["text"].to_pylist()

    assert texts_of("{name} {codes:codes}") == ["x ⟦codes:codes=7 11⟧", "y ⟦codes:codes=? 5⟧"]
    with pytest.raises(EventLogError, match="must be text or numbers"):
        texts_of("{codes}")


def test_empty_fields_are_left_out_and_empty_rows_rejected(tmp_path):
    table = {"user_id": ["a", "b"], "service": ["s", "s"], "name": [None, None]}
    table |= {"kind": [1.0, np.nan], "price": [np.nan, np.nan], "codes": [None, None]}
    first, second = read(tmp_path, pa.Table.from_pandas(pd.DataFrame(table)).to_pydict())
    assert first["text"] == "⟦kind:category=1⟧"
    assert second["reason"] == "text is null or empty"


def test_unknown_types_are_one_sentence(tmp_path):
    with pytest.raises(EventLogError, match="the type 'nubmer'; did you mean 'number'"):
        read(tmp_path, log(), "{price:nubmer}")
