"""Frozen specs: what a corpus, an encoder, a run and a study are. YAML in, JSON out, fingerprint of
identity.

A `StudySpec` is a base run and axes. `expand` in `study/grid.py` turns it into `RunSpec`s;
`RunSpec.identity` holds what defines a run's result and nothing of how it is executed, and `run_id`
is a hash of it.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from clue_ray.spec.yaml import Spec, fingerprint, read_yaml

RECIPE = 2
"""Bump when the same spec would train to different weights; part of every run's identity."""
EXAMPLE_TIME = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
HORIZONS = ("steps", "users_seen", "train_flops")


class SplitSpec(Spec):
    """Shares of users held out, by a stable hash of the user id; the rest trains."""

    validation: float = Field(0.05, ge=0, lt=1)
    "share kept for choosing settings; no run trains on it or is scored on it"
    test: float = Field(0.05, gt=0, lt=1)
    "share whose users form the evaluation pools"
    time: datetime | None = None
    """cut in time: earlier events are encoded, events from here on are kept apart, to be predicted;
    UTC if no zone"""

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


def check_timestamp_format(pattern: str | None) -> str | None:
    """Check that a format of timestamps is one of strptime's and holds a date."""
    if pattern is None:
        return None
    try:
        datetime.strptime(EXAMPLE_TIME.strftime(pattern), pattern)
    except ValueError:
        raise ValueError(_explain_format(pattern)) from None
    if not re.search(r"%[dejcxDFuwaA]|%[UWVj]", pattern) or not re.search(r"%[YyGcxDF]", pattern):
        raise ValueError(_explain_format(pattern))
    return pattern


def _explain_format(pattern: str) -> str:
    return (
        f"is {pattern!r}, which does not describe a date; write it as in Python's strptime, such "
        "as '%d/%m/%Y %H:%M:%S' for 31/12/2023 23:59:59"
    )


def check_separator(separator: str | None) -> str | None:
    """Return the separator of columns as one character; tab may be written as \\t or tab."""
    if separator is None:
        return None
    one = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(one) != 1 or one.isalnum() or one in "\"'\r\n." or ord(one) > 127:
        raise ValueError(f"is {separator!r}; give one ASCII character such as ';' or '|', or 'tab'")
    return one


class LogSpec(Spec):
    """One of several logs that are joined; what is left out is as the corpus says."""

    events: str | tuple[str, ...]
    "files, folders, globs or URIs"
    columns: dict[str, str] | None = None
    text: str | None = None
    timestamp_format: str | None = None
    separator: str | None = None

    _check_format = field_validator("timestamp_format")(check_timestamp_format)
    _check_separator = field_validator("separator")(check_separator)


class CorpusSpec(Spec):
    """How event logs become a corpus."""

    events: str | tuple[str, ...] | dict[str, LogSpec]
    """files, folders, globs or URIs of Parquet, CSV or JSON Lines; or one log a service: {search:
    ..., shop: ...}"""
    columns: dict[str, str] = Field(default={})
    "names of user_id, service, timestamp, text in the log, where they differ: {user_id: author}"
    text: str = "{text}"
    "template over the log's columns that makes the item text"
    timestamp_format: str | None = None
    "how timestamps are written, as in Python's strptime: %d/%m/%Y %H:%M; only for ambiguous ones"
    separator: str | None = None
    "character between the columns of CSV files; found in each file when omitted"
    services: tuple[str, ...] | None = None
    "services kept; all when omitted"
    vocab_size: int = Field(8192, ge=257, le=1_000_000)
    "byte-level BPE vocabulary to train, guide tokens not counted"
    tokenizer: str | None = None
    "tokenizer.json of another corpus, used as it is instead of training one"
    max_item_tokens: int = Field(24, ge=1, le=4096)
    "tokens kept of an item's text, guide token not counted"
    max_text_length: int = Field(10_000, ge=1)
    "characters of text above which a row is unusable"
    duplicates: Literal["keep", "drop"] = "keep"
    "what becomes of rows that agree in user, service, time and text with another"
    split: SplitSpec = SplitSpec()
    max_rejected: float = Field(0.05, ge=0, le=1)
    "share of rows that may be unusable before preparation stops"

    _check_format = field_validator("timestamp_format")(check_timestamp_format)
    _check_separator = field_validator("separator")(check_separator)

    @field_validator("events", mode="before")
    @classmethod
    def _logs_by_service(cls, events: Any) -> Any:
        if isinstance(events, dict) and events:
            if not all(str(name).strip() for name in events):
                raise ValueError(
                    f"names a service {next(n for n in events if not str(n).strip())!r}; give it a "
                    f"name"
                )
            return {
                name: log if isinstance(log, dict | LogSpec) else {"events": log}
                for name, log in events.items()
            }
        if not events or not isinstance(events, str | list | tuple):
            raise ValueError(
                f"is {events!r}; give files, folders, globs or URIs, or a mapping of service to "
                f"them"
            )
        return events

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer and "vocab_size" in self.model_fields_set:
            raise ValueError(
                "gives both tokenizer and vocab_size; a given tokenizer has its own, so leave one "
                "out"
            )
        return self


