"""Tokenize item texts with byte-level BPE, and put the guide token of its service before each item.

The same texts give the same tokenizer on every cluster, and the same tokenizer gives the same ids.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.types import TypeWriter
from clue_ray.errors import CorpusError, reason_of
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import read_bytes

MAX_TEXTS = 500_000
"""Distinct texts that a tokenizer is trained on, chosen by the lowest hashes."""
MOST_BYTES = 64_000_000
"""Bytes of a tokenizer.json; those of 256,000 tokens have about 20 million."""
MOST_GROWTH = 100
"""Times that the steps before and after a tokenizer's model may make a text longer."""
SEQUENCES = ("normalizers", "pretokenizers", "decoders")
"""Keys of the steps of a sequence."""
PROBE = "Naïve café &amp; \x00\t\x07\u200b 你好 🧺👩‍👩‍👧 ﷽  "


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; the same texts in the same order give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def parse_tokenizer(document: str) -> Tokenizer:
    """Return the tokenizer that a tokenizer.json describes, without truncation and padding.

    Raises:
        ValueError: it is too large, or could make a text very much longer.
        Exception: it is damaged; the library raises no other type.
    """
    if len(document) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    found = parse_json(document)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (growth := _growth(found.get(part))) > MOST_GROWTH:
            raise ValueError(
                f"its {part} can make a text {growth:,.0f} times longer, at most "
                f"{MOST_GROWTH} are allowed"
            )
    tokenizer = Tokenizer.from_str(document)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _growth(step: Any) -> float:
    """Return a bound of how many times longer a step of a tokenizer makes a text.

    Only steps that insert texts of their own can make it much longer. Precompiled ones can map a
    letter to anything, and no byte-level tokenizer has one.
    """
    if not isinstance(step, dict):
        return 1
    if step.get("type") == "Precompiled":
        return math.inf
    steps = (inner for name in SEQUENCES for inner in step.get(name) or ())
    inserted = max(len(str(step.get(name) or "")) for name in ("content", "prepend", "replacement"))
    return (1 + inserted) * math.prod(map(_growth, steps))


def read_tokenizer(path: str) -> Tokenizer:
    """Read the tokenizer in a file or at a URI.

    Raises:
        CorpusError: it cannot be read, or it does not preserve every text.
    """
    try:
        tokenizer = parse_tokenizer(read_bytes(path, MOST_BYTES).decode())
    except FileNotFoundError:
        raise CorpusError(
            f"Tokenizer {path} does not exist; give the tokenizer.json of a corpus."
        ) from None
    except Exception as error:  # tokenizers raises a plain Exception for an unknown format
        raise CorpusError(
            f"Tokenizer {path} cannot be read ({reason_of(error)}); give the tokenizer.json of a "
            "corpus."
        ) from None
    ids = tokenizer.encode(PROBE, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=False) != PROBE:
        raise CorpusError(
            f"Tokenizer {path} loses part of some texts; use byte-level BPE, such as the "
            "tokenizer.json of a corpus."
        )
    return tokenizer


NO_TEXTS = pa.schema([("text", pa.string()), ("events", pa.int64())]).empty_table()


class TrainingTexts:
    """The texts with the lowest hashes among all that are added, each once, and their events.

    Sampling by hash needs no random state and no order: a text is chosen or not whatever the batch
    or the node it comes from, and merging samples of parts gives the sample of the whole. A text in
    the sample is never left out before, so its events are all counted. Memory holds at most a few
    times `limit` texts.
    """

    def __init__(self, limit: int = MAX_TEXTS):
        self.limit = limit
        self.chunks: list[pa.Table] = []

    def add(self, texts: pa.Array, events: pa.Array) -> None:
        """Add texts with their events; drop the highest hashes if there are too many."""
        self.chunks.append(pa.table({"text": texts, "events": events}))
        if sum(map(len, self.chunks)) > 4 * self.limit:
            self.chunks = [_lowest_hashes(self._summed(), self.limit)]

    def _summed(self) -> pa.Table:
        whole = pa.concat_tables([NO_TEXTS, *self.chunks])
        summed = whole.group_by("text").aggregate([("events", "sum")])
        return summed.rename_columns({"events_sum": "events"}).select(NO_TEXTS.column_names)

    def distinct(self) -> pa.Array:
        """Return the texts in memory, each once."""
        return self._summed()["text"]

    def sample(self) -> dict[str, int]:
        """Return the texts to train on and the events of each.

        They are sorted, because BPE depends on the order of its input.
        """
        table = _lowest_hashes(self._summed(), self.limit).sort_by("text")
        return dict(zip(table["text"].to_pylist(), table["events"].to_pylist(), strict=True))


