"""Score forecasts of larger runs on public scaling runs of other people's models.

    python -m benchmarks.forecasts --data DIR [--sets NAME ...] [--rows FILE.csv]

DIR holds one CSV per data set with columns C (training compute or a monotone stand-in) and L (loss
or error, lower is better), and optionally `study` or `group`: a forecast is made within one. The
runs below a cut in compute are fitted, and the run with most compute on the frontier within 4 to
10.5 times the largest fitted compute is the target. There are up to four cuts per study. Studies
with fewer than 8 runs or less than a decade below the cut are left out.

For each set and method this prints the number of forecasts, the median of |predicted / measured -
1|, the share of targets inside the 80 % and 95 % intervals, and the mean interval score of the 95 %
interval in per cent of the target (Gneiting and Raftery 2007: its width, plus 40 times the distance
by which it missed, at most 1,000; lower is better). A refused forecast is counted and not scored.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import stats

from clue_ray.errors import ClueRayError
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.forecasting.forecast import PUBLIC_RECORD, forecast
from clue_ray.storage.files import write_json

FEWEST_RUNS, FEWEST_DECADES = 8, 1.0
NEAREST, FURTHEST = 4.0, 10.5
"""Target's compute over the largest that was fitted."""
CUTS = 4
MOST_RUNS = 160
"""Runs behind the frontier that are kept, drawn at random with seed 0."""
LARGEST_SCORE = 1000.0
TUNED = {"datacon", "gzip_pcfg", "jet_ridge", "nfnet_jft", "olmo_ladder", "steplaw"}
"""Sets on which the method was tuned; see docs/reference/statistics.md."""

console = Console(width=110)


class Case(NamedTuple):
    """One forecast to be made: the fitted runs and the target."""

    data_set: str
    study: str
    compute: np.ndarray
    loss: np.ndarray
    at: float
    measured: float


Interval = tuple[float, float, float, float, float]
"""Value, ends of the 80 % interval, ends of the 95 % interval."""


