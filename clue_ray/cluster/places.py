"""The places of a study, as one node sees them.

It runs in a task on each node before anything trains, so it imports no torch, which the first
process of a node would take seconds to load.
"""

from typing import NamedTuple

from clue_ray.errors import ClueRayError, reason_of
from clue_ray.storage.files import read_file, read_file_once
from clue_ray.storage.place import check_writable

REMEDY = (
    "give resources.checkpoints and --storage folders or URIs that every node can write with its "
    "own credentials"
)


class Places(NamedTuple):
    """What a node checks.

    Attributes:
        written: Folders and URIs that the node must see and be able to write to.
        probe: Name of the file that lies in each of them.
        corpus: Folder or URI of the corpus, if there is one.
    """

    written: tuple[str, ...]
    probe: str
    corpus: str | None


def find_failure(places: Places) -> str:
    """Return the first place that this node does not see or cannot write to, or an empty string."""
    try:
        for place in places.written:
            if read_file_once(place, places.probe) is None:
                return f"does not see {place}"
        if places.corpus and read_file(places.corpus, "corpus.json") is None:
            return f"does not see {places.corpus}"
        # Only now: writing to a place that is not shared would create a folder on this node's disk.
        for place in places.written:
            check_writable(place, REMEDY)
    except (ClueRayError, OSError) as error:
        return f"cannot use storage: {reason_of(error).partition(';')[0]}"
    return ""
