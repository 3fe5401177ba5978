"""YAML and JSON files by strangers: studies, corpora, tasks, records, plans, curves, seals."""

import json
import runpy
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given

from clue_ray.cli.options import make_corpus_spec
from clue_ray.corpus.planted import PlantedSpec
from clue_ray.corpus.store import read_manifest
from clue_ray.errors import SpecError
from clue_ray.report.read import read_directory
from clue_ray.runs import read_current_runs, read_record
from clue_ray.scaling.forecasting.seal import _hash, judge_seals
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import read_study
from clue_ray.spec.yaml import read_yaml
from clue_ray.storage.files import read_json
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.events import read_events
from clue_ray.transfer.encoder_file import find_encoder, read_card
from clue_ray.transfer.tasks.spec import read_task
from tests.described import make_description
from tests.fuzz.hostile import (
    CANARY,
    EXAMPLES,
    MOST_MEMORY,
    as_json,
    attack,
    changed,
    garbled,
    reads_or_refuses,
)

STUDY = {
    "name": "tiny",
    "question": "Does it learn?",
    "corpus": {
        "events": "log.parquet",
        "text": "{title}",
        "split": {"validation": 0.1, "test": 0.2},
    },
    "base": {
        "encoder": {"size": "xxs", "output_width": 16},
        "train": {"global_batch_size": 16, "steps": 6},
        "sequence_length": 4,
    },
    "axes": {"sequence_length": [2, 4], "encoder.size": ["xxs", "xs"]},
    "evaluation": {"candidates": 16, "every": 0.5},
    "resources": {"workers": 1},
    "fit": {"laws": ["power_law", "log_linear"]},
}  # fmt: skip
TASK = {
    "name": "next",
    "question": "Which item is next?",
    "events": "log.parquet",
    "services": ["news"],
    "next_item": {"service": "shop"},
}
RECORD = make_description(run_id="0123456789ab").to_record("done", loss=2.5, steps=6).model_dump()
PLAN = {"study": "tiny", "concurrency": 1, "runs": [{**RECORD, "expected_seconds": 3.0}]}
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
LOOP = "a: &a [*a]\n"
YAMLS = [
    BOMB,
    LOOP,
    "[" * 5_000,
    "a: " * 3_000,
    "{a: " * 400 + "}" * 400,
    f"a: {'9' * 6_000}",
    "a: 2026-99-99",
    "a: !!python/object/apply:os.system [id]",
    "a: !!int x",
    "? [a, b]\n: 1",
    "a: !!timestamp x",
    "a: !!binary ''",
    "<<: 3",
    "\x00",
    "a: &a {<<: *a}",
    "--- a\n--- b",
    "%YAML 9.9\n--- a",
]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_bombs_and_tricks_of_yaml_are_refused_at_once(tmp_path, text):
    file = write(tmp_path / "in" / "bomb.yaml", text)
    started = time.process_time()
    for read in (read_study, read_task, read_yaml, read_card):
        reads_or_refuses(tmp_path / "in", lambda read=read: read(file))
    assert time.process_time() - started < 20  # a bomb takes hours or gigabytes


def test_names_within_bounds_are_read(tmp_path):
    file = write(tmp_path / "names.yaml", "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}, e: 2}\n")
    assert read_yaml(file) == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 1, "e": 2}}
    with pytest.raises(SpecError, match="expand to more than 1,000,000 values"):
        read_yaml(write(file, BOMB))


def test_a_huge_yaml_is_refused_unread(tmp_path):
    file = tmp_path / "huge.yaml"
    with file.open("wb") as stream:
        stream.truncate(50_000_000_000)  # without holes it would not fit the memory
    with pytest.raises(SpecError, match="it has 50,000,000,000 bytes, more than 10,000,000"):
        read_yaml(file)


