"""Plans over the planted corpus without timing, shared by the tests of plans and warnings."""

from functools import partial

from clue_ray.spec.specs import StudySpec
from clue_ray.study.checks import check_study
from clue_ray.study.costs import fixed_rate
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import Plan
from clue_ray.study.planner import plan_runs

NODE = {"CPU": 2.0, "trial_slot": 8.0}


def make_study(axes, train=None, **changes) -> StudySpec:
    document = {
        "name": "tiny",
        "corpus": "planted",
        "base": {
            "encoder": {"size": "xxs", "output_width": 16},
            "train": {"global_batch_size": 16, "steps": 20, **(train or {})},
            "sequence_length": 4,
        },
        "axes": axes,
        "evaluation": {"candidates": 16},
    }
    return StudySpec.parse({**document, **changes}, "tiny.yaml")


def plan(corpus, folder, axes, train=None, retry_failed=False, **changes) -> Plan:
    study = make_study(axes, train, **changes)
    check_study(study)
    return plan_runs(
        study,
        corpus,
        StudyDirectory(folder),
        [NODE],
        retry_failed=retry_failed,
        timed=partial(fixed_rate, flops_per_second=1e9),
    )
