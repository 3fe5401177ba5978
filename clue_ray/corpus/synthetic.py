"""Planted event logs: users with a known taste that shows in every service, so that there is something to find."""

import numpy as np
import pyarrow as pa


def planted_events(
    *, users: int, services: int = 3, topics: int = 12, events: int = 24, focus: float = 0.8, seed: int = 0
) -> pa.Table:
    """Draw a log in which each user prefers two topics, the same in every service.

    An event is about a preferred topic with probability `focus`, else about any; its text names the topic's words in
    the service's own vocabulary, so that nothing but the user ties two services together.

    Args:
        events: mean events of a user in a service; numbers vary from 1 to twice as many.

    Returns:
        columns user_id, service, timestamp (epoch seconds), text.
    """
    rng = np.random.default_rng(seed)
    preferred = rng.integers(0, topics, (users, 2))
    counts = rng.integers(1, 2 * events, (users, services))
    user, service = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices((users, services)))
    rows = len(user)
    chosen = preferred[user, rng.integers(0, 2, rows)]
    topic = np.where(rng.random(rows) < focus, chosen, rng.integers(0, topics, rows))
    variant = rng.integers(0, 20, rows)
    order = rng.permutation(rows)
    columns = {
        "user_id": [f"u{index:06d}" for index in user[order]],
        "service": [f"service-{chr(97 + index)}" for index in service[order]],
        "timestamp": 1_600_000_000 + rng.integers(0, 10**7, rows),
        "text": [
            f"{WORDS[t % len(WORDS)]} {chr(97 + s)}{t} model {v}"
            for t, s, v in zip(topic[order], service[order], variant[order], strict=True)
        ],
    }
    return pa.table(columns)


WORDS = ("tea", "bicycle", "novel", "garden", "camera", "guitar", "pasta", "tent", "lamp", "chess", "yarn", "soap")
