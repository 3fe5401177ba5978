"""Planted event logs, drawn from a known model, so that the lowest possible loss is known too.

Each user has a mixture over topics, drawn from a symmetric Dirichlet distribution. Each event draws
a topic from the mixture, and then an item of that topic in the event's service by Zipf's law. An
item belongs to one topic and has one fixed text. So all that a history reveals about its user is
its counts of topics, and p(history) is Dirichlet-multinomial. `docs/reference/planted.md` derives
from this the floor that `bayes_loss` computes.
"""

import shutil
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import gammaln, logsumexp

from clue_ray.errors import EventLogError
from clue_ray.spec.yaml import Spec
from clue_ray.storage.files import atomic_write

METADATA_KEY = b"clue_ray.planted"
"""Parquet metadata with the spec of a planted log, from which a corpus knows its floor."""
START, YEAR = 1_600_000_000, 31_536_000
"""First timestamp, and the range of timestamps, in seconds."""
COMMON_WORDS, WORDS_PER_TOPIC = 200, 12
SYLLABLES = 70
"""14 consonants times 5 vowels."""
EVENTS_PER_FILE = 1_000_000


class PlantedSpec(Spec):
    """Parameters of a planted log."""

    users: int = Field(1000, ge=2)
    services: int = Field(2, ge=2, le=26)
    topics: int = Field(64, ge=2, le=20_000)
    concentration: float = Field(11.0, gt=0)
    """sum of the Dirichlet's parameters: with a smaller value, users have fewer topics each and are
    easier to recognise"""
    items_per_topic: int = Field(50, ge=1)
    "in each service"
    zipf: float = Field(1.0, ge=0)
    "within a topic, the item of rank r is drawn with probability proportional to r ** -zipf"
    events: int = Field(48, ge=1)
    "mean number of events per user and service; the number is uniform from 1 to 2 * events - 1"
    seed: int = Field(0, ge=0)


class PlantedLog:
    """The item catalogue of a planted log, and draws of its events.

    Each block of users has a random generator of its own, so blocks can be drawn in parallel.
    """

    def __init__(self, spec: PlantedSpec):
        self.spec = spec

    @property
    def texts(self) -> pa.Array:
        """Item texts, sorted by (service, topic, rank), [items]."""
        return self._texts_of(np.arange(len(self._words[1])))

    def _texts_of(self, items: NDArray[np.int64]) -> pa.Array:
        """Return the texts of some items.

        A text is three words of the topic between two common words, and a serial number, which
        makes it unique. Texts are joined for the items that are drawn, because those of a large
        catalogue would fill the memory of each process.
        """
        words, used = self._words
        parts = [words.take(pa.array(column)) for column in used[items].T]
        return pc.binary_join_element_wise(*parts, pa.array(items).cast(pa.string()), " ")

    @cached_property
    def _words(self) -> tuple[pa.Array, NDArray[np.int32]]:
        """The vocabulary, and the words of each item, [items, 5]."""
        spec, rng = self.spec, np.random.default_rng([self.spec.seed, 1])
        words = _pseudo_words(spec.topics * WORDS_PER_TOPIC + COMMON_WORDS, rng)
        items = spec.services * spec.topics * spec.items_per_topic
        topic = (np.arange(items) // spec.items_per_topic % spec.topics).astype(np.int32)
        used = np.empty((items, 5), np.int32)
        used[:, 1:4] = rng.integers(0, WORDS_PER_TOPIC, (items, 3))
        used[:, 1:4] += topic[:, None] * WORDS_PER_TOPIC
        used[:, [0, 4]] = rng.integers(0, COMMON_WORDS, (items, 2))
        used[:, [0, 4]] += spec.topics * WORDS_PER_TOPIC
        return pa.array(words), used

    @cached_property
    def ranks(self) -> NDArray[np.float64]:
        """Cumulative probabilities of the rank of an item within its topic, [items_per_topic]."""
        weights = np.arange(1, self.spec.items_per_topic + 1) ** -self.spec.zipf
        return np.cumsum(weights / weights.sum())

    def draw(self, block: int, start: int, stop: int) -> pa.Table:
        """Draw the events of users start to stop - 1, in random order.

        The result depends on the spec and the arguments alone.

        Returns:
            columns user_id, service, timestamp (seconds since the epoch) and text.
        """
        spec, rng = self.spec, np.random.default_rng([self.spec.seed, 2, block])
        topics = self.draw_topics(rng, stop - start)
        rows = len(topics.topic)
        rank = np.minimum(np.searchsorted(self.ranks, rng.random(rows)), spec.items_per_topic - 1)
        item = (topics.service * spec.topics + topics.topic) * spec.items_per_topic + rank
        order = rng.permutation(rows)
        users = pa.array([f"u{user:08d}" for user in range(start, stop)])
        services = pa.array([f"service-{chr(97 + s)}" for s in range(spec.services)])
        columns = {
            "user_id": users.take(pa.array(topics.user[order])),
            "service": services.take(pa.array(topics.service[order])),
            "timestamp": START + rng.integers(0, YEAR, rows),
            "text": self._texts_of(item[order]),
        }
        return pa.table(columns).replace_schema_metadata({METADATA_KEY: spec.model_dump_json()})

    def draw_topics(self, rng: np.random.Generator, users: int) -> "Topics":
        """Draw the user, service and topic of every event of a number of users."""
        spec = self.spec
        mixture = np.cumsum(
            rng.dirichlet([spec.concentration / spec.topics] * spec.topics, users), axis=1
        )
        counts = rng.integers(1, 2 * spec.events, (users, spec.services))
        user, service = (
            np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape)
        )
        # One search over all users: the cumulative mixture of user u is shifted to [u, u + 1].
        drawn = np.searchsorted(
            (mixture + np.arange(users)[:, None]).ravel(), rng.random(len(user)) + user
        )
        return Topics(user, service, np.clip(drawn - user * spec.topics, 0, spec.topics - 1))


