"""The analysis of a study: frontier, hold-out, axes, answer, and what happens when data run short."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.analysis import Analysis, analyse, frontier

LAWS = ["power_law_plus_constant", "log_linear", "power_law", "bounded_power_law"]
COLUMNS = ["non_embedding_params", "sequence_length", "corpus_users", "global_batch_size"]


def study(noise: float = 0.005) -> pd.DataFrame:
    """Draw a study of sizes by lengths at equal steps, with short lines over users and batch."""
    grid = [(n, s, 2000, 64) for n in (2e3, 8e3, 3e4, 1.2e5) for s in (4, 8, 16, 32)]
    lines = [(3e4, 16, 500, 64), (3e4, 16, 1000, 64), (3e4, 16, 2000, 32)]
    table = pd.DataFrame(grid + lines, columns=COLUMNS)
    size, length = table["non_embedding_params"], table["sequence_length"]
    table["train_flops"] = 6e3 * size * length * table["global_batch_size"]
    fall = 0.65 * (size / 2e3) ** -0.15 * (length / 4) ** -0.2 * (table["corpus_users"] / 2000) ** -0.05
    table["loss"] = 4.9 + fall + noise * np.random.default_rng(0).normal(size=len(table))
    return table.assign(
        learning_rate=3e-3,
        seed=0,
        loss_candidates=256,
        status="done",
        run_id=[f"run{i}" for i in table.index],
    )


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    table = study()
    table.loc[3, ["status", "loss"]] = ["diverged", np.nan]
    return analyse(Runs(table), LAWS)


def test_points_and_hold_out(analysis: Analysis) -> None:
    points = analysis.points
    assert len(points) == 18 and analysis.candidates == 256
    assert analysis.chance == pytest.approx(np.log(256))
    assert points.loc[points["held_out"], "train_flops"].tolist() == [points["train_flops"].max()]
    used = points["frontier"] & ~points["held_out"]
    assert {fit.num_runs for fit in analysis.fits.values()} == {int(used.sum())}
    assert list(analysis.fits) == LAWS and analysis.preferred == analysis.backtest.preferred
    assert "1 of 19 runs are not done and were left out." in analysis.warnings


def test_axes_hold_everything_else_equal(analysis: Analysis) -> None:
    assert [axis.column for axis in analysis.axes] == COLUMNS
    for axis in analysis.axes:
        others = [name for name in (*COLUMNS, "learning_rate", "seed") if name != axis.column]
        for line in axis.lines:
            assert len(line) >= 2 and line[axis.column].is_monotonic_increasing
            assert (line[others].nunique() == 1).all()
    assert len(analysis.axes[0].lines) == 4 and analysis.axes[0].fit is not None
    assert len(analysis.axes[3].lines[0]) == 2 and analysis.axes[3].fit is None


def test_answer_table_and_document(analysis: Analysis) -> None:
    answer, rows = analysis.answer(), analysis.law_table()
    assert answer.count("95 %") >= 3 and "10 times more" in answer and analysis.preferred in answer
    assert rows[0]["law"] == analysis.preferred and {row["law"] for row in rows} == set(LAWS)
    for row in rows:
        assert row["loss_at_10x_low"] <= row["loss_at_10x"] <= row["loss_at_10x_high"]
        assert (row["exponent"] is None) == (row["law"] == "log_linear")
        assert abs(row["held_out_error"]) < 0.05
    document = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert document["answer"] == answer and document["preferred"] == analysis.preferred
    assert len(document["backtest"]["rows"]) == len(analysis.backtest.rows)


def test_short_frontier_falls_back_to_all_runs() -> None:
    table = study()
    table.loc[0, "loss"] = 5.0  # one lucky small run hides most of the frontier
    found = analyse(Runs(table), LAWS)
    assert any("so the laws were fitted to all 18 runs" in warning for warning in found.warnings)
    tiny = analyse(Runs(study().iloc[[0, 5, 10]]), ["power_law", "power_law_plus_constant"])
    assert list(tiny.fits) == ["power_law"] and not tiny.points["held_out"].any()
    assert any(warning.startswith("Left out: power_law_plus_constant") for warning in tiny.warnings)
    assert any(warning.startswith("No backtest") for warning in tiny.warnings)
    assert tiny.preferred == "power_law" and "too few runs to backtest" in tiny.answer()
    json.dumps(tiny.to_dict(), allow_nan=False)


def test_what_cannot_be_analysed_is_refused() -> None:
    with pytest.raises(FitError, match="No law could be fitted: power_law has 2 parameters but only 2 runs"):
        analyse(Runs(study().iloc[:2]), ["power_law"])
    with pytest.raises(FitError, match="no law 'powerlaw'; did you mean 'power_law'"):
        analyse(Runs(study()), ["powerlaw"])
    with pytest.raises(FitError, match="no hold-out 'random'"):
        analyse(Runs(study()), LAWS, hold_out="random")
    mixed = study()
    mixed.loc[0, "loss_candidates"] = 64
    with pytest.raises(RunsError, match="64, 256 candidates"):
        analyse(Runs(mixed), LAWS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_frontier_equals_its_definition(points: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(points, columns=["train_flops", "loss"])
    naive = [all(loss <= other for x, other in points if x <= compute) for compute, loss in points]
    assert frontier(table).tolist() == naive
