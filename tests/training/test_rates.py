"""Learning rates transfer over width and depth (decision D6): activations neither grow nor fade
with either."""

import numpy as np
import pytest
import torch

from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec, EvaluationSpec, RunSpec, TrainSpec
from clue_ray.training.context import LocalContext
from clue_ray.training.loop import Trainer

STEPS = 10
EVALUATION = EvaluationSpec(candidates=16)


def activations(corpus, **shape):
    """What each transformer hands on after ten steps, root mean square."""
    encoder = EncoderSpec(
        **{"width": 32, "item_layers": 1, "service_layers": 1, "heads": 2, **shape}
    )
    train = TrainSpec(global_batch_size=16, steps=STEPS, warmup=0.0, learning_rate=3e-3)
    trainer = Trainer(
        RunSpec(encoder=encoder, train=train, sequence_length=4), corpus, EVALUATION, LocalContext()
    )
    for step in range(STEPS):
        assert trainer.step(trainer.prepare(step))
    handed_on = []
    for norm in (trainer.model.transformer.item_norm, trainer.model.transformer.service_norm):
        norm.register_forward_hook(
            lambda _, inputs, __: handed_on.append(inputs[0].square().mean().sqrt().item())
        )
    with torch.no_grad():
        trainer.model(trainer.prepare(STEPS).packed)
    return handed_on


def slopes(corpus, axis, scales):
    """Exponent of each activation as a power of width or depth, and the activations."""
    shapes = [dict.fromkeys(axis, scale) for scale in scales]
    found = [activations(corpus, **shape) for shape in shapes]
    return np.polyfit(np.log(scales), np.log(found), 1)[0], found


@pytest.mark.slow
def test_activations_stay_flat_over_width(corpus):
    found, activations = slopes(corpus, ["width"], [32, 128, 512])
    assert np.abs(found).max() < 0.1, activations


def test_activations_stay_flat_over_depth(corpus):
    found, activations = slopes(corpus, ["item_layers", "service_layers"], [1, 3, 9])
    assert np.abs(found).max() < 0.2, activations


@pytest.mark.slow
def test_equal_rates_for_all_widths_would_not(corpus, monkeypatch):
    roles = Encoder.roles

    def equal(model):
        return {p: role._replace(kind="matrix", rate=1.0) for p, role in roles(model).items()}

    monkeypatch.setattr(Encoder, "roles", equal)
    found, activations = slopes(corpus, ["width"], [32, 128, 512])
    assert np.abs(found).max() > 0.5, activations
