"""One registry of columns: an axis that is added there is seen by every reader."""

import re
from dataclasses import replace
from io import StringIO

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from rich.console import Console

from clue_ray.cli.tables import print_plan
from clue_ray.cli.terminal import render_runs
from clue_ray.report.figures.grids import equal_columns, grid_of
from clue_ray.report.figures.lines import axis_effect
from clue_ray.report.figures.parallel import parallel_coordinates
from clue_ray.report.figures.style import Encoding
from clue_ray.report.page import write_report
from clue_ray.report.tables import FORMATS, describe, run_table
from clue_ray.runs import RUN_COLUMNS, RunDescription, RunRecord
from clue_ray.scaling.answering.axes import axis_effects, joint_fit
from clue_ray.scaling.answering.warnings import levers
from clue_ray.scaling.fitting.frontier import settings_of
from clue_ray.spec.columns import COLUMNS, Column, axes, format_of, label, settings, short_label
from clue_ray.spec.grid import dotted_fields
from clue_ray.spec.specs import RunSpec
from clue_ray.study.add_runs import continue_axis
from clue_ray.study.progress import StudyProgress
from tests.report.planted import planted, write_study
from tests.study.planning import plan

NEW = Column(
    "event_dropout",
    "left-out events",
    "left out",
    format="general",
    field="train.event_dropout",
    axis=6,
    log=True,
)


@pytest.fixture(params=["learning_rate", "event_dropout"])
def added(request, monkeypatch) -> str:
    """Make an axis, in the registry alone: of a setting, of a shape, or of an unknown column."""
    column = {
        "learning_rate": replace(
            COLUMNS["learning_rate"], label="peak rate", head="peak", axis=6, held=False
        ),
        "item_layers": replace(COLUMNS["item_layers"], label="item depth", head="depth", axis=6),
        "event_dropout": NEW,
    }[request.param]
    monkeypatch.setitem(COLUMNS, column.name, column)
    return column.name


def swept(axis: str) -> pd.DataFrame:
    """Return runs of three encoder sizes by three values of an axis."""
    table = planted()[:9]
    values = table["sequence_length"].map({2: 0.001, 4: 0.002, 8: 0.004})
    return table.assign(**{axis: values, "sequence_length": 4})


def printed(what) -> str:
    """Return what a wide terminal shows, blanks and line breaks as one blank."""
    console = Console(width=400, file=StringIO())
    console.print(what)
    return " ".join(console.file.getvalue().split())


def test_the_runs_table_keeps_its_columns():
    assert set(RUN_COLUMNS) == RunRecord.model_fields.keys()
    assert RUN_COLUMNS == [
        "run_id",
        "status",
        "error",
        "study",
        "corpus_digest",
        "encoder_size",
        "encoder_parts",
        "other_settings",
        "width",
        "item_layers",
        "service_layers",
        "heads",
        "non_embedding_params",
        "total_params",
        "corpus_users",
        "corpus_tokens",
        "sequence_length",
        "global_batch_size",
        "learning_rate",
        "seed",
        "steps",
        "users_seen",
        "train_tokens",
        "train_flops",
        "executed_flops",
        "loss",
        "loss_at_training_temperature",
        "loss_candidates",
        "recall_at_10",
        "mrr",
        "train_loss",
        "wall_seconds",
        "tokens_per_second",
        "num_workers",
        "device",
        "started_at",
        "clue_ray_version",
    ]


def test_what_the_registry_says_exists():
    assert set(settings()) <= RunDescription.model_fields.keys()
    fields = {column.field for column in COLUMNS.values() if column.field}
    assert fields <= set(dotted_fields(RunSpec))
    assert {column.format for column in COLUMNS.values()} <= FORMATS.keys()
    assert axes() == [
        "non_embedding_params",
        "sequence_length",
        "corpus_users",
        "global_batch_size",
        "steps",
    ]


def test_labels():
    assert label("sequence_length") == "sequence length, events"
    assert short_label("sequence_length") == "sequence length"
    assert label("transfer_kids_auc") == "transfer kids auc"
    assert format_of("transfer_kids_auc") == "count"


def test_nothing_else_makes_an_axis():
    table = swept("event_dropout")
    assert [effect.column for effect in axis_effects(table)] == ["non_embedding_params"]
    assert grid_of(table, "event_dropout") is not None  # a grid is drawn of any two columns
    assert "event dropout" not in run_table(table).heads
    assert describe(table.iloc[0]) == "size xxs, length 4, users 8,000, batch 64"


def test_laws_and_warnings_see_an_added_axis(added):
    table = swept(added)
    effects = {effect.column: effect.label for effect in axis_effects(table)}
    assert effects[added] == short_label(added)
    found = joint_fit(table)
    assert found is not None
    assert set(found[0].x) == {"non_embedding_params", added}
    (warning,) = levers(table.assign(frontier=True))
    assert f"{short_label(added)} (4-fold)" in warning
    seeds = table[:2].assign(**{added: [0.001, 0.002]}, seed=[0, 1], train_flops=1e9)
    assert len(set(settings_of(seeds))) == 2


def test_tables_and_figures_see_an_added_axis(added, tmp_path):
    table = swept(added)
    assert COLUMNS[added].head in printed(render_runs(tmp_path, table))
    assert short_label(added) in run_table(table).heads
    assert describe(table.iloc[0]).endswith(f"{COLUMNS[added].head} 0.001")
    assert Encoding.of(table).colour_column == added
    assert added in equal_columns("sequence_length")
    ax = axis_effect(axis_effects(table)[0], plt.figure().subplots())
    assert f"lines: {short_label(added)}" in {text.get_text() for text in ax.texts}
    ax = parallel_coordinates(table, plt.figure().subplots())
    heads = [text.get_text().replace("\n", " ") for text in ax.get_xticklabels()]
    assert short_label(added) in heads
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("added", ["event_dropout"], indirect=True)
def test_a_report_sees_an_added_axis(added, tmp_path):
    write_report(write_study(tmp_path / "study", swept(added)))
    page = (tmp_path / "study" / "report" / "index.html").read_text(encoding="utf-8")
    name = added.replace("_", "-")
    assert f"axis-{name}" in page
    assert f"heat-{name}" in page
    assert f"{short_label(added).capitalize()}. Dashed" in page
    assert f"Encoder size by {short_label(added)}" in page
    assert re.search(rf"<th[^>]*>(<[^>]*>)*{short_label(added)}", page)


@pytest.mark.parametrize(
    ("added", "continued"),
    [("learning_rate", [0.001, 0.002, 0.004, 0.008]), ("item_layers", [1, 2, 4, 8])],
    indirect=["added"],
)
def test_a_plan_sees_an_added_axis(added, continued, corpus, tmp_path):
    column, values = COLUMNS[added], continued[:2]
    planned = plan(corpus, tmp_path, {column.field: values})
    console = Console(width=400, file=StringIO())
    print_plan(console, planned)
    shown = console.file.getvalue()
    (heads,) = (line for line in shown.splitlines() if "params" in line)
    assert f" {column.head} " in heads
    assert f"the runs have 2 values of {column.label}" in shown
    first = planned.runs[0].run_id
    labels = StudyProgress(planned, lambda _: None).labels
    assert labels[first].endswith(f"{column.head} {values[0]}")
    assert continue_axis(column.field, values) == continued
