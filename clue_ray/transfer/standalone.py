"""Encode users with an exported encoder: torch, safetensors and tokenizers, nothing of clue-ray.

`clue-ray export` writes this file as `user_encoder.py` next to the files of an encoder:

    from user_encoder import load

    encoder = load("folder")
    vectors = encoder.encode([("anna", "shop", 1732800000, "red running shoes")])
    vectors["anna"]  # a unit vector, [output width]

An event is (user, service, time in seconds, text). Everything is padded, which is plain and slow;
`clue_ray.load_encoder` computes the same vectors faster. Matrix products are in fp32, so vectors of
an encoder that was trained in bf16 differ from those by its rounding.

Shape suffixes: U histories (the events of one user in one service), E events of the longest, T
tokens of the longest item, D width, O output width, V vocabulary, C features of time.
"""

import hashlib
import json
import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

FORMAT = 2
"""Of encoder.json."""
ABSENT = -1
"""Stands where a history has no event, or an item no token."""
HISTORIES = 32
"""Histories that are encoded at a time."""
OF_THE_LOSS = ("log_scale", "bias")
"""Weights that only training uses."""
Event = tuple[str, str, float, str]
Histories = list[tuple[tuple[str, str], list[tuple[float, str]]]]
"""User and service, and the times and texts of the events, most recent first."""
GAPS, HOURS, WEEKDAYS = 32, 24, 7
CLOCK_ROWS = (GAPS + 1) + GAPS + HOURS + WEEKDAYS
FIRST_WEEKDAY = 3
"""Of 1970-01-01, a Thursday; Monday is 0."""


class Block(nn.Module):
    """A pre-norm transformer block; its branches are scaled by 1 / sqrt(blocks)."""

    def __init__(self, shape: dict[str, Any], blocks: int):
        super().__init__()
        width, hidden = shape["width"], shape["width"] * shape["ffn_multiple"]
        self.heads, self.scale = shape["heads"], blocks**-0.5
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_up = nn.Linear(width, hidden)
        self.ffn_down = nn.Linear(hidden, width)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Mix the present positions of each sequence, [sequences, positions, D]."""
        qkv = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None, :])
        x = x + self.scale * self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.scale * self.ffn_down(F.relu(self.ffn_up(self.ffn_norm(x))))


class Transformer(nn.Module):
    """Tokens to items, items to one summary per history."""

    def __init__(self, shape: dict[str, Any], tokens: int, item_tokens: int, events: int):
        super().__init__()
        width = shape["width"]
        self.token_embedding = nn.Embedding(tokens, width)
        self.token_position = nn.Embedding(item_tokens, width)
        self.event_position = nn.Embedding(events, width)
        reads_time = shape.get("time", False)
        self.event_time = nn.EmbeddingBag(CLOCK_ROWS, width, mode="sum") if reads_time else None
        layers = shape["item_layers"], shape["service_layers"]
        self.item_blocks = nn.ModuleList(Block(shape, layers[0]) for _ in range(layers[0]))
        self.item_norm = nn.LayerNorm(width)
        self.service_blocks = nn.ModuleList(Block(shape, layers[1]) for _ in range(layers[1]))
        self.service_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, shape["output_width"])

    def forward(self, tokens_UET: Tensor, clock_UEC: Tensor | None = None) -> Tensor:
        """Summarise histories, [U, D]."""
        present_UET = tokens_UET >= 0
        embedded = self.token_embedding(tokens_UET.clamp(min=0)) + self._first(
            self.token_position, tokens_UET.shape[2]
        )
        items = _run(self.item_blocks, embedded.flatten(0, 1), present_UET.flatten(0, 1))
        items_UED = self.item_norm(items).unflatten(0, tokens_UET.shape[:2])
        events_UED = items_UED + self._first(self.event_position, tokens_UET.shape[1])
        if self.event_time is not None and clock_UEC is not None:
            events_UED = events_UED + F.embedding(clock_UEC, self.event_time.weight).sum(2)
        summary: Tensor = self.service_norm(
            _run(self.service_blocks, events_UED, present_UET[:, :, 0])
        )
        return summary

    @staticmethod
    def _first(table: nn.Embedding, count: int) -> Tensor:
        return table(torch.arange(count, device=table.weight.device))


def _run(blocks: nn.ModuleList, x: Tensor, present: Tensor) -> Tensor:
    """Run blocks and average over the present positions, [sequences, D]."""
    # A sequence of padding attends to its first position: attention to nothing would be NaN.
    attended = present | (torch.arange(present.shape[1], device=present.device) == 0)
    for block in blocks:
        x = block(x, attended)
    weights = present.to(x.dtype).unsqueeze(-1)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


class TokenBag(nn.Module):
    """The weighted sum of a history's token vectors, plus the vector of its guide token."""

    def __init__(self, tokens: int, output_width: int):
        super().__init__()
        self.table = nn.Embedding(tokens, output_width)

    def forward(self, tokens_UET: Tensor) -> Tensor:
        """Sum with weights (1 + ln count), scaled to a unit vector, [U, O]."""
        text = tokens_UET[:, :, 1:].flatten(1)
        ones = (text >= 0).to(self.table.weight.dtype)
        counts_UV = ones.new_zeros(len(text), self.table.num_embeddings)
        counts_UV = counts_UV.scatter_add(1, text.clamp(min=0), ones)
        saturated_UV = torch.where(counts_UV > 0, 1 + counts_UV.clamp(min=1).log(), 0.0)
        summed: Tensor = F.normalize(saturated_UV, dim=-1) @ self.table.weight
        return summed + self.table(tokens_UET[:, 0, 0])


