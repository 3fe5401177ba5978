"""Fields are described from one place: the schemas are current and accept what is shipped."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import clue_ray
from clue_ray.cli.explain import files
from clue_ray.errors import SpecError
from clue_ray.spec.columns import COLUMNS
from clue_ray.spec.describe import all_fields, describe_field, json_schema
from clue_ray.spec.specs import StudySpec, read_study

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(clue_ray.__file__).parent / "schemas"
NAMED = [
    file
    for file in sorted((ROOT / "studies").rglob("*.yaml"))
    if file.name != "planted-log.yaml"  # the parameters of a log, not one of the three kinds
]


@pytest.mark.parametrize("name", files())
def test_schemas_are_current(name: str) -> None:
    shipped = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    made = json.loads(json.dumps(json_schema(files()[name], f"clue-ray {name} file")))
    assert shipped == made, "run make schemas"
    jsonschema.Draft202012Validator.check_schema(shipped)


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


def test_every_field_of_a_study_can_be_explained() -> None:
    for name in all_fields(StudySpec):
        found = describe_field(StudySpec, name)
        assert found.type
        assert found.column in ("", *COLUMNS)
    length = describe_field(StudySpec, "sequence_length")
    assert length.path == "base.sequence_length"
    assert "most recent events" in length.meaning
    assert (length.type, length.default) == ("integer at least 1", 32)
    assert length.column == "sequence_length"
    with pytest.raises(SpecError, match=r"did you mean 'base\.sequence_length'"):
        describe_field(StudySpec, "sequence_lenght")
    with pytest.raises(SpecError, match="Several fields are called 'workers'"):
        describe_field(StudySpec, "workers")


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
