"""The section "How this was measured": a checklist, answered from the study's own record.

The 27 items follow the checklist of "(Mis)Fitting: a survey of scaling laws" (Li et al. 2025, arXiv
2502.18969) under its four heads. Each answer is computed from the study file, the corpus summary,
the runs table, the learning curves, the fits and the constants of the code. An item that these
cannot answer is shown as not recorded.
"""

from collections.abc import Callable

from clue_ray.report.read import StudyFiles
from clue_ray.report.section import Section
from clue_ray.report.sections.checklist import fitting, training
from clue_ray.report.sections.checklist.evidence import Evidence
from clue_ray.report.sections.evidence import provenance
from clue_ray.report.tables import Table, text
from clue_ray.scaling.answering.analysis import Analysis

NOT_RECORDED = "not recorded"
SOURCE = (
    "The items follow the checklist of (Mis)Fitting: a survey of scaling laws (arXiv "
    "2502.18969). The answers are generated from the study's record and from the code that made "
    "this page."
)
Answer = Callable[[Evidence], str]

CHECKLIST: dict[str, dict[str, Answer]] = {
    "Scaling-law hypothesis": {
        "form of each law": fitting.form,
        "variables": fitting.variables,
        "fitted parameters": fitting.parameters,
        "source of each form": fitting.sources,
        "assumptions of each form": fitting.assumptions,
    },
    "Training setup": {
        "number of models": training.models,
        "sizes": training.sizes,
        "data per model": training.data,
        "source and licence of the data": training.source,
        "repeated data": training.repeated,
        "tokenizer and vocabulary": training.vocabulary,
        "how size is counted": training.size_counted,
        "how compute is counted": training.compute_counted,
        "architecture": training.architecture,
        "optimizer": training.optimizer,
        "learning rate, schedule and batch": training.schedule,
        "tuning per scale": training.tuning,
        "code and precision": training.code,
    },
    "Data collection": {
        "evaluations per model": training.evaluations,
        "checkpoints": training.checkpoints,
        "metric": training.metric,
        "evaluation data": training.pool,
        "changes to the measured values": training.changes,
    },
    "Fitting": {
        "objective": fitting.objective,
        "algorithm and starts": fitting.algorithm,
        "runs fitted": fitting.fitted,
        "validation": fitting.validation,
    },
}
"""Items by head, each with the function that answers it; an empty answer is not recorded."""


def measured(files: StudyFiles, analysis: Analysis | None, reason: str = "") -> Section:
    """List how the study was measured, and what the page was made from.

    Args:
        reason: why there is no analysis; empty where there is one.
    """
    evidence = Evidence.build(files, analysis, reason)
    tables = tuple(_table(head, items, evidence) for head, items in CHECKLIST.items())
    title = "How this was measured"
    return Section(
        "measured", title, "how this was measured", (SOURCE,), (), (*tables, provenance(files))
    )


def _table(head: str, items: dict[str, Answer], evidence: Evidence) -> Table:
    rows = tuple((text(item), text(find(evidence) or NOT_RECORDED)) for item, find in items.items())
    return Table((head, ""), rows, look="facts")
