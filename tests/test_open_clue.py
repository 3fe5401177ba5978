"""The open CLUE study: selection of its runs, and agreement of its page with its runs table."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from jinja2 import meta

from clue_ray.scaling.downstream import Verdict
from clue_ray.spec.specs import read_study
from paper import answers, findings, points

ROOT = Path(__file__).parents[1]
HOME = ROOT / "studies" / "open-clue"


def test_runs_of_one_question_differ_in_what_it_varies():
    for corpus in points.read_points().values():
        base = corpus.base
        for varied, column in points.VARIED.items():
            rows = corpus.equal_steps(varied)
            assert rows[column].nunique() >= 4
            assert rows["width"].nunique() >= 4
            assert all(rows[key].nunique() == 1 for key in base if key != column)
        assert corpus.equal_examples()["users_seen"].nunique() == 1
        for budget, rows in corpus.budgeted().groupby("budget"):
            assert (rows["train_flops"] / budget - 1).abs().max() < points.SAME_BUDGET - 1
        assert corpus.equal_compute()["global_batch_size"].nunique() == 4
        assert corpus.isoflop()["budget"].nunique() >= 4


def test_noise_between_seeds_is_pooled_over_settings():
    shared = {
        "width": 8,
        "sequence_length": 4,
        "global_batch_size": 8,
        "corpus_users": 10,
        "loss_candidates": 256,
    }
    learnt = ((100, 5.0), (101, 5.2), (200, 4.0), (202, 4.4))
    at_chance, overfitted = ((300, 5.54), (301, 5.55)), ((100, 6.0), (101, 9.0))
    rows = [{**shared, "steps": steps, "loss": loss} for steps, loss in learnt + at_chance]
    rows += [
        {**shared, "corpus_users": 5, "steps": steps, "loss": loss} for steps, loss in overfitted
    ]
    found = points.Points("planted", read_study(HOME / "planted.yaml"), pd.DataFrame(rows)).noise()
    assert found == pytest.approx(((0.02 + 0.08) / 2) ** 0.5)


def test_the_table_holds_settings_and_scores_and_nothing_of_anyone_s_log():
    runs = pd.read_csv(HOME / "runs.csv")
    assert runs["run_id"].is_unique
    assert set(runs["status"]) <= {"done", "failed", "diverged"}
    words = runs.select_dtypes("str").drop(
        columns=["run_id", "started_at", "corpus_digest", "clue_ray_version"]
    )
    assert all(words[name].nunique() <= 4 for name in words)
    curves = pd.read_parquet(HOME / "curves.parquet")
    assert set(curves["run_id"]) <= set(runs["run_id"])


def test_every_verdict_has_words():
    assert set(answers.VERDICTS) == set(get_args(Verdict))


def test_every_text_of_the_page_is_found():
    environment = findings.templates()
    source, _, _ = environment.loader.get_source(environment, "page.md.j2")
    included = list(meta.find_referenced_templates(environment.parse(source)))
    assert len(included) == len(list((HOME / "claims").glob("*.md")))
    for name in included:
        environment.get_template(name)


@pytest.mark.slow
def test_the_page_is_what_the_table_says(tmp_path):
    command = [
        sys.executable,
        "-m",
        "paper.findings",
        "--output",
        tmp_path / "reports",
        "--docs",
        tmp_path,
    ]
    subprocess.run(command, check=True, timeout=600, cwd=ROOT)
    assert (tmp_path / "notes" / "open-clue-study.md").read_text() == (
        ROOT / "docs" / "notes" / "open-clue-study.md"
    ).read_text()
    assert (
        len(list((tmp_path / "reports").glob("*/report/index.html")))
        == pd.read_csv(HOME / "runs.csv")["study"].nunique()
    )


def test_the_summary_names_runs_of_the_table():
    runs = pd.read_csv(HOME / "runs.csv").set_index("run_id")
    summary = (HOME / "claims" / "summary.md").read_text()
    named = re.findall(r"(\d\.\d{3})\s+\(`([0-9a-f]{12})`\)", summary)
    assert len(named) == 7
    for loss, run_id in named:
        assert f"{runs.loc[run_id, 'loss']:.3f}" == loss
