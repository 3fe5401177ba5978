"""The verdict names the best rival, the noise between seeds and the compute where it pays."""

from pathlib import Path

import pandas as pd
import pytest

from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.rivals import best_rival, headline_rivals, seed_spread, verdict
from clue_ray.runs import Runs
from clue_ray.storage.files import write_json

TFIDF = {"name": "TF-IDF", "method": "tfidf", "loss": 5.4, "loss_candidates": 256}
SHORT = {"name": "map, 8", "method": "linear_map", "loss": 5.35, "loss_candidates": 256}
WHOLE = {"name": "map, all", "method": "linear_map", "loss": 5.2, "loss_candidates": 256}


def study(folder: Path, losses: dict[float, list[float]], baselines: list | None = None, **more):
    """Read a study with runs of several seeds at each compute."""
    rows = [
        {"run_id": f"r{flops:g}-{seed}", "train_flops": flops, "loss": loss, "seed": seed,
         "width": flops, "status": "done", "loss_candidates": 256} | more
        for flops, seeds in losses.items()
        for seed, loss in enumerate(seeds)
    ]  # fmt: skip
    Runs(pd.DataFrame(rows)).write(folder)
    chosen = [TFIDF, SHORT, WHOLE] if baselines is None else baselines
    write_json(folder / "baselines.json", {"baselines": chosen})
    return read_directory(folder)


def test_the_best_rival_is_in_the_figure_with_other_methods(tmp_path):
    files = study(tmp_path, {1e12: [5.0]})
    assert best_rival(files)["name"] == "map, all"
    assert headline_rivals(files) == [("TF-IDF", 5.4), ("map, all", 5.2)]


def test_a_lead_is_compared_with_the_noise_between_seeds(tmp_path):
    files = study(tmp_path, {1e12: [5.31, 5.29], 1e13: [5.11, 5.09], 1e14: [5.01, 4.99]})
    words = verdict(files, 256)
    assert "0.21 nats below the best rival, map, all." in words
    assert "beyond the noise between seeds (standard deviation 0.014 nats)" in words
    assert "From 1.0e13 FLOP on, every run on the frontier beats this rival." in words
    assert seed_spread(files.done).settings == 3


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({1e12: [5.1]}, "was not measured"),
        ({1e12: [5.1]}, "Every run on the frontier beats this rival."),
        ({1e12: [5.3, 5.1], 1e13: [5.0, 5.28]}, "within the noise between seeds"),
        ({1e12: [5.5, 5.19]}, "The mean over seeds of the frontier's largest run does not beat"),
        ({1e12: [5.3]}, "above the best rival, map, all: at this scale a trained encoder is not"),
        ({1e12: [5.9]}, "above chance: nothing was learned"),
    ],
)
def test_the_verdict_says_what_the_runs_support(tmp_path, losses, said):
    assert said in verdict(study(tmp_path, losses), 256)


def test_without_rivals_only_chance_is_compared(tmp_path):
    files: StudyFiles = study(tmp_path, {1e12: [5.0]}, baselines=[])
    assert verdict(files, 256) == "The best run is 0.55 nats below chance."


def test_an_overconfident_temperature_is_stated(tmp_path):
    files = study(tmp_path, {1e12: [5.0]}, loss_at_training_temperature=6.5)
    assert "the loss of the best run is 6.500 nats instead of 5.000" in verdict(files, 256)


def test_runs_of_one_part_of_the_encoder_are_rivals_and_no_law_describes_them(tmp_path):
    whole = [{"encoder_parts": "bag+transformer", "loss": loss} for loss in (5.0, 4.9)]
    parts = [
        {"encoder_parts": "bag", "loss": 5.15, "recall_at_10": 0.2},
        {"encoder_parts": "bag", "loss": 5.3, "recall_at_10": 0.1},
        {"encoder_parts": "transformer", "loss": 5.25, "recall_at_10": 0.12},
    ]
    table = pd.DataFrame(whole + parts).assign(
        status="done", mrr=0.1, sequence_length=96, loss_candidates=256, train_flops=1e12
    )
    table["run_id"] = [f"r{row}" for row in range(len(table))]
    assert list(Runs(table).done["run_id"]) == ["r0", "r1"]
    assert list(Runs(table).ablations["run_id"]) == ["r2", "r3", "r4"]
    Runs(table).write(tmp_path)
    files = read_directory(tmp_path)
    assert headline_rivals(files) == [
        ("the bag of tokens alone, trained, 96 events", 5.15),
        ("CLUE's own model, without a bag, 96 events", 5.25),
    ]
    assert "0.25 nats below the best rival, the bag of tokens alone" in verdict(files, 256)


@pytest.mark.parametrize("parts", ["bag", "transformer"])
def test_a_study_of_one_part_alone_has_no_ablations(parts):
    table = pd.DataFrame({"encoder_parts": [parts] * 3, "loss": [5.0, 4.9, 4.8]})
    assert len(Runs(table).done) == 3
    assert Runs(table).ablations.empty
