"""A study on storage: resumed on an empty disk, held by one command, stopped when it is lost."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from clue_ray.corpus import cache
from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.layout.arrays import ARRAYS, VERSION
from clue_ray.corpus.store import open_corpus, share_corpus
from clue_ray.errors import CorpusError, StudyError
from clue_ray.spec.specs import RunSpec, read_study
from clue_ray.storage import lease, sync
from clue_ray.storage.files import list_files, push_files, read_file
from clue_ray.storage.lease import LEASE_FILE, Lease
from clue_ray.storage.sync import node_folder, working_folder
from clue_ray.study import mirror
from clue_ray.study import run as execute
from clue_ray.study.events import EVENTS_FILE, read_events
from clue_ray.study.mirror import StoredDirectory, fetch_study
from clue_ray.study.run import plan_study, run_study, train_point
from clue_ray.training.counters import describe_run
from clue_ray.training.tensorboard import EVENT_FILES


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """This test's own node disk, and leases that change hands in tenths of seconds."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    for name, seconds in {
        "RENEW": 0.05,
        "SETTLE": 0.1,
        "EXPIRE": 0.4,
        "POLL": 0.1,
        "LOST": 0.3,
    }.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    return tmp_path / "disk"


@pytest.fixture
def place(tmp_path):
    """Storage: a URI, so that nothing takes it for a folder."""
    (tmp_path / "lake").mkdir()
    return f"file://{tmp_path}/lake"


def put(folder: Path, **files):
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def wait_until(done):
    deadline = time.monotonic() + 20
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done()


def test_a_living_holder_keeps_the_storage(place):
    with Lease(place) as first:
        with pytest.raises(
            StudyError,
            match=rf"is in use by process {os.getpid()} on \S+, lease last renewed at 20",
        ):
            Lease(place).__enter__()
        assert not first.failure
    assert read_file(place, LEASE_FILE) is None
    with Lease(place):
        pass


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_dead_holder_is_taken_over(place, tmp_path, where):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = {
        "id": "x",
        "pid": gone.pid,
        "host": lease.socket.gethostname(),
        "renewed_at": "then",
    }  # names may be shared
    left["pid_scope"] = lease.pid_scope() if where == "here" else "another machine's"
    (tmp_path / "lake" / LEASE_FILE).write_text(json.dumps(left))
    start = time.monotonic()
    with Lease(place):
        assert (time.monotonic() - start > lease.EXPIRE_SECONDS) == (where == "elsewhere")


def test_the_last_of_two_simultaneous_leases_holds(place, tmp_path, monkeypatch):
    other = {"id": "x", "pid": 1, "host": "another", "renewed_at": "now"}
    monkeypatch.setattr(
        lease.time,
        "sleep",
        lambda _: (tmp_path / "lake" / LEASE_FILE).write_text(json.dumps(other)),
    )
    with pytest.raises(StudyError, match="is in use by process 1 on another"):
        Lease(place).__enter__()


def test_a_lease_taken_over_and_a_lost_storage_are_failures(place, tmp_path, monkeypatch):
    with Lease(place) as held:
        (tmp_path / "lake" / LEASE_FILE).write_text(
            json.dumps({"id": "x", "pid": 1, "host": "another", "renewed_at": "now"})
        )
        wait_until(lambda: held.failure)
        assert "is in use by process 1 on another" in held.failure
    assert read_file(place, LEASE_FILE)  # the other's stays
    (tmp_path / "lake" / LEASE_FILE).unlink()
    with Lease(place) as held:
        monkeypatch.setattr(
            lease,
            "write_file",
            lambda *_: (_ for _ in ()).throw(OSError("AWS Error NO_SUCH_BUCKET")),
        )
        wait_until(lambda: held.failure)
    assert "has been unavailable for" in held.failure
    assert "the bucket does not exist" in held.failure
    assert "run the same command again" in held.failure


