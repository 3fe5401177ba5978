"""The section on the parts of the encoder: what does the transformer add to the bag of tokens?

Runs of the whole encoder are paired with runs of one part that were trained in the same way. The
difference of their losses is the gain from the other part.
"""

from functools import partial

import numpy as np
import pandas as pd

from clue_ray.report import numbers
from clue_ray.report.figures.files import NARROW, WIDE, Picture, picture
from clue_ray.report.figures.parts import gain_against_compute
from clue_ray.report.read import StudyFiles
from clue_ray.report.rivals import SIGNIFICANT, seed_spread
from clue_ray.report.section import Section
from clue_ray.report.tables import Cell, Table, number, text, written
from clue_ray.scaling.answering.sentences import listing
from clue_ray.scaling.deciding.isoflop import Line, fit_line
from clue_ray.spec.columns import SIZE, short_label

TRAINING = ["sequence_length", "corpus_users", "global_batch_size", "learning_rate", "steps"]
"""Columns in which the runs of a pair agree; losses are averaged over seeds."""
SHAPE = ["encoder_size", "width", "item_layers", "service_layers", "heads"]
"""Columns of the transformer, in which two runs that have one also agree."""
PAIRED_BY = {"bag": TRAINING, "transformer": [*TRAINING, *SHAPE]}
_EQUAL = listing([short_label(column) for column in TRAINING])
FEWEST, DECADES = 5, 1.0
"""Number of pairs, and decades of compute that they span, for a law of the gain."""


def parts(files: StudyFiles) -> Section | None:
    """State what each part of the encoder adds; None without runs of one part."""
    if files.ablations.empty:
        return None
    trained = set(files.ablations["encoder_parts"])
    words = [
        *(_over_the_bag(files) if "bag" in trained else ()),
        *(_over_clue(files) if "transformer" in trained else ()),
    ]
    title = (
        "What does the transformer add to the bag of tokens?"
        if "bag" in trained
        else "What does the bag of tokens add to the transformer?"
    )
    pairs = pair_runs(files, "bag")
    drawn = () if pairs["train_flops"].isna().all() else (_picture(pairs),)
    shown = () if pairs.empty else (_table(pairs),)
    return Section("parts", title, "parts", tuple(words), drawn, shown)


def pair_runs(files: StudyFiles, part: str) -> pd.DataFrame:
    """Pair the settings of the whole encoder with those of one part.

    Returns:
        One row per pair, by history length and size: the columns of the training and the shape,
        `alone` and `loss` (mean losses of the part and of the whole encoder), `train_flops` of the
        whole encoder and `gain`, in nats.
    """
    own = files.ablations[files.ablations["encoder_parts"] == part]
    alone = _mean_over_seeds(own, PAIRED_BY[part]).rename(columns={"loss": "alone"})
    whole = _mean_over_seeds(files.done, [*TRAINING, *SHAPE])
    pairs = whole.merge(alone[[*PAIRED_BY[part], "alone"]], on=PAIRED_BY[part])
    ordered = pairs.sort_values(["sequence_length", SIZE, "train_flops"], ignore_index=True)
    return ordered.assign(gain=ordered["alone"] - ordered["loss"])


