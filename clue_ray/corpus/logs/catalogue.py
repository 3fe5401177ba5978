"""Load the catalogues of a reading: the tables whose texts stand for the item ids of its logs.

A catalogue is read like a log, with its key in the place of the user, so it may have any format,
any number of files, and ids in any form.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from clue_ray.corpus.logs.items import Catalogue, Joined, make_catalogue
from clue_ray.corpus.logs.reading import CataloguePlan, Reading, read_part
from clue_ray.corpus.logs.schema import good_rows, normalise
from clue_ray.errors import EventLogError


def load_catalogues(reading: Reading) -> Reading:
    """Return a reading whose logs hold their catalogues, in memory.

    Raises:
        EventLogError: a catalogue cannot be read, is empty, or repeats a key.
    """
    loaded = {plan.name: _load(plan, reading) for plan in reading.catalogues}
    logs = [
        replace(log, items=tuple(replace(j, catalogue=loaded[j.name]) for j in log.items))
        for log in reading.logs
    ]
    return replace(reading, logs=tuple(logs))


def check_matched(name: str, found: Mapping[str, Any]) -> None:
    """Check that some id of a log is a key of its catalogue.

    Args:
        found: the catalogue's `table` and a `key` of it, and of the log how many rows are `matched`
            and `unmatched`, and a few unmatched `ids`.

    Raises:
        EventLogError: rows were looked up, and none was found.
    """
    if found["unmatched"] and not found["matched"]:
        raise EventLogError(
            f"None of the {found['unmatched']:,} ids of {name} is a key of catalogue "
            f"{found['table']} (the log has {found['ids'][0]!r}, the catalogue "
            f"{found['key']!r}); check the column and the key."
        )


def check_joined(reading: Reading, joined: Iterable[Joined], least: int = 1) -> list[str]:
    """Check that each catalogue of a loaded reading has some of the ids that were looked up.

    Args:
        least: rows with an id that a catalogue must have been asked for to be refused.

    Returns:
        A sentence for each catalogue that lacks some of them.

    Raises:
        EventLogError: as for `check_matched`.
    """
    found = {
        name: {**held, "matched": 0, "unmatched": 0, "ids": []}
        for name, held in describe_catalogues(reading).items()
    }
    for name, matched, unmatched, examples in joined:
        found[name]["matched"] += matched
        found[name]["unmatched"] += unmatched
        found[name]["ids"] += examples
    for name, counts in found.items():
        if counts["matched"] + counts["unmatched"] >= least:
            check_matched(name, counts)
    return [
        f"{counts['unmatched']:,} of {counts['matched'] + counts['unmatched']:,} rows have an id "
        f"of {name} that catalogue {counts['table']} lacks, such as {counts['ids'][0]!r}."
        for name, counts in found.items()
        if counts["unmatched"]
    ]


def describe_catalogues(reading: Reading) -> dict[str, dict[str, Any]]:
    """Return the size of each loaded catalogue, and one of its keys, by name."""
    joins = {join.name: join for log in reading.logs for join in log.items}
    found = {}
    for plan in reading.catalogues:
        catalogue = joins[plan.name].catalogue
        assert catalogue is not None
        found[plan.name] = {
            "table": plan.spec.table,
            "keys": len(catalogue.hashes),
            "unusable_rows": catalogue.unusable,
            "key": catalogue.ids[0].as_py(),
        }
    return found


def _load(plan: CataloguePlan, reading: Reading) -> Catalogue:
    spec = reading.spec.model_copy(update={"services": None})
    large = pa.schema([("user_id", pa.large_string()), ("text", pa.large_string())])
    tables, rows = [large.empty_table()], 0
    for part in plan.parts:
        for batch in read_part(part, plan.log):
            items = normalise(batch.table, plan.log, spec)
            tables.append(good_rows(items).select(["user_id", "text"]).cast(large))
            rows += items.num_rows
    whole = pa.concat_tables(tables)
    ids, texts = (column.combine_chunks() for column in whole.columns)
    return make_catalogue(ids, texts, plan.spec.table, rows - whole.num_rows)
