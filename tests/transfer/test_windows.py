"""Window tasks: targets and counts against slow references, and planted truth."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clue_ray.errors import EventLogError, SpecError
from clue_ray.transfer.encode import load_encoder
from clue_ray.transfer.tasks import features, scores
from clue_ray.transfer.tasks.evaluate import evaluate_task, prepare_examples
from clue_ray.transfer.tasks.examples import plan_events
from clue_ray.transfer.tasks.features import window_counts
from clue_ray.transfer.tasks.methods import OF_THE_LOG
from clue_ray.transfer.tasks.rules import MultiLabelSpec
from clue_ray.transfer.tasks.scores import (
    ChallengeScore,
    MacroAuc,
    class_auc,
    count_draws,
    resample,
)
from clue_ray.transfer.tasks.spec import TaskSpec
from clue_ray.transfer.tasks.windows import label_texts
from tests.plain import auc

DAY = 86_400
CUT = pd.Timestamp("2024-03-01").timestamp()
WINDOW = 10
SPLIT = {"validation": 0.2, "test": 0.3}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of 300 users. Each has a taste, which decides the category of what they buy, and a day
    after which they are gone."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(300):
        taste, gone = user % 3, CUT + rng.choice([-15, 30]) * DAY
        for time in CUT + DAY * rng.uniform(-60, WINDOW, 40):
            category = taste if rng.random() < 0.8 else int(rng.integers(3))
            kind = "buy" if rng.random() < 0.5 else "view"
            if time < gone:
                rows.append((f"u{user}", "shop" if kind == "buy" else "news", time, category, kind))
    names = ["user_id", "service", "timestamp", "category", "kind"]
    frame = pd.DataFrame(rows, columns=names)
    frame["text"] = [f"goods of kind {'abc'[c]}" for c in frame["category"]]
    frame["price"] = frame["category"] + 1.5
    path = tmp_path_factory.mktemp("windows") / "log.parquet"
    frame.to_parquet(path)
    return path


def task_of(log, **target):
    document = {"name": "t", "events": str(log), "time": "2024-03-01", "split": SPLIT}
    return TaskSpec.parse({**document, "scratch_steps": 0, **target}, "t.yaml")


def examples_of(task):
    return prepare_examples(task, plan_events(task))


def window_of(log, part, where=None):
    """Return the events of a user's window, by hand."""
    begin = CUT if part == "test" else CUT - WINDOW * DAY
    frame = pd.read_parquet(log)
    kept = (frame["timestamp"] >= begin) & (frame["timestamp"] < begin + WINDOW * DAY)
    return frame[kept & (frame["kind"] == where if where else True)]


def test_targets_equal_those_of_a_slow_reference(log):
    rule = {"days": WINDOW, "where": {"kind": ["buy"]}, "text": "{category}", "min_users": 1}
    examples = examples_of(task_of(log, multi_label=rule))
    assert set(examples.names) == {"0", "1", "2"}
    windows = {part: window_of(log, part, "buy") for part in ("train", "test", "validation")}
    for user, part, row in zip(examples.users, examples.part, examples.targets, strict=True):
        mine = windows[part]
        found = {str(c) for c in mine[mine["user_id"] == user]["category"]}
        assert {examples.names[n] for n in np.flatnonzero(row)} == found
    assert not examples.targets.any(1).all()  # users without an event are examples too


def test_churn_and_amounts_equal_those_of_a_slow_reference(log):
    rule = {"days": WINDOW, "services": ["shop"], "active_days": 20}
    churn = examples_of(task_of(log, churn=rule))
    frame, day = pd.read_parquet(log), DAY
    for user, part, target in zip(churn.users, churn.part, churn.targets, strict=True):
        begin = CUT if part == "test" else CUT - WINDOW * day
        times = frame[(frame["user_id"] == user) & (frame["service"] == "shop")]["timestamp"]
        assert ((times >= begin - 20 * day) & (times < begin)).any()
        stays = ((times >= begin) & (times < begin + WINDOW * day)).any()
        assert churn.names[target] == ("stays" if stays else "leaves")
    rule = {"days": WINDOW, "value": "sum", "text": "{price}", "log": False}
    amounts = examples_of(task_of(log, regression=rule))
    for user, part, target in zip(amounts.users, amounts.part, amounts.targets, strict=True):
        mine = window_of(log, part)
        assert np.isclose(target, mine[mine["user_id"] == user]["price"].sum())
    assert {"not active before the window"} == set(churn.left_out["reason"].to_pylist())


