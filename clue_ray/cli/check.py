"""The page of `clue-ray prepare --check` for the terminal; imports neither ray nor torch."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clue_ray.corpus.check import Check, LogCheck


def render_check(check: Check) -> Group:
    """Return everything that a check found: tables for each log, then notes and warnings."""
    parts: list[RenderableType] = [part for log in check.logs for part in _render_log(log)]
    if check.separators:
        found = ", ".join(f"{name} in {files:,}" for name, files in check.separators.items())
        parts.append(Text(f"Separators of CSV files: {found}"))
    for what, files in (
        ("Empty files, passed over", check.empty_files),
        ("Files of other formats, passed over", check.other_files),
    ):
        if files:
            more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
            parts.append(Text(f"{what}: {', '.join(files[:3])}{more}"))
    for what, number in (
        ("Lines with a misplaced or escaped quote, read as a character", "literal"),
        ("Values that are not UTF-8, read as Windows-1252", "recoded"),
    ):
        if count := sum(getattr(log, number) for log in check.logs):
            parts.append(Text(f"{what}: {count:,}"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in check.warnings]
    return Group(*parts)


def _render_log(log: LogCheck) -> list[RenderableType]:
    """Return the tables of one log."""
    rejected = log.rows - log.omitted - log.events
    omitted = f", {log.omitted:,} of services left out" if log.omitted else ""
    services = ", ".join(f"{name} {count:,}" for name, count in list(log.services.items())[:20])
    head = (
        f"Sample: {log.rows:,} rows of {log.sampled_files:,} of {log.files:,} files; "
        f"{log.events:,} events, {rejected:,} rejected{omitted}\nServices: {services or 'none'}"
    )
    parts: list[RenderableType] = [Text(head, style="bold"), _columns_table(log)]
    if log.first_rows:
        rows = [["" if v is None else str(v) for v in row.values()] for row in log.first_rows]
        parts.append(_table("First rows as they will be read", list(log.first_rows[0]), rows))
    if log.rejected:
        rows = [
            [reason, f"{found['rows']:,}", found["file"], str(found["row"]), found["content"]]
            for reason, found in log.rejected.items()
        ]
        heads = ["reason", "rows", "first in file", "row, from 0", "content"]
        parts.append(_table("Rows that would be rejected", heads, rows))
    return parts


def _columns_table(log: LogCheck) -> Table:
    """Return the table of what each column is taken for."""
    rows = [
        [row["column"] or "", row["taken_for"], row["holds"], " | ".join(row["examples"])]
        for row in log.columns
    ]
    return _table("Columns", ["column", "taken for", "holds", "examples as written"], rows)


def _table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    """Return a table of texts; cells are folded and never cut."""
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
