"""Axes to runs."""

import pytest

from clue_ray.errors import SpecError
from clue_ray.spec.grid import check_size, dotted_fields, expand, parse_point
from clue_ray.spec.specs import RunSpec, StudySpec, read_study


def make_study(axes, **base):
    document = {
        "name": "s",
        "corpus": {"events": "x"},
        "base": {"encoder": {"size": "s"}, "train": {"steps": 10}, **base},
        "axes": axes,
    }
    return StudySpec.parse(document, "s.yaml")


def test_product_in_order():
    runs = expand(make_study({"encoder.size": ["xs", "s"], "sequence_length": [4, 8]}))
    assert [(r.encoder.width, r.sequence_length) for r in runs] == [
        (16, 4),
        (16, 8),
        (32, 4),
        (32, 8),
    ]


def test_grids_share_their_points():
    runs = expand(make_study([{"sequence_length": [4, 8]}, {"sequence_length": [8, 16]}]))
    assert [r.sequence_length for r in runs] == [4, 8, 16]


def test_zipped_fields_move_together():
    axes = {
        "encoder.size, train.learning_rate": [["xs", 0.003], ["s", 0.002]],
        "sequence_length": [4, 8],
    }
    runs = expand(make_study(axes))
    assert [(r.encoder.size, r.train.learning_rate, r.sequence_length) for r in runs] == [
        ("xs", 0.003, 4), ("xs", 0.003, 8), ("s", 0.002, 4), ("s", 0.002, 8),
    ]  # fmt: skip


def test_points_are_counted_before_they_are_made():
    study = make_study(
        [
            {"train.seed": list(range(10**4)), "sequence_length": list(range(1, 10**4))},
            {"train.seed": [1]},
        ]
    )
    with pytest.raises(
        SpecError, match=r"99,990,001 runs \(10,000 x 9,999 \+ 1\), more than 1,000; .* add --yes"
    ):
        check_size(study)
    check_size(study, None)
    check_size(make_study({"train.seed": list(range(1000))}))
    with pytest.raises(SpecError, match="1,001 runs"):
        check_size(make_study({"train.seed": list(range(1001))}))


def test_budgets_cross_the_sizes_named_or_bring_their_own():
    named = expand(make_study({"budgets": ["1e9", 4e9], "encoder.size": ["xxs", "xs"]}))
    assert [(r.train.train_flops, r.train.steps, r.encoder.size) for r in named] == [
        (1e9, None, "xxs"), (1e9, None, "xs"), (4e9, None, "xxs"), (4e9, None, "xs"),
    ]  # fmt: skip
    chosen = expand(make_study({"budgets": [1e15, 1.6e16]}))
    small, large = (
        {r.encoder.width for r in chosen if r.train.train_flops == budget}
        for budget in (1e15, 1.6e16)
    )
    assert len(chosen) == 10
    assert len(small & large) == 3


def test_resources_are_an_axis_but_not_a_point_of_their_own():
    runs = expand(
        make_study(
            [{"resources.workers": [1, 2]}, {"sequence_length": [9], "resources.workers": [2]}]
        )
    )
    assert [(r.sequence_length, r.resources.workers) for r in runs] == [(32, 2), (9, 2)]


@pytest.mark.parametrize("horizon", ["users_seen", "train_flops"])
def test_a_horizon_replaces_another(horizon):
    (run,) = expand(make_study({f"train.{horizon}": [500]}))
    assert getattr(run.train, horizon) == 500
    assert run.train.steps is None


