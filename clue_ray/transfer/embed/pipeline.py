"""The Ray Data pipeline of an embedding: gather users, encode shared items once, encode users.

    parts of the log -> rows of users -> shuffle into buckets of users -> one packed row per bucket
    packed rows -> their items -> shuffle into ranges of items -> vectors of the shared items
    packed rows + vectors of items -> parts

Packed rows stay in Ray's object store, which spills what it cannot hold to disk. Vectors of items
are files, see `items`.
"""

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.exceptions import RayError

from clue_ray.corpus.build import MAX_TASKS, small_shuffle_tasks
from clue_ray.corpus.logs.catalogue import check_joined
from clue_ray.corpus.logs.items import Joined
from clue_ray.corpus.logs.reading import Reading, read_part
from clue_ray.corpus.sharing import share_reading
from clue_ray.errors import ClusterError, EventLogError, StudyError, find_worker_error
from clue_ray.transfer.embed.items import list_items, open_items, share_items, write_items
from clue_ray.transfer.embed.writing import (
    USER_ROWS,
    EmbedPlan,
    gather_buckets,
    read_user_rows,
    write_vectors,
)
from clue_ray.transfer.encode import UserEncoder
from clue_ray.transfer.encoder_file import ExportedEncoder

logger = logging.getLogger(__name__)
Work = Callable[[pa.Table, UserEncoder, EmbedPlan], None]
"""Encodes one packed row and writes the result."""
PARTS_TRIED = 32
"""Parts of the log of which a batch is looked up in the catalogues first."""
ENOUGH_ROWS = 1_000
"""Rows of that sample without a match from which the catalogue is taken for another one."""
WHOLE: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}


def make_parts(
    reading: Reading, exported: ExportedEncoder, plan: EmbedPlan, gpus_per_worker: float
) -> None:
    """Run the pipeline until all parts are written.

    Raises:
        ClusterError: the cluster has too few GPUs for one actor.
    """
    gpus = count_gpus(gpus_per_worker)
    inputs = {"exported": ray.put(exported), "plan": ray.put(plan)}
    encode = partial(_encode, inputs=inputs, gpus_per_worker=gpus_per_worker, gpus=gpus)
    try:
        with small_shuffle_tasks():
            packed = _gather_users(reading, inputs, plan)
            if exported.card.run.encoder.transformer:  # a bag of tokens has no vectors of items
                _encode_shared(packed, inputs, plan, encode)
            encode(packed, encode_users)
    except RayError as error:
        raise _original_error(error) from error


def count_gpus(gpus_per_worker: float) -> float:
    """Return the cluster's GPUs.

    Raises:
        ClusterError: they are too few for one worker.
    """
    gpus = float(ray.cluster_resources().get("GPU", 0))
    if gpus < gpus_per_worker:  # Ray would wait for them forever
        raise ClusterError(
            f"A worker that encodes needs {gpus_per_worker:g} GPU, but the Ray cluster has "
            f"{gpus:g}; leave --gpus-per-worker out to encode on CPUs, or start nodes with GPUs."
        )
    return gpus


def _original_error(error: RayError) -> Exception:
    """Return the error of ours that a worker raised, or Ray's own error if there is none."""
    kinds: dict[str, type[Exception]] = {"EventLogError": EventLogError, "StudyError": StudyError}
    found = find_worker_error(error, "|".join(kinds))
    return kinds[found[0]](found[1]) if found else error


def _gather_users(
    reading: Reading, inputs: dict[str, Any], plan: EmbedPlan
) -> "ray.data.MaterializedDataset":
    """Read the log and shuffle users into buckets; return a packed row per bucket."""
    parts = len(reading.parts)
    shared = share_reading(reading)[0]
    if reading.catalogues:
        for sentence in ray.get(ray.remote(num_cpus=1)(_check_catalogues).remote(shared)):
            logger.warning("Of a sample: %s", sentence)
    log = {"reading": shared, "plan": inputs["plan"]}
    return (
        ray.data.range(parts, override_num_blocks=min(parts, MAX_TASKS))
        .map_batches(_user_rows, batch_size=None, fn_kwargs=log)
        .repartition(plan.buckets, keys=["bucket"])
        .map_batches(_gather_partition, fn_kwargs=inputs, **WHOLE)
        .materialize()
    )


