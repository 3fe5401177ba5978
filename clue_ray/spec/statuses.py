"""The status of a run, and the words that other tools have for it."""

from typing import Literal

Status = Literal["done", "failed", "diverged", "missing"]
_OTHER_TOOLS: dict[Status, str] = {
    "done": "finished finish completed complete success successful succeeded terminated ok passed",
    "failed": "fail failure error errored crashed crash killed aborted canceled cancelled "
    "cancelling timeout timed_out out_of_memory node_fail boot_fail deadline preempted pruned "
    "stopped broken",
    "diverged": "nan exploded",
    "missing": "running run pending queued scheduled waiting created starting in_progress "
    "inprogress paused resuming not_started submitted configuring completing suspended",
}
"""Our status -> what Weights & Biases, MLflow, Slurm, Optuna, Ray Tune and cloud services write."""
STATUSES: dict[str, Status] = {
    word: status for status, words in _OTHER_TOOLS.items() for word in (status, *words.split())
}
STATUS_NAMES = ("state", "run_state", "run_status", "trial_state", "trial_status", "job_state")
"""What other tools call the column of statuses, next to Status."""
