"""`clue-ray init`: columns are guessed, a study is sized, and what cannot be is one sentence."""

import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clue_ray.cli.init import Wish
from clue_ray.cli.main import main
from clue_ray.cli.options import make_corpus_spec
from clue_ray.corpus import guess
from clue_ray.corpus.guess import LogFacts, guess_columns, guess_time_format, survey_log
from clue_ray.spec.compute import Work, train_flops
from clue_ray.spec.grid import expand
from clue_ray.spec.specs import EncoderSpec, StudySpec, read_study
from clue_ray.study.costs import fixed_rate
from clue_ray.study.directory import StudyDirectory
from clue_ray.study.planned import Plan
from clue_ray.study.planner import plan_runs
from clue_ray.study.propose.sizes import (
    BUDGETS,
    CHARACTERS_PER_TOKEN,
    FEWEST_STEPS,
    MOST_PASSES,
    SIZES,
    budgets_for,
    propose,
)
from clue_ray.training.pools import MIN_VALIDATION_USERS
from tests.plain import plain_corpus

ROWS, USERS = 12_000, 700


def log(**names: str) -> pd.DataFrame:
    """A log of three services with the names of a shop; `names` renames columns."""
    draw = np.random.default_rng(0)
    days = pd.to_timedelta(draw.integers(0, 10**7, ROWS), unit="s")
    table = pd.DataFrame({
        "customerID": draw.integers(0, USERS, ROWS),
        "department": draw.choice(["food", "home", "garden"], ROWS, p=[0.5, 0.3, 0.2]),
        "purchase_time": (pd.Timestamp("2024-01-01") + days).astype(str),
        "brand": draw.choice(["acme", "zeta"], ROWS),
        "productTitle": [f"a blue thing {word}" for word in draw.integers(0, 300, ROWS)],
        "price": draw.random(ROWS),
    })  # fmt: skip
    return table.rename(columns=names)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    log().to_csv(tmp_path / "shop.csv", index=False)
    return tmp_path / "shop.csv"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clue-ray", "init", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_columns_are_guessed_by_name_and_by_value(shop: Path) -> None:
    found = guess_columns(make_corpus_spec([str(shop)], None, None, None))
    assert {role: guess.column for role, guess in found.items()} == {
        "user_id": "customerID", "service": "department", "timestamp": "purchase_time",
        "text": "productTitle",
    }  # fmt: skip
    other = shop.with_name("other.csv")
    log(customerID="c1", department="c2", productTitle="c3", purchase_time="c4").drop(
        columns="brand"
    ).to_csv(other, index=False)
    found = guess_columns(make_corpus_spec([str(other)], None, None, None))
    assert [found[role].column for role in ("user_id", "service", "text")] == ["c1", "c2", "c3"]
    assert not any(found[role].sure for role in ("user_id", "service", "text"))


def test_services_are_found_wherever_they_lie(tmp_path, monkeypatch) -> None:
    table = log().rename(columns={"customerID": "user_id", "productTitle": "text"})
    for name, rows in table.groupby("department"):
        rows.drop(columns="department").to_parquet(tmp_path / f"{name}.parquet")
    logs = [f"{name}={tmp_path / name}.parquet" for name in ("food", "home", "garden")]
    for name, rows in table.groupby("department"):
        rows.drop(columns="department").to_csv(tmp_path / f"{name}.csv", index=False)
    table.sort_values("department").to_parquet(tmp_path / "all.parquet", row_group_size=500)
    monkeypatch.setattr(guess, "MOST_ROWS", 11_000)
    for events in (logs, [f"{tmp_path / 'all.parquet'}"]):
        service = {} if len(events) > 1 else {"service": "department"}
        columns = {"timestamp": "purchase_time", **service}
        spec = make_corpus_spec(events, None, None, None).model_copy(update={"columns": columns})
        assert set(survey_log(spec).services) == {"food", "home", "garden"}


