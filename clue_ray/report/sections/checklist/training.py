"""Answers on the runs and their data: the heads "Training setup" and "Data collection"."""

from importlib.metadata import metadata
from typing import Any

import pandas as pd

from clue_ray.report import numbers
from clue_ray.report.sections.checklist.evidence import (
    MOST_LISTED,
    Evidence,
    plain,
    sentences,
    spread,
)
from clue_ray.runs import chance_loss
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.fitting.frontier import Y, settings_of
from clue_ray.spec.columns import SIZE, label, short_label
from clue_ray.spec.compute import Vocabulary, Work, count_params, forward_flops, train_flops
from clue_ray.spec.recipe import BASE_WIDTH, BETAS, FINAL_RATE, OPTIMIZER, STABLE_DECAY
from clue_ray.spec.specs import HORIZONS, RECIPE, EncoderSpec, SplitSpec

TIMES = "\N{MULTIPLICATION SIGN}"
SHAPE = ("width", "item_layers", "service_layers", "heads")


def models(evidence: Evidence) -> str:
    """Count the runs, their settings and their seeds."""
    table, finished = evidence.files.table, evidence.files.finished
    settings = len(set(settings_of(finished))) if len(finished) else 0
    seeds = evidence.column("seed").nunique()
    return sentences(
        f"{len(finished)} of {len(table)} runs finished",
        f"{settings} settings" if settings else "",
        f"{seeds} seed{'s' * (seeds > 1)}" if seeds else "",
    )


def sizes(evidence: Evidence) -> str:
    """State the sizes of the models."""
    params = evidence.number(SIZE).dropna()
    if params.empty:
        return ""
    ordered = evidence.done.loc[params.sort_values().index, "encoder_size"].dropna()
    names = [str(name) for name in ordered.unique()]
    return sentences(
        f"{spread(params)} {short_label(SIZE)}",
        f"named {listing(names)}" if 1 < len(names) <= MOST_LISTED else "",
    )


def data(evidence: Evidence) -> str:
    """State how much data each model was trained on."""
    parts = ("train_tokens", "users_seen", "steps")
    known = {name: evidence.number(name).dropna() for name in parts}
    return sentences(
        *(f"{_ends(values)} {short_label(name)}" for name, values in known.items() if len(values)),
        _subsets(evidence.number("corpus_users").dropna()),
    )


def _subsets(users: pd.Series) -> str:
    return f"corpora of {spread(users)} training users" if len(users) else ""


def source(evidence: Evidence) -> str:
    """Name the log behind the corpus, its services and its licence."""
    # The summary of a corpus has `source`; its `events` are a number.
    given = evidence.corpus_spec.events if evidence.corpus_spec else ""
    events = _places(evidence.files.corpus.get("source") or given)
    services = evidence.corpus("services")
    if isinstance(services, list | tuple | dict):
        services = ", ".join(map(str, services))
    licence = evidence.files.corpus.get("licence_note")
    if not (events or services or licence):
        return ""
    return sentences(
        events or "source not recorded",
        f"services {services}" if services else "",
        f"licence {licence}" if licence else "licence not recorded",
    )


def _places(events: Any) -> str:
    """Write the place of a log, or of one log per service."""
    if isinstance(events, dict):
        return ", ".join(f"{name}: {_places(_events_of(log))}" for name, log in events.items())
    if isinstance(events, list | tuple):
        return ", ".join(map(str, events))
    return events if isinstance(events, str) else ""


def _events_of(log: Any) -> Any:
    return log.get("events") if isinstance(log, dict) else getattr(log, "events", "")


def repeated(evidence: Evidence) -> str:
    """State how often each run saw its users, and what was done with repeated rows."""
    drawn = evidence.number("steps") * evidence.number("global_batch_size")
    seen = evidence.number("users_seen").fillna(drawn)
    passes = (seen / evidence.number("corpus_users")).dropna()
    rows = evidence.corpus("duplicates")
    return sentences(
        f"each run drew its training users {_ends(passes, '{:.2g}'.format)} times on average, in "
        "random windows of their histories"
        if len(passes)
        else "",
        f"identical rows of the log: {rows}" if rows else "",
    )


