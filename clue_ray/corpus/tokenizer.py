"""Item texts to token ids: one deterministic byte-level BPE, with a guide token a service in front
of every item.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clue_ray.corpus.store import ranges
from clue_ray.errors import CorpusError
from clue_ray.storage.files import read_bytes

MAX_TEXTS = 500_000
"""Distinct texts a tokenizer is trained on; of more, those with the lowest hashes, a sample any
cluster agrees on."""
PROBE = "Naïve café &amp; \x00\t\x07\u200b 你好 🧺👩‍👩‍👧 ﷽  "


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on item texts; the same texts in the same order give the same
    tokenizer.
    """
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


def read_tokenizer(path: str) -> Tokenizer:
    """Read a given tokenizer, a path or URI.

    Raises:
        CorpusError: it is none, or does not spell every text so that it can be read back.
    """
    try:
        tokenizer = Tokenizer.from_str(read_bytes(path).decode())
    except FileNotFoundError:
        raise CorpusError(
            f"Tokenizer {path} does not exist; give the tokenizer.json of a corpus."
        ) from None
    except Exception as error:  # tokenizers raises plain Exception for a file it does not know
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"Tokenizer {path} cannot be read ({reason}); give the tokenizer.json of a corpus."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (
        tokenizer.decode(
            tokenizer.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False
        )
        != PROBE
    ):
        raise CorpusError(
            f"Tokenizer {path} does not give back every text it reads; use byte-level BPE, such as "
            f"the tokenizer.json "
            "of a corpus."
        )
    return tokenizer


class TrainingTexts:
    """Distinct texts met so far; at most a few times MAX_TEXTS of them are in memory."""

    def __init__(self, limit: int = MAX_TEXTS):
        self.limit = limit
        self.chunks: list[pa.Array] = []

    def add(self, texts: pa.Array) -> None:
        """Add texts; forget repeated ones, and those with the highest hashes when there are too
        many.
        """
        self.chunks.append(texts)
        if sum(map(len, self.chunks)) > 4 * self.limit:
            self.chunks = [lowest_hashes(self.distinct(), self.limit)]

    def distinct(self) -> pa.Array:
        """Return the texts kept, each once."""
        return pc.unique(pa.chunked_array(self.chunks, pa.string()))

    def sample(self) -> list[str]:
        """Return the texts to train on, sorted: the same whatever the order in which they came."""
        return sorted(lowest_hashes(self.distinct(), self.limit).to_pylist())


def lowest_hashes(texts: pa.Array, limit: int) -> pa.Array:
    """Choose the `limit` texts with the lowest hashes, or all if they are fewer; `texts` are
    distinct.
    """
    if len(texts) <= limit:
        return texts
    return texts.take(pa.array(np.argsort(_hash_texts(texts.to_pylist()), kind="stable")[:limit]))


def _hash_texts(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hash each text to uint64, the same on every machine."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class ItemTokenizer:
    """Tokenises item texts and remembers them: the shards that one process writes share most of
    their items.
    """

    def __init__(self, tokenizer: Tokenizer, max_item_tokens: int, limit: int = MAX_TEXTS):
        self.tokenizer = tokenizer
        self.max_item_tokens = max_item_tokens
        self.first_guide: int = tokenizer.get_vocab_size()
        self.limit = limit
        self._forget()

    def _forget(self) -> None:
        self.known: dict[str, int] = {}
        self.tokens = np.zeros(0, np.int32)
        self.offsets = np.zeros(1, np.int64)
        self.lengths = np.zeros(0, np.int32)
        self.hashes = np.zeros(0, np.uint64)

    def __call__(self, texts: list[str], guides: NDArray[np.integer]) -> "TokenizedItems":
        """Tokenise items: each its guide token (ids above the vocabulary), then the first tokens of
        its text.

        Args:
            guides: index of each item's service, [items].
        """
        if len(self.known) > self.limit:
            self._forget()
        self._learn(list(dict.fromkeys(text for text in texts if text not in self.known)))
        index = np.array([self.known[text] for text in texts], dtype=np.int64)
        kept = np.diff(self.offsets)[index]
        starts = np.cumsum(kept + 1) - kept - 1
        tokens = np.empty(len(texts) + kept.sum(), dtype=np.int32)
        tokens[starts] = self.first_guide + guides
        tokens[ranges(starts + 1, kept)] = self.tokens[ranges(self.offsets[index], kept)]
        offsets = pa.array(np.append(starts, len(tokens)), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, pa.array(tokens))
        return TokenizedItems(lists, self.lengths[index], self.hashes[index])

    def _learn(self, texts: list[str]) -> None:
        self.known.update(
            zip(texts, range(len(self.known), len(self.known) + len(texts)), strict=True)
        )
        ids = [
            item.ids for item in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        cut = [np.array(item[: self.max_item_tokens], dtype=np.int32) for item in ids]
        self.tokens = np.concatenate([self.tokens, *cut])
        self.offsets = np.concatenate(
            [
                self.offsets,
                self.offsets[-1] + np.cumsum([len(item) for item in cut], dtype=np.int64),
            ]
        )
        self.lengths = np.concatenate(
            [self.lengths, np.array([len(item) for item in ids], dtype=np.int32)]
        )
        self.hashes = np.concatenate([self.hashes, _hash_texts(texts)])


@dataclass(frozen=True)
class TokenizedItems:
    """Tokens of items, [items] each: lists of ids with the guide in front, whole texts' token
    counts, texts' hashes.
    """

    tokens: pa.ListArray
    text_tokens: NDArray[np.int32]
    hashes: NDArray[np.uint64]
