"""Which users of a global batch each worker encodes."""

import numpy as np
from numpy.typing import NDArray


def deal(lengths: NDArray[np.int64], workers: int) -> NDArray[np.int64]:
    """Deal users to workers so that each gets about the same number of events.

    Users are dealt longest first, to the workers from the first to the last, then back (as a snake
    goes): workers wait for the slowest of them in every step. One worker keeps the drawn order.

    Args:
        lengths: events of each user, [users].
        workers: number of workers, a divisor of the number of users.

    Returns:
        Users of each worker, [workers, users / workers].
    """
    users = np.arange(len(lengths))
    if workers == 1:
        return users[None]
    rounds = np.argsort(-lengths, kind="stable").reshape(-1, workers)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T
