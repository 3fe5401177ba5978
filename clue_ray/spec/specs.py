"""Frozen specs of a corpus, an encoder, a run and a study, with their defaults.

A `StudySpec` is a base run plus axes; `expand` in `spec/grid.py` turns it into `RunSpec`s.
`RunSpec.identity` holds everything that defines the result of a run and nothing about how the run
is executed. Its hash is the run id.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from clue_ray.spec.fits import FitSpec, IsoFlopSpec
from clue_ray.spec.items import ItemsSpec, with_text_of_items
from clue_ray.spec.ladder import LADDER, Rung
from clue_ray.spec.logs import check_separator, check_timestamp_format, logs_by_service
from clue_ray.spec.precision import with_bf16_on_gpus
from clue_ray.spec.yaml import FILE_NAME, Spec, fingerprint, read_yaml, with_lines
from clue_ray.spec.younger import NEW_IN_RUNS, without_new_in_runs

RECIPE = 3
"""Training version, part of every run id; increase it when a spec trains to other weights."""
HORIZONS = ("steps", "users_seen", "train_flops")
"""Fields of `TrainSpec` that say how long a run trains; a run has exactly one of them."""


class SplitSpec(Spec):
    """Shares of users held out, chosen by a stable hash of the user id; the rest are trained on."""

    validation: float = Field(0.05, ge=0, lt=1)
    """share kept for tuning settings and for calibrating the temperature of the held-out loss; no
    run of a study trains on it or is scored on it"""
    test: float = Field(0.05, gt=0, lt=1)
    "share whose users form the evaluation pools"
    time: datetime | None = None
    """cut-off time, in UTC without a time zone: earlier events are encoded, later ones are kept
    apart as prediction targets"""

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


class LogSpec(Spec):
    """One of several logs that are joined; omitted fields default to those of the corpus."""

    events: str | tuple[str, ...]
    "files, folders, globs or URIs"
    columns: dict[str, str] | None = None
    text: str | None = None
    timestamp_format: str | None = None
    separator: str | None = None

    _check_format = field_validator("timestamp_format")(check_timestamp_format)
    _check_separator = field_validator("separator")(check_separator)


class CorpusSpec(Spec):
    """How event logs are turned into a corpus."""

    events: str | tuple[str, ...] | dict[str, LogSpec]
    """files, folders, globs or URIs of Parquet, CSV or JSON Lines; or one log per service:
    {search: ..., shop: ...}"""
    columns: dict[str, str] = Field(default={})
    "the log's names of user_id, service, timestamp and text, where they differ: {user_id: author}"
    text: str = "{text}"
    "template of the item text over the log's columns"
    items: dict[str, ItemsSpec] | None = None
    """catalogues by the log's column of item ids: {events.sku: {table, key, text}} for all logs,
    {SERVICE.sku: ...} for one; the catalogue's text takes the place of {sku} in `text`"""
    timestamp_format: str | None = None
    "how timestamps are written, as in Python's strptime: %d/%m/%Y %H:%M; only for ambiguous ones"
    separator: str | None = None
    "character between the columns of CSV files; found in each file when omitted"
    services: tuple[str, ...] | None = None
    "services to keep; all when omitted"
    vocab_size: int = Field(8192, ge=257, le=1_000_000)
    "size of the byte-level BPE vocabulary to train, without guide tokens"
    tokenizer: str | None = None
    "tokenizer.json of another corpus, to use instead of training one"
    max_item_tokens: int = Field(24, ge=1, le=4096)
    "number of tokens kept of an item's text, without the guide token"
    max_text_length: int = Field(10_000, ge=1)
    "number of characters of text above which a row is unusable"
    duplicates: Literal["keep", "drop"] = "keep"
    "whether to keep rows that equal another in user, service, time and text"
    split: SplitSpec = SplitSpec()
    max_rejected: float = Field(0.05, ge=0, le=1)
    "largest share of unusable rows; with more, preparation stops"

    _check_format = field_validator("timestamp_format")(check_timestamp_format)
    _check_separator = field_validator("separator")(check_separator)

    @field_validator("events", mode="before")
    @classmethod
    def _logs_by_service(cls, events: Any) -> Any:
        return logs_by_service(events)

    @model_validator(mode="before")
    @classmethod
    def _text_of_items(cls, document: Any) -> Any:
        return with_text_of_items(document)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer and "vocab_size" in self.model_fields_set:
            raise ValueError(
                "gives both tokenizer and vocab_size, but a given tokenizer has its own size; "
                "leave one of them out"
            )
        return self