def vocabulary(evidence: Evidence) -> str:
    """Name the tokenizer, and its size and limits."""
    size, given = evidence.corpus("vocab_size"), evidence.corpus("tokenizer")
    most = evidence.corpus("max_item_tokens")
    if size is None:
        return ""
    origin = f"taken from {given}" if given else "trained on the texts of the training users"
    return sentences(
        f"byte-level BPE, {origin}",
        f"{numbers.count(size)} tokens without guide tokens",
        f"items cut to {most} tokens" if most else "",
    )


def size_counted(evidence: Evidence) -> str:
    """State which parameters N holds, and the share that it leaves out."""
    if not evidence.runs or evidence.column(SIZE).empty:
        return ""
    groups = list(count_params(EncoderSpec(), Vocabulary(1, 1, 1)))
    counted = groups[groups.index("embedding") + 1 : groups.index("non_embedding")]
    share = (1 - evidence.number(SIZE) / evidence.number("total_params")).dropna()
    left = f": {_ends(share, numbers.percent)} of all parameters" if len(share) else ""
    return (
        f"N counts the parameters of {listing([name.replace('_', ' ') for name in counted])}, "
        f"without the embedding tables{left}"
    )


def compute_counted(evidence: Evidence) -> str:
    """State how FLOPs are counted, and their ratio to the rule of thumb 6ND."""
    if not evidence.runs:
        return ""
    one, work = EncoderSpec(), Work(1, 1, 1, 1, 1, 1)
    backward = train_flops(one, work) / forward_flops(one, work)
    spent = evidence.number("train_flops")
    ratio = (spent / (6 * evidence.number(SIZE) * evidence.number("train_tokens"))).dropna()
    executed = (evidence.number("executed_flops") / spent).dropna()
    return sentences(
        f"from the shape and the drawn batches: {backward:g} times the forward pass, matrix "
        "products and attention only, 2 FLOPs per multiply-add",
        f"{_ends(ratio, '{:.2g}'.format)} times 6ND" if len(ratio) else "",
        f"{_ends(executed, '{:.2g}'.format)} of it was executed, as equal items of a batch are "
        "encoded once"
        if len(executed)
        else "",
    )


def architecture(evidence: Evidence) -> str:
    """State the shape of the encoder, and what of it varies."""
    shape = {name: evidence.column(name) for name in SHAPE}
    known = [
        f"{name.replace('_', ' ')} {spread(values)}"
        for name, values in shape.items()
        if len(values)
    ]
    kept = [
        f"{name.replace('_', ' ')} {spread(values, plain)}"
        for name in ("ffn_multiple", "output_width", "dropout")
        if (values := evidence.field(f"encoder.{name}"))
    ]
    length = evidence.column("sequence_length")
    events = f"{spread(length)} events per user and service" if len(length) else ""
    return sentences(", ".join(known), ", ".join(kept), events)


def optimizer(evidence: Evidence) -> str:
    """State the optimizer with its constants, and the training objective."""
    if not evidence.runs:
        return ""
    return sentences(
        f"{OPTIMIZER}, betas {listing([plain(beta) for beta in BETAS])}",
        f"weight decay {_setting(evidence, 'weight_decay')}, of matrices only",
        f"gradients clipped to norm {_setting(evidence, 'clip_norm')}",
        f"objective {_setting(evidence, 'objective')}, starting at temperature "
        f"{_setting(evidence, 'temperature')}",
    )


def schedule(evidence: Evidence) -> str:
    """State the learning rates, their schedule, the batch sizes and the horizon."""
    if not evidence.runs:
        return ""
    named = evidence.field("train.schedule")
    ends = {
        "cosine": f"cosine to {FINAL_RATE:.0%} of the peak",
        "warmup_stable_decay": f"constant, then linear to zero over the last {STABLE_DECAY:.0%}",
    }
    horizons = [name for name in HORIZONS if any(evidence.field(f"train.{name}"))]
    return sentences(
        f"peak rate {_setting(evidence, 'learning_rate')}, {TIMES} {BASE_WIDTH} / width for "
        f"matrices, {TIMES} {_setting(evidence, 'token_rate')} for token embeddings",
        f"warm-up over {spread(evidence.field('train.warmup'), '{:.0%}'.format)} of the steps",
        listing([ends[name] for name in named]),
        f"batches of {_setting(evidence, 'global_batch_size')} users",
        f"horizon in {listing([short_label(name) for name in horizons])}",
    )