def test_counts_equal_those_of_a_slow_reference(log):
    examples = examples_of(task_of(log, churn={"days": WINDOW}))
    inputs = examples.inputs.to_pandas()
    counts = np.expm1(window_counts(examples))
    assert counts.shape == (len(examples.users), 3 * (2 + 3))
    for row in range(0, len(examples.users), 17):
        mine = inputs[inputs["user_id"] == examples.users[row]]
        age = (examples.cuts[row] - mine["timestamp"]) / DAY
        names = [("service", ["news", "shop"]), ("text", sorted(inputs["text"].unique()))]
        expected = [
            ((mine[column] == name) & (age <= days)).sum()
            for column, values in names
            for days in (1, 7, 30)
            for name in values
        ]
        assert np.allclose(counts[row], expected)


def test_macro_auc_is_exact_for_all_users_and_close_for_resamples(monkeypatch):
    rng = np.random.default_rng(2)
    targets = rng.random((400, 4)) < [0.5, 0.2, 0.05, 0.0]
    values = np.round(targets + rng.normal(0, 1.5, targets.shape), 1)  # with ties
    measure = MacroAuc(values, targets)

    def exact(rows):
        columns = ((values[rows, n], targets[rows, n].astype(int)) for n in range(3))
        return np.mean([auc(np.stack([-v, v], 1), t) for v, t in columns])

    everyone = np.arange(400)
    assert np.isclose(measure(everyone), exact(everyone))
    draws = [rng.integers(0, 400, 400) for _ in range(200)]
    found, true = (np.array([f(rows) for rows in draws]) for f in (measure, exact))
    assert np.corrcoef(found, true)[0, 1] > 0.97
    assert np.isclose(found.std(), true.std(), rtol=0.1)
    assert np.allclose(measure.many(count_draws(draws, 400)), found)
    monkeypatch.setattr(scores, "DRAWN_AT_ONCE", 400 * 7)  # the same draws in other portions
    few = resample([measure, lambda rows: float(values[rows, 0].mean())], 400)
    monkeypatch.setattr(scores, "DRAWN_AT_ONCE", 1)
    again = resample([measure, lambda rows: float(values[rows, 0].mean())], 400)
    assert np.allclose(few.draws, again.draws)
    assert resample([measure], 400).interval().low < exact(everyone)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_area_of_classes_is_exact_for_all_users_and_close_for_resamples(classes):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, 300)
    values = np.round(np.eye(classes)[truth] + rng.normal(0, 1.5, (300, classes)), 1)
    measure, everyone = class_auc(values, truth), np.arange(300)
    assert np.isclose(measure(everyone), auc(values, truth))
    draws = [rng.integers(0, 300, 300) for _ in range(200)]
    found = np.array([measure(rows) for rows in draws])
    true = np.array([auc(values[rows], truth[rows]) for rows in draws])
    assert np.corrcoef(found, true)[0, 1] > 0.97
    assert np.isclose(found.std(), true.std(), rtol=0.1)
    assert np.isnan(class_auc(values, np.zeros(300, int))(everyone))


