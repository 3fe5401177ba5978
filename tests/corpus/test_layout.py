"""The training layout equals today's loader, whatever its ranges; faults are one sentence."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils._pytree import tree_leaves

from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.cache import TRAINING_FILE
from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.layout import arrays, opening, plan
from clue_ray.corpus.layout.arrays import DTYPES, PAST_FUTURE, service_pairs
from clue_ray.corpus.shards import BUCKETED, ShardPlan, write_shards
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.corpus.tokenizer import train_tokenizer
from clue_ray.errors import CorpusError
from clue_ray.spec.specs import CorpusSpec, RunSpec, TrainSpec
from tests.conftest import SPLIT
from tests.loader import load_corpus

ARRAYS = ("events", "times", "offsets", "item_tokens", "item_offsets", "train_users", "test_users")


@pytest.fixture(scope="module")
def sharded(planted_log, tmp_path_factory):
    """The planted log in seven shards, one of them empty, as preparation writes them."""
    folder = tmp_path_factory.mktemp("sharded") / "corpus"
    log = pq.read_table(planted_log).to_pandas()
    log.loc[log["user_id"] == "u00000007", "user_id"] = "Ü7 größer"  # sorts after all ASCII
    services = sorted(set(log["service"]))
    bucket = pd.util.hash_array(log["user_id"].to_numpy(object)) % 6
    columns = [
        log["user_id"],
        pd.Index(services).get_indexer(log["service"]),
        log["timestamp"].astype(float),
        log["text"],
        bucket.astype(np.int32),
    ]
    events = pa.table([pa.array(column) for column in columns], names=BUCKETED.names)
    tokenizer = train_tokenizer(sorted(set(log["text"])), 400)
    spec = CorpusSpec(events="x", split=SPLIT)
    shards = ShardPlan(spec, folder, tuple(services), tokenizer.to_str(), 7)
    write_shards(events.cast(BUCKETED), shards)
    empty = pq.read_table(folder / "shards" / "shard-00000.parquet").slice(0, 0)
    pq.write_table(empty, folder / "shards" / "shard-00006.parquet")
    items = pq.read_table(folder / "items" / "shard-00000.parquet").slice(0, 0)
    pq.write_table(items, folder / "items" / "shard-00006.parquet")
    manifest = {
        "digest": "0123456789ab",
        "services": services,
        "spec": spec.model_dump(mode="json"),
        "vocab_size": tokenizer.get_vocab_size() + len(services),
        "max_item_tokens": spec.max_item_tokens + 1,
        "rejected": {},
        "files": {
            str(file.relative_to(folder)): sha256(file) for file in folder.glob("*/*.parquet")
        },
    }
    (folder / "corpus.json").write_text(json.dumps(manifest))
    return Corpus(folder, manifest)


def reopen(corpus, folder):
    """Copy a corpus without its layout, as an earlier version left it."""
    shutil.copytree(corpus.path, folder, ignore=shutil.ignore_patterns("train", ".train.lock"))
    return Corpus(folder, corpus.manifest)


@pytest.fixture(scope="module", params=[0, 37], ids=["one range", "many ranges"])
def mapped(request, sharded, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ITEMS_PER_RANGE", "EVENTS_PER_RANGE", "USERS_PER_RANGE"):
            patch.setattr(plan, name, request.param or getattr(plan, name))
        made = reopen(sharded, tmp_path_factory.mktemp("mapped") / "corpus")
        made.layout.array("events")
    return made


def test_arrays_equal_the_loader(mapped):
    expected = load_corpus(mapped)
    for name in (*ARRAYS, "validation_users", "user_ids"):
        found = getattr(mapped, name)
        assert np.array_equal(found, getattr(expected, name)), name
        assert found.dtype == getattr(expected, name).dtype
    assert not list(mapped.path.glob("build*"))


def times_of(corpus, user):
    """Times of a user's events in the three services."""
    return corpus.times[corpus.offsets[3 * user] : corpus.offsets[3 * user + 3]]


def test_prefix_sums_and_pools_equal_the_plain_counts(mapped):
    expected = load_corpus(mapped)
    lengths = np.diff(expected.item_offsets)
    for users in (0, 1, 50, len(expected.train_users), None):
        some = expected.train_users[:users]
        tokens = [
            lengths[expected.events[expected.offsets[u * 3] : expected.offsets[u * 3 + 3]]].sum()
            for u in some
        ]
        assert mapped.count_training_tokens(users) == sum(tokens)
        for a, b in service_pairs(3):
            plain = [u for u in some if min(expected.counts[u, [a, b]]) >= 1 + (a == b)]
            assert mapped.train_users[mapped.training_pool((a, b), users)].tolist() == plain
        moving = [u for u in some if len(set(times_of(expected, u))) > 1]
        assert mapped.train_users[mapped.training_pool(PAST_FUTURE, users)].tolist() == moving
    for split in ("test", "validation"):
        for a, b in mapped.pairs():
            users = getattr(expected, f"{split}_users")
            plain = users[(expected.counts[users][:, [a, b]] > 0).all(1)]
            assert mapped.held_out_pool(split, (a, b)).tolist() == plain.tolist()


