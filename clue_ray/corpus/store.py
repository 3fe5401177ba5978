"""A prepared corpus on disk and in memory.

A corpus folder contains `corpus.json` (the manifest, written last), `profile.json`,
`tokenizer.json`, `shards/*.parquet` and `items/*.parquet` (one file of each per bucket of users),
`later/*.parquet` (events from a cut in time on) and `rejected/` (rows that cannot be used).

In memory an event is one int32 item id, so that a hundred million events take 400 MB and every
window of events is a slice. With S services, the events of user u in service s are
`events[offsets[u * S + s] : offsets[u * S + s + 1]]`, most recent first.
"""

import hashlib
import json
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from clue_ray.errors import CorpusError
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.specs import SplitSpec
from clue_ray.storage.documents import parse_json
from clue_ray.storage.files import fetch_files, list_files, push_files, read_file
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import node_folder

CORPUS_FILE = re.compile(
    r"(corpus|profile|tokenizer)\.json|(shards|items|later)/shard-\d+\.parquet"
)
"""Names that are fetched or copied; other names on storage are not trusted as local paths."""
MANIFEST = {
    "digest": str,
    "services": list,
    "vocab_size": int,
    "max_item_tokens": int,
    "tokenizer_sha256": str,
    "files": dict,
    "spec": dict,
    "rejected": dict,
}
"""What a manifest must hold, and of which type."""
LATER = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("text", pa.string()),
        ("timestamp", pa.float64()),
    ]
)
"""Rows of `Corpus.later_events`."""


def stable_hash(users: pd.Series, salt: str) -> NDArray[np.uint64]:
    """Hash user ids to uint64, the same on every machine and in every version of every library.

    Splits, buckets and the order of training users depend on it. Python's own hash changes with
    every process, and pandas does not promise to keep its hash.

    Args:
        salt: names the purpose, so that splits, buckets and orders are independent of each other.
    """
    codes, distinct = pd.factorize(users)
    key = salt.encode()
    digests = b"".join(
        hashlib.blake2b(str(user).encode(), digest_size=8, key=key).digest() for user in distinct
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)[codes]


def split_of(users: pd.Series, split: SplitSpec) -> NDArray[np.object_]:
    """Return `train`, `validation` or `test` for each user id.

    The split of a user depends on the id alone, so a user who is held out in one corpus is held out
    in every corpus with the same shares.
    """
    share = stable_hash(users, "split") / 2.0**64
    return np.select(
        [share < split.test, share < split.test + split.validation], ["test", "validation"], "train"
    )


