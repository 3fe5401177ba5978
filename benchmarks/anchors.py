"""Refit published scaling laws and compare the parameters with the published ones.

    python -m benchmarks.anchors         # about half a minute; exit status 1 if an anchor is missed

The table lists anchor, published value, our value and tolerance. The points are read from
`../shared/fitdata` next to this checkout, with their sources, licences and recipes; they are not
part of the package. Rows of `anchors.csv` come first, then further values that the READMEs of the
folders publish.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from clue_ray.scaling.deciding.isoflop import fit_isoflop, fit_line
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.problem import differentiate, minimise
from clue_ray.scaling.fitting.result import Fit
from clue_ray.scaling.fitting.search import screen
from clue_ray.scaling.laws.law import Floats, Law, decay

FITDATA = Path(__file__).parents[2] / "shared" / "fitdata"
OBJECTIVE_BAR = 0.0010182741
CONFIGURATION = ["source", "dataset", "hparams", "warmup", "decay", "param_count", "val"]
SEEN = {
    "3B": 80_000_415 * 32,
    "13B": 407_332_084 * 32,
    "34B": 407_332_084 * 84,
}
"""Samples seen per class of models, as published."""
EPOCH = ("E", "A", "B", "alpha", "beta")
OPENATHENA = {
    "vpnls_chinchilla_huber": "ml_scalefit__massivetext__chinchilla",
    "vpnls_llama3_huber": "llama_3__raw_loss",
    "vpnls_comma_huber": "marin_202603__comma__llama_2",
}
OTHER_SETS = {
    "marin_202603__dclm__llama_2": 22.9,
    "marin_202603__nemotron__llama_2": 22.6,
}  # vpnls README, step .01
PORIAN = {
    "porian_rw_kaplan": ("summary_df", "rw", "base", "long", "kaplan", "kaplan", "train"),
    "porian_rw_tuned": ("summary_df", "rw", "tuned", "short", "const", "standard", "val"),
    "porian_owt2_tuned": ("summary_df_owt2", "owt2", "tuned", "short", "const", "standard", "val"),
}


class Anchor(NamedTuple):
    """A published value, our value and the tolerance; with `at_most`, a lower value also passes."""

    name: str
    published: float
    ours: float
    tolerance: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether our value is within the tolerance."""
        above = self.ours - self.published
        return above <= self.tolerance and (self.at_most or -above <= self.tolerance)


def anchors() -> Iterator[Anchor]:
    """Yield every published anchor, rows of anchors.csv first."""
    listed = pd.read_csv(FITDATA / "anchors.csv", dtype=str).set_index("id")
    ours = {**epoch(), **gadre(), **openclip(), **porian_named(), **linear_objectives(), **llama()}
    for name, row in listed.iterrows():
        tolerance = float(row["tolerance"])
        # A published interval "1.769..1.871" has two ends; prose beside a number is left out.
        published = [
            float(number)
            for number in re.findall(r"\d+\.\d+", re.sub(r"\(.*\)", "", row["published"]))
        ]
        for place, (one, value) in enumerate(zip(published, ours.pop(str(name)), strict=True)):
            end = f" {('low', 'high')[place]}" if len(published) > 1 else ""
            yield Anchor(
                f"{name}{end}", one, value, tolerance, str(name).endswith(("_obj", "_huber"))
            )
    assert not ours
    yield Anchor("epoch240_obj, bar", OBJECTIVE_BAR, epoch_fit().objective, 0.0, True)
    yield from porian()
    for experiment, published_objective in OTHER_SETS.items():
        yield Anchor(experiment, published_objective, linear_objective(experiment), 0.1, True)


def epoch_points() -> pd.DataFrame:
    """Read the 240 points of Besiroglu et al. 2024: all but the five with the highest loss."""
    points = pd.read_csv(FITDATA / "epoch_chinchilla" / "points.csv")
    return points[points["L"] < points["L"].nlargest(5).min()]


@cache
def epoch_fit() -> Fit:
    """Fit approach 3 to the 240 points."""
    return fit_law("parametric_loss", epoch_points(), x=["N", "D"], y="L")


