"""The section of sizes at equal compute: the interval of the line, and the law of size and data."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from clue_ray.report.numbers import interval
from clue_ray.report.read import StudyFiles
from clue_ray.report.sections import axes
from clue_ray.scaling.answering.axes import axis_effects
from clue_ray.scaling.deciding.isoflop import fit_isoflop
from tests.scaling.test_isoflop import noisy, planted


def words(table: object) -> str:
    files: StudyFiles = SimpleNamespace(done=table)  # type: ignore[assignment]
    section = axes.isoflop(files)
    assert section is not None
    return " ".join(section.words)


def test_both_exponents_have_their_intervals() -> None:
    table = noisy(3, 1).rename(columns={"n": "non_embedding_params"})
    found, said = fit_isoflop(table, size="non_embedding_params"), words(table)
    assert f"to the power {interval(found.line.exponent, *found.interval())}." in said
    assert f"implies {interval(*found.parametric)}." in said
    assert "to the power 0.498 [unbounded]" in words(
        noisy(2, 1).rename(columns={"n": "non_embedding_params"})
    )


def test_a_law_that_gives_no_exponent_is_named() -> None:
    table = planted().rename(columns={"n": "non_embedding_params"})
    said = words(table.assign(loss=np.tile(table["loss"].iloc[:7], 3)))
    assert (
        "A law of size and data gives no exponent to compare: The runs bound neither exponent"
        in said
    )


def test_a_blank_in_an_axis_leaves_the_other_runs() -> None:
    size = np.array([1e3, 2e3, 4e3, 8e3, np.nan])
    table = pd.DataFrame({"non_embedding_params": size, "loss": [5.0, 4.8, 4.6, 4.4, 4.3]})
    (effect,) = axis_effects(table.assign(steps=100, run_id=list("abcde")))
    (whole,) = axis_effects(table.dropna().assign(steps=100, run_id=list("abcd")))
    assert repr(effect) == repr(whole)
