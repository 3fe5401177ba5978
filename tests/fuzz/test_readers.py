"""Files by strangers that one reader each opens: layouts, recipes, plans, results."""

import json
import shutil
import zipfile
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given

from clue_ray.corpus.layout.arrays import (
    ARRAYS,
    DTYPES,
    VERSION,
    assemble,
    read_layout,
    read_recipe,
)
from clue_ray.corpus.store import open_corpus
from clue_ray.corpus.tokenizer import read_tokenizer
from clue_ray.errors import CorpusError, RunsError
from clue_ray.runs import read_runs
from clue_ray.spec.specs import RunSpec, StudySpec
from clue_ray.spec.yaml import read_yaml
from clue_ray.storage import lease
from clue_ray.storage.tables import MOST_COLUMNS
from clue_ray.study import trackers
from clue_ray.study.add_runs import AddedRuns
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.run import _scored_lengths
from clue_ray.transfer.embed.matrix import find_view
from clue_ray.transfer.embed.parts import Parts
from clue_ray.transfer.tasks.columns import join_results
from clue_ray.transfer.tasks.evaluate import read_result
from tests.fuzz.hostile import (
    EXAMPLES,
    LONGEST_SENTENCE,
    as_json,
    attack,
    changed,
    garbled,
    reads_or_refuses,
)
from tests.fuzz.test_documents import PLAN, RECORD, STUDY, study_directory, write

GROWN = {
    "at": 1e12,
    "runs": [{"point": {"sequence_length": 4}, "train_flops": 1e9}],
    "intervals": [[1.9, 2.1], [1.95, 2.05]],
}
BASELINES = {
    "baselines": [
        {"name": "whole", "sequence_length": None, "loss": 2.0},
        {"name": "short", "sequence_length": 4, "loss": 2.0, "calibrated_temperature": 0.1},
    ]
}
MEASURE = {"value": 0.3, "low": 0.2, "high": 0.4}
RESULT = {
    "key": "0123456789ab",
    "task": "next",
    "run_id": RECORD["run_id"],
    "users": {"train": 9, "test": 3},
    "left_out": {"no label": 1},
    "left_out_list": "transfer/left-out.csv",
    "methods": [
        {"method": "encoder", "mrr": MEASURE},
        {"method": "popular", "mrr": MEASURE, "mrr_lead": MEASURE},
    ],
}


SPEC = StudySpec.parse(STUDY, "study")
OWNER = {"study": "tiny", "corpus_digest": "0123456789ab", "candidates": 16}
LEASE = {
    "id": "x",
    "host": "here",
    "pid": 1,
    "pid_scope": lease.pid_scope(),
    "renewed_at": "now",
    "renewals": 1,
}
MANIFEST = {
    "key": "0123456789ab",
    "encoder_digest": "0123456789ab",
    "parts": 16,
    "per_service": False,
    "precision": "float32",
    "width": 8,
}


class Deaf:
    """A tracker that takes everything."""

    def send_run(self, record, curve):
        pass

    def send_report(self, page, files):
        pass


def read_added(study):
    added = AddedRuns.read(study)
    return added.sentence(), added.points


def claim_again(study):
    StudyDirectory(study).claim(SPEC, OWNER["corpus_digest"])
    return True


def read_lease(study):
    """Read another command's lease, and describe it."""
    mine = lease.Lease(str(study))
    if other := mine._read_other():
        sentence = str(mine._in_use(other))
        assert "\n" not in sentence
        assert len(sentence) < LONGEST_SENTENCE
        return sentence, lease._holder_is_gone(other)
    return None


def send_again(study):
    pd.read_parquet(study / "runs.parquet").to_csv(study / "runs.csv")
    with patch.dict(trackers._TRACKERS, {"deaf": lambda study: Deaf()}):
        trackers.send_study(StudyDirectory(study), "tiny", ["deaf"], read_runs(study))
    return True


def begin_again(study):
    return Parts(str(study)).begin(MANIFEST["key"]) is None


def read_spec(study):
    return RunSpec.parse(read_yaml(study / "spec.json"), "spec.json")


READERS = {
    "grown.json": (GROWN, read_added),
    "owner.json": (OWNER, claim_again),
    ".lease.json": (LEASE, read_lease),
    "tracked.json": (
        {"deaf": {RECORD["run_id"]: RECORD["started_at"], "report": "0"}},
        send_again,
    ),
    "spec.json": (STUDY["base"], read_spec),
    "manifest.json": (MANIFEST, lambda study: find_view(str(study))),
    "request.json": ({"key": MANIFEST["key"]}, begin_again),
    "plan.json": (PLAN, lambda study: StudyDirectory(study).planned_seconds()),
    "baselines.json": (BASELINES, lambda study: _scored_lengths(study / "baselines.json")),
    "result.json": (RESULT, lambda study: read_result(study / "result.json")),
    "transfer.json": (
        {"next": {RECORD["run_id"]: "transfer/next-0123456789ab.json"}},
        lambda study: join_results(study),
    ),
}


