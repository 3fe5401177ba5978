"""Every shipped task has a question and a command; those with a log here make examples."""

from pathlib import Path

import pytest

from clue_ray.spec.grid import expand
from clue_ray.spec.specs import read_study
from clue_ray.transfer.tasks.examples import make_examples, plan_events, read_events
from clue_ray.transfer.tasks.spec import read_task

FOLDER = Path(__file__).parents[2] / "studies" / "transfer"
OPEN = FOLDER.parent / "open-clue"
STUDIES = sorted(FOLDER.glob("*-study.yaml"))
TASKS = sorted(set(FOLDER.glob("*.yaml")) - set(STUDIES))
JOURNEY = [
    FOLDER.parent / "completejourney" / f"{what}.yaml"
    for what in ("departments", "categories", "kids")
]
AMAZON = FOLDER.parents[1] / "data" / "amazon-cdsr" / "events.parquet"


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_shipped_task_has_a_question_and_its_command(file):
    task = read_task(file)
    assert task.name == file.stem
    assert task.question.endswith("?")
    assert f"clue-ray transfer RUN studies/transfer/{file.name}" in file.read_text()
    (study,) = [
        read_study(one) for one in STUDIES if file.stem.startswith(one.stem.removesuffix("-study"))
    ]
    assert task.events == study.corpus.events
    held_out = study.corpus.split.test
    # No encoder of the study was trained on the test users.
    assert task.other_company or task.split.test <= held_out


@pytest.mark.parametrize("file", sorted(OPEN.glob("tasks/*.yaml")), ids=lambda file: file.stem)
def test_a_task_of_the_open_study_has_held_out_test_users(file):
    task, corpus = read_task(file), read_study(OPEN / f"{file.stem.split('-')[0]}.yaml").corpus
    assert task.events == corpus.events
    assert task.split.test <= corpus.split.test
    assert f"clue-ray transfer results/open-clue-{file.stem.split('-')[0]} " in file.read_text()


@pytest.mark.parametrize("file", JOURNEY, ids=lambda file: file.stem)
def test_a_task_of_next_week_reads_what_its_encoders_read_and_nothing_later(file):
    task, corpus = read_task(file), read_study(file.parent / "study.yaml").corpus
    assert (task.events, task.columns) == (corpus.events, corpus.columns)
    assert task.items == corpus.items
    assert task.time == corpus.split.time
    assert task.split.test <= corpus.split.test
    assert task.question.endswith("?")
    assert f"clue-ray transfer RUN studies/completejourney/{file.name}" in file.read_text()


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_of_encoders_has_the_single_service_baseline(file):
    shares = {run.train.same_service for run in expand(read_study(file))}
    assert min(shares) < 0.5
    assert max(shares) == 0.99


@pytest.mark.skipif(not AMAZON.exists(), reason="data/amazon-cdsr/events.parquet is not here")
@pytest.mark.parametrize(
    "file", [file for file in TASKS if "amazon" in file.stem], ids=lambda file: file.stem
)
def test_an_amazon_task_makes_examples(file):
    task = read_task(file).model_copy(update={"events": str(AMAZON)})
    examples = make_examples(task, *read_events(plan_events(task)))
    assert len(examples.rows("test")) > 200
    assert len(examples.names) > 100
    assert set(examples.inputs["service"].to_pylist()) == set(task.services)
