"""How often a run may die: any number of times, as long as it progresses in between.

Ray Tune counts the deaths of a trial over its whole life. On machines that are taken back again and
again, a long run would use up any number of tries although nothing is wrong with it.
"""

from typing import Any

from ray import tune

DEATHS_IN_PLACE = 3
"""Times that a trial starts again without having passed the step at which it died before."""


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
