"""Figures show the values of the table: artists are checked, not pixels."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clue_ray.report import numbers
from clue_ray.report.figures import grids as grid_figures
from clue_ray.report.figures import headline
from clue_ray.report.figures import lines as figures
from clue_ray.report.figures.headline import highest_shown
from clue_ray.report.figures.style import Encoding
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse

SIZES = {"xxs": 5e3, "xs": 2e4, "s": 9e4}
LENGTHS = (2, 4, 8)


def planted(noise: float = 0.004) -> pd.DataFrame:
    """Nine runs of a size by length grid and two over the batch, whose loss falls log-linearly in
    compute."""
    rng = np.random.default_rng(7)
    points = [(size, length, 64) for size in SIZES for length in LENGTHS] + [
        ("xs", 4, 32),
        ("xs", 4, 128),
    ]
    rows = []
    for number, (size, length, batch) in enumerate(points):
        tokens = 400 * batch * length * 24
        flops = 6 * SIZES[size] * tokens
        rows.append(
            {
                "run_id": f"run{number}",
                "status": "done",
                "encoder_size": size,
                "non_embedding_params": SIZES[size],
                "corpus_users": 8000,
                "sequence_length": length,
                "global_batch_size": batch,
                "learning_rate": 0.003,
                "seed": 0,
                "train_flops": flops,
                "loss": 6.9 - 0.15 * math.log10(flops) + rng.normal(0, noise),
                "loss_candidates": 256,
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(Runs(planted()), ("power_law", "log_linear"))


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def by_gid(ax: Axes, prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The drawn lines whose gid opens with a prefix, as x and y arrays by the rest of the gid."""
    named = {str(line.get_gid()): line for line in ax.lines}
    return {
        gid.removeprefix(prefix): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for gid, line in named.items()
        if gid.startswith(prefix)
    }


def texts(ax: Axes) -> str:
    return "\n".join(text.get_text() for text in ax.texts)


def test_every_run_is_a_point_at_its_compute_and_loss(analysis: Analysis, ax: Axes) -> None:
    headline.loss_against_compute(analysis, ax)
    drawn = by_gid(ax, "run-")
    assert set(drawn) == set(analysis.points["run_id"])
    for run in analysis.points.to_dict("records"):
        assert [float(v[0]) for v in drawn[run["run_id"]]] == [run["train_flops"], run["loss"]]


def test_held_out_runs_and_only_they_are_ringed(analysis: Analysis, ax: Axes) -> None:
    headline.loss_against_compute(analysis, ax)
    held_out = analysis.points[analysis.points["held_out"]]
    assert set(by_gid(ax, "ring-")) == set(held_out["run_id"]) != set()


def test_law_line_passes_through_its_predictions_up_to_ten_times_the_compute(
    analysis: Analysis, ax: Axes
) -> None:
    headline.loss_against_compute(analysis, ax)
    lines = by_gid(ax, "law-")
    assert set(lines) == set(analysis.fits)
    for row in analysis.law_table():
        compute, loss = lines[row["law"]]
        assert compute[-1] == pytest.approx(10 * analysis.points["train_flops"].max())
        assert loss[-1] == pytest.approx(row["loss_at_10x"])


def test_the_forecast_alone_has_a_band_and_the_band_holds_it(analysis: Analysis, ax: Axes) -> None:
    band = headline.forecast_band(analysis)
    assert band is not None
    headline.loss_against_compute(analysis, ax, band=band)
    assert np.all(band.low <= band.value)
    assert np.all(band.value <= band.high)
    assert analysis.forecast is not None
    assert band.value[-1] == pytest.approx(analysis.forecast.value)
    assert [c.get_gid() for c in ax.collections].count("band") == 1
    assert [line.get_gid() for line in ax.lines].count("forecast") == 1


def test_levels_and_axes_are_labelled_with_units(analysis: Analysis, ax: Axes) -> None:
    headline.loss_against_compute(analysis, ax, baselines=[("TF-IDF", 5.3)])
    assert "chance, ln 256 = 5.55" in texts(ax)
    assert "TF-IDF: 5.30" in texts(ax)
    assert "extrapolated" in texts(ax)
    assert ax.get_xlabel() == "training compute, FLOP"
    assert ax.get_ylabel() == "held-out loss, nats at 256 candidates"
    assert ax.get_xscale() == "log"


def test_a_bare_table_is_drawn_without_laws(ax: Axes) -> None:
    headline.loss_against_compute(planted(), ax)
    assert len(by_gid(ax, "run-")) == 11
    assert not by_gid(ax, "law-")


def test_colour_follows_sequence_length_and_shape_encoder_size() -> None:
    table = planted()
    encoding = Encoding.of(table)
    looks = {(encoding.colour(run), encoding.shape(run)) for run in table.to_dict("records")}
    assert encoding.colour_column == "sequence_length"
    assert len(looks) == len(SIZES) * len(LENGTHS)
    assert list(encoding.shapes) == list(SIZES)  # by parameters, not by the alphabet