@EXAMPLES
@pytest.mark.parametrize("name", READERS)
def test_json_of_a_study(tmp_path, name, examples):
    study = study_directory(tmp_path / "in")
    pd.DataFrame({"run_id": [RECORD["run_id"]], "loss": [2.5]}).to_parquet(study / "runs.parquet")
    write(
        study / "runs" / RECORD["run_id"] / "transfer" / "next-0123456789ab.json", as_json(RESULT)
    )
    valid, read = READERS[name]

    def reads(content):
        write(study / name, content)
        return reads_or_refuses(study, lambda: read(study))

    @attack(examples)
    @given(changed(valid))
    def mistyped(document):
        reads(as_json(document))

    @attack(examples)
    @given(garbled(as_json(valid)))
    def damaged(content):
        reads(content)

    assert reads(as_json(valid))
    mistyped()
    damaged()


def test_what_is_left_of_damaged_files_of_a_study(tmp_path):
    study = study_directory(tmp_path / "in")
    runs = [{"run_id": "a", "expected_seconds": 3}, {"run_id": "b", "expected_seconds": "soon"}]
    write(study / "plan.json", as_json({"runs": [*runs, {"run_id": "c"}]}))
    assert StudyDirectory(study).planned_seconds() == {"a": 3}
    write(study / "grown.json", as_json({**GROWN, "runs": [{"point": {}}]}))
    with pytest.raises(RunsError, match=r"damaged \(runs\.0\.train_flops: .*restore it, or delete"):
        AddedRuns.read(study)
    write(study / "result.json", as_json({**RESULT, "methods": []}))
    with pytest.raises(RunsError, match=r"it has no row of one encoder.*delete it, and clue-ray"):
        read_result(study / "result.json")


def test_a_lease_of_a_process_that_cannot_be_does_not_end_the_command(tmp_path):
    for pid in (10**30, -(10**30), -1, 0, True, "1", None):
        write(tmp_path / ".lease.json", as_json({**LEASE, "pid": pid, "host": "a\nb" * 999}))
        _, is_gone = read_lease(tmp_path)
        assert not is_gone


@pytest.fixture
def laid_out(corpus, tmp_path):
    """A corpus of one's own with its layout, and the content of layout.json."""
    assert len(corpus.events)  # its layout is built now
    folder = tmp_path / "in"
    shutil.copytree(corpus.path, folder)
    return folder, json.loads((folder / "train" / "layout.json").read_text())


@EXAMPLES
def test_layouts(laid_out, examples):
    folder, facts = laid_out
    file = folder / "train" / "layout.json"
    digest = json.loads((folder / "corpus.json").read_text())["digest"]

    def reads(content):
        file.write_bytes(content)
        if layout := reads_or_refuses(folder, lambda: read_layout(folder / "train", digest)):
            reads_or_refuses(folder, lambda: (layout.is_whole(), layout.sums()))

    @attack(examples)
    @given(changed(facts))
    @example({**facts, "services": 10**6})
    @example({**facts, "files": 3})
    def mistyped(document):
        reads(as_json(document))

    @attack(examples)
    @given(garbled(as_json(facts)))
    def damaged(content):
        reads(content)

    mistyped()
    damaged()


def test_a_layout_that_lies_is_built_again(laid_out):
    folder, facts = laid_out
    write(folder / "train" / "layout.json", as_json({**facts, "services": 10**6}))
    before = open_corpus(folder, verify=False)
    assert len(before.events)
    assert json.loads((folder / "train" / "layout.json").read_text()) == facts


@pytest.fixture
def parts(tmp_path):
    """Parts of a layout of two events, and its recipe."""
    folder = tmp_path / "in" / "parts"
    folder.mkdir(parents=True)
    for name, dtype in DTYPES.items():
        np.zeros(2, dtype).tofile(folder / f"{name}-0")
    ids = pa.table({"user_id": ["a", "b"]})
    with pa.ipc.new_file(str(folder / "user_ids-0"), ids.schema) as writer:
        writer.write_table(ids)
    counts = ("users", "events", "items", "tokens", "users_in_two_services")
    facts = {
        "version": VERSION,
        "digest": "0123456789ab",
        "services": 1,
        **dict.fromkeys(counts, 2),
        "last_time": 0.0,
        "pool_bounds": {split: [0, 1, 2] for split in ("train", "validation", "test")},
    }
    pieces = {name: [[f"{name}-0", 0, 2]] for name in ARRAYS}
    files = {f"{name}-0": "0" * 64 for name in ARRAYS}
    return folder, {"facts": facts, "pieces": pieces, "files": files}


