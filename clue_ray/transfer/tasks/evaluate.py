"""A task put to an encoder: every method's scores beside each other, with intervals and paired
differences.

Takes a run and a task, gives one JSON-able result. One idea: methods differ in what they know of a
user (`features`); users, labels, what reads the features and how it is judged are the same for all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clue_ray.corpus.logs.reading import Reading
from clue_ray.errors import SpecError
from clue_ray.spec.yaml import fingerprint
from clue_ray.storage.files import read_file, with_retries, write_file
from clue_ray.storage.place import is_uri
from clue_ray.transfer.encode import Histories, UserEncoder, load_encoder
from clue_ray.transfer.encoder_file import EncoderCard, find_encoder, read_card
from clue_ray.transfer.tasks import features, scores
from clue_ray.transfer.tasks.attributes import read_table_file
from clue_ray.transfer.tasks.examples import (
    Examples,
    draw_candidates,
    make_examples,
    plan_events,
    read_events,
)
from clue_ray.transfer.tasks.heads import base_scores, fit_head
from clue_ray.transfer.tasks.leaks import check_inputs, check_pretraining
from clue_ray.transfer.tasks.scratch import train_from_scratch
from clue_ray.transfer.tasks.spec import TaskSpec

EVALUATION = 6
"""Bump when the same task and encoder would be scored otherwise."""


SCRATCHES = 3
"""Encoders trained from scratch on a task, at most, each read by one head."""
BASES = {"next_item": "popularity", "attribute": "base rate", "retrieval": "guess"}
OURS = (
    "encoder",
    "TF-IDF, SVD",
    "TF-IDF, cosine",
    "untrained items",
    "from scratch",
    *BASES.values(),
)
"""Names of methods, which no further encoder may take."""
Matrix = NDArray[np.float64]
Judged = dict[str, list[scores.Measure]]
"""Of each measure, that of each output: of every start of the head, or of the one way to rank."""


def run_task(
    run: str | Path, task: TaskSpec, against: Mapping[str, str | Path] | None = None
) -> dict[str, Any]:
    """Put a task to a run's encoder, beside the baselines; return and keep the result, or return
    what is kept.

    It is kept in the folder of the encoder, below `transfer/`, by what it was made from.

    Args:
        against: further encoders to set beside it: name -> folder of their run.

    Raises:
        SpecError: the task cannot be meant, has too few users, or leaks.
        StudyError: there is no encoder.
        EventLogError: the log cannot be read.
    """
    others = dict(against or {})
    reading = plan_events(task)
    key = result_key(
        read_card(run), {name: read_card(place) for name, place in others.items()}, task, reading
    )
    place, name = (
        str(run) if is_uri(run) else str(find_encoder(Path(run)).parent),
        result_name(task.name, key),
    )
    if (kept := read_file(place, name)) is not None:
        return dict(json.loads(kept))
    examples = lay_out_task(task, reading)
    write_left_out(place, task, examples)
    others_loaded = {other: load_encoder(folder) for other, folder in others.items()}
    result = {"key": key, **evaluate_task(load_encoder(run), others_loaded, task, examples)}
    content = json.dumps(result, indent=2, allow_nan=False).encode()
    with_retries(lambda: write_file(place, name, content), f"{name} cannot be written to {place}")
    return result


def read_result(file: Path) -> dict[str, Any]:
    """Read a kept result."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def result_name(task: str, key: str) -> str:
    """Name a result's file within its run's folder."""
    return f"transfer/{task}-{key}.json"


def result_key(
    card: EncoderCard, others: Mapping[str, EncoderCard], task: TaskSpec, reading: Reading
) -> str:
    """Fingerprint what a result is made from: encoders, task, log, and the table of users where
    there is one.
    """
    digests = [card.digest, {name: other.digest for name, other in others.items()}]
    return fingerprint([EVALUATION, digests, _layout_key(task, reading)])


