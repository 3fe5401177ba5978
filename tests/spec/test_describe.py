"""Fields are described from one place: schemas, `explain` and the readers offer the same."""

import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

import clue_ray
from clue_ray.cli.explain import explain, files
from clue_ray.cli.main import app
from clue_ray.errors import SpecError
from clue_ray.runs import RUN_COLUMNS
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.describe import (
    COLUMN_MEANINGS,
    NAME,
    all_fields,
    describe_column,
    describe_field,
    find_fields,
    json_schema,
    similar_field,
)
from clue_ray.spec.grid import axis_fields, expand
from clue_ray.spec.specs import StudySpec, read_study
from tests.spec.offered import document_with, offered, yaml_keys

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(clue_ray.__file__).parent / "schemas"
NAMED = [
    file
    for file in sorted((ROOT / "studies").rglob("*.yaml"))
    if file.name != "planted-log.yaml"  # the parameters of a log, not one of the three kinds
]


@cache
def shipped(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a shipped schema."""
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", files())
def test_schemas_are_current(name: str) -> None:
    found = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    made = json.loads(json.dumps(json_schema(files()[name], f"clue-ray {name} file")))
    assert found == made, "run make schemas"
    jsonschema.Draft202012Validator.check_schema(found)


@pytest.mark.parametrize("file", NAMED, ids=lambda file: file.stem)
def test_shipped_files_name_their_schema_and_meet_it(file: Path) -> None:
    head = file.read_text(encoding="utf-8").splitlines()[0]
    place = (file.parent / head.removeprefix("# yaml-language-server: $schema=")).resolve()
    assert place.parent == SCHEMAS
    document = yaml.safe_load(file.read_text())
    as_json = json.loads(json.dumps(document, default=str))  # JSON has no dates
    jsonschema.validate(as_json, json.loads(place.read_text()))


def test_the_schema_refuses_what_the_spec_refuses() -> None:
    schema = json.loads((SCHEMAS / "study.schema.json").read_text())
    good = yaml.safe_load((ROOT / "studies" / "quickstart.yaml").read_text())
    for change in ({"nmae": "x"}, {"evaluation": {"candidates": 1}}, {"corpus": {"vocab_size": 9}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | change, schema)


OFFERED = [(kind, path) for kind, spec in files().items() for path in all_fields(spec)]


@pytest.mark.parametrize("kind", files())
def test_schema_and_explain_offer_the_same_fields(kind: str) -> None:
    schema = shipped(kind).schema
    found = set(offered(schema, schema))
    axes = {path for path in found if path.startswith("axes.")}
    assert axes == ({f"axes.{field}" for field in axis_fields()} if axes else set())
    assert found - axes == {path for path in all_fields(files()[kind]) if path != "axes.budgets"}


@pytest.mark.parametrize(("kind", "path"), OFFERED)
def test_the_reader_accepts_every_field_that_is_offered(kind: str, path: str) -> None:
    document = document_with(kind, path)
    read = files()[kind].parse(document, kind)
    if kind == "study":
        assert expand(read)
    assert not list(shipped(kind).iter_errors(document))


@pytest.mark.parametrize("axis", axis_fields())
def test_the_reader_accepts_every_axis_that_is_offered(axis: str) -> None:
    field = "train.train_flops" if axis == "budgets" else axis
    value = document_with("study", f"base.{field}".replace("base.resources", "resources"))
    for step in field.split(".") if axis.startswith("resources") else ("base", *field.split(".")):
        value = value[step]
    value = 1e12 if axis == "budgets" else value
    assert expand(StudySpec.parse(document_with("study", "name") | {"axes": {axis: [value]}}, ""))


@pytest.mark.parametrize(("kind", "words"), [("study", "holds resources"), ("task", "split.time")])
def test_a_field_of_another_place_is_refused_and_not_offered(kind: str, words: str) -> None:
    for path in files()[kind].elsewhere:
        assert not find_fields(files()[kind], path)
        document = document_with(kind, path)
        with pytest.raises(SpecError, match=words):
            files()[kind].parse(document, kind)
        assert list(shipped(kind).iter_errors(document))


@pytest.mark.parametrize("file", NAMED, ids=lambda file: file.stem)
def test_every_key_of_a_shipped_file_can_be_explained(file: Path) -> None:
    kind = file.read_text().splitlines()[0].split("/")[-1].partition(".")[0]
    for key in yaml_keys(yaml.safe_load(file.read_text())):
        for path in key.split(","):
            found = [name for spec in files().values() for name in find_fields(spec, path.strip())]
            assert found, f"{kind}: {path}"


def test_every_field_and_column_is_described() -> None:
    for kind, path in OFFERED:
        found = describe_field(files()[kind], path)
        assert found.meaning, path
        assert found.type, path
        assert found.column in ("", *COLUMNS)
    header = (ROOT / "studies" / "open-clue" / "runs.csv").read_text().partition("\n")[0]
    columns = {name for name in header.split(",") if not name.startswith("transfer_")}
    for name in {*RUN_COLUMNS, *columns, *COLUMNS}:
        found = describe_column(name)
        assert found, name
        assert name in COLUMN_MEANINGS or COLUMNS[name].field, name
    length = describe_field(StudySpec, "base.sequence_length")
    assert "most recent events" in length.meaning
    assert (length.type, length.default) == ("integer at least 1", 32)
    assert length.column == "sequence_length"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("sequence_length", ["base.sequence_length"]),
        ("encoder.size", ["base.encoder.size"]),
        ("axes.train.seed", ["base.train.seed"]),
        ("budgets", ["axes.budgets"]),
        ("workers", ["resources.workers"]),
        ("corpus.events.shop.text", [f"corpus.events.{NAME}.text"]),
        ("items.events.sku.key", [f"corpus.items.{NAME}.key"]),
        ("corpus.columns.user_id", ["corpus.columns"]),
        ("validation", ["corpus.split.validation"]),
        ("base.resources.workers", []),
        ("nothing", []),
    ],
)
def test_fields_are_found_by_any_end_of_their_name(asked: str, found: list[str]) -> None:
    assert find_fields(StudySpec, asked) == found


@pytest.mark.parametrize(
    ("asked", "similar"),
    [
        ("sequence_lenght", "base.sequence_length"),
        ("base.resources.workers", "resources.workers"),
        ("cosine", "base.train.schedule"),
        ("user_id", "corpus.columns"),
        ("loss_candidate", "loss_candidates"),
    ],
)
def test_a_wrong_field_gets_a_near_match(asked: str, similar: str) -> None:
    assert similar_field(files().values(), asked) == similar
    with pytest.raises(SpecError, match=f"did you mean '{similar}'"):
        explain(asked)


def test_explain_prints_columns_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    explain("num_workers, transfer_kids_auc")
    printed = capsys.readouterr().out
    assert "set by   resources.workers" in printed
    assert "score of a downstream task" in printed
    explain("head")  # of a task file, which need not be named
    assert "one of mlp, linear, challenge" in capsys.readouterr().out


def test_explain_says_what_uses_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(get_command(app).commands)
    for kind, path in OFFERED:
        explain(path, of=kind)
        used = capsys.readouterr().out.partition("  used by  ")[2].partition("\n")[0]
        named = re.findall(r"[a-z]+", used.rpartition("(")[2])
        assert commands & set(named), f"{path}: {used}"
    for path, words in (
        ("base.train.seed", "used by  training each run (run, train)"),
        ("base.sequence_length", "used by  drawing users and their histories"),
        ("corpus.split.time", "used by  preparing the log"),
        ("fit.laws", "used by  fitting laws for the page"),
    ):
        explain(path)
        assert words in capsys.readouterr().out
    explain("vocab_size", of="corpus", as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["used_by"] == "preparing the log (prepare)"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("evaluation: {", "evaluations: {", "has an unknown key 'evaluations'; did you mean"),
        ("  sequence_length: 40", "  sequence_length: -1", "base.sequence_length is -1"),
        ("vocab_size: 4096", "vocab_sise: 4096", "unknown key 'corpus.vocab_sise'"),
    ],
)
def test_errors_name_the_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = (ROOT / "studies" / "quickstart.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new))
    line = next(n for n, row in enumerate(file.read_text().splitlines(), 1) if new in row)
    with pytest.raises(SpecError) as error:
        read_study(file)
    assert f"mine.yaml, line {line}" in str(error.value)
    assert words in str(error.value)
