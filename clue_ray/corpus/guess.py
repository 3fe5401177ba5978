"""Guess what the columns of an event log are, and count what a study needs to know of it.

A column is guessed by its name, and otherwise by its values; a guess by values is not sure, so the
command line asks where it can. Nothing is written.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clue_ray.corpus.logs.reading import Reading, find_first_part, plan_reading, read_part
from clue_ray.corpus.logs.schema import LATEST_TIME, Log, good_rows, logs_of, normalise
from clue_ray.corpus.logs.times import EARLIEST_DATE, as_seconds
from clue_ray.errors import EventLogError
from clue_ray.spec.specs import CorpusSpec

SAMPLE, RUNS = 5_000, 20
"""Rows from which columns are guessed, in runs of consecutive rows: a log may be sorted by user."""
MOST_ROWS = 3_000_000
"""Rows in which events per user are counted; a longer log is judged by its beginning."""
NAMES = {
    "user_id": "user_id userid user uid customer_id customer household_id household member_id "
    "account_id client_id visitor_id person_id reviewer_id reviewerid author profile_id",
    "service": "service domain department channel section category_main source platform vertical "
    "product_line main_category store_type event_source",
    "timestamp": "timestamp time ts datetime date event_time event_timestamp created_at "
    "occurred_at unixreviewtime unix_time transaction_timestamp day",
    "text": "text title item_text product_title item_name product_name name query headline "
    "description search_term product_description",
}
"""Names of each role in the order of preference, in lower case with underscores."""
PERSON = (
    r"(user|customer|client|member|account|household|visitor|buyer|shopper|subscriber|author|"
    r"person|reviewer|profile)(_(id|no|nr|num|number|key|hash|uid|code))?"
)
"""A column of persons, by its whole name."""
OTHER_KEY = (
    r"(^|_)(order|basket|session|item|product|sku|asin|article|price|amount|quantity|qty|zip|"
    r"rating)(_|$)"
)
"""A column that repeats like a user but is none, by a part of its name."""
DAY_AND_MONTH = r"(\d{1,2})([/.-])(\d{1,2})\2\d{4}(?:([ T])\d{1,2}(:\d\d)(:\d\d)?( ?[AaPp][Mm])?)?"
"""A date whose order of day and month is not stated: 03/04/2023 17:05, 3.4.2023 and the like."""
DETAILS = "brand category product_category sub_category product_type commodity color"
"""Columns that a template puts before the title, where a log has them."""
MOST_SERVICES = 50
ROLES = ("timestamp", "user_id", "service", "text")
"""In the order in which they are guessed: a time also has many values."""


@dataclass(frozen=True)
class Guess:
    """What a column is taken for.

    Attributes:
        column: its name; empty where the log has none for the role.
        sure: whether its name says so.
        why: a phrase for the comment in the study file.
    """

    column: str
    sure: bool
    why: str


@dataclass(frozen=True)
class LogFacts:
    """What a log holds, counted over its first rows.

    Attributes:
        rows: usable events that were counted.
        whole: whether these are all events.
        pairs: users by pair of services, {(a, b): users}.
        services: events by service, the largest first.
        users: number of users.
        lengths: events per user and service, (n,).
        characters: mean length of a text.
    """

    rows: int
    whole: bool
    pairs: dict[tuple[str, str], int]
    services: dict[str, int]
    users: int
    lengths: "np.ndarray[Any, np.dtype[np.int64]]"
    characters: float


def guess_columns(spec: CorpusSpec) -> dict[str, Guess]:
    """Guess the column of each role of `ROLES` from the first rows of the first log.

    Raises:
        EventLogError: the log cannot be read.
    """
    table = _first_rows(logs_of(spec)[0])
    guesses: dict[str, Guess] = {}
    for role in ROLES:
        left = [str(c) for c in table if c not in [guess.column for guess in guesses.values()]]
        guesses[role] = _by_name(role, left) or _by_values(role, table, left, guesses)
    return guesses


def guess_time_format(spec: CorpusSpec, column: str) -> str | None:
    """Return the format of dates such as 31/12/2023, as for `strptime`; None for other forms.

    Also None where no day is above 12, so that nothing tells which part is the month.
    """
    rows = _first_rows(logs_of(spec)[0])
    if column not in rows:  # within another column, or none: reading the log says which
        return None
    values = rows[column].dropna().astype(str).str.strip()
    found = [re.fullmatch(DAY_AND_MONTH, value) for value in values]
    dates = [match for match in found if match]
    if not dates or len(dates) < len(found):
        return None
    first, second = (max(int(date[group]) for date in dates) > 12 for group in (1, 3))
    if first == second:
        return None
    _, mark, _, space, minutes, seconds, half = dates[0].groups()
    day = mark.join(("%d", "%m", "%Y") if first else ("%m", "%d", "%Y"))
    hour = f"{space}{'%I' if half else '%H'}:%M{':%S' if seconds else ''}" if minutes else ""
    return f"{day}{hour}{' %p' if half and ' ' in half else '%p' if half else ''}"


def text_template(columns: Sequence[str], text: str) -> tuple[str, str]:
    """Return a template that puts details such as the brand before the text, and why."""
    known = {_words(column): column for column in columns if re.fullmatch(r"\w+", column)}
    details = [known[name] for name in DETAILS.split() if name in known and known[name] != text]
    template = "; ".join(f"{{{column}}}" for column in [*details[:2], text])
    if not details:
        return template, "the words that describe an item"
    return template, "details first, because long texts are cut at max_item_tokens"


def column_names(spec: CorpusSpec) -> list[str]:
    """List the columns of the first file of the first log."""
    return [str(name) for name in _first_rows(logs_of(spec)[0])]


def survey_log(spec: CorpusSpec) -> LogFacts:
    """Count users, services and events of a log, up to `MOST_ROWS` rows.

    Raises:
        EventLogError: the log cannot be read, or lacks a column.
    """
    parts, rows, characters, whole, faults = [], 0, 0, True, Counter[str]()
    for normal in _events(spec):
        table = good_rows(normal)
        faults.update(normal["reason"].drop_null().to_pylist())
        counted = pd.DataFrame({
            "user": pd.util.hash_array(table["user_id"].to_numpy(zero_copy_only=False)),
            "service": table["service"].to_pandas().astype("category"),
        })  # fmt: skip
        parts.append(counted.groupby(["user", "service"], observed=True).size())
        characters += int(pa.compute.sum(pa.compute.utf8_length(table["text"])).as_py() or 0)
        rows += table.num_rows
        if rows >= MOST_ROWS:
            whole = False
            break
    if not rows:
        reason, count = faults.most_common(1)[0] if faults else ("it is empty", 0)
        raise EventLogError(f"The log has no usable row (of {count:,}, {reason}).")
    counts = pd.concat([part.rename("events").reset_index() for part in parts])
    counts["service"] = counts["service"].astype(str)
    each = counts.groupby(["user", "service"])["events"].sum()
    events = each.groupby("service").sum().sort_values(ascending=False)
    return LogFacts(
        rows, whole, _pairs(each, list(events.index)), {str(k): int(v) for k, v in events.items()},
        int(each.index.get_level_values("user").nunique()), each.to_numpy(), characters / rows,
    )  # fmt: skip


def _pairs(each: "pd.Series[int]", services: list[str]) -> dict[tuple[str, str], int]:
    """Count the users that two services share, for each pair."""
    has = each.unstack(fill_value=0).reindex(columns=services).to_numpy() > 0
    shared = has.T.astype(np.int64) @ has
    return {
        (a, b): int(shared[i, j])
        for i, a in enumerate(services)
        for j, b in enumerate(services)
        if i < j
    }


def _events(spec: CorpusSpec) -> Iterator[pa.Table]:
    """Yield the rows of logs batch by batch: of each log in turn, and from anywhere in it.

    So the first `MOST_ROWS` are of all services, whether these are logs of their own or sorted.
    """
    reading = plan_reading(spec, sample=True)
    logs = [_events_of(reading, number) for number in range(len(reading.logs))]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*logs))
    yield from (rows for rows in turns if rows is not None)


def _events_of(reading: Reading, number: int) -> Iterator[pa.Table]:
    log, own = reading.logs[number], [part for part in reading.parts if part.log == number]
    for place in np.random.default_rng(0).permutation(len(own)):
        part = own[place]
        for batch in read_part(part, log):
            yield normalise(
                batch.table, log, reading.spec, file=part.number, first_row=batch.first_row
            )


def _first_rows(log: Log) -> pd.DataFrame:
    """Read the first rows of a log with all columns."""
    first, columns = find_first_part(log)
    plain = [name for name in columns if re.fullmatch(r"[^{}\[\].!:]+", name)]
    if not plain:
        raise EventLogError(f"Event log {first.file} has no columns; give a file with a header.")
    every = Log(
        log.places, None, {"user_id": plain[0], "service": plain[0]},
        "".join(f"{{{name}}}" for name in plain), has_time=False, separator=log.separator,
    )  # fmt: skip
    batch = next(read_part(first, every), None)
    if batch is None:
        raise EventLogError(f"Event log {first.file} is empty; give a file with rows.")
    rows, length = batch.table.num_rows, SAMPLE // RUNS
    starts = np.unique(np.linspace(0, max(0, rows - length), RUNS).astype(int))
    spread = np.unique(np.concatenate([np.arange(at, min(at + length, rows)) for at in starts]))
    frame: pd.DataFrame = batch.table.take(spread).to_pandas()
    return frame[[name for name in plain if name in frame]]


def _by_name(role: str, columns: Sequence[str]) -> Guess | None:
    known = {_words(column): column for column in reversed(columns)}
    for name in NAMES[role].split():
        if name in known:
            return Guess(known[name], True, "by its name")
    if role == "user_id":
        named = [known[name] for name in reversed(known) if re.fullmatch(PERSON, name)]
        if named:
            return Guess(named[0], True, "by its name")
    ends = ("_time", "_timestamp", "_date", "_at") if role == "timestamp" else (f"_{role}",)
    found = next((known[name] for name in known if name.endswith(ends)), None)
    return Guess(found, True, "by the end of its name") if found else None


def _by_values(
    role: str, table: pd.DataFrame, columns: Sequence[str], so_far: dict[str, Guess]
) -> Guess:
    texts = table.astype(str)
    distinct = {column: texts[column].nunique() for column in columns}
    if role == "user_id":  # many ids, each in several rows
        repeated = {
            c: n for c, n in distinct.items() if 1 < n <= 0.9 * len(table) and _is_id(table[c])
        }
        column = max(repeated, key=lambda c: repeated[c], default="")
        return Guess(column, False, "many values, each in several rows")
    if role == "service":  # few values, of which users have several
        few = [c for c, n in distinct.items() if 1 < n <= MOST_SERVICES and _is_text(table[c])]
        user = so_far["user_id"].column
        met = {c: texts.groupby(user)[c].nunique().mean() for c in few} if user else {}
        column = max(met, key=lambda c: met[c], default="")
        return Guess(column, False, "few values, of which users have several")
    if role == "text":
        long = {c: texts[c].str.len().mean() for c in columns if _is_text(table[c])}
        column = max(long, key=lambda c: long[c], default="")
        return Guess(column, False, "the longest words")
    dates = [c for c in columns if _is_time(table[c])]
    return Guess(dates[0] if dates else "", bool(dates), "holds dates")


def _is_id(column: "pd.Series[Any]") -> bool:
    """Return whether values look like ids: whole numbers, or words without a space."""
    values = column.dropna()
    if re.search(OTHER_KEY, _words(str(column.name))) or values.empty:
        return False
    if pd.api.types.is_float_dtype(values):
        return bool((values % 1 == 0).all())
    spaced = values.astype(str).str.strip().str.contains(" ")
    return bool(spaced.mean() < 0.1)


def _is_time(column: "pd.Series[Any]") -> bool:
    """Return whether nearly all values are times of 1980 to 2100, in a form that is read."""
    values = column.dropna().iloc[: SAMPLE // RUNS]
    if values.empty or pd.api.types.is_bool_dtype(values):
        return False
    try:
        seconds = as_seconds(pa.chunked_array([pa.Array.from_pandas(values)])).to_numpy(False)
    except pa.ArrowException:  # lists and mappings
        return False
    dated = (seconds > EARLIEST_DATE) & (seconds < LATEST_TIME)
    return bool(dated.mean() > 0.99) or _is_day_first(values)


def _is_day_first(values: "pd.Series[Any]") -> bool:
    return bool(values.astype(str).str.strip().str.fullmatch(DAY_AND_MONTH).all())


def _is_text(column: "pd.Series[Any]") -> bool:
    """Return whether most values have letters: numbers and most dates have none."""
    letters = [any(map(str.isalpha, value)) for value in column.dropna().astype(str)]
    return bool(letters) and sum(letters) > len(letters) / 2


def _words(name: str) -> str:
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", spelled).strip("_").lower()
