"""Measure the speed and the memory of embedding users.

    python -m benchmarks.embed [RUN] [--events data/completejourney.parquet] [--users 600]
    python -m benchmarks.embed --memory
    python -m benchmarks.embed --items [--users 10000]

The first form compares users per second of `UserEncoder` with a plain loop. The plain loop uses
PyTorch's `nn.TransformerEncoderLayer` with the same weights, in batches of padded histories of
padded items, and encodes an item again at every event. Both must produce the same vectors. Without
RUN the encoder is untrained (size s, 96 events), which takes the same time.

`--memory` embeds generated logs of 5,000 and 50,000 users with `embed_users` and compares the peak
memory of the largest process.

`--items` embeds a generated log with items of Zipf's law twice: as it is, where items that several
parts share are encoded once, and with each part encoding its own items, as before 2026-11-28. Both
must give the same vectors.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.plain_bag import plain_bag
from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.ranges import ranges
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.encoder.model import Block
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec
from clue_ray.transfer.encode import Histories, UserEncoder, as_events
from clue_ray.transfer.encoder_file import EncoderCard, ExportedEncoder, read_encoder

BATCH = 32


def drawn_encoder(events: pa.Table, size: str = "s", length: int = 96) -> ExportedEncoder:
    """Build an untrained encoder with a tokenizer for a log."""
    tokenizer = train_tokenizer(sorted(pc.unique(events["text"]).to_pylist()), 4096)
    services = tuple(sorted(pc.unique(events["service"]).to_pylist()))
    run = RunSpec(encoder=EncoderSpec(size=size), train=TrainSpec(steps=1), sequence_length=length)
    card = EncoderCard(
        run_id="drawn",
        run=run,
        corpus_digest="",
        services=services,
        max_item_tokens=24,
        text="{text}",
        columns={},
        vocab_size=tokenizer.get_vocab_size() + len(services),
        duplicates="keep",
        split={},
        tokenizer_sha256="",
        weights_sha256="",
    )
    return ExportedEncoder(card, tokenizer.to_str(), card.build().state_dict())


def plain_layer(block: Block) -> nn.TransformerEncoderLayer:
    """Copy a block into PyTorch's layer, with the branch scale folded into the output matrices."""
    width = block.attention_out.in_features
    layer = nn.TransformerEncoderLayer(
        width, block.heads, block.ffn_up.out_features, dropout=0, batch_first=True, norm_first=True
    )
    scale = block.branch_scale
    layer.self_attn.in_proj_weight.data = block.query_key_value.weight.data
    layer.self_attn.in_proj_bias.data = block.query_key_value.bias.data
    for own, theirs in (
        (layer.self_attn.out_proj, block.attention_out),
        (layer.linear1, block.ffn_up),
        (layer.linear2, block.ffn_down),
    ):
        factor = 1.0 if theirs is block.ffn_up else scale
        own.weight.data, own.bias.data = factor * theirs.weight.data, factor * theirs.bias.data
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.ffn_norm.state_dict())
    return layer.eval()