def test_axis_effect_draws_each_line_and_names_it(analysis: Analysis, ax: Axes) -> None:
    effect = next(effect for effect in analysis.axes if effect.column == "sequence_length")
    figures.axis_effect(effect, ax, loss_limits=(4.0, 6.0))
    drawn = {tuple(line.get_ydata()) for line in ax.lines if line.get_gid() != "law"}
    assert drawn == {tuple(line["loss"]) for line in effect.lines}
    assert {"xxs", "xs", "s", "lines: encoder size"} <= {text.get_text() for text in ax.texts}
    assert ax.get_ylim() == (4.0, 6.0)


def test_end_labels_keep_their_distance(ax: Axes) -> None:
    ax.set_ylim(0, 1)
    ends = [(0.5, 0.5), (1.0, 0.5), (1.0, 0.51), (1.0, 1.0)]
    figures.end_labels(ax, ends, ["a", "b", "c", "d"], ["black"] * 4)
    heights = [text.get_position()[1] for text in ax.texts]
    assert np.diff(heights).min() > 0.07
    assert heights[-1] <= 1.0
    assert np.mean(heights[:3]) == pytest.approx(
        np.mean([0.5, 0.5, 0.51])
    )  # pushed both ways, not all up
    assert [text.xy for text in ax.texts] == ends  # each label points at its line's end


def test_runs_above_chance_do_not_stretch_the_loss_axis(ax: Axes) -> None:
    table = planted()
    table.loc[10, "loss"] = 9.87
    headline.loss_against_compute(analyse(Runs(table), ("power_law", "log_linear")), ax)
    assert np.log(256) < ax.get_ylim()[1] < 6
    assert "9.87" in texts(ax)
    assert [str(text.get_gid()) for text in ax.texts].count("clipped-run10") == 1


def test_panels_mark_runs_above_their_axis(ax: Axes) -> None:
    table = planted()
    table.loc[10, "loss"] = 9.87
    effects = analyse(Runs(table), ("power_law", "log_linear")).axes
    effect = next(effect for effect in effects if effect.column == "global_batch_size")
    figures.axis_effect(effect, ax, loss_limits=(4.5, 5.6))
    assert ax.get_ylim() == (4.5, 5.6)
    assert "9.87" in texts(ax)


def test_loss_axis_reaches_the_worst_run_where_none_is_worse_than_a_guess() -> None:
    assert highest_shown([5.2, 5.5], 256) == 5.5
    assert highest_shown([5.2, 9.0], None) == 9.0
    assert highest_shown([5.2, 9.0], 256) == pytest.approx(np.log(256) + 0.15 * (np.log(256) - 5.2))


def test_heat_table_shows_each_loss_and_why_a_cell_has_none(ax: Axes) -> None:
    table = planted()
    table.loc[0, ["status", "loss"]] = ["diverged", math.nan]
    table = table.drop(index=1)
    grid_figures.heat_table(table, ax)
    shown = [text.get_text() for text in ax.texts]
    assert len(shown) == 9
    assert {"diverged", "not run"} <= set(shown)
    assert f"{table.loc[2, 'loss']:.3f}" in shown
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(SIZES)


def test_there_is_no_heat_table_without_a_grid(ax: Axes) -> None:
    assert grid_figures.grid_of(planted().query("encoder_size == 's'")) is None
    with pytest.raises(ValueError, match="no grid"):
        grid_figures.heat_table(planted().query("encoder_size == 's'"), ax)


def test_learning_curves_end_at_the_final_loss_and_unfinished_runs_are_dashed(ax: Axes) -> None:
    runs = planted()
    curves = pd.concat(
        [
            runs.assign(train_flops=runs["train_flops"] * share, loss=runs["loss"] / share**0.02)
            for share in (0.5, 1.0)
        ]
    )
    figures.learning_curves(curves, ax, runs=runs.drop(index=0))
    drawn = by_gid(ax, "run-")
    assert {run_id: losses[-1] for run_id, (_, losses) in drawn.items()} == dict(
        zip(runs["run_id"], runs["loss"], strict=True)
    )
    dashed = {line.get_gid() for line in ax.lines if line.is_dashed()}
    assert dashed == {"run-run0"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.significant(5.1), "5.10"),
        (numbers.significant(0.012), "0.0120"),
        (numbers.significant(9.999), "10.0"),
        (numbers.significant(-1234.5), "-1,230"),
        (numbers.significant(1e12), "1.00e12"),
        (numbers.significant(2e-9), "2.00e-9"),
        (numbers.significant(None), "–"),  # noqa: RUF001
        (numbers.flop(1.23e12), "1.2e12"),
        (numbers.count(1234567), "1,234,567"),
        (numbers.compact(50_000), "50k"),
        (numbers.compact("xs"), "xs"),
        (numbers.percent(0.002), "0.20%"),
        (numbers.percent(1), "100%"),
        (numbers.signed_percent(-0.01), "\N{MINUS SIGN}1.0%"),
        (numbers.seconds(90), "1.5 min"),
        (numbers.seconds(36000), "10.0 h"),
        (numbers.interval(1, 0.5, None), "1.00 [0.500, unbounded]"),
        (numbers.interval(1, None, None), "1.00 [unbounded]"),
        (numbers.signed(-0.0531), "\N{MINUS SIGN}0.053"),
        (numbers.decade(1e12), "10¹²"),
    ],
)
def test_numbers_are_rounded_for_reading(written: str, expected: str) -> None:
    assert written == expected