def _layout_key(task: TaskSpec, reading: Reading) -> str:
    """Fingerprint what a task's users are laid out from: the task, its log and its table."""
    files = [(file.path, file.size, file.changed) for file in reading.files]
    table = (
        [hashlib.sha256(read_table_file(task.attribute.table)).hexdigest()]
        if task.attribute
        else []
    )
    return fingerprint([task.model_dump(mode="json"), files, *table])


def lay_out_task(task: TaskSpec, reading: Reading) -> Examples:
    """Read a task's log and lay out its users, whichever encoder it is put to.

    Raises:
        SpecError: the task cannot be meant, has too few users, or its labels stand in the inputs.
        EventLogError: the log cannot be read.
    """
    events, unusable = read_events(reading)
    examples = make_examples(task, events, unusable)
    check_inputs(task, examples, events)
    return replace(examples, key=_layout_key(task, reading))


def _left_out_name(task: TaskSpec, examples: Examples) -> str:
    """Name the list of users who cannot be used: of another log or version of the task, it is
    another file.
    """
    return f"transfer/{task.name}-left-out-{examples.key}.parquet"


def write_left_out(place: str, task: TaskSpec, examples: Examples) -> None:
    """Write who cannot be used in a task, and why, below a run's or a study's folder.

    Raises:
        StudyError: storage refuses.
    """
    name, content = _left_out_name(task, examples), pa.BufferOutputStream()
    pq.write_table(examples.left_out, content)
    with_retries(
        lambda: write_file(place, name, content.getvalue().to_pybytes()),
        f"{name} cannot be written to {place}",
    )


def evaluate_task(
    encoder: UserEncoder, others: dict[str, UserEncoder], task: TaskSpec, examples: Examples
) -> dict[str, Any]:
    """Score an encoder on a task, beside the baselines; give what a result holds but its key.

    Raises:
        SpecError: an encoder was trained on what is asked of the test users, or has the name of a
            method.
    """
    if taken := [name for name in others if name in OURS]:
        raise SpecError(
            f"A further encoder is named {taken[0]!r}, as a method is; give it another name."
        )
    for one in (encoder, *others.values()):
        check_pretraining(task, examples, one.card)
    users = {part: len(examples.rows(part)) for part in ("train", "validation", "test")}
    if task.retrieval:  # nothing is trained
        users = {"test": min(users["test"], task.retrieval.candidates)}
    judged = (_judge_retrieval if task.retrieval else _judge_heads)(task, examples, encoder, others)
    return {
        "task": task.name,
        "kind": task.kind,
        "run_id": encoder.card.run_id,
        "encoder_digest": encoder.card.digest,
        "users": users,
        "labels": len(examples.names),
        "left_out_list": _left_out_name(task, examples),
        "left_out": dict(Counter(examples.left_out["reason"].to_pylist())),
        "methods": _summarise(judged, users["test"]),
    }


def _judge_heads(
    task: TaskSpec, examples: Examples, encoder: UserEncoder, others: dict[str, UserEncoder]
) -> dict[str, Judged]:
    """Judge what heads read from each method's features, and what is best without any."""
    histories = Histories(examples.inputs, encoder.exported)
    train = examples.rows("train")
    known: dict[str, list[Matrix]] = {
        "encoder": [features.encoded(encoder, histories)],
        "TF-IDF, SVD": [features.tfidf_svd(histories, train)],
        "untrained items": [features.untrained_items(encoder, histories)[0]],
    }
    for name, other in others.items():
        known[name] = [features.encoded(other, Histories(examples.inputs, other.exported))]
    if task.scratch_steps:
        made = [
            train_from_scratch(encoder, histories, examples, steps=task.scratch_steps, seed=seed)
            for seed in task.seeds[:SCRATCHES]
        ]
        known["from scratch"] = [features.encoded(one, histories) for one in made]
    base = base_scores(examples).double().numpy()
    if not examples.names:
        base = np.array([examples.targets[train].mean()])
    judged = {_base_name(task): _judge(examples, [np.tile(base, (len(examples.rows("test")), 1))])}
    for name, matrices in known.items():
        starts = (
            task.seeds if len(matrices) == 1 else task.seeds[: len(matrices)]
        )  # heads of one encoder go together
        outputs = (
            fit_head(
                matrices[number % len(matrices)], examples, hidden=task.head == "mlp", seed=seed
            )
            for number, seed in enumerate(starts)
        )
        judged[name] = _judge(examples, outputs)
    return judged


