"""Folders of other tools, as a stranger may have written them."""

import json
import shutil
import sqlite3
from contextlib import closing

import pandas as pd
import pytest
from hypothesis import given

from clue_ray.errors import RunsError, StudyError
from clue_ray.foreign.table import import_runs
from tests.foreign.written import WRITERS, field, item, log_of
from tests.fuzz.hostile import CANARY, EXAMPLES, attack, garbled, reads_or_refuses
from tests.fuzz.test_documents import BOMB, write

FILES = {
    "mlflow-files": ("1/run0/meta.yaml", "1/run0/metrics/val_loss", "1/run0/params/n_params"),
    "mlflow-database": ("mlflow.db",),
    "ray-tune": (
        "train_00000/params.json",
        "train_00000/result.json",
        "experiment_state-2026.json",
    ),
    "tensorboard": ("run0/events*", "run0/1795889000.5/events*"),
    "wandb": ("wandb/offline-run-2026-0/run-run0.wandb",),
}
DEEP = "[" * 900 + "]" * 900


def folder_of(found):
    """Return the folder that a writer filled: a database is a file in it."""
    return found if found.is_dir() else found.parent


@EXAMPLES
@pytest.mark.parametrize(
    ("tool", "name"), [(tool, name) for tool, names in FILES.items() for name in names]
)
def test_damaged_files_of_other_tools(tmp_path, tool, name, examples):
    folder = tmp_path / "in"
    folder.mkdir()
    root = WRITERS[tool](folder)
    (file,) = folder_of(root).glob(name)
    assert reads_or_refuses(folder, lambda: import_runs(root))

    @attack(examples)
    @given(garbled(file.read_bytes()))
    def damaged(content):
        file.write_bytes(content)
        reads_or_refuses(folder, lambda: import_runs(root))

    damaged()


@pytest.mark.parametrize("text", [BOMB, "[" * 5000, "run_id: [1, 2]\nrun_name: {a: b}\n", "3"])
def test_tricks_of_yaml_in_an_mlflow_store(tmp_path, text):
    store = WRITERS["mlflow-files"](tmp_path / "in")
    write(store / "1" / "run0" / "meta.yaml", text)
    found = reads_or_refuses(tmp_path / "in", lambda: import_runs(store))
    assert len(found.runs) == 8


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("mlflow-files", "1/run0/params/n_params"),
        ("mlflow-files", "1/run0/metrics/val_loss"),
        ("mlflow-files", "1/run0/meta.yaml"),
        ("mlflow-database", "mlflow.db"),
        ("ray-tune", "train_00000/result.json"),
        ("wandb", "wandb/offline-run-2026-0/run-run0.wandb"),
        ("tensorboard", "run0/events.out.tfevents.1"),
    ],
)
def test_no_link_leads_out_of_the_folder_of_a_tool(tmp_path, tool, name):
    folder = folder_of(WRITERS[tool](tmp_path / "in"))
    (tmp_path / CANARY).write_text("mine")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / CANARY)
    assert reads_or_refuses(folder, lambda: import_runs(folder)) is None
    with pytest.raises(StudyError, match="leads out of it"):
        import_runs(folder)


def test_a_link_to_a_folder_of_settings_is_refused(tmp_path):
    folder = WRITERS["mlflow-files"](tmp_path / "in")
    shutil.move(folder / "1" / "run0" / "params", tmp_path / "private")
    (folder / "1" / "run0" / "params").symlink_to(tmp_path / "private")
    with pytest.raises(StudyError, match="leads out of it"):
        import_runs(folder)


def test_what_wandb_itself_links_is_no_obstacle(tmp_path):
    """`wandb.save` links the files that it is given."""
    folder = WRITERS["wandb"](tmp_path / "in")
    saved = write(tmp_path / "model.pt", "weights")
    write(folder / "wandb" / "offline-run-2026-0" / "files" / "x", "").unlink()
    (folder / "wandb" / "offline-run-2026-0" / "files" / "model.pt").symlink_to(saved)
    assert len(import_runs(folder).runs) == 8


def test_json_that_is_nested_deeply(tmp_path):
    tune = WRITERS["ray-tune"](tmp_path / "in")
    nested = '{"a": ' * 900 + "1" + "}" * 900
    for name, text in (
        ("result.json", f'{{"loss": 1, "b": {nested}}}\n'),
        ("result.json", f'{{"loss": 1, "b": {DEEP}}}\n'),
        ("params.json", nested),
        ("params.json", DEEP),
        ("result.json", "[" * 100_000),
        ("result.json", "3\n[[1, 2]]\n"),
    ):
        write(tune / "train_00000" / name, text)
        reads_or_refuses(tune, lambda: import_runs(tune))
    for cell in (nested, "{" * 900 + "}" * 900, f"{{'a': {DEEP}}}"):
        table = write(tmp_path / "in" / "t" / "runs.csv", "")
        frame = pd.DataFrame({"flops": [1.0, 2.0], "loss": [2.0, 1.0], "config": [cell, "{}"]})
        frame.to_csv(table, index=False)
        reads_or_refuses(table.parent, lambda table=table: import_runs(table))
    wandb = WRITERS["wandb"](tmp_path / "in" / "w")
    record = field(17, field(4, field(1, field(1, "a") + field(16, nested))))
    (file,) = wandb.glob("wandb/offline-run-2026-0/*.wandb")
    file.write_bytes(log_of([record]))
    with pytest.raises(RunsError, match="nested"):
        import_runs(wandb)


def test_what_is_logged_under_our_own_names_does_not_replace_them(tmp_path):
    wandb = WRITERS["wandb"](tmp_path / "in")
    (file,) = wandb.glob("wandb/offline-run-2026-0/*.wandb")
    logged = {"status": ["a"], "run_id": {"b": 1}, "loss": 2.0, "train_flops": 1e12}
    summary = b"".join(field(1, item(2, name, value)) for name, value in logged.items())
    file.write_bytes(log_of([field(3, summary), field(18, b"")]))
    table = reads_or_refuses(wandb, lambda: import_runs(wandb)).runs.table
    assert "run0" in set(table["run_id"])
    assert set(table["status"]) <= {"done", "failed", "missing"}


def test_a_number_without_an_end_takes_no_hours(tmp_path):
    wandb = WRITERS["wandb"](tmp_path / "in")
    (file,) = wandb.glob("wandb/offline-run-2026-0/*.wandb")
    file.write_bytes(log_of([b"\xff" * 2_000_000]))
    with pytest.raises(RunsError, match="no end"):
        import_runs(wandb)


def test_a_view_in_a_database_computes_nothing(tmp_path):
    file = WRITERS["mlflow-database"](tmp_path)
    with closing(sqlite3.connect(file)) as store:
        store.executescript(
            "DROP TABLE params; CREATE VIEW Params AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
            "SELECT i + 1 FROM n) SELECT i AS run_uuid, i AS key, i AS value FROM n;"
        )
    with pytest.raises(RunsError, match="it has a view in place of a table"):
        import_runs(file)


def test_a_huge_file_of_a_tracker_is_refused_unread(tmp_path):
    tune = WRITERS["ray-tune"](tmp_path / "in")
    with (tune / "train_00000" / "result.json").open("wb") as file:
        file.truncate(50_000_000_000)  # takes no disk
    with pytest.raises(RunsError, match="50,000,000,000 bytes, more than"):
        import_runs(tune)
    assert json.loads((tune / "train_00001" / "params.json").read_text())
