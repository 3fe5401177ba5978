"""The shipped studies: every file expands, and the laptop studies can be planned."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from clue_ray.corpus.planted import PlantedSpec, planted_events
from clue_ray.spec.grid import check_size, expand
from clue_ray.spec.specs import StudySpec, read_study
from clue_ray.study.checks import check_batch
from clue_ray.study.costs import fixed_rate
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planner import plan_runs
from tests.plain import plain_corpus
from tests.study.planning import NODE

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
LAPTOP_FLOPS = 8e12
"""What one run may ask for: minutes on a core."""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A corpus of 1,350 users, few events each."""
    folder = tmp_path_factory.mktemp("crowd")
    spec = PlantedSpec(
        users=1350, services=2, topics=8, concentration=2, items_per_topic=5, events=3
    )
    pq.write_table(planted_events(spec), folder / "events.parquet")
    return plain_corpus(
        folder / "events.parquet", folder / "corpus", {"validation": 0.05, "test": 0.22}
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_study_expands_and_says_what_it_is(file):
    study = read_study(file)
    check_size(study)
    assert expand(study)
    assert study.name == file.stem
    assert study.question.endswith("?")
    for run in expand(study):
        check_batch(run)
    opening = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"studies/{file.name}" in line for line in opening)
    assert all(len(line) <= 120 for line in opening)


@pytest.mark.parametrize(
    "file", [f for f in FILES if "laptop" in f.stem], ids=lambda file: file.stem
)
def test_a_laptop_study_plans(file, crowd, tmp_path):
    study = read_study(file)
    planned = plan_runs(
        study,
        crowd,
        StudyDirectory(tmp_path),
        [NODE],
        timed=partial(fixed_rate, flops_per_second=1e10),
    )
    assert len(planned.runs) == len(expand(study))
    assert planned.concurrency == 2
    assert not any("vary together" in warning for warning in planned.warnings)
    assert max(run.train_flops for run in planned.runs) < LAPTOP_FLOPS
    assert (file.with_name(file.name.replace("-laptop", ""))).exists()


def test_the_guide_s_examples_expand():
    """Every YAML block of docs/guide/studies.md is a study, or what replaces keys of the first,
    which is one."""
    text = (Path(__file__).parents[2] / "docs" / "guide" / "studies.md").read_text()
    blocks = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml")[1:]]
    assert len(blocks) >= 5
    for block in blocks:
        study = StudySpec.parse({**blocks[0], **block}, "docs/guide/studies.md")
        check_size(study)
        assert len(expand(study)) > 1
