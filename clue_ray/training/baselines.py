"""Baselines on the pools that score the encoders: untrained TF-IDF, and linear maps of it.

An encoder pays where it beats the best of them. Each has its own calibrated temperature, fitted on
the validation users, as an encoder has. The linear map is fitted at each history length of a study,
because it then knows what the encoder knows, and on whole histories, because a linear method can
afford them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clue_ray.corpus.store import Corpus
from clue_ray.training.evaluate import pool_cosines, score_calibrated
from clue_ray.training.linear_map import SHAPES, LinearMap, shared_linear_map
from clue_ray.training.pools import Pool, Pools, make_pools
from clue_ray.training.terms import (
    Matrix,
    inverse_document_frequency,
    split_users,
    term_counts,
    unit_rows,
)

Encode = Callable[[NDArray[np.int64], int], Any]
"""Encodes users in a service, [users, columns], dense or sparse, of unit length."""


def score_baselines(
    corpus: Corpus, candidates: int, sequence_lengths: Iterable[int]
) -> list[dict[str, Any]]:
    """Score every baseline on the pools of a study.

    Returns:
        One mapping per baseline, the content of baselines.json: name, method, sequence_length
        (None for whole histories), loss, recall_at_10, mrr, loss_candidates and
        calibrated_temperature.
    """
    pools = make_pools(corpus, candidates)
    whole = {shape: _fit(corpus, None, shape) for shape in SHAPES}
    shape = min(SHAPES, key=lambda shape: _validation_loss(whole[shape], corpus, pools))
    maps = {None: whole[shape]} | {n: _fit(corpus, n, shape) for n in sorted(set(sequence_lengths))}
    return [
        _tfidf_baseline(corpus, pools, candidates),
        *(_linear_baseline(corpus, pools, candidates, *fitted) for fitted in maps.items()),
    ]


def _validation_loss(fitted: LinearMap, corpus: Corpus, pools: Pools) -> float:
    """Return the loss of validation users on whole histories, which chooses the shape of a map."""
    cosines = _pool_cosines(partial(fitted.encode, corpus), pools.validation, pools.candidates)
    return score_calibrated(cosines, cosines)[0].loss


def _fit(corpus: Corpus, sequence_length: int | None, shape: tuple[int, int]) -> LinearMap:
    components, directions = shape
    return shared_linear_map(corpus, sequence_length, components=components, directions=directions)


def _tfidf_baseline(corpus: Corpus, pools: Pools, candidates: int) -> dict[str, Any]:
    """Score the TF-IDF cosine between a user's whole histories in two services."""
    # Frequencies add up over blocks of users, so memory never holds the terms of all of them.
    idf = inverse_document_frequency(
        term_counts(corpus, users, service)
        for users in split_users(corpus, corpus.train_users)
        for service in range(len(corpus.services))
    )

    def encode(users: NDArray[np.int64], service: int) -> Any:
        return unit_rows(term_counts(corpus, users, service), idf)

    return {
        "name": "TF-IDF cosine, untrained",
        "method": "tfidf",
        "sequence_length": None,
        **_score(encode, pools, candidates),
    }


def _linear_baseline(
    corpus: Corpus,
    pools: Pools,
    candidates: int,
    sequence_length: int | None,
    fitted: LinearMap,
) -> dict[str, Any]:
    """Score the linear map that all services share."""
    encode = partial(fitted.encode, corpus, sequence_length=sequence_length)
    history = f"{sequence_length:,} events" if sequence_length else "whole history"
    return {
        "name": f"shared linear map, {history}",
        "method": "linear_map",
        "sequence_length": sequence_length,
        **_score(encode, pools, candidates),
    }


def _score(encode: Encode, pools: Pools, candidates: int) -> dict[str, Any]:
    """Score the cosines of a method as those of an encoder are scored."""
    scored, validation = (
        _pool_cosines(encode, pool, candidates) for pool in (pools.scored, pools.validation)
    )
    scores, temperature = score_calibrated(scored, validation)
    return {
        **scores._asdict(),
        "loss_candidates": candidates,
        "calibrated_temperature": temperature,
    }


def _pool_cosines(encode: Encode, pool: Pool, candidates: int) -> list[torch.Tensor]:
    """Compute the cosines of each pool, dense."""
    return [_dense(cosines) for cosines in pool_cosines(encode, pool, candidates)]


def _dense(matrix: Any) -> torch.Tensor:
    values: Matrix = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
    return torch.from_numpy(values)
