"""Answers on the laws and their fits: the heads "Scaling-law hypothesis" and "Fitting"."""

import re
from importlib.metadata import version

import numpy as np

from clue_ray.report import numbers
from clue_ray.report.sections.checklist.evidence import Evidence, sentences
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.fitting.bootstrap import DRAWS
from clue_ray.scaling.fitting.frontier import COMPUTE_TOLERANCE, LARGEST_LEVEL_SHARE, X, Y
from clue_ray.scaling.fitting.intervals import MAX_PROFILED
from clue_ray.scaling.fitting.problem import LARGEST_EXPONENT
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.fitting.search import (
    MAX_GRID_POINTS,
    MIN_POLISHED,
    POLISHED_SHARE,
    RIVAL_COSTS,
    screen,
)
from clue_ray.scaling.forecasting.hypotheses import DRIFTS, GAPS, NOISES
from clue_ray.scaling.judging.backtest import LOOK_AHEAD
from clue_ray.scaling.laws.law import Law
from clue_ray.spec.columns import label, short_label

ARXIV = re.compile(r"arXiv \d{4}\.\d{4,5}")


def form(evidence: Evidence) -> str:
    """State the formula of each fitted law."""
    return sentences(*(f"{law.words}: {law.formula}" for law in _laws(evidence)))


def variables(evidence: Evidence) -> str:
    """Name the predictor and the response of the laws, and the axes with a law of their own."""
    if evidence.analysis is None:
        return ""
    axes = [short_label(axis.column) for axis in evidence.analysis.axes if axis.fit]
    also = f"{label(Y)} in {listing(axes)}, one at a time" if axes else ""
    return sentences(f"{label(Y)} in {label(X)}", also)


def parameters(evidence: Evidence) -> str:
    """Name the parameters that are fitted in each law."""
    return sentences(
        *(
            f"{law.words}: {listing([name.replace('_', ' ') for name in law.parameters])}"
            for law in _laws(evidence)
        )
    )


def sources(evidence: Evidence) -> str:
    """Cite the paper of each form, as the docstring of its function names it."""
    cited = [(law, ARXIV.search(law.function.__doc__ or "")) for law in _laws(evidence)]
    return sentences(*(f"{law.words}: {found[0]}" for law, found in cited if found))


def assumptions(evidence: Evidence) -> str:
    """State the limits of each law, and the bound on exponents."""
    laws = _laws(evidence)
    if not laws:
        return ""
    bound = f"exponents of terms are between 0 and {LARGEST_EXPONENT:g}"
    return sentences(*(f"{law.words}: {_limits(law)}" for law in laws), bound)


def _limits(law: Law) -> str:
    floor = f"falls to a floor ({law.floor.replace('_', ' ')})" if law.floor else "has no floor"
    known = law.ceiling is not None and np.isfinite(law.ceiling)
    ceiling = f", starts at {law.ceiling:.4g} nats, the loss at chance" if known else ""
    return floor + ceiling


def objective(evidence: Evidence) -> str:
    """State the cost that was minimised, with the deltas used."""
    if not _fits(evidence):
        return evidence.reason
    deltas = sorted({fit.delta for fit in _fits(evidence)})
    if not np.isfinite(deltas[-1]):
        return "least squares of log residuals"
    used = listing([f"{delta:.3g}" for delta in deltas])
    return f"sum of Huber costs of log residuals, delta {used}"


def algorithm(evidence: Evidence) -> str:
    """State how the preferred law was fitted: starts, convergence, rival optima."""
    fit = _preferred(evidence)
    if fit is None:
        return ""
    starts = len(screen(fit.problem, fit.delta))
    followed = max(MIN_POLISHED, int(starts * POLISHED_SHARE))
    optima = "optimum" if fit.rivals[0] == 1 else "optima"
    return sentences(
        "Levenberg-Marquardt on reweighted squares with exact derivatives, deterministic",
        f"{starts} starts of a grid of up to {MAX_GRID_POINTS} points, {followed} of them followed "
        f"to the minimum",
        f"{'converged' if fit.converged else 'not converged'}, with {fit.rivals[0]} distinct "
        f"{optima} within {RIVAL_COSTS[0]:.0%} of the lowest cost",
    )


def fitted(evidence: Evidence) -> str:
    """State which runs the laws were fitted to, and which were left out."""
    fit, analysis = _preferred(evidence), evidence.analysis
    if fit is None or analysis is None:
        return ""
    points, absent = analysis.points, len(evidence.files.table) - len(analysis.points)
    best = int(points["frontier"].sum())
    on_frontier = int((points["frontier"] & ~points["held_out"]).sum()) == fit.num_runs
    return sentences(
        f"{fit.num_runs} of {len(points)} finished runs, "
        + ("all of them on the frontier" if on_frontier else "not only those on the frontier"),
        f"frontier: the {best} runs that no run beats with up to {COMPUTE_TOLERANCE:g} times their "
        "compute",
        f"held out: {int(points['held_out'].sum())} of at least {LARGEST_LEVEL_SHARE:.0%} of the "
        f"largest compute ({evidence.files.fit.hold_out})",
        f"no outlier removed; {absent} without a result left out",
    )


def validation(evidence: Evidence) -> str:
    """State how laws and forecasts were tested, and how intervals were made."""
    if evidence.analysis is None:
        return ""
    rows = evidence.analysis.backtest.rows
    laws = rows["law"].nunique()
    inside = numbers.percent(rows["covered"].mean()) if len(rows) else ""
    tested = (
        f"backtest of {laws} laws: {len(rows)} predictions up to {LOOK_AHEAD} times beyond the "
        f"fitted runs, {inside} inside their 95% intervals"
    )
    return sentences(
        tested if len(rows) else "no backtest: too few runs",
        _intervals(evidence),
        _forecasts(),
        f"clue-ray {version('clue-ray')} made this page",
    )


def _forecasts() -> str:
    """Describe the laws that forecasts average over."""
    return (
        f"forecasts average over power laws with {len(GAPS) + 1} floors, with and without a "
        f"ceiling at chance, {len(DRIFTS)} drifts of the slope and {len(NOISES)} levels of noise, "
        "by how well each predicted the runs in turn, with intervals scaled by a backtest"
    )


def _intervals(evidence: Evidence) -> str:
    """Name the method of the intervals, which depends on the number of distinct runs."""
    fit = _preferred(evidence)
    if fit is None:
        return ""
    count = len(np.unique(fit.problem.x, axis=1).T)
    method = "profile likelihood" if count <= MAX_PROFILED else f"{DRAWS} bootstrap draws"
    return f"95% intervals of the laws by {method} over {count} distinct points"


def _fits(evidence: Evidence) -> list[Fit]:
    return list(evidence.analysis.fits.values()) if evidence.analysis else []


def _laws(evidence: Evidence) -> list[Law]:
    return [fit.law for fit in _fits(evidence)]


def _preferred(evidence: Evidence) -> Fit | None:
    analysis = evidence.analysis
    return analysis.fits[analysis.preferred] if analysis else None
