"""What the answers of the checklist are computed from, and how lists of values are written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pandas as pd

from clue_ray.errors import SpecError
from clue_ray.report import numbers
from clue_ray.report.read import StudyFiles
from clue_ray.scaling.answering.analysis import Analysis
from clue_ray.scaling.answering.sentences import listing
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import CorpusSpec, RunSpec, StudySpec

MOST_LISTED = 4
"""Values that are listed; of more, the ends and the number are written."""


@dataclass(frozen=True)
class Evidence:
    """The record of a study.

    Attributes:
        files: the files of the study.
        analysis: the fitted laws; None without any.
        reason: why there is no analysis.
        runs: the runs of the study file; empty without a usable one.
    """

    files: StudyFiles
    analysis: Analysis | None
    reason: str
    runs: tuple[RunSpec, ...]

    @classmethod
    def build(cls, files: StudyFiles, analysis: Analysis | None, reason: str) -> "Evidence":
        """Expand the study file into its runs."""
        return cls(files, analysis, reason, _expanded(files.study))

    @property
    def done(self) -> pd.DataFrame:
        """The finished runs."""
        return self.files.done

    @property
    def corpus_spec(self) -> CorpusSpec | None:
        """How the study file prepares the corpus; None where it names a prepared one."""
        corpus = self.files.study.corpus if self.files.study else None
        return corpus if isinstance(corpus, CorpusSpec) else None

    def column(self, name: str) -> pd.Series:
        """Return the known values of a column over the finished runs; empty without the column."""
        done = self.done
        return done[name].dropna() if name in done else pd.Series(dtype=float)

    def number(self, name: str) -> pd.Series:
        """Return a column of the finished runs as numbers, nan where it has none."""
        return pd.to_numeric(self.done[name], errors="coerce").astype(float)

    def field(self, name: str) -> list[Any]:
        """List the distinct values of a dotted field over the runs of the study file."""
        return list(dict.fromkeys(reduce(getattr, name.split("."), run) for run in self.runs))

    def corpus(self, name: str, default: Any = None) -> Any:
        """Return an entry of the corpus summary, or else of the study file's corpus."""
        found = self.files.corpus.get(name)
        return getattr(self.corpus_spec, name, default) if found is None else found


def _expanded(study: StudySpec | None) -> tuple[RunSpec, ...]:
    try:
        return tuple(expand(study)) if study else ()
    except SpecError:  # the page warns of a study file that cannot be used
        return ()


def spread(values: Iterable[Any], write: Callable[[Any], str] = numbers.compact) -> str:
    """Write distinct values: 8, 16 and 40; of many numbers the ends: 8 to 192 (5 values)."""
    known = set(values)
    if len(known) > MOST_LISTED and not any(isinstance(value, str) for value in known):
        return f"{write(min(known))} to {write(max(known))} ({len(known)} values)"
    return listing([write(value) for value in sorted(known, key=_order)])


def _order(value: Any) -> tuple[bool, Any]:
    return (True, value) if isinstance(value, str) else (False, value)


def plain(value: Any) -> str:
    """Write a setting as in a study file: 0.003, cosine, True."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentences(*parts: str) -> str:
    """Join the parts that are known, with semicolons."""
    return "; ".join(filter(None, parts))
