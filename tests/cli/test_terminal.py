"""The runs table as it stands: also of a study under way, and of other origin."""

import json
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from clue_ray.cli.main import main
from clue_ray.cli.terminal import render_runs, select_runs
from clue_ray.errors import ClueRayError, RunsError
from clue_ray.runs import read_current_runs
from clue_ray.storage.files import write_json
from clue_ray.study.directory import StudyDirectory
from tests.study.planning import plan


def write_under_way(corpus, folder, count, ended):
    """Leave the folder of a study of that many runs of which the first `ended` are recorded."""
    planned = plan(
        corpus, folder, {"train.learning_rate": [0.001 * (1 + index) for index in range(count)]}
    )
    write_json(folder / "plan.json", planned.to_dict())
    for index, run in enumerate(planned.runs[:ended]):
        status = (
            {"status": "failed", "error": "OSError: no"}
            if index == 1
            else {"status": "done", "loss": 9.0 - index}
        )
        StudyDirectory(folder).write_run(
            run.run, run.description.to_record(**status, train_flops=float(index)), []
        )
    return planned


def test_a_study_under_way_shows_what_has_ended(corpus, tmp_path):
    write_under_way(corpus, tmp_path, 5, 3)
    table = select_runs(tmp_path)
    assert table["status"].tolist() == ["done", "failed", "done", "missing", "missing"]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_runs(tmp_path, table))
    shown = " ".join(captured.get().split())
    assert "5 runs (2 done, 2 missing, 1 failed)" in shown
    assert "OSError: no" in shown
    assert " rate " in shown
    assert "length" not in shown


def test_rows_are_sorted_and_filtered(corpus, tmp_path):
    write_under_way(corpus, tmp_path, 5, 4)
    assert select_runs(tmp_path, sort="loss")["loss"].tolist()[:3] == [6.0, 7.0, 9.0]
    assert select_runs(tmp_path, where="loss < 8 and status == 'done'")[
        "learning_rate"
    ].tolist() == [0.003, 0.004]
    for options, words in [
        ({"sort": "los"}, "did you mean 'loss'?"),
        ({"where": "los < 3"}, "not a condition on the runs table"),
        ({"where": "loss <"}, "not a condition on the runs table"),
        ({"where": "loss * 2"}, "--where is 'loss \\* 2'"),
        ({"where": "seed"}, "--where is 'seed', which is neither true nor false for a run"),
    ]:
        with pytest.raises(RunsError, match=words) as error:
            select_runs(tmp_path, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "record.json",
            '{"run_id": ',
            "is damaged .*; delete it, and the same command resumes from the run's last",
        ),
        ("record.json", '{"run_id": "a", "new_column": 1}', "record.json is not a record"),
        ("plan.json", "", "plan.json is damaged"),
        ("plan.json", "{}", "plan.json is damaged .it has no runs.; delete it"),
    ],
)
def test_a_damaged_file_is_named(corpus, tmp_path, name, content, words):
    planned = write_under_way(corpus, tmp_path, 2, 2)
    folder = tmp_path if name == "plan.json" else tmp_path / "runs" / planned.runs[0].run_id
    (folder / name).write_text(content)
    with pytest.raises(ClueRayError, match=words):
        read_current_runs(tmp_path)


def test_a_table_of_other_origin_is_shown_too(tmp_path):
    pd.DataFrame({"train_flops": [2.0, 1.0], "loss": [3.0, 4.0]}).to_csv(
        tmp_path / "runs.csv", index=False
    )
    assert select_runs(tmp_path / "runs.csv")["loss"].tolist() == [4.0, 3.0]
    with Console().capture():
        Console().print(render_runs(tmp_path, select_runs(tmp_path / "runs.csv")))


def test_failed_runs_of_other_origin_need_no_reason(tmp_path):
    pd.DataFrame({"run_id": ["a", "b"], "loss": [3.0, None], "status": ["done", "failed"]}).to_csv(
        tmp_path / "runs.csv", index=False
    )
    console = Console()
    with console.capture() as shown:
        console.print(render_runs(tmp_path, select_runs(tmp_path / "runs.csv")))
    assert "failed b: " in shown.get()


def test_runs_under_way_read_as_the_table_written_at_the_end(corpus, tmp_path):
    planned = write_under_way(corpus, tmp_path, 5, 5)
    written = StudyDirectory(tmp_path).write_tables([r.description for r in planned.runs])
    assert json.loads(written.table.to_json()) == json.loads(
        read_current_runs(tmp_path).table.to_json()
    )


def test_the_command_prints_csv_or_json_or_a_sentence(corpus, tmp_path, capsys, monkeypatch):
    write_under_way(corpus, tmp_path, 4, 3)
    command = [
        "clue-ray",
        "results",
        str(tmp_path),
        "--sort",
        "loss",
        "--where",
        "status == 'done'",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--csv"])
    with pytest.raises(SystemExit):
        main()
    assert pd.read_csv(StringIO(capsys.readouterr().out))["loss"].tolist() == [7.0, 9.0]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit):
        main()
    assert [row["loss"] for row in json.loads(capsys.readouterr().out)] == [7.0, 9.0]
    monkeypatch.setattr("sys.argv", [*command, "--where", "loss >"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
