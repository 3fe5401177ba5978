"""Evaluate an encoder on a downstream task, next to baselines, with confidence intervals.

All methods share the users, labels, heads and measures. They differ only in the features of users.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from clue_ray.corpus.logs.reading import Reading, plan_catalogues
from clue_ray.errors import RunsError, SpecError, reason_of
from clue_ray.scaling.downstream import check_result
from clue_ray.spec.yaml import fingerprint
from clue_ray.spec.younger import without_new_fields
from clue_ray.storage.documents import parse_json, read_bounded
from clue_ray.storage.files import read_file, with_retries, write_file
from clue_ray.storage.place import is_uri
from clue_ray.training.device import choose_device
from clue_ray.transfer.encode import Histories, UserEncoder, load_encoder
from clue_ray.transfer.encoder_file import EncoderCard, find_encoder, read_card
from clue_ray.transfer.tasks import features, scores
from clue_ray.transfer.tasks.attributes import read_table_file
from clue_ray.transfer.tasks.examples import (
    Examples,
    Say,
    draw_candidates,
    make_examples,
    plan_events,
    read_events,
)
from clue_ray.transfer.tasks.heads import base_scores, fit_head
from clue_ray.transfer.tasks.leaks import check_inputs, check_pretraining
from clue_ray.transfer.tasks.methods import (
    METHODS,
    NO_FEATURES,
    OF_THE_LOG,
    histories_of,
    method_features,
)
from clue_ray.transfer.tasks.spec import TaskSpec

logger = logging.getLogger(__name__)
EVALUATION = 8
"""Version of the evaluation; increase it when the same task and encoder get other scores."""
Matrix = NDArray[np.float64]
Measures = dict[str, list[scores.Measure]]
"""Measure name -> the measure of each output: one per seed of the head, or one without a head."""
Found = dict[str, scores.Resampled]
"""Measure name -> the measure with its resamples."""
Known = dict[tuple[Any, ...], Found]
"""What baselines that do not read the encoder have reached, by examples, tokenizer and method."""


def run_task(
    run: str | Path,
    task: TaskSpec,
    against: Mapping[str, str | Path] | None = None,
    *,
    gpus: float = 0,
) -> dict[str, Any]:
    """Evaluate the encoder of a run on a task, next to baselines, and store the result.

    The result is stored in the folder of the run, below `transfer/`, under a hash of everything it
    depends on. A stored result is returned without being computed again.

    Args:
        against: further encoders to compare with: name -> folder of their run.
        gpus: encode users and fit heads on a GPU if there is one; the features of other baselines
            are computed on the CPU.

    Raises:
        SpecError: the task does not fit its log, has too few users, or leaks.
        StudyError: a run has no encoder.
        EventLogError: the log cannot be read.
    """
    others = dict(against or {})
    reading = plan_events(task)
    cards = {name: read_card(other) for name, other in others.items()}
    key = result_key(read_card(run), cards, task, reading)
    place = str(run) if is_uri(run) else str(find_encoder(Path(run)).parent)
    name = result_name(task.name, key)
    if (stored := read_file(place, name)) is not None:
        return _parse_result(stored, f"{place}/{name}")
    examples = prepare_examples(task, reading)
    write_left_out(place, task, examples)
    device = choose_device(gpus)
    encoders = {other: load_encoder(folder, device) for other, folder in others.items()}
    result = {"key": key, **evaluate_task(load_encoder(run, device), encoders, task, examples)}
    content = json.dumps(result, indent=2, allow_nan=False).encode()
    with_retries(lambda: write_file(place, name, content), f"{name} cannot be written to {place}")
    return result


def read_result(file: Path) -> dict[str, Any]:
    """Read a stored result, or why a run could not be scored.

    Raises:
        RunsError: it is damaged.
    """
    try:
        content = read_bounded(file)
    except OSError as error:
        raise RunsError(f"{file} cannot be read ({error}); restore it.") from None
    return _parse_result(content, str(file))


def _parse_result(content: bytes, source: str) -> dict[str, Any]:
    """Parse a stored result; raise RunsError where it is damaged."""
    try:
        result = parse_json(content)
        if not (isinstance(result, dict) and result.keys() >= {"task", "run_id", "error"}):
            check_result(result)
        elif not all(isinstance(result[name], str) for name in ("task", "run_id", "error")):
            raise ValueError("its error is not a text")
    except ValueError as error:
        raise RunsError(
            f"{source} is damaged ({reason_of(error)}); delete it, and clue-ray transfer scores "
            "the run again."
        ) from None
    return dict(result)


def result_name(task: str, key: str) -> str:
    """Return the file name of a result in its run's folder."""
    return f"transfer/{task}-{key}.json"


def result_key(
    card: EncoderCard, others: Mapping[str, EncoderCard], task: TaskSpec, reading: Reading
) -> str:
    """Return the fingerprint of a result's inputs: encoders, task, log, and table of users."""
    digests = [card.digest, {name: other.digest for name, other in others.items()}]
    return fingerprint([EVALUATION, digests, _examples_key(task, reading)])


