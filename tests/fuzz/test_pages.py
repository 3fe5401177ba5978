"""Files by strangers that end in pages: sources, curves, profiles, results, study files."""

import io

import pandas as pd
import pytest
from hypothesis import example, given

from clue_ray.cli.foreign import read_source
from clue_ray.report.page import compose
from clue_ray.report.profile import write_profile
from clue_ray.report.read import read_directory
from clue_ray.spec.columns import named
from tests.fuzz.hostile import EXAMPLES, as_json, attack, changed, garbled, reads_or_refuses
from tests.fuzz.test_documents import RECORD, study_directory, write
from tests.fuzz.test_readers import RESULT
from tests.report.test_profile import a_profile

SOURCE = {
    "name": "tool",
    "path": "runs.csv",
    "names": {"loss": {"label": "val_loss", "unit": ""}, "train_flops": {"label": "C", "unit": ""}},
    "notes": ["8 runs were read."],
    "warnings": ["They are of 2 families."],
}


@pytest.fixture
def paged(tmp_path):
    """A study of four runs, and what makes its page."""
    study = study_directory(tmp_path / "in")
    flops = [1e9, 4e9, 16e9, 64e9]
    table = {"run_id": list("abcd"), "train_flops": flops, "loss": [3.0, 2.5, 2.2, 2.1]}
    pd.DataFrame(table).to_parquet(study / "runs.parquet")
    (study / "plan.json").unlink()

    def page():
        files = read_directory(study)
        with named(files.names):
            return compose(files)

    return study, page


@EXAMPLES
def test_where_the_runs_of_another_tool_came_from(paged, examples):
    study, page = paged

    @attack(examples // 4)
    @given(changed(SOURCE))
    @example({**SOURCE, "names": {"loss": 3}, "notes": 3, "warnings": {"a": 1}})
    def attacked(document):
        write(study / "source.json", as_json(document))
        assert reads_or_refuses(study, page)
        reads_or_refuses(study, lambda: read_source(study))

    attacked()


@EXAMPLES
def test_learning_curves(paged, examples):
    study, page = paged
    stream = io.BytesIO()
    points = {"run_id": ["a", "a"], "step": [3, 6], "train_flops": [5e8, 1e9], "loss": [4.0, 3.0]}
    pd.DataFrame(points).to_parquet(stream)

    @attack(examples // 4)
    @given(garbled(stream.getvalue()))
    def damaged(content):
        write(study / "curves.parquet", content)
        assert reads_or_refuses(study, page)

    damaged()


@EXAMPLES
def test_profiles_of_corpora(tmp_path, examples):
    folder = tmp_path / "in"
    valid = a_profile()

    def reads(content):
        write(folder / "profile.json", content)
        return reads_or_refuses(folder, lambda: write_profile(folder))

    @attack(examples // 4)
    @given(changed(valid))
    def mistyped(document):
        reads(as_json(document))

    @attack(examples // 4)
    @given(garbled(as_json(valid)))
    def damaged(content):
        reads(content)

    assert reads(as_json(valid))
    mistyped()
    damaged()


@EXAMPLES
def test_a_page_shows_results_of_tasks_that_it_can_read(tmp_path, examples):
    study = study_directory(tmp_path / "in")
    run, name = RECORD["run_id"], "transfer/next-0123456789ab.json"
    table = {"run_id": [run], "status": ["done"], "train_flops": [1e9], "loss": [2.5]}
    pd.DataFrame({**table, "transfer_next_mrr": [0.3]}).to_parquet(study / "runs.parquet")
    write(study / "transfer.json", as_json({"next": {run: name}}))
    (study / "plan.json").unlink()

    def page():
        return compose(read_directory(study))

    @attack(examples // 4)
    @given(changed(RESULT))
    @example({**RESULT, "methods": [{"method": "encoder"}]})
    def attacked(document):
        write(study / "runs" / run / name, as_json(document))
        assert reads_or_refuses(study, page)

    attacked()


def test_a_page_reads_no_study_file_of_gigabytes(tmp_path):
    study = study_directory(tmp_path / "in")
    pd.DataFrame({"run_id": ["a"], "loss": [2.5]}).to_parquet(study / "runs.parquet")
    (study / "plan.json").unlink()
    with (study / "study.yaml").open("a") as file:
        file.truncate(3 * 10**9)  # takes no disk
    files = reads_or_refuses(study, lambda: read_directory(study))
    assert files.study_text == ""
    assert "more than 2,000,000 bytes" in files.warnings[0]
