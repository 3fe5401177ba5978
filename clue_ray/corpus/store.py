"""A prepared corpus on disk and in memory.

A corpus folder contains `corpus.json` (the manifest, written last), `profile.json`,
`tokenizer.json`, `shards/*.parquet` and `items/*.parquet` (one file of each per bucket of users),
`train/` (the training layout, see `layout.arrays`), `later/*.parquet` (events from a cut in time
on) and `rejected/` (rows that cannot be used).

The training layout is mapped into memory, not read. In it an event is one int32 item id, and every
window of events is a slice. With S services, the events of user u in service s are
`events[offsets[u * S + s] : offsets[u * S + s + 1]]`, most recent first.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clue_ray.corpus.cache import (
    SHARD_FILE,
    TRAINING_FILE,
    fetch_array,
    fetch_shards,
    find_damage,
    open_cached,
)
from clue_ray.corpus.layout.arrays import DTYPES, Layout, read_layout
from clue_ray.corpus.layout.opening import LAYOUT, open_layout
from clue_ray.errors import CorpusError, reason_of
from clue_ray.spec.compute import Vocabulary
from clue_ray.storage.documents import parse_json, read_bounded
from clue_ray.storage.files import push_files, read_file, read_json
from clue_ray.storage.in_use import InUse
from clue_ray.storage.links import check_links
from clue_ray.storage.place import is_uri

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


class Corpus:
    """A corpus opened for reading. Each array is mapped when it is first used.

    Attributes:
        path: local folder.
        place: folder or URI from which other machines open it.
        manifest: content of corpus.json.
        digest: 12 hexadecimal digits that identify the contents; part of every run's identity.
        services: names, in the order of the service axis of the arrays.
        user_ids: user ids, sorted, [users].
        events: item ids of all events, [events], most recent first per user and service.
        times: seconds since 1970 of all events, [events].
        offsets: bounds of each (user, service) in `events`, [users * services + 1].
        train_users: indices of training users in one fixed random order, so that a prefix is a
            random subset and smaller subsets are nested in larger ones.
        test_users: indices of held-out users, sorted.
        validation_users: indices of the users kept for tuning and calibration, sorted.
        item_tokens: token ids of all items, concatenated.
        item_offsets: bounds of each item in `item_tokens`, [items + 1].
        train_tokens: tokens of the first n training users, for each n, [training users + 1].
    """

    user_ids: NDArray[np.object_]
    events: NDArray[np.int32]
    times: NDArray[np.float64]
    offsets: NDArray[np.int64]
    train_users: NDArray[np.int64]
    test_users: NDArray[np.int64]
    validation_users: NDArray[np.int64]
    item_tokens: NDArray[np.int32]
    item_offsets: NDArray[np.int64]
    train_tokens: NDArray[np.int64]

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        place: str | None = None,
        in_use: InUse | None = None,
    ):
        self.path = path
        self.place = place or str(path)
        self._in_use = in_use  # keeps the folder in the cache for as long as this corpus is open
        self.manifest = manifest
        self.digest: str = manifest["digest"]
        self.services: tuple[str, ...] = tuple(manifest["services"])

    def __getattr__(self, name: str) -> Any:
        """Map an array; Python calls this only for an attribute that is not set yet.

        `clue-ray prepare` opens its corpus too, but needs only the manifest and the profile.
        """
        if name == "user_ids":
            self.user_ids = self.layout.user_ids()
        elif name in DTYPES:
            self.__dict__[name] = self.layout.array(name)
        else:
            raise AttributeError(f"Corpus has no attribute {name!r}")
        return self.__dict__[name]

    @cached_property
    def layout(self) -> Layout:
        """The training layout, which holds the arrays."""
        if is_uri(self.place):
            fetch = partial(fetch_array, self.place, self.manifest, self.path)
            if found := read_layout(self.path / LAYOUT, self.digest, fetch):
                return found
            self._files("shards"), self._files("items")  # to build it from
        try:
            return open_layout(self.path, self.manifest)
        except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"The shards of {self.path} cannot be read ({reason_of(error)}); "
                "delete the folder and prepare the corpus again."
            ) from None

    @property
    def last_time(self) -> float:
        """Time of the last event, in seconds since 1970."""
        return float(self.layout.facts["last_time"])

    def _files(self, folder: str) -> list[Path]:
        if is_uri(self.place):
            fetch_shards(self.place, self.manifest, self.path, folder)
        # Only those of the manifest: an interrupted preparation of another log may have left more.
        names = self.manifest["files"]
        return [self.path / name for name in sorted(names) if name.startswith(f"{folder}/")]

    def later_events(self) -> pa.Table:
        """Read the events from the cut in time on, as LATER; there are none without a cut."""
        later = self._files("later")
        if later:
            self._files("items")  # hold the texts
        return pa.concat_tables([LATER.empty_table(), *map(self._later, later)])

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

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Events of each user in each service, [users, services]; as large as the users."""
        return np.diff(self.offsets).reshape(-1, len(self.services))

    def count_events(
        self, users: NDArray[np.int64], services: NDArray[np.int64] | int
    ) -> NDArray[np.int64]:
        """Count the events of each user in a service, [users]."""
        rows = users * len(self.services) + services
        return self.offsets[rows + 1] - self.offsets[rows]

    def count_item_tokens(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """Count the tokens of items, their guide tokens included, [items]."""
        return self.item_offsets[items + 1] - self.item_offsets[items]

    @property
    def num_items(self) -> int:
        """Number of distinct items."""
        return len(self.item_offsets) - 1

    def count_training_tokens(self, users: int | None) -> int:
        """Count the tokens in all events of the first training users, or of all of them."""
        return int(self.train_tokens[-1 if users is None else min(users, len(self.train_users))])

    def training_pool(self, pair: tuple[int, int], users: int | None) -> NDArray[np.int64]:
        """Return which of the first training users can be drawn for a pair of services.

        Args:
            pair: two services, in both of which users have events; one service twice, in which
                they have two events or more; or PAST_FUTURE, for users with events at two times.
            users: number of training users; all of them if None.

        Returns:
            Positions in `train_users`, ascending.
        """
        pool = self.layout.pool("train", pair)
        return pool if users is None else pool[: np.searchsorted(pool, users)]

    def held_out_pool(
        self, split: str, pair: tuple[int, int], places: NDArray[np.integer] | slice = slice(None)
    ) -> NDArray[np.int64]:
        """Return the users of `validation` or `test` with events in both services, sorted.

        Args:
            places: which of them, in this order; all if left out.
        """
        users: NDArray[np.int64] = getattr(self, f"{split}_users")
        return users[self.layout.pool(split, pair)[places]]

    def profile(self) -> dict[str, Any]:
        """Read the profile that preparation wrote to profile.json.

        Raises:
            RunsError: it is damaged.
        """
        return read_json(self.path / "profile.json", "prepare the corpus again")

    def summary(self) -> dict[str, Any]:
        """Return the sizes of the corpus, its origin, its digest and its path as JSON values."""
        spec, facts = self.manifest.get("spec", {}), self.layout.facts
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
            "users": facts["users"],
            "users_in_two_services": facts["users_in_two_services"],
            "training_users": len(self.train_users),
            "held_out_users": len(self.test_users),
            "events": facts["events"],
            "items": facts["items"],
            "tokens": facts["tokens"],
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


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a corpus folder.

    Raises:
        CorpusError: there is none, or it is damaged.
    """
    file = Path(path) / "corpus.json"
    try:
        return _parse_manifest(read_bounded(file), file)
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
        known = SHARD_FILE.fullmatch(name) or TRAINING_FILE.fullmatch(name)
        if not (known and isinstance(expected, str)):
            raise ValueError(f"{name!r} is not a file of a corpus")


def open_corpus(path: str | Path, *, verify: bool = True) -> Corpus:
    """Open a prepared corpus in a folder or at a URI.

    A corpus at a URI is fetched once per node.

    Args:
        verify: compare the sha256 of every file with the manifest first. A study verifies its
            corpus once; its runs need not verify it again.

    Raises:
        CorpusError: there is no corpus, or it is damaged.
        StudyError: a link in the folder leads out of it.
    """
    if is_uri(path):
        return _open_fetched(str(path), verify)
    folder = Path(path)
    check_links(folder)
    manifest = read_manifest(folder)
    if damage := find_damage(folder, manifest) if verify else "":
        raise CorpusError(
            f"Corpus file {folder}/{damage}; delete the corpus folder and prepare it again."
        )
    return Corpus(folder, manifest)


def _open_fetched(place: str, verify: bool) -> Corpus:
    """Open a corpus at a URI from this node's cache."""
    content = read_file(place, "corpus.json")
    if content is None:
        raise CorpusError(
            f"{place} is not a prepared corpus (no corpus.json); run clue-ray prepare first."
        )
    manifest = _parse_manifest(content, place)
    folder, in_use = open_cached(place, content, manifest, verify=verify)
    return Corpus(folder, manifest, place, in_use)


def holds_corpus(place: str | Path) -> bool:
    """Return whether a folder or URI contains a complete corpus."""
    return read_file(str(place), "corpus.json") is not None


def share_corpus(corpus: Corpus, place: str) -> Corpus:
    """Copy a local corpus to a place where other nodes can open it, unless it is there already."""
    if is_uri(corpus.place):
        return corpus
    if not holds_corpus(place):
        corpus.layout.array("events")  # built now if it is not there, not by every node
        files = [file for file in corpus.path.rglob("*") if file.is_file()]
        names = {str(file.relative_to(corpus.path)) for file in files} - {"corpus.json"}
        parts = {*filter(TRAINING_FILE.fullmatch, names), *corpus.manifest["files"]}
        push_files(corpus.path, sorted(parts), place)
        push_files(corpus.path, ["corpus.json"], place)  # last: it marks the corpus as complete
    return open_corpus(place, verify=False)
