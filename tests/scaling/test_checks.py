"""What cannot be fitted is refused in one sentence that names the rows."""

import math

import numpy as np
import pytest

from clue_ray.errors import FitError, RunsError
from clue_ray.scaling.fit import fit_law
from clue_ray.scaling.laws import Law

RUNS = {"train_flops": np.logspace(10, 14, 9), "loss": 30 * np.logspace(10, 14, 9) ** -0.08}
BAD = {
    "unknown law": (FitError, "did you mean 'log_linear'", {"law": "loglinear"}),
    "unknown loss": (FitError, "no loss 'huber'", {"loss": "huber"}),
    "bad delta": (FitError, "delta is 0", {"delta": 0.0}),
    "endless delta": (FitError, "delta is inf", {"delta": np.inf}),
    "missing column": (RunsError, "did you mean 'train_flops'", {"x": "train_flop"}),
    "too many predictors": (FitError, "1 predictor", {"x": ["train_flops", "loss"]}),
    "negative x": (
        RunsError,
        "positive finite",
        {"table": {"train_flops": [-1.0, 2, 3], "loss": [1.0, 2, 3]}},
    ),
    "infinite y": (RunsError, "positive finite", {"table": {"train_flops": [1.0, 2], "loss": [1.0, np.inf]}}),
    "ragged": (RunsError, "one length", {"table": {"train_flops": [1.0, 2], "loss": [1.0]}}),
    "few rows": (FitError, "it needs 3", {"table": {"train_flops": [1.0, 2], "loss": [2.0, 1.0]}}),
    "one x": (FitError, "1 distinct", {"table": {"train_flops": [5.0] * 4, "loss": [2.0, 1, 2, 3]}}),
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
        "1 run_id stand in several rows .rows 0, 2., first 'a'",
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
        "shape .2, 1. where .2, 9. is due",
        {"law": Law("constant", "a + b", ("a", "b"), 1, lambda x, a, b: a + b)},
    ),
    "not smooth": (
        FitError,
        "is not smooth in a",
        {"law": Law("rough", "|a| x^-b", ("a", "b"), 1, lambda x, a, b: np.abs(a) * x**-b)},
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
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
