"""The benchmark's rival computes what we compute, else its speed would say nothing; and the check
can fail."""

import pytest
import torch

from benchmarks.training import SAME_GRADIENT, SAME_LOSS, Contest
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec


@pytest.mark.parametrize(("spoilt", "same"), [(1.0, True), (1.001, False)])
def test_the_rival_has_the_gradients_of_all_parameters(corpus, spoilt, same):
    shape = EncoderSpec(width=16, item_layers=2, service_layers=2, heads=2)
    run = RunSpec(encoder=shape, train=TrainSpec(global_batch_size=16, steps=1), sequence_length=8)
    contest = Contest(corpus, run, torch.float64)
    contest.rival.items.layers[1].linear2.weight.data *= spoilt
    loss, *gradients = contest.check()
    assert (loss < SAME_LOSS and max(gradients) < SAME_GRADIENT) == same
