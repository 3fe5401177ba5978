"""Downstream tasks: measures against plain loops, leaks refused, planted signals found."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from clue_ray.corpus.hashes import stable_hash
from clue_ray.errors import EventLogError, SpecError
from clue_ray.transfer.encode import LEFT_OUT, Histories, load_encoder
from clue_ray.transfer.encoder_file import read_card, read_encoder
from clue_ray.transfer.tasks import evaluate, heads, methods
from clue_ray.transfer.tasks.evaluate import result_key, run_task
from clue_ray.transfer.tasks.examples import Examples, make_examples, plan_events, read_events
from clue_ray.transfer.tasks.heads import fit_head
from clue_ray.transfer.tasks.leaks import check_inputs, check_pretraining
from clue_ray.transfer.tasks.scores import (
    chance_measures,
    class_auc,
    r2,
    ranking_measures,
    resample,
    retrieval_measures,
)
from clue_ray.transfer.tasks.scratch import train_from_scratch
from clue_ray.transfer.tasks.spec import TaskSpec, parse_against
from tests.plain import auc


@pytest.fixture
def task(planted_log, corpus):
    """Make a task on the planted log."""

    def make(**changes):
        document = {
            "name": "planted",
            "events": str(planted_log),
            "split": {"validation": 0.2, "test": 0.25},
            "seeds": [0],
            "scratch_steps": 0,
            "next_item": {"service": corpus.services[0]},
        }
        document |= changes
        return TaskSpec.parse(
            {key: value for key, value in document.items() if value is not None}, "task.yaml"
        )

    return make


def test_ranking_measures_equal_plain_loops():
    rng = np.random.default_rng(0)
    scores, targets, missed = (
        rng.random((30, 25)),
        rng.random((30, 25)) < 0.1,
        rng.integers(0, 2, 30),
    )
    targets[:, 3] |= ~targets.any(1)
    found = ranking_measures(scores, targets, missed)
    for user in range(30):
        order = sorted(range(25), key=lambda label: -scores[user, label])
        true = targets[user].sum() + missed[user]
        ranks = [order.index(label) + 1 for label in np.flatnonzero(targets[user])]
        best = sum(1 / np.log2(1 + rank) for rank in range(1, min(true, 10) + 1))
        assert found["mrr"][user] == pytest.approx(1 / min(ranks))
        assert found["recall_at_10"][user] == pytest.approx(
            sum(rank <= 10 for rank in ranks) / true
        )
        gains = sum(1 / np.log2(1 + rank) for rank in ranks if rank <= 10)
        assert found["ndcg_at_10"][user] == pytest.approx(gains / best)


def test_retrieval_by_chance_equals_random_vectors():
    rng = np.random.default_rng(0)
    found = [retrieval_measures(rng.random((40, 40))) for _ in range(200)]
    for name, chance in chance_measures(40).items():
        assert np.mean([one[name].mean() for one in found]) == pytest.approx(chance[0], rel=0.05)


def test_auc_counts_pairs_and_r2_is_zero_for_the_mean():
    rng = np.random.default_rng(1)
    classes, scores = rng.integers(0, 2, 60), rng.integers(0, 6, (60, 2)).astype(float)
    pairs = [
        (scores[i, 1], scores[j, 1])
        for i in np.flatnonzero(classes)
        for j in np.flatnonzero(classes == 0)
    ]
    plain = np.mean([(a > b) + (a == b) / 2 for a, b in pairs])
    scores[:, 0] = -scores[:, 1]  # of two classes, one area is the other's
    assert class_auc(scores, classes)(np.arange(60)) == pytest.approx(plain)
    assert auc(scores, classes) == pytest.approx(plain)
    values = rng.random(50)
    assert r2(np.full(50, values.mean()), values) == pytest.approx(0)
    assert r2(values, values) == 1


def test_the_interval_of_a_mean_has_its_nominal_coverage():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        values = rng.exponential(size=80)
        found = resample([lambda rows, values=values: float(values[rows].mean())], 80).interval()
        covered += found.low <= 1 <= found.high
    assert covered >= 50


@pytest.mark.parametrize("starts", [2, 3, 10])
def test_an_interval_includes_the_variance_over_seeds(starts):
    """For two equal methods with a large variance over seeds, the lead's interval covers zero."""
    rng = np.random.default_rng(3)
    held = 0
    for stream in range(150):
        ours, theirs = (
            resample(
                [lambda rows, start=start: start for start in rng.normal(size=starts)],
                5,
                2 * stream + side,
            )
            for side in range(2)
        )
        found = ours.lead(theirs).interval()
        held += found.low <= 0 <= found.high
    assert held / 150 > 0.92
    assert (
        found.high - found.low < 6 * stats.t.ppf(0.975, starts - 1) / starts**0.5
    )  # and not wider than necessary


