"""The sections that need no law: baselines and chance, warnings, cost, curves, runs, provenance."""

from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from clue_ray.report import numbers, tables
from clue_ray.report.figures import lines as figures
from clue_ray.report.figures.files import HALF, NARROW, WIDE, Picture, picture
from clue_ray.report.figures.parallel import coordinates, parallel_coordinates
from clue_ray.report.figures.style import FAINT, INK, MUTED, candidates_of
from clue_ray.report.read import StudyFiles
from clue_ray.report.rivals import seed_spread
from clue_ray.report.section import Section
from clue_ray.report.sections.answer import run_title
from clue_ray.report.tables import Table, describe, number, text, written
from clue_ray.runs import is_at_bound
from clue_ray.spec.columns import in_unit


def learned(files: StudyFiles) -> Section | None:
    """Compare the best run with its rivals and chance; None where no run finished."""
    candidates = candidates_of(files.table)
    shown = tables.comparison(files, candidates) if candidates else None
    if shown is None:
        return None
    title = "Does the encoder beat cheap rivals?"
    return Section("learned", title, "learned", tables=(shown,), after=(seeds(files.done),))


def seeds(done: pd.DataFrame) -> str:
    """State the standard deviation over seeds, or that no configuration was repeated."""
    spread = seed_spread(done)
    if spread is None:
        return (
            "Each configuration was run once, on one held-out pool, so the variance between seeds "
            "is not known."
        )
    pooled, low, high = (numbers.significant(value, 2) for value in spread[:3])
    return (
        f"The standard deviation over seeds is {pooled}{in_unit('loss')} ({low} to {high} over "
        f"{spread.settings} repeated configurations): smaller differences are not significant."
    )


def cost(files: StudyFiles) -> Section | None:
    """Compare the planned cost with the actual cost of the runs."""
    shown = _cost_table(files)
    if shown is None:
        return None
    known = _timed(files)
    caption = "Wall time of each run against the plan; on the line they agree."
    drawn = picture(
        "cost", caption, partial(_planned_and_actual, known), sizes=(HALF,), titles=_titles(known)
    )
    words = tuple(filter(None, (shown.note, _compute(files))))
    listed = replace(shown, note="")  # the section begins with the note
    return Section("cost", "Planned and actual cost", "cost", words, (drawn,), (listed,))


def _timed(files: StudyFiles) -> pd.DataFrame:
    runs = files.table[files.table["wall_seconds"].notna()]
    planned = runs["run_id"].map(files.expected_seconds)
    return runs.assign(planned=planned)[planned.notna()].sort_values(
        "wall_seconds", ascending=False
    )


def _cost_table(files: StudyFiles) -> Table | None:
    """List planned and actual wall time, the longest run first; None without a plan or runs."""
    known = _timed(files)
    if known.empty:
        return None
    expected, actual = float(known["planned"].sum()), float(known["wall_seconds"].sum())
    ratio = known["wall_seconds"] / known["planned"]
    times = "\N{MULTIPLICATION SIGN}"
    rows = [
        (
            text(describe(run)),
            number(run["planned"], "wall_seconds"),
            number(run["wall_seconds"], "wall_seconds"),
            written(numbers.significant(run["wall_seconds"] / run["planned"], 2) + times),
        )
        for _, run in known.iterrows()
    ]
    ends = (
        f"{numbers.significant(ratio.min(), 2)} to {numbers.significant(ratio.max(), 2)} run by run"
    )
    note = (
        f"The plan expected {numbers.seconds(expected)} of training for the {len(known)} runs that "
        f"finished; they took {numbers.seconds(actual)}, "
        f"{numbers.significant(actual / expected, 2)} times as long ({ends})."
    )
    return Table(
        ("run", "planned", "took", "took / planned"), tuple(rows), note=note, folded="Run by run"
    )


def _compute(files: StudyFiles) -> str:
    """Compare the planned compute with the actual compute of the runs that have both."""
    runs = files.table[files.table["train_flops"].notna() & (files.table["status"] == "done")]
    planned = runs["run_id"].map(files.expected_flops)
    both = runs[planned.notna()]
    if both.empty:
        return ""
    ratio = both["train_flops"] / planned[planned.notna()]
    ends = " to ".join(numbers.significant(end, 3) for end in (ratio.min(), ratio.max()))
    return (
        f"Their planned training compute was {numbers.flop(planned.sum())} FLOP and their actual "
        f"compute {numbers.flop(both['train_flops'].sum())} FLOP ({ends} times the plan, run by "
        "run)."
    )


def _planned_and_actual(runs: pd.DataFrame, ax: Axes) -> Axes:
    """Draw wall time over planned time, in seconds on logarithmic axes.

    The columns of `runs` are `planned` and `wall_seconds`.
    """
    ends = [
        min(runs["planned"].min(), runs["wall_seconds"].min()),
        max(runs["planned"].max(), runs["wall_seconds"].max()),
    ]
    limits = (ends[0] / 1.4, ends[1] * 1.4)
    ax.plot(limits, limits, color=MUTED, linewidth=0.9, zorder=1)
    for run in runs.to_dict("records"):
        ax.plot(
            run["planned"],
            run["wall_seconds"],
            "o",
            color=INK,
            markersize=4,
            alpha=0.7,
            gid=f"run-{run['run_id']}",
        )
    ax.set(
        xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="planned, s", ylabel="took, s"
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: numbers.compact(value)))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(color=FAINT, linewidth=0.5)
    return ax


