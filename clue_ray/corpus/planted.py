"""Planted event logs: what ties a user's services together is known, and so is the lowest loss any
encoder can have.

A user has a mixture over topics, drawn from a symmetric Dirichlet. An event draws a topic from the
mixture, then an item of that topic in the event's service by a Zipf law. An item belongs to one
topic and has one fixed text, so a history tells of its user exactly its counts of topics, and
p(history) is Dirichlet-multinomial: `docs/reference/planted.md` derives the floor that `bayes_loss`
computes from it.
"""

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import gammaln, logsumexp

from clue_ray.errors import EventLogError
from clue_ray.spec.yaml import Spec
from clue_ray.storage.files import atomic_write

METADATA_KEY = b"clue_ray.planted"
"""Parquet metadata that carries the spec of a planted log, so that a corpus made of it knows its
floor."""
START, YEAR = 1_600_000_000, 31_536_000
COMMON_WORDS, WORDS_PER_TOPIC = 200, 12
SYLLABLE_PAIRS = 70 * 70
EVENTS_PER_FILE = 1_000_000


class PlantedSpec(Spec):
    """What a planted log is drawn from."""

    users: int = Field(1000, ge=2)
    services: int = Field(2, ge=2, le=26)
    topics: int = Field(64, ge=2, le=20_000)
    concentration: float = Field(11.0, gt=0)
    """sum of the Dirichlet's parameters: the smaller, the fewer topics a user has, the easier to
    recognise"""
    items_per_topic: int = Field(50, ge=1)
    "in each service"
    zipf: float = Field(1.0, ge=0)
    "within a topic, the item of rank r is drawn in proportion to r ** -zipf"
    events: int = Field(48, ge=1)
    "mean events of a user in a service; numbers are uniform from 1 to twice as many less one"
    seed: int = Field(0, ge=0)


class Planted:
    """The catalogue of a planted log and draws from it; any block of users can be drawn by
    itself.
    """

    def __init__(self, spec: PlantedSpec):
        self.spec = spec

    @cached_property
    def texts(self) -> pa.Array:
        """Item texts by (service, topic, rank): three words of the topic among common ones, and a
        serial.
        """
        spec, rng = self.spec, np.random.default_rng([self.spec.seed, 1])
        words = _pseudo_words(spec.topics * WORDS_PER_TOPIC + COMMON_WORDS, rng)
        items = spec.services * spec.topics * spec.items_per_topic
        topic = np.arange(items) // spec.items_per_topic % spec.topics
        own = topic[:, None] * WORDS_PER_TOPIC + rng.integers(0, WORDS_PER_TOPIC, (items, 3))
        common = spec.topics * WORDS_PER_TOPIC + rng.integers(0, COMMON_WORDS, (items, 2))
        order = words[np.column_stack([common[:, :1], own, common[:, 1:]])]
        return pa.array([f"{' '.join(row)} {serial}" for serial, row in enumerate(order.tolist())])

    @cached_property
    def ranks(self) -> NDArray[np.float64]:
        """Cumulative probabilities of an item's rank within its topic."""
        weights = np.arange(1, self.spec.items_per_topic + 1) ** -self.spec.zipf
        return np.cumsum(weights / weights.sum())

    def draw(self, block: int, start: int, stop: int) -> pa.Table:
        """Draw the events of users start to stop, in no order; a function of the spec and these
        numbers alone.

        Returns:
            columns user_id, service, timestamp (epoch seconds, within a year), text.
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
            "text": self.texts.take(pa.array(item[order])),
        }
        return pa.table(columns).replace_schema_metadata({METADATA_KEY: spec.model_dump_json()})

    def draw_topics(self, rng: np.random.Generator, users: int) -> "Topics":
        """Draw every event's user, service and topic."""
        spec = self.spec
        mixture = np.cumsum(
            rng.dirichlet([spec.concentration / spec.topics] * spec.topics, users), axis=1
        )
        counts = rng.integers(1, 2 * spec.events, (users, spec.services))
        user, service = (
            np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape)
        )
        drawn = np.searchsorted(
            (mixture + np.arange(users)[:, None]).ravel(), rng.random(len(user)) + user
        )
        return Topics(user, service, np.clip(drawn - user * spec.topics, 0, spec.topics - 1))


class Topics:
    """User, service and topic of each event, as three arrays."""

    def __init__(
        self, user: NDArray[np.int64], service: NDArray[np.int64], topic: NDArray[np.int64]
    ):
        self.user, self.service, self.topic = user, service, topic

    def counts(
        self, service: int, users: int, topics: int, sequence_length: int
    ) -> NDArray[np.int64]:
        """Count topics in the first events of each user in one service, at most `sequence_length`,
        [users, topics].
        """
        rows = np.flatnonzero(self.service == service)
        user = self.user[rows]  # rising, as drawn
        position = np.arange(len(user)) - np.searchsorted(user, user)
        kept = position < sequence_length
        cell = user[kept] * topics + self.topic[rows][kept]
        return np.bincount(cell, minlength=users * topics).reshape(users, topics)


