"""Slow, obvious versions of fast code, to compare with, shared by several test modules."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import rankdata

from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.shards import SEQUENCES
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.encoder.model import Encoder
from clue_ray.encoder.transformer import Transformer
from clue_ray.spec.specs import CorpusSpec


def plain_corpus(log: Path, folder: Path, split: dict) -> Corpus:
    """Prepare a corpus of one shard with pandas and without Ray."""
    spec = CorpusSpec(events=str(log), vocab_size=400, split=split)
    events = pq.read_table(log).to_pandas()
    items = (
        events[["service", "text"]]
        .drop_duplicates()
        .sort_values(["service", "text"])
        .reset_index(drop=True)
    )
    tokenizer = train_tokenizer(sorted(set(items["text"])), spec.vocab_size)
    services = sorted(set(items["service"]))
    items["tokens"] = [
        [
            tokenizer.get_vocab_size() + services.index(service),
            *tokenizer.encode(text).ids[: spec.max_item_tokens],
        ]
        for service, text in zip(items["service"], items["text"], strict=True)
    ]
    items["text_tokens"] = [len(tokenizer.encode(text).ids) for text in items["text"]]
    for part in ("shards", "items"):
        (folder / part).mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    types = pa.schema(
        [
            ("service", pa.string()),
            ("text", pa.string()),
            ("tokens", pa.list_(pa.int32())),
            ("text_tokens", pa.int32()),
        ]
    )
    pq.write_table(
        pa.Table.from_pandas(items, types, preserve_index=False),
        folder / "items" / "shard-00000.parquet",
    )
    index = {key: i for i, key in enumerate(zip(items["service"], items["text"], strict=True))}
    events["item"] = [index[key] for key in zip(events["service"], events["text"], strict=True)]
    rows = []
    for (user, service), group in events.groupby(["user_id", "service"]):
        newest = group.sort_values(["timestamp", "item"], ascending=[False, True])
        lists = {"items": newest["item"], "timestamps": newest["timestamp"].astype(float)}
        lists = {name: column.tolist() for name, column in lists.items()}
        rows.append({"user_id": user, "service": service, **lists})
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SEQUENCES), folder / "shards" / "shard-00000.parquet"
    )
    manifest = {
        "key": "plain",
        "digest": "0123456789ab",
        "spec": spec.model_dump(mode="json"),
        "services": sorted(set(items["service"])),
        "vocab_size": tokenizer.get_vocab_size() + items["service"].nunique(),
        "max_item_tokens": spec.max_item_tokens + 1,
        "rejected": {},
        "files": {
            name: sha256(folder / name)
            for name in ("items/shard-00000.parquet", "shards/shard-00000.parquet")
        },
        "tokenizer_sha256": sha256(folder / "tokenizer.json"),
    }
    (folder / "corpus.json").write_text(json.dumps(manifest))
    return open_corpus(folder)


def plain_embedding(
    model: Encoder,
    corpus: Corpus,
    events: np.ndarray,
    times: list[float] | None = None,
    cut: float = 0.0,
) -> torch.Tensor:
    """Embed one history with plain loops: item by item, without packing."""
    if model.bag:
        vector = _plain_bag(model.bag.table.weight, corpus, events)
    if model.transformer:
        summary = _plain_transformer(model.transformer, corpus, events, times, cut)
        output = model.transformer.output(summary)
    if not model.bag:
        vector = output
    elif model.transformer:
        direction = vector / vector.norm() * math.sqrt(len(vector))
        hidden = torch.relu(model.mixer.up(torch.cat([summary, direction])))
        vector = vector + output + model.mixer.down(hidden)
    return vector / vector.norm()


def _plain_bag(table: torch.Tensor, corpus: Corpus, events: np.ndarray) -> torch.Tensor:
    """Add up the rows of one history's tokens, counted one by one."""
    counts: dict[int, int] = {}
    for item in events:
        guide, *tokens = corpus.item_tokens[
            corpus.item_offsets[item] : corpus.item_offsets[item + 1]
        ].tolist()
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    weights = {token: 1 + math.log(count) for token, count in counts.items()}
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return table[guide] + sum(weight / norm * table[t] for t, weight in weights.items())


def plain_clock(times: list[float], place: int, cut: float) -> list[int]:
    """Return the rows of the table of times that one event reads."""
    moment = datetime.fromtimestamp(times[place], UTC)

    def bucket(gap: float) -> int:
        return 0 if gap < 1 else min(31, 1 + math.floor(math.log2(gap)))

    before = bucket(times[place] - times[place + 1]) if place + 1 < len(times) else 32
    return [before, 33 + bucket(cut - times[place]), 65 + moment.hour, 89 + moment.weekday()]


def _plain_transformer(
    model: Transformer,
    corpus: Corpus,
    events: np.ndarray,
    times: list[float] | None,
    cut: float,
) -> torch.Tensor:
    """Encode one history item by item and head by head."""
    items = []
    for item in events:
        tokens = corpus.item_tokens[corpus.item_offsets[item] : corpus.item_offsets[item + 1]]
        x = model.token_embedding(torch.tensor(tokens).long()) + model.token_position(
            torch.arange(len(tokens))
        )
        for block in model.item_blocks:
            x = plain_block(block, x, len(model.item_blocks))
        items.append(model.item_norm(x.mean(0)))
    x = torch.stack(items) + model.event_position(torch.arange(len(events)))
    if times is not None:
        rows = [plain_clock(times, place, cut) for place in range(len(events))]
        x = x + torch.stack([model.event_time.weight[each].sum(0) for each in rows])
    for block in model.service_blocks:
        x = plain_block(block, x, len(model.service_blocks))
    return model.service_norm(x.mean(0))


def plain_block(block, x: torch.Tensor, depth: int) -> torch.Tensor:
    """Apply one of `depth` transformer blocks to x, [positions, width], head by head."""
    q, k, v = block.query_key_value(block.attention_norm(x)).chunk(3, dim=-1)
    heads = []
    for a, b, c in zip(
        q.chunk(block.heads, -1), k.chunk(block.heads, -1), v.chunk(block.heads, -1), strict=True
    ):
        heads.append(torch.softmax(a @ b.T / a.shape[-1] ** 0.5, dim=-1) @ c)
    x = x + block.attention_out(torch.cat(heads, dim=-1)) / depth**0.5
    return x + block.ffn_down(torch.relu(block.ffn_up(block.ffn_norm(x)))) / depth**0.5


def auc(scores, classes):
    """Compute the area under the ROC curve from ranks, of two classes or as a mean over classes."""
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    found = [number for number in columns if 0 < (classes == number).sum() < len(classes)]
    areas = [_area(scores[:, number], classes == number) for number in found]
    return float(np.mean(areas)) if areas else float("nan")


def _area(scores, positive):
    ranks, count = rankdata(scores), int(positive.sum())
    return float(
        (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))
    )
