"""Tokens of typed columns: one per category, quantile of a number, or code at a position.

They are learned from the items of training users and are added tokens of the corpus's tokenizer,
with names that say what they mean: `⟦kind:category=7⟧`, `⟦price:number<=12.5⟧`,
`⟦name:codes[2]=11⟧`. So tokenizer.json alone describes them, and an exported encoder has them.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from clue_ray.corpus.logs.numbers import as_number
from clue_ray.corpus.logs.typed import CLOSE, FIELD, OPEN

MOST_CATEGORIES, BUCKETS, MIN_EVENTS = 20_000, 64, 2
"""Values of a category with a token of their own; tokens that all others share by a hash; and
events that a value needs for a token of its own."""
QUANTILES = 32
MOST_POSITIONS, MOST_CODES = 64, 4_096
"""Positions of a list of codes that are read, and codes with tokens at each of them."""
TOKEN = re.compile(
    rf"{OPEN}([^:{CLOSE}]+):(category|number|codes)(?:\[(\d+)\])?(=|#|<=)(.*){CLOSE}"
)
CODE = re.compile(r"[^\s,;|()\[\]{}]+")


def without_types(text: str) -> str:
    """Return the words of a text, without its typed fields."""
    return FIELD.sub(" ", text).strip() if OPEN in text else text


def add_types(tokenizer: Tokenizer, texts: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Learn the tokens of the typed fields in texts, and add them to a tokenizer.

    Values of a category are ranked by their events: where each item has one of its own, such as its
    id, no value is in more items than another. Quantiles and codes are those of distinct items.

    Args:
        texts: of the distinct items of training users, with their events.

    Returns:
        For each typed column: its type, its tokens, the distinct values found, and of a category
        how many of them have a token of their `own`.
    """
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for text, events in texts.items():
        for name, type_, value in FIELD.findall(text):
            found[name, type_][value] += events if type_ == "category" else 1
    described = {}
    for (name, type_), values in sorted(found.items()):
        tokens = _TOKENS_OF[type_](f"{OPEN}{name}:{type_}", values)
        tokenizer.add_tokens(
            [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in tokens]
        )
        described[name] = {"type": type_, "tokens": len(tokens), "values": len(values)}
        if type_ == "category":
            described[name]["own"] = len(tokens) - BUCKETS
    return described


def describe_types(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the typed columns of a tokenizer: the type of each, and its tokens."""
    described: dict[str, dict[str, Any]] = {}
    for token in tokenizer.get_added_tokens_decoder().values():
        if match := TOKEN.fullmatch(token.content):
            described.setdefault(match[1], {"type": match[2], "tokens": 0, "values": None})
            described[match[1]]["tokens"] += 1
    return dict(sorted(described.items()))


def _category_tokens(head: str, values: Counter[str]) -> list[str]:
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    kept = [value for value, events in ranked[:MOST_CATEGORIES] if events >= MIN_EVENTS]
    return [f"{head}={value}{CLOSE}" for value in sorted(kept)] + [
        f"{head}#{bucket}{CLOSE}" for bucket in range(BUCKETS)
    ]


def _number_tokens(head: str, values: Counter[str]) -> list[str]:
    read = ((_number(value), items) for value, items in values.items())
    numbers = sorted((number, items) for number, items in read if number is not None)
    edges: list[float] = []
    if numbers:
        upto = np.cumsum([items for _, items in numbers])
        shares = np.linspace(0, 1, QUANTILES + 1)[1:]
        places = np.searchsorted(upto / upto[-1], shares - 1e-9)
        edges = [numbers[place][0] for place in np.unique(places)]
    # The last quantile has no upper end. A value that is not a number has a token, too.
    upper = [*edges[:-1], float("inf")]
    return [f"{head}<={edge!r}{CLOSE}" for edge in upper] + [f"{head}#{CLOSE}"]


def _code_tokens(head: str, values: Counter[str]) -> list[str]:
    codes: dict[int, Counter[str]] = defaultdict(Counter)
    for value, items in values.items():
        for position, code in enumerate(_codes(value)):
            codes[position][code] += items
    tokens = []
    for position, counts in sorted(codes.items()):
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CODES]
        tokens += [f"{head}[{position}]={code}{CLOSE}" for code in sorted(c for c, _ in ranked)]
        tokens.append(f"{head}[{position}]#{CLOSE}")
    return tokens


_TOKENS_OF = {"category": _category_tokens, "number": _number_tokens, "codes": _code_tokens}


def _codes(value: str) -> list[str]:
    """Split a list of codes, written as [11 2 3], 11,2,3 or similar."""
    return CODE.findall(value)[:MOST_POSITIONS]


def _number(value: str) -> float | None:
    number = as_number(value)
    return None if number is None or not np.isfinite(number) else float(number)


class TypeWriter:
    """Replaces the typed fields of texts by the tokens of a tokenizer.

    A column that the tokenizer has no tokens for is written as text, so that an encoder of another
    company reads what it can.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokens: set[str] = set()
        self.edges: dict[str, NDArray[np.float64]] = {}
        edges: dict[str, list[float]] = defaultdict(list)
        for token in tokenizer.get_added_tokens_decoder().values():
            if match := TOKEN.fullmatch(token.content):
                self.tokens.add(token.content)
                if match[4] == "<=":
                    edges[match[1]].append(float(match[5]))
        self.edges = {name: np.array(sorted(values)) for name, values in edges.items()}

    def __call__(self, text: str) -> str:
        """Return a text with tokens in the place of typed fields."""
        return FIELD.sub(self._write, text) if OPEN in text else text

    def _write(self, field: re.Match[str]) -> str:
        name, type_, value = field.groups()
        head = f"{OPEN}{name}:{type_}"
        if type_ == "number":
            return self._write_number(head, name, value)
        if type_ == "codes":
            tokens = [self._first(f"{head}[{n}]", c, "") for n, c in enumerate(_codes(value))]
            # A longer list than any in training ends early; one of an unknown column is text.
            return "".join(tokens) or f" {value} "
        digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest, "little") % BUCKETS
        return self._first(head, value, str(bucket)) or f" {value} "

    def _write_number(self, head: str, name: str, value: str) -> str:
        number = _number(value)
        if name not in self.edges:
            return f" {value} "
        if number is None:
            return f"{head}#{CLOSE}"
        edges = self.edges[name]
        return f"{head}<={float(edges[np.searchsorted(edges, number)])!r}{CLOSE}"

    def _first(self, head: str, value: str, otherwise: str) -> str:
        """Return the token of a value, or of all that have none; "" if there is neither."""
        known = (f"{head}={value}{CLOSE}", f"{head}#{otherwise}{CLOSE}")
        return next((token for token in known if token in self.tokens), "")