def test_a_worker_s_folder_reaches_storage_meanwhile_and_the_record_last(place, monkeypatch):
    pushed = []

    def push(folder, names, where):
        pushed.extend(names)
        push_files(folder, pushed[-1:] and names, where)

    monkeypatch.setattr(sync, "push_files", push)
    monkeypatch.setattr(sync, "SYNC_SECONDS", 0.05)
    with working_folder(f"{place}/run", last="record.json") as folder:
        put(folder, log_dot_txt="begun")
        wait_until(lambda: "log.txt" in pushed)
        put(
            folder,
            record_dot_json="{}",
            a_dot_json="{}",
            z_dot_json="{}",
            log_dot_txt="begun, ended",
        )
    assert pushed[-1] == "record.json" or pushed.index("record.json") > pushed.index("z.json")
    assert read_file(f"{place}/run", "log.txt") == b"begun, ended"
    assert not folder.exists()
    with working_folder(f"{place}/run", fetch=r"log\.txt") as again:
        assert [file.name for file in again.glob("[!.]*")] == ["log.txt"]


def test_the_folder_of_a_killed_process_is_deleted_and_that_of_a_living_one_is_not(
    place, node, monkeypatch
):
    monkeypatch.setattr(sync, "SETTLED_SECONDS", -1.0)
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from clue_ray.storage.sync import working_folder\n"
        "with working_folder(sys.argv[2]) as folder: print(folder); os._exit(9)"
    )
    command = [sys.executable, "-c", code, str(node), f"{place}/killed"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    left = Path(ended.stdout.strip())
    assert left.is_dir()
    with working_folder(f"{place}/one") as one, working_folder(f"{place}/two") as two:
        assert not left.exists()
        assert one.is_dir()
        assert two.is_dir()


def test_event_files_of_the_run_before_are_replaced(place):
    with working_folder(f"{place}/run") as folder:
        put(folder, **{"events.out.tfevents.1.host": "a", "log_dot_txt": "begun"})
    with working_folder(f"{place}/run", r"log\.txt", stale=EVENT_FILES) as folder:
        put(folder, **{"events.out.tfevents.2.host": "b"})
    assert sorted(list_files(f"{place}/run")) == ["events.out.tfevents.2.host", "log.txt"]


def test_a_folder_that_others_may_write_is_not_used(node):
    folder = node_folder("work")
    folder.parent.chmod(0o777)
    with pytest.raises(StudyError, match="can be written by others"):
        node_folder("work")


def test_a_corpus_is_fetched_once_and_again_when_damaged(corpus, place, monkeypatch):
    shared = share_corpus(corpus, f"{place}/corpora/c")
    assert shared.place == f"{place}/corpora/c"
    assert shared.digest == corpus.digest
    shutil.rmtree(shared.path)
    fetched, fetch = [], cache.fetch_corpus
    monkeypatch.setattr(
        cache, "fetch_corpus", lambda *a: (fetched.append(a), time.sleep(0.3), fetch(*a))
    )
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(open_corpus(shared.place))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(fetched) == 1
    assert (opened[0].events == corpus.events).all()
    assert opened[0].summary()["path"] == shared.place
    with pytest.raises(CorpusError, match="is not a prepared corpus"):
        open_corpus(f"{place}/corpora/none")


def test_a_damaged_file_of_a_cache_or_of_storage(corpus, tmp_path, place):
    lake = tmp_path / "lake" / "c"
    share_corpus(corpus, f"{place}/c")
    events, shard = "train/events.i4", "shards/shard-00000.parquet"
    manifest = json.loads((lake / "corpus.json").read_text())
    manifest["files"] = {shard: sha256(lake / shard)}
    (lake / "corpus.json").write_text(json.dumps(manifest))
    put(lake, tune__evil_dot_pkl="x", shards__evil_dot_sh="x", train__evil_dot_sh="x")
    cached = open_corpus(f"{place}/c")
    assert len(cached.events)
    assert not list(cached.path.rglob("evil*"))

    def hash_events(**options) -> str:
        opened = open_corpus(f"{place}/c", **options)
        assert len(opened.events)
        return sha256(opened.path / events)

    with open(cached.path / events, "r+b") as file:
        file.write(b"junk")
    assert hash_events(verify=False) != sha256(lake / events)
    assert hash_events() == sha256(lake / events)
    os.truncate(cached.path / events, 6)  # is seen without verifying: who maps it would be killed
    assert hash_events(verify=False) == sha256(lake / events)
    (lake / shard).write_bytes(b"junk")  # changed behind the manifest
    with pytest.raises(CorpusError, match=r"shard-00000\.parquet is damaged .* at file:"):
        cache.fetch_shards(f"{place}/c", manifest, cached.path, "shards")
    assert not (cached.path / shard).exists()  # or the next call would take it for a good one
    for place_of_it in (lake, cached.path):
        (place_of_it / events).write_bytes(b"junk")
    with pytest.raises(CorpusError, match=r"events\.i4 is damaged .* at file:"):
        hash_events()


def test_a_node_fetches_what_training_needs_and_shards_on_demand(corpus, place):
    fetched = share_corpus(corpus, f"{place}/c")
    assert {path.name for path in fetched.path.iterdir()} == {
        "corpus.json",
        "tokenizer.json",
        "train",
    }
    layout = fetched.path / "train"
    assert [file.name for file in layout.iterdir()] == ["layout.json"]
    assert (fetched.events == corpus.events).all()
    assert (open_corpus(fetched.place).user_ids == corpus.user_ids).all()
    assert {file.name for file in layout.iterdir()} == {
        *("layout.json", "events.i4", "user_ids.arrow")
    }
    assert fetched.later_events().num_rows == 0
    cache.fetch_shards(fetched.place, fetched.manifest, fetched.path, "items")
    assert (fetched.path / "items" / "shard-00000.parquet").exists()
    assert not (fetched.path / "shards").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_shards_of_another_log_at_the_same_place_are_not_read(corpus, place, tmp_path, whole):
    """A preparation that is interrupted leaves shards, which the next one need not replace."""
    share_corpus(corpus, f"{place}/c")
    lake = tmp_path / "lake" / "c"
    if not whole:
        shutil.rmtree(lake / "train")
    for kind in ("shards", "items", "later"):
        (lake / kind).mkdir(exist_ok=True)
        shutil.copy(lake / "shards" / "shard-00000.parquet", lake / kind / "shard-00099.parquet")
    shutil.rmtree(node_folder("corpora"))
    for opened in (open_corpus(lake, verify=False), open_corpus(f"{place}/c")):
        assert (opened.events == corpus.events).all()
        assert opened.later_events().num_rows == 0
        assert not (opened.path / "later").exists() or opened.path == lake


def test_a_recipe_of_another_preparation_is_not_used(corpus, place, tmp_path):
    share_corpus(corpus, f"{place}/c")
    facts, pieces = {"version": VERSION, "digest": "another"}, {name: [] for name in ARRAYS}
    recipe = {"facts": facts, "pieces": pieces, "files": {}}
    (tmp_path / "lake" / "c" / "train" / "recipe.json").write_text(json.dumps(recipe))
    shutil.rmtree(node_folder("corpora"))
    assert (open_corpus(f"{place}/c").events == corpus.events).all()


def test_a_corpus_without_a_layout_on_storage_gets_one_in_the_cache(corpus, place, tmp_path):
    share_corpus(corpus, f"{place}/c")
    shutil.rmtree(tmp_path / "lake" / "c" / "train")
    manifest = json.loads((tmp_path / "lake" / "c" / "corpus.json").read_text())
    (tmp_path / "lake" / "c" / "corpus.json").write_text(json.dumps(manifest | {"key": "other"}))
    again = open_corpus(f"{place}/c")
    assert (again.events == corpus.events).all()
    file = again.path / "train" / "layout.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 0}))
    assert (open_corpus(f"{place}/c").events == corpus.events).all()


def test_a_full_disk_gives_up_the_corpora_that_were_opened_least_recently(
    corpus, place, tmp_path, monkeypatch
):
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    opened = []
    for name in "abc":
        share_corpus(corpus, f"{place}/{name}")
        (tmp_path / "lake" / name / "corpus.json").write_text(json.dumps(manifest | {"key": name}))
        opened.append(open_corpus(f"{place}/{name}"))
        os.utime(opened[-1].path.with_suffix(".lock"), (len(opened), len(opened)))
    open_corpus(f"{place}/a")  # now b is the oldest
    share_corpus(corpus, f"{place}/d")
    (tmp_path / "lake" / "d" / "corpus.json").write_text(json.dumps(manifest | {"key": "d"}))
    events, folders = opened[1].events, [closed.path for closed in opened]
    opened.clear()
    free = iter([0, 10**9])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=next(free, 0)))
    open_corpus(f"{place}/d")
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (events == corpus.events).all()  # what is mapped stays
    with pytest.raises(CorpusError, match="set TMPDIR to a larger disk"):
        open_corpus(f"{place}/b")