def test_windows_and_packed_batches_equal_the_loader(mapped):
    loaded = Corpus(mapped.path, mapped.manifest)
    for name, values in vars(load_corpus(mapped)).items():
        setattr(loaded, name, values)
    train = TrainSpec(
        steps=12,
        global_batch_size=16,
        same_service=0.3,
        past_future=0.4,
        event_dropout=0.2,
        token_dropout=0.1,
    )
    run = RunSpec(encoder={"time": True}, train=train, sequence_length=5, corpus_users=90)
    one, other = BatchSampler(run, mapped), BatchSampler(run, loaded)
    for step in range(12):
        a, b = one.batch(step), other.batch(step)
        assert all(np.array_equal(x, y) for x, y in zip(a.windows, b.windows, strict=True))
        packed = [batch.pack(batch.rows_of(0, 1)) for batch in (a, b)]
        for x, y in zip(*map(tree_leaves, packed), strict=True):
            assert x.numpy().tobytes() == y.numpy().tobytes() if hasattr(x, "numpy") else x == y
        assert (a.work, a.masked_pairs) == (b.work, b.masked_pairs)


def test_files_do_not_depend_on_the_ranges(sharded, mapped):
    assert sharded.layout.facts == mapped.layout.facts


def test_every_file_of_the_layout_may_be_fetched(mapped):
    names = [f"train/{file.name}" for file in (mapped.path / "train").iterdir()]
    assert len(names) > len(DTYPES)
    assert all(map(TRAINING_FILE.fullmatch, names))


def test_sizes_are_counted(mapped):
    expected = load_corpus(mapped)
    summary = mapped.summary()
    assert summary["users"] == len(expected.user_ids)
    assert summary["events"] == len(expected.events)
    assert summary["items"] == len(expected.item_offsets) - 1
    assert summary["tokens"] == np.diff(expected.item_offsets)[expected.events].sum()
    assert summary["users_in_two_services"] == ((expected.counts > 0).sum(1) >= 2).sum()


def test_the_arrays_are_mapped_and_not_read(mapped):
    for name in DTYPES:
        array = mapped.layout.array(name)
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_a_layout_of_another_version_or_corpus_is_built_again(mapped, tmp_path, monkeypatch):
    copy = tmp_path / "corpus"
    shutil.copytree(mapped.path, copy)
    file = copy / "train" / "layout.json"
    for change in ({"version": 0}, {"digest": "another"}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        (copy / "train" / "events.i4").write_bytes(b"old")
        again = Corpus(copy, mapped.manifest)
        assert np.array_equal(again.events, mapped.events)
    os.truncate(copy / "train" / "test_users.i8", 8)  # a disk lost the rest
    assert np.array_equal(
        Corpus(copy, mapped.manifest).layout.array("test_users"), mapped.layout.array("test_users")
    )
    monkeypatch.setattr(opening, "_build_here", lambda *_: pytest.fail("built again"))
    assert np.array_equal(Corpus(copy, mapped.manifest).events, mapped.events)


@pytest.mark.parametrize("failing", [plan, arrays])
def test_a_full_disk_leaves_nothing_and_is_one_sentence(sharded, tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    name = {plan: "write_file", arrays: "write_json"}[failing]
    corpus = reopen(sharded, tmp_path / "corpus")
    with monkeypatch.context() as patch:
        patch.setattr(failing, name, fail)
        with pytest.raises(CorpusError, match=r"No space left on device.*clue-ray prepare"):
            corpus.layout.array("events")
    assert not (corpus.path / "train").exists()
    assert not (corpus.path / "build").exists()
    assert np.array_equal(corpus.events, sharded.events)


def test_damage_of_the_layout_is_named(corpus, tmp_path):
    copy = tmp_path / "corpus"
    assert len(corpus.events)
    shutil.copytree(corpus.path, copy)
    with open(copy / "train" / "events.i4", "r+b") as file:
        file.write(b"junk")
    with pytest.raises(CorpusError, match=r"train/events\.i4 is damaged.*delete"):
        open_corpus(copy)
    assert len(open_corpus(copy, verify=False).events)


def test_a_recipe_leads_nowhere_else(tmp_path):
    pieces = {"events": [["../../secret-0", 0, 1]]}
    facts = {"version": arrays.VERSION}
    recipe = {"facts": facts, "pieces": pieces, "files": {"events-0": "00"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(CorpusError, match=r"names '\.\./\.\./secret-0'"):
        arrays.read_recipe(tmp_path)


def test_a_token_outside_the_vocabulary_is_an_error(sharded, tmp_path):
    corpus = reopen(sharded, tmp_path / "corpus")
    corpus.manifest = {**corpus.manifest, "vocab_size": 300}
    with pytest.raises(CorpusError, match="its vocabulary has 300 tokens"):
        corpus.layout.array("events")


FULL = """
import json, shutil, subprocess, sys
from pathlib import Path
from clue_ray.corpus.store import Corpus
from clue_ray.errors import CorpusError

corpus, disk = map(Path, sys.argv[1:])
manifest = json.loads((corpus / "corpus.json").read_text())
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=True)
shutil.copytree(corpus, disk / "corpus", ignore=shutil.ignore_patterns("train", ".train.lock"))
(disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 20_000))
try:
    Corpus(disk / "corpus", manifest).layout
except CorpusError as error:
    print(error)
assert not list(disk.glob("corpus/build*")) and not list(disk.glob("corpus/*train*/*"))
(disk / "filler").unlink()
assert len(Corpus(disk / "corpus", manifest).events)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(sharded, tmp_path):
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let its users mount a small disk")
    command = ["unshare", "-rm", sys.executable, "-c", FULL, sharded.path, tmp_path]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "the training layout, which cannot be written there" in out
    assert "No space left on device); free some space" in out
