"""Published fits are reproduced from their points, where these are next to the checkout."""

import time

import pytest

from benchmarks.anchors import FITDATA, Anchor, anchors, epoch_fit, epoch_points
from clue_ray.scaling.deciding.allocate import allocate
from clue_ray.scaling.fitting.fit import fit_law

pytestmark = pytest.mark.skipif(
    not FITDATA.is_dir(), reason=f"{FITDATA} is not next to this checkout"
)


def test_every_anchor_is_met() -> None:
    """24 numbers of anchors.csv, the bar of the best objective, 15 exponents of Porian et al., two
    isoFLOP sets."""
    found = list(anchors())
    missed = [
        f"{anchor.name}: published {anchor.published}, ours {anchor.ours}"
        for anchor in found
        if not anchor.met
    ]
    assert not missed
    assert len(found) == 24 + 1 + 15 + 2


def test_an_anchor_can_be_missed() -> None:
    one = Anchor("one", published=1.8, ours=1.8001, tolerance=1e-3)
    assert one.met
    assert not one._replace(ours=one.published + 2 * one.tolerance).met
    assert not one._replace(ours=one.published - 2 * one.tolerance).met
    low = one._replace(at_most=True)
    assert low._replace(ours=0.0).met
    assert not low._replace(ours=one.published + 2 * one.tolerance).met


def test_epoch_is_quick_and_allocates() -> None:
    began = time.perf_counter()
    found = fit_law("parametric_loss", epoch_points(), x=["N", "D"], y="L")
    assert time.perf_counter() - began < 2  # about 0.05 s on an idle core
    assert found.num_runs == 240
    assert found.objective == epoch_fit().objective
    assert found.rivals == (1, 1)
    assert allocate(found, 5.76e23).non_embedding_params.value == pytest.approx(73.2e9, rel=2e-3)


def test_epoch_intervals_are_the_published_ones_and_a_warning_says_that_the_profile_differs() -> (
    None
):
    """Published, by drawing points: E 1.769 to 1.871, beta .331 to .415; the profile's E is half as
    wide."""
    found = epoch_fit()
    for name, ends in {"E": (1.769, 1.871), "beta": (0.331, 0.415)}.items():
        assert found.interval(name) == pytest.approx(ends, abs=0.01)
        assert found.known_interval(name) == found.interval(name) == found.bootstrap_interval(name)
    place = {"N": 1e11, "D": 1e12}
    assert found.predict(**place) == found.bootstrap_predict(**place)
    assert "bootstrap and profile intervals differ" in found.warnings[-1]
    assert found.to_dict()["warnings"]