class Topics:
    """User, service and topic of each event, sorted by user, as three arrays of [events]."""

    def __init__(
        self, user: NDArray[np.int64], service: NDArray[np.int64], topic: NDArray[np.int64]
    ):
        self.user, self.service, self.topic = user, service, topic

    def counts(
        self, service: int, users: int, topics: int, sequence_length: int
    ) -> NDArray[np.int64]:
        """Count the topics in each user's first `sequence_length` events of one service.

        Returns:
            counts, [users, topics].
        """
        rows = np.flatnonzero(self.service == service)
        user = self.user[rows]
        position = np.arange(len(user)) - np.searchsorted(user, user)
        kept = position < sequence_length
        cell = user[kept] * topics + self.topic[rows][kept]
        return np.bincount(cell, minlength=users * topics).reshape(users, topics)


def planted_events(spec: PlantedSpec) -> pa.Table:
    """Draw a whole planted log in memory; `write_planted` writes one of any size."""
    return PlantedLog(spec).draw(0, 0, spec.users)


def write_planted(spec: PlantedSpec, folder: Path) -> int:
    """Draw a planted log into a new folder of Parquet files; needs a Ray session.

    The files depend on the spec alone, not on the cluster. The folder appears when it is complete.

    Returns:
        number of events.

    Raises:
        EventLogError: `folder` exists already.
    """
    import ray.data  # here, because the floor of a planted log is also needed where Ray is not

    if folder.exists():
        raise EventLogError(f"{folder} exists already; choose another output, or delete it first.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    size = max(1, EVENTS_PER_FILE // (spec.events * spec.services))
    blocks = -(-spec.users // size)
    written = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
        _write_blocks,
        batch_size=1,
        fn_kwargs={"spec": spec, "folder": str(partial.absolute()), "size": size},
    )
    events = sum(int(batch["events"].sum()) for batch in written.iter_batches(batch_size=None))
    partial.rename(folder)
    return events


@lru_cache(maxsize=1)  # a process draws many blocks, and the texts of all items take long
def _planted_log(spec: PlantedSpec) -> PlantedLog:
    return PlantedLog(spec)


def _write_blocks(
    batch: dict[str, np.ndarray], spec: PlantedSpec, folder: str, size: int
) -> pa.Table:
    """Draw some blocks of `size` users, given by number, and write a file for each.

    A retry replaces the files by the same bytes.
    """
    log, events = _planted_log(spec), 0
    for block in batch["id"].tolist():
        table = log.draw(block, block * size, min(spec.users, (block + 1) * size))
        with atomic_write(Path(folder) / f"events-{block:05d}.parquet") as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=EVENTS_PER_FILE // 4
            )
        events += table.num_rows
    return pa.table({"events": [events]})