def test_the_challenge_score_equals_its_description():
    rng = np.random.default_rng(3)
    targets, logits = rng.random((50, 12)) < 0.3, rng.normal(-6, 2, (50, 12))
    popularity = rng.integers(1, 90, 12)
    novelty, diversity = [], []
    for row in logits:
        chances = 1 / (1 + np.exp(-row))
        top = sorted(range(12), key=lambda n: -chances[n])[:10]
        novelty.append(sum(chances[n] * popularity[n] / popularity.max() for n in top))
        shares = chances / chances.sum()
        diversity.append(-(shares * np.log2(shares)).sum() / np.log2(12))
    expected = 0.8 * MacroAuc(logits, targets)(np.arange(50)) + 0.1 * np.mean(diversity)
    expected += 0.1 * (1 - np.mean(novelty)) ** 100
    assert ChallengeScore(logits, MacroAuc(logits, targets), popularity)(
        np.arange(50)
    ) == pytest.approx(expected)
    flat = np.full((50, 12), -20.0)
    tiny = ChallengeScore(flat, MacroAuc(flat, targets), popularity)
    assert tiny(np.arange(50)) == pytest.approx(0.6, abs=1e-3)  # the chance level


@pytest.fixture(scope="module")
def encoder(encoder_folder):
    return load_encoder(encoder_folder)


def test_planted_tastes_are_found_by_counts_with_paired_intervals(log, encoder):
    task = task_of(log, multi_label={"days": WINDOW, "services": ["shop"]}, other_company=True)
    result = evaluate_task(encoder, {}, task, examples_of(task))
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["popularity"]["auc"]["value"] == pytest.approx(0.5)
    counts = rows["counts, 1/7/30 days"]
    assert counts["auc"]["low"] > 0.6
    assert set(counts["auc_lead"]) == {"value", "low", "high"}
    lead = rows["encoder"]["auc"]["value"] - counts["auc"]["value"]
    assert counts["auc_lead"]["value"] == pytest.approx(lead)


def test_baselines_of_the_log_are_evaluated_once_for_all_encoders(log, encoder, monkeypatch):
    task = task_of(log, churn={"days": WINDOW}, other_company=True)
    examples = examples_of(task)
    assert examples.key
    alone, known = evaluate_task(encoder, {}, task, examples), {}
    assert evaluate_task(encoder, {}, task, examples, known) == alone
    assert {key[-1] for key in known} == set(OF_THE_LOG)
    monkeypatch.setattr(features, "tfidf_svd", lambda *_: pytest.fail("computed again"))
    assert evaluate_task(encoder, {}, task, examples, known) == alone
    other = replace(examples, key="another log")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        evaluate_task(encoder, {}, task, other, known)


@pytest.fixture
def sold(log, tmp_path):
    """A log of item ids without texts, and a catalogue that lacks the items of category 2."""
    frame = pd.read_parquet(log)
    frame["sku"] = 1 + frame["category"]
    frame.drop(columns=["text", "category"]).to_parquet(tmp_path / "sold.parquet")
    items = pd.DataFrame({"sku": [1, 2], "kind_of": ["x", "b"]})
    items.to_parquet(tmp_path / "items.parquet")
    table = str(tmp_path / "items.parquet")
    catalogue = {"events.sku": {"table": table, "key": "sku", "text": "{kind_of}"}}
    return tmp_path / "sold.parquet", {"text": "goods {sku}", "items": catalogue}, items


def test_an_id_without_an_item_is_no_label(sold, caplog):
    log, read, _ = sold
    task = task_of(log, multi_label={"days": WINDOW, "text": "{sku}", "min_users": 1}, **read)
    assert set(examples_of(task).names) == {"x", "b"}  # sku 3 has no item
    assert re.search(r"an id of events.sku that catalogue .* lacks, such as '3'", caplog.text)
    whole = task_of(log, multi_label={"days": WINDOW, "min_users": 1}, **read)
    assert set(examples_of(whole).names) == {"goods x", "goods b"}
    mapped = read | {"columns": {"text": "sku"}, "text": "{text}"}
    by_role = {"days": WINDOW, "min_users": 1, "where": {"kind": ["buy"]}}
    assert set(examples_of(task_of(log, multi_label=by_role, **mapped)).names) == {"x", "b"}
    plain = {"days": WINDOW, "text": "{sku}", "min_users": 1, "items": {}}
    assert set(examples_of(task_of(log, multi_label=plain, **read)).names) == {"1", "2", "3"}
    prices = {"days": WINDOW, "value": "sum", "text": "{price}"}  # a column of the log: no items
    found = examples_of(task_of(log, regression=prices, **read))
    assert found.targets.max() > 1