def test_a_full_disk_keeps_the_corpora_that_are_open(corpus, place, tmp_path, monkeypatch):
    """A run reads the tokenizer, and may map an array, when another study has filled the disk."""
    mine = share_corpus(corpus, f"{place}/a")
    code = "import sys; from clue_ray.corpus.store import open_corpus; found = "
    code += "open_corpus(sys.argv[1]); print(found.path, flush=True); sys.stdin.readline()"
    share_corpus(corpus, f"{place}/b")
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    (tmp_path / "lake" / "b" / "corpus.json").write_text(json.dumps(manifest | {"key": "b"}))
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{place}/b"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "disk")},
    )
    theirs = Path(other.stdout.readline().strip())
    assert theirs.parent == mine.path.parent
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=0))
        with pytest.raises(CorpusError, match="Not enough free disk"):
            cache._make_room(1, node_folder("corpora") / "another")
        assert (theirs / "tokenizer.json").exists()
        other.communicate("\n")
        with pytest.raises(CorpusError, match="Not enough free disk"):
            cache._make_room(1, node_folder("corpora") / "another")
        assert not theirs.exists()
    assert (mine.path / "tokenizer.json").exists()
    assert (mine.events == corpus.events).all()


@pytest.fixture
def study(write_study, planted_log, corpus):
    return read_study(
        write_study(planted_log, corpus=str(corpus.path), axes={"sequence_length": [2, 4]})
    )