@EXAMPLES
@pytest.mark.parametrize("kind", ["study", "task", "corpus", "planted"])
def test_yaml_of_a_stranger(tmp_path, kind, examples):
    file = tmp_path / "in" / "file.yaml"
    valid = {"study": STUDY, "task": TASK, "corpus": STUDY["corpus"], "planted": {"users": 9}}[kind]
    readers = {
        "study": lambda: expand(read_study(file)),
        "task": lambda: read_task(file),
        "corpus": lambda: make_corpus_spec([], None, None, file),
        "planted": lambda: PlantedSpec.parse(read_yaml(file), str(file)),
    }

    @attack(examples)
    @given(changed(valid))
    def mistyped(document):
        write(file, yaml.dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))
        reads_or_refuses(tmp_path / "in", readers[kind])

    @attack(examples)
    @given(garbled(yaml.safe_dump(valid).encode()))
    def damaged(content):
        write(file, content)
        reads_or_refuses(tmp_path / "in", readers[kind])

    mistyped()
    damaged()


def study_directory(folder: Path) -> Path:
    """Write the files of a finished study of one run."""
    study = folder / "tiny"
    write(study / "study.yaml", yaml.safe_dump(STUDY))
    write(study / "plan.json", as_json(PLAN))
    run = study / "runs" / RECORD["run_id"]
    write(run / "record.json", as_json(RECORD))
    write(run / "curve.json", as_json([{"step": 6, "loss": 2.5}]))
    return study


READERS = {
    "plan.json": (PLAN, lambda study: read_current_runs(study)),
    "record.json": (RECORD, lambda study: read_record(study / "runs/0123456789ab/record.json")),
    "curve.json": (
        [{"step": 6, "loss": 2.5, "train_flops": 1e9}],
        lambda study: StudyDirectory(study).read_curve("0123456789ab"),
    ),
    "grown.json": (
        {"points": [{"sequence_length": 4}]},
        lambda study: read_json(study / "grown.json"),
    ),
    "events.jsonl": ({"event": "run_started"}, lambda study: read_events(study / "events.jsonl")),
}  # fmt: skip


def place_of(study: Path, name: str) -> Path:
    run = study / "runs" / "0123456789ab"
    return run / name if name in {"record.json", "curve.json"} else study / name


@EXAMPLES
@pytest.mark.parametrize("name", READERS)
def test_json_of_a_study(tmp_path, name, examples):
    study = study_directory(tmp_path / "in")
    valid, read = READERS[name]
    file = place_of(study, name)

    def reads(content):
        write(file, content)
        reads_or_refuses(study, lambda: read(study))

    @attack(examples)
    @given(changed(valid))
    @example({"runs": [{"run_id": f"../../../{CANARY}"}]})
    def mistyped(document):
        reads(as_json(document))

    @attack(examples)
    @given(garbled(as_json(valid)))
    @example(b"[" * 100_000)
    @example(b"9" * 10_000)
    @example(b"\xff\xfe")
    def damaged(content):
        reads(content)

    mistyped()
    damaged()


def test_a_run_id_leads_to_no_other_folder(tmp_path):
    study = study_directory(tmp_path / "in")
    write(tmp_path / "in" / "else" / "record.json", as_json(RECORD))
    write(study / "plan.json", as_json({"runs": [{**RECORD, "run_id": "../../else"}]}))
    table = reads_or_refuses(study, lambda: read_current_runs(study, skip_damaged=True))
    assert table is None or not (table.table["status"] == "done").any()


@EXAMPLES
@pytest.mark.parametrize(
    "name", ["plan.json", "corpus.json", "baselines.json", "transfer.json", "study.yaml"]
)
def test_a_page_reads_what_it_can(tmp_path, name, examples):
    study = study_directory(tmp_path / "in")
    write(study / "runs.csv", "run_id,status,train_flops,loss\n0123456789ab,done,1e9,2.5\n")
    (study / "plan.json").unlink()
    valid = {
        "plan.json": PLAN,
        "study.yaml": STUDY,
        "corpus.json": {"users": 9, "rejected": {"no user": 1}, "bayes_loss": {"4": 2.0}},
        "baselines.json": {"baselines": [{"name": "b", "loss": 2.0, "loss_candidates": 16}]},
        "transfer.json": {"task": {"0123456789ab": "transfer/x.json"}},
    }[name]
    import pandas as pd

    pd.read_csv(study / "runs.csv").to_parquet(study / "runs.parquet")

    @attack(examples)
    @given(changed(valid))
    def attacked(document):
        write(study / name, as_json(document))
        reads_or_refuses(study, lambda: read_directory(study))

    attacked()


