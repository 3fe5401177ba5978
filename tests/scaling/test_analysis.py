"""The analysis of a study: frontier, hold-out, axes, answer, and what happens when data run
short."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_ray.errors import FitError, RunsError
from clue_ray.runs import Runs
from clue_ray.scaling.answering.analysis import Analysis, analyse, headline
from clue_ray.scaling.answering.warnings import influential, open_question
from clue_ray.scaling.fitting.fit import fit_law
from clue_ray.scaling.fitting.frontier import frontier, mark, settings_of
from clue_ray.scaling.fitting.result import Prediction
from clue_ray.scaling.forecasting.forecast import forecast
from clue_ray.scaling.judging.backtest import trend
from clue_ray.scaling.judging.panels import compare_bic

LAWS = ["power_law_plus_constant", "log_linear", "power_law", "bounded_power_law"]
LAW_WORDS = {
    "power_law_plus_constant": "power law plus constant",
    "log_linear": "log-linear law",
    "power_law": "power law",
    "bounded_power_law": "bounded power law",
}
COLUMNS = ["non_embedding_params", "sequence_length", "corpus_users", "global_batch_size"]


def study(noise: float = 0.005) -> pd.DataFrame:
    """Draw a study of sizes by lengths at equal steps, with short lines over users and batch."""
    grid = [(n, s, 2000, 64) for n in (2e3, 8e3, 3e4, 1.2e5) for s in (4, 8, 16, 32)]
    lines = [(3e4, 16, 500, 64), (3e4, 16, 1000, 64), (3e4, 16, 2000, 32)]
    table = pd.DataFrame(grid + lines, columns=COLUMNS)
    size, length = table["non_embedding_params"], table["sequence_length"]
    table["train_flops"] = 6e3 * size * length * table["global_batch_size"]
    fall = (
        0.65
        * (size / 2e3) ** -0.15
        * (length / 4) ** -0.2
        * (table["corpus_users"] / 2000) ** -0.05
    )
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
    assert len(points) == 18
    assert analysis.candidates == 256
    assert analysis.chance == pytest.approx(np.log(256))
    assert points.loc[points["held_out"], "train_flops"].tolist() == [points["train_flops"].max()]
    used = points["frontier"] & ~points["held_out"]
    assert {fit.num_runs for fit in analysis.fits.values()} == {int(used.sum())}
    assert list(analysis.fits) == LAWS
    assert analysis.preferred == analysis.backtest.preferred
    assert "1 of 19 runs is not done and was left out." in analysis.warnings


def test_laws_of_the_frontier_are_asked_for_its_largest_run_where_larger_ones_did_worse() -> None:
    table = study()
    largest = table["train_flops"].idxmax()
    table.loc[largest, "loss"] = 5.4  # the most expensive run overfitted
    points = analyse(Runs(table), LAWS[:2]).points
    top = points.loc[points["frontier"], "train_flops"].max()
    assert top < table["train_flops"].max()
    assert points.loc[points["held_out"], "train_flops"].min() == top
    assert points["held_out"][largest]


def test_axes_hold_everything_else_equal(analysis: Analysis) -> None:
    assert [axis.column for axis in analysis.axes] == COLUMNS
    for axis in analysis.axes:
        others = [name for name in (*COLUMNS, "learning_rate", "seed") if name != axis.column]
        for line in axis.lines:
            assert len(line) >= 2
            assert line[axis.column].is_monotonic_increasing
            assert (line[others].nunique() == 1).all()
    assert len(analysis.axes[0].lines) == 4
    assert analysis.axes[0].fit is not None
    assert len(analysis.axes[3].lines[0]) == 2
    assert analysis.axes[3].fit is None


def test_answer_table_and_document(analysis: Analysis) -> None:
    answer, rows = analysis.answer(), analysis.law_table()
    made = analysis.forecast
    assert made is not None
    assert f"the loss is forecast to be {made.value:.2f} nats (80 % interval: " in answer
    assert made.record() in answer
    assert rows[0]["law"] == analysis.preferred
    assert {row["law"] for row in rows} == set(LAWS)
    for row in rows:
        assert row["loss_at_10x_low"] <= row["loss_at_10x"] <= row["loss_at_10x_high"]
        assert (row["exponent"] is None) == (row["law"] == "log_linear")
        assert abs(row["held_out_error"]) < 0.05
        held = analysis.points.loc[analysis.points["held_out"], "loss"].min()
        assert row["held_out_error_nats"] == pytest.approx(row["held_out_error"] * held)
        judged = analysis.backtest.summary.set_index("law").loc[row["law"]]
        assert row["backtest_error_nats"] == judged["mean_absolute_error"]
    document = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert document["answer"] == answer
    assert document["forecast"]["value"] == made.value
    assert document["forecast"]["intervals"]["0.8"] == list(made.interval(0.8))
    assert document["preferred"] == analysis.preferred
    assert len(document["backtest"]["rows"]) == len(analysis.backtest.rows)


@pytest.mark.slow
def test_short_frontier_falls_back_to_all_runs() -> None:
    table = study()
    table.loc[0, "loss"] = 5.0  # one lucky small run hides most of the frontier
    found = analyse(Runs(table), LAWS[:2])
    assert any("so the laws were fitted to all 18 runs" in warning for warning in found.warnings)
    tiny = analyse(Runs(study().iloc[[0, 5, 10]]), ["power_law", "power_law_plus_constant"])
    assert list(tiny.fits) == ["power_law"]
    assert not tiny.points["held_out"].any()
    assert any(
        warning.startswith("Left out: power law plus constant has 3") for warning in tiny.warnings
    )
    assert any(warning.startswith("No backtest") for warning in tiny.warnings)
    assert tiny.preferred == "power_law"
    assert tiny.answer().startswith("There is no answer yet")
    json.dumps(tiny.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("frontier", "words"),
    [
        (0, "No frontier run lies below the largest compute, so the laws were fitted to all 9"),
        (1, "Only 1 frontier run lies below the largest"),
        (2, "Only 2 frontier runs lie below the largest"),
    ],
)
def test_few_runs_are_told_in_proper_sentences(frontier: int, words: str) -> None:
    compute = np.geomspace(1, 512, 10)
    rows = pd.DataFrame({"train_flops": compute, "held_out": compute == compute.max()})
    rows["frontier"] = (rows.index < frontier) | rows["held_out"]
    _, _, (why,) = headline(rows)
    assert why.startswith(words)


def test_the_plain_power_law_is_always_judged() -> None:
    found = analyse(Runs(study()), ["log_linear"])
    assert set(found.fits) == {"log_linear", "power_law"}
    assert "power_law" in set(found.backtest.summary["law"])


def short() -> pd.DataFrame:
    """Six frontier runs near chance, as a small first study gives them, and a worse run above
    chance."""
    flops = [5.7e10, 1.0e11, 1.7e11, 2.7e11, 9.0e11, 3.3e12, 7.1e11]
    losses = [5.470, 5.438, 5.406, 5.274, 5.267, 5.225, 5.855]
    return pd.DataFrame(
        {"train_flops": flops, "loss": losses, "loss_candidates": 256, "status": "done"}
    )


@pytest.fixture(scope="module")
def little() -> Analysis:
    return analyse(Runs(short()), LAWS)


def test_answer_says_what_was_measured_then_what_is_predicted(little: Analysis) -> None:
    measured, predicted = little.answer().split("). ", 1)
    assert measured == (
        "58 times more compute, 3.3e12 instead of 5.7e10 FLOP, lowered the held-out loss from "
        "5.470 to 5.225 nats (chance: ln 256 = 5.545"
    )
    made = little.forecast
    assert made is not None
    low, high = made.interval(0.8)
    assert predicted.startswith(
        f"At 3.3e13 FLOP, 10 times the compute of the largest run on the frontier, the loss is "
        f"forecast to be {made.value:.2f} nats (80 % interval: {low:.2f} to {high:.2f}). From fewer"
    )
    assert "public sets of scaling runs" in predicted


def test_a_poor_cheap_run_does_not_make_compute_seem_to_help_more() -> None:
    poor = short().iloc[:1].assign(train_flops=5.69e10, loss=5.54)
    answer = analyse(Runs(pd.concat([short(), poor])), LAWS).answer()
    assert "lowered the held-out loss from 5.470 to 5.225 nats" in answer


def test_the_forecast_uses_every_run_and_predicts_beyond_them(little: Analysis) -> None:
    table = little.points
    far = 10 * table["train_flops"].max()
    alone = forecast(table, x="train_flops", y="loss", at=far, chance=little.chance)
    assert little.forecast is not None
    assert little.forecast.value == pytest.approx(alone.value)
    assert little.forecast.reach == pytest.approx(10)


def test_answer_does_not_credit_compute_that_bought_nothing() -> None:
    best_first = short().assign(loss=[5.2, 5.47, 5.44, 5.41, 5.3, 5.27, 5.9])
    answer = analyse(Runs(best_first), ["power_law"]).answer()
    assert answer.startswith("There is no answer yet for more compute.")
    assert "forecast to be" not in answer
    guesses = short().assign(loss=[5.70, 5.69, 5.68, 5.67, 5.66, 5.65, 5.9])
    assert "so nothing was learned" in analyse(Runs(guesses), ["power_law"]).answer()


def test_law_with_a_floor_is_preferred_to_tied_laws(little: Analysis) -> None:
    assert little.preferred == "power_law_plus_constant"
    assert {"power_law", "log_linear"} <= set(little.backtest.tied)


def test_what_the_runs_do_not_identify_has_no_interval(little: Analysis) -> None:
    rows = {row["law"]: row for row in little.law_table()}
    assert rows["power_law_plus_constant"]["exponent"] is not None
    for end in ("exponent_low", "exponent_high"):
        assert rows["power_law_plus_constant"][end] is None
        assert rows["power_law"][end] is not None
    floor = little.fits["power_law_plus_constant"]
    assert not floor.identified("irreducible_loss")
    assert floor.to_dict()["intervals"]["exponent"] == [None, None]


def test_warnings_are_few_and_the_most_serious_is_first(little: Analysis) -> None:
    warnings = little.warnings
    assert len(warnings) <= 8
    assert not any("_" in warning for warning in warnings)
    assert sum("do not identify a floor" in warning for warning in warnings) == 1
    assert "The forecast rests on" in warnings[0]
    assert "Each law is fitted to only five runs" in warnings[1]


def test_a_forecast_that_holds_the_best_loss_is_warned_of(little: Analysis) -> None:
    assert open_question(little.points, little.forecast) == []
    lower = little.points.assign(loss=little.points["loss"] - 0.05)
    (warning,) = open_question(lower, little.forecast)
    assert "do not exclude that more compute brings no gain" in warning


def test_what_cannot_be_analysed_is_refused() -> None:
    with pytest.raises(
        FitError, match="No law could be fitted: power_law has 2 parameters but only 2 runs"
    ):
        analyse(Runs(study().iloc[:2]), ["power_law"])
    with pytest.raises(FitError, match="no law 'powerlaw'; did you mean 'power_law'"):
        analyse(Runs(study()), ["powerlaw"])
    with pytest.raises(FitError, match="no hold-out 'random'"):
        analyse(Runs(study()), LAWS, hold_out="random")
    mixed = study()
    mixed.loc[0, "loss_candidates"] = 64
    with pytest.raises(RunsError, match="64, 256 candidates"):
        analyse(Runs(mixed), LAWS)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_frontier_equals_its_definition(points: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(points, columns=["train_flops", "loss"])
    naive = [all(loss <= other for x, other in points if x <= compute) for compute, loss in points]
    assert frontier(table).tolist() == naive


def test_runs_of_about_one_compute_are_one_level() -> None:
    few_users = {
        "train_flops": 5.6e10,
        "loss": 7.3,
    }  # a shorter history: its compute is a little smaller
    table = pd.DataFrame(
        [few_users, {"train_flops": 5.9e10, "loss": 5.4}, {"train_flops": 2.1e11, "loss": 5.39}]
    )
    assert frontier(table).tolist() == [False, True, True]
    dense = pd.DataFrame({"train_flops": 1e10 * 1.02 ** np.arange(50)})
    assert frontier(
        dense.assign(loss=5 * (dense["train_flops"] / 1e10) ** -0.2)
    ).all()  # a law's own fall


def test_settings_compete_by_their_means_over_seeds() -> None:
    rows = [(1e10, 5.2, 0, 8), (1.001e10, 5.0, 1, 8), (1.3e10, 5.05, 0, 16), (4e10, 4.8, 0, 32)]
    table = pd.DataFrame(rows, columns=["train_flops", "loss", "seed", "width"])
    assert settings_of(table).tolist() == [0, 0, 1, 2]
    assert settings_of(table.assign(heads=None)).tolist() == [0, 0, 1, 2]
    marked = mark(table)
    assert marked["frontier"].tolist() == [
        True,
        True,
        True,
        True,
    ]  # 5.1 on average does not beat 5.05
    assert marked["train_flops"].tolist()[:2] == [1.0005e10] * 2
    assert marked["held_out"].tolist() == [False] * 3 + [True]
    lucky = table.drop(columns="seed")
    assert mark(lucky)["frontier"].tolist() == [
        False,
        True,
        False,
        True,
    ]  # nothing says that they are one setting
    assert len(set(settings_of(table.assign(seed=0)))) == 4  # what else was varied is not a column


def test_levers_seeds_and_runs_above_chance_are_warnings() -> None:
    table = study()
    table["seed"], table["users_seen"], table["corpus_users"] = 0, 6400, 640
    table.loc[table["train_flops"].idxmin(), "loss"] = 5.9
    said = " ".join(analyse(Runs(table), LAWS).warnings)
    assert "Along the frontier, compute was raised through" in said
    assert "Every run has the same seed" in said
    assert (
        "One of the runs ended with a loss above chance, after up to 10 epochs over their users"
        in said
    )
    table.loc[0, "seed"] = 1
    assert "Every run has the same seed" not in " ".join(analyse(Runs(table), LAWS).warnings)


def overfitted(losses: list[float]) -> Analysis:
    flops = 1e10 * 2.0 ** np.arange(len(losses))
    table = pd.DataFrame(
        {"train_flops": flops, "loss": losses, "loss_candidates": 256, "status": "done"}
    )
    return analyse(Runs(table), LAWS)


@pytest.mark.parametrize(
    "losses", [[3.0, 3.2, 3.5, 3.9, 4.1, 4.4, 4.6, 4.9], [3.6, 3.4, 3.5, 3.7, 4.1, 4.4, 4.6, 4.9]]
)
def test_a_rising_law_is_not_preferred(losses: list[float]) -> None:
    """Too few frontier runs, so all are fitted; the log-linear law, free to rise, predicts these
    best."""
    found = overfitted(losses)
    assert found.backtest.preferred == "log_linear"
    assert found.fits["log_linear"].parameters["slope"] < 0
    assert "no answer yet" in found.answer()
    assert "held-out loss rises" in found.answer()
    assert "ten times" not in found.answer()
    assert found.preferred != "log_linear"
    assert trend(found.fits[found.preferred], found.points["train_flops"]) <= 0
    assert not any("10 times the compute" in warning for warning in found.warnings)
    assert found.to_dict()["no_answer_reason"] in found.answer()


def test_a_flat_study_has_no_answer_and_a_falling_one_has(analysis: Analysis) -> None:
    flat = overfitted([4.0, 4.1, 4.0, 4.1, 4.0, 4.1, 4.0, 4.1])
    assert "no answer yet" in flat.answer()
    assert analysis.no_answer_reason == ""
    assert trend(analysis.fits[analysis.preferred], analysis.points["train_flops"]) == -1


def test_panels_ask_about_the_headline(analysis: Analysis) -> None:
    panels, row = analysis.panels, analysis.law_table()[0]
    assert panels.sensitivity["predicted"][0] == pytest.approx(row["loss_at_10x"], rel=1e-9)
    assert panels.at == {"train_flops": pytest.approx(10 * analysis.points["train_flops"].max())}
    used = analysis.points["frontier"] & ~analysis.points["held_out"]
    assert set(panels.influence["run"]) == set(analysis.points.loc[used, "run_id"])
    assert set(panels.identifiability) == set(LAWS)
    assert set(panels.bic["law"]) == set(LAWS)
    document = analysis.to_dict()
    assert {"bic", "sensitivity", "influence", "identifiability"} <= set(document)


def test_bic_weights_are_posterior_odds_of_least_squares() -> None:
    table = study()
    found = compare_bic(LAWS, table, x="train_flops", y="loss").set_index("law")
    fit = fit_law("power_law", table, x="train_flops", y="loss", loss="log_least_squares")
    residual = np.log(table["loss"] / fit.curve(table["train_flops"]))
    n = len(table)
    assert found.loc["power_law", "bic"] == pytest.approx(
        n * np.log((residual**2).mean()) + 3 * np.log(n)
    )
    assert found["weight"].sum() == pytest.approx(1)
    assert found["difference"].iloc[0] == 0
    odds = found["weight"].iloc[0] / found["weight"].iloc[1]
    assert 2 * np.log(odds) == pytest.approx(found["difference"].iloc[1])
    few = compare_bic(LAWS, table.iloc[[0, 7, 14]], x="train_flops", y="loss")
    assert set(few["law"]) == {"log_linear", "power_law"}  # three runs cannot identify the others


def test_a_run_that_carries_the_answer_is_named() -> None:
    moved = pd.DataFrame(
        {"run": ["run7", "run1"], "predicted": [4.2, 4.9], "change": [-0.16, -0.02]}
    )
    said = influential(moved, Prediction(5.0, 4.8, 5.1))
    assert len(said) == 1
    assert "depends on run run7" in said[0]
    assert influential(moved, Prediction(5.0, 4.1, 5.1)) == []
    assert influential(moved, None) == []
