"""One three-term fit against the PyPI package `chinchilla`: seconds and objective of both, in one
run; other seconds.

    pip install --target /tmp/rival --no-deps chinchilla attrdictx ordinal seaborn ruamel.yaml
    PYTHONPATH=/tmp/rival python -m benchmarks.fit    # 1 to 5 minutes, nearly all of it the rival's

Both fit E + A N^-alpha + B D^-beta to Epoch AI's 240 points (Besiroglu et al. 2024) with the same
loss, Huber(1e-3) of log residuals. The rival runs the grid of its README, 3,125 starts, on all
cores; its figure is left out. Our time is the median of `FITS` fits. Both objectives are evaluated
here, from the parameters returned. First come the seconds of 200 bootstrap draws of that fit, and
of the analysis (backtest, panels) of a planted study of 25 runs with all laws of one predictor that
a study is analysed with; they need no rival."""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.anchors import FITDATA, epoch_points
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.fitting.bootstrap import DRAWS
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.problem import huber
from clue_ray.scaling.laws.catalogue import LAWS
from clue_ray.scaling.laws.law import Floats

DELTA = 1e-3
FITS = 21
STUDY_LAWS = tuple(name for name, law in LAWS.items() if law.num_predictors == 1 and not law.widen)
NAMES = ("E", "A", "B", "alpha", "beta")


def objective(points: pd.DataFrame, parameters: dict[str, float]) -> float:
    """Evaluate the sum of Huber costs of log residuals at a set of parameters."""
    values = LAWS["parametric_loss"](
        [points["N"], points["D"]], [float(parameters[name]) for name in NAMES]
    )
    residual: Floats = np.log(np.asarray(values, dtype=float)) - np.log(points["L"].to_numpy())
    return float(huber(residual, np.full(len(residual), DELTA)))


def ours(points: pd.DataFrame) -> tuple[float, dict[str, float]]:
    """Fit `FITS` times; give the median seconds and the parameters."""
    seconds = []
    for _ in range(FITS):
        began = time.perf_counter()
        fit = fit_law("parametric_loss", points, x=["N", "D"], y="L", delta=DELTA)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), fit.parameters


def rival(points: pd.DataFrame) -> tuple[float, dict[str, float]]:
    """Fit once as the README of `chinchilla` does, with the log-Huber loss."""
    import matplotlib

    matplotlib.use("Agg")
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    five = partial(np.linspace, num=5)
    grid = {
        "E": five(1, 2),
        "a": five(1, 10),
        "b": five(1, 10),
        "alpha": five(0.1, 0.7),
        "beta": five(0.1, 0.7),
    }
    with tempfile.TemporaryDirectory() as folder:
        points.rename(columns={"L": "loss"})[["C", "N", "D", "loss"]].to_csv(
            Path(folder) / "df.csv", index=False
        )
        model = Chinchilla(
            folder, param_grid=grid, loss_fn=partial(log_huber, delta=DELTA), log_level=50
        )
        model.visualizer.optim = lambda *_, **__: None
        began = time.perf_counter()
        model.fit()
        return time.perf_counter() - began, {name: float(getattr(model, name)) for name in NAMES}


def draws_seconds(points: pd.DataFrame) -> float:
    """Time the bootstrap draws of one fit, the smallest of three."""
    seconds = []
    for _ in range(3):
        likelihood = fit_law("parametric_loss", points, x=["N", "D"], y="L").likelihood
        began = time.perf_counter()
        assert len(likelihood.draws) == DRAWS
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def study_seconds() -> float:
    """Time the analysis of 25 runs over four decades with normal noise, under all laws of one
    predictor."""
    flops = np.logspace(12, 16, 25)
    noise = 0.004 * np.random.default_rng(0).normal(size=len(flops))
    loss = (2 + 3 * (flops / flops[0]) ** -0.15) * np.exp(noise)
    table = pd.DataFrame(
        {"train_flops": flops, "loss": loss, "loss_candidates": 256, "status": "done"}
    )
    runs = Runs(table.assign(run_id=[f"run{place}" for place in table.index]))
    began = time.perf_counter()
    analyse(runs, STUDY_LAWS)
    return time.perf_counter() - began


def main() -> None:
    """Time all and print what was found."""
    if not FITDATA.is_dir():
        raise SystemExit(f"{FITDATA} is not beside this checkout; the 240 points cannot be read.")
    points, console = epoch_points(), Console(width=120)
    console.print(
        f"{DRAWS} bootstrap draws of the 240 points: {draws_seconds(points):.2f} s (bar: 1)."
    )
    console.print(
        f"Analysis of 25 runs under {len(STUDY_LAWS)} laws: {study_seconds():.1f} s (bar: 20)."
    )
    (fast, found), (slow, theirs) = ours(points), rival(points)
    table = Table(title="Epoch AI's 240 points, Huber(1e-3) of log residuals")
    for column in ("", "seconds", "objective", *NAMES):
        table.add_column(column, justify="left" if not column else "right")
    costs = objective(points, found), objective(points, theirs)
    for name, seconds, cost, parameters in zip(
        ("clue-ray", "chinchilla"), (fast, slow), costs, (found, theirs), strict=True
    ):
        table.add_row(
            name, f"{seconds:.3f}", f"{cost:.10f}", *(f"{parameters[key]:.5g}" for key in NAMES)
        )
    console.print(table)
    console.print(
        f"{slow / fast:.0f} times faster (bar: 500); our objective is theirs "
        f"{costs[0] - costs[1]:+.2e} (bar: 0)."
    )


if __name__ == "__main__":
    main()
