"""Write the profile of a corpus as one self-contained page.

`prepare` writes profile.json into the folder of a corpus; `write_profile` writes profile.html next
to it. The page and the command line show the same tables.
"""

import math
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from clue_ray.errors import CorpusError, reason_of
from clue_ray.report.figures.files import Picture, picture
from clue_ray.report.figures.profile import (
    FITS,
    PERCENTILES,
    draw_fit,
    draw_lengths,
    draw_overlap,
    draw_users,
)
from clue_ray.report.figures.style import label
from clue_ray.report.numbers import share_percent
from clue_ray.report.profile_items import catalogue_table, types_table
from clue_ray.report.tables import Cell, Table, number, text, written
from clue_ray.storage.documents import read_document
from clue_ray.storage.files import atomic_write

Profile = Mapping[str, Any]

MOST_SERVICES = 12
"""Largest number of services in the overlap."""


def write_profile(folder: Path) -> Path:
    """Write profile.html from the profile.json of a corpus and return its path.

    Raises:
        CorpusError: the folder has no profile, or the profile is not JSON.
    """
    source, target = folder / "profile.json", folder / "profile.html"
    try:
        page = _render(folder.resolve().name, read_document(source))
    except Exception as error:  # a corpus may be by somebody else, whose profile may lack anything
        raise CorpusError(
            f"{source} cannot be read as a profile ({reason_of(error)}); prepare the corpus again."
        ) from error
    with atomic_write(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _render(name: str, profile: Profile) -> str:
    """Return the page of a profile."""
    environment = Environment(
        loader=PackageLoader("clue_ray.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("profile.html.j2").render(
        name=name,
        headline=profile_headline(profile),
        tables=profile_tables(profile),
        pictures=_pictures(profile),
    )


def profile_headline(profile: Profile) -> str:
    """Describe the size and the time range of a corpus in one sentence."""
    return (
        f"{_counted(profile['users'], 'user')} of "
        f"{_counted(len(profile['users_in_service']), 'service')} with "
        f"{_counted(profile['events'], 'event')}, {_time_range(profile)}: "
        f"{_counted(profile['distinct_items'], 'distinct item')}, "
        f"{_counted(profile['tokens'], 'token')}."
    )


def profile_tables(profile: Profile) -> dict[str, Table]:
    """Return the tables of a profile by title, in reading order."""
    rejected = {"Rejected rows": _rejected_table(profile)} if profile["rejected_rows"] else {}
    rows = {"What became of every row": _rows_table(profile)} if "rows" in profile else {}
    return (
        rejected
        | rows
        | {
            "How the log was read": _reading_table(profile),
            **({"Typed columns": types_table(profile)} if profile.get("typed_columns") else {}),
            **({"Catalogues": catalogue_table(profile)} if profile.get("catalogues") else {}),
            "Users by split": _split_table(profile),
            "Services": _service_table(profile),
            "Users by number of services": _users_table(profile),
            "Users in both services": _overlap_table(profile),
            "Lengths": _length_table(profile),
            "Fit by sequence length": _fit_table(profile),
        }
    )


def _rejected_table(profile: Profile) -> Table:
    rejected, read = profile["rejected_rows"], _rows(profile)
    rows = tuple((text(why), number(n), _share(n / read)) for why, n in profile["rejected"].items())
    share = share_percent(rejected / read)
    note = f"{rejected:,} of {_counted(read, 'row')} ({share}) were rejected; see rejected/."
    return Table(("reason", "rows", "share of rows"), rows, note=note)


def _rows_table(profile: Profile) -> Table:
    """Account for every line of the files; the counts were compared by preparation."""
    found = {
        "lines of text files and rows of Parquet files, counted independently": profile["lines"],
        "header lines, blank lines and line ends within quotes": -profile["other_lines"],
        "events": profile["events"],
        "events after the cut in time": profile["events_after_cut"],
        "rejected rows": profile["rejected_rows"],
        "rows of omitted services": profile["omitted_rows"],
        "duplicates dropped": profile["duplicates_dropped"],
    }
    body = tuple((text(what), number(rows)) for what, rows in found.items() if rows)
    note = f"All {_counted(profile['rows'], 'row')} of {_counted(profile['files'], 'file')} add up."
    return Table(("found", "number"), body, note=note)


def _reading_table(profile: Profile) -> Table:
    """Count the irregularities of the log."""
    usable = sum(profile["events_in_service"].values())
    # Duplicates were dropped where the log has more usable rows than the corpus has events.
    fate = "dropped" if usable > profile["events"] + profile["events_after_cut"] else "kept"
    found = {
        f"duplicate rows: same user, service, time and text ({fate})": profile["duplicate_rows"],
        "values that were not UTF-8": profile["values_not_utf8"],
    }
    for unit, rows in profile["timestamps_read_as"].items():
        found[f"timestamps read as {unit}{' since 1970' if unit.endswith('seconds') else ''}"] = (
            rows
        )
    body = tuple((text(what), number(rows)) for what, rows in found.items())
    return Table(("found", "number"), body, note=" ".join(_reading_sentences(profile)))


def _reading_sentences(profile: Profile) -> list[str]:
    sentences = [] if profile["rejected_rows"] else ["No row was rejected."]
    if later := profile["events_after_cut"]:
        verbs = ("lies", "is") if later == 1 else ("lie", "are")
        sentences.append(
            f"{_counted(later, 'event')} {verbs[0]} after the cut in time and {verbs[1]} kept "
            "separately."
        )
    if sum(profile["timestamps_read_as"].values()) > _rows(profile):
        sentences.append("Timestamps include those of rows of omitted services.")
    if untimed := profile["in_order_of_appearance"]:
        sentences.append(f"Without timestamps, so in order of appearance: {'; '.join(untimed)}.")
    return sentences + _file_sentences(profile) + _id_sentences(profile)


def _file_sentences(profile: Profile) -> list[str]:
    """Describe what is unusual about the files of a log."""
    sentences = []
    if set(separators := profile.get("separators", {})) - {"comma"}:
        found = ", ".join(f"{name} in {_counted(n, 'file')}" for name, n in separators.items())
        sentences.append(f"Separators of columns: {found}.")
    if literal := profile.get("lines_with_misplaced_quotes"):
        sentences.append(
            f"{_counted(literal, 'line')} with a misplaced or escaped quote: such a line was read "
            "by itself, with the quote as a character."
        )
    if empty := profile.get("empty_files"):
        sentences.append(f"Empty files were passed over: {_first(empty)}.")
    if other := profile.get("other_files"):
        sentences.append(f"Files of other formats were passed over: {_first(other)}.")
    return sentences


def _id_sentences(profile: Profile) -> list[str]:
    """Warn of user ids that are probably not what they seem."""
    sentences = []
    forms = profile.get("ids_that_differ_by_form", {})
    if groups := forms.get("groups"):
        examples = "; ".join(" and ".join(map(repr, ids)) for ids in forms["examples"])
        sentences.append(
            f"Warning: {_counted(groups, 'group')} of user ids, of "
            f"{_counted(forms['users'], 'user')} compared, differ only by form "
            f"(case, Unicode form, spaces, zeros): {examples}."
        )
    doubtful = profile.get("doubtful_ids", {})
    rounded = {name: events for name, events in doubtful.items() if "E+" in name}
    if rounded:
        sentences.append(
            f"Warning: user ids such as {_first(list(map(repr, rounded)))} are numbers that a "
            f"spreadsheet rounded, so that each may be several users; they have "
            f"{_counted(sum(rounded.values()), 'event')}: export ids as text."
        )
    sentences += [
        f"Warning: user id {name!r} looks like a missing value and has {_counted(events, 'event')}."
        for name, events in doubtful.items()
        if name not in rounded
    ]
    return sentences


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _split_table(profile: Profile) -> Table:
    splits, users = profile["users_by_split"], profile["users"]
    rows = tuple((text(name), number(held), _share(held / users)) for name, held in splits.items())
    return Table(("split", "users", "share"), rows)


def _service_table(profile: Profile) -> Table:
    users, events, total = (
        profile["users_in_service"],
        profile["events_in_service"],
        profile["users"],
    )
    usable = sum(events.values())
    rows = tuple(
        (
            text(name),
            number(users[name]),
            _share(users[name] / total),
            number(n),
            _share(n / usable),
        )
        for name, n in ((name, events[name]) for name in _largest(profile))
    )
    more = "Events count all usable rows, including dropped and later rows."
    heads = ("service", "users", "share of users", "events", "share of events")
    return Table(heads, rows, note="" if usable == profile["events"] else more)


def _users_table(profile: Profile) -> Table:
    users = profile["users_by_services"]
    rows = tuple(
        (number(int(n)), number(held), _share(held / profile["users"])) for n, held in users.items()
    )
    return Table(("services", "users", "share"), rows, note=_paired(profile))


def _overlap_table(profile: Profile) -> Table:
    names = _largest(profile)[:MOST_SERVICES]
    rows = tuple(
        (text(row), *(number(profile["overlap"][row][column]) for column in names)) for row in names
    )
    return Table(("", *names), rows)


def _length_table(profile: Profile) -> Table:
    named = {
        "events of one user in one service": "events_per_user_and_service",
        "tokens of a distinct item": "tokens_per_item",
        "tokens of an event": "tokens_per_event",
    }
    rows = tuple(
        (text(what), *(number(profile[key][p]) for p in PERCENTILES)) for what, key in named.items()
    )
    cut = share_percent(profile["events_cut_at_max_item_tokens"])
    note = (
        f"{cut} of events have a text that is truncated at max_item_tokens; tokens are counted "
        "before truncation."
    )
    return Table(("percentile of", *PERCENTILES.values()), rows, note=note)


def _fit_table(profile: Profile) -> Table:
    fits = profile["fits_sequence_length"]
    rows = tuple(
        (number(length), *(_share(fit[kind]) for kind in FITS)) for length, fit in fits.items()
    )
    return Table((label("sequence_length"), *FITS.values()), rows)


def _pictures(profile: Profile) -> dict[str, Picture]:
    """Draw the figures by title; the overlap needs two services."""
    lengths, fits = profile["events_per_user_and_service"], profile["fits_sequence_length"]
    history = (
        "A history is all events of one user in one service; each dot is a percentile of its "
        "length."
    )
    recent = (
        "A sequence length keeps the most recent events of each history; older events are not read."
    )
    users = {int(services): held for services, held in profile["users_by_services"].items()}
    titles = {
        f"bar-{n}": f"{_counted(held, 'user')} in {_counted(n, 'service')}"
        for n, held in users.items()
    }
    drawn = {
        "How long histories are": picture(
            "lengths", history, partial(draw_lengths, lengths), sizes=_sizes(2.0)
        ),
        "How much of it fits": picture("fit", recent, partial(draw_fit, fits), sizes=_sizes(3.4)),
        "Users by number of services": picture(
            "users",
            _paired(profile),
            partial(draw_users, users),
            sizes=_sizes(2.3, max(users)),
            titles=titles,
        ),
    }
    return drawn | (
        {"Overlap of services": _overlap(profile)} if len(profile["overlap"]) > 1 else {}
    )


def _overlap(profile: Profile) -> Picture:
    names, of = _largest(profile)[:MOST_SERVICES], len(profile["overlap"])
    users = [[int(profile["overlap"][row][column]) for column in names] for row in names]
    caption = (
        "Percentage of the users of the row's service who are also in the column's service; grey "
        "is the service itself."
    )
    if len(names) < of:
        caption += f" Shown are the {len(names)} services with the most users, of {of}."
    titles = {
        f"cell-{row}-{column}": f"{names[row]}: {users[row][column]:,} of "
        f"{_counted(users[row][row], 'user')}"
        + (f" also in {names[column]}" if row != column else "")
        for row, column in np.ndindex(len(names), len(names))
    }
    draw = partial(draw_overlap, names, users)
    with warnings.catch_warnings():
        # Letters that matplotlib's font lacks are rendered in the font of the page.
        warnings.filterwarnings("ignore", "Glyph")
        return picture(
            "overlap",
            caption,
            draw,
            sizes=_sizes(1.2 + 0.4 * len(names), len(names)),
            titles=titles,
        )


def _sizes(height: float, marks: int = 9) -> tuple[tuple[float, float], ...]:
    """Return the sizes of a figure in inches; a figure with few marks is narrow."""
    return ((6.8, height), (4.0, height)) if marks > 4 else ((3.5, height),)


def _share(part: float) -> Cell:
    return written(share_percent(part))


def _rows(profile: Profile) -> int:
    return int(sum(profile["events_in_service"].values()) + profile["rejected_rows"])


def _largest(profile: Profile) -> list[str]:
    users = profile["users_in_service"]
    return sorted(users, key=lambda name: (-users[name], name))


def _paired(profile: Profile) -> str:
    paired = sum(
        held for services, held in profile["users_by_services"].items() if int(services) >= 2
    )
    users, share = _counted(profile["users"], "user"), share_percent(paired / profile["users"])
    return f"{paired:,} of {users} ({share}) have two or more services and can be paired."


def _time_range(profile: Profile) -> str:
    time = profile["time"]
    if not time:
        return "in order of appearance"
    if profile["time_reads_as_order"]:
        return (
            f"with timestamps from {time[0]:g} to {time[1]:g}, which are an order rather than dates"
        )
    first, last = (str(np.datetime64(math.floor(seconds), "s"))[:10] for seconds in time)
    return f"on {first}" if first == last else f"from {first} to {last}"


def _counted(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"