def leave_run(directory, study, corpus, length, status="done") -> str:
    """Write a run as if it had been trained."""
    run = RunSpec(
        **{**study.base.model_dump(mode="json", exclude={"resources"}), "sequence_length": length}
    )
    description = describe_run(run, corpus, study.evaluation, study.name)
    directory.write_run(run, description.to_record(status, loss=2.0), [])
    return description.run_id


def test_what_a_command_wrote_is_not_overwritten_by_what_it_pushed_before(
    study, corpus, place, tmp_path
):
    for command in ("first", "second"):
        directory = StoredDirectory(tmp_path / "a" / "tiny", place)
        with directory.held():
            directory.claim(study, corpus.digest)
            directory.publish()  # as before training: the baselines of the command before
            put(directory.path, baselines_dot_json=json.dumps([command]))
            directory.write_tables([])
            assert json.loads((directory.path / "baselines.json").read_text()) == [command]
        assert json.loads(read_file(f"{place}/tiny", "baselines.json")) == [command]


def test_a_failed_score_travels_with_its_run(study, corpus, place, tmp_path):
    first = StoredDirectory(tmp_path / "a" / "tiny", place)
    with first.held():
        first.claim(study, corpus.digest)
        run_id = leave_run(first, study, corpus, 2)
        first.write_failure(run_id, "transfer/kids.failed.json", {"error": "damaged"})
    second = StoredDirectory(tmp_path / "b" / "tiny", place)
    with second.held():
        file = second.run_path(run_id) / "transfer" / "kids.failed.json"
        assert json.loads(file.read_text()) == {"error": "damaged"}
        second.write_failure(run_id, "transfer/kids.failed.json", None)
        second.write_failure(run_id, "transfer/never.failed.json", None)
        assert not file.exists()
    assert "transfer/kids.failed.json" not in list_files(f"{place}/tiny/runs/{run_id}")