def planted_events(spec: PlantedSpec) -> pa.Table:
    """Draw a whole planted log in memory; `write_planted` streams one of any size."""
    return Planted(spec).draw(0, 0, spec.users)


def write_planted(spec: PlantedSpec, folder: Path) -> int:
    """Draw a planted log into a new folder of Parquet files and return its events; needs a Ray
    session.

    The files depend on the spec alone, not on the cluster. The folder appears whole or not at all.

    Raises:
        EventLogError: `folder` is there already.
    """
    import ray.data  # here, so that the report and the fits import planted logs without Ray

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


def _write_blocks(
    batch: dict[str, np.ndarray], spec: PlantedSpec, folder: str, size: int
) -> pa.Table:
    """Draw blocks of `size` users and write a file each; may be retried."""
    planted, events = Planted(spec), 0
    for block in batch["id"].tolist():
        table = planted.draw(block, block * size, min(spec.users, (block + 1) * size))
        with atomic_write(Path(folder) / f"events-{block:05d}.parquet") as temporary:
            pq.write_table(
                table, temporary, compression="zstd", row_group_size=EVENTS_PER_FILE // 4
            )
        events += table.num_rows
    return pa.table({"events": [events]})


def _pseudo_words(count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Make distinct pronounceable words of two or three syllables, [count]."""
    consonants, vowels = np.array(list("bdfgklmnprstvz")), np.array(list("aeiou"))
    syllables = np.char.add(
        *(part.ravel() for part in np.meshgrid(consonants, vowels, indexing="ij"))
    )
    endings = np.array(["", *syllables.tolist()])[: 2 + count // SYLLABLE_PAIRS]
    number = rng.permutation(SYLLABLE_PAIRS * len(endings))[:count]
    first, second, third = number // 70 % 70, number % 70, number // SYLLABLE_PAIRS
    return np.char.add(np.char.add(syllables[first], syllables[second]), endings[third])


def bayes_loss(
    spec: PlantedSpec, sequence_length: int, candidates: int, *, users: int = 8192
) -> float:
    """Return the lowest held-out loss that any encoder of a planted log can reach, in nats.

    The Bayes score of histories a and b is log p(a, b) - log p(a) - log p(b), each
    Dirichlet-multinomial; the loss is its cross-entropy among `candidates` users, both directions
    averaged, as evaluation measures it (docs/planted.md).

    Args:
        sequence_length: most recent events kept of a history.
        users: users drawn; a Monte Carlo mean whose standard error is below 0.01 nats at the
            default.
    """
    planted, rng = Planted(spec), np.random.default_rng([spec.seed, 3])
    pools = max(1, round(users / candidates))
    losses = [_pool_loss(planted, rng, sequence_length, candidates) for _ in range(pools)]
    return float(np.mean(losses))


def planted_floor(
    planted: str | None, sequence_lengths: Iterable[int], candidates: int
) -> dict[str, Any]:
    """Return what corpus.json says of the lowest loss at each history length; nothing for a log
    that is not planted.

    Args:
        planted: the log's PlantedSpec as JSON.
    """
    if planted is None:
        return {}
    spec = PlantedSpec.model_validate_json(planted)
    losses = {
        str(length): bayes_loss(spec, length, candidates) for length in sorted(sequence_lengths)
    }
    return {"bayes_loss": losses, "bayes_loss_candidates": candidates}


def _pool_loss(
    planted: Planted, rng: np.random.Generator, sequence_length: int, candidates: int
) -> float:
    """Draw one pool of users and return the Bayes score's loss on it."""
    spec = planted.spec
    drawn = planted.draw_topics(rng, candidates)
    a, b = (drawn.counts(service, candidates, spec.topics, sequence_length) for service in (0, 1))
    score = bayes_scores(a, b, spec.concentration)
    right = np.diagonal(score)
    return float(((logsumexp(score, axis=1) + logsumexp(score, axis=0)) / 2 - right).mean())


def bayes_scores(
    a: NDArray[np.int64], b: NDArray[np.int64], concentration: float
) -> NDArray[np.float64]:
    """Return log p(a, b) - log p(a) - log p(b) of every pair of rows of topic counts, [rows of a,
    rows of b].
    """
    alpha = concentration / a.shape[1]
    size = int(a.max(initial=0) + b.max(initial=0)) + 1
    rising = gammaln(alpha + np.arange(size)) - gammaln(
        alpha
    )  # log of alpha (alpha + 1) ... (alpha + n - 1)
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