def frontier(compute: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Mark the runs that no run of at most as much compute beats."""
    order = np.lexsort((loss, compute))
    before = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    marked = np.zeros(len(loss), dtype=bool)
    marked[order[loss[order] < before]] = True
    return marked


def cases_of(name: str, data: pd.DataFrame) -> Iterator[Case]:
    """Yield the forecasts that a data set allows."""
    data = data[(data["C"] > 0) & (data["L"] > 0)]
    column = next((each for each in ("study", "group") if each in data), None)
    keys = data[column].fillna("all") if column else pd.Series("all", index=data.index)
    for study, runs in data.groupby(keys):
        yield from cases_of_study(name, str(study), runs.sort_values("C"))


def cases_of_study(name: str, study: str, runs: pd.DataFrame) -> Iterator[Case]:
    """Yield the forecasts of one study, at most one per largest fitted compute."""
    if len(runs) <= FEWEST_RUNS:
        return
    most, seen = runs["C"].max() / FURTHEST, set()
    for cut in most / np.geomspace(1, max(1.0, most / runs["C"].min() / 10), CUTS):
        fitted = runs[runs["C"] <= cut]
        largest = fitted["C"].max()
        decades = np.log10(largest / fitted["C"].min())
        if len(fitted) < FEWEST_RUNS or decades < FEWEST_DECADES or largest in seen:
            continue
        seen.add(largest)
        reached = runs[runs["C"] <= FURTHEST * largest]
        best = reached[frontier(reached["C"].to_numpy(), reached["L"].to_numpy())]
        best = best[best["C"] >= NEAREST * largest]
        if len(best):
            kept, target = thinned(fitted), best.iloc[-1]
            compute, loss = (kept[each].to_numpy(dtype=float) for each in ("C", "L"))
            yield Case(name, study, compute, loss, float(target["C"]), float(target["L"]))


def thinned(fitted: pd.DataFrame) -> pd.DataFrame:
    """Keep the frontier and a sample of the other runs."""
    if len(fitted) <= MOST_RUNS:
        return fitted
    marked = frontier(fitted["C"].to_numpy(), fitted["L"].to_numpy())
    rest = fitted[~marked]
    sample = rest.sample(min(len(rest), MOST_RUNS), random_state=0)
    return pd.concat([fitted[marked], sample]).sort_values("C")


def by_clue_ray(case: Case) -> Interval:
    """Forecast with `clue_ray.forecast`."""
    table = {"train_flops": case.compute, "loss": case.loss}
    made = forecast(table, x="train_flops", y="loss", at=case.at)
    return (made.value, *made.interval(0.8), *made.interval(0.95))


def by_straight_line(case: Case) -> Interval:
    """Fit log loss on log compute over the frontier by least squares; textbook interval."""
    kept = frontier(case.compute, case.loss)
    kept = kept if kept.sum() >= 3 else np.ones_like(kept)
    x, y, at = np.log(case.compute[kept]), np.log(case.loss[kept]), np.log(case.at)
    line = stats.linregress(x, y)
    residual = y - line.intercept - line.slope * x
    deviation = np.sqrt((residual**2).sum() / (len(x) - 2))
    spread = 1 + 1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    mean, error = line.intercept + line.slope * at, deviation * np.sqrt(spread)
    t = stats.t.ppf([0.5, 0.1, 0.9, 0.025, 0.975], len(x) - 2)
    value, *ends = np.exp(mean + error * t)
    return (float(value), *map(float, ends))


def by_law(law: str) -> Callable[[Case], Interval]:
    """Forecast with one law fitted to the frontier, and its own prediction intervals."""

    def predict(case: Case) -> Interval:
        kept = frontier(case.compute, case.loss)
        table = {"train_flops": case.compute[kept], "loss": case.loss[kept]}
        fit = fit_law(law, table, x="train_flops", y="loss")
        low, high = (fit.predict_run(train_flops=case.at, level=level) for level in (0.8, 0.95))
        return (low.value, low.low, low.high, high.low, high.high)

    return predict


def by_peer(case: Case) -> Interval:
    """Forecast with simple-scaling-laws: a power law with a floor over the frontier."""
    from polars import DataFrame
    from simple_scaling_laws import fit

    kept = frontier(case.compute, case.loss)
    runs = {"training_run_id": [str(i) for i in range(kept.sum())]}
    runs |= {"model_size__c": case.compute[kept], "test_loss__l": case.loss[kept]}
    fitted = fit(DataFrame(runs), law="separable-power", n_draws=200, seed=0)
    place = DataFrame({"point_id": ["at"], "model_size__c": [case.at]})
    row = fitted.predict(place, quantiles=[0.025, 0.1, 0.5, 0.9, 0.975]).row(0, named=True)
    ends = [float(row[f"test_loss__l__{name}"]) for name in ("median", "q100", "q900")]
    return (*ends, float(row["test_loss__l__q025"]), float(row["test_loss__l__q975"]))


METHODS: dict[str, Callable[[Case], Interval]] = {
    "clue-ray": by_clue_ray,
    "straight line": by_straight_line,
    "power law": by_law("power_law"),
    "power law with floor": by_law("power_law_plus_constant"),
}
if find_spec("simple_scaling_laws"):  # needs Python 3.12
    METHODS["simple-scaling-laws"] = by_peer


def score(case: Case, method: Callable[[Case], Interval]) -> dict[str, Any]:
    """Make one forecast and compare it with the measured loss."""
    row = {"set": case.data_set, "study": case.study, "runs": len(case.loss), "at": case.at}
    try:
        value, low80, high80, low95, high95 = method(case)
    except (ClueRayError, ValueError) as error:
        return {**row, "refused": str(error)}
    missed = max(low95 - case.measured, case.measured - high95, 0.0)
    relative = 100 * (high95 - low95 + 40 * missed) / case.measured
    return {
        **row,
        "measured": case.measured,
        "predicted": value,
        "error": abs(value / case.measured - 1),
        "in80": low80 <= case.measured <= high80,
        "in95": low95 <= case.measured <= high95,
        "interval_score": min(relative, LARGEST_SCORE) if np.isfinite(relative) else LARGEST_SCORE,
    }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the scores of one method by set; the last two rows weigh sets alike."""
    found = rows.dropna(subset=["error"]).groupby("set")
    table = found.agg(
        forecasts=("error", "size"),
        error=("error", "median"),
        in80=("in80", "mean"),
        in95=("in95", "mean"),
        score=("interval_score", "mean"),
    )
    mean, median = table.mean(), table.median()
    table.loc["mean"], table.loc["median"] = mean, median
    table.loc[["mean", "median"], "forecasts"] = len(rows.dropna(subset=["error"]))
    return table


def print_table(name: str, rows: pd.DataFrame) -> None:
    """Print one method's scores."""
    table, refused = summarise(rows), int(rows["error"].isna().sum())
    shown = Table(title=f"{name}: {refused} of {len(rows)} refused", title_justify="left")
    for head in ("set", "forecasts", "median error", "in 80 %", "in 95 %", "interval score"):
        shown.add_column(head, justify="left" if head == "set" else "right")
    for data_set, row in table.iterrows():
        numbers = (f"{row['error']:.3f}", f"{row['in80']:.2f}", f"{row['in95']:.2f}")
        shown.add_row(str(data_set), f"{row['forecasts']:.0f}", *numbers, f"{row['score']:.1f}")
    console.print(shown)


def record(rows: pd.DataFrame) -> dict[str, Any]:
    """Summarise one method's scores as the answers of a study quote them."""
    table = summarise(rows)
    return {
        "sets": len(table) - 2,
        "tuned_sets": len(TUNED & set(table.index)),
        "forecasts": int(table.loc["mean", "forecasts"]),
        "refused": int(rows["error"].isna().sum()),
        "nearest": NEAREST,
        "furthest": FURTHEST,
        # Finer than it is quoted: .7547 rounded to .755 would be quoted as 76 %.
        "inside_80": round(float(table.loc["mean", "in80"]), 4),
        "inside_95": round(float(table.loc["mean", "in95"]), 4),
        "median_error": round(float(table.loc["median", "error"]), 4),
        "clue_ray_version": version("clue-ray"),
    }


def read_cases(folder: Path, sets: list[str]) -> list[Case]:
    """Read the forecasts of all data sets of a folder, or of some."""
    files = [file for file in sorted(folder.glob("*.csv")) if "curves" not in file.suffixes[0]]
    chosen = [file for file in files if not sets or file.stem in sets]
    return [case for file in chosen for case in cases_of(file.stem, read_set(file))]


def read_set(file: Path) -> pd.DataFrame:
    """Read one data set; exit with a sentence where it lacks C or L."""
    data = pd.read_csv(file, low_memory=False)
    if not {"C", "L"} <= set(data):
        raise SystemExit(
            f"{file} has columns {', '.join(data)}; it needs C (compute) and L (loss)."
        )
    return data


def main() -> None:
    """Score every method and print a table each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of CSV files")
    parser.add_argument("--sets", nargs="*", default=[], help="names of files, without ending")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=Path, help="write every forecast to this CSV file")
    parser.add_argument(
        "--record", action="store_true", help="write what clue-ray's answers say of these sets"
    )
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    cases, tables = read_cases(given.data, given.sets), []
    if not cases:
        parser.error(f"{given.data} holds no CSV file that allows a forecast")
    for name in given.methods:
        rows = pd.DataFrame([score(case, METHODS[name]) for case in cases])
        rows = rows.reindex(columns=list(dict.fromkeys([*rows, "error", "in80", "in95"])))
        print_table(name, rows)
        tables.append(rows.assign(method=name))
    if given.record:
        write_json(PUBLIC_RECORD, record(tables[given.methods.index("clue-ray")]))
    if given.rows:
        pd.concat(tables).to_csv(given.rows, index=False)


if __name__ == "__main__":
    main()