class Mixer(nn.Module):
    """A feed-forward layer over the summary and the direction of the bag's vector."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        hidden = shape["width"] * shape["ffn_multiple"]
        self.up = nn.Linear(shape["width"] + shape["output_width"], hidden)
        self.down = nn.Linear(hidden, shape["output_width"])

    def forward(self, summary_UD: Tensor, bag_UO: Tensor) -> Tensor:
        """Return what is added to the vectors, [U, O]."""
        direction_UO = F.normalize(bag_UO, dim=-1) * bag_UO.shape[-1] ** 0.5
        added: Tensor = self.down(F.relu(self.up(torch.cat([summary_UD, direction_UO], dim=-1))))
        return added


class UserTower(nn.Module):
    """The model: token ids of histories, padded with -1, to their unit vectors.

    An item is the guide token of its service and then the tokens of its text; events are most
    recent first. An encoder that reads times also takes features of time (`UserEncoder.inputs`).
    """

    def __init__(self, card: dict[str, Any]):
        super().__init__()
        run, shape = card["run"], card["run"]["encoder"]
        tokens = card["vocab_size"] + 1  # the shared guide token is the last
        sizes = card["max_item_tokens"] + 1, run["sequence_length"]
        self.transformer = Transformer(shape, tokens, *sizes) if shape["transformer"] else None
        self.bag = TokenBag(tokens, shape["output_width"]) if shape["bag"] else None
        self.mixer = Mixer(shape) if shape["transformer"] and shape["bag"] else None

    def forward(self, tokens_UET: Tensor, clock_UEC: Tensor | None = None) -> Tensor:
        """Encode histories, [U, O]."""
        parts = []
        bag_UO = self.bag(tokens_UET) if self.bag is not None else None
        if bag_UO is not None:
            parts.append(bag_UO)
        if self.transformer is not None:
            summary_UD = self.transformer(tokens_UET, clock_UEC)
            parts.append(self.transformer.output(summary_UD))
            if self.mixer is not None:
                parts.append(self.mixer(summary_UD, bag_UO))
        return F.normalize(torch.stack(parts).sum(0), dim=-1)


def _clock(times_UE: Tensor, lengths_U: Tensor, at: float) -> Tensor:
    """Return features of time: gaps to the event before and to `at`, hour and weekday, [U, E, C].

    Args:
        times_UE: seconds since 1970 in float64, most recent event first; padding is ignored.
        lengths_U: events of each history.
        at: when users are looked at, in seconds since 1970.
    """
    edges = 2.0 ** torch.arange(GAPS - 1, dtype=torch.float64)
    before = torch.bucketize(times_UE - times_UE.roll(-1, 1), edges, right=True)
    oldest = torch.arange(times_UE.shape[1]) == lengths_U[:, None] - 1
    seconds = times_UE.floor().long()
    features = (
        before.masked_fill(oldest, GAPS),
        torch.bucketize(at - times_UE, edges, right=True) + GAPS + 1,
        seconds // 3600 % HOURS + 2 * GAPS + 1,
        (seconds // 86_400 + FIRST_WEEKDAY) % WEEKDAYS + 2 * GAPS + 1 + HOURS,
    )
    return torch.stack(features, dim=2)


class TypedFields:
    """Replaces typed fields of a text, `⟦price:number=12.5⟧`, by the tokens that stand for them."""

    FIELD = re.compile("⟦([^:⟧]+):(category|number|codes)=([^⟧]*)⟧")
    TOKEN = re.compile(r"⟦([^:⟧]+):(category|number|codes)(?:\[(\d+)\])?(=|#|<=)(.*)⟧")
    CODE = re.compile(r"[^\s,;|()\[\]{}]+")
    NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)?(?:\.\d*)?(?:[eE][+-]?\d+)?")
    BUCKETS, MOST_POSITIONS = 64, 64

    def __init__(self, tokenizer: Tokenizer):
        added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
        matches = [found for token in added if (found := self.TOKEN.fullmatch(token))]
        self.tokens = {found[0] for found in matches}
        edges: dict[str, list[float]] = defaultdict(list)
        for found in matches:
            if found[4] == "<=":
                edges[found[1]].append(float(found[5]))
        self.edges = {name: sorted(values) for name, values in edges.items()}

    def __call__(self, text: str) -> str:
        """Return a text with tokens in the place of typed fields."""
        return self.FIELD.sub(self._write, text)

    def _write(self, field: re.Match[str]) -> str:
        name, type_, value = field.groups()
        head, plain = f"⟦{name}:{type_}", f" {value} "
        if type_ == "number":
            return self._number(head, value, self.edges[name]) if name in self.edges else plain
        if type_ == "codes":
            codes = self.CODE.findall(value)[: self.MOST_POSITIONS]
            return "".join(self._known(f"{head}[{n}]", c, "") for n, c in enumerate(codes)) or plain
        digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
        return self._known(head, value, int.from_bytes(digest, "little") % self.BUCKETS) or plain

    def _number(self, head: str, value: str, edges: list[float]) -> str:
        try:
            written = value.strip() if self.NUMBER.fullmatch(value.strip()) else ""
            number = float(written.replace(",", ""))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            return f"{head}#⟧"
        return f"{head}<={edges[bisect_left(edges, number)]!r}⟧"

    def _known(self, head: str, value: str, other: object) -> str:
        tokens = (f"{head}={value}⟧", f"{head}#{other}⟧")
        return next((token for token in tokens if token in self.tokens), "")


class UserEncoder:
    """An encoder with its tokenizer.

    Attributes:
        card: the content of encoder.json.
        tower: the model, from token ids to vectors.
    """

    def __init__(self, folder: str | Path):
        place = Path(folder)
        self.card: dict[str, Any] = json.loads((place / "encoder.json").read_text("utf-8"))
        if self.card.get("format") != FORMAT:
            raise ValueError(f"{place} has format {self.card.get('format')}; {FORMAT} is read here")
        self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        self.fields = TypedFields(self.tokenizer)
        weights = load_file(place / "weights.safetensors")
        self.tower = UserTower(self.card).eval()
        self.tower.load_state_dict({k: v for k, v in weights.items() if k not in OF_THE_LOSS})

    @torch.no_grad()
    def encode(
        self, events: Iterable[Event], *, per_service: bool = False, at: float | None = None
    ) -> dict[Any, Tensor]:
        """Encode users: the normalised mean of the unit vectors of their services.

        Args:
            events: (user, service, time in seconds, text) in any order.
            per_service: return one vector per (user, service) instead.
            at: when users are looked at, in seconds since 1970, if the encoder reads times; the end
                of its corpus if None.
        """
        histories = self._histories(events)
        parts = _parts(list(histories.items()))
        vectors = [self.tower(*self.inputs(part, at)) for part in parts]
        each = dict(zip(histories, torch.cat(vectors), strict=True)) if vectors else {}
        if per_service:
            return each
        sums: dict[Any, Tensor] = {}
        for (user, _), vector in each.items():
            sums[user] = sums[user] + vector if user in sums else vector
        return {user: F.normalize(total, dim=-1) for user, total in sums.items()}

    def _histories(self, events: Iterable[Event]) -> dict[tuple[str, str], list[tuple[float, str]]]:
        """Group events by user and service: the most recent times and texts, the latest first."""
        rows = list(events)
        rows = list(dict.fromkeys(rows)) if self.card["duplicates"] == "drop" else rows
        histories: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
        for user, service, time, text in sorted(rows, key=lambda row: (*row[:2], -row[2], row[3])):
            histories[user, service].append((time, text))
        length = self.card["run"]["sequence_length"]
        return {key: events[:length] for key, events in histories.items()}

    def inputs(self, histories: Histories, at: float | None = None) -> tuple[Tensor, ...]:
        """Return the inputs of the tower: tokens, and features of time if it reads them."""
        tokens = self._tokens(histories)
        if not self.card["run"]["encoder"].get("time", False):
            return (tokens,)
        times = torch.zeros(tokens.shape[:2], dtype=torch.float64)
        for user, (_, events) in enumerate(histories):
            times[user, : len(events)] = torch.tensor(
                [time for time, _ in events], dtype=torch.float64
            )
        lengths = torch.tensor([len(events) for _, events in histories])
        return tokens, _clock(times, lengths, self.card["last_time"] if at is None else at)

    def _tokens(self, histories: Histories) -> Tensor:
        """Tokenize histories, [U, E, T] with -1 where there is nothing."""
        items = [[self._item(key[1], text) for _, text in events] for key, events in histories]
        shape = max(map(len, items)), max(len(item) for texts in items for item in texts)
        padded = torch.full((len(items), *shape), ABSENT)
        for user, texts in enumerate(items):
            for event, item in enumerate(texts):
                padded[user, event, : len(item)] = torch.tensor(item)
        return padded

    def _item(self, service: str, text: str) -> list[int]:
        """Return the tokens of an item: the guide token of its service, then those of its text."""
        names: list[str] = self.card["services"]
        # The token after those of all services is shared by unknown ones.
        guide = names.index(service) if service in names else len(names)
        ids = self.tokenizer.encode(self.fields(text), add_special_tokens=False).ids
        first: int = self.tokenizer.get_vocab_size()
        return [first + guide, *ids[: self.card["max_item_tokens"]]]


def _parts(histories: Histories) -> Iterator[Histories]:
    for start in range(0, len(histories), HISTORIES):
        yield histories[start : start + HISTORIES]


def load(folder: str | Path) -> UserEncoder:
    """Load the encoder of a folder that `clue-ray export` wrote."""
    return UserEncoder(folder)