def test_shape_and_size_replace_each_other():
    (run,) = expand(make_study({"encoder.width": [48]}))
    assert (run.encoder.size, run.encoder.width, run.encoder.heads) == ("custom", 48, 2)
    (run,) = expand(
        make_study(
            {"encoder.size": ["m"]},
            encoder={"width": 8, "item_layers": 1, "service_layers": 1, "heads": 1},
        )
    )
    assert run.encoder.width == 64


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (
            {"encoder.sizes": ["s"]},
            "'encoder.sizes', which is not a field of a run; did you mean 'encoder.size'?",
        ),
        ({"train": [1]}, "'train', which is not a field"),
        ({"sequence_length": []}, "no values"),
        ([], "list no grid"),
        (
            {"resources.concurrency": [1, 2]},
            "'resources.concurrency', which is not a field of a run",
        ),
        (
            {"train.global_batch_size": [-4]},
            "axes point {train.global_batch_size: -4}: train.global_batch_size is -4",
        ),
        ({"encoder.size": ["q"]}, "not on the ladder"),
        (
            {"encoder.size, train.learning_rat": [["s", 1]]},
            "'train.learning_rat', which is not a field of a run; did you",
        ),
        (
            {"encoder.size, train.seed": [["s", 1], ["m"]]},
            "the value ['m']; give a list of 2, one for each field",
        ),
        ({"encoder.size, train.seed": ["s"]}, "the value 's'; give a list of 2"),
        (
            {"encoder.size, train.seed": [["s", 1]], "train.seed": [2]},
            "more than once (train.seed); keep one",
        ),
        ({"train.steps": [1], "budgets": [1e12]}, "more than once (train.steps, budgets)"),
        (
            {"encoder.size": ["s"], "encoder.width": [8]},
            "more than once (encoder.size, encoder.width)",
        ),
        ({"sequence_length": [4, 8, 4]}, "the point {sequence_length: 4} twice in one grid"),
        (
            {"encoder.size, encoder.ffn_multiple": [["s", 4], ["s", 4.0]]},
            "{encoder.size: s, encoder.ffn_multiple: 4.0} twice in one grid",
        ),
        ({"budget": [1e12]}, "did you mean 'budgets'?"),
        ({"budgets": ["much"]}, "budgets the value 'much'; give training FLOPs above 0"),
        ({"budgets": [-1]}, "budgets the value -1"),
        ({"budgets": [1e6]}, "below the smallest encoder, 8 wide; raise it"),
    ],
)
def test_mistakes(axes, words):
    with pytest.raises(SpecError) as error:
        expand(make_study(axes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (["seed"], "write it as FIELD=VALUE"),
        (["sequence_length=2", "sequence_length=4"], "names 'sequence_length' twice"),
        (["train.learning_rate=[1"], "whose value is not valid YAML"),
    ],
)
def test_mistakes_of_a_point(point, words):
    with pytest.raises(SpecError, match=words):
        parse_point(point)
    assert parse_point(["train.seed=3", "encoder.size=m"]) == {"train.seed": 3, "encoder.size": "m"}


def test_every_plain_field_is_an_axis():
    fields = dotted_fields(RunSpec)
    assert {
        "encoder.size",
        "train.seed",
        "train.learning_rate",
        "sequence_length",
        "corpus_users",
    } <= set(fields)
    assert not {"encoder", "train", "resources"} & set(fields)


STUDY = """name: bad
corpus: corpora/a
base:
  encoder: {size: s}
  train: {steps: 100}
axes:
%s
"""


@pytest.mark.parametrize(
    ("axes", "line", "words"),
    [
        ("  encoder.size:\n    - xs\n    - nope", 9, "'nope' is not on the ladder"),
        ("  sequence_length: [8]\n  encoder.widht: [8]", 8, "did you mean 'encoder.width'?"),
        ("  sequence_length: [8]\n  train.learning_rate: [0.1, fast]", 8, "is 'fast', but"),
        ("  encoder.size: xs", 7, "encoder.size is 'xs', but the input should be a valid list"),
        ("  - {encoder.size: [xs]}\n  - {encoder.size: xs}", 8, "axes.1.encoder.size is 'xs'"),
        ("  - {encoder.size: [xs]}\n  - 3", 8, "axes.1 is 3, but"),
        ("  - {train.seed: [1]}\n  -\n    encoder.size: [s]\n    train.steps: [10, -1]", 10, "-1"),
        ("  encoder.size, train.seed:\n    - [xs, 1]\n    - [s, none]", 9, "is 'none', but"),
        ("  encoder.size, train.seed:\n    - [xs, 1]\n    - [s]", 7, "the value ['s']"),
        ("  sequence_length: [8]\n  budgets: [1e12, lots]", 8, "the value 'lots'"),
        ("  train.seed: [1]\n  encoder.size: []", 8, "no values"),
        ("  train.seed: [1]\n  sequence_length: [8, 8]", 7, "twice in one grid"),
        ("  encoder.heads: [8]\n  encoder.width: [32, 20]", 7, "width 20 is not a multiple"),
        ("  []", 6, "axes list no grid; give at least one"),
    ],
)
def test_mistakes_of_a_file_name_its_line(axes, line, words, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(STUDY % axes)
    with pytest.raises(SpecError) as error:
        expand(read_study(file))
    assert str(error.value).startswith(f"{file}, line {line}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_items_of_other_lists_name_their_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(STUDY % "  train.seed: [1]" + "trackers:\n  - mlflow\n  - comet\n")
    with pytest.raises(SpecError, match=r"bad\.yaml, line 10: trackers\.1 is 'comet'"):
        read_study(file)
    file.write_text((STUDY % "  train.seed: [1]").replace("  train:", "  resources: {}\n  train:"))
    with pytest.raises(SpecError, match=r"bad\.yaml, line 3: base holds resources"):
        read_study(file)