def test_a_larger_budget_has_larger_encoders() -> None:
    facts = LogFacts(10**6, True, {("a", "b"): 50_000}, {"a": 500_000, "b": 500_000}, 60_000,
                     np.full(10**5, 20), 40.0)  # fmt: skip
    totals = (1e12, 1e15, 1e17, 1e19)
    largest = [SIZES.index(propose(facts, flops).sizes[-1][-1]) for flops in totals]
    assert largest == sorted(largest)
    assert largest[-1] == len(SIZES) - 1
    assert largest[0] < largest[2]


def test_empty_first_partitions_are_passed_over(tmp_path: Path) -> None:
    schema = pa.Table.from_pandas(log()).schema
    with pq.ParquetWriter(tmp_path / "part-0.parquet", schema):
        pass
    with pq.ParquetWriter(tmp_path / "part-1.parquet", schema) as writer:
        writer.write_table(schema.empty_table())
        writer.write_table(pa.Table.from_pandas(log()))
    found = guess_columns(make_corpus_spec([str(tmp_path)], [], None, None))
    assert found["user_id"].column == "customerID"


def test_neither_prices_nor_times_nor_items_are_users(tmp_path: Path) -> None:
    """A log under unknown names, sorted by user, as a company exports it."""
    table = log(customerID="haushalt", department="sparte", productTitle="artikel").sort_values(
        "haushalt", kind="stable"
    )
    seconds = pd.to_datetime(table.pop("purchase_time")).astype("datetime64[s]").astype("int64")
    table = table.assign(zeit=seconds * 1000, order_no=range(ROWS)).drop(columns="brand")
    table.to_csv(tmp_path / "log.tsv", sep="\t", index=False)
    found = guess_columns(make_corpus_spec([str(tmp_path / "log.tsv")], None, None, None))
    assert {role: guess.column for role, guess in found.items()} == {
        "user_id": "haushalt", "service": "sparte", "timestamp": "zeit", "text": "artikel",
    }  # fmt: skip
    assert not found["user_id"].sure


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M"),
        ("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p"),
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("%Y-%m-%d", None),
        ("05/06/%Y", None),
    ],
)
def test_days_above_twelve_tell_the_order_of_a_date(
    written: str, form: str | None, tmp_path: Path
) -> None:
    times = pd.to_datetime(log()["purchase_time"]).dt.strftime(written)
    log().assign(purchase_time=times).to_csv(tmp_path / "log.csv", index=False)
    spec = make_corpus_spec([str(tmp_path / "log.csv")], None, None, None)
    assert guess_columns(spec)["timestamp"].column == "purchase_time"
    assert guess_time_format(spec, "purchase_time") == form


def test_facts_of_a_log_are_counted(shop: Path) -> None:
    columns = ["user_id=customerID,service=department,timestamp=purchase_time"]
    spec = make_corpus_spec([str(shop)], columns, "{productTitle}", None)
    facts, table = survey_log(spec), log()
    assert facts.rows == ROWS
    assert facts.services == table["department"].value_counts().to_dict()
    users = table.groupby("department")["customerID"].agg(set)
    assert facts.pairs["food", "garden"] == len(users["food"] & users["garden"])
    sizes = table.groupby(["customerID", "department"]).size()
    assert sorted(facts.lengths) == sorted(sizes)
    assert facts.characters == pytest.approx(table["productTitle"].str.len().mean())


def test_budgets_add_up_and_span_two_decades() -> None:
    budgets = budgets_for(1e15)
    assert budgets[-1] / budgets[0] == pytest.approx(100, rel=0.05)
    assert len(budgets) == BUDGETS


