"""Scaling-law studies of user encoders on Ray: from event logs to a report with laws and intervals.

The public names are imported when they are first used, so that fitting a table loads neither torch
nor ray.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ClueRayError": "clue_ray.errors",
    "Corpus": "clue_ray.corpus.store",
    "CorpusSpec": "clue_ray.spec.specs",
    "EncoderSpec": "clue_ray.spec.specs",
    "EvaluationSpec": "clue_ray.spec.specs",
    "RunRecord": "clue_ray.runs",
    "RunSpec": "clue_ray.spec.specs",
    "Runs": "clue_ray.runs",
    "StudySpec": "clue_ray.spec.specs",
    "TrainSpec": "clue_ray.spec.specs",
    "allocate": "clue_ray.scaling.deciding.allocate",
    "analyse": "clue_ray.scaling.answering.analysis",
    "backtest": "clue_ray.scaling.judging.backtest",
    "budget_for_loss": "clue_ray.scaling.deciding.budget",
    "build_corpus": "clue_ray.corpus.build",
    "embed_users": "clue_ray.transfer.embed.embed",
    "export_model": "clue_ray.transfer.export",
    "fit_law": "clue_ray.scaling.fitting.fit",
    "forecast": "clue_ray.scaling.forecasting.forecast",
    "identifiability": "clue_ray.scaling.judging.identifiability",
    "import_runs": "clue_ray.foreign.table",
    "influence": "clue_ray.scaling.judging.panels",
    "load_encoder": "clue_ray.transfer.encode",
    "marginal_returns": "clue_ray.scaling.deciding.budget",
    "open_corpus": "clue_ray.corpus.store",
    "plan_study": "clue_ray.study.run",
    "read_runs": "clue_ray.runs",
    "read_study": "clue_ray.spec.specs",
    "read_task": "clue_ray.transfer.tasks.spec",
    "run_study": "clue_ray.study.run",
    "run_task": "clue_ray.transfer.tasks.evaluate",
    "sensitivity": "clue_ray.scaling.judging.panels",
    "steps_to_loss": "clue_ray.scaling.deciding.critical_batch",
    "train_point": "clue_ray.study.run",
    "train_run": "clue_ray.training.loop",
    "tune_results": "clue_ray.study.tune",
    "write_report": "clue_ray.report.page",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clue_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