def test_storage_brings_home_what_is_expected_and_nothing_else(study, corpus, place, tmp_path):
    first = StoredDirectory(tmp_path / "a" / "tiny", place)
    with first.held():
        first.claim(study, corpus.digest)
        run_id = leave_run(first, study, corpus, 2)
    lake = tmp_path / "lake" / "tiny"
    put(lake, tune__inline__tuner_dot_pkl="evil", runs__0a__x_dot_pkl="evil", evil_dot_sh="evil")
    put(
        lake / "runs" / run_id,
        checkpoints__step_00000001_dot_pt="evil",
        encoder__weights_dot_safetensors="large",
    )
    second = StoredDirectory(tmp_path / "b" / "tiny", place)
    with second.held():
        assert second.ended_run_ids() == {run_id}
        assert second.read_record(run_id).loss == 2.0
        assert "evil" not in " ".join(str(file) for file in second.path.rglob("*"))
        names = {
            str(file.relative_to(second.path)) for file in second.path.rglob("*") if file.is_file()
        }
        run = {f"runs/{run_id}/{name}.json" for name in ("spec", "curve", "record")}
        assert names == {".mirror.json", "owner.json", "study.yaml", *run}
        second.reopen(run_id)
    assert not (lake / "runs" / run_id / "record.json").exists()


def test_newer_events_survive_a_death_while_storage_is_fetched(
    study, corpus, place, tmp_path, monkeypatch
):
    directory, fetch = StoredDirectory(tmp_path / "a" / "tiny", place), mirror.fetch_files
    with directory.held():
        directory.claim(study, corpus.digest)
        directory.events.add("pushed")
    directory.events.add("newer")  # and the command is killed before it pushes this one
    log, lake = directory.path / EVENTS_FILE, tmp_path / "lake" / "tiny"
    put(lake, runs_dot_csv="run_id,loss\na,2\n")
    with (lake / EVENTS_FILE).open("ab") as there:
        there.write(b'{"time": "2020-01-01", "event": "elsewhere"}\n')

    def die(where, names, folder):
        if names != ["owner.json"]:
            raise KeyboardInterrupt
        fetch(where, names, folder)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "fetch_files", die)
        with pytest.raises(KeyboardInterrupt), directory.held():
            pass
    expected = ["elsewhere", "pushed", "newer"]
    assert [event["event"] for event in read_events(log)] == expected
    with directory.held():
        directory.claim(study, corpus.digest)
    assert [event["event"] for event in read_events(lake / EVENTS_FILE)] == expected


def test_sealed_forecasts_travel_and_nothing_leads_out_of_their_folder(
    study, corpus, place, tmp_path
):
    first = StoredDirectory(tmp_path / "a" / "tiny", place)
    seal = "forecasts/loss-at-1e+18-0123abcd.json"
    with first.held():
        first.claim(study, corpus.digest)
        put(first.path / "forecasts", **{"loss-at-1e+18-0123abcd_dot_json": "{}", "note": "mine"})
    lake = tmp_path / "lake" / "tiny"
    assert seal in list_files(first.home)
    put(lake / "forecasts", x_dot_sh="evil", _dot_hidden_dot_json="evil", below__x_dot_json="evil")
    second = fetch_study(place, "tiny", tmp_path / "b")
    names = [str(file.relative_to(second.path)) for file in second.path.glob("forecasts/**/*")]
    assert names == [seal]
    for name in (
        "forecasts/../x.json",
        "forecasts//x.json",
        "forecasts/a/b.json",
        "forecasts/..json",
    ):
        assert not mirror.MIRRORED.fullmatch(name)


def test_runs_from_before_there_was_storage_are_handed_over(study, corpus, place, tmp_path):
    alone = execute.open_directory(tmp_path / "a" / "tiny", None)
    alone.claim(study, corpus.digest)
    run_id = leave_run(alone, study, corpus, 2)
    (alone.run_path(run_id) / "encoder").mkdir()
    (alone.run_path(run_id) / "encoder" / "encoder.json").write_text("{}")
    stored = StoredDirectory(alone.path, place)
    with stored.held():
        assert "owner.json" not in list_files(
            stored.home
        )  # nothing before the study is known to be this one
        stored.claim(study, corpus.digest)
    assert f"runs/{run_id}/encoder/encoder.json" in list_files(stored.home)
    assert fetch_study(place, "tiny", tmp_path / "home").ended_run_ids() == {run_id}


