"""The command line as a user meets it: every mistake is one sentence on stderr, exit code 2,
nothing half written."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from clue_ray.cli.main import app
from clue_ray.corpus.store import open_corpus
from clue_ray.spec.specs import StudySpec, read_study
from clue_ray.study.run import plan_study
from clue_ray.training.checkpoints import save_state
from tests.cli.calling import assert_mistake


@pytest.mark.parametrize(
    "command",
    ["fetch", "prepare", "plan", "run", "train", "results", "fit", "predict", "report", "browse"],
)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_wrong_option_is_exit_2(run_cli):
    code, _, err = run_cli("plan", "--nope")
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.ray
def test_mistakes_of_the_study(run_cli, ray_session, planted_log, write_study, tmp_path):
    out = tmp_path / "out"
    for changes, *words in [
        ({"axes": {"encoder.sise": ["s"]}}, "did you mean 'encoder.size'?"),
        (
            {"base__train": {"steps": 1, "global_batch_size": -1}},
            "base.train.global_batch_size is -1",
        ),
        (
            {"base__train": {"steps": 1, "global_batch_size": 5000}},
            "5000 is larger than",
            "use at most",
        ),
        ({"evaluation": {"candidates": 5000}}, "5000 is larger than", "held-out users"),
        ({"axes": {"corpus_users": [100000]}}, "corpus_users 100000 is more than"),
        ({"axes": {"resources.workers": [3]}}, "does not divide over 3 workers"),
        ({"axes": {"resources.workers": [16]}}, "needs 16 CPU", "the cluster has 2"),
        (
            {"axes": {"resources.workers": [17]}},
            "resources.workers is 17, more than the 16 users of global_batch_size",
        ),
        ({"resources": {"gpus_per_worker": 1}}, "needs 1 GPU", "the cluster has 0"),
        ({"resources": {"checkpoints": "ftp://x/y"}}, "Storage ftp://x/y cannot be used"),
        ({"resources": {"checkpoints": "/proc/nowhere"}}, "/proc/nowhere cannot be written"),
        (
            {"corpus": {"events": str(planted_log), "text": "{name}"}},
            "no column 'name'; columns found are 'user_id'",
        ),
        ({"corpus": str(tmp_path / "nothing")}, "is not a prepared corpus"),
    ]:
        assert_mistake(run_cli("run", write_study(planted_log, **changes), "--output", out), *words)
    assert not (out / "tiny").exists()


@pytest.mark.ray
def test_prepare_prints_a_summary(run_cli, ray_session, planted_log, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"vocab_size": 300}))
    (tmp_path / "lake").mkdir()
    spec = ["--spec", tmp_path / "c.yaml", "--json"]
    code, out, _ = run_cli("prepare", planted_log, "--output", f"file://{tmp_path}/lake/c", *spec)
    summary = json.loads(out)
    assert code == 0
    assert summary["users"] == 240
    assert summary["events"] == pq.read_metadata(planted_log).num_rows
    assert summary["path"] == f"file://{tmp_path}/lake/c"
    assert open_corpus(summary["path"]).digest == summary["digest"]
    code, out, _ = run_cli("prepare", planted_log, "--output", tmp_path / "c", *spec)
    assert code == 0
    assert json.loads(out)["digest"] == summary["digest"]


@pytest.mark.ray
def test_plan_run_results_fit_report(run_cli, ray_session, planted_log, write_study, tmp_path):
    study = write_study(
        planted_log, axes={"sequence_length": [1, 2, 4], "encoder.size": ["xxs", "xs"]}
    )
    code, out, _ = run_cli("plan", study, "--output", tmp_path, "--json")
    assert code == 0
    assert len(json.loads(out)["runs"]) == 6
    code, out, _ = run_cli("run", study, "--output", tmp_path)
    assert code == 0
    assert "[6/6]" in out
    assert "index.html" in out
    assert "log_linear" in out
    code, out, _ = run_cli("results", tmp_path / "tiny", "--json")
    assert code == 0
    assert len(json.loads(out)) == 6
    code, out, _ = run_cli("fit", tmp_path / "tiny" / "runs.csv", "--law", "log_linear", "--json")
    assert code == 0
    assert json.loads(out)["num_runs"] == 6
    code, out, _ = run_cli("fit", tmp_path / "tiny" / "runs.csv", "--law", "log_linear")
    assert code == 0
    assert "slope" in out
    assert_mistake(run_cli("fit", tmp_path / "tiny", "--law", "powr_law"), "power_law")
    assert_mistake(run_cli("fit", tmp_path / "tiny", "--x", "flops"), "flops", "train_flops")
    code, out, _ = run_cli("report", tmp_path / "tiny", "--json")
    assert code == 0
    assert json.loads(out)["candidates"] == 16


def test_fit_needs_no_ray(run_cli, tmp_path):
    x = [1e10 * 4**i for i in range(7)]
    pd.DataFrame({"train_flops": x, "loss": [3 * v**-0.1 for v in x]}).to_csv(
        tmp_path / "runs.csv", index=False
    )
    code, out, _ = run_cli("fit", tmp_path / "runs.csv", "--law", "power_law", "--json")
    assert code == 0
    assert json.loads(out)["parameters"]["exponent"] == pytest.approx(0.1, rel=1e-3)


def test_shipped_studies_are_valid():
    from pathlib import Path

    from clue_ray.spec.grid import expand

    for file in sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")):
        study = StudySpec.parse(yaml.safe_load(file.read_text()), str(file))
        assert expand(study), file


def test_module_runs_as_a_program():
    out = subprocess.run(
        [sys.executable, "-c", "from clue_ray.cli.main import main; main()"],
        capture_output=True,
        text=True,
    )
    assert "Usage" in out.stdout + out.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "neither as arguments nor by a --spec file"),
        (["--spec", "spec.yaml"], "none.csv does not exist"),
        (["log.csv", "--spec", "spec.yaml"], "both as arguments and in spec.yaml"),
        (["a=log.csv", "log.csv"], "name a service before each"),
        (["log.csv", "--output", "file"], "file is a file"),
        (["log.csv", "--output", "file/sub"], "cannot be created"),
        (["log.csv", "--output", "full"], "has files but is not a corpus"),
        (["log.csv", "--spec", "none.yaml"], "YAML file none.yaml does not exist"),
        (["twice.csv"], "2 columns 'text'"),
        (["utf16.csv"], "UTF-16"),
    ],
)
def test_mistakes_of_preparation(run_cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "clue_ray.study.run.connect", nullcontext
    )  # all of these are found without Ray
    monkeypatch.setattr(
        "clue_ray.corpus.build._write_corpus", lambda *_: pytest.fail("it was read")
    )
    log = "user_id,service,timestamp,text\nu,s,1,words\n"
    files = {
        "log.csv": log,
        "twice.csv": log.replace("timestamp", "text"),
    }
    for name, content in {
        **files,
        "file": "",
        "full/notes.txt": "",
        "spec.yaml": "events: {a: none.csv}",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "utf16.csv").write_text(log, encoding="utf-16-le")
    assert_mistake(run_cli("prepare", *arguments), words)


@pytest.mark.slow
@pytest.mark.ray
def test_one_point_is_trained_alone_and_not_again(
    run_cli, ray_session, planted_log, write_study, corpus, tmp_path
):
    study, out = write_study(planted_log, corpus=str(corpus.path)), tmp_path / "out"
    assert_mistake(
        run_cli("train", study, "--point", "encoder.sise=s"), "did you mean 'encoder.size'?"
    )
    assert_mistake(run_cli("train", study, "--point", "encoder.size"), "write it as FIELD=VALUE")
    assert_mistake(run_cli("train", study, "--workers", "5"), "does not divide over 5 workers")

    on_grid = (
        "train",
        study,
        "--point",
        "encoder.size=xs",
        "--point",
        "sequence_length=2",
        "--output",
        out,
    )
    code, printed, err = run_cli(*on_grid, "--json")
    assert code == 0, err
    record = json.loads(printed)
    assert (record["encoder_size"], record["sequence_length"], record["status"]) == (
        "xs",
        2,
        "done",
    )
    assert (Path(record["directory"]) / "record.json").exists()
    again = json.loads(run_cli(*on_grid, "--json")[1])
    assert again == record  # the same seconds: nothing was trained again
    code, printed, _ = run_cli(*on_grid)
    assert code == 0
    assert f"Run {record['run_id']}: done" in printed
    assert "recall at 10" in printed
    planned = plan_study(read_study(study), out).runs
    assert [r.finished for r in planned if r.run_id == record["run_id"]] == [True]
    assert len(planned) == 4


@pytest.mark.ray
def test_checkpoints_of_another_run_are_refused(
    run_cli, ray_session, planted_log, write_study, corpus, tmp_path
):
    study, out = write_study(planted_log, corpus=str(corpus.path)), tmp_path / "out"
    run_id = plan_study(read_study(study), out).runs[0].run_id
    place = out / "tiny" / "runs" / run_id / "checkpoints"
    save_state(place, {"run_id": "other", "progress": {"step": 3}})
    assert_mistake(
        run_cli("run", study, "--output", out),
        f"checkpoints at {place} are of run other, not of {run_id}",
    )
    assert not list(out.glob("tiny/runs/*/record.json"))