def put_together(parts):
    """Read the recipe next to the parts, and follow it on a copy of them."""
    folder = parts.parent
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(parts, folder / "copy")
    if recipe := read_recipe(folder):
        assemble(folder / "copy", recipe, folder / "train")
    return recipe


@EXAMPLES
def test_recipes(parts, examples):
    folder, valid = parts

    def reads(content):
        write(folder.parent / "recipe.json", content)
        return reads_or_refuses(folder.parent, lambda: put_together(folder))

    @attack(examples)
    @given(changed(valid))
    def mistyped(document):
        reads(as_json(document))

    @attack(examples)
    @given(garbled(as_json(valid)))
    def damaged(content):
        reads(content)

    assert reads(as_json(valid))
    mistyped()
    damaged()


@pytest.mark.parametrize(
    "pieces",
    [
        {"events": [["events-0", 0, 2**62]]},  # would be read for years
        {"events": [["events-0", 0, 2]] * 9},  # would fill the disk
        {"user_ids": [["user_ids-0", 0, 2]] * 9},
    ],
)
def test_a_recipe_takes_no_more_of_its_parts_than_they_hold(parts, pieces):
    folder, valid = parts
    recipe = {**valid, "pieces": {**valid["pieces"], **pieces}}
    write(folder.parent / "recipe.json", as_json(recipe))
    with pytest.raises(CorpusError, match=r"takes more of the parts of (events|user_ids) than"):
        put_together(folder)


def test_a_stretch_of_negative_length_does_not_hide_a_long_one(parts):
    folder, valid = parts
    there_and_back = [["events-0", 0, 2], ["events-0", 2, 0]] * 5
    recipe = {**valid, "pieces": {**valid["pieces"], "events": there_and_back}}
    write(folder.parent / "recipe.json", as_json(recipe))
    with pytest.raises(CorpusError, match="a stretch of events-0 ends before it starts"):
        put_together(folder)


def wide(columns, rows):
    return pa.table({f"c{number}": np.zeros(rows) for number in range(columns)})


def test_tables_of_very_many_columns_are_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for columns, rows, reason in (
        (MOST_COLUMNS + 1, 1, f"{MOST_COLUMNS + 1:,} columns, at most {MOST_COLUMNS:,}"),
        (3 * MOST_COLUMNS, 1, "limit"),
        (500, 100_000, "100,000 rows of 500 columns, at most 30,000,000 values"),
    ):
        file = folder / "runs.parquet"
        pq.write_table(wide(columns, rows), file)
        reads_or_refuses(folder, lambda file=file: read_runs(file))
        with pytest.raises(RunsError, match=reason):
            read_runs(file)
    names = ",".join(f"c{number}" for number in range(MOST_COLUMNS + 1))
    with pytest.raises(RunsError, match=r"10,001 columns"):
        read_runs(write(folder / "runs.csv", f"{names}\n1\n"))
    with pytest.raises(RunsError, match=r"header has more than 2,000,000 characters"):
        read_runs(write(folder / "runs.csv", "," * 3_000_000 + "\n1\n"))
    gaps = "\n".join(json.dumps({f"c{number}": 1}) for number in range(9_000))
    with pytest.raises(RunsError, match=r"9,000 rows of 9,000 columns"):
        read_runs(write(folder / "runs.json", gaps))
    archive = folder / "runs.csv.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("runs.csv", "," * 60_000_000)
    reads_or_refuses(folder, lambda: read_runs(archive))


REPEATS = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
}


@pytest.mark.parametrize(
    ("part", "step"),
    [
        ("normalizer", REPEATS),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 1_000}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
        ("decoder", {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1_000}),
    ],
)
def test_a_tokenizer_that_makes_texts_longer_is_refused(corpus, tmp_path, part, step):
    document = json.loads((corpus.path / "tokenizer.json").read_text())
    file = write(tmp_path / "in" / "tokenizer.json", as_json({**document, part: step}))
    with pytest.raises(CorpusError, match=rf"its {part} can make a text (inf|[\d,]+) times longer"):
        read_tokenizer(str(file))
    reads_or_refuses(file.parent, lambda: read_tokenizer(str(file)))


def test_a_tokenizer_pads_no_text(corpus, tmp_path):
    document = json.loads((corpus.path / "tokenizer.json").read_text())
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    document |= {"padding": padding, "normalizer": {"type": "NFC"}}
    file = write(tmp_path / "in" / "tokenizer.json", as_json(document))
    tokenizer = reads_or_refuses(file.parent, lambda: read_tokenizer(str(file)))
    assert len(tokenizer.encode("a").ids) == 1