def test_one_seed_has_no_variance_over_seeds():
    alone = resample([lambda rows: 1.0], 5)
    assert alone.lead(resample([lambda rows: 1.0], 5, 9)).interval() == (0, 0, 0)


def planted_examples(targets, names):
    """Return sixty users of each part of the split."""
    part = np.repeat(np.array(["train", "validation", "test"], dtype=object), 60)
    return Examples(
        np.arange(180).astype(str).astype(object),
        None,
        part,
        names,
        targets,
        np.zeros(180, int),
        LEFT_OUT.empty_table(),
        np.full(180, np.inf),
    )


def test_a_head_learns_a_planted_signal_and_ignores_noise(monkeypatch):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 180)
    examples, test = planted_examples(classes, ("no", "yes")), slice(120, 180)
    signal, noise = rng.standard_normal((2, 180, 8))
    signal[:, 2] += 3 * classes
    monkeypatch.setattr(heads, "CHALLENGE_WIDTHS", (32, 64))
    network = fit_head(signal, examples, kind="challenge", seed=0)
    assert auc(network, classes[test]) > 0.85
    assert np.array_equal(network, fit_head(signal, examples, kind="challenge", seed=0))
    assert auc(fit_head(signal, examples, kind="mlp", seed=0), classes[test]) > 0.85
    base = np.bincount(classes[:60])
    scores = fit_head(noise, examples, kind="mlp", seed=0)
    assert abs(np.log(base[1] / base[0]) - (scores[:, 1] - scores[:, 0]).mean()) < 0.5
    values = planted_examples(5 + 3 * signal[:, 0], ())
    assert r2(fit_head(signal, values, kind="linear", seed=0)[:, 0], values.targets[test]) > 0.8


