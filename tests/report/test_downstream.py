"""The downstream section: a task follows the loss, or it does not, or the runs do not decide."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from clue_ray.report.page import build_content, render
from clue_ray.report.read import read_directory
from clue_ray.report.sections.downstream import (
    downstream,
    follows_loss,
    over_compute,
    score_over_loss,
)
from clue_ray.transfer.tasks.columns import join_results, select_results
from tests.report.planted import planted, write_study

SLOPE, NOISE = 0.5, 0.002


def with_scores(slope=SLOPE, noise=NOISE, lost=0.0):
    """Score a planted study in a straight line over loss; its two largest runs lose some of it."""
    table = planted()
    rng = np.random.default_rng(0)
    table["transfer_kids_auc"] = (
        0.6 - slope * (table["loss"] - 5) + noise * rng.standard_normal(len(table))
    )
    largest = table["train_flops"].rank(ascending=False) <= 2
    table.loc[largest, "transfer_kids_auc"] -= lost
    return table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "without any further gain: the task follows the loss up to the largest runs."),
        ({"lost": 0.1}, "lower than predicted. At the largest compute the task does not follow"),
        ({"lost": -0.1}, "higher than predicted. At the largest compute the task improves more"),
        ({"slope": -SLOPE}, "A lower loss gave a worse score: the task does not follow the loss."),
        (
            {"slope": 0.0, "noise": 0.05},
            "the runs do not decide whether the task follows the loss.",
        ),
    ],
)
def test_the_sentence_says_what_the_runs_allow(changes, words):
    assert words in follows_loss(
        "transfer_kids_auc", with_scores(**changes).dropna(subset=["loss"])
    )


def test_the_score_of_ten_times_the_compute_follows_from_a_planted_law():
    compute = np.geomspace(1e12, 1e15, 13)
    rng = np.random.default_rng(1)
    error = 0.05 + 0.3 * (compute / 1e12) ** -0.25 * np.exp(0.004 * rng.standard_normal(13))
    runs = pd.DataFrame({"train_flops": compute, "transfer_kids_auc": 1 - error})
    words = over_compute("transfer_kids_auc", runs)
    told = re.search(r"give AUC ([\d.]+) \[([\d.]+), ([\d.]+)\]", words)
    value, low, high = map(float, told.groups())
    truth = 1 - (0.05 + 0.3 * 1e4**-0.25)
    assert low < truth < high
    assert value == pytest.approx(truth, abs=0.01)
    assert "at 1.0e+16 FLOP, 10 times the largest run" in words
    none = over_compute("transfer_kids_auc", runs.assign(transfer_kids_auc=0.7))
    assert "no law of AUC over compute was found (1 - AUC does not fall along train_flops" in none


def test_a_task_that_follows_until_the_largest_runs_is_not_told_from_its_correlation():
    sentence = follows_loss("transfer_kids_auc", with_scores(lost=0.04).dropna(subset=["loss"]))
    assert "A lower loss gave a better score" in sentence
    assert "At the largest compute the task does not follow the loss" in sentence


def test_largest_runs_that_lost_no_loss_show_nothing_further():
    runs = with_scores().dropna(subset=["loss"])
    largest = runs["train_flops"].rank(ascending=False) <= 2
    runs.loc[largest, "loss"] = runs["loss"].median()
    runs.loc[largest, "transfer_kids_auc"] = 0.6 - SLOPE * (runs["loss"].median() - 5)
    sentence = follows_loss("transfer_kids_auc", runs)
    assert "not below the lowest loss of the smaller runs" in sentence
    assert "does not exclude" not in sentence


def test_few_runs_and_constant_scores_have_no_verdict():
    runs = with_scores().dropna(subset=["loss"])
    assert "Only 3 finished runs have a score; a correlation needs 4" in follows_loss(
        "transfer_kids_auc", runs[:3]
    )
    assert "needs 4 smaller runs" in follows_loss("transfer_kids_auc", runs[:4])
    assert "there is no correlation" in follows_loss(
        "transfer_kids_auc", runs.assign(transfer_kids_auc=0.5)
    )


def test_loss_falls_to_the_right_and_the_largest_runs_are_open():
    ax = score_over_loss(
        with_scores().dropna(subset=["loss"]), Figure().add_subplot(), "transfer_kids_auc"
    )
    left, right = ax.get_xlim()
    smaller, largest = (len(points.get_offsets()) for points in ax.collections[:2])
    assert left > right
    assert (smaller, largest) == (7, 2)


def test_scores_in_run_folders_reach_the_table_and_the_page(tmp_path):
    directory = write_study(tmp_path, planted())
    assert downstream(read_directory(directory)) is None
    scores = with_scores().set_index("run_id")["transfer_kids_auc"]
    for number, run_id in enumerate(planted()["run_id"][:9]):
        folder = directory / "runs" / run_id / "transfer"
        folder.mkdir(parents=True)
        score = {"value": scores[run_id], "low": 0.4, "high": 0.9}
        lead = {"value": -0.1, "low": -0.2, "high": -0.05}
        rows = [
            {"method": "base rate", "auc": score, "auc_lead": lead},
            {"method": "encoder", "auc": score},
        ]
        (folder / "kids-abc.json").write_text(
            json.dumps({"task": "kids", "run_id": run_id, "users": {}, "methods": rows})
        )
        if number < 2:
            (folder / "cars-failed.json").write_text(
                json.dumps({"task": "cars", "run_id": run_id, "error": "No <b>cars</b> here."})
            )
    table = join_results(directory).table
    assert table["transfer_kids_auc"].count() == 9
    assert pd.api.types.is_float_dtype(table["transfer_kids_auc"])
    assert table["transfer_cars_error"].count() == 2
    join_results(directory)  # again: nothing doubles
    (directory / "curves.parquet").unlink()  # fewer figures to draw
    best = with_scores()[:9].sort_values("loss")["run_id"].iloc[0]
    names = dict.fromkeys(planted()["run_id"], "transfer/kids-abc.json")
    select_results(directory, {"kids": names, "cars": dict.fromkeys(names, "../../etc/passwd")})
    content = build_content(read_directory(directory), None, {"error": "no laws"})
    page = render("index.html.j2", content=content, live=False)
    assert "the task follows the loss up to the largest runs" in page
    assert "downstream-kids-auc" in page
    assert (
        f"kids, run {best}, the run of lowest loss with a score. By AUC the encoder is worse than "
        "base rate" in page
    )
    assert "cars: 2 of 9 finished runs have no score. No &lt;b&gt;cars&lt;/b&gt; here." in page