def _examples_key(task: TaskSpec, reading: Reading) -> str:
    """Return the fingerprint of the examples' inputs: the task, its log and its tables."""
    files = [(file.path, file.size, file.changed) for file in reading.files]
    table: list[Any] = []
    if task.attribute:
        table = [hashlib.sha256(read_table_file(task.attribute.table)).hexdigest()]
    plans = [*reading.catalogues, *plan_catalogues(getattr(task.rule, "items", None))]
    table += [[plan.name, f.size, f.changed] for plan in plans for f in plan.files]
    asked = without_new_fields(task.model_dump(mode="json"))
    return fingerprint([asked, files, *table])


def prepare_examples(task: TaskSpec, reading: Reading, say: Say = logger.warning) -> Examples:
    """Read the log of a task and make its examples, which are the same for every encoder.

    Args:
        say: as for `read_events`.

    Raises:
        SpecError: the task does not fit its log, has too few users, or its inputs contain labels.
        EventLogError: the log cannot be read.
    """
    events, unusable = read_events(reading, say)
    examples = make_examples(task, events, unusable, say)
    check_inputs(task, examples, events)
    return replace(examples, key=_examples_key(task, reading))


def _left_out_name(task: TaskSpec, examples: Examples) -> str:
    """Return the file name of the list of users left out, for this version of task and log."""
    return f"transfer/{task.name}-left-out-{examples.key}.parquet"


def write_left_out(place: str, task: TaskSpec, examples: Examples) -> None:
    """Write the users that a task leaves out, with reasons, below the folder of a run or a study.

    Raises:
        StudyError: storage failed for two minutes.
    """
    name, content = _left_out_name(task, examples), pa.BufferOutputStream()
    pq.write_table(examples.left_out, content)
    with_retries(
        lambda: write_file(place, name, content.getvalue().to_pybytes()),
        f"{name} cannot be written to {place}",
    )


def evaluate_task(
    encoder: UserEncoder,
    others: dict[str, UserEncoder],
    task: TaskSpec,
    examples: Examples,
    known: Known | None = None,
) -> dict[str, Any]:
    """Evaluate an encoder on a task, next to baselines; return a result without its key.

    Args:
        others: further encoders by name.
        known: what earlier calls have found of the baselines in OF_THE_LOG; read and added to.

    Raises:
        SpecError: an encoder was trained on targets of test users, or has the name of a method.
    """
    if taken := [name for name in others if name in METHODS]:
        raise SpecError(
            f"A further encoder has the name {taken[0]!r} of a method; give it another name."
        )
    for each in (encoder, *others.values()):
        check_pretraining(task, examples, each.card)
    users = {part: len(examples.rows(part)) for part in ("train", "validation", "test")}
    if task.retrieval:  # there is no training
        users = {"test": min(users["test"], task.retrieval.candidates)}
        found = _evaluate_retrieval(task, examples, encoder, others)
    else:
        found = _evaluate_heads(task, examples, encoder, others, {} if known is None else known)
    return {
        "task": task.name,
        "kind": task.kind,
        "run_id": encoder.card.run_id,
        "encoder_digest": encoder.card.digest,
        "users": users,
        "labels": len(examples.names),
        "left_out_list": _left_out_name(task, examples),
        "left_out": dict(Counter(examples.left_out["reason"].to_pylist())),
        "methods": _summarize(found),
    }


def _evaluate_heads(
    task: TaskSpec,
    examples: Examples,
    encoder: UserEncoder,
    others: dict[str, UserEncoder],
    known: Known,
) -> dict[str, Found]:
    """Evaluate heads on the features of each method, and the baseline without features."""
    base = base_scores(examples).double().numpy()
    if not examples.names:
        base = np.array([examples.targets[examples.rows("train")].mean()])
    nothing = NO_FEATURES[task.kind]
    same_for_all = np.tile(base, (len(examples.rows("test")), 1))
    found = {nothing: _resample_heads(task, examples, nothing, [same_for_all])}
    card = encoder.card
    log = (
        examples.key,
        card.tokenizer_sha256,
        card.max_item_tokens,
        card.services,
        card.duplicates,
    )
    for name, features_of in method_features(task, examples, encoder, others).items():
        shared = bool(examples.key) and name in OF_THE_LOG
        if shared and (*log, name) in known:
            found[name] = known[*log, name]
            continue
        # One method at a time: its scores may be millions of users by labels.
        outputs = _fit_heads(task, examples, features_of(), encoder.device)
        found[name] = _resample_heads(task, examples, name, outputs)
        if shared:
            known[*log, name] = found[name]
    return found


def _fit_heads(
    task: TaskSpec, examples: Examples, matrices: list[Matrix], device: torch.device
) -> Iterator[Matrix]:
    """Yield the scores of a head per seed, of test users.

    One encoder has a head per seed; encoders trained from scratch have one head each.
    """
    seeds = task.seeds if len(matrices) == 1 else task.seeds[: len(matrices)]
    for number, seed in enumerate(seeds):
        matrix = matrices[number % len(matrices)]
        yield fit_head(matrix, examples, kind=task.head, seed=seed, device=device)