class EncoderSpec(Spec):
    """Shape of the encoder: a size on the ladder, or its four numbers spelled out."""

    size: str = "s"
    "a size on the ladder, or `custom` when the shape is spelled out"
    width: int = Field(0, ge=1)
    item_layers: int = Field(0, ge=1)
    service_layers: int = Field(0, ge=1)
    heads: int = Field(0, ge=1)
    ffn_multiple: int = Field(4, ge=1)
    "hidden width of a feed-forward layer, as a multiple of the encoder's width"
    output_width: int = Field(64, ge=2)
    "dimension of a user embedding"
    dropout: float = Field(0.0, ge=0, lt=1)
    "dropout probability of the output of each residual branch, in training"
    bag: bool = True
    """add a linear map of the history's saturated token counts to the transformer's output; false
    is CLUE's own model"""
    transformer: bool = True
    "use the transformer; false leaves the bag alone, a baseline that costs almost nothing"
    time: bool = False
    """let the transformer read the times of events: the gaps to the event before and to the cut,
    the hour and the weekday, in UTC"""

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
                    f"lacks {', '.join(missing)}; "
                    f"give all of {', '.join(Rung.model_fields)}, or a size"
                )
            return {**document, "size": size}
        if not isinstance(size, str) or size not in LADDER:
            raise ValueError(f"size {size!r} is not on the ladder; use one of {', '.join(LADDER)}")
        rung = LADDER[size].model_dump()
        changed = [key for key in shape if shape[key] != rung[key]]
        if changed:
            raise ValueError(
                f"size {size!r} already fixes {', '.join(changed)}; "
                "leave size out to spell out the shape"
            )
        return {**document, **rung, "size": size}

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def parts(self) -> str:
        """Which parts the encoder has: `bag+transformer`, `bag` or `transformer`."""
        return "+".join(name for name in ("bag", "transformer") if getattr(self, name))

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not (self.bag or self.transformer):
            raise ValueError("has bag: false and transformer: false; keep at least one of them")
        if self.time and not self.transformer:
            raise ValueError(
                "has time: true and transformer: false, but only the transformer reads times; "
                "leave out one of the two"
            )
        return self