def _titles(runs: pd.DataFrame) -> dict[str, str]:
    return {f"run-{run['run_id']}": run_title(run) for _, run in runs.iterrows()}


def curves(files: StudyFiles) -> Section | None:
    """Draw held-out loss during training."""
    if files.curves is None:
        return None
    parts = files.curves["run_id"].isin(files.ablations["run_id"])
    caption = (
        "Held-out loss during training. A marker is the end of a run; dashed runs have no final "
        "loss."
    )
    if parts.any():
        caption += " Runs of one part of the encoder are left out."
    draw = partial(figures.learning_curves, files.curves[~parts], runs=files.done)
    drawn = picture("learning-curves", caption, draw, titles=_titles(files.table))
    return Section("curves", "Learning curves", "curves", pictures=(drawn,))


def every_run(files: StudyFiles) -> Section:
    """List every run, and draw each run as a line over its settings."""
    shown = tables.run_table(files.table)
    words = (f"{_runs_sentence(files)} {shown.note}".strip(),)
    return Section("runs", "Every run", "runs", words, _parallel(files.table), (shown,))


def _parallel(table: pd.DataFrame) -> tuple[Picture, ...]:
    if len(coordinates(table)) < 3:  # two axes repeat a plot above
        return ()
    caption = (
        "Each line is a run, from its settings to its loss; colours are those of the first plot. "
        "Dashed lines that end in a cross have no loss."
    )
    draw, sizes = partial(parallel_coordinates, table), ((WIDE[0], 3.6), NARROW)
    drawn = picture("parallel-coordinates", caption, draw, sizes=sizes, titles=_titles(table))
    return (drawn,)


def _runs_sentence(files: StudyFiles) -> str:
    """Count the runs by status, so that none is dropped silently."""
    counts = files.table["status"].value_counts()
    order = [status for status in ("done", "failed", "diverged", "missing") if status in counts]
    words = ", ".join(f"{counts[status]:,} {status}" for status in order)
    return f"{len(files.table)} run{'s' * (len(files.table) != 1)}: {words}."


def warnings(sentences: tuple[str, ...]) -> Section | None:
    """List every warning, the most serious first."""
    if not sentences:
        return None
    return Section("warnings", "Warnings", "warnings", points=sentences)


def calibration_warnings(files: StudyFiles) -> list[str]:
    """Warn where the temperature of a finished run ended at a bound of its calibration."""
    curves = files.curves
    if curves is None or "calibrated_temperature" not in curves:  # a study before calibration
        return []
    last = curves[curves["run_id"].isin(files.finished["run_id"])].groupby("run_id").last()
    bounded = last[last["calibrated_temperature"].map(is_at_bound)]
    if bounded.empty:
        return []
    runs = ", ".join(map(str, bounded.index[:3])) + (", ..." if len(bounded) > 3 else "")
    return [
        f"The calibrated temperature of {len(bounded)} of {len(last)} runs ended at its bound "
        f"({runs}): the vectors of their validation users hardly differ or do not match, so their "
        "losses cannot be compared; train longer, or keep more users with corpus.split.validation."
    ]


def provenance(files: StudyFiles) -> Table:
    """List the versions, devices, corpus, rejected rows and licence behind the report."""
    table, corpus = files.table, files.corpus
    services = corpus.get("services")
    facts = {
        "clue_ray version": _distinct(table["clue_ray_version"]),
        "device": _distinct(table["device"]),
        "workers per run": _distinct(table["num_workers"]),
        "corpus digest": str(corpus.get("digest") or _distinct(table["corpus_digest"])),
        "corpus": str(corpus.get("path") or ""),
        "users": _amount(corpus.get("users")),
        "users in two or more services": _amount(corpus.get("users_in_two_services")),
        "training users": _amount(corpus.get("training_users")),
        "held-out users": _amount(corpus.get("held_out_users")),
        "services": ", ".join(map(str, services))
        if isinstance(services, list | dict)
        else _amount(services),
        "events": _amount(corpus.get("events")),
        "distinct items": _amount(corpus.get("items")),
        "tokens": _amount(corpus.get("tokens")),
        "rejected rows": _rejected(corpus),
        "licence of the data": str(corpus.get("licence_note") or ""),
    }
    rows = tuple((text(name), text(value)) for name, value in facts.items() if value)
    return Table(("", ""), rows, folded="Versions, devices and corpus")


def _distinct(values: pd.Series) -> str:
    return ", ".join(
        sorted({f"{v:g}" if isinstance(v, float) else str(v) for v in values.dropna()})
    )


def _amount(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if numbers.is_absent(value) else numbers.count(value)


def _rejected(corpus: dict[str, Any]) -> str:
    """Count the rejected rows of a corpus, with the reasons."""
    if not corpus:
        return ""
    reasons = {reason: rows for reason, rows in (corpus.get("rejected") or {}).items() if rows}
    total = corpus.get("rejected_rows", sum(reasons.values()))
    why = ", ".join(f"{reason}: {_amount(rows)}" for reason, rows in reasons.items())
    return f"{_amount(total)} ({why})" if why else _amount(total) if total else "none"
