"""The model card of an exported encoder, filled from the files of its run and its study."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from clue_ray.errors import RunsError
from clue_ray.report import numbers
from clue_ray.report.page import render
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.rivals import list_rivals, seed_spread
from clue_ray.runs import RunRecord, chance_loss
from clue_ray.scaling.downstream import MEASURES, compare_methods, spell
from clue_ray.transfer.encoder_file import EncoderCard
from clue_ray.transfer.tasks.evaluate import read_result

LEVEL = 0.95
"""Of the interval of the loss."""
NO_STUDY = (
    "The run was exported without the directory of its study, so its interval and its rivals are "
    "not known."
)
NO_SEEDS = (
    "No configuration of the study was trained with several seeds, so there is no interval: "
    "another seed would give another loss."
)
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class TaskScores:
    """The scores of one downstream task: the encoder and the other methods."""

    name: str
    measure: str
    words: str
    rows: Rows


@dataclass(frozen=True)
class ModelCard:
    """What the card says; a table is a list of rows.

    Names of the log within code, `service` and `text`, are Python literals that nothing escapes.
    """

    name: str
    purpose: str
    service: str
    text: str
    onnx: str
    model: Rows
    data: Rows
    training: Rows
    result: list[str]
    rivals: Rows
    tasks: list[TaskScores]
    limits: list[str]


def write_model_card(
    file: Path, encoder: EncoderCard, record: RunRecord, run: Path, onnx: str
) -> None:
    """Write the model card of a run.

    Args:
        file: the Markdown file to write.
        run: folder of the run; its study is looked for two levels above.
        onnx: what came of the ONNX file.
    """
    study, tasks = _read_study(run.parent.parent), _read_tasks(run)
    card = ModelCard(
        name=f"User encoder {record.study} {record.run_id}".replace("  ", " "),
        purpose=(
            f"Turns the events of a user in several services, as text, into a unit vector of "
            f"{encoder.run.encoder.output_width} numbers. Trained by clue-ray "
            f"{record.clue_ray_version} to recognise a user of one service in another."
        ),
        service=repr(encoder.services[0]),
        text=_code(encoder.text),
        onnx=f"ONNX file: {onnx}.",
        model=_model(encoder, record),
        data=_data(encoder, record, study),
        training=_training(encoder, record),
        result=_result(record, study),
        rivals=_rivals(record, study),
        tasks=tasks,
        limits=_limits(encoder, record, bool(tasks)),
    )
    file.write_text(render("model-card.md.j2", card=card), encoding="utf-8")


def _read_study(folder: Path) -> StudyFiles | None:
    """Read the study of a run as it stands; None where its directory is not there."""
    try:
        return read_directory(folder, running=True)
    except RunsError:
        return None


def _model(encoder: EncoderCard, record: RunRecord) -> Rows:
    shape = encoder.run.encoder
    return [
        ("parts", record.encoder_parts),
        ("non-embedding parameters", numbers.count(record.non_embedding_params)),
        ("parameters", numbers.count(record.total_params)),
        ("width, item layers, service layers, heads", _shape(record)),
        ("numbers of a vector", numbers.count(shape.output_width)),
        ("events read per service, the most recent", numbers.count(encoder.run.sequence_length)),
        ("tokens read per event", numbers.count(encoder.max_item_tokens)),
        ("vocabulary", numbers.count(encoder.vocab_size)),
    ]


def _shape(record: RunRecord) -> str:
    sizes = (record.width, record.item_layers, record.service_layers, record.heads)
    return ", ".join(map(str, sizes))


def _data(encoder: EncoderCard, record: RunRecord, study: StudyFiles | None) -> Rows:
    corpus: Mapping[str, Any] = study.corpus if study else {}
    counted = {"users": "users", "events": "events", "items": "distinct items", "tokens": "tokens"}
    split = encoder.split
    return [
        ("services", ", ".join(encoder.services)),
        ("corpus digest", encoder.corpus_digest),
        *((word, numbers.count(corpus[key])) for key, word in counted.items() if key in corpus),
        ("users that it was trained on", numbers.count(record.corpus_users)),
        ("share of users held out", numbers.percent(split.validation + split.test)),
        ("events held out", f"those from {split.time} on" if split.time else "none by time"),
    ]


def _training(encoder: EncoderCard, record: RunRecord) -> Rows:
    train = encoder.run.train
    return [
        ("steps of users", f"{numbers.count(record.steps)} of {record.global_batch_size:,}"),
        ("training compute, FLOP", numbers.flop(record.train_flops)),
        ("tokens seen", numbers.count(record.train_tokens)),
        (
            "learning rate, precision, seed",
            f"{train.learning_rate:g}, {train.precision}, {train.seed}",
        ),
        (
            "time on",
            f"{numbers.seconds(record.wall_seconds)} on {record.num_workers} x {record.device}",
        ),
    ]


def _result(record: RunRecord, study: StudyFiles | None) -> list[str]:
    """State the loss, its interval, and chance."""
    chance = chance_loss(record.loss_candidates)
    measured = (
        f"**{_digits(record.loss)} nats** on held-out users among {record.loss_candidates:,} "
        f"candidates (chance: {chance:.3f}); recall@10 {_digits(record.recall_at_10)}, MRR "
        f"{_digits(record.mrr)}. The temperature was calibrated on validation users."
    )
    return [measured, _interval(record, study)]


def _interval(record: RunRecord, study: StudyFiles | None) -> str:
    """State the interval of the loss over seeds.

    One run estimates the mean over seeds of its configuration: loss +- t x s, with s the standard
    deviation pooled over the configurations that were repeated (Student 1908).
    """
    if study is None:
        return NO_STUDY
    runs = study.finished
    spread = seed_spread(runs[runs["encoder_parts"].fillna("") == record.encoder_parts])
    if spread is None or record.loss is None:
        return NO_SEEDS
    half = float(stats.t.ppf((1 + LEVEL) / 2, spread.freedom)) * spread.pooled
    return (
        f"95 % interval of the mean over seeds of this configuration: {record.loss - half:.3f} to "
        f"{record.loss + half:.3f} nats (standard deviation between seeds "
        f"{numbers.significant(spread.pooled, 2)}, degrees of freedom {spread.freedom}). It does "
        "not cover another choice of held-out users."
    )


def _rivals(record: RunRecord, study: StudyFiles | None) -> Rows:
    """List this run and the rivals of its study by their losses."""
    if study is None:
        return []
    own = {"name": "**this encoder**", **record.model_dump()}
    others = [rival for rival in list_rivals(study) if rival.get("run_id") != record.run_id]
    ranked = sorted([own, *others], key=lambda rival: float(rival["loss"]))
    return [
        (str(rival["name"]), *(_digits(rival[key]) for key in ("loss", "recall_at_10", "mrr")))
        for rival in ranked
    ]


def _read_tasks(run: Path) -> list[TaskScores]:
    """Read the latest scores of each downstream task in a run's folder."""
    files = sorted((run / "transfer").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    results = {result["task"]: result for result in map(read_result, files)}
    return [_task(result) for _, result in sorted(results.items()) if "methods" in result]


def _task(result: Mapping[str, Any]) -> TaskScores:
    measure = next(name for name in MEASURES if name in result["methods"][0])
    lead = f"{measure}_lead"
    rows: Rows = [
        (row["method"], spell(row[measure]), spell(row[lead], "+") if lead in row else "")
        for row in result["methods"]
    ]
    words = compare_methods(result)
    return TaskScores(result["task"], f"{MEASURES[measure]} [95 %]", words, rows)


def _limits(encoder: EncoderCard, record: RunRecord, scored: bool) -> list[str]:
    """List what the numbers above do not say."""
    found = [
        "The loss is measured on users of the same log; another log, language or time was not "
        "tried.",
        "Services other than those above are encoded with a guide token that all of them share.",
        "Only the most recent events of a service count, and of each only its first tokens.",
        "The tokenizer was learned from texts of the log: check tokenizer.json, and the columns "
        "and catalogues that encoder.json names, before you publish this folder.",
        "Vectors of users are personal data where the log is. Bias between groups of users was not "
        "measured.",
    ]
    if not scored:
        found.insert(0, "Whether the vectors help a downstream task was not measured.")
    learned = record.loss_at_training_temperature
    if learned is not None and record.loss is not None:
        found.append(
            f"At the temperature that training learned the loss is {learned:.3f} nats; calibrate "
            "one before cosines are read as probabilities."
        )
    return found


def _code(text: str) -> str:
    """Write a text as a literal in a code span, longer than the backticks in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text!r}{fence}"


def _digits(value: Any) -> str:
    return numbers.ABSENT if numbers.is_absent(value) else f"{float(value):.3f}"
