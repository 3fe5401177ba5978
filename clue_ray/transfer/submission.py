"""Check a submission to the RecSys Challenge 2025, by the published description of its rules.

`client_ids.npy` is a one-dimensional int64 array, a permutation of `input/relevant_clients.npy`.
`embeddings.npy` is a float16 matrix with a row per client and at most 2,048 finite numbers.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clue_ray.errors import StudyError, reason_of
from clue_ray.transfer.embed.matrix import MOST_COLUMNS

ROWS_PER_CHECK = 65_536


def check_submission(data: str | Path, embeddings: str | Path) -> dict[str, int]:
    """Check a submission and return its number of clients and of numbers per client.

    Args:
        data: folder with input/relevant_clients.npy.
        embeddings: folder with client_ids.npy and embeddings.npy.

    Raises:
        StudyError: a rule is broken; the message names the first one.
    """
    relevant = _load(Path(data, "input", "relevant_clients.npy"))
    ids = _load(Path(embeddings, "client_ids.npy"))
    matrix = _load(Path(embeddings, "embeddings.npy"))
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise StudyError(
            f"client_ids.npy is {ids.dtype} of {ids.ndim} dimensions; int64 of one is required."
        )
    if len(np.unique(ids)) < len(ids):
        raise StudyError("client_ids.npy repeats a client; give each once.")
    if missing := np.setdiff1d(relevant, ids).size:
        raise StudyError(f"client_ids.npy lacks {missing:,} of {len(relevant):,} relevant clients.")
    if more := np.setdiff1d(ids, relevant).size:
        raise StudyError(f"client_ids.npy has {more:,} clients that are not relevant.")
    if matrix.dtype != np.float16 or matrix.ndim != 2:
        raise StudyError(
            f"embeddings.npy is {matrix.dtype} of {matrix.ndim} dimensions; float16 of two is "
            "required."
        )
    if len(matrix) != len(ids):
        raise StudyError(f"embeddings.npy has {len(matrix):,} rows for {len(ids):,} clients.")
    if not 1 <= matrix.shape[1] <= MOST_COLUMNS:
        raise StudyError(
            f"embeddings.npy has {matrix.shape[1]:,} columns; 1 to {MOST_COLUMNS:,} are allowed."
        )
    for start in range(0, len(matrix), ROWS_PER_CHECK):
        finite = np.isfinite(matrix[start : start + ROWS_PER_CHECK]).all(1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise StudyError(f"embeddings.npy has a number in row {row:,} that is not finite.")
    return {"clients": len(ids), "columns": int(matrix.shape[1])}


def _load(file: Path) -> NDArray[Any]:
    """Map an array into memory."""
    try:
        return np.asanyarray(np.load(file, mmap_mode="r"))
    except FileNotFoundError:
        raise StudyError(f"{file} does not exist.") from None
    except (OSError, EOFError, ValueError) as error:
        raise StudyError(f"{file} cannot be read ({reason_of(error)}).") from None
