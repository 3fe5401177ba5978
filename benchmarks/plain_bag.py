"""The bag of tokens as a dense matrix of counts, for the rivals of the benchmarks."""

import torch
from torch import Tensor


def plain_bag(table: Tensor, owners: Tensor, tokens: Tensor, guides: Tensor) -> Tensor:
    """Return the bag's vectors, [sequences, output_width].

    Args:
        table: of the bag, [tokens, output_width].
        owners: sequence of each token of an item's text, [entries].
        tokens: those tokens, [entries].
        guides: guide token of each sequence, [sequences].
    """
    counts = table.new_zeros(len(guides), len(table))
    counts.index_put_((owners, tokens), table.new_ones(1), accumulate=True)
    weights = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), counts)
    return weights / weights.norm(dim=1, keepdim=True) @ table + table[guides]
