"""Run a round of the tasks of a layout with Ray, on the nodes where Ray Data runs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
import ray.data

from clue_ray.corpus.layout.plan import LayoutPlan

CANCEL_SECONDS = 60.0
"""How long tasks may take to end once they are cancelled: as long as one call into Arrow."""


def run_on_nodes(
    task: Callable[..., Any], plan: LayoutPlan, arguments: Iterable[Sequence[Any]]
) -> list[Any]:
    """Call `task(plan, number, *arguments[number])` for every number; return the results.

    The rounds are plain tasks: each starts within milliseconds, a dataset within a second. When one
    fails, the others have ended before its error is raised.
    """
    selector = ray.data.DataContext.get_current().execution_options.label_selector
    remote = ray.remote(num_cpus=1, label_selector=selector)(task)
    shared = ray.put(plan)
    tasks = [remote.remote(shared, number, *given) for number, given in enumerate(arguments)]
    try:
        return list(ray.get(tasks))
    except BaseException:
        # The others would write into the folder that is deleted next, and so create it again.
        for each in tasks:
            ray.cancel(each)
        ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)
        raise