@EXAMPLES
def test_manifest_card_and_seal(tmp_path, examples):
    folder = tmp_path / "in"
    manifest = {
        "digest": "0123456789ab",
        "services": ["a", "b"],
        "vocab_size": 300,
        "max_item_tokens": 9,
        "tokenizer_sha256": "0" * 64,
        "files": {"shards/shard-00000.parquet": "0" * 64},
        "spec": {"split": {"test": 0.2, "validation": 0.1}},
        "rejected": {},
    }

    @attack(examples)
    @given(changed(manifest))
    @example({**manifest, "files": {f"../{CANARY}": "0"}})
    def manifests(document):
        write(folder / "corpus.json", as_json(document))
        reads_or_refuses(folder, lambda: read_manifest(folder))

    @attack(examples)
    @given(changed({"format": 2, "run_id": "a", "run": STUDY["base"], "services": ["a"]}))
    def cards(document):
        write(folder / "encoder.json", as_json(document))
        reads_or_refuses(folder, lambda: read_card(folder))

    @attack(examples)
    @given(changed(RECORD))
    def finished_runs(document):
        write(folder / "run" / "record.json", as_json(document))
        write(folder / "run" / "spec.json", as_json(STUDY["base"]))
        write(folder.parent / "corpus.json", as_json({"path": str(folder)}))
        reads_or_refuses(folder, lambda: find_encoder(folder / "run"))

    manifests()
    cards()
    (folder / "encoder.json").unlink()
    finished_runs()


@EXAMPLES
def test_sealed_forecasts(tmp_path, examples):
    study = study_directory(tmp_path / "in")
    seal = {
        "x": "steps",
        "y": "loss",
        "at": 1e12,
        "value": 2.0,
        "intervals": {"0.8": [1.9, 2.1]},
        "runs": [RECORD["run_id"]],
        "table_sha256": _hash([(RECORD["run_id"], 6.0, 2.5)]),
        "engine_sha256": "0" * 64,
        "clue_ray_version": "0.1.0",
        "sealed_at": "2026-11-22T10:00:00+00:00",
    }

    @attack(examples)
    @given(changed(seal))
    def attacked(document):
        if isinstance(document, dict):  # signed by whoever wrote it
            with suppress(ValueError, TypeError):
                unsigned = {name: value for name, value in document.items() if name != "sha256"}
                document = {**unsigned, "sha256": _hash(unsigned)}
        write(study / "forecasts" / "loss-at-1e+12-0123abcd.json", as_json(document))
        reads_or_refuses(study, lambda: judge_seals(study, read_current_runs(study)))

    attacked()


def test_the_guard_notices(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(AssertionError):
        reads_or_refuses(folder, lambda: (tmp_path / CANARY).read_text())
    with pytest.raises(AssertionError):
        reads_or_refuses(folder, lambda: Path("/etc/passwd").read_text())
    (tmp_path / "in2").mkdir()
    for outside in (tmp_path / "new", tmp_path / "in2" / "new"):
        with pytest.raises(AssertionError):
            reads_or_refuses(folder, lambda outside=outside: outside.write_text(""))
    with pytest.raises(AssertionError):
        reads_or_refuses(folder, lambda: __import__("os").system("true"))
    with pytest.raises(AssertionError, match="exec"):
        reads_or_refuses(folder, lambda: eval("1 + 1"))
    write(folder / "hostile.py", "x = 1")
    with pytest.raises(AssertionError, match="exec"):
        reads_or_refuses(folder, lambda: runpy.run_path(str(folder / "hostile.py")))
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sent,  # to connect it sends nothing
        pytest.raises(AssertionError, match=r"socket\.connect"),
    ):
        reads_or_refuses(folder, lambda: sent.connect(("192.0.2.1", 9)))
    reads_or_refuses(folder, lambda: __import__("colorsys"))
    reads_or_refuses(folder, lambda: (folder / "new").write_text(json.dumps({})))
    with pytest.raises(AssertionError, match="reading took"):
        reads_or_refuses(folder, lambda: bytearray(2 * MOST_MEMORY * 10**6))
