"""Two studies on one page: the difference is the planted one; other studies are refused."""

import json
from pathlib import Path

import pytest

from clue_ray.errors import RunsError
from clue_ray.report.compare import Comparison, compare_studies, difference
from clue_ray.report.read import SOURCE
from clue_ray.runs import Runs
from clue_ray.scaling.fitting.result import Prediction
from tests.report.planted import planted, write_study


@pytest.fixture(scope="module")
def compared(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """The planted study against one whose losses are 0.2 nats higher."""
    table = planted()
    table["loss"] += 0.2
    second = write_study(
        tmp_path_factory.mktemp("second"), table.assign(study="worse", corpus_digest="other")
    )
    return compare_studies([study, second])


def test_difference_is_the_planted_one_within_its_interval(
    compared: tuple[Path, Comparison],
) -> None:
    page, found = compared
    gap = found.differences[-1]
    assert gap.low < -0.2 < gap.high < 0
    assert gap.value == pytest.approx(found.losses[0][-1].value - found.losses[1][-1].value)
    assert "is lower than that of" in found.sentence()
    document = json.loads(json.dumps(found.to_dict()))
    assert document["differences"]
    assert [each["of"] for each in document["forecasts"]] == [*found.names, "difference"]
    html = page.read_text(encoding="utf-8")
    assert found.sentence() in html
    assert "different corpora" in html
    assert "http://" not in html.replace("http://www.w3", "")


def test_beyond_the_runs_forecasts_are_compared(compared: tuple[Path, Comparison]) -> None:
    page, found = compared
    first, second, gap = found.ahead
    for made, one in zip((first, second), found.analyses, strict=True):
        assert one.forecast is not None
        assert tuple(made) == pytest.approx((one.forecast.value, *one.forecast.interval(0.8)))
    assert gap.low < -0.2 < gap.high
    assert "10 times the largest compute of both, the forecasts are" in found.sentence()
    assert "The forecasts beyond both" in page.read_text(encoding="utf-8")


def test_difference_of_equal_studies_holds_zero() -> None:
    one = Prediction(5.0, 4.9, 5.3)
    assert difference(one, one) == pytest.approx(
        (0.0, -((0.1**2 + 0.3**2) ** 0.5), (0.1**2 + 0.3**2) ** 0.5)
    )


def test_other_candidates_are_refused(study: Path, tmp_path: Path) -> None:
    Runs(planted().assign(loss_candidates=64)).write(tmp_path)
    with pytest.raises(
        RunsError,
        match=r"among 256 candidates and those of .* among 64, so they cannot be compared",
    ):
        compare_studies([study, tmp_path])


def test_runs_of_other_tools_keep_their_units(tmp_path: Path) -> None:
    names = {"train_flops": {"label": "tokens", "unit": ""}, "loss": {"label": "bpb", "unit": ""}}
    for name, change in (("a", 0.0), ("b", 0.1), ("c", 0.0)):
        table = planted().drop(columns="loss_candidates")
        Runs(table.assign(loss=table["loss"] + change)).write(tmp_path / name)
        called = names if name != "c" else {**names, "loss": {"label": "ppl", "unit": ""}}
        source = {"name": name, "names": called, "notes": [], "warnings": [], "path": name}
        (tmp_path / name / SOURCE).write_text(json.dumps(source))
    page, found = compare_studies([tmp_path / "a", tmp_path / "b"])
    assert " nats" not in found.sentence() + page.read_text(encoding="utf-8")
    assert " FLOP" not in found.sentence()
    with pytest.raises(RunsError, match="other columns for compute and loss"):
        compare_studies([tmp_path / "a", tmp_path / "c"])


@pytest.mark.slow
def test_studies_that_share_no_compute_have_no_difference(study: Path, tmp_path: Path) -> None:
    table = planted()
    table["train_flops"] *= 1e6
    Runs(table).write(tmp_path)
    _, found = compare_studies([study, tmp_path])
    assert not found.differences
    assert "share no compute" in found.sentence()


def test_one_study_or_three_are_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="3 studies are given"):
        compare_studies([study] * 3)
    Runs(planted(runs=2)).write(tmp_path)
    with pytest.raises(RunsError, match=r"cannot be compared: No law could be fitted"):
        compare_studies([study, tmp_path])