def _resample_heads(
    task: TaskSpec, examples: Examples, name: str, outputs: Iterable[Matrix]
) -> Found:
    """Measure the scores of a method's heads, and resample the measures."""
    challenge = task.multi_label is not None and task.multi_label.challenge
    measures = _measure_heads(examples, outputs, challenge=challenge)
    return _resample(name, measures, len(examples.rows("test")))


def _resample(name: str, measures: Measures, users: int) -> Found:
    """Resample the measures of a method; each has a random stream of its own."""
    stream = METHODS.index(name) if name in METHODS else int(fingerprint(name), 16)
    return {key: scores.resample(outputs, users, stream) for key, outputs in measures.items()}


def _measure_heads(
    examples: Examples, outputs: Iterable[Matrix], *, challenge: bool = False
) -> Measures:
    """Return the measures of heads, given by their scores of test users."""
    test = examples.rows("test")
    targets = examples.targets[test]
    if examples.multi:
        return _measure_labels(examples, list(outputs), challenge=challenge)
    if targets.ndim == 2:
        # Only the ranks of each output are kept: scores may be millions of users by labels.
        return _mean_measures(
            [scores.ranking_measures(each, targets, examples.missed[test]) for each in outputs]
        )
    if examples.names:
        return {"auc": [scores.class_auc(each, targets) for each in outputs]}
    return {"r2": [partial(_r2_of, each[:, 0], targets) for each in outputs]}


def _measure_labels(examples: Examples, outputs: list[Matrix], *, challenge: bool) -> Measures:
    """Return the measures of heads with a question per label."""
    targets = examples.targets[examples.rows("test")]
    areas = [scores.MacroAuc(each, targets) for each in outputs]
    measures: Measures = {"auc": list(areas)}
    if challenge:
        popularity = examples.targets[examples.rows("train")].sum(0)
        measures["challenge"] = [
            scores.ChallengeScore(each, area, popularity)
            for each, area in zip(outputs, areas, strict=True)
        ]
    return measures


def _mean_measures(outputs: Sequence[dict[str, Matrix]]) -> Measures:
    """Turn measures per user into means over users."""
    return {name: [partial(_mean_of, output[name]) for output in outputs] for name in outputs[0]}


def _mean_of(values: Matrix, rows: NDArray[np.int64]) -> float:
    return float(values[rows].mean())


def _r2_of(predictions: Matrix, values: Matrix, rows: NDArray[np.int64]) -> float:
    return scores.r2(predictions[rows], values[rows])


def _evaluate_retrieval(
    task: TaskSpec, examples: Examples, encoder: UserEncoder, others: dict[str, UserEncoder]
) -> dict[str, Found]:
    """Evaluate how well users' vectors in two services match, for each method."""
    asked = task.retrieval
    assert asked is not None
    pool = draw_candidates(asked, examples.part)
    histories = histories_of(examples, encoder)

    def select(matrices: Sequence[Any], layout: Histories) -> list[Any]:
        """Return the candidates' vectors in the query service and in the target service."""
        services = [layout.services.index(name) for name in (asked.query, asked.target)]
        return [matrices[service][pool] for service in services]

    # Document frequencies and the linear map come from the users that are not candidates.
    fitting = np.setdiff1d(np.arange(len(examples.users)), pool)
    terms = features.user_terms(histories, fitting)
    pairs = {
        "encoder": select(features.encode_services(encoder, histories), histories),
        "TF-IDF, cosine": [matrix.toarray() for matrix in select(terms, histories)],
        "shared linear map": select(features.linear_map(histories, fitting)[1], histories),
    }
    if encoder.model.transformer is not None:
        untrained = features.untrained_items(encoder, histories)[1]
        pairs["untrained items"] = select(untrained, histories)
    for name, other in others.items():
        own = histories_of(examples, other)
        pairs[name] = select(features.encode_services(other, own), own)
    measures = {NO_FEATURES["retrieval"]: _mean_measures([scores.chance_measures(len(pool))])}
    for name, (query, target) in pairs.items():
        measures[name] = _mean_measures([scores.retrieval_measures(query @ target.T)])
    return {name: _resample(name, each, len(pool)) for name, each in measures.items()}


def _summarize(methods: dict[str, Found]) -> list[dict[str, Any]]:
    """Return a row per method: each measure and the encoder's lead in it, with intervals."""
    rows = []
    for name, measures in methods.items():
        row: dict[str, Any] = {"method": name}
        for measure, found in measures.items():
            row[measure] = found.interval()._asdict()
            if name != "encoder":
                lead = methods["encoder"][measure].lead(found)
                row[f"{measure}_lead"] = lead.interval()._asdict()
        rows.append(row)
    return rows
