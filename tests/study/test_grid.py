"""Axes to runs."""

import pytest

from clue_ray.errors import SpecError
from clue_ray.spec import RunSpec, StudySpec
from clue_ray.study.grid import dotted_fields, expand


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
    assert [(r.encoder.width, r.sequence_length) for r in runs] == [(16, 4), (16, 8), (32, 4), (32, 8)]


def test_grids_share_their_points():
    runs = expand(make_study([{"sequence_length": [4, 8]}, {"sequence_length": [8, 16]}]))
    assert [r.sequence_length for r in runs] == [4, 8, 16]


def test_resources_are_an_axis_but_not_a_point_of_their_own():
    runs = expand(make_study([{"resources.workers": [1, 2]}, {"sequence_length": [9], "resources.workers": [2]}]))
    assert [(r.sequence_length, r.resources.workers) for r in runs] == [(32, 2), (9, 2)]


@pytest.mark.parametrize("horizon", ["users_seen", "train_flops"])
def test_a_horizon_replaces_another(horizon):
    (run,) = expand(make_study({f"train.{horizon}": [500]}))
    assert getattr(run.train, horizon) == 500 and run.train.steps is None


def test_shape_and_size_replace_each_other():
    (run,) = expand(make_study({"encoder.width": [48]}))
    assert (run.encoder.size, run.encoder.width, run.encoder.heads) == ("custom", 48, 2)
    (run,) = expand(
        make_study({"encoder.size": ["m"]}, encoder={"width": 8, "item_layers": 1, "service_layers": 1, "heads": 1})
    )
    assert run.encoder.width == 64


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"encoder.sizes": ["s"]}, "'encoder.sizes', which is no field of a run; did you mean 'encoder.size'?"),
        ({"train": [1]}, "'train', which is no field"),
        ({"sequence_length": []}, "no values"),
        ([], "list no grid"),
        ({"resources.concurrency": [1, 2]}, "'resources.concurrency', which is no field of a run"),
        ({"train.global_batch_size": [-4]}, "axes point {train.global_batch_size: -4}: train.global_batch_size is -4"),
        ({"encoder.size": ["q"]}, "no rung of the ladder"),
    ],
)
def test_mistakes(axes, words):
    with pytest.raises(SpecError) as error:
        expand(make_study(axes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_plain_field_is_an_axis():
    fields = dotted_fields(RunSpec)
    assert {"encoder.size", "train.seed", "train.learning_rate", "sequence_length", "corpus_users"} <= set(fields)
    assert not {"encoder", "train", "resources"} & set(fields)
