"""Draw what the transformer adds to the bag of tokens, over compute."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from clue_ray.report.figures.style import (
    DASHES,
    INK,
    LAW_COLOUR,
    Encoding,
    distinct,
    key_rows,
    label,
    log_axis,
    ordered_colours,
)
from clue_ray.scaling.deciding.isoflop import Line


def gain_against_compute(pairs: pd.DataFrame, ax: Axes, line: Line | None = None) -> Axes:
    """Draw the gain of each pair over the training compute of its whole encoder.

    Args:
        pairs: rows with gain in nats, train_flops, sequence_length and encoder_size.
        ax: the axes to draw on.
        line: a power law of the gain.
    """
    lengths = ordered_colours(distinct(pairs, "sequence_length"))
    encoding = replace(Encoding.of(pairs), colour_column="sequence_length", colours=lengths)
    ax.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for index, pair in enumerate(pairs.to_dict("records")):
        ax.plot(
            pair["train_flops"],
            pair["gain"],
            linestyle="none",
            marker=encoding.shape(pair),
            color=encoding.colour(pair),
            markersize=7,
            gid=f"gain-{index}",
        )
    if line is not None:
        compute = np.geomspace(pairs["train_flops"].min(), pairs["train_flops"].max(), 60)
        gain = line.coefficient * compute**line.exponent
        ax.plot(compute, gain, color=LAW_COLOUR, linewidth=1, linestyle=DASHES[0], gid="law")
    log_axis(ax)
    ax.set_xlabel(label("train_flops"))
    ax.set_ylabel("gain over the bag alone, nats")
    key_rows(ax, encoding)
    return ax