def test_a_catalogue_of_other_keys_is_one_sentence_and_a_changed_one_another_result(sold):
    log, read, items = sold
    rule = {"days": WINDOW, "text": "{sku}", "min_users": 1}
    task = task_of(log, multi_label=rule, **read)
    before = examples_of(task).key
    path = read["items"]["events.sku"]["table"]
    items.assign(kind_of=["a", "long name"]).to_parquet(path)
    assert examples_of(task).key != before
    items.assign(sku=["x", "y"]).to_parquet(path)
    with pytest.raises(EventLogError, match=r"None of the [\d,]+ ids of events.sku is a key"):
        examples_of(task)


def test_a_rule_that_only_filters_needs_no_text(log, tmp_path):
    frame = pd.read_parquet(log)
    frame.rename(columns={"text": "words"}).to_parquet(tmp_path / "words.parquet")
    logs = {
        name: {"events": str(tmp_path / "words.parquet"), "text": "{words}"}
        for name in ("shop", "news")
    }
    churn = {"days": WINDOW, "where": {"kind": ["buy"]}}
    ours = TaskSpec.parse(
        {"name": "t", "events": logs, "time": "2024-03-01", "split": SPLIT, "churn": churn}, "t"
    )
    assert len(examples_of(ours).users)
    labels = {"days": WINDOW, "where": {"kind": ["buy"]}, "min_users": 1}
    ours = ours.model_copy(update={"churn": None, "multi_label": MultiLabelSpec(**labels)})
    assert set(examples_of(ours).names) == {f"goods of kind {c}" for c in "abc"}


def test_bad_windows_are_one_sentence(log):
    def message(**target):
        with pytest.raises(SpecError) as caught:
            examples_of(task_of(log, **target))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "windows of 40 days before and after its cut" in message(churn={"days": 40})
    assert "windows of 10 days" in message(churn={"days": 10}, time="2024-03-09")
    assert "names service 'bank'" in message(churn={"days": 5, "services": ["bank"]})
    assert "has that; values found are buy, view" in message(
        churn={"days": 5, "where": {"kind": ["rent"]}}
    )
    assert "has no label that 300 training users" in message(
        multi_label={"days": 5, "min_users": 300}
    )
    assert "no column 'colour'" in message_of_log(log, multi_label={"days": 5, "text": "{colour}"})
    words = message(regression={"days": 5, "value": "sum", "text": "{kind}"})
    assert re.search("sums numbers, but an event has '(buy|view)'", words)
    assert "without a cut in time" in message(churn={"days": 5}, time=None)
    one = {"days": WINDOW, "value": "sum", "text": "0"}
    assert "names no column" in message_of_log(log, regression=one)


def message_of_log(log, **target):

    with pytest.raises(EventLogError) as caught:
        examples_of(task_of(log, **target))
    return str(caught.value)


def test_a_window_with_one_class_is_refused(tmp_path):
    users = [f"u{n}" for n in range(200)]
    times = [CUT - 40 * DAY, CUT - 1, CUT + 4.5 * DAY]
    table = {
        "user_id": users * 3,
        "service": ["shop"] * 600,
        "timestamp": np.repeat(times, 200),
        "text": ["tea"] * 600,
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    for target in ({"churn": {"days": 5}}, {"multi_label": {"days": 5, "min_users": 1}}):
        with pytest.raises(SpecError, match="one class"):
            examples_of(task_of(tmp_path / "log.parquet", **target))


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_a_text_without_a_label_has_none(missing):
    texts = pd.Series(["a; b", "c", missing], dtype=object).replace("", None)
    assert label_texts(texts, 2).isna().tolist() == [False, True, True]
