"""A planted edition of the RecSys Challenge 2025: its files and types, drawn from a known model.

Each user has a taste, one of some topics, an activity, and a day after which they are gone. Topics
decide which pages, queries and products a user takes, so tastes predict labels, and recency
predicts churn. `truth/users.parquet` has what was drawn. The files have the traps of the original:
timestamps and lists of codes as text, listed clients without events, products without properties.

Users are drawn in blocks with random states of their own, so memory hardly grows with their number.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from clue_ray.errors import EventLogError
from clue_ray.spec.yaml import Spec
from clue_ray.storage.files import atomic_write, read_json, write_json
from clue_ray.storage.place import explain_access

USERS_PER_BLOCK = 20_000
EVENTS_PER_USER = {
    "product_buy": 6.0,
    "add_to_cart": 8.0,
    "remove_from_cart": 2.0,
    "page_visit": 12.0,
    "search_query": 4.0,
}
"""Expected events of a user who stays to the end."""
CODES = 16
"""Codes of a product's name and of a query, each 0 to 255."""
LABELS = 100
"""Categories and products in target/."""
DAY = 86_400
WRITTEN = (
    *(f"{name}.parquet" for name in (*EVENTS_PER_USER, "product_properties", "truth/users")),
    "input/relevant_clients.npy",
    *(
        f"target/{what}{name}.npy"
        for name in ("sku", "category")
        for what in ("propensity_", "popularity_propensity_")
    ),
    "target/active_clients.npy",
)
"""The files of an edition, below its folder."""


class PlantedRecsysSpec(Spec):
    """The size of a planted edition, and how strong its signals are."""

    users: int = Field(20_000, ge=100)
    "of fewer than 20,000, few labels have enough buyers in a fortnight"
    skus: int = Field(4_000, ge=200)
    urls: int = Field(8_000, ge=100)
    topics: int = Field(20, ge=2, le=100)
    days: int = Field(140, ge=60)
    "length of the log, which ends at the end of `last_day`"
    last_day: datetime = datetime(2022, 11, 9)
    loyalty: float = Field(0.8, ge=0, le=1)
    "share of a user's events that are of their own topic"
    leaving: float = Field(0.5, ge=0, le=1)
    "share of users that are gone before the end"
    relevant: float = Field(0.5, gt=0, le=1)
    "share of users that are listed as relevant"
    seed: int = Field(0, ge=0)


def write_planted_recsys(spec: PlantedRecsysSpec, folder: Path) -> int:
    """Write a planted edition into a folder and return the number of its events.

    Raises:
        EventLogError: the folder has such a file that was not drawn here, or cannot be made.
    """
    drawn = folder / "truth" / "drawn.json"
    own = read_json(drawn) if drawn.exists() else {}
    for name in WRITTEN:
        file = folder / name
        if file.exists() and own.get(name) != file.stat().st_size:
            raise EventLogError(
                f"{file} was not drawn here and would be replaced; give another --output, or go on "
                "with these files."
            )
    try:
        rows = _write(spec, folder)
        write_json(drawn, {name: (folder / name).stat().st_size for name in WRITTEN})
        return rows
    except OSError as error:
        raise EventLogError(
            f"{folder} cannot be written ({explain_access(error)}); give another --output."
        ) from None