class PlainLoop:
    """Encode padded batches with PyTorch's layers, and each item again at every event."""

    def __init__(self, encoder: UserEncoder):
        self.model, self.length = encoder.model, encoder.card.run.sequence_length
        assert self.model.transformer is not None
        assert self.model.bag is not None
        self.deep, self.table = self.model.transformer, self.model.bag.table.weight
        self.items = [plain_layer(block) for block in self.deep.item_blocks]
        self.services = [plain_layer(block) for block in self.deep.service_blocks]

    @torch.no_grad()
    def encode(self, histories: Histories) -> np.ndarray:
        """Encode users to vectors of shape (users, output_width)."""
        users, _, windows = histories.present(self.length)
        vectors = torch.cat(
            [self._batch(histories, windows, start) for start in range(0, len(users), BATCH)]
        )
        sums = torch.zeros(len(histories.user_ids), vectors.shape[1]).index_add(
            0, torch.from_numpy(users), vectors
        )
        return F.normalize(sums, dim=-1).numpy()

    def _batch(self, histories, windows, start):
        starts, lengths = (array[start : start + BATCH] for array in windows)
        events = histories.events[ranges(starts, lengths)]
        tokens = [
            torch.from_numpy(
                histories.item_tokens[
                    histories.item_offsets[item] : histories.item_offsets[item + 1]
                ].copy()
            )
            for item in events
        ]
        padded = nn.utils.rnn.pad_sequence(
            [one.long() for one in tokens], batch_first=True, padding_value=-1
        )
        items = self._run(self.deep.token_embedding, self.deep.token_position, self.items, padded)
        histories_padded = nn.utils.rnn.pad_sequence(
            list(self.deep.item_norm(items).split(lengths.tolist())), batch_first=True
        )
        padding = torch.arange(lengths.max())[None] >= torch.from_numpy(lengths)[:, None]
        x = histories_padded + self.deep.event_position.weight[: lengths.max()]
        for layer in self.services:
            x = layer(x, src_key_padding_mask=padding)
        mean = x.masked_fill(padding[:, :, None], 0).sum(1) / torch.from_numpy(lengths)[:, None]
        summary = self.deep.service_norm(mean)
        return F.normalize(self.model.combine(summary, self._bag(padded, lengths)), dim=-1)

    def _bag(self, padded: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
        text = padded >= 0
        text[:, 0] = False  # the guide token
        events = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        firsts = torch.from_numpy(np.cumsum(lengths) - lengths)
        owners = events[:, None].expand_as(padded)[text]
        return plain_bag(self.table, owners, padded[text], padded[firsts, 0])

    @staticmethod
    def _run(embedding, position, layers, padded):
        padding = padded < 0
        x = embedding(padded.clamp(min=0)) + position.weight[: padded.shape[1]]
        for layer in layers:
            x = layer(x, src_key_padding_mask=padding)
        return x.masked_fill(padding[:, :, None], 0).sum(1) / (~padding).sum(1, keepdim=True)


def compare(exported: ExportedEncoder, events: pa.Table, users: int) -> None:
    """Time both on the first users of a log. Layout and tokenisation are shared and not timed."""
    ids = sorted(pc.unique(events["user_id"]).to_pylist())[:users]
    rows = as_events(events.filter(pc.is_in(events["user_id"], value_set=pa.array(ids))))
    encoder = UserEncoder(exported)
    loop = PlainLoop(encoder)
    seconds, vectors = {}, {}
    for name, encode in (
        ("clue-ray", lambda histories: encoder.encode_histories(histories).values),
        ("padded loop", loop.encode),
    ):
        histories = Histories(rows, exported)
        start = time.perf_counter()
        vectors[name] = encode(histories)
        seconds[name] = time.perf_counter() - start
    difference = np.abs(vectors["clue-ray"] - vectors["padded loop"]).max()
    assert difference < 1e-4, f"the vectors differ by {difference}"
    for name, taken in seconds.items():
        ratio = seconds["padded loop"] / taken
        print(
            f"{name:12} {taken:7.1f} s {len(ids) / taken:8.0f} users/s {ratio:6.1f}x  "
            f"({len(ids):,} users)"
        )
    print(f"largest difference of an element: {difference:.1e}")


class Watch(threading.Thread):
    """Sample this process's children and keep the largest private memory of one, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self):
        """Sample four times per second."""
        while not self.done.wait(0.25):
            for child in psutil.Process().children(recursive=True):
                try:
                    memory = child.memory_info()
                    self.peak = max(self.peak, memory.rss - memory.shared)
                except psutil.Error:
                    continue


def drawn_log(folder: Path, users: int, items: int = 5000, zipf: float = 0.0) -> Path:
    """Write a log of 20 events per user over some texts in two services.

    Args:
        zipf: the text of rank r is drawn with probability proportional to r ** -zipf.
    """
    rng, path = np.random.default_rng(0), folder / f"{users}.parquet"
    texts = np.array(
        [f"item {a} of kind {a % 97}; colour {a % 13}" for a in range(items)], dtype=object
    )
    weights = np.cumsum(np.arange(1, items + 1) ** -zipf)
    schema = pa.schema([(name, pa.string()) for name in ("user_id", "service", "text")])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, users, 5000):
            owners = np.repeat(np.char.add("u", np.arange(first, first + 5000).astype(str)), 20)
            services = np.array(["shop", "news"], dtype=object)[np.arange(len(owners)) % 2]
            drawn = np.searchsorted(weights, rng.random(len(owners)) * weights[-1])
            columns = [pa.array(owners), pa.array(services), pa.array(texts[drawn])]
            writer.write_table(pa.table(columns, schema=schema))
    return path


def saved_encoder(exported: ExportedEncoder, folder: Path) -> Path:
    """Write an untrained encoder to a folder as a finished run would."""
    folder.mkdir()
    safetensors.torch.save_file(exported.weights, folder / "weights.safetensors")
    (folder / "tokenizer.json").write_text(exported.tokenizer)
    digests = {
        f"{name.split('.')[0]}_sha256": sha256(folder / name)
        for name in ("tokenizer.json", "weights.safetensors")
    }
    card = exported.card.model_copy(update=digests)
    (folder / "encoder.json").write_text(card.model_dump_json(exclude={"run": {"resources"}}))
    return folder


@contextmanager
def session() -> Iterator[None]:
    """Run a Ray session of two cores."""
    import ray

    from clue_ray.cluster.session import quieten_ray_data

    quieten_ray_data()
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    temporary = tempfile.mkdtemp(prefix="eb-", dir="/tmp")
    ray.init(num_cpus=2, object_store_memory=200_000_000, _temp_dir=temporary, **quiet)
    yield
    ray.shutdown()


def compare_memory(folder: Path, sizes: tuple[int, int] = (5_000, 50_000)) -> None:
    """Embed a log and one with ten times the users, and print the peak memory of each."""
    from clue_ray.transfer.embed.embed import embed_users

    peaks = []
    encoder = saved_encoder(
        drawn_encoder(pq.read_table(drawn_log(folder, 5000)), "xs", 16), folder / "encoder"
    )
    for users in sizes:
        log = drawn_log(folder, users)
        with session():
            watch = Watch()
            watch.start()
            start = time.perf_counter()
            manifest = embed_users(encoder, str(log), str(folder / f"out-{users}"))
            watch.done.set()
        peaks.append(watch.peak)
        taken = time.perf_counter() - start
        rate = manifest["users"] / taken
        print(
            f"{users:8,} users: {taken:6.1f} s, {rate:6.0f} users/s, largest process "
            f"{watch.peak / 1e6:.0f} MB"
        )
    print(f"memory at ten times the users: {peaks[1] / peaks[0]:.2f}x")


def compare_items(folder: Path, users: int, parts: int = 64) -> None:
    """Embed a log of repeated items with and without vectors of shared items."""
    from clue_ray.transfer.embed import embed, pipeline

    log = drawn_log(folder, users, items=50_000, zipf=1.0)
    table = pq.read_table(log)
    encoder = saved_encoder(drawn_encoder(table.slice(0, 100_000), "s", 32), folder / "encoder")
    print(f"{table.num_rows:,} events of {len(pc.unique(table['text'])):,} texts; {parts} parts")
    found, seconds = {}, {}
    with session(), mock.patch.object(embed, "_count_parts", return_value=parts):
        embed.embed_users(encoder, str(drawn_log(folder, 5000)), str(folder / "warm"))
        for name in ("shared items once", "each part its own"):
            alone = mock.patch.object(pipeline, "_encode_shared")
            with alone if name == "each part its own" else nullcontext():
                start = time.perf_counter()
                embed.embed_users(encoder, str(log), str(folder / name))
                seconds[name] = time.perf_counter() - start
            vectors = pq.read_table(folder / name / "vectors").sort_by("user_id")
            found[name] = np.stack(vectors["vector"].to_numpy())
            print(f"{name:20} {seconds[name]:7.1f} s, {users / seconds[name]:6.0f} users/s")
    difference = np.abs(found["shared items once"] - found["each part its own"]).max()
    ratio = seconds["each part its own"] / seconds["shared items once"]
    print(f"ratio {ratio:.2f}; largest difference of an element: {difference:.1e}")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?")
    parser.add_argument("--events", default="data/completejourney.parquet")
    parser.add_argument("--users", type=int)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--items", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.memory:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            return compare_memory(Path(folder))
    if asked.items:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            return compare_items(Path(folder), asked.users or 10_000)
    events = pq.read_table(asked.events)
    compare(
        read_encoder(asked.run) if asked.run else drawn_encoder(events), events, asked.users or 600
    )


if __name__ == "__main__":
    main()