@pytest.mark.parametrize(("status", "kept"), [("failed", False), ("done", True)])
def test_a_failed_run_tried_again_elsewhere_is_forgotten_here(
    study, corpus, place, tmp_path, status, kept
):
    one, other = (StoredDirectory(tmp_path / name / "tiny", place) for name in "ab")
    with one.held():
        one.claim(study, corpus.digest)
        run_id = leave_run(one, study, corpus, 2, status)
    with other.held():
        assert other.ended_run_ids() == {run_id}
    with one.held():
        one.reopen(run_id)
    with other.held():
        assert (run_id in other.ended_run_ids()) == kept
        other.claim(study, corpus.digest)
    assert (f"runs/{run_id}/record.json" in list_files(one.home)) == kept


def test_what_is_refused_is_handed_to_nobody(study, corpus, place, tmp_path):
    folder = tmp_path / "a" / "tiny"
    folder.mkdir(parents=True)
    (folder / "customers.csv").write_text("secret")
    directory = StoredDirectory(folder, place)
    with pytest.raises(StudyError, match="is not empty and holds no study"), directory.held():
        directory.claim(study, corpus.digest)
    assert not list_files(directory.home)


def test_a_run_that_storage_did_not_take_has_not_ended(study, corpus, place, tmp_path, monkeypatch):
    directory = StoredDirectory(tmp_path / "a" / "tiny", place)
    monkeypatch.setattr(
        mirror, "push_files", lambda *_: (_ for _ in ()).throw(StudyError("storage refused"))
    )
    with pytest.raises(StudyError, match="storage refused"):
        leave_run(directory, study, corpus, 2)
    assert directory.ended_run_ids() == set()


def test_another_study_is_not_mixed_in(study, corpus, place, tmp_path):
    with StoredDirectory(tmp_path / "a" / "tiny", place).held() as _:
        StoredDirectory(tmp_path / "a" / "tiny", place).claim(study, corpus.digest)
    other = execute.open_directory(tmp_path / "b" / "tiny", None)
    other.claim(study, "another")
    before = (other.path / "owner.json").read_bytes()
    with (
        pytest.raises(StudyError, match="hold different studies"),
        StoredDirectory(other.path, place).held(),
    ):
        pass
    assert (other.path / "owner.json").read_bytes() == before
    with pytest.raises(StudyError, match="holds no study; check --storage"):
        fetch_study(place, "none", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_study_goes_on_from_storage_alone_and_stops_when_it_is_lost(
    study, place, tmp_path, monkeypatch
):
    first = run_study(study, tmp_path / "a", storage=place).table
    assert first["error"].tolist() == ["", ""]
    files = list_files(f"{place}/tiny")
    for run_id in first["run_id"]:
        assert {
            f"runs/{run_id}/{name}" for name in ("record.json", "curve.json", "log.txt")
        } <= set(files)
        assert any(name.startswith(f"runs/{run_id}/checkpoints/step_") for name in files)
    assert {"runs.csv", "fits.json", "report/index.html"} <= set(files)
    assert not any(name.startswith("tune/") for name in files)

    grown = study.model_copy(update={"axes": {"sequence_length": [2, 4, 8]}})
    monkeypatch.setattr(StoredDirectory, "failure", "Storage is lost; run the same command again.")
    with pytest.raises(StudyError, match="Storage is lost"):
        run_study(grown, tmp_path / "b", storage=place)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    again = run_study(study, tmp_path / "c", storage=place).table
    pd.testing.assert_frame_equal(again, first)  # the same seconds: nothing was trained again
    assert not plan_study(study, tmp_path / "d", storage=place).pending
    record, folder = train_point(study, {"sequence_length": 8}, tmp_path / "d", storage=place)
    assert record.status == "done"
    assert (folder / "record.json").exists()
    assert f"runs/{record.run_id}/record.json" in list_files(f"{place}/tiny")
