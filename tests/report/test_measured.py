"""How a study was measured: 27 answers, each of which changes with what it describes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest

from clue_ray.report.page import analyse_files
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.sections.checklist import fitting, training
from clue_ray.report.sections.checklist.evidence import spread
from clue_ray.report.sections.measured import NOT_RECORDED, measured
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.spec.recipe import OPTIMIZER
from clue_ray.spec.specs import StudySpec
from tests.report.planted import planted, write_study

Change = Callable[[StudyFiles], StudyFiles]


def answers(files: StudyFiles, analysis: Analysis | None) -> dict[str, str]:
    tables = measured(files, analysis, "No law.").tables[:-1]
    return {item.text: answer.text for table in tables for item, answer in table.rows}


@pytest.fixture(scope="module")
def files(study: Path) -> StudyFiles:
    return read_directory(study)


@pytest.fixture(scope="module")
def analysis(files: StudyFiles) -> Analysis | None:
    return analyse_files(files)[0]


@pytest.fixture(scope="module")
def before(files: StudyFiles, analysis: Analysis | None) -> dict[str, str]:
    return answers(files, analysis)


def column(**values: Any) -> Change:
    """Change columns of the runs table."""
    return lambda files: replace(files, table=files.table.assign(**values))


def first_rows(count: int) -> Change:
    return lambda files: replace(files, table=files.table.head(count))


def setting(where: str, **values: Any) -> Change:
    """Change a part of the study file: corpus, base.train or base.encoder."""

    def change(files: StudyFiles) -> StudyFiles:
        assert files.study is not None
        document = files.study.model_dump(mode="json", exclude_unset=True)
        part = document
        for name in where.split("."):
            part = part.setdefault(name, {})
        part.update(values)
        return replace(files, study=StudySpec.model_validate(document))

    return change


def corpus(**values: Any) -> Change:
    return lambda files: replace(files, corpus=files.corpus | values)


def fewer_curves(files: StudyFiles) -> StudyFiles:
    assert files.curves is not None
    return replace(files, curves=files.curves[files.curves["step"] == 400])


def one_rate_changed(files: StudyFiles) -> StudyFiles:
    rates = files.table["learning_rate"].copy()
    rates.iloc[0] = 1e-2
    return column(learning_rate=rates)(files)


def test_the_checklist_has_27_items_under_four_heads(before: dict[str, str], study: Path) -> None:
    assert len(before) == 27
    html, markdown = (
        (study / "report" / name).read_text(encoding="utf-8")
        for name in ("index.html", "report.md")
    )
    for page in (html, markdown):
        assert all(item in page for item in before)
    assert html.rindex("<section") == html.index('<section id="measured">')
    assert markdown.rindex("\n## ") == markdown.index("\n## How this was measured")


@pytest.mark.parametrize(
    ("item", "change", "found"),
    [
        ("number of models", first_rows(8), "8 of 8 runs finished"),
        ("sizes", column(non_embedding_params=123_000.0), "123k non-embedding parameters"),
        ("data per model", column(steps=500), "500 steps"),
        ("source and licence of the data", corpus(licence_note="MIT"), "licence MIT"),
        ("source and licence of the data", setting("corpus", events="a.csv"), "a.csv"),
        ("source and licence of the data", corpus(source={"a": {"events": "b.csv"}}), "a: b.csv"),
        ("repeated data", column(corpus_users=4000), "6.4 times"),
        ("repeated data", setting("corpus", duplicates="drop"), "log: drop"),
        ("tokenizer and vocabulary", setting("corpus", vocab_size=300), "300 tokens"),
        ("tokenizer and vocabulary", corpus(vocab_size=301), "301 tokens"),
        ("tokenizer and vocabulary", corpus(tokenizer="t.json"), "taken from t.json"),
        ("how size is counted", column(total_params=180_000.0), "50% to 97%"),
        ("how compute is counted", column(executed_flops=1e9), "of it was executed"),
        ("architecture", setting("base.encoder", output_width=32), "output width 32"),
        ("optimizer", setting("base.train", weight_decay=0.25), "weight decay 0.25"),
        ("optimizer", setting("base.train", objective="sigmoid"), "objective sigmoid"),
        ("learning rate, schedule and batch", setting("base.train", warmup=0.1), "over 10%"),
        (
            "learning rate, schedule and batch",
            setting("base.train", schedule="warmup_stable_decay"),
            "linear to zero over the last 20%",
        ),
        ("tuning per scale", one_rate_changed, "1 of 3 sizes were trained at several"),
        ("code and precision", setting("base.train", precision="bf16"), "precision bf16"),
        ("code and precision", column(clue_ray_version="7.7"), "clue-ray 7.7"),
        ("evaluations per model", fewer_curves, "1 per run"),
        ("checkpoints", lambda files: replace(files, encoders=3), "encoders of 3 runs"),
        ("metric", column(loss_candidates=128), "among 128 candidates, 4.852 by guessing"),
        ("evaluation data", setting("corpus", split={"test": 0.1}), "10% of all users"),
        ("evaluation data", corpus(split={"test": 0.3}), "30% of all users"),
        ("changes to the measured values", first_rows(8), "no run is left out"),
    ],
)
def test_an_answer_changes_with_what_it_describes(
    files: StudyFiles,
    analysis: Analysis | None,
    before: dict[str, str],
    item: str,
    change: Change,
    found: str,
) -> None:
    after = answers(change(files), analysis)[item]
    assert found in after
    assert found not in before[item]


def test_answers_on_laws_change_with_the_fits(files: StudyFiles, before: dict[str, str]) -> None:
    assert files.study is not None
    fewer = first_rows(8)(replace(files, fit=files.fit.model_copy(update={"laws": ("power_law",)})))
    after = answers(fewer, analyse_files(fewer)[0])
    for item in (
        *("form of each law", "fitted parameters", "source of each form"),
        *("assumptions of each form", "runs fitted", "validation"),
    ):
        assert after[item] != before[item]
    assert after["form of each law"] == "power law: a x^-b"
    assert after["source of each form"] == "power law: arXiv 2001.08361"
    assert "backtest of 1 laws" in after["validation"]


@pytest.mark.parametrize(
    ("module", "name", "value", "item", "found"),
    [
        (training, "BETAS", (0.5, 0.6), "optimizer", "betas 0.5 and 0.6"),
        (training, "FINAL_RATE", 0.3, "learning rate, schedule and batch", "cosine to 30%"),
        (training, "BASE_WIDTH", 77, "learning rate, schedule and batch", "77 / width"),
        (training, "RECIPE", 99, "code and precision", "recipe 99"),
        (fitting, "LARGEST_EXPONENT", 9.0, "assumptions of each form", "between 0 and 9"),
        (fitting, "MAX_GRID_POINTS", 17, "algorithm and starts", "up to 17 points"),
        (fitting, "LARGEST_LEVEL_SHARE", 0.5, "runs fitted", "at least 50%"),
        (fitting, "DRIFTS", range(8), "validation", "8 drifts of the slope"),
    ],
)
def test_constants_come_from_the_code(
    files: StudyFiles,
    analysis: Analysis | None,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    value: Any,
    item: str,
    found: str,
) -> None:
    monkeypatch.setattr(module, name, value)
    assert found in answers(files, analysis)[item]


def test_the_optimizer_is_the_one_that_trains() -> None:
    from clue_ray.training.schedule import make_optimizer

    assert get_type_hints(make_optimizer)["return"].__name__ == OPTIMIZER


def test_what_the_record_lacks_is_not_recorded(tmp_path: Path) -> None:
    table = planted(9).head(9)[["train_flops", "loss", "loss_candidates"]]
    table.to_parquet(tmp_path / "runs.parquet")
    files = read_directory(tmp_path)
    found = answers(files, analyse_files(files)[0])
    assert len(found) == 27
    for item in ("sizes", "optimizer", "tokenizer and vocabulary", "code and precision"):
        assert found[item] == NOT_RECORDED


def test_a_damaged_record_does_not_stop_the_page(tmp_path: Path) -> None:
    write_study(tmp_path, planted().assign(train_tokens="many", users_seen="all", width="w"))
    damaged = '{"split": {"test": "x"}, "source": 3, "vocab_size": "big", "duplicates": [1]}'
    (tmp_path / "corpus.json").write_text(damaged)
    files = read_directory(tmp_path)
    found = answers(files, None)
    assert len(found) == 27
    assert found["objective"] == "No law."


def test_values_are_written_as_a_list_or_by_their_ends() -> None:
    assert spread([16, 8, 8]) == "8 and 16"
    assert spread(range(1, 6)) == "1 to 5 (5 values)"
    assert spread(["b", "a"]) == "a and b"
    assert spread(pd.Series([1000.0])) == "1k"
    assert spread([]) == ""
