"""Planted logs of any size, streamed by Ray Data: every block of users is drawn and written by
itself.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from clue_ray.corpus.planted import Planted, PlantedSpec
from clue_ray.errors import EventLogError
from clue_ray.storage.files import atomic_write

EVENTS_A_FILE = 1_000_000


def write_planted(spec: PlantedSpec, folder: Path) -> int:
    """Draw a planted log into a new folder of Parquet files and return its events; needs a Ray
    session.

    The files depend on the spec alone, not on the cluster. The folder appears whole or not at all.

    Raises:
        EventLogError: `folder` is there already.
    """
    if folder.exists():
        raise EventLogError(f"{folder} exists already; choose another output, or delete it first.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    size = max(1, EVENTS_A_FILE // (spec.events * spec.services))
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
            pq.write_table(table, temporary, compression="zstd", row_group_size=EVENTS_A_FILE // 4)
        events += table.num_rows
    return pa.table({"events": [events]})
