"""Specs: what is accepted, what is refused and in which words, and what makes two runs the same."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_ray.errors import SpecError
from clue_ray.spec.ladder import LADDER
from clue_ray.spec.specs import (
    EncoderSpec,
    ResourcesSpec,
    RunSpec,
    StudySpec,
    TrainSpec,
    read_study,
)

STUDY = {
    "name": "q",
    "corpus": {"events": "x.parquet"},
    "base": {"encoder": {"size": "s"}, "train": {"steps": 3}},
    "axes": {"sequence_length": [1, 2]},
}


def changed(path: str, value) -> dict:
    document = copy.deepcopy(STUDY)
    *parents, key = path.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    node[key] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("evaluations", {}, "unknown key 'evaluations'; did you mean 'evaluation'?"),
        (
            "base.train.learning_rat",
            1,
            "unknown key 'base.train.learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            "base.train.spare_duplicates",
            False,
            "'base.train.spare_duplicates' of an earlier version; call it 'mask_false_negatives'.",
        ),
        ("corpus.vocab_sizes", 3, "unknown key 'corpus.vocab_sizes'; did you mean 'vocab_size'?"),
        ("corpus.split.tests", 0.1, "did you mean 'test'?"),
        ("base.train.global_batch_size", -3, "base.train.global_batch_size is -3"),
        ("base.train.users_seen", 9, "2 horizons (steps, users_seen)"),
        ("base.train.steps", None, "0 horizons"),
        ("base.encoder.size", "huge", "use one of xxs, xs, s"),
        ("base.encoder.width", 12, "already fixes width"),
        ("base.resources", {"workers": 2}, "put them at the top level"),
        ("name", "a b", "name is 'a b'"),
        ("axes", 3, "axes is 3"),
        ("evaluation.candidates", "many", "evaluation.candidates is 'many'"),
    ],
)
def test_mistake_is_one_sentence(path, value, words):
    with pytest.raises(SpecError) as error:
        StudySpec.parse(changed(path, value), "s.yaml")
    message = str(error.value)
    assert words in message
    assert message.startswith("s.yaml")
    assert "\n" not in message


def test_missing_key_is_named():
    document = copy.deepcopy(STUDY)
    del document["base"]
    with pytest.raises(SpecError, match="lacks the key 'base'"):
        StudySpec.parse(document, "s.yaml")


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [", "name: 3\n"])
def test_unusable_file(tmp_path, content):
    file = tmp_path / "s.yaml"
    file.write_text(content)
    with pytest.raises(SpecError) as error:
        read_study(file)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml does not exist"):
        read_study(tmp_path / "none.yaml")


def test_rung_equals_its_shape_spelled_out():
    by_name = RunSpec(encoder=EncoderSpec(size="m"), train=TrainSpec(steps=1))
    spelled = RunSpec(encoder=EncoderSpec(**LADDER["m"].model_dump()), train=TrainSpec(steps=1))
    assert spelled.encoder.size == "custom"
    assert by_name.run_id("d", 256) == spelled.run_id("d", 256)


def test_execution_is_not_identity():
    run = RunSpec(train=TrainSpec(steps=1))
    moved = run.model_copy(update={"resources": ResourcesSpec(workers=4, gpus_per_worker=1)})
    assert run.run_id("d", 256) == moved.run_id("d", 256)


@pytest.mark.parametrize(
    "other",
    [
        RunSpec(train=TrainSpec(steps=2)),
        RunSpec(train=TrainSpec(steps=1, seed=1)),
        RunSpec(train=TrainSpec(steps=1), sequence_length=7),
        RunSpec(train=TrainSpec(steps=1), corpus_users=10),
        RunSpec(train=TrainSpec(steps=1), encoder=EncoderSpec(size="m")),
    ],
)
def test_what_changes_the_result_is_identity(other):
    run = RunSpec(train=TrainSpec(steps=1))
    assert run.run_id("d", 256) != other.run_id("d", 256)
    assert run.run_id("d", 256) != run.run_id("e", 256)
    assert run.run_id("d", 256) != run.run_id("d", 128)


runs = st.builds(
    RunSpec,
    encoder=st.sampled_from([EncoderSpec(size=size) for size in LADDER]),
    train=st.builds(
        TrainSpec,
        steps=st.integers(1, 10**6),
        global_batch_size=st.integers(2, 10**5),
        learning_rate=st.floats(1e-6, 1),
        seed=st.integers(0, 2**31),
    ),
    sequence_length=st.integers(1, 4096),
    corpus_users=st.none() | st.integers(2, 10**9),
)


@given(runs)
def test_json_round_trip_keeps_identity(run):
    again = RunSpec.model_validate(run.model_dump(mode="json"))
    assert again == run
    assert again.run_id("d", 256) == run.run_id("d", 256)


def test_an_unknown_key_that_looks_like_a_branch_of_a_union_is_named():
    with pytest.raises(SpecError, match=r"unknown key 'x\[0\]'"):
        StudySpec.parse({"name": "a", "x[0]": 1}, "s.yaml")


def test_run_ids_of_earlier_versions_stay():
    first = RunSpec(train={"steps": 3}, sequence_length=7)
    train = {"users_seen": 100, "same_service": 0.3, "seed": 4}
    second = RunSpec(encoder={"size": "m", "bag": False}, train=train, sequence_length=7)
    found = [run.run_id("abc", 256) for run in (first, second)]
    assert found == ["1fc3a4fedf85", "f10c7f452391"]
    for part, change in (("encoder", {"time": True}), ("train", {"past_future": 0.1})):
        changed = getattr(first, part).model_copy(update=change)
        assert first.model_copy(update={part: changed}).run_id("abc", 256) not in found
