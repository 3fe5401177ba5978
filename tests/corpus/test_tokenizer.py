"""Tokenizers preserve every text and are deterministic; unsuitable ones are errors."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from clue_ray.corpus.tokenizer import (
    ItemTokenizer,
    TextFilter,
    TrainingTexts,
    read_tokenizer,
    train_tokenizer,
)
from clue_ray.errors import CorpusError

TEXTS = [
    f"{a} {b} {n}"
    for a in ("green tea", "red pot", "blue jug")
    for b in ("large", "small")
    for n in range(9)
]
TOKENIZER = train_tokenizer(TEXTS, 320)


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize(
    "text", ["naïve café ☕ \t\x07", "&amp;&lt;b&gt;", "👩‍👩‍👧 ﷽", "\x00\x1f\x7f", "Ã© Â£"]
)
def test_awkward_texts_come_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_order_of_arrival_does_not_matter():
    def sample(chunks):
        texts = TrainingTexts(limit=40)
        for chunk in chunks:
            texts.add(pa.array(chunk), pa.array([2] * len(chunk)))
        return texts.sample()

    many = [f"text {n}" for n in range(500)]
    once = sample([many])
    again = sample([many[n::7][::-1] for n in range(7)])
    assert list(once.items()) == list(again.items())
    assert set(once.values()) == {2}
    assert sample([many] * 3) == dict.fromkeys(once, 6)  # events add up, also after a reduction
    assert len(once) == 40
    assert set(once) <= set(many)
    assert train_tokenizer(once, 300).to_str() == train_tokenizer(again, 300).to_str()


def test_what_a_process_leaves_out_is_not_in_the_sample():
    many = [f"text {n}" for n in range(2000)]
    batches = [pa.array(many[n : n + 50]) for n in range(0, 2000, 25)]  # each text is seen twice
    filters, sent = [TextFilter(limit=40) for _ in range(2)], TrainingTexts(limit=40)
    for number, batch in enumerate(batches):
        kept = filters[number % 2](batch)
        assert filters[number % 2](batch).equals(kept)  # also when tried again
        found = batch.filter(kept)
        sent.add(found, pa.array([1] * len(found), pa.int64()))
    expected = TrainingTexts(limit=40)
    expected.add(pa.array(many), pa.array([2 if n >= 25 else 1 for n in range(2000)]))
    assert sent.sample() == expected.sample()
    assert sum(filters[0](batch).true_count for batch in batches) < 0.1 * len(many)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=30), st.integers(1, 6))
def test_cached_items_equal_fresh_ones(texts, max_item_tokens):
    caching = ItemTokenizer(TOKENIZER, max_item_tokens, limit=5)
    for chunk in (texts[: len(texts) // 2 + 1], texts, texts[::-1]):
        guides = np.arange(len(chunk)) % 2
        found = caching(chunk, guides)
        for row, text in enumerate(chunk):
            ids = TOKENIZER.encode(text).ids
            assert found.tokens[row].as_py() == [
                TOKENIZER.get_vocab_size() + row % 2,
                *ids[:max_item_tokens],
            ]
            assert found.text_tokens[row] == len(ids)
        assert len(set(found.hashes.tolist())) == len(set(chunk))


def test_given_tokenizer_is_read_and_checked(tmp_path):
    good = tmp_path / "tokenizer.json"
    TOKENIZER.enable_truncation(2)
    TOKENIZER.save(str(good))
    TOKENIZER.no_truncation()
    assert read_tokenizer(str(good)).encode(TEXTS[0]).ids == TOKENIZER.encode(TEXTS[0]).ids


def words_only() -> str:
    tokenizer = Tokenizer(models.WordLevel({"tea": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (json.dumps({"vocab": ["a", "b"]}), "cannot be read"),
        ("PK\x03\x04", "cannot be read"),
        (words_only(), "loses part of some texts"),
    ],
)
def test_unsuitable_tokenizers_are_errors(tmp_path, content, words):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CorpusError, match=words) as error:
        read_tokenizer(str(path))
    assert "\n" not in str(error.value)