class Corpus:
    """A corpus opened for reading. Its arrays are loaded when the first of them is used.

    Attributes:
        path: local folder.
        place: folder or URI from which other machines open it.
        manifest: content of corpus.json.
        digest: 12 hexadecimal digits that identify the contents; part of every run's identity.
        services: names, in the order of the service axis of the arrays.
        user_ids: user ids, sorted, [users].
        events: item ids of all events, [events], most recent first per user and service.
        offsets: bounds of each (user, service) in `events`, [users * services + 1].
        train_users: indices of training users in one fixed random order, so that a prefix is a
            random subset and smaller subsets are nested in larger ones.
        test_users: indices of held-out users, sorted.
        validation_users: indices of the users kept for tuning and calibration, sorted.
        item_tokens: token ids of all items, concatenated.
        item_offsets: bounds of each item in `item_tokens`, [items + 1].
    """

    user_ids: NDArray[np.object_]
    events: NDArray[np.int32]
    offsets: NDArray[np.int64]
    train_users: NDArray[np.int64]
    test_users: NDArray[np.int64]
    validation_users: NDArray[np.int64]
    item_tokens: NDArray[np.int32]
    item_offsets: NDArray[np.int64]

    def __init__(self, path: Path, manifest: dict[str, Any], place: str | None = None):
        self.path = path
        self.place = place or str(path)
        self.manifest = manifest
        self.digest: str = manifest["digest"]
        self.services: tuple[str, ...] = tuple(manifest["services"])

    def __getattr__(self, name: str) -> Any:
        """Load all arrays; Python calls this only for an attribute that is not set yet.

        `clue-ray prepare` opens its corpus too, but needs only the manifest and the profile.
        """
        if name not in Corpus.__annotations__:
            raise AttributeError(f"Corpus has no attribute {name!r}")
        try:
            self._load_events(self._load_items())
            self._split_users()
        except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"The shards of {self.path} cannot be read ({' '.join(str(error).split())}); "
                "delete the folder and prepare the corpus again."
            ) from None
        return self.__dict__[name]

    def _load_items(self) -> list[NDArray[np.int32]]:
        """Merge the items of all shards, and return the corpus-wide id of each shard's items.

        Ids are in the order of service and text, so they do not depend on the number of shards.
        """
        shards = [pq.read_table(file) for file in self._files("items")]
        items = pa.concat_tables(shards)
        text = items["text"].cast(pa.large_string()).combine_chunks().dictionary_encode()
        rank = pc.rank(text.dictionary, sort_keys="ascending").to_numpy().astype(np.int64)
        service = pc.index_in(items["service"], value_set=pa.array(self.services)).to_numpy()
        keys = service.astype(np.int64) * (len(rank) + 1) + rank[text.indices.to_numpy()]
        _, first, common = np.unique(keys, return_index=True, return_inverse=True)
        tokens = unite_lists(items["tokens"]).take(pa.array(first))  # of one copy of each item
        self.item_offsets = tokens.offsets.to_numpy().astype(np.int64)
        self.item_tokens = tokens.values.to_numpy()
        if len(self.item_tokens) and self.item_tokens.max() >= self.shared_guide:
            raise CorpusError(
                f"{self.path} contains token {self.item_tokens.max()}, but its vocabulary has "
                f"{self.shared_guide} tokens; delete the folder and prepare the corpus again."
            )
        return np.split(common.astype(np.int32), np.cumsum([len(shard) for shard in shards])[:-1])

    def _load_events(self, common: list[NDArray[np.int32]]) -> None:
        """Load the events of all shards, given the corpus-wide ids of each shard's items."""
        tables = [
            pq.read_table(file, columns=["user_id", "service", "items"])
            for file in self._files("shards")
        ]
        shards = pa.concat_tables(tables)
        self.user_ids, users = np.unique(shards["user_id"].to_numpy(), return_inverse=True)
        rows = users * len(self.services) + pd.Index(self.services).get_indexer(
            shards["service"].to_pandas()
        )
        lists = [table["items"].combine_chunks() for table in tables]
        lengths = np.concatenate([np.asarray(column.value_lengths()) for column in lists])
        counts = np.zeros(len(self.user_ids) * len(self.services), dtype=np.int64)
        counts[rows] = lengths
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.events = np.empty(self.offsets[-1], dtype=np.int32)
        # Shards are in order of bucket, but `events` in order of user: scatter the histories.
        flat = [ids[column.flatten().to_numpy()] for ids, column in zip(common, lists, strict=True)]
        self.events[ranges(self.offsets[rows], lengths)] = np.concatenate(flat)

    def _files(self, folder: str) -> list[Path]:
        return sorted((self.path / folder).glob("*.parquet"))

    def later_events(self) -> pa.Table:
        """Read the events from the cut in time on, as LATER; there are none without a cut."""
        return pa.concat_tables([LATER.empty_table(), *map(self._later, self._files("later"))])

    def _later(self, file: Path) -> pa.Table:
        """Read one file of later events, one row per event."""
        table = pq.read_table(file)
        items = pq.read_table(self.path / "items" / file.name, columns=["text"])
        owner = table.select(["user_id", "service"]).take(
            pc.list_parent_indices(table["items"].combine_chunks())
        )
        text = items["text"].take(pc.list_flatten(table["items"]))
        columns = [owner["user_id"], owner["service"], text, pc.list_flatten(table["timestamps"])]
        return pa.table(columns, schema=LATER)

    def _split_users(self) -> None:
        ids = pd.Series(self.user_ids)
        split = split_of(ids, SplitSpec(**self.manifest["spec"]["split"]))
        order = np.lexsort((self.user_ids, stable_hash(ids, "order")))
        self.train_users = order[split[order] == "train"]
        self.test_users = np.sort(order[split[order] == "test"])
        self.validation_users = np.sort(order[split[order] == "validation"])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Events of each user in each service, [users, services]."""
        return np.diff(self.offsets).reshape(len(self.user_ids), len(self.services))

    @cached_property
    def item_lengths(self) -> NDArray[np.int64]:
        """Tokens of each item, including its guide token, [items]."""
        return np.diff(self.item_offsets)

    def count_tokens(self, users: NDArray[np.int64]) -> int:
        """Count the tokens in all events of `users`, each event once and in full."""
        starts = self.offsets[users * len(self.services)]
        stops = self.offsets[(users + 1) * len(self.services)]
        return int(self.item_lengths[self.events[ranges(starts, stops - starts)]].sum())

    def profile(self) -> dict[str, Any]:
        """Read the profile that preparation wrote to profile.json."""
        return dict(json.loads((self.path / "profile.json").read_text(encoding="utf-8")))

    def summary(self) -> dict[str, Any]:
        """Return the sizes of the corpus, its origin, its digest and its path as JSON values."""
        spec = self.manifest.get("spec", {})
        return {
            "path": self.place,
            "digest": self.digest,
            "source": spec.get("events"),
            "duplicates": spec.get("duplicates"),
            "split": spec.get("split"),
            "tokenizer": spec.get("tokenizer"),
            "vocab_size": self.shared_guide - len(self.services),
            "max_item_tokens": spec.get("max_item_tokens"),
            "services": ", ".join(self.services),
            "users": len(self.user_ids),
            "users_in_two_services": int(((self.counts > 0).sum(1) >= 2).sum()),
            "training_users": len(self.train_users),
            "held_out_users": len(self.test_users),
            "events": len(self.events),
            "items": len(self.item_lengths),
            "tokens": int(self.item_lengths[self.events].sum()),
            "rejected_rows": sum(self.manifest["rejected"].values()),
            "rejected": self.manifest["rejected"],
        }

    @property
    def shared_guide(self) -> int:
        """Guide token of every service that is not in the corpus; the id after its own services."""
        return int(self.manifest["vocab_size"])

    def vocabulary(self, sequence_length: int) -> Vocabulary:
        """Return the number of rows of an encoder's embedding tables on this corpus."""
        return Vocabulary(self.shared_guide + 1, self.manifest["max_item_tokens"], sequence_length)

    def pairs(self) -> list[tuple[int, int]]:
        """List all pairs of services, by index."""
        return [(a, b) for a in range(len(self.services)) for b in range(a + 1, len(self.services))]

    def users_of_pair(self, users: NDArray[np.int64], pair: tuple[int, int]) -> NDArray[np.int64]:
        """Return those of `users`, in order, who have events in both services of a pair."""
        a, b = pair
        return users[(self.counts[users, a] > 0) & (self.counts[users, b] > 0)]