@pytest.mark.parametrize("kind", ["mlp", "linear", "challenge"])
def test_a_head_is_fitted_on_the_device_that_is_asked(kind, monkeypatch):
    """On the device meta, which mixes with no other, all but the way back of the scores works."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(heads, "CHALLENGE_WIDTHS", (32, 64))
    monkeypatch.setattr(heads.EarlyStopping, "update", lambda *_: False)  # meta has no values
    monkeypatch.setattr(heads, "STEPS", 1)
    monkeypatch.setattr(heads, "label_features", lambda names: torch.eye(len(names)))
    steps, step = [], heads._step
    monkeypatch.setattr(heads, "_step", lambda *given, **more: steps.append(step(*given, **more)))
    ranked = planted_examples(rng.random((180, 3)) < 0.5, ("a", "b", "c"))
    for examples in (ranked, planted_examples(rng.integers(0, 2, 180), ("no", "yes"))):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            fit_head(rng.random((180, 4)), examples, kind=kind, seed=0, device="meta")
        assert steps  # the copy that failed was that of the scores
        steps.clear()


def test_heads_are_fitted_where_the_encoder_is(task, encoder_folder, events, monkeypatch):
    asked, fit = set(), evaluate.fit_head
    monkeypatch.setattr(
        evaluate,
        "fit_head",
        lambda *given, device, **more: asked.add(device) or fit(*given, device="cpu", **more),
    )
    encoder = load_encoder(encoder_folder)
    encoder.device = torch.device("cuda", 1)
    evaluate.evaluate_task(encoder, {}, task(), make_examples(task(), events.to_pandas()))
    assert asked == {torch.device("cuda", 1)}


def test_labels_of_test_users_come_later_and_from_other_people(events, task, corpus):
    table = events.to_pandas()
    cut = table["timestamp"].quantile(0.7)
    span = table["timestamp"].max() - table["timestamp"].min()
    asked = task(time=pd.Timestamp(cut, unit="s").isoformat())
    examples = make_examples(asked, table)
    inputs = examples.inputs.to_pandas()
    assert inputs["timestamp"].max() < cut + 1
    assert corpus.services[0] not in set(inputs["service"])
    assert span > 0
    share = stable_hash(pd.Series(examples.users), "split") / 2.0**64
    assert ((examples.part == "test") == (share < 0.25)).all()
    user = examples.users[0]
    later = table[
        (table["user_id"] == user)
        & (table["service"] == corpus.services[0])
        & (table["timestamp"] >= cut)
    ]
    found = {name for name, true in zip(examples.names, examples.targets[0], strict=True) if true}
    assert found <= set(later["text"])
    assert len(found) + examples.missed[0] == later["text"].nunique()


def test_labels_of_some_days_are_those_and_the_head_learns_from_the_days_before(
    events, task, corpus
):
    table, first = events.to_pandas(), corpus.services[0]
    cut = float(np.floor(table["timestamp"].quantile(0.7)))
    days = int((table["timestamp"].max() - cut) / 86_400 / 2)
    question = {"service": first, "days": days, "min_users": 1}
    asked = task(time=pd.Timestamp(cut, unit="s").isoformat(), next_item=question)
    examples = make_examples(asked, table)
    own = table[table["service"] == first]
    for part, begin in (("test", cut), ("train", cut - days * 86_400)):
        users = set(examples.users[examples.rows(part)])
        rows = own[
            own["user_id"].isin(users)
            & own["timestamp"].between(begin, begin + days * 86_400, inclusive="left")
        ]
        assert set(rows["user_id"]) == users
        inputs = examples.inputs.to_pandas()
        assert inputs[inputs["user_id"].isin(users)]["timestamp"].max() < begin
        truth = rows.groupby("user_id")["text"].agg(set)
        for index in examples.rows(part):
            found = {
                name
                for name, true in zip(examples.names, examples.targets[index], strict=True)
                if true
            }
            assert found <= truth[examples.users[index]]
            assert len(found) + examples.missed[index] == len(truth[examples.users[index]])


def test_events_after_a_label_are_not_inputs(events, task, corpus):
    table, first = events.to_pandas(), corpus.services[0]
    last = table[table["service"] == first].groupby("user_id")["timestamp"].max()
    inputs = make_examples(task(), table).inputs.to_pandas()
    assert (inputs["timestamp"] < inputs["user_id"].map(last)).all()
    assert (table["timestamp"] > table["user_id"].map(last)).any()  # otherwise nothing was left out


@pytest.mark.parametrize(
    ("ages", "positive", "names"),
    [([0, 1], None, ("0", "1")), ([0, 1, None], ("1",), ("no", "yes")), ([0, 1, 2], None, ())],
)
def test_two_numbers_are_classes_and_gaps_leave_them_whole(
    events, task, tmp_path, ages, positive, names
):
    users = sorted(set(events["user_id"].to_pylist()))
    table = tmp_path / "users.csv"
    values = [ages[number % len(ages)] for number in range(len(users))]
    pd.DataFrame({"user_id": users, "age": values}).to_csv(table, index=False)
    attribute = {"table": str(table), "column": "age", "positive": positive}
    assert (
        make_examples(task(next_item=None, attribute=attribute), events.to_pandas()).names == names
    )
    with pytest.raises(
        SpecError, match=r"has no value 'x' in 'age'; its values are for example 0, 1"
    ):
        make_examples(
            task(next_item=None, attribute=attribute | {"positive": ("x",)}), events.to_pandas()
        )


def test_leaks_are_refused(task, corpus, encoder_folder, events):
    first = corpus.services[0]
    with pytest.raises(SpecError, match="without a cut in time"):
        task(services=list(corpus.services))
    card = read_encoder(encoder_folder).card  # held out: .1 and .25
    table = events.to_pandas()
    nested, wide = task(), task(split={"validation": 0.2, "test": 0.4})
    check_pretraining(nested, make_examples(nested, table), card)
    with pytest.raises(
        SpecError,
        match=f"trained on service '{first}' of its test users; set split.test to at most 0.35",
    ):
        check_pretraining(wide, make_examples(wide, table), card)
    foreign = task(split={"validation": 0.2, "test": 0.4}, other_company=True)
    check_pretraining(foreign, make_examples(foreign, table), card)
    copy = table[table["service"] == first]
    copy = copy.assign(service="copy", timestamp=copy["timestamp"] - 1)
    copied = pd.concat([table, copy], ignore_index=True)
    with pytest.raises(SpecError, match="of its test users contain their label; leave"):
        check_inputs(nested, make_examples(nested, copied), copied)
    named = copied.assign(text=[f"{row};{text}" for row, text in enumerate(copied["text"])])
    category = task(next_item={"service": first, "part": 2})  # the same, of another product
    with pytest.raises(SpecError, match="of its test users contain their label; leave"):
        check_inputs(category, make_examples(category, named), named)


LEAKS = {
    "classes": (
        lambda n: np.where(n % 3, "gold", "basic"),
        "tier={}.",
        {},
        "the word '.*(gold|basic).*' in the texts",
    ),
    "among other words": (
        lambda n: 1 + n % 3,
        "kids={} pack 1 2 3",
        {"positive": ("1",)},
        "the word 'kids=[123]' in the texts",
    ),
    "values behind yes and no": (
        lambda n: n % 4,
        "tier {}",
        {"positive": ("0", "1")},
        "of tier '[0-3]' from all others",
    ),
    "numbers": (lambda n: n % 40 + 0.5, "tier={}.", {}, "contain their value"),
    "whole numbers": (lambda n: n % 40, "tier: {}.0", {}, "contain their value"),
    "thousands": (lambda n: -12345 - 7 * (n % 40), "tier: {:,}", {}, "contain their value"),
    "rounded": (lambda n: 20 + n % 40 * 1.234, "tier {:.1f}", {}, "contain their value"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_an_attribute_that_stands_in_the_texts_is_refused(kind, task, events, tmp_path):
    values, written, more, words = LEAKS[kind]
    users = pd.Series(sorted(set(events["user_id"].to_pylist())))
    known = pd.Series(values(users.index.to_numpy()))
    pd.DataFrame({"user_id": users, "tier": known}).to_csv(tmp_path / "users.csv", index=False)
    asked = task(
        next_item=None, attribute={"table": str(tmp_path / "users.csv"), "column": "tier", **more}
    )
    table = events.to_pandas()

    def shown(values):
        of_user = dict(zip(users, values, strict=True))
        texts = [
            f"{text}; {written.format(of_user[user])}"
            for user, text in table[["user_id", "text"]].to_numpy()
        ]
        return table.assign(text=texts)

    leaking, honest = (
        shown(known),
        shown(known.sample(frac=1, random_state=0)),
    )  # as many words, of somebody else
    with pytest.raises(SpecError, match=words):
        check_inputs(asked, make_examples(asked, leaking), leaking)
    for harmless in (table, honest):
        check_inputs(asked, make_examples(asked, harmless), harmless)


def test_users_with_many_events_have_every_word_and_that_is_no_leak(task, tmp_path):
    users = [f"u{number}" for number in range(300)]
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": user, "service": "a", "timestamp": float(time), "text": f"word{word}"}
        for number, user in enumerate(users)
        for time, word in enumerate(rng.integers(0, 8, 60 if number % 2 else 1))
    ]
    pd.DataFrame({"user_id": users, "heavy": np.arange(300) % 2 == 1}).to_csv(
        tmp_path / "users.csv", index=False
    )
    asked = task(
        next_item=None, attribute={"table": str(tmp_path / "users.csv"), "column": "heavy"}
    )
    check_inputs(asked, make_examples(asked, pd.DataFrame(rows)), pd.DataFrame(rows))


@pytest.mark.parametrize(("share", "refused"), [(0.25, False), (0.4, True)])
def test_an_encoder_that_saw_the_test_users_later_events_is_refused(
    share, refused, task, encoder_folder, events, tmp_path
):
    users = sorted(set(events["user_id"].to_pylist()))
    pd.DataFrame({"user_id": users, "age": np.arange(len(users)) % 7}).to_csv(
        tmp_path / "u.csv", index=False
    )
    cut = pd.Timestamp(events.to_pandas()["timestamp"].quantile(0.5), unit="s").isoformat()
    attribute, card = (
        {"table": str(tmp_path / "u.csv"), "column": "age"},
        read_encoder(encoder_folder).card,
    )
    asked = task(
        next_item=None, attribute=attribute, time=cut, split={"validation": 0.2, "test": share}
    )
    examples = make_examples(asked, events.to_pandas())
    with (
        pytest.raises(SpecError, match="was trained on events after") if refused else nullcontext()
    ):
        check_pretraining(asked, examples, card)


def test_a_table_of_users_is_read_as_it_is_written(task, events, tmp_path):
    table = events.to_pandas()
    users = sorted(table["user_id"].unique())
    table["user_id"] = table["user_id"].map(
        {user: f"{number:05}" for number, user in enumerate(users)}
    )
    names = np.array(["None", "NA", "Pro"])[np.arange(len(users)) % 3]
    file, numbers = tmp_path / "users.csv", tmp_path / "numbers.parquet"
    pd.DataFrame({"user_id": [f"{n:05}" for n in range(len(users))], "plan": names}).to_csv(
        file, index=False
    )
    examples = make_examples(
        task(next_item=None, attribute={"table": str(file), "column": "plan"}), table
    )
    assert examples.names == ("NA", "None", "Pro")
    assert examples.left_out.num_rows == 0
    floats = pd.DataFrame({"user_id": np.arange(len(users)) + 0.0, "x": np.arange(len(users))})
    floats.assign(x=[[1]] * len(users)).to_parquet(numbers)
    asked = task(next_item=None, attribute={"table": str(numbers), "column": "x"})
    with pytest.raises(SpecError, match=r"Column 'x' of table .* holds list"):
        make_examples(asked, table)
    floats.to_parquet(numbers)
    table["user_id"] = table["user_id"].astype(int).astype(str)  # as the log's reader spells 7.0
    assert make_examples(asked, table).names == ()


@pytest.mark.parametrize("kind", ["next_item", "attribute", "retrieval"])
def test_every_kind_of_task_runs_and_is_stored(
    kind, task, corpus, encoder_folder, events, tmp_path
):
    users = sorted(set(events["user_id"].to_pylist()))
    table = tmp_path / "users.csv"
    pd.DataFrame({"id": users, "age": np.arange(len(users)) % 7 + 20.5}).to_csv(table, index=False)
    asked = {
        "next_item": {},
        "attribute": {
            "next_item": None,
            "attribute": {"table": str(table), "user": "id", "column": "age"},
        },
        "retrieval": {
            "next_item": None,
            "retrieval": {
                "query": corpus.services[0],
                "target": corpus.services[1],
                "candidates": 32,
            },
        },
    }[kind]
    spec = task(**asked, name=f"k-{kind}", scratch_steps=2)
    result = run_task(encoder_folder, spec, {"twin": encoder_folder})
    methods = {row["method"]: row for row in result["methods"]}
    measure = {"attribute": "r2"}.get(kind, "mrr")
    assert methods["twin"][f"{measure}_lead"] == {"value": 0, "low": 0, "high": 0}
    assert {"encoder", "untrained items"} < set(methods)
    assert ("from scratch" in methods) == (kind != "retrieval")
    for row in methods.values():
        assert row[measure]["low"] <= row[measure]["value"] <= row[measure]["high"]
    assert sum(result["users"].values()) + sum(result["left_out"].values()) == len(users)
    assert result["users"]["test"] > 20
    assert json.loads(json.dumps(result)) == result
    file = encoder_folder.parent / "transfer" / f"k-{kind}-{result['key']}.json"
    file.write_text(json.dumps({**result, "kept": True}))
    assert run_task(encoder_folder, spec, {"twin": encoder_folder})["kept"]


def test_from_scratch_has_three_encoders_at_most_and_a_head_each(task, encoder_folder, monkeypatch):
    made, read, fit = [], [], evaluate.fit_head
    monkeypatch.setattr(
        methods, "train_from_scratch", lambda encoder, *_, seed, **__: made.append(seed) or encoder
    )
    monkeypatch.setattr(
        evaluate,
        "fit_head",
        lambda *args, seed, **more: read.append(seed) or fit(*args, seed=seed, **more),
    )
    run_task(encoder_folder, task(name="many", seeds=[5, 6, 7, 8], scratch_steps=1))
    assert made == [5, 6, 7]
    assert read == 4 * [5, 6, 7, 8] + made


def test_from_scratch_learns_and_keeps_the_lowest_validation_loss(
    task, encoder_folder, events, monkeypatch
):
    spec, encoder = task(), load_encoder(encoder_folder)
    examples = make_examples(spec, events.to_pandas())
    histories = Histories(examples.inputs, encoder.exported)
    seen, update = [], heads.EarlyStopping.update

    def watched(self, compute_loss):
        stop = update(self, compute_loss)
        seen.append((self.loss, self.weights["0.transformer.output.weight"].clone()))
        return stop

    monkeypatch.setattr(heads.EarlyStopping, "update", watched)
    made = train_from_scratch(encoder, histories, examples, steps=30, seed=0)
    assert len(seen) == 3  # at 0, 25 and the end
    assert seen[-1][0] < seen[0][0]
    assert torch.equal(made.model.transformer.output.weight, seen[-1][1])
    assert not torch.equal(seen[0][1], seen[-1][1])


def test_a_result_names_the_list_of_its_own_left_out_users(task, encoder_folder):
    place = encoder_folder.parent
    rare, common = (
        task(name="who", next_item={"service": "service-a", "min_users": n}) for n in (3, 1)
    )
    first, second, again = (run_task(encoder_folder, spec) for spec in (rare, common, rare))
    assert again == first
    assert first["left_out_list"] != second["left_out_list"]
    for result in (first, second):
        listed = pq.read_table(place / result["left_out_list"])["reason"].to_pylist()
        assert {reason: listed.count(reason) for reason in set(listed)} == result["left_out"]


def test_users_of_a_table_that_the_log_does_not_name_are_listed(task, events, tmp_path):
    users = [*sorted(set(events["user_id"].to_pylist())), "ghost"]
    pd.DataFrame({"user_id": users, "age": np.arange(len(users)) % 7 + 20.5}).to_csv(
        tmp_path / "u.csv", index=False
    )
    asked = task(next_item=None, attribute={"table": str(tmp_path / "u.csv"), "column": "age"})
    left_out = make_examples(asked, events.to_pandas()).left_out.to_pylist()
    assert {"user_id": "ghost", "reason": "no events in the log"} in left_out


@pytest.mark.slow
def test_labels_have_the_same_features_in_every_process():
    code = (
        "import hashlib; from clue_ray.transfer.tasks.features import label_features as f;"
        "names = tuple(f'a{n // 2} b{n // 3} c{n % 7}' for n in range(500));"
        "print(hashlib.sha256(f(names).numpy().tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_several_files_without_times_have_no_last_item(task, events, tmp_path):
    table = events.drop_columns("timestamp").to_pandas()
    for service, rows in table.groupby("service"):
        rows.to_parquet(tmp_path / f"{service}.parquet")
    with pytest.raises(
        EventLogError,
        match=r"asks for a user's last item, but its log is \d+ files without a column",
    ):
        plan_events(task(events=str(tmp_path / "*.parquet")))


def test_mistakes_are_one_sentence(task, events, tmp_path):
    table = events.to_pandas()
    with pytest.raises(SpecError, match="has 0 targets"):
        task(next_item=None)
    with pytest.raises(SpecError, match="days without a cut in time"):
        task(next_item={"service": "a", "days": 7})
    with pytest.raises(SpecError, match="names service 'nowhere', which its log lacks"):
        make_examples(task(next_item={"service": "nowhere"}), table)
    users = pd.DataFrame({"user_id": table["user_id"].unique(), "same": "x"})
    users.to_csv(tmp_path / "u.csv", index=False)
    with pytest.raises(SpecError, match="has one class: all train users have same 'x'"):
        make_examples(
            task(next_item=None, attribute={"table": str(tmp_path / "u.csv"), "column": "same"}),
            table,
        )
    with pytest.raises(SpecError, match="package no_such_package, which is not installed"):
        make_examples(
            task(next_item=None, attribute={"table": "package:no_such_package/a", "column": "x"}),
            table,
        )
    with pytest.raises(SpecError, match="no column 'sort'"):
        make_examples(
            task(next_item=None, attribute={"table": str(tmp_path / "u.csv"), "column": "sort"}),
            table,
        )
    alone = pd.DataFrame({"user_id": table["user_id"].unique()}).assign(
        own=lambda rows: rows["user_id"] + "!"
    )
    alone.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(SpecError, match="which no training user has, one of"):
        make_examples(
            task(next_item=None, attribute={"table": str(tmp_path / "own.csv"), "column": "own"}),
            table,
        )
    strangers = {"table": str(tmp_path / "u.csv"), "column": "same", "prefix": "x_"}
    with pytest.raises(
        SpecError, match="of 'same' for no user of the log; it has users such as 'x_u"
    ):
        make_examples(task(next_item=None, attribute=strangers), table)
    with pytest.raises(SpecError, match="retrieves service 'a' by itself"):
        task(next_item=None, retrieval={"query": "a", "target": "a"})
    with pytest.raises(SpecError, match="retrieves with service 'b', which services lacks"):
        task(next_item=None, retrieval={"query": "a", "target": "b"}, services=["a"])
    with pytest.raises(SpecError, match="asks for part 9 of the text"):
        make_examples(task(next_item={"service": table["service"][0], "part": 9}), table)
    for time in ("1980-01-01", "2090-01-01"):
        with pytest.raises(SpecError, match=f"cut in time at {time}, but its log is from 20"):
            make_examples(task(time=time), table)
    with pytest.raises(EventLogError, match="without a usable row"):
        make_examples(task(), table[:0])
    with pytest.raises(SpecError, match="fewer than 20; raise"):
        make_examples(task(split={"validation": 0.2, "test": 0.01}), table)
    with pytest.raises(SpecError, match="package:NAME/FILE"):
        make_examples(task(next_item=None, attribute={"table": "package:", "column": "x"}), table)
    with pytest.raises(SpecError, match="write it as NAME=RUN"):
        parse_against(["nothing"])
    with pytest.raises(SpecError, match="names 'a' twice"):
        parse_against(["a=1", "a=2"])


def test_a_further_encoder_cannot_have_the_name_of_a_method(task, encoder_folder):
    with pytest.raises(SpecError, match="has the name 'encoder' of a method"):
        run_task(encoder_folder, task(scratch_steps=0), {"encoder": encoder_folder})


def test_classes_are_scored_by_probabilities():
    targets = np.random.default_rng(0).integers(0, 3, 180)
    scores = fit_head(
        np.eye(3)[targets], planted_examples(targets, ("a", "b", "c")), kind="linear", seed=0
    )
    assert scores.sum(1) == pytest.approx(np.ones(60))
    assert scores.min() >= 0


def test_a_result_key_depends_on_the_content_of_the_table(task, encoder_folder, events, tmp_path):
    users = sorted(set(events["user_id"].to_pylist()))
    table = tmp_path / "users.csv"
    spec = task(next_item=None, attribute={"table": str(table), "column": "age"})
    keys = set()
    for first in (20.5, 30.5):
        pd.DataFrame({"user_id": users, "age": first}).to_csv(table, index=False)
        keys.add(result_key(read_card(encoder_folder), {}, spec, plan_events(spec)))
    assert len(keys) == 2


def test_users_without_a_usable_row_are_listed(task, events, tmp_path):
    whole = events.to_pandas()
    mute = pd.DataFrame(
        {
            "user_id": ["mute", "mute", whole["user_id"][0]],
            "service": "a",
            "timestamp": 1,
            "text": "",
        }
    )
    pd.concat([whole, mute]).to_parquet(tmp_path / "log.parquet")
    found, unusable = read_events(plan_events(task(events=str(tmp_path / "log.parquet"))))
    assert len(found) == len(events)
    assert unusable == {"mute"}
    examples = make_examples(task(), found, unusable)
    left_out = dict(zip(*examples.left_out.to_pydict().values(), strict=True))
    assert left_out["mute"] == "no usable row"
    assert {*left_out, *examples.users} == {"mute", *whole["user_id"]}
    assert not {*left_out} & {*examples.users}


@pytest.mark.parametrize("hidden", [True, False])
def test_a_head_starts_at_the_base_rate(hidden):
    base = torch.tensor([0.3, -1.0, 0.2])
    head = heads.Head(4, base, None, hidden)
    assert torch.equal(head(torch.randn(5, 4)), base.expand(5, 3))


def test_features_without_a_signal_score_as_popularity():
    rng = np.random.default_rng(0)
    targets = rng.random((180, 9)) < np.linspace(0.1, 0.8, 9)
    targets[:, 8] |= ~targets.any(1)
    examples = planted_examples(targets, tuple("abcdefghi"))
    base = ranking_measures(
        np.tile(heads.base_scores(examples).numpy(), (60, 1)), targets[120:], np.zeros(60, int)
    )
    found = fit_head(rng.standard_normal((180, 16)), examples, kind="mlp", seed=0)
    assert (
        ranking_measures(found, targets[120:], np.zeros(60, int))["mrr"].mean()
        > base["mrr"].mean() - 0.05
    )
