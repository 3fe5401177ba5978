"""Links in a folder of a stranger: none that leads out of it is followed."""

import os
import shutil

import pandas as pd
import pytest

from clue_ray.cli.terminal import select_runs
from clue_ray.corpus.store import open_corpus
from clue_ray.errors import StudyError
from clue_ray.report.browse import Server
from clue_ray.report.read import read_directory
from clue_ray.runs import read_runs
from clue_ray.storage.files import list_files
from clue_ray.storage.links import check_links
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.mirror import StoredDirectory, open_directory
from clue_ray.transfer.encoder_file import read_encoder

REFUSED = r"holds a link that leads out of it \('.*'\); replace it with a copy"


@pytest.fixture
def study(tmp_path):
    """A study directory with a table, next to which a secret lies."""
    (tmp_path / "secret.txt").write_text("mine")
    folder = tmp_path / "study"
    (folder / "runs" / "a").mkdir(parents=True)
    pd.DataFrame({"run_id": ["a"], "loss": [2.5]}).to_parquet(folder / "runs.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("study.yaml", "../secret.txt"),
        ("runs/a/record.json", "/etc/hostname"),
        ("report", "../"),  # a page would be written there
        ("forecasts", "/nowhere/yet"),
        ("runs/b", "../../../"),
    ],
)
def test_no_reader_follows_a_link_out_of_a_study(study, name, target):
    (study / name).symlink_to(target)
    stored = StoredDirectory(study.parent / "mirror", str(study.parent))
    stored.home = str(study)
    readers = [
        lambda: read_directory(study),
        lambda: read_runs(study),
        lambda: select_runs(study),
        lambda: Server(study, 0),
        lambda: StudyDirectory(study).held().__enter__(),
        lambda: stored.fetch(),
        lambda: list_files(f"file://{study}"),
        lambda: read_encoder(study),
    ]
    for read in readers:
        with pytest.raises(StudyError, match=REFUSED):
            read()


def test_a_page_is_not_served_once_a_link_has_come(study):
    with Server(study, 0) as server:
        assert b"2.5" in server.live.html()
        (study / "baselines.json").symlink_to("../secret.txt")
        with pytest.raises(StudyError, match=REFUSED):
            server.live.html()


def test_links_within_a_folder_and_to_the_folder_itself_are_followed(study, tmp_path):
    (study / "again").symlink_to("runs/a")
    (study / "whole").symlink_to(study)
    (study / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to(study)
    for folder in (study, tmp_path / "link"):
        assert len(read_runs(folder)) == 1
    check_links(study / "runs.parquet")
    check_links(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "shards/shard-00000.parquet", "train/events.i4"]
)
def test_a_corpus_with_a_link_to_elsewhere_is_refused(corpus, tmp_path, name):
    folder = tmp_path / "in"
    shutil.copytree(corpus.path, folder)
    assert len(open_corpus(folder).events)  # lays out train/
    shutil.move(folder / name, tmp_path / "moved")
    (folder / name).symlink_to(tmp_path / "moved")
    with pytest.raises(StudyError, match=REFUSED):
        open_corpus(folder)


def test_a_folder_that_cannot_be_listed_is_refused(study, monkeypatch):
    """Its files open by their names all the same, and may be links."""
    scan = os.scandir

    def list_but_one(folder):
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    check_links(study)
    monkeypatch.setattr(os, "scandir", list_but_one)
    with pytest.raises(StudyError, match=r"cannot be searched for links .*/runs/a.*readable"):
        check_links(study)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_link_in_a_folder_without_the_right_to_list_it(study):
    (study / "runs" / "a" / "record.json").symlink_to("/etc/hostname")
    (study / "runs" / "a").chmod(0o311)
    with pytest.raises(StudyError, match="cannot be searched for links"):
        check_links(study)


def test_a_folder_that_is_deleted_meanwhile_is_passed_over(study, monkeypatch):
    scan = os.scandir

    def delete_first(folder):
        if str(folder).endswith("/a"):
            shutil.rmtree(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", delete_first)
    check_links(study)
    assert not (study / "runs" / "a").exists()


def test_only_links_of_the_names_that_are_read_count(study):
    (study / "runs" / "data").symlink_to("/")
    check_links(study, "*.wandb")
    (study / "runs" / "a" / "run-a.wandb").symlink_to("/etc/hostname")
    with pytest.raises(StudyError, match=r"leads out of it .*run-a\.wandb"):
        check_links(study, "*.wandb")


@pytest.mark.parametrize("storage", [None, "lake"])
def test_a_plan_follows_no_link_out_of_the_local_folder(study, tmp_path, storage):
    """`clue-ray plan` reads the folder, and writes what storage has into it."""
    (study / "grown.json").symlink_to("../secret.txt")
    (study / "runs" / "a" / "record.json").symlink_to("../../../secret.txt")
    directory = open_directory(study, storage and str(tmp_path / storage))
    with pytest.raises(StudyError, match=REFUSED):
        directory.fetch()