def _check_catalogues(reading: Reading) -> list[str]:
    """Look up the ids of a few batches from anywhere in the log, before all of it is read.

    Returns:
        A sentence for each catalogue that lacks some of them.

    Raises:
        EventLogError: as for `check_joined`.
    """
    parts = np.random.default_rng(0).permutation(len(reading.parts))[:PARTS_TRIED]
    joined: list[Joined] = []
    for part in (reading.parts[number] for number in parts):
        batch = next(read_part(part, reading.logs[part.log]), None)
        joined += batch.joined if batch else ()
    return check_joined(reading, joined, ENOUGH_ROWS)


def _encode_shared(
    packed: "ray.data.Dataset",
    inputs: dict[str, Any],
    plan: EmbedPlan,
    encode: Callable[["ray.data.Dataset", Work], None],
) -> None:
    """Shuffle the items of all buckets into ranges, and encode those that buckets share."""
    ranges = (
        packed.map_batches(_items_of_rows, fn_kwargs={"plan": inputs["plan"]}, **WHOLE)
        .repartition(plan.buckets, keys=["range"])
        .map_batches(share_items, **WHOLE)
    )
    encode(ranges, write_items)


def _encode(
    packed: "ray.data.Dataset",
    work: Work,
    inputs: dict[str, Any],
    gpus_per_worker: float,
    gpus: float,
) -> None:
    """Do the work of each packed row, in tasks on CPUs or in actors that hold a GPU."""
    # With GPUs, Ray Data requires a batch size; a batch of one row is a whole bucket.
    one: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": 1}
    given = {**inputs, "work": work}
    if gpus_per_worker:
        actors = ray.data.ActorPoolStrategy(min_size=1, max_size=int(gpus / gpus_per_worker))
        on_gpus = {"compute": actors, "num_gpus": gpus_per_worker, "fn_constructor_kwargs": given}
        written = packed.map_batches(EncodingActor, **on_gpus, **one)
    else:
        written = packed.map_batches(_encode_in_task, fn_kwargs=given, **one)
    for _ in written.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass  # the tasks write files


def _user_rows(
    batch: dict[str, Any], reading: "ray.ObjectRef[Reading]", plan: "ray.ObjectRef[EmbedPlan]"
) -> Iterator[pa.Table]:
    """Read parts of the log, given by number, as USER_ROWS."""
    log, request = ray.get(reading), ray.get(plan)
    yield USER_ROWS.empty_table()  # so that parts without rows have columns, too
    for index in batch["id"].tolist():
        yield from read_user_rows(log.parts[index], log, request)


def _gather_partition(
    rows: pa.Table, exported: "ray.ObjectRef[ExportedEncoder]", plan: "ray.ObjectRef[EmbedPlan]"
) -> pa.Table:
    """Pack the buckets of one partition of the shuffle."""
    return gather_buckets(rows, _load_exported(exported), ray.get(plan))


def _items_of_rows(packed: pa.Table, plan: "ray.ObjectRef[EmbedPlan]") -> pa.Table:
    return list_items(packed, ray.get(plan))


def encode_users(row: pa.Table, encoder: UserEncoder, plan: EmbedPlan) -> None:
    """Write the part of one packed bucket, with the vectors of the items that buckets share."""
    width = encoder.card.run.encoder.width
    items = open_items(plan.parts.place, plan.attempt, plan.buckets, width)
    write_vectors(row, encoder, plan, items.find)


@lru_cache(maxsize=1)  # one process runs many tasks
def _load_exported(exported: "ray.ObjectRef[ExportedEncoder]") -> ExportedEncoder:
    return ray.get(exported)


@lru_cache(maxsize=1)
def _load_encoder(exported: "ray.ObjectRef[ExportedEncoder]") -> UserEncoder:
    return UserEncoder(_load_exported(exported))


def _encode_in_task(
    row: pa.Table,
    exported: "ray.ObjectRef[ExportedEncoder]",
    plan: "ray.ObjectRef[EmbedPlan]",
    work: Work,
) -> pa.Table:
    """Do the work of a packed row in a task."""
    if row.num_rows:
        work(row, _load_encoder(exported), ray.get(plan))
    return row.select(["number"])


class EncodingActor:
    """An actor that does the work of packed rows on a GPU."""

    def __init__(
        self,
        exported: "ray.ObjectRef[ExportedEncoder]",
        plan: "ray.ObjectRef[EmbedPlan]",
        work: Work,
    ):
        self.plan: EmbedPlan = ray.get(plan)
        self.work = work
        self.encoder = UserEncoder(
            ray.get(exported), "cuda" if torch.cuda.is_available() else "cpu"
        )

    def __call__(self, row: pa.Table) -> pa.Table:
        """Do the work of a packed row."""
        if row.num_rows:
            self.work(row, self.encoder, self.plan)
        return row.select(["number"])