def _mean_over_seeds(runs: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    measured = ["loss", "train_flops", SIZE]
    numeric = runs.astype(dict.fromkeys(measured, float))
    return numeric.groupby(settings, dropna=False)[measured].mean().reset_index()


def law_of_gain(pairs: pd.DataFrame) -> Line | None:
    """Fit gain = a C^b to the pairs; None where they are too few, too close or not all positive."""
    known = pairs.dropna(subset=["train_flops"])
    spent = known["train_flops"]
    if len(known) < FEWEST or spent.max() < 10**DECADES * spent.min() or known["gain"].min() <= 0:
        return None
    return fit_line(spent, known["gain"])


def _over_the_bag(files: StudyFiles) -> tuple[str, ...]:
    """State the gain from the transformer, its law, and how the bag alone does by length."""
    pairs = pair_runs(files, "bag")
    if pairs.empty:
        return (_unpaired("bag"),)
    method = (
        f"Each point compares the whole encoder with the bag of tokens alone at equal {_EQUAL}; "
        "losses are means over seeds. The gain is the loss of the bag minus that of the encoder."
    )
    found = (_gains(pairs), _noise(files.done), _law(pairs), _bag_by_length(files.ablations))
    return method, " ".join(filter(None, found))


def _unpaired(part: str) -> str:
    size = "encoder size, " if part == "transformer" else ""
    return (
        f"No run of the whole encoder agrees in {size}{_EQUAL} with a run of the {part} alone, so "
        "their losses cannot be compared."
    )


def _gains(pairs: pd.DataFrame) -> str:
    """Count the positive gains and state the largest."""
    best = pairs.sort_values("gain").iloc[-1]
    ahead = int((pairs["gain"] > 0).sum())
    return (
        f"The whole encoder is ahead in {ahead} of {len(pairs)} comparisons. The gain is "
        f"{_ends(pairs['gain'])} nats, the largest at size {best['encoder_size']} and "
        f"{numbers.count(best['sequence_length'])} events."
    )


def _noise(done: pd.DataFrame) -> str:
    spread = seed_spread(done)
    if spread is None:
        return ""
    least = numbers.significant(SIGNIFICANT * spread.pooled, 2)
    return f"Gains below {least} nats are within the noise between seeds."


def _law(pairs: pd.DataFrame) -> str:
    """State the exponent of the law of the gain, or why there is none."""
    line = law_of_gain(pairs)
    if line is None:
        decades = np.log10(pairs["train_flops"].max() / pairs["train_flops"].min())
        return (
            f"A law of the gain needs {FEWEST} comparisons over {DECADES:g} decade of compute, all "
            f"with a positive gain, so none was fitted: there are {len(pairs)} over "
            f"{decades:.1f} decades, {int((pairs['gain'] > 0).sum())} of them positive."
        )
    low, high = line.interval(len(pairs.dropna(subset=["train_flops"])))
    grows = "grows" if line.exponent > 0 else "falls"
    law = f"The gain {grows} as compute^b, b = {numbers.interval(line.exponent, low, high)}"
    return f"{law}." if low * high > 0 else f"{law}, so these runs do not decide whether it grows."


def _bag_by_length(ablations: pd.DataFrame) -> str:
    """State the loss of the bag alone at the shortest and the longest history, all else equal."""
    bags = _mean_over_seeds(ablations[ablations["encoder_parts"] == "bag"], TRAINING)
    groups = [group for _, group in bags.groupby(TRAINING[1:], dropna=False)]
    line = max(groups, key=len).sort_values("sequence_length")
    if len(line) < 2:
        return ""
    lengths = " to ".join(map(numbers.count, line["sequence_length"].iloc[[0, -1]]))
    losses = " to ".join(f"{loss:.3f}" for loss in line["loss"].iloc[[0, -1]])
    return f"From {lengths} events, the loss of the bag alone goes from {losses} nats."


def _ends(gains: pd.Series) -> str:
    """Format the smallest and the largest gain; a single one alone."""
    ends = (numbers.signed(gains.min()), numbers.signed(gains.max()))
    return " to ".join(dict.fromkeys(ends))


def _over_clue(files: StudyFiles) -> tuple[str, ...]:
    """State what the bag adds to CLUE's own model."""
    pairs = pair_runs(files, "transformer")
    if pairs.empty:
        return (_unpaired("transformer"),)
    count = f"{len(pairs)} comparison{'s' * (len(pairs) > 1)}"
    return (
        "Against CLUE's own model, which has no bag, the gain of the whole encoder at equal size "
        f"and training is {_ends(pairs['gain'])} nats in {count}.",
    )


def _table(pairs: pd.DataFrame) -> Table:
    """List the pairs with their settings, losses and gain."""
    varied = [column for column in TRAINING[1:] if pairs[column].nunique(dropna=False) > 1]
    columns = ["sequence_length", "encoder_size", *varied, "train_flops", "alone", "loss", "gain"]
    heads = ("bag alone, nats", "whole encoder, nats", "gain, nats")
    rows = tuple(tuple(_cell(pair[c], c) for c in columns) for _, pair in pairs.iterrows())
    return Table((*map(short_label, columns[:-3]), *heads), rows)


def _cell(value: object, column: str) -> Cell:
    if column == "encoder_size":
        return text(str(value))
    if column == "gain":
        return written(numbers.signed(value))
    return number(value, "loss" if column == "alone" else column)


def _picture(pairs: pd.DataFrame) -> Picture:
    line = law_of_gain(pairs)
    caption = "Gain of the whole encoder over the bag of tokens alone, trained as long."
    caption += " Dashed: its power law." if line else ""
    draw = partial(gain_against_compute, pairs, line=line)
    return picture("gain-of-the-transformer", caption, draw, sizes=((WIDE[0], 3.4), NARROW))
