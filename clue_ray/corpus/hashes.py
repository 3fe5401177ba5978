"""Hashes that decide what a corpus holds: the same on every machine and with every library."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clue_ray.spec.specs import SplitSpec


def stable_hash(users: pd.Series, salt: str) -> NDArray[np.uint64]:
    """Hash user ids to uint64, the same on every machine and in every version of every library.

    Splits, buckets and the order of training users depend on it. Python's own hash changes with
    every process, and pandas does not promise to keep its hash.

    Args:
        salt: names the purpose, so that splits, buckets and orders are independent of each other.
    """
    codes, distinct = pd.factorize(users)
    key = salt.encode()
    digests = b"".join(
        hashlib.blake2b(str(user).encode(), digest_size=8, key=key).digest() for user in distinct
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)[codes]


def split_of(users: pd.Series, split: SplitSpec) -> NDArray[np.object_]:
    """Return `train`, `validation` or `test` for each user id.

    The split of a user depends on the id alone, so a user who is held out in one corpus is held out
    in every corpus with the same shares.
    """
    share = stable_hash(users, "split") / 2.0**64
    return np.select(
        [share < split.test, share < split.test + split.validation], ["test", "validation"], "train"
    )


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
