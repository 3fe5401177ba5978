"""The events that an encoder reads, as one table."""

import numpy as np
import pandas as pd
import pyarrow as pa

from clue_ray.corpus.logs.times import as_seconds
from clue_ray.errors import EventLogError, reason_of

EVENTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("service", pa.string()),
        ("timestamp", pa.float64()),
        ("text", pa.string()),
    ]
)


def as_events(table: pa.Table | pd.DataFrame) -> pa.Table:
    """Convert a table to the schema EVENTS; without timestamps, the order of rows is the time.

    Raises:
        EventLogError: a column is missing, cannot be read, or holds nulls.
    """
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if "timestamp" not in table.column_names:
        order = np.arange(table.num_rows, dtype=np.float64)
        table = table.append_column("timestamp", pa.array(order))
    absent = [name for name in EVENTS.names if name not in table.column_names]
    if absent:
        raise EventLogError(
            f"Events have no column {absent[0]!r}; give user_id, service, text and optionally "
            "timestamp."
        )
    events = table.select(EVENTS.names)
    try:
        seconds = as_seconds(events["timestamp"])
        events = events.set_column(EVENTS.get_field_index("timestamp"), "timestamp", seconds)
        events = events.cast(EVENTS)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise EventLogError(
            f"Events cannot be read ({reason_of(error)}); give user_id, service and text "
            "as strings, and timestamp as numbers, dates or ISO 8601."
        ) from None
    with_nulls = [name for name in EVENTS.names if events[name].null_count]
    if with_nulls:
        raise EventLogError(
            f"Events hold {events[with_nulls[0]].null_count} nulls in {with_nulls[0]!r}; leave "
            "those rows out."
        )
    return events