class Rung(Spec):
    """Shape of one size of the encoder ladder."""

    width: int
    item_layers: int
    service_layers: int
    heads: int


LADDER: dict[str, Rung] = {
    "xxs": Rung(width=8, item_layers=1, service_layers=1, heads=1),
    "xs": Rung(width=16, item_layers=1, service_layers=1, heads=1),
    "s": Rung(width=32, item_layers=1, service_layers=1, heads=2),
    "m": Rung(width=64, item_layers=1, service_layers=1, heads=2),
    "l": Rung(width=128, item_layers=2, service_layers=2, heads=4),
    "xl": Rung(width=256, item_layers=4, service_layers=2, heads=8),
    "2xl": Rung(width=512, item_layers=8, service_layers=4, heads=8),
    "4xl": Rung(width=768, item_layers=12, service_layers=6, heads=12),
    "clue-4m": Rung(width=64, item_layers=8, service_layers=4, heads=2),
    "clue-15m": Rung(width=256, item_layers=2, service_layers=1, heads=8),
    "clue-65m": Rung(width=512, item_layers=8, service_layers=4, heads=8),
    "clue-110m": Rung(width=768, item_layers=6, service_layers=4, heads=12),
    "clue-160m": Rung(width=768, item_layers=11, service_layers=6, heads=12),
    "clue-725m": Rung(width=1536, item_layers=15, service_layers=8, heads=16),
}
"""Sizes of the encoder; `size: s` in a study file means this shape.

Ours from xxs to 4xl, smallest first; then shapes whose parameters, with the 50,258 tokens of the
same team's next model, add up to the sizes that CLUE names. The paper gives no shapes: these
guesses meet the totals within 5 %. """