def unite_lists(column: pa.ChunkedArray) -> pa.LargeListArray:
    """Join the chunks of a list column, with 64-bit offsets: 32 bits end at 2^31 tokens."""
    return column.cast(pa.large_list(column.type.value_type)).combine_chunks()


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate the ranges [start, start + length) without a Python loop, [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a corpus folder.

    Raises:
        CorpusError: there is none, or it is damaged.
    """
    file = Path(path) / "corpus.json"
    try:
        return _parse_manifest(file.read_bytes(), file)
    except FileNotFoundError:
        raise CorpusError(
            f"{path} is not a prepared corpus (no corpus.json); run clue-ray prepare first."
        ) from None
    except OSError as error:
        raise CorpusError(
            f"{file} is damaged ({error}); delete the folder and prepare the corpus again."
        ) from None


def _parse_manifest(content: bytes, source: str | Path) -> dict[str, Any]:
    """Parse a manifest, or raise CorpusError if it is damaged."""
    try:
        manifest: dict[str, Any] = parse_json(content)
        _check_manifest(manifest)
    except ValueError as error:
        raise CorpusError(
            f"{source} is damaged ({error}); delete the folder and prepare the corpus again."
        ) from None
    return manifest


def _check_manifest(manifest: Any) -> None:
    """Raise ValueError for a manifest that lacks a part, or names a file outside its folder."""
    if not isinstance(manifest, dict):
        raise ValueError("it is not a mapping")
    for name, holds in MANIFEST.items():
        if not isinstance(manifest.get(name), holds):
            raise ValueError(f"it lacks a proper {name!r}")
    if not all(isinstance(service, str) for service in manifest["services"]):
        raise ValueError("a service is not a text")
    for name, expected in manifest["files"].items():
        if not (CORPUS_FILE.fullmatch(name) and isinstance(expected, str)):
            raise ValueError(f"{name!r} is not a file of a corpus")


def open_corpus(path: str | Path, *, verify: bool = True) -> Corpus:
    """Open a prepared corpus in a folder or at a URI.

    A corpus at a URI is fetched once per node.

    Args:
        verify: compare the sha256 of every file with the manifest first. A study verifies its
            corpus once; its runs need not verify it again.

    Raises:
        CorpusError: there is no corpus, or it is damaged.
    """
    if is_uri(path):
        return _open_fetched(str(path), verify)
    folder = Path(path)
    manifest = read_manifest(folder)
    if damage := _find_damage(folder, manifest) if verify else "":
        raise CorpusError(
            f"Corpus file {folder}/{damage}; delete the corpus folder and prepare it again."
        )
    return Corpus(folder, manifest)


def _find_damage(folder: Path, manifest: dict[str, Any]) -> str:
    """Describe the first file that differs from the manifest; return "" if none does."""
    files = {"tokenizer.json": manifest["tokenizer_sha256"], **manifest["files"]}
    for name, expected in files.items():
        found = sha256(folder / name) if (folder / name).exists() else "file missing"
        if found != expected:
            return f"{name} is damaged (sha256 {found[:12]}, expected {expected[:12]})"
    return ""


def _open_fetched(place: str, verify: bool) -> Corpus:
    """Open a corpus at a URI from this node's cache; the first process of the node fetches it."""
    content = read_file(place, "corpus.json")
    if content is None:
        raise CorpusError(
            f"{place} is not a prepared corpus (no corpus.json); run clue-ray prepare first."
        )
    manifest = _parse_manifest(content, place)
    # The cache is keyed by content, not by place: a corpus that is prepared again is fetched again.
    folder = node_folder("corpora") / hashlib.sha256(content).hexdigest()[:16]
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists() and verify and _find_damage(folder, manifest):
            shutil.rmtree(folder)
        if not folder.exists():
            fetch_corpus(place, manifest, folder)
    return Corpus(folder, manifest, place)


def fetch_corpus(place: str, manifest: dict[str, Any], folder: Path) -> None:
    """Fetch a corpus into a folder, which appears once it is complete.

    Raises:
        CorpusError: a file differs from the manifest.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process; the caller has the lock
    fetch_files(place, [name for name in list_files(place) if CORPUS_FILE.fullmatch(name)], partial)
    if damage := _find_damage(partial, manifest):
        raise CorpusError(
            f"Corpus file {damage} at {place}; delete the corpus there and prepare it again."
        )
    partial.rename(folder)


def holds_corpus(place: str | Path) -> bool:
    """Return whether a folder or URI contains a complete corpus."""
    return read_file(str(place), "corpus.json") is not None


def share_corpus(corpus: Corpus, place: str) -> Corpus:
    """Copy a local corpus to a place where other nodes can open it, unless it is there already."""
    if is_uri(corpus.place):
        return corpus
    if not holds_corpus(place):
        files = [file for file in corpus.path.rglob("*") if file.is_file()]
        names = {str(file.relative_to(corpus.path)) for file in files} - {"corpus.json"}
        push_files(corpus.path, sorted(filter(CORPUS_FILE.fullmatch, names)), place)
        push_files(corpus.path, ["corpus.json"], place)  # last: it marks the corpus as complete
    return open_corpus(place, verify=False)


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