def epoch() -> dict[str, list[float]]:
    """Return parameters, objective and intervals of the 240 points, as the package reports them."""
    fit = epoch_fit()
    ends = {f"epoch240_ci_{name}": list(fit.interval(name)) for name in ("E", "beta")}
    return (
        {f"epoch240_{name}": [fit.parameters[name]] for name in EPOCH}
        | {"epoch240_obj": [fit.objective]}
        | ends
    )


def gadre() -> dict[str, list[float]]:
    """Predict the two largest runs of Gadre et al. 2024 from five small ones: errors in percent."""
    models = pd.read_csv(FITDATA / "gadre_overtraining" / "models.csv").query("dataset == 'rpj'")
    small = ["d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8"]
    five = models[
        (models["model"].isin(small) & (models["cc_mult"] == 1))
        | (models["name"] == f"rpj-{small[0]}-16.0")
    ]
    law = Law(
        name="overtraining",
        formula="E + a N^-e + b 6^(-e/2) D^-e",
        parameters=("E", "a", "b", "e"),
        num_predictors=2,
        function=lambda n, d, floor, a, b, e: (
            floor + a * decay(n, e) + b * decay(6.0, e / 2) * decay(d, e)
        ),
        terms=(("a", "e"), ("b", "e")),
        floor="E",
        linear=("E", "a", "b"),
    )
    fit = fit_law(law, five, x=["N", "D"], y="loss_c4_val", loss="log_least_squares")
    theta, _ = linear_refit(fit, np.inf)
    parameters = fit.problem.parameters(theta)
    targets = {"gadre_rpj_1b640": "rpj-open_lm_1b-32.0", "gadre_rpj_7b20": "rpj-open_lm_7b-1.0"}
    return {key: [_missed(law, parameters, models, name)] for key, name in targets.items()}


def _missed(law: Law, parameters: dict[str, float], models: pd.DataFrame, name: str) -> float:
    row = models[models["name"] == name].iloc[0]
    predicted = float(law([float(row["N"]), float(row["D"])], list(parameters.values())))
    return 100 * abs(predicted / float(row["loss_c4_val"]) - 1)


def linear_refit(fit: Fit, delta: float) -> tuple[Floats, float]:
    """Refit with Huber's cost on the loss instead of its log.

    Returns theta, shape (p,), and the sum of costs."""
    problem, deltas = fit.problem, np.full(fit.num_runs, delta)
    losses = np.exp(problem.log_y)

    def rows(theta: Floats) -> tuple[Floats, Floats]:
        value, slope = differentiate(problem.values, theta)
        return value - losses, slope

    starts = np.concatenate([fit.theta[None], screen(problem, delta)])
    theta, cost, _ = minimise(rows, starts, deltas, problem.bounds, 400).best()
    return theta, cost


def linear_objectives() -> dict[str, list[float]]:
    """Return the objectives of the isoFLOP sets that anchors.csv lists."""
    return {name: [linear_objective(experiment)] for name, experiment in OPENATHENA.items()}


def linear_objective(experiment: str) -> float:
    """Return 1e6 times the mean Huber(1e-3) cost of linear residuals of a three-term fit."""
    fit = fit_law("parametric_loss", isoflops(experiment), x=["params", "tokens"], y="loss")
    return 1e6 * linear_refit(fit, 1e-3)[1] / fit.num_runs


def isoflops(experiment: str) -> pd.DataFrame:
    """Read one set of Czech et al. 2026."""
    return pd.read_csv(FITDATA / "isoflops_openathena" / "isoflops.csv").query(
        "experiment == @experiment"
    )


def llama() -> dict[str, list[float]]:
    """Return the exponent of the optimal token count in Llama 3's isoFLOP curves, by parabola."""
    found = fit_isoflop(isoflops("llama_3__raw_loss"), size="tokens", compute="budget")
    return {"llama3_approach2": [found.line.exponent]}


