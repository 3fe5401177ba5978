"""Mistakes that are found without Ray: a file of its own, because no session may be open here."""

import socket

from tests.cli.calling import assert_mistake


def test_mistakes_before_ray_starts(run_cli, planted_log, write_study, tmp_path, monkeypatch):
    monkeypatch.setattr("clue_ray.cluster.session.HEALTH_SECONDS", 3.0)
    study = write_study(planted_log)
    assert_mistake(run_cli("plan", tmp_path / "none.yaml"), "none.yaml does not exist")
    assert_mistake(
        run_cli("run", write_study(planted_log, evaluations={})), "did you mean 'evaluation'?"
    )
    seeds = {"train.seed": list(range(600)), "sequence_length": [2, 4]}
    assert_mistake(
        run_cli("run", write_study(planted_log, axes=seeds)), "1,200 runs (2 x 600)", "add --yes"
    )
    assert_mistake(
        run_cli("run", write_study(tmp_path / "no.parquet")), "no.parquet does not exist"
    )
    sealed = ("--at", "1e9", "--seal", "--where", "seed == 0")
    assert_mistake(run_cli("forecast", tmp_path, *sealed), "give --seal without --where")
    assert_mistake(
        run_cli("run", write_study(planted_log), "--address", "127.0.0.1:1"),
        "cannot be reached",
        "127.0.0.1:1",
    )
    assert_mistake(run_cli("run", study, "--address", "nowhere"), "cannot be reached at 'nowhere'")
    assert_mistake(
        run_cli("prepare", planted_log, "--output", tmp_path / "c", "--columns", "user"),
        "user_id=author",
    )
    assert_mistake(
        run_cli("prepare", tmp_path / "x.parquet", "--output", tmp_path / "c"), "does not exist"
    )
    assert_mistake(
        run_cli("prepare", planted_log, "--output", tmp_path / "c", "--spec", tmp_path / "no.yaml"),
        "no.yaml",
    )
    (tmp_path / "list.yaml").write_text("- a\n")
    listed = run_cli(
        "prepare", planted_log, "--output", tmp_path / "c", "--spec", tmp_path / "list.yaml"
    )
    assert_mistake(listed, "holds a list")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert_mistake(run_cli("run", study, "--address", taken), "no Ray answers there")
    assert_mistake(
        run_cli("run", study, "--output", tmp_path / "list.yaml"),
        "list.yaml is a file or lies in one; choose",
    )
    sizes = write_study(planted_log, axes={"encoder.size": [["xs", 0.003]]})
    assert_mistake(run_cli("plan", sizes), "encoder size ['xs', 0.003] is not on the ladder")
    assert_mistake(run_cli("results", tmp_path / "none"), "No runs table")
    assert_mistake(run_cli("report", tmp_path / "none"), "give a table of runs")
    assert_mistake(run_cli("report", *[tmp_path / "none"] * 3), "3 studies are given")
    assert_mistake(run_cli("browse", tmp_path / "none"), "is not a directory")
    assert_mistake(
        run_cli("fetch", "netflix", "--output", tmp_path / "n.parquet"),
        "known logs are completejourney, completejourney-products",
    )
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "n.parquet").exists()
