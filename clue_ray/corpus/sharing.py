"""Share what is read, with its catalogues, with the workers of a Ray session.

A task loads the catalogues and leaves the reading in the object store. The workers of a node map it
without a copy, and the driver learns only its counts. This is a broadcast join: every node holds
the whole catalogue once. A shuffle join would sort the log once more for each catalogue.
"""

from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError

from clue_ray.corpus.logs.catalogue import describe_catalogues, load_catalogues
from clue_ray.corpus.logs.reading import Reading
from clue_ray.errors import EventLogError


def share_reading(reading: Reading) -> tuple["ray.ObjectRef[Reading]", dict[str, dict[str, Any]]]:
    """Put a reading into the object store; return its reference and what its catalogues hold.

    Raises:
        EventLogError: a catalogue cannot be read, is empty, or repeats a key.
    """
    if not reading.catalogues:
        return ray.put(reading), {}
    selector = ray.data.DataContext.get_current().execution_options.label_selector
    load = ray.remote(num_cpus=1, num_returns=2, label_selector=selector)(_load)
    shared, described = load.remote(reading)
    try:
        return shared, ray.get(described)
    except RayTaskError as error:
        if isinstance(error.cause, EventLogError):
            raise error.cause from None
        raise


def _load(reading: Reading) -> tuple[Reading, dict[str, dict[str, Any]]]:
    loaded = load_catalogues(reading)
    return loaded, describe_catalogues(loaded)