def _write(spec: PlantedRecsysSpec, folder: Path) -> int:
    """Write all files; return the number of events."""
    for name in ("input", "target", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_products(spec, folder)
    rows, relevant, active, bought = 0, [], [], np.zeros(spec.skus, np.int64)
    with ExitStack() as stack:
        paths = {name: folder / f"{name}.parquet" for name in EVENTS_PER_USER}
        paths["truth"] = folder / "truth" / "users.parquet"
        places = {name: stack.enter_context(atomic_write(path)) for name, path in paths.items()}
        writers: dict[str, pq.ParquetWriter] = {}
        for truth, tables in _draw_blocks(spec):
            for name, table in {"truth": truth, **tables}.items():
                if name not in writers:
                    writers[name] = stack.enter_context(
                        pq.ParquetWriter(places[name], table.schema)
                    )
                writers[name].write_table(table)
            rows += sum(table.num_rows for table in tables.values())
            relevant.append(truth["client_id"].to_numpy()[truth["relevant"].to_numpy()])
            active.append(pc.unique(tables["product_buy"]["client_id"]).to_numpy())
            bought += np.bincount(tables["product_buy"]["sku"].to_numpy() - 1, minlength=spec.skus)
    listed = np.concatenate(relevant)
    # One in a hundred listed clients has no event at all.
    strangers = spec.users * 10 + np.arange(max(1, len(listed) // 100))
    listed = np.random.default_rng([spec.seed, 1]).permutation(np.r_[listed, strangers])
    np.save(folder / "input" / "relevant_clients.npy", listed.astype(np.int64))
    own = np.intersect1d(np.concatenate(active), listed)
    np.save(folder / "target" / "active_clients.npy", own.astype(np.int64))
    _write_targets(spec, folder, bought)
    return rows


def _topic_of(spec: PlantedRecsysSpec, ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the topic of products or pages, whose ids begin at 1."""
    return (ids - 1) % spec.topics


def _category_of(spec: PlantedRecsysSpec, skus: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the category of products: five in each topic."""
    return 1 + _topic_of(spec, skus) * 5 + (skus - 1) // spec.topics % 5


def _codes(
    spec: PlantedRecsysSpec, topics: NDArray[np.integer], own: NDArray[np.integer]
) -> pa.Array:
    """Return lists of codes as text: half are of the topic, half of the thing itself."""
    shared = np.random.default_rng([spec.seed, 2]).integers(0, 256, (spec.topics, CODES // 2))
    mixed = (own[:, None] * 2_654_435_761 + np.arange(1, CODES // 2 + 1) * 40_503) >> 7
    codes = np.concatenate([shared[topics], mixed % 256], axis=1).astype(np.int64)
    lists = pa.ListArray.from_arrays(
        np.arange(0, codes.size + 1, CODES, dtype=np.int32),
        pa.array(codes.ravel()).cast(pa.string()),
    )
    return pc.binary_join_element_wise("[", pc.binary_join(lists, " "), "]", "")


def _write_products(spec: PlantedRecsysSpec, folder: Path) -> None:
    """Write the properties of the products; one in twenty has none."""
    skus = np.arange(1, spec.skus + 1)
    rng = np.random.default_rng([spec.seed, 3])
    kept = rng.random(spec.skus) >= 0.05
    table = {
        "sku": skus,
        "category": _category_of(spec, skus),
        "price": rng.integers(0, 100, spec.skus),
        "name": _codes(spec, _topic_of(spec, skus), skus),
    }
    with atomic_write(folder / "product_properties.parquet") as temporary:
        pq.write_table(pa.table(table).filter(pa.array(kept)), temporary)


def _draw_blocks(spec: PlantedRecsysSpec) -> Iterator[tuple[pa.Table, dict[str, pa.Table]]]:
    """Yield the truth and the events of each block of users."""
    # Ids are spread over a range ten times as large, as in a sample of users.
    ids = np.random.default_rng([spec.seed, 4]).permutation(spec.users * 10)[: spec.users]
    last = spec.last_day.replace(tzinfo=UTC).timestamp()
    end = last - last % DAY + DAY
    for block, start in enumerate(range(0, spec.users, USERS_PER_BLOCK)):
        own = ids[start : start + USERS_PER_BLOCK]
        rng = np.random.default_rng([spec.seed, 5, block])
        stays = rng.random(len(own)) >= spec.leaving
        truth = {
            "client_id": own.astype(np.int64),
            "topic": rng.integers(0, spec.topics, len(own)),
            "activity": rng.lognormal(0, 0.7, len(own)),
            "gone": np.where(stays, end, end - rng.uniform(0, 1, len(own)) * spec.days * DAY),
            "relevant": rng.random(len(own)) < spec.relevant,
        }
        tables = {name: _draw_events(spec, name, truth, end, rng) for name in EVENTS_PER_USER}
        yield pa.table(truth), tables


def _draw_events(
    spec: PlantedRecsysSpec, name: str, truth: dict[str, Any], end: float, rng: np.random.Generator
) -> pa.Table:
    """Draw the events of one kind of a block of users, in order of time."""
    begin = end - spec.days * DAY
    share = (truth["gone"] - begin) / (spec.days * DAY)
    counts = rng.poisson(EVENTS_PER_USER[name] * truth["activity"] * share)
    user = np.repeat(np.arange(len(counts)), counts)
    time = begin + rng.uniform(0, 1, len(user)) * (truth["gone"][user] - begin)
    order = np.argsort(time)
    user, time = user[order], time[order]
    other = rng.integers(0, spec.topics, len(user))
    topic = np.where(rng.random(len(user)) < spec.loyalty, truth["topic"][user], other)
    clients = {"client_id": truth["client_id"][user], "timestamp": _as_text(time)}
    if name == "search_query":
        return pa.table(clients | {"query": _codes(spec, topic, rng.integers(0, 500, len(user)))})
    column, most = ("url", spec.urls) if name == "page_visit" else ("sku", spec.skus)
    # Few things of a topic are popular: the rank is the square of a uniform number.
    rank = (rng.uniform(0, 1, len(user)) ** 2 * (most // spec.topics)).astype(np.int64)
    return pa.table(clients | {column: 1 + rank * spec.topics + topic})


def _as_text(seconds: NDArray[np.float64]) -> pa.Array:
    """Write times as YYYY-MM-DD HH:mm:ss."""
    times = pa.array(seconds.astype(np.int64), pa.int64()).cast(pa.timestamp("s"))
    return pc.strftime(times, "%Y-%m-%d %H:%M:%S")


def _write_targets(spec: PlantedRecsysSpec, folder: Path, bought: NDArray[np.int64]) -> None:
    """Write the most bought products and categories, and how often they were bought."""
    categories = np.bincount(_category_of(spec, np.arange(1, spec.skus + 1)), bought)
    counts = {"sku": np.r_[0, bought], "category": categories.astype(np.int64)}
    for name, found in counts.items():
        labels = np.argsort(-found, kind="stable")[: min(LABELS, (found > 0).sum())]
        np.save(folder / "target" / f"propensity_{name}.npy", labels)
        np.save(folder / "target" / f"popularity_propensity_{name}.npy", found[labels])
