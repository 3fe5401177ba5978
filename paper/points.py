"""The runs of the open CLUE study, sorted by the question they answer.

Takes `runs.csv` and a study file, gives the rows in which one thing varies. One idea: which runs
belong together is read off the study file's base, never off names."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from clue_ray.spec.specs import StudySpec, read_study

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies" / "open-clue"
TITLES = {
    "planted": "planted log",
    "completejourney": "grocery baskets",
    "amazon": "Amazon reviews",
}
VARIED = {"length": "sequence_length", "batch": "global_batch_size", "users": "corpus_users"}
SAME_STEPS = 1.03
"""Runs of one budget and shape differ by so little in steps between seeds."""
SAME_BUDGET = 1.08
"""Runs of one budget see other users, so what they spend differs by so little."""

SAME_TRAINING = ["width", *VARIED.values(), "steps", "seed", "train_flops", "loss"]
"""Columns in which runs that trained the same thing agree."""
LEARNT = 0.05
"""Nats below a guess from which a setting has learnt something."""


@dataclass(frozen=True, eq=False)
class Points:
    """One corpus's finished runs.

    Attributes:
        name: planted, completejourney or amazon.
        runs: one row a run, loss in nats.
    """

    name: str
    spec: StudySpec
    runs: pd.DataFrame

    @property
    def title(self) -> str:
        """What a reader calls the corpus."""
        return TITLES[self.name]

    @cached_property
    def base(self) -> dict[str, int]:
        """What all runs share that do not vary it."""
        train = self.spec.base.train
        return {
            "sequence_length": self.spec.base.sequence_length,
            "global_batch_size": train.global_batch_size,
            "corpus_users": int(self.runs["corpus_users"].max()),
            "steps": int(train.steps or 0),
        }

    @property
    def seen(self) -> int:
        """Users that a run of the base's steps and batch sees."""
        return self.base["steps"] * self.base["global_batch_size"]

    def equal_steps(self, varied: str) -> pd.DataFrame:
        """Rows of the base's steps in which size and `length`, `batch` or `users` vary."""
        return self._fixed(
            {key: value for key, value in self.base.items() if key != VARIED[varied]}
        )

    def equal_examples(self) -> pd.DataFrame:
        """Rows that see as many users as the base, in batches of any size."""
        found = self._fixed(
            {
                "sequence_length": self.base["sequence_length"],
                "corpus_users": self.base["corpus_users"],
            }
        )
        found = found[found["users_seen"] == self.seen]
        return found[found["width"].isin(found.loc[found["steps"] != self.base["steps"], "width"])]

    def equal_compute(self) -> pd.DataFrame:
        """Rows of a budget that has batches of several sizes, with the column `budget`, FLOP."""
        rows = self.budgeted()
        several = rows[rows["global_batch_size"] != self.base["global_batch_size"]]
        return rows[rows["budget"].isin(several["budget"]) & rows["width"].isin(several["width"])]

    def isoflop(self) -> pd.DataFrame:
        """Rows of a budget and the base's batch, with the column `budget`, FLOP."""
        rows = self.budgeted()
        return rows[rows["global_batch_size"] == self.base["global_batch_size"]]

    def budgeted(self) -> pd.DataFrame:
        """Rows that spend one of the study's budgets."""
        rows = self._fixed(
            {
                "sequence_length": self.base["sequence_length"],
                "corpus_users": self.base["corpus_users"],
            }
        )
        axes = self.spec.axes if isinstance(self.spec.axes, list | tuple) else [self.spec.axes]
        budgets = sorted({float(b) for grid in axes for b in grid.get("budgets", ())})
        rows = rows[
            (rows["steps"] != self.base["steps"]) & (rows["users_seen"] != self.seen)
        ]  # other horizons
        near = {b: (rows["train_flops"] / b).between(1 / SAME_BUDGET, SAME_BUDGET) for b in budgets}
        return pd.concat([rows[mask].assign(budget=budget) for budget, mask in near.items()])

    def noise(self) -> float:
        """Standard deviation of the loss between seeds, nats, pooled over the settings with several
        seeds that learn.

        These saw all users and ended `LEARNT` below a guess: runs at chance hardly differ, those
        that overfit few users differ far more."""
        keys = ["width", *VARIED.values()]
        rows = self.runs.sort_values([*keys, "steps"])
        jumps = rows["steps"] > SAME_STEPS * rows["steps"].shift()
        other = (rows[keys] != rows[keys].shift()).any(axis=1)
        rows = rows.assign(setting=(jumps | other).cumsum())
        rows = rows[rows["corpus_users"] == rows["corpus_users"].max()]
        groups = rows.groupby("setting")["loss"]
        learnt = groups.mean() < np.log(rows["loss_candidates"].iloc[0]) - LEARNT
        several = groups.var()[(groups.size() > 1) & learnt]
        freedom = groups.size()[several.index] - 1
        return float(np.sqrt((several * freedom).sum() / freedom.sum()))

    def _fixed(self, values: dict[str, int]) -> pd.DataFrame:
        return self.runs[
            np.logical_and.reduce([self.runs[key] == value for key, value in values.items()])
        ]


def read_points(table: Path = STUDIES / "runs.csv") -> dict[str, Points]:
    """Read every corpus's finished runs, by name; of two that trained the same thing, the first.

    A horizon in steps and one in users seen may be one: then the two runs are equal to the last
    digit."""
    runs = pd.read_csv(table)
    runs = runs[runs["status"] == "done"].drop_duplicates(["study", *SAME_TRAINING])
    specs = {name: read_study(STUDIES / f"{name}.yaml") for name in TITLES}
    own = {name: runs[runs["study"] == spec.name] for name, spec in specs.items()}
    return {name: Points(name, specs[name], rows) for name, rows in own.items() if len(rows)}


def seed_means(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Average the loss over seeds: columns `by`, loss, seeds."""
    found = rows.groupby(list(by))["loss"].agg(["mean", "size"]).reset_index()
    return found.rename(columns={"mean": "loss", "size": "seeds"})