class EncoderSpec(Spec):
    """Shape of the encoder: a rung of the ladder, or its four numbers spelled out."""

    size: str = "s"
    "name of a rung, or `custom` when the shape is spelled out"
    width: int = Field(0, ge=1)
    item_layers: int = Field(0, ge=1)
    service_layers: int = Field(0, ge=1)
    heads: int = Field(0, ge=1)
    ffn_multiple: int = Field(4, ge=1)
    "hidden width of a feed-forward layer over the encoder's width"
    output_width: int = Field(64, ge=2)
    "numbers in a user embedding"
    dropout: float = Field(0.0, ge=0, lt=1)
    "share of the numbers left out at random, in training, of what each layer adds"

    @model_validator(mode="before")
    @classmethod
    def _from_ladder(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        shape = {key: document[key] for key in Rung.model_fields if key in document}
        size = document.get("size", "custom" if shape else "s")
        if size == "custom":
            missing = [key for key in Rung.model_fields if key not in shape]
            if missing:
                raise ValueError(
                    f"lacks {', '.join(missing)}; give all of {', '.join(Rung.model_fields)}, or a "
                    f"size"
                )
            return {**document, "size": size}
        if not isinstance(size, str) or size not in LADDER:
            raise ValueError(
                f"size {size!r} is no rung of the ladder; use one of {', '.join(LADDER)}"
            )
        rung = LADDER[size].model_dump()
        changed = [key for key in shape if shape[key] != rung[key]]
        if changed:
            raise ValueError(
                f"size {size!r} already fixes {', '.join(changed)}; leave size out to spell the "
                f"shape"
            )
        return {**document, **rung, "size": size}

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TrainSpec(Spec):
    """How a run trains: batch, horizon, optimiser. Exactly one of steps, users_seen and train_flops
    is given.
    """

    global_batch_size: int = Field(128, ge=2)
    """users a step, over all workers; each brings one positive pair and global_batch_size - 1
    negatives"""
    steps: int | None = Field(None, ge=1)
    users_seen: int | None = Field(None, ge=1)
    train_flops: float | None = Field(None, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    "peak rate at width 32; matrices of wider encoders use learning_rate x 32 / width (decision D6)"
    token_rate: float = Field(3.0, gt=0)
    "token embeddings move so many times as fast: most tokens are in few batches"
    weight_decay: float = Field(0.1, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    "share of the steps with linearly rising learning rate"
    schedule: Literal["cosine", "warmup_stable_decay"] = "cosine"
    """after the warm-up: a cosine to a tenth of the rate, or the full rate and a linear fall to
    zero in the last fifth"""
    clip_norm: float = Field(0.1, gt=0)
    objective: Literal["info_nce", "sigmoid"] = "info_nce"
    "softmax over the batch's users, as CLUE; or a yes or no for each pair of users, as SigLIP"
    temperature: float = Field(0.1, ge=0.01)
    "initial temperature; learned, and never below 0.01"
    event_dropout: float = Field(0.0, ge=0, lt=1)
    "share of a history's events left out at random; one always stays"
    token_dropout: float = Field(0.0, ge=0, lt=1)
    "share of an item's tokens left out at random; the guide token stays"
    same_service: float = Field(0.0, ge=0, lt=1)
    """share of the batches drawn from one service alone: the recent half of a history and the half
    before it agree"""
    spare_duplicates: bool = True
    "users of a batch with the same items in both services are no negatives of each other"
    precision: Literal["fp32", "bf16"] = "fp32"
    "of matrix products; normalisation, logits and loss are always fp32"
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _one_horizon(cls, document: Any) -> Any:
        given = [
            key for key in HORIZONS if isinstance(document, dict) and document.get(key) is not None
        ]
        if isinstance(document, dict) and len(given) != 1:
            raise ValueError(
                f"gives {len(given)} horizons ({', '.join(given) or 'none'}); give one of "
                f"{', '.join(HORIZONS)}"
            )
        return document


class EvaluationSpec(Spec):
    """The fixed pool on which every run of a study is scored (decision D2)."""

    candidates: int = Field(256, ge=2)
    "held-out users a service pair; a guess has a loss of ln(candidates)"
    every: float = Field(0.25, gt=0, le=1)
    "share of the steps between two points of the learning curve"


class ResourcesSpec(Spec):
    """What one run asks of the cluster; none of it changes a run's identity."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    users_per_chunk: int | None = Field(None, ge=1)
    """users a worker encodes at a time, by gradient caching; its whole share of the batch when
    omitted"""
    checkpoints: str | None = None
    """folder or URI (s3://...) below which runs keep their checkpoints; each run's own folder when
    omitted"""
    concurrency: PositiveInt | Literal["auto"] = "auto"
    "runs at a time; auto fills the cluster"


class FitSpec(Spec):
    """Which laws are fitted to held-out loss against train_flops, and what judges them."""

    laws: tuple[str, ...] = (
        "power_law_plus_constant",
        "log_linear",
        "power_law",
        "bounded_power_law",
    )
    hold_out: Literal["largest_compute"] = "largest_compute"


class IsoFlopSpec(Spec):
    """How a grid of `budgets` chooses its sizes, where it names no encoder."""

    tokens_per_param: float = Field(20, ge=1e-3, le=1e9)
    """training tokens a non-embedding parameter where the best size is expected; 20 is what text
    wants, guess and adjust"""
    sizes: int = Field(5, ge=2, le=40)
    "encoders a budget, each about twice the one before"


class RunSpec(Spec):
    """One point of a study: everything that defines its result."""

    encoder: EncoderSpec = EncoderSpec()
    train: TrainSpec
    sequence_length: int = Field(32, ge=1)
    "most recent events kept per user and service; training draws a random window of as many"
    corpus_users: int | None = Field(None, ge=2)
    "training users, a prefix of one fixed order; all when omitted"
    resources: ResourcesSpec = ResourcesSpec()
    "set by the study's own resources, or by an axis such as resources.workers"

    def identity(self, corpus_digest: str, candidates: int) -> dict[str, Any]:
        """Return what defines the run's result (decision D8): no workers, devices, paths or
        logging.
        """
        run = self.model_dump(mode="json", exclude={"resources": True, "encoder": {"size"}})
        return {"recipe": RECIPE, "corpus_digest": corpus_digest, "candidates": candidates, **run}

    def run_id(self, corpus_digest: str, candidates: int) -> str:
        """Return the first 12 hex digits of the identity's sha256."""
        return fingerprint(self.identity(corpus_digest, candidates))


class StudySpec(Spec):
    """A base run, axes over it, and how its runs are scored, placed and fitted."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    corpus: CorpusSpec | str
    "how to prepare the corpus, or the folder of a prepared one"
    base: RunSpec
    axes: dict[str, list[Any]] | list[dict[str, list[Any]]]
    """dotted field, or several to move together -> values; a grid is their product, and several
    grids may be listed"""
    isoflop: IsoFlopSpec = IsoFlopSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourcesSpec = ResourcesSpec()
    fit: FitSpec = FitSpec()
    transfer: tuple[str, ...] = ()
    "files of downstream tasks to which every finished run is put"

    @model_validator(mode="after")
    def _resources_once(self) -> Self:
        if "resources" in self.base.model_fields_set:
            raise ValueError(
                "base holds resources; put them at the top level of the study, or on an axis"
            )
        return self

    @property
    def grids(self) -> list[dict[str, list[Any]]]:
        """The study's grids, one or more."""
        return self.axes if isinstance(self.axes, list) else [self.axes]


def read_study(path: str | Path) -> StudySpec:
    """Read a study file; raise SpecError with one sentence when it cannot be meant."""
    return StudySpec.parse(read_yaml(path), str(path))
