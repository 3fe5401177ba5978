"""The downstream section says that loss and tasks go together, that they part, or that it cannot tell."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from clue_ray.report.directory import read_directory
from clue_ray.report.downstream import carries_over, correlation, downstream, score_over_loss
from clue_ray.report.page import write_report
from clue_ray.transfer.runs import join_results
from tests.report.planted import planted, write_study


def with_scores(slope: float, noise: float):
    table = planted()
    rng = np.random.default_rng(0)
    table["transfer_kids_auc"] = 0.6 - slope * (table["loss"] - 5) + noise * rng.standard_normal(len(table))
    return table.dropna(subset=["loss"])


@pytest.mark.parametrize(
    ("slope", "noise", "words"),
    [(0.5, 0.001, "carries over in this range"), (-0.5, 0.001, "the two part"), (0.0, 0.05, "leaves open")],
)
def test_the_sentence_says_what_the_interval_allows(slope, noise, words):
    assert words in carries_over("transfer_kids_auc", with_scores(slope, noise))


def test_the_correlation_is_numpys_and_inside_its_interval():
    rng = np.random.default_rng(1)
    loss = rng.random(12)
    score = -loss + 0.3 * rng.random(12)
    value, low, high = correlation(loss, score)
    assert value == pytest.approx(-np.corrcoef(loss, score)[0, 1]) and low < value < high


def test_loss_falls_to_the_right():
    ax = score_over_loss(with_scores(0.5, 0.001), Figure().add_subplot(), "transfer_kids_auc")
    left, right = ax.get_xlim()
    assert left > right and len(ax.collections[0].get_offsets()) == 9


def test_scores_in_run_folders_reach_the_table_and_the_page(tmp_path):
    directory = write_study(tmp_path, planted())
    assert downstream(read_directory(directory)) is None
    for run_id in planted()["run_id"][:9]:
        file = directory / "runs" / run_id / "transfer" / "kids-abc.json"
        file.parent.mkdir(parents=True)
        score = {"value": 0.5 + int(run_id, 16) / 100, "low": 0.4, "high": 0.9}
        rows = [{"method": "base rate", "auc": score}, {"method": "encoder", "auc": score}]
        file.write_text(json.dumps({"task": "kids", "methods": rows}))
    assert join_results(directory).table["transfer_kids_auc"].count() == 9
    join_results(directory)  # again: nothing doubles
    page = write_report(directory).read_text()
    assert "Downstream tasks against loss" in page and "correlation of AUC with the fall of the loss" in page