def tuning(evidence: Evidence) -> str:
    """State whether the learning rate was tuned at each size."""
    pairs = {SIZE: evidence.number(SIZE), "learning_rate": evidence.number("learning_rate")}
    done = pd.DataFrame(pairs).dropna()
    if done.empty:
        return ""
    rates = done.groupby(SIZE)["learning_rate"].nunique()
    tuned = int((rates > 1).sum())
    if tuned:
        return f"{tuned} of {len(rates)} sizes were trained at several learning rates"
    if done["learning_rate"].nunique() > 1:
        return "each size has one learning rate, not the same for all; no search is recorded"
    rule = f", scaled by {BASE_WIDTH} / width" if evidence.runs else ""
    return f"no: one learning rate, {plain(done['learning_rate'].iloc[0])}, for all sizes{rule}"


def code(evidence: Evidence) -> str:
    """State the code that trained the runs, its recipe, its licence and the precision."""
    versions = evidence.column("clue_ray_version").astype(str)
    if versions.empty:
        return ""
    licence = metadata("clue-ray").json.get("license_expression")
    return sentences(
        f"clue-ray {spread(versions)}, recipe {RECIPE}",
        f"licence {licence}" if licence else "",
        f"precision {_setting(evidence, 'precision')}" if evidence.runs else "",
        f"on {spread(evidence.column('device').astype(str))}",
    )


def evaluations(evidence: Evidence) -> str:
    """State how often each run was evaluated, and which evaluation the laws use."""
    curves = evidence.files.curves
    if curves is None:
        return ""
    counts = curves[curves["run_id"].isin(evidence.done["run_id"])].groupby("run_id").size()
    if counts.empty:
        return ""
    return f"{spread(counts)} per run; laws use the last one, at the end of the schedule"


def checkpoints(evidence: Evidence) -> str:
    """State how many trained encoders lie next to the report."""
    if not evidence.files.encoders:
        return ""
    return f"trained encoders of {evidence.files.encoders} runs, in the study's directory"


def metric(evidence: Evidence) -> str:
    """State what the loss measures."""
    counts = sorted(evidence.number("loss_candidates").dropna().astype(int).unique())
    if not counts:
        return ""
    chance = spread([chance_loss(count) for count in counts], "{:.4g}".format)
    also = [short_label(name) for name in ("recall_at_10", "mrr") if len(evidence.column(name))]
    return sentences(
        f"{label(Y)}: retrieval of a user among {spread(counts)} candidates, {chance} by guessing",
        f"{listing(also)} on the same candidates" if also else "",
    )


def pool(evidence: Evidence) -> str:
    """State on which users the runs are evaluated."""
    split = _split(evidence)
    users = evidence.corpus("held_out_users")
    if split is None and users is None:
        return ""
    return sentences(
        f"{numbers.count(users)} held-out users" if users is not None else "",
        f"{numbers.percent(split.test)} of all users, by a hash of their id" if split else "",
        f"{numbers.percent(split.validation)} more kept for tuning"
        if split and split.validation
        else "",
        f"events until {split.time:%Y-%m-%d}" if split and split.time else "",
        "the same pool for all runs",
    )


def _split(evidence: Evidence) -> SplitSpec | None:
    found = evidence.files.corpus.get("split")
    try:
        return SplitSpec.model_validate(found)
    except ValueError:  # none in the summary, or a damaged one
        return evidence.corpus_spec.split if evidence.corpus_spec else None


def changes(evidence: Evidence) -> str:
    """State what was done with the losses between evaluation and fit."""
    lost = len(evidence.files.table) - len(evidence.files.finished)
    return sentences(
        "none: no smoothing, interpolation or shift",
        f"runs left out because they have no loss: {lost}" if lost else "no run is left out",
    )


def _setting(evidence: Evidence, name: str) -> str:
    """Write the values of a training setting."""
    return spread(evidence.field(f"train.{name}"), plain)


def _ends(values: pd.Series, write: Any = numbers.compact) -> str:
    """Write the least and the largest of some numbers, or the one that they all are."""
    least, most = write(values.min()), write(values.max())
    return least if least == most else f"{least} to {most}"