class TextFilter:
    """Leaves out texts that cannot be in the sample, because enough lower hashes are known.

    A process keeps one per log. Without it every distinct text of every batch would go through the
    driver, which then works for as long as the log is; with it a process soon sends few.
    """

    def __init__(self, limit: int = MAX_TEXTS):
        self.limit = limit
        self._lowest = np.zeros(0, np.uint64)
        "the lowest hashes of distinct texts so far, sorted; at most `limit`"

    def __call__(self, texts: pa.Array) -> pa.Array:
        """Return which of distinct texts may be in the sample."""
        # Also if they were returned before: a task is tried again where its result was lost.
        hashes = _hash_texts(texts.to_pylist())
        self._lowest = np.union1d(self._lowest, hashes)[: self.limit]
        if len(self._lowest) < self.limit:
            return pa.array(np.ones(len(texts), bool))
        return pa.array(hashes <= self._lowest[-1])


def _lowest_hashes(table: pa.Table, limit: int) -> pa.Table:
    """Return the rows of the `limit` texts with the lowest hashes, or all if they are fewer."""
    if len(table) <= limit:
        return table
    hashes = _hash_texts(table["text"].to_pylist())
    return table.take(pa.array(np.argsort(hashes, kind="stable")[:limit]))


def _hash_texts(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hash each text to uint64, the same on every machine."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class ItemTokenizer:
    """A tokenizer with a cache of texts: the shards of one process share most of their items.

    The cache is a few concatenated arrays, because a list per text would take far more memory.

    Args:
        max_item_tokens: tokens kept of each text.
        limit: texts in the cache above which it is emptied.
    """

    def __init__(self, tokenizer: Tokenizer, max_item_tokens: int, limit: int = MAX_TEXTS):
        self.tokenizer = tokenizer
        self.max_item_tokens = max_item_tokens
        self.write_types = TypeWriter(tokenizer)
        self.first_guide: int = tokenizer.get_vocab_size()
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self.cached: dict[str, int] = {}
        self.tokens = np.zeros(0, np.int32)
        self.offsets = np.zeros(1, np.int64)
        self.lengths = np.zeros(0, np.int32)
        self.hashes = np.zeros(0, np.uint64)

    def __call__(self, texts: list[str], guides: NDArray[np.integer]) -> "TokenizedItems":
        """Tokenize items: each is a guide token followed by the first tokens of its text.

        Args:
            guides: index of each item's service, [items]. Guide tokens are the ids after those of
                the vocabulary.
        """
        if len(self.cached) > self.limit:
            self._clear()
        self._add(list(dict.fromkeys(text for text in texts if text not in self.cached)))
        index = np.array([self.cached[text] for text in texts], dtype=np.int64)
        kept = np.diff(self.offsets)[index]
        starts = np.cumsum(kept + 1) - kept - 1
        tokens = np.empty(len(texts) + kept.sum(), dtype=np.int32)
        tokens[starts] = self.first_guide + guides
        tokens[ranges(starts + 1, kept)] = self.tokens[ranges(self.offsets[index], kept)]
        offsets = pa.array(np.append(starts, len(tokens)), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, pa.array(tokens))
        return TokenizedItems(lists, self.lengths[index], self.hashes[index])

    def _add(self, texts: list[str]) -> None:
        """Tokenize texts that are not in the cache, and add them to it."""
        self.cached |= {text: number for number, text in enumerate(texts, len(self.cached))}
        written = [self.write_types(text) for text in texts]
        encoded = self.tokenizer.encode_batch_fast(written, add_special_tokens=False)
        ids = [item.ids for item in encoded]
        cut = [np.array(item[: self.max_item_tokens], dtype=np.int32) for item in ids]
        ends = self.offsets[-1] + np.cumsum([len(item) for item in cut], dtype=np.int64)
        lengths = np.array([len(item) for item in ids], dtype=np.int32)
        self.tokens = np.concatenate([self.tokens, *cut])
        self.offsets = np.concatenate([self.offsets, ends])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.hashes = np.concatenate([self.hashes, _hash_texts(texts)])


@dataclass(frozen=True)
class TokenizedItems:
    """Tokenized items.

    Attributes:
        tokens: ids of each item, guide token first, [items].
        text_tokens: number of tokens of each whole text, before the cut, [items].
        hashes: hash of each text, [items].
    """

    tokens: pa.ListArray
    text_tokens: NDArray[np.int32]
    hashes: NDArray[np.uint64]