def bayes_loss(
    spec: PlantedSpec, sequence_length: int, candidates: int, *, users: int = 8192
) -> float:
    """Return the lowest held-out loss that any encoder can reach on a planted log, in nats.

    The Bayes score of histories a and b is log p(a, b) - log p(a) - log p(b), where each p is
    Dirichlet-multinomial. The loss is its cross-entropy among `candidates` users, averaged over
    both directions, as in the evaluation of an encoder (docs/reference/planted.md).

    Args:
        sequence_length: events kept of each history.
        users: users drawn for the Monte Carlo mean; with the default, its standard error is below
            0.01 nats.
    """
    log, rng = PlantedLog(spec), np.random.default_rng([spec.seed, 3])
    pools = max(1, round(users / candidates))
    losses = [_pool_loss(log, rng, sequence_length, candidates) for _ in range(pools)]
    return float(np.mean(losses))


def planted_floor(
    planted: str | None, sequence_lengths: Iterable[int], candidates: int
) -> dict[str, Any]:
    """Return the lowest loss of a planted log at each sequence length, as entries of corpus.json.

    Args:
        planted: the PlantedSpec of the log as JSON; None for a log that is not planted, which has
            no entries.
    """
    if planted is None:
        return {}
    spec = PlantedSpec.model_validate_json(planted)
    losses = {
        str(length): bayes_loss(spec, length, candidates) for length in sorted(sequence_lengths)
    }
    return {"bayes_loss": losses, "bayes_loss_candidates": candidates}


def _pool_loss(
    log: PlantedLog, rng: np.random.Generator, sequence_length: int, candidates: int
) -> float:
    """Draw one pool of users and return the loss of the Bayes score on it."""
    spec = log.spec
    drawn = log.draw_topics(rng, candidates)
    a, b = (drawn.counts(service, candidates, spec.topics, sequence_length) for service in (0, 1))
    score = bayes_scores(a, b, spec.concentration)
    right = np.diagonal(score)
    return float(((logsumexp(score, axis=1) + logsumexp(score, axis=0)) / 2 - right).mean())


def bayes_scores(
    a: NDArray[np.int64], b: NDArray[np.int64], concentration: float
) -> NDArray[np.float64]:
    """Return log p(a, b) - log p(a) - log p(b) for all pairs of rows of two tables of topic counts.

    Args:
        a: topic counts, [histories, topics].
        b: topic counts, [other histories, topics].

    Returns:
        scores, [histories, other histories].
    """
    alpha = concentration / a.shape[1]
    size = int(a.max(initial=0) + b.max(initial=0)) + 1
    # rising[n] = log of alpha (alpha + 1) ... (alpha + n - 1). A table, because the counts are
    # small integers and gammaln of every pair and topic would dominate the run time.
    rising = gammaln(alpha + np.arange(size)) - gammaln(alpha)
    joint = np.stack([rising[row + b].sum(axis=1) for row in a])
    joint -= rising[a].sum(axis=1)[:, None] + rising[b].sum(axis=1)[None, :]
    n, m = a.sum(axis=1)[:, None], b.sum(axis=1)[None, :]
    total = gammaln(concentration)
    return (
        joint
        - gammaln(concentration + n + m)
        + gammaln(concentration + n)
        + gammaln(concentration + m)
        - total
    )


def _pseudo_words(count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Draw distinct pronounceable words of two or three syllables, [count]."""
    consonants, vowels = np.array(list("bdfgklmnprstvz")), np.array(list("aeiou"))
    syllables = np.char.add(
        *(part.ravel() for part in np.meshgrid(consonants, vowels, indexing="ij"))
    )
    endings = np.array(["", *syllables.tolist()])[: 2 + count // SYLLABLES**2]
    number = rng.permutation(SYLLABLES**2 * len(endings))[:count]
    rest, second = np.divmod(number, SYLLABLES)
    third, first = np.divmod(rest, SYLLABLES)
    return np.char.add(np.char.add(syllables[first], syllables[second]), endings[third])