def openclip() -> dict[str, list[float]]:
    """Return slopes, mean errors and a prediction for the models of Cherti et al. 2023."""
    imagenet, coco, flickr = (
        cherti_fit(name) for name in ("imagenet1k", "mscoco_captions", "flickr30k")
    )
    architectures = pd.read_csv(FITDATA / "openclip_cherti" / "arch_info.csv").set_index("model")
    giant = float(imagenet.curve([architectures["gmacs"]["ViT-g-14"] * SEEN["34B"]])[0])
    return {
        "openclip_in_slope": [imagenet.parameters["exponent"]],
        "openclip_in_mae": [cherti_missed(imagenet, "imagenet1k")],
        "openclip_coco_mae": [cherti_missed(coco, "mscoco_captions")],
        "openclip_flickr_slope": [flickr.parameters["exponent"]],
        "openclip_g14_truth": [100 * (1 - giant)],
    }


def cherti_points(benchmark: str) -> pd.DataFrame:
    """Read the 29 LAION models on one benchmark."""
    points = pd.read_csv(FITDATA / "openclip_cherti" / "points.csv")
    return points[
        (points["downstream_dataset"] == benchmark) & (points["upstream_dataset"] != "CLIP-WIT")
    ]


def cherti_fit(benchmark: str) -> Fit:
    """Fit a power law to the lowest error in each of five bins of log compute, at their centres."""
    points = cherti_points(benchmark)
    compute = np.log10(points["gmacs_total"].to_numpy())
    edges = np.linspace(compute.min(), compute.max() + 0.1, 6)
    lowest = points["err"].groupby(np.digitize(compute, edges)).min()
    centres = ((edges[1:] + edges[:-1]) / 2)[lowest.index.to_numpy() - 1]
    return fit_law(
        "power_law", {"C": 10**centres, "err": lowest}, x="C", y="err", loss="log_least_squares"
    )


def cherti_missed(fit: Fit, benchmark: str) -> float:
    """Return the mean distance of the line from the best models, in percentage points.

    The best models are those with the lowest error per architecture and class."""
    best = (
        cherti_points(benchmark)
        .groupby(["arch", "samples_seen_pretty"])[["gmacs", "err"]]
        .min()
        .reset_index()
    )
    compute = best["gmacs"] * best["samples_seen_pretty"].map(SEEN)
    return 100 * float(np.abs(fit.curve(compute) - best["err"]).mean())


def porian_lines() -> dict[tuple[Any, ...], float]:
    """Fit the exponent of the optimal size for each configuration of Porian et al. 2024."""
    pairs = pd.read_csv(FITDATA / "rsld_porian" / "optimal_pairs.csv").dropna(
        subset=["n", "n_star_std"]
    )
    lines = {
        key: fit_line(rows["flops"], rows["n"], rows["n_star_std"])
        for key, rows in pairs.groupby(CONFIGURATION)
    }
    return {key: line.exponent for key, line in lines.items()}


def porian() -> Iterator[Anchor]:
    """Yield all fifteen exponents with their published weighted fits."""
    published = pd.read_csv(FITDATA / "rsld_porian" / "published_fits.csv").query(
        "kind == 'weighted'"
    )
    exponents = published.set_index(CONFIGURATION)["n_exponent"]
    for key, ours in porian_lines().items():
        yield Anchor("porian " + " ".join(map(str, key[1:])), float(exponents[key]), ours, 1e-4)


def porian_named() -> dict[str, list[float]]:
    """Return the exponents that anchors.csv lists."""
    lines = porian_lines()
    return {name: [lines[key]] for name, key in PORIAN.items()}


def main() -> None:
    """Print the table and exit with status 1 if an anchor is missed."""
    if not FITDATA.is_dir():
        raise SystemExit(
            f"{FITDATA} does not exist; put the published points there to compare with them."
        )
    found = list(anchors())
    table = Table(title="Published fits and ours")
    for column in ("anchor", "published", "ours", "tolerance", "met"):
        table.add_column(column, justify="left" if column == "anchor" else "right")
    for anchor in found:
        limit = f"at most +{anchor.tolerance:g}" if anchor.at_most else f"{anchor.tolerance:g}"
        numbers = f"{anchor.published:.10g}", f"{anchor.ours:.10g}"
        table.add_row(anchor.name, *numbers, limit, "yes" if anchor.met else "NO")
    console = Console(width=120)
    console.print(table)
    met = sum(anchor.met for anchor in found)
    console.print(f"{met} of {len(found)} anchors met.")
    sys.exit(met < len(found))


if __name__ == "__main__":
    main()
