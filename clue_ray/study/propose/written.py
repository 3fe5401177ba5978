"""Write a proposed study as a commented YAML file: a reason stands behind every choice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import yaml

from clue_ray.corpus.guess import LogFacts
from clue_ray.spec.specs import CorpusSpec
from clue_ray.study.propose.sizes import (
    LARGEST_BATCH,
    PERCENTILES,
    SEEDED,
    SEEDS,
    Proposal,
)


@dataclass(frozen=True)
class Head:
    """What the top of a file says.

    Attributes:
        name: of the study.
        command: that wrote the file.
        budget: what the runs were sized to, in words.
        schema: path of the JSON Schema.
    """

    name: str
    command: str
    budget: str
    schema: str


def study_text(
    head: Head,
    corpus: CorpusSpec,
    why: dict[str, str],
    facts: LogFacts,
    made: Proposal,
    gpus: float,
) -> str:
    """Return the text of a study file.

    Args:
        why: the reason for the column of each role, and for the template as `text`.
        gpus: GPUs of a run's worker.
    """
    kept = set(made.services)
    shared = min(users for pair, users in facts.pairs.items() if set(pair) <= kept)
    seeds, percentiles = (", ".join(map(str, values)) for values in (SEEDS, PERCENTILES))
    middle = made.budgets[len(made.budgets) // 2]
    others = [length for length in made.lengths if length != made.length]
    part = "" if facts.whole else f" (its first {facts.rows:,} rows)"
    lines = [
        f"# yaml-language-server: $schema={head.schema}",
        f"# Written by: {head.command}",
        f"# {head.budget} The log{part} has {facts.users:,} users, {len(facts.services)} services",
        f"# and {facts.rows:,} events. `clue-ray explain FIELD` says what a field means.",
        f"name: {_inline(head.name)}",
        "question: How does held-out loss fall with compute, encoder size and history length?",
        *_corpus_lines(corpus, why, made),
        "base:",
        f"  encoder: {{size: {made.size}}}  # of the middle budget",
        "  train:",
        f"    global_batch_size: {made.batch}  # {_batch_reason(made)}",
        f"    train_flops: {_number(middle)}  # the middle budget; those of a grid replace it",
        "    learning_rate: 0.003  # at width 32; transfers over width, depth and batch",
        "    event_dropout: 0.3  # histories repeat, and few users are seen many times",
        "    seed: 0",
        f"  sequence_length: {made.length}  # the middle one of the last grid",
        "axes:",
        f"  # {len(made.budgets)} budgets over two decades; encoders grow with them: the best",
        "  # size at each compute, and the law along the frontier",
        *(f"  - {axes}" for axes in _budget_axes(made, len(made.budgets))),
        "  # two more seeds where runs are cheap: the noise between seeds",
        *(f"  - {axes}\n    train.seed: [{seeds}]" for axes in _budget_axes(made, SEEDED)),
    ]
    if others:
        lines += [
            f"  # histories at percentiles {percentiles} of the events per user",
            "  # and service, at least twice as long each time",
            f"  - {{sequence_length: {_list(others)}}}",
        ]
    if made.lengths[-1] > made.length:
        lines += [
            "  # the longest history also at the larger budgets",
            f"  - budgets: {_list(made.budgets[len(made.budgets) // 2 + 1 :])}  # FLOP",
            f"    encoder.size: [{made.size}]",
            f"    sequence_length: [{made.lengths[-1]}]",
        ]
    lines += [
        f"evaluation: {{candidates: {made.candidates}}}  # held-out users; two services share at "
        f"least {shared:,} users",
        f"resources: {{workers: 1, gpus_per_worker: {gpus:g}}}",
    ]
    return "\n".join(lines) + "\n"


def _corpus_lines(corpus: CorpusSpec, why: dict[str, str], made: Proposal) -> list[str]:
    """Return the corpus section, as it also stands in a corpus file."""
    document = corpus.model_dump(mode="json", exclude_defaults=True)
    columns = document.pop("columns", {})
    lines = ["corpus:", f"  events: {_inline(document.pop('events'))}"]
    if columns:
        lines.append("  columns:  # the log's names, where they differ")
        lines += [f"    {role}: {_inline(name)}  # {why[role]}" for role, name in columns.items()]
    lines.append(f"  text: {_inline(corpus.text)}  # {why['text']}")
    lines += [
        f"  services: {_inline(list(made.services))}  # those that share the most users",
        f"  vocab_size: {made.vocab_size}  # byte-level BPE; small logs have few distinct words",
        f"  split: {{validation: {made.validation:g}, test: {made.test:g}}}  # for the pools",
    ]
    kept = {k: v for k, v in document.items() if k not in ("text", "services", "split")}
    return lines + [f"  {key}: {_inline(value)}" for key, value in kept.items()]


def _budget_axes(made: Proposal, count: int) -> Iterator[str]:
    """Yield the axes of the cheapest `count` budgets, those with the same sizes together."""
    pairs = list(zip(made.budgets, made.sizes, strict=True))[:count]
    for sizes, group in groupby(pairs, key=lambda pair: pair[1]):
        budgets = [budget for budget, _ in group]
        yield f"budgets: {_list(budgets)}  # FLOP\n    encoder.size: {_list(sizes)}"


def _batch_reason(made: Proposal) -> str:
    if made.batch == LARGEST_BATCH:
        return "users per step; each is the negative of the others"
    return (
        "users per step: at most a quarter of the training users of two services, and so few "
        "that the cheapest runs have enough steps"
    )


def _list(values: Iterable[object]) -> str:
    return f"[{', '.join(_number(v) if isinstance(v, float) else str(v) for v in values)}]"


def _number(value: float) -> str:
    """Write FLOPs with a point, without which YAML reads an exponent as text."""
    return f"{value:.1e}"


def _inline(value: object) -> str:
    """Write a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