def _base_name(task: TaskSpec) -> str:
    """Name what knows nothing of a user."""
    return BASES[task.kind]


def _judge(examples: Examples, outputs: Iterable[Matrix]) -> Judged:
    """Return the measures of test users by their scores, a function an output; of rankings only the
    ranks are kept.
    """
    test = examples.rows("test")
    targets = examples.targets[test]
    if targets.ndim == 2:
        return _mean_measures(
            [scores.ranking_measures(one, targets, examples.missed[test]) for one in outputs]
        )
    if examples.names:
        return {"auc": [partial(_auc_of, one, targets) for one in outputs]}
    return {"r2": [partial(_r2_of, one[:, 0], targets) for one in outputs]}


def _mean_measures(outputs: Sequence[dict[str, Matrix]]) -> Judged:
    """Turn measures a user into their means over users."""
    return {name: [partial(_mean_of, output[name]) for output in outputs] for name in outputs[0]}


def _mean_of(values: Matrix, rows: NDArray[np.int64]) -> float:
    return float(values[rows].mean())


def _auc_of(part: Matrix, classes: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    return scores.auc(part[rows], classes[rows])


def _r2_of(predictions: Matrix, values: Matrix, rows: NDArray[np.int64]) -> float:
    return scores.r2(predictions[rows], values[rows])


def _judge_retrieval(
    task: TaskSpec, examples: Examples, encoder: UserEncoder, others: dict[str, UserEncoder]
) -> dict[str, Judged]:
    """Judge how near a test user's vectors in two services lie, among the candidates; nothing is
    trained.
    """
    asked = task.retrieval
    assert asked is not None
    histories = Histories(examples.inputs, encoder.exported)
    pool = draw_candidates(asked, examples.part)
    terms = features.user_terms(histories, np.setdiff1d(np.arange(len(examples.users)), pool))
    places = [histories.services.index(name) for name in (asked.query, asked.target)]
    pairs: dict[str, list[Any]] = {
        "encoder": features.encoded_services(encoder, histories),
        "TF-IDF, cosine": [matrix.toarray() for matrix in (terms[place][pool] for place in places)],
        "untrained items": features.untrained_items(encoder, histories)[1],
    }
    judged = {"guess": _mean_measures([scores.chance_measures(len(pool))])}
    for name, matrices in pairs.items():
        a, b = matrices if name == "TF-IDF, cosine" else (matrices[place][pool] for place in places)
        judged[name] = _mean_measures([scores.retrieval_measures(a @ b.T)])
    for name, other in others.items():
        own = Histories(examples.inputs, other.exported)
        each = features.encoded_services(other, own)
        a, b = (each[own.services.index(service)][pool] for service in (asked.query, asked.target))
        judged[name] = _mean_measures([scores.retrieval_measures(a @ b.T)])
    return judged


def _summarise(judged: dict[str, Judged], users: int) -> list[dict[str, Any]]:
    """Put every measure with its interval, and the encoder's lead over each other method, in a row
    a method.
    """
    drawn = {
        name: {
            measure: scores.resample(outputs, users, stream)
            for measure, outputs in measures.items()
        }
        for stream, (name, measures) in enumerate(judged.items())
    }
    rows = []
    for name, measures in drawn.items():
        row: dict[str, Any] = {"method": name}
        for measure, found in measures.items():
            row[measure] = found.interval()._asdict()
            if name != "encoder":
                row[f"{measure}_lead"] = drawn["encoder"][measure].lead(found).interval()._asdict()
        rows.append(row)
    return rows