@pytest.mark.slow
def test_the_file_is_a_study_that_costs_what_was_asked(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is timed at a fixed speed on a corpus prepared without Ray."""
    corpora = {}

    def plan_study(study, output):  # type: ignore[no-untyped-def]
        split = study.corpus.split.model_dump(exclude_none=True)
        key = str(split)
        if key not in corpora:
            ours = log(
                customerID="user_id", department="service", productTitle="text",
                purchase_time="timestamp",
            )  # fmt: skip
            seconds = pd.to_datetime(ours["timestamp"]).astype("datetime64[s]").astype("int64")
            ours = ours.assign(user_id=ours["user_id"].astype(str), timestamp=seconds)
            ours.to_parquet(tmp_path / "log.parquet")
            corpora[key] = plain_corpus(tmp_path / "log.parquet", tmp_path / "corpus", split)
        timed = partial(fixed_rate, flops_per_second=4e9)
        node = {"CPU": 1.0, "trial_slot": 4.0}
        return plan_runs(study, corpora[key], StudyDirectory(output), [node], timed=timed)

    monkeypatch.setattr("clue_ray.study.run.plan_study", plan_study)
    code, out, err = call(capsys, shop, "--minutes", 20, "--name", "mine", "--yes")
    assert code == 0, err
    assert "Run it: clue-ray run mine.yaml" in out
    study = read_study("mine.yaml")
    text = Path("mine.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    # Every line of a choice says why, and the plan takes the time that was asked for.
    choices = [line for line in text.splitlines() if ": " in line and not line.startswith("#")]
    assert sum("#" in line for line in choices) >= 10
    plan = plan_study(study, tmp_path)
    assert 0.6 * 19 <= plan.expected_minutes <= 1.05 * 19  # one of the 20 is for start and report
    runs = expand(study)
    sizes = sorted({SIZES.index(run.encoder.size or "") for run in runs})
    assert sizes == list(range(sizes[-1] + 1))  # what this budget pays for, without a gap
    assert min(planned.steps for planned in plan.runs) >= FEWEST_STEPS
    assert len({run.sequence_length for run in runs}) == 3
    assert len({run.train.seed for run in runs}) == 3
    spent = sorted({run.train.train_flops for run in runs if run.train.train_flops})
    assert spent[-1] / spent[0] >= 95
    code, _, err = call(capsys, shop, "--minutes", 20, "--name", "mine", "--yes")
    assert code == 2
    assert "mine.yaml exists and is not replaced" in err
    budget = 1e12
    code, _, err = call(capsys, shop, "--budget", budget, "--name", "flops", "--yes")
    assert code == 0, err
    flops = [run.train.train_flops or 0 for run in expand(read_study("flops.yaml"))]
    assert sum(flops) == pytest.approx(budget, rel=0.1)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, [], "one of --minutes, --gpu-hours and --budget"),
        ({}, ["--gpu-hours", "8"], "--gpu-hours times the encoders on a GPU, and this machine has"),
        ({}, ["--minutes", "5", "--name", "sub/mine"], "give a name without a folder"),
        ({}, ["--minutes", "5", "--columns", "timestamp=tme"], "no column 'tme'"),
        ({}, ["--minutes", "0.02"], "--minutes is 0.02; a study takes a minute or more"),
        ({}, ["--budget", "1e6"], "less than a step of each run"),
        ({"department": None, "brand": None}, ["--minutes", "5"],
         "No column of the log looks like a service"),
        ({"department": "food"}, ["--minutes", "5", "--columns", "service=department"],
         "The log has one service, 'food'"),
        ({"brand": None, "productTitle": None}, ["--minutes", "5"], "The log has no text"),
        ({"customerID": 7}, ["--minutes", "5"], "Only 1 user has events in two services"),
        ({"customerID": np.arange(ROWS) % 2}, ["--minutes", "5"],
         "Only 2 users have events in two services"),
        ({}, ["--minutes", "5", "--name", "my study"], "--name is 'my study'; use letters, digits"),
        ({}, ["--minutes", "5", "--name", ""], "--name is ''; use letters"),
        ({}, ["--minutes", "5", "--demo"], "--demo takes the demo's log; leave it out, or leave"),
        ({}, ["--minutes", "5", "--budget", "1e12"], "2 are given"),
    ],
)  # fmt: skip
def test_what_cannot_be_sized_is_one_sentence(
    change: dict[str, object], options: list[str], words: str, shop: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table = log()
    for column, value in change.items():
        table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    if "brand" in change:
        table = table.drop(columns="purchase_time")
    table.to_csv(shop, index=False)
    code, _, err = call(capsys, shop, *options, "--yes")
    assert code == 2, err
    assert words in err
    assert err.count("\n") == 1
    assert not Path("study.yaml").exists()


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plans that are numbered and not computed; the texts of the studies they are made of."""
    texts: list[str] = []

    def plan_study(study: StudySpec, output: Path) -> Plan:
        texts.append(Path(f"{study.name}.yaml").read_text())
        return Plan(study.name, [], 1, 0, [f"plan {len(texts)}"])

    monkeypatch.setattr("clue_ray.study.run.plan_study", plan_study)
    return texts


@pytest.mark.parametrize(
    ("shares", "kept"), [([3.0, 0.2, 1.5, 0.3], 3), ([0.1, 0.5, 0.2, 4.0], 2), ([9.0, 0.7], None)]
)
def test_the_closest_round_is_kept_with_a_warning(
    shares: list[float], kept: int | None, shop: Path, untimed: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    taken = iter(shares)
    monkeypatch.setattr(Wish, "taken_by", lambda wish, plan: next(taken))
    code, out, err = call(capsys, shop, "--minutes", 11, "--name", "mine", "--yes", "--json")
    assert code == 0, err
    warnings = json.loads(out)["warnings"]
    assert len(untimed) == len(shares)
    assert Path("mine.yaml").read_text() == untimed[(kept or len(shares)) - 1]
    if kept is None:
        assert warnings == ["plan 2"]
        return
    said = (
        f"After 4 rounds the closest plan trains for {10 * shares[kept - 1]:.1f} minutes where 10"
    )
    assert warnings[0].startswith(said)
    assert warnings[1:] == [f"plan {kept}"]


@pytest.mark.parametrize("name", ["2024", "on", "1.5", "v1.2-a"])
def test_every_name_of_a_study_is_text(
    name: str, shop: Path, untimed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--budget", 1e12, "--name", name, "--yes", "--json")
    assert call(capsys, shop, *options)[0] == 0
    assert read_study(f"{name}.yaml").name == name


def test_the_place_of_another_study_is_refused_before_its_log_is_read(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.unlink()
    Path("results/mine").mkdir(parents=True)
    Path("results/mine/owner.json").write_text("{}")
    code, _, err = call(capsys, shop, "--minutes", 5, "--name", "mine")
    assert code == 2
    assert "results/mine holds an earlier study" in err
    assert "give another --name or --output" in err


@pytest.mark.parametrize(
    ("options", "name", "sized"),
    [
        ([], "demo", "5 minutes here"),
        (["--minutes", "9"], "demo", "9 minutes here"),
        (["--budget", "1e12", "--name", "mine"], "mine", "1e+12 FLOP"),
    ],
)
def test_the_demo_takes_its_log_and_every_option(
    options: list[str], name: str, sized: str, shop: Path, untimed: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shop.unlink()

    def fetch(source: str, output: Path) -> int:
        assert source == "completejourney"
        log().to_parquet(output)
        return ROWS

    monkeypatch.setattr("clue_ray.corpus.public.fetch_source", fetch)
    monkeypatch.setattr(Wish, "taken_by", lambda wish, plan: 0.9)
    code, out, err = call(capsys, "--demo", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["file"] == f"{name}.yaml"
    assert f"Sized to {sized}" in untimed[-1]
    assert read_study(f"{name}.yaml").corpus.events == ("data/completejourney.parquet",)


class Terminal(io.StringIO):
    """Standard input of a person who types these lines."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_what_is_not_sure(
    shop: Path, untimed: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = {"customerID": "c1", "department": "c2", "productTitle": "c3", "purchase_time": "c4"}
    log(**names).drop(columns="brand").to_csv(shop, index=False)
    monkeypatch.setattr(sys, "stdin", Terminal("nobody\nc1\n\nc3\n"))
    _, out, _ = call(capsys, shop, "--budget", 1e12, "--name", "asked")
    assert "Which column is the user?" in out
    assert "There is no column 'nobody'." in out
    assert "user_id: c1  # named by you" in untimed[0]
    assert "service: c2  # named by you" in untimed[0]  # Enter takes the guess
    assert sys.stdin.read() == ""  # the time was not asked for


def test_a_small_budget_has_a_leaner_design(shop: Path) -> None:
    columns = ["user_id=customerID,service=department,timestamp=purchase_time"]
    facts = survey_log(make_corpus_spec([str(shop)], columns, "{productTitle}", None))
    made = [propose(facts, total) for total in (1e16, 1e13, 1e12, 1e9)]
    assert [m.sizes[0][0] for m in made] == sorted([m.sizes[0][0] for m in made], key=SIZES.index)[
        ::-1
    ]
    assert (made[-1].sizes[0], made[-1].batch <= 64) == (SIZES[:2], True)


def test_encoders_grow_with_the_budget_and_repeat_few_users() -> None:
    """Against a plain count: steps of each run, and how often it passes over its users."""
    pairs, services = {("a", "b"): 2000}, {"a": 40_000, "b": 40_000}
    facts = LogFacts(80_000, True, pairs, services, 2500, np.full(4000, 20), 30.0)
    # Larger encoders would have too few steps.
    assert set(propose(facts, 1e11).sizes) == {SIZES[:2]}
    for total in (1e12, 1e13, 1e14):
        made = propose(facts, total)
        assert [SIZES.index(sizes[0]) for sizes in made.sizes] == sorted(
            SIZES.index(sizes[0]) for sizes in made.sizes
        )
        assert made.sizes[0] != made.sizes[-1]
        for budget, sizes in zip(made.budgets, made.sizes, strict=True):
            rungs = [SIZES.index(size) for size in sizes]
            assert rungs == list(range(rungs[0], rungs[0] + len(rungs)))
            assert len(rungs) >= 2
            events = 2 * made.batch * made.length
            tokens = events * (1 + 30 / CHARACTERS_PER_TOKEN)
            for size in sizes:
                work = Work(
                    users=2 * made.batch, events=events, events_squared=events * made.length,
                    tokens=int(tokens), tokens_squared=int(tokens**2 / events),
                    similarities=made.batch**2, bag_tokens=int(tokens),
                )  # fmt: skip
                steps = budget / train_flops(EncoderSpec(size=size), work)
                trained = 2000 * (1 - made.test - made.validation)
                assert steps * made.batch / trained <= MOST_PASSES * 1.01 or size == SIZES[0]


def test_the_widest_pool_that_the_log_allows(shop: Path) -> None:
    columns = ["user_id=customerID,service=department,timestamp=purchase_time"]
    made = propose(survey_log(make_corpus_spec([str(shop)], columns, "{productTitle}", None)), 1e13)
    smallest = min(survey_log(
        make_corpus_spec([str(shop)], columns, "{productTitle}", None)
    ).pairs.values())  # fmt: skip
    assert made.candidates <= made.test * smallest
    assert made.validation == 0.05
    assert made.batch <= USERS / 4
    assert yaml.safe_load(f"x: {made.budgets[0]:.1e}")["x"] == made.budgets[0]


@pytest.mark.parametrize("users", [200, 250, 300, 400, 1000, 5450])
def test_the_split_of_a_small_log_leaves_enough_users(users: int) -> None:
    lengths = np.full(2 * users, 9)
    pairs, services = {("a", "b"): users}, {"a": 9 * users, "b": 9 * users}
    facts = LogFacts(18 * users, True, pairs, services, users, lengths, 30.0)
    made, draw = propose(facts, 1e13), np.random.default_rng(0)
    for needed, share in ((made.candidates, made.test), (MIN_VALIDATION_USERS, made.validation)):
        assert (draw.binomial(users, share, 4000) < needed).mean() < 0.015
    assert made.batch <= users * (1 - made.test - made.validation)
