"""How often a run may die: any number of times, as long as it progresses in between.

Ray Tune counts the deaths of a trial over its whole life. On machines that are taken back again and
again, a long run would use up any number of tries although nothing is wrong with it.
"""

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback

DEATHS_IN_PLACE = 3
"""Times that a trial starts again without having passed the step at which it died before."""


class _Patient(LoggerCallback):
    """Logs of Ray Tune that lose lines while the disk refuses, instead of ending the study."""

    def log_trial_start(self, trial: Any) -> None:
        """Open the files of a trial."""
        self._patiently(trial, super().log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Add a result of a trial."""
        self._patiently(trial, super().log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Close the files of a trial."""
        self._patiently(trial, super().log_trial_end, trial, failed)

    def _patiently(self, trial: Any, log: Callable[..., None], *facts: Any) -> None:
        try:
            log(*facts)
        except (OSError, ValueError, KeyError):
            # A file that could not be opened is missing, and one that could not be closed is
            # closed all the same: the next result opens it again.
            for held in ("_trial_files", "_trial_csv"):
                getattr(self, held, {}).pop(trial, None)


class PatientCsv(_Patient, CSVLoggerCallback):
    """progress.csv of each trial."""


class PatientJson(_Patient, JsonLoggerCallback):
    """result.json of each trial."""


class ForgivingProgress(tune.Callback):
    """Sets a trial's count of deaths back once it passes the step that it had reached before."""

    def __init__(self) -> None:
        self.reached: dict[str, int] = {}
        self.died_at: dict[str, int] = {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Keep the furthest step at which the trial died."""
        self.died_at[trial.trial_id] = self.reached.get(trial.trial_id, 0)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Forgive the deaths of a trial that has passed that step."""
        step = result.get("step") or 0
        self.reached[trial.trial_id] = max(step, self.reached.get(trial.trial_id, 0))
        if step > self.died_at.get(trial.trial_id, step):
            del self.died_at[trial.trial_id]
            # Tune offers no call for it; `tests/study/test_patience.py` watches the attribute.
            trial.run_metadata.num_failures = 0
