"""Figures show the values of their tables, and sentences state what the intervals support."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clue_ray.report.figures.grids import grid_of, isoflop_curves
from clue_ray.report.figures.laws import Alternative, backtest_errors, draw_alternatives
from clue_ray.report.figures.parallel import coordinates, parallel_coordinates
from clue_ray.report.read import read_directory
from clue_ray.report.sections.answer import against_floor
from clue_ray.report.sections.evidence import seeds
from clue_ray.report.sections.next_step import (
    Doubling,
    certainty,
    gains,
    larger_value,
    lead,
    no_gain,
    same_compute,
)
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import analyse
from clue_ray.scaling.answering.axes import AxisEffect
from clue_ray.scaling.deciding.isoflop import fit_isoflop
from tests.report.planted import planted, write_study

LENGTH = Doubling("sequence_length", 64, 0.05, 0.04, 0.06, (1.4, 1.8))
USERS = Doubling("corpus_users", 1000, 0.02, 0.01, 0.03, None)


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def test_next_step_says_what_is_settled() -> None:
    words = lead([LENGTH, USERS]) + certainty([LENGTH, USERS])
    assert "sequence length alone, from 64 to 128" in words
    assert "0.050 [0.040, 0.060] nats" in words
    assert "for 1.4 to 1.8 times the compute, the largest gain of the swept axes" in words
    assert "not settled" not in words
    assert "not identified" not in words


def test_next_step_says_what_the_forecast_expects_of_the_same_compute() -> None:
    assert same_compute(USERS) == ""
    words = same_compute(LENGTH._replace(forecast=(0.03, 0.01, 0.05)))
    assert "the forecast is a decrease of 0.030 [0.010, 0.050] nats (80% interval)" in words


def test_next_step_says_what_is_not() -> None:
    open_end = USERS._replace(high=np.inf)
    assert "The order is not settled: the interval of corpus users" in certainty([LENGTH, open_end])
    assert "A gain is not identified" in certainty([LENGTH._replace(low=0.0)])
    assert "unbounded]" in lead([open_end])


def test_gains_are_drawn_with_their_intervals(ax: Axes) -> None:
    gains([LENGTH, USERS], ax)
    bars = [line.get_xdata() for line in ax.lines]
    assert np.allclose(bars[0], (0.04, 0.06))
    assert np.allclose(bars[1], 0.05)
    assert np.allclose(bars[2], (0.01, 0.03))


def test_alternatives_stand_in_order_and_open_ends_leave_the_axes(ax: Axes) -> None:
    choices = [
        Alternative("answer", [5.0], 4.9, np.inf),
        Alternative("other", [5.1]),
        Alternative("none", [np.nan]),
    ]
    draw_alternatives(choices, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["answer", "other", "none"]
    assert [words.get_text() for words in ax.texts] == ["cannot be fitted"]
    assert np.isfinite(ax.get_xlim()).all()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_backtest_keeps_the_preferred_law_in_sight(ax: Axes) -> None:
    rows = pd.DataFrame(
        {
            "law": ["power_law", "log_linear"] * 2,
            "x": [1e10, 1e10, 1e12, 1e12],
            "actual": 5.0,
            "predicted": [5.1, 5.05, 4.9, 1.0],
            "low": 4.8,
            "high": 5.2,
        }
    )
    backtest_errors(rows, ax, "power_law")
    assert ax.get_ylim()[1] < 4
    assert [words.get_text() for words in ax.texts] == ["-4.00"]


def test_parallel_coordinates_draw_every_run_and_end_lost_ones_at_a_cross(ax: Axes) -> None:
    table = planted()
    assert coordinates(table) == ["encoder_size", "sequence_length", "train_flops", "loss"]
    parallel_coordinates(table, ax)
    runs = {line.get_gid(): line for line in ax.lines if line.get_gid()}
    assert set(runs) == {f"run-{name}" for name in table["run_id"]}
    assert runs["run-lost0"].get_marker() == "x"
    assert runs["run-lost0"].is_dashed()
    best = table.loc[table["loss"].idxmin(), "run_id"]
    assert runs[f"run-{best}"].get_ydata()[-1] == 0.0
    assert len(runs["run-lost0"].get_ydata()) == 3


def test_grid_takes_most_runs_and_then_the_lowest_loss() -> None:
    table = planted().head(9)
    worse = table.assign(corpus_users=1000, loss=table["loss"] + 1)
    assert (
        grid_of(pd.concat([worse, table], ignore_index=True)).to_numpy().min()
        == table["loss"].min()
    )
    assert grid_of(table.drop(index=[1, 2, 3, 5])) is None  # five of nine cells


def test_isoflop_curves_mark_each_minimum(ax: Axes) -> None:
    sizes = np.geomspace(1e4, 1e6, 7)
    rows = [
        {
            "train_flops": flops,
            "non_embedding_params": size,
            "loss": 3 + 0.2 * np.log10(size / best) ** 2,
        }
        for flops, best in ((1e12, 5e4), (1e13, 2e5))
        for size in sizes
    ]
    table = pd.DataFrame(rows)
    isoflop_curves(table, fit_isoflop(table, size="non_embedding_params"), ax)
    minima = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
    assert minima == pytest.approx([5e4, 2e5], rel=1e-6)


def test_seeds_are_pooled_over_repeated_configurations() -> None:
    table = planted().head(9)
    assert "Each configuration was run once" in seeds(table)
    again = table.assign(seed=1, loss=table["loss"] + 0.1)
    assert seeds(pd.concat([table, again])).startswith(
        "The standard deviation over seeds is 0.071 nats"
    )


@pytest.mark.parametrize(
    ("floor", "words"), [(1.0, []), (99.0, ["The loss of the best run", "The forecast loss"])]
)
def test_a_floor_above_the_runs_is_a_doubt(tmp_path: Path, floor: float, words: list[str]) -> None:
    corpus = {"bayes_loss": {"8": floor}, "bayes_loss_candidates": 256}
    write_study(tmp_path, planted())
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    files = read_directory(tmp_path)
    said = against_floor(files, analyse(Runs(files.table), files.fit.laws))
    assert [sentence.startswith(start) for sentence, start in zip(said, words, strict=True)] == [
        True
    ] * len(words)


def test_an_axis_past_its_best_is_not_doubled() -> None:
    line = pd.DataFrame(
        {"run_id": ["a", "b", "c"], "sequence_length": [4, 8, 16], "loss": [5.1, 5.0, 5.2]}
    )
    effect = AxisEffect("sequence_length", "", [line], None)
    assert larger_value(effect, line.iloc[1]) == (16.0, pytest.approx(0.2))
    assert larger_value(effect, line.iloc[2]) is None
    assert "a run with 16 instead of the best run's 8" in no_gain(
        "sequence_length", line.iloc[1], 16, 0.2
    )


def test_a_grid_compares_runs_of_one_horizon() -> None:
    table = planted().head(9)
    longer = table.head(2).assign(steps=4000, loss=1.0, run_id=["long0", "long1"])
    failed = table.head(1).assign(
        steps=None, loss=None, status="failed", run_id="lost", sequence_length=99
    )
    grid = grid_of(pd.concat([longer, table, failed], ignore_index=True))
    assert grid.to_numpy()[:, :3].min() == table["loss"].min()
    assert "failed" in grid[99].tolist()