class TrainSpec(Spec):
    """How a run is trained: batch, optimiser, and exactly one of steps, users_seen, train_flops."""

    global_batch_size: int = Field(128, ge=2)
    """number of users per step, over all workers; each has one positive pair and
    global_batch_size - 1 negatives"""
    steps: int | None = Field(None, ge=1)
    users_seen: int | None = Field(None, ge=1)
    train_flops: float | None = Field(None, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    "peak rate at width 32; weight matrices use learning_rate x 32 / width (decision D6)"
    token_rate: float = Field(6.0, gt=0)
    """factor on the learning rate of the token tables, the bag's included: most tokens occur in few
    batches, and the bag learns most in the first steps"""
    weight_decay: float = Field(0.1, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    "share of the steps in which the learning rate rises linearly"
    schedule: Literal["cosine", "warmup_stable_decay"] = "cosine"
    """after the warm-up: a cosine decay to a tenth of the peak rate, or the peak rate with a linear
    decay to zero over the last fifth of the steps"""
    clip_norm: float = Field(0.1, gt=0)
    objective: Literal["info_nce", "sigmoid"] = "info_nce"
    "softmax over the users of a batch, as in CLUE; or one sigmoid per pair of users, as in SigLIP"
    temperature: float = Field(0.1, ge=0.01)
    "initial value of the learned temperature, which stays at or above 0.01"
    event_dropout: float = Field(0.0, ge=0, lt=1)
    "share of the events of a history dropped at random; at least one is kept"
    token_dropout: float = Field(0.0, ge=0, lt=1)
    "share of the tokens of an item dropped at random; the guide token is kept"
    same_service: float = Field(0.0, ge=0, lt=1)
    """share of the batches drawn from a single service; the positive pair is then the recent half
    of a history and the half before it"""
    past_future: float = Field(0.0, ge=0, le=1)
    """share of the batches that pair a user's past with their future, in all services at once: up
    to sequence_length events per service on either side of a random cut in time"""
    mask_false_negatives: bool = True
    """mask false negatives: users of a batch with the same items in both services are not negatives
    of each other"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """precision of matrix products; normalisation, logits and loss are always fp32. A study that
    asks for GPUs and does not set it trains in bf16"""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shares_of_batches(self) -> Self:
        if self.same_service + self.past_future > 1:
            raise ValueError(
                f"gives same_service {self.same_service:g} and past_future {self.past_future:g}, "
                "which are shares of the batches; let them add up to 1 at most"
            )
        return self

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
    """The fixed pool of held-out users on which every run is scored (decision D2)."""

    candidates: int = Field(256, ge=2)
    "number of held-out users per service pair; guessing has a loss of ln(candidates)"
    every: float = Field(0.25, gt=0, le=1)
    "distance between two points of the learning curve, as a share of the steps"


class ResourcesSpec(Spec):
    """Resources that one run requests of the cluster; they do not change its id."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    users_per_chunk: PositiveInt | Literal["auto"] = "auto"
    """number of users that a worker encodes at a time, by gradient caching; auto is its whole share
    of the batch on a CPU, and on a GPU what fits its memory"""
    compile: bool = False
    "compile the encoder's blocks on a GPU, which takes up to a minute per run"
    feed: Literal["auto", "worker", "ray_data"] = "auto"
    """who packs batches: a thread of each worker, or tasks of Ray Data on free cores of any node;
    auto chooses ray_data where packing takes longer than the GPU's step"""
    checkpoints: str | None = None
    """folder or URI (s3://...) of the checkpoints of all runs; each run's own folder when
    omitted"""
    concurrency: PositiveInt | Literal["auto"] = "auto"
    "number of concurrent runs; auto fills the cluster"

    @field_validator("users_per_chunk", mode="before")
    @classmethod
    def _none_is_auto(cls, users: Any) -> Any:
        return "auto" if users is None else users  # specs of earlier versions hold null


class RunSpec(Spec):
    """One run of a study: everything that defines its result, and its resources.

    Example:
        >>> from clue_ray import EncoderSpec, RunSpec, TrainSpec
        >>> train = TrainSpec(global_batch_size=128, steps=100)
        >>> run = RunSpec(encoder=EncoderSpec(size="s"), train=train, sequence_length=32)
        >>> run.encoder.width, len(run.run_id("a corpus digest", 256))
        (32, 12)
    """

    encoder: EncoderSpec = EncoderSpec()
    train: TrainSpec
    sequence_length: int = Field(32, ge=1)
    "number of most recent events per user and service; training draws a random window of that many"
    corpus_users: int | None = Field(None, ge=2)
    "number of training users, a prefix of one fixed order; all when omitted"
    resources: ResourcesSpec = ResourcesSpec()
    "set by the resources of the study, or by an axis such as resources.workers"

    def identity(self, corpus_digest: str, candidates: int) -> dict[str, Any]:
        """Return everything that defines the result (decision D8), and nothing of its execution."""
        # The name of a size is left out too: a size and the same shape spelled out are one run.
        run = self.model_dump(mode="json", exclude={"resources"})
        run |= {part: without_new_in_runs(part, getattr(self, part)) for part in NEW_IN_RUNS}
        del run["encoder"]["size"]
        run |= {"stream": "bf16"} if self.train.precision == "bf16" else {}
        return {"recipe": RECIPE, "corpus_digest": corpus_digest, "candidates": candidates, **run}

    def run_id(self, corpus_digest: str, candidates: int) -> str:
        """Return the first 12 hex digits of the SHA-256 of the identity."""
        return fingerprint(self.identity(corpus_digest, candidates))


class StudySpec(Spec):
    """A base run and axes over it, and how the runs are scored, placed and fitted.

    Example:
        >>> from clue_ray import StudySpec
        >>> study = StudySpec(
        ...     name="size",
        ...     question="Does size help?",
        ...     corpus="corpora/mine",
        ...     base={"train": {"steps": 100}},
        ...     axes={"encoder.size": ["xs", "s"]},
        ... )
        >>> study.base.train.steps, study.evaluation.candidates
        (100, 256)
    """

    elsewhere = ("base.resources",)

    name: str = Field(pattern=FILE_NAME)
    question: str = ""
    corpus: CorpusSpec | str
    "how to prepare the corpus, or the folder of a prepared corpus"
    base: RunSpec
    axes: dict[str, list[Any]] | list[dict[str, list[Any]]]
    """a grid, or a list of grids: dotted field -> values, or several fields that change together
    -> lists of values; the runs of a grid are the product of its axes"""
    isoflop: IsoFlopSpec = IsoFlopSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourcesSpec = ResourcesSpec()
    fit: FitSpec = FitSpec()
    transfer: tuple[str, ...] = ()
    "files of downstream tasks on which every finished run is evaluated"
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    "where runs, curves and the report are sent, too; places and logins are the libraries' own"

    _choose_precision = model_validator(mode="before")(with_bf16_on_gpus)

    @field_validator("axes", mode="wrap")
    @classmethod
    def _with_lines(cls, axes: Any, check: Callable[[Any], Any]) -> Any:
        found = check(axes)
        if not found and isinstance(found, list):
            raise ValueError("list no grid; give at least one mapping of dotted field to values")
        return with_lines(found, axes)  # so that errors of a grid, which come later, name them

    @field_validator("base")
    @classmethod
    def _resources_once(cls, base: RunSpec) -> RunSpec:
        if "resources" in base.model_fields_set:
            raise ValueError("holds resources; put them at the top level of the study")
        return base

    @property
    def grids(self) -> list[dict[str, list[Any]]]:
        """The grids of the study, one or more."""
        return self.axes if isinstance(self.axes, list) else [self.axes]


def read_study(path: str | Path) -> StudySpec:
    """Load a study file; raise SpecError where it is invalid.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from clue_ray import read_study
        >>> study = {"name": "size", "question": "Does size help?", "corpus": "corpora/mine"}
        >>> runs = {"base": {"train": {"steps": 100}}, "axes": {"encoder.size": ["xs", "s"]}}
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "study.yaml"
        ...     _ = file.write_text(json.dumps(study | runs))
        ...     read = read_study(file)
        >>> read.name, read.base.train.steps
        ('size', 100)
    """
    return StudySpec.parse(read_yaml(path), str(path))
