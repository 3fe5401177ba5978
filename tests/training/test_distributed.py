"""Ray Train with two workers trains the same run as one process."""

import pytest

from clue_ray.spec import read_study
from clue_ray.study.execute import run_study

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

EXECUTION = {"executed_flops", "wall_seconds", "tokens_per_second", "num_workers", "started_at", "study"}


def test_two_workers_equal_one(planted_log, write_study, tmp_path):
    one = {"sequence_length": [4], "resources.workers": [1]}
    two = {"sequence_length": [4], "resources.workers": [2]}
    records = []
    for name, grid in (("one", one), ("two", two)):
        study = read_study(write_study(planted_log, name=name, axes=grid, evaluation={"candidates": 16}))
        records.append(run_study(study, tmp_path / "out").table.iloc[0].to_dict())
    assert [record["status"] for record in records] == ["done", "done"]
    assert [record["num_workers"] for record in records] == [1, 2]
    for column in records[0].keys() - EXECUTION:
        a, b = (record[column] for record in records)
        assert a == pytest.approx(b, abs=1e-5) if isinstance(a, float) else a == b, column
