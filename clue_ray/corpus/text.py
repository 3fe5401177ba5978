"""Item texts to token ids: one deterministic byte-level BPE, with a guide token a service in front of every item."""

from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on item texts; the same texts in the same order give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenize_items(
    tokenizer: Tokenizer, texts: list[str], guides: np.ndarray, max_item_tokens: int
) -> list[np.ndarray]:
    """Return each item's ids: its guide token (ids above the vocabulary), then at most `max_item_tokens` of text.

    Args:
        guides: index of each item's service, [items].
    """
    first_guide = tokenizer.get_vocab_size()
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
        np.array([first_guide + guide, *item.ids[:max_item_tokens]], dtype=np.int32)
        for item, guide in zip(encoded, guides.tolist(), strict=True)
    ]
