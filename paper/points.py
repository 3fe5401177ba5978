"""Select the runs of the open CLUE study by the question they answer.

Runs that belong together are found by comparing their columns with the base of the study file.
"""

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
"""Largest ratio of steps between seeds of one budget and shape."""
SAME_BUDGET = 1.08
"""Largest ratio of compute within a budget: its runs see different users, so they differ."""
SAME_TRAINING = ["width", *VARIED.values(), "steps", "seed", "train_flops", "loss"]
"""Columns that are equal in two runs of the same training."""
LEARNT = 0.05
"""A setting has learnt if its mean loss is this many nats below chance."""


@dataclass(frozen=True, eq=False)
class Points:
    """The finished runs on one corpus.

    Attributes:
        name: "planted", "completejourney" or "amazon".
        spec: The study file.
        runs: One row per run, loss in nats.
    """

    name: str
    spec: StudySpec
    runs: pd.DataFrame

    @property
    def title(self) -> str:
        """Name of the corpus on the page."""
        return TITLES[self.name]

    @cached_property
    def base(self) -> dict[str, int]:
        """Base values of the axes, and the base's steps."""
        train = self.spec.base.train
        return {
            "sequence_length": self.spec.base.sequence_length,
            "global_batch_size": train.global_batch_size,
            "corpus_users": int(self.runs["corpus_users"].max()),
            "steps": int(train.steps or 0),
        }

    @property
    def seen(self) -> int:
        """Users seen by a run with the base's steps and batch."""
        return self.base["steps"] * self.base["global_batch_size"]

    def equal_steps(self, varied: str) -> pd.DataFrame:
        """Select runs with the base's steps that vary size and `length`, `batch` or `users`."""
        return self._fixed(
            {key: value for key, value in self.base.items() if key != VARIED[varied]}
        )

    def equal_examples(self) -> pd.DataFrame:
        """Select runs that see as many users as the base, in batches of any size."""
        found = self._fixed(
            {
                "sequence_length": self.base["sequence_length"],
                "corpus_users": self.base["corpus_users"],
            }
        )
        found = found[found["users_seen"] == self.seen]
        return found[found["width"].isin(found.loc[found["steps"] != self.base["steps"], "width"])]

    def equal_compute(self) -> pd.DataFrame:
        """Select runs of budgets with several batch sizes; column `budget` in FLOP."""
        rows = self.budgeted()
        several = rows[rows["global_batch_size"] != self.base["global_batch_size"]]
        return rows[rows["budget"].isin(several["budget"]) & rows["width"].isin(several["width"])]

    def isoflop(self) -> pd.DataFrame:
        """Select runs of a budget with the base's batch; column `budget` in FLOP."""
        rows = self.budgeted()
        return rows[rows["global_batch_size"] == self.base["global_batch_size"]]

    def budgeted(self) -> pd.DataFrame:
        """Select runs that spend one of the study's budgets; column `budget` in FLOP."""
        rows = self._fixed(
            {
                "sequence_length": self.base["sequence_length"],
                "corpus_users": self.base["corpus_users"],
            }
        )
        axes = self.spec.axes if isinstance(self.spec.axes, list | tuple) else [self.spec.axes]
        budgets = sorted({float(b) for grid in axes for b in grid.get("budgets", ())})
        # The base's steps and users seen are other horizons, even where they cost as much.
        rows = rows[(rows["steps"] != self.base["steps"]) & (rows["users_seen"] != self.seen)]
        near = {b: (rows["train_flops"] / b).between(1 / SAME_BUDGET, SAME_BUDGET) for b in budgets}
        return pd.concat([rows[mask].assign(budget=budget) for budget, mask in near.items()])

    def noise(self) -> float:
        """Pool the standard deviation of the loss between seeds, in nats, over settings that learn.

        These settings have several seeds, saw all users and ended `LEARNT` below chance. Runs at
        chance hardly differ, and runs that overfit few users differ far more.
        """
        keys = ["width", *VARIED.values()]
        rows = self.runs.sort_values([*keys, "steps"])
        # Seeds of one budget differ a little in steps, so a setting ends where the steps jump.
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
    """Read the finished runs of every corpus, by name, without duplicates.

    A horizon in steps and one in users seen may be the same training. The losses of the two runs
    are then equal to the last digit, and the first is kept.
    """
    runs = pd.read_csv(table)
    runs = runs[runs["status"] == "done"].drop_duplicates(["study", *SAME_TRAINING])
    specs = {name: read_study(STUDIES / f"{name}.yaml") for name in TITLES}
    own = {name: runs[runs["study"] == spec.name] for name, spec in specs.items()}
    return {name: Points(name, specs[name], rows) for name, rows in own.items() if len(rows)}


def seed_means(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Average the loss over seeds; columns `by`, `loss` and `seeds`."""
    found = rows.groupby(list(by))["loss"].agg(["mean", "size"]).reset_index()
    return found.rename(columns={"mean": "loss", "size": "seeds"})
