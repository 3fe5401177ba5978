"""Data and arguments that cannot be fitted are refused in one sentence that names the rows."""

import math

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import FitError, RunsError
from clue_ray.scaling.deciding.budget import marginal_returns
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.judging.panels import influence, sensitivity
from clue_ray.scaling.laws.law import Law

RUNS = {"train_flops": np.logspace(10, 14, 9), "loss": 30 * np.logspace(10, 14, 9) ** -0.08}


def as_cells(value: object) -> np.ndarray:
    """Repeat any value as nine cells."""
    cells = np.empty(9, dtype=object)
    cells[:] = [value] * 9
    return cells


def with_last(column: str, value: float) -> dict[str, np.ndarray]:
    return {**RUNS, column: np.append(RUNS[column][:-1], value)}


BAD = {
    "unknown law": (FitError, "did you mean 'log_linear'", {"law": "loglinear"}),
    "unknown loss": (FitError, "no loss 'huber'", {"loss": "huber"}),
    "quantile loss": (FitError, "no loss 'quantile'", {"loss": "quantile"}),
    "bad delta": (FitError, "delta is 0", {"delta": 0.0}),
    "endless delta": (FitError, "delta is inf", {"delta": np.inf}),
    "missing column": (RunsError, "did you mean 'train_flops'", {"x": "train_flop"}),
    "too many predictors": (FitError, "1 predictor", {"x": ["train_flops", "loss"]}),
    "negative x": (
        RunsError,
        "positive finite",
        {"table": {"train_flops": [-1.0, 2, 3], "loss": [1.0, 2, 3]}},
    ),
    "infinite y": (
        RunsError,
        "positive finite",
        {"table": {"train_flops": [1.0, 2], "loss": [1.0, np.inf]}},
    ),
    "ragged": (RunsError, "one length", {"table": {"train_flops": [1.0, 2], "loss": [1.0]}}),
    "few rows": (FitError, "it needs 3", {"table": {"train_flops": [1.0, 2], "loss": [2.0, 1.0]}}),
    "one x": (
        FitError,
        "1 distinct",
        {"table": {"train_flops": [5.0] * 4, "loss": [2.0, 1, 2, 3]}},
    ),
    "no ceiling": (
        FitError,
        "loss_candidates",
        {"law": "bounded_power_law", "table": {"train_flops": [1.0], "loss": [1.0]}},
    ),
    "two pools": (
        RunsError,
        "64, 256 candidates",
        {"table": {"train_flops": [1.0, 2], "loss": [1.0, 2], "loss_candidates": [64, 256]}},
    ),
    "pools, rows": (
        RunsError,
        r"\(64 in run b\)",
        {
            "table": {
                "run_id": ["a", "b", "c"],
                "train_flops": [1.0, 2, 3],
                "loss": [1.0, 2, 3],
                "loss_candidates": [256, 64, 256],
            }
        },
    ),
    "nan, rows": (
        RunsError,
        r"holds nan in rows 1, 3 \(2 of 4 finished runs\)",
        {"table": {"train_flops": [1.0, 2, 3, 4], "loss": [3.0, np.nan, 2, np.nan]}},
    ),
    "zero, run": (
        RunsError,
        "holds 0.0 in run b .*positive finite",
        {"table": {"run_id": ["a", "b", "c"], "train_flops": [1.0, 2, 3], "loss": [3.0, 0, 2]}},
    ),
    "negative, many rows": (
        RunsError,
        "rows 0, 1, 2, 3 and 2 more",
        {"table": {"train_flops": np.arange(1.0, 7), "loss": np.full(6, -1.0)}},
    ),
    "text": (
        RunsError,
        "'loss' holds the text 'n/a' in row 2 ",
        {"table": {"train_flops": [1.0, 2, 3], "loss": ["3.1", "2.9", "n/a"]}},
    ),
    "same run twice": (
        RunsError,
        "1 run_id values appear in several rows .rows 0, 2., first 'a'",
        {"table": {"run_id": ["a", "b", "a"], "train_flops": [1.0, 2, 3], "loss": [3.0, 2, 1]}},
    ),
    "not numpy": (
        FitError,
        "cannot be called with 1 predictor.s., then a, b, as numpy arrays",
        {"law": Law("scalar", "a exp(-b x)", ("a", "b"), 1, lambda x, a, b: a * math.exp(-b * x))},
    ),
    "missing argument": (
        FitError,
        "then a, b, as numpy arrays",
        {"law": Law("short", "a x^-b", ("a", "b"), 1, lambda x, a: a * x)},
    ),
    "not elementwise": (
        FitError,
        "shape .2, 1. where .2, 9. is expected",
        {"law": Law("constant", "a + b", ("a", "b"), 1, lambda x, a, b: a + b)},
    ),
    "not smooth": (
        FitError,
        "is not smooth in a",
        {"law": Law("rough", "|a| x^-b", ("a", "b"), 1, lambda x, a, b: np.abs(a) * x**-b)},
    ),
    "law None": (FitError, "a Law, not a NoneType", {"law": None}),
    "law number": (FitError, "a Law, not a int", {"law": 3}),
    "law function": (FitError, "build a Law from a function", {"law": lambda x, a, b: a * x**-b}),
    "text delta": (FitError, "delta is '1e-3'", {"delta": "1e-3"}),
    "table None": (RunsError, "not None; read a file with read_runs", {"table": None}),
    "table path": (RunsError, "not 'runs.csv'; read a file with read_runs", {"table": "runs.csv"}),
    "table list": (RunsError, "mapping of columns, not a list", {"table": [RUNS]}),
    "column twice": (
        RunsError,
        "several columns 'loss'",
        {"table": pd.DataFrame(np.ones((4, 3)), columns=["train_flops", "loss", "loss"])},
    ),
    "run_id lists": (
        RunsError,
        "'run_id' holds a list",
        {"table": {**RUNS, "run_id": as_cells([1])}},
    ),
    "run_id arrays": (
        RunsError,
        "'run_id' holds a ndarray",
        {"table": {**RUNS, "run_id": as_cells(np.ones(1))}},
    ),
    "text candidates": (
        RunsError,
        r"'loss_candidates' holds the text 'x' in rows 4, 5, 6, 7 and 1 more; .* 2 candidates or "
        r"more",
        {"table": {**RUNS, "loss_candidates": np.array(["256"] * 4 + ["x"] * 5, dtype=object)}},
    ),
    "list candidates": (
        RunsError,
        "'loss_candidates' holds a list in rows 0",
        {"table": {**RUNS, "loss_candidates": as_cells([256])}},
    ),
    "no candidates": (
        RunsError,
        "'loss_candidates' holds 0 in rows 0",
        {"law": "bounded_power_law", "table": {**RUNS, "loss_candidates": np.zeros(9, dtype=int)}},
    ),
    "one candidate": (
        RunsError,
        "'loss_candidates' holds 1 in rows 0",
        {"law": "bounded_power_law", "table": {**RUNS, "loss_candidates": np.ones(9, dtype=int)}},
    ),
    "dates": (
        RunsError,
        "holds dates",
        {"table": {**RUNS, "train_flops": pd.date_range("2024", periods=9)}},
    ),
    "durations": (
        RunsError,
        "holds durations",
        {"table": {**RUNS, "train_flops": pd.to_timedelta(range(9), "s")}},
    ),
    "complex": (RunsError, "holds complex numbers", {"table": {**RUNS, "loss": RUNS["loss"] + 0j}}),
    "one endless loss": (
        RunsError,
        r"holds 1e\+308 in row 8 .*1e-100 to 1e\+100",
        {"table": with_last("loss", 1e308)},
    ),
    "denormal x": (
        RunsError,
        "holds 1e-320 in row 8 ",
        {"table": with_last("train_flops", 1e-320)},
    ),
    "tiny losses": (
        RunsError,
        "or change the unit",
        {"table": {**RUNS, "loss": RUNS["loss"] * 1e-300}},
    ),
    "none done": (
        RunsError,
        "None of the 1 runs",
        {"table": {"train_flops": [1.0], "loss": [1.0], "status": ["failed"]}},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence(case: str) -> None:
    kind, message, changes = BAD[case]
    arguments = {"law": "power_law", "table": RUNS, "x": "train_flops", "y": "loss"} | changes
    with pytest.raises(kind, match=message) as caught:
        fit_law(arguments.pop("law"), arguments.pop("table"), **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


PLACES = {
    "text": ({"train_flops": "a"}, "Cannot predict at train_flops 'a'"),
    "array": ({"train_flops": np.ones(2)}, "positive finite numbers, one each"),
    "negative": ({"train_flops": -1}, "Cannot predict at train_flops -1"),
    "another column": ({"x": 1.0}, "predicts from train_flops, not from x"),
    "nothing": ({}, "not from nothing"),
}


@pytest.mark.parametrize("case", PLACES)
def test_bad_places_are_refused_everywhere(case: str) -> None:
    at, message = PLACES[case]
    fit = fit_law("power_law", RUNS, x="train_flops", y="loss")
    for ask in (
        lambda: fit.predict(**at),
        lambda: marginal_returns(fit, **at),
        lambda: sensitivity("power_law", RUNS, x="train_flops", y="loss", at=at),
        lambda: influence("power_law", RUNS, x="train_flops", y="loss", at=at),
    ):
        with pytest.raises(FitError, match=message):
            ask()


def test_levels_and_places_of_the_wrong_kind_are_refused() -> None:
    fit = fit_law("power_law", RUNS, x="train_flops", y="loss")
    with pytest.raises(FitError, match="level is '95'"):
        fit.interval("exponent", level="95")  # type: ignore[arg-type]
    with pytest.raises(FitError, match=r"not from 100\.0"):
        # type: ignore[arg-type]
        sensitivity("power_law", RUNS, x="train_flops", y="loss", at=100.0)
