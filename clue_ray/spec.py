"""Frozen specs: what a corpus, an encoder, a run and a study are. YAML in, JSON out, fingerprint of identity.

A `StudySpec` is a base run and axes. `expand` in `study/grid.py` turns it into `RunSpec`s; `RunSpec.identity` holds
what defines a run's result and nothing of how it is executed, and `run_id` is a hash of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clue_ray.errors import SpecError, nearest

RECIPE = 1
"""Bump when the same spec would train to different weights; part of every run's identity."""


class Spec(BaseModel):
    """A frozen mapping that refuses unknown keys and names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, document: Any, where: str) -> Self:
        """Validate a plain mapping; raise SpecError with one sentence on the first mistake."""
        if not isinstance(document, dict):
            raise SpecError(f"{where} holds {type(document).__name__}, not a mapping of keys to values.")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise SpecError(explain(error, cls, where)) from None


class SplitSpec(Spec):
    """Shares of users held out, by a stable hash of the user id; the rest trains."""

    validation: float = Field(0.05, ge=0, lt=1)
    "share kept for choosing settings; no run trains on it or is scored on it"
    test: float = Field(0.05, gt=0, lt=1)
    "share whose users form the evaluation pools"


class CorpusSpec(Spec):
    """How event logs become a corpus."""

    events: str | tuple[str, ...]
    "files, folders or globs: Parquet, CSV or JSON Lines"
    columns: dict[str, str] = {}
    "names of user_id, service, timestamp in the log, where they differ: {user_id: author}"
    text: str = "{text}"
    "template over the log's columns that makes the item text"
    services: tuple[str, ...] | None = None
    "services kept; all when omitted"
    vocab_size: int = Field(8192, ge=257, le=1_000_000)
    "byte-level BPE vocabulary, guide tokens not counted"
    max_item_tokens: int = Field(24, ge=1, le=4096)
    "tokens kept of an item's text, guide token not counted"
    split: SplitSpec = SplitSpec()
    max_rejected: float = Field(0.05, ge=0, le=1)
    "share of rows that may be unusable before preparation stops"


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
}
"""Sizes of the encoder, smallest first; `size: s` in a study file means this shape."""


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
                raise ValueError(f"lacks {', '.join(missing)}; give all of {', '.join(Rung.model_fields)}, or a size")
            return {**document, "size": size}
        if size not in LADDER:
            raise ValueError(f"size {size!r} is no rung of the ladder; use one of {', '.join(LADDER)}")
        rung = LADDER[size].model_dump()
        changed = [key for key in shape if shape[key] != rung[key]]
        if changed:
            raise ValueError(f"size {size!r} already fixes {', '.join(changed)}; leave size out to spell the shape")
        return {**document, **rung, "size": size}

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TrainSpec(Spec):
    """How a run trains: batch, horizon, optimiser. Exactly one of steps, users_seen and train_flops is given."""

    global_batch_size: int = Field(128, ge=2)
    "users a step, over all workers; each brings one positive pair and global_batch_size - 1 negatives"
    steps: int | None = Field(None, ge=1)
    users_seen: int | None = Field(None, ge=1)
    train_flops: float | None = Field(None, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    "peak rate at width 32; matrices of wider encoders use learning_rate x 32 / width (decision D6)"
    weight_decay: float = Field(0.1, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    "share of the steps with linearly rising learning rate"
    clip_norm: float = Field(0.1, gt=0)
    temperature: float = Field(0.1, gt=0)
    "initial temperature; learned, and never below 0.01"
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _one_horizon(cls, document: Any) -> Any:
        given = [key for key in HORIZONS if isinstance(document, dict) and document.get(key) is not None]
        if isinstance(document, dict) and len(given) != 1:
            raise ValueError(
                f"gives {len(given)} horizons ({', '.join(given) or 'none'}); give one of {', '.join(HORIZONS)}"
            )
        return document


HORIZONS = ("steps", "users_seen", "train_flops")


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
    concurrency: int | Literal["auto"] = "auto"
    "runs at a time; auto fills the cluster"


class FitSpec(Spec):
    """Which laws are fitted to held-out loss against train_flops, and what judges them."""

    laws: tuple[str, ...] = ("power_law_plus_constant", "log_linear", "power_law", "bounded_power_law")
    hold_out: Literal["largest_compute"] = "largest_compute"


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
        """Return what defines the run's result (decision D8): no workers, devices, paths or logging."""
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
    "dotted field -> values; a grid is their product, and several grids may be listed"
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourcesSpec = ResourcesSpec()
    fit: FitSpec = FitSpec()

    @model_validator(mode="after")
    def _resources_once(self) -> Self:
        if "resources" in self.base.model_fields_set:
            raise ValueError("base holds resources; put them at the top level of the study, or on an axis")
        return self

    @property
    def grids(self) -> list[dict[str, list[Any]]]:
        """The study's grids, one or more."""
        return self.axes if isinstance(self.axes, list) else [self.axes]


def read_study(path: str | Path) -> StudySpec:
    """Read and validate a study file; raise SpecError with one sentence when it cannot be meant."""
    return StudySpec.parse(read_yaml(path), str(path))


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; raise SpecError with one sentence when there is none or it is malformed."""
    file = Path(path)
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"Study file {file} does not exist; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"Study file {file} cannot be read ({error}); give a YAML text file.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"Study file {file} is not valid YAML ({reason}); mend it at that line.") from None


def fingerprint(document: Any) -> str:
    """Hash a JSON-able value: first 12 hex digits of the sha256 of its sorted, compact JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def field_names(spec: type[Spec], path: tuple[Any, ...]) -> list[str]:
    """List the keys allowed at `path` below a spec class; empty when the path leads to a plain value."""
    for step in path:
        if isinstance(step, int) or step not in spec.model_fields:
            continue  # a list index, or the branch of a union that pydantic adds to the path
        annotation = spec.model_fields[step].annotation
        specs = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, Spec)]
        if not specs:
            return []
        spec = specs[0]
    return list(spec.model_fields)


def explain(error: ValidationError, spec: type[Spec], where: str) -> str:
    """Turn pydantic's first complaint into one sentence: place, value found, what is allowed."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    steps = tuple(s for s in first["loc"] if s not in {"CorpusSpec", "str", "int"} or s in spec.model_fields)
    place = ".".join(str(step) for step in steps)
    if first["type"] == "extra_forbidden":
        return f"{where} has an unknown key {place!r}; {nearest(str(steps[-1]), field_names(spec, steps[:-1]))}"
    if first["type"] == "missing":
        return f"{where} lacks the key {place!r}; add it."
    message = first["msg"].removeprefix("Value error, ")
    if steps and steps[-1] in {"dict[str,list[any]]", "list[dict[str,list[any]]]"}:
        return (
            f"{where}: {steps[0]} is {first['input']!r}; give a mapping of dotted field to list of values, or several."
        )
    if first["type"] == "value_error":
        return f"{where}: {place or 'study'} {message}."
    return (
        f"{where}: {place} is {first['input']!r}, but the {message[0].lower() + message[1:].replace('Input', 'input')}."
    )
