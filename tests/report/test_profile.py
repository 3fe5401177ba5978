"""The profile of a corpus is one safe, self-contained page with its tables."""

import json
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clue_ray.errors import CorpusError
from clue_ray.report.figures.profile import draw_fit, draw_lengths, draw_overlap, draw_users
from clue_ray.report.profile import profile_headline, profile_tables, write_profile
from tests.report.test_page import Elements

HOSTILE = '<script>alert("x")</script>'


def a_profile(
    services: tuple[str, ...] = ("search", "shop", "maps"), **changes: Any
) -> dict[str, Any]:
    """A profile of 1,000 users: the first service has 900 of them, each next one 10 fewer, half of
    it shared."""
    users = {name: 900 - 10 * place for place, name in enumerate(services)}
    overlap = {
        row: {
            column: users[row] if row == column else min(users[row], users[column]) // 2
            for column in services
        }
        for row in services
    }
    spread = {"p10": 1, "p50": 5, "p90": 40, "p99": 300, "p100": 1200}
    profile = {
        "users": 1000,
        "users_by_split": {"train": 800, "validation": 0, "test": 200},
        "users_by_services": {"1": 100, "3": 900},
        "events": 50_000 * len(services),
        "events_after_cut": 0,
        "duplicate_rows": 70,
        "distinct_items": 4321,
        "tokens": 1_234_567,
        "tokens_per_item": {"p10": 2, "p50": 7, "p90": 12, "p99": 19, "p100": 25},
        "tokens_per_event": {"p10": 2, "p50": 6, "p90": 11, "p99": 18, "p100": 25},
        "events_cut_at_max_item_tokens": 0.00042,
        "events_per_user_and_service": spread,
        "fits_sequence_length": {
            "4": {"events": 0.11, "histories": 0.45},
            "8": {"events": 0.23, "histories": 0.998},
        },
        "users_in_service": users,
        "overlap": overlap,
        "time": [1483271606.0, 1514779280.0],
        "time_reads_as_order": False,
        "files": 2,
        "events_in_service": dict.fromkeys(services, 50_000),
        "rejected_rows": 0,
        "rejected": {},
        "timestamps_read_as": {"milliseconds": 150_000},
        "in_order_of_appearance": [],
        "values_not_utf8": 3,
        "of_a_later_version": {"anything": 1},
    }
    return profile | changes


def page_of(folder: Path, profile: dict[str, Any]) -> str:
    (folder / "profile.json").write_text(json.dumps(profile))
    assert write_profile(folder) == folder / "profile.html"
    return (folder / "profile.html").read_text(encoding="utf-8")


def rows_of(profile: dict[str, Any], title: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    return {
        row[0].text: [cell.text for cell in row[1:]] for row in profile_tables(profile)[title].rows
    }


def many_services() -> dict[str, Any]:
    """A profile of 15 services, some with names to trip over, with rejected and later rows."""
    services = (HOSTILE, "$\\frac{shop}$", "검색", *(f"service-{number}" for number in range(12)))
    return a_profile(
        services,
        events_after_cut=12,
        rejected={"empty text": 30, "no user_id": 4},
        rejected_rows=34,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also where no font of matplotlib's has a name's letters
        page_of(folder, many_services())
    return folder


@pytest.fixture(scope="module")
def html(corpus: Path) -> str:
    return (corpus / "profile.html").read_text(encoding="utf-8")


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def test_page_is_self_contained_and_safe(html: str) -> None:
    elements = Elements(html).found
    links = [v for _, a in elements for k, v in a.items() if k in {"src", "href", "xlink:href"}]
    assert links
    assert all(str(link).startswith("#") for link in links)
    assert "@import" not in html
    assert [tag for tag, _ in elements].count("script") == 1  # the page's own
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_page_says_what_the_tables_say(html: str) -> None:
    shown = unescape(html)
    assert profile_headline(many_services()) in shown
    for title, table in profile_tables(many_services()).items():
        assert f"<h2>{title}</h2>" in shown
        assert table.note in shown
        assert all(f">{cell.text}</td>" in shown for row in table.rows for cell in row)


def test_page_written_again_has_the_same_bytes(corpus: Path, html: str) -> None:
    assert page_of(corpus, many_services()) == html
    assert {path.name for path in corpus.iterdir()} == {"profile.json", "profile.html"}


def test_headline_counts_and_dates() -> None:
    assert profile_headline(a_profile()) == (
        "1,000 users of 3 services with 150,000 events, from 2017-01-01 to 2018-01-01: "
        "4,321 distinct items, 1,234,567 tokens."
    )
    assert "events, in order of appearance:" in profile_headline(a_profile(time=None))
    assert "events, on 1999-12-31:" in profile_headline(a_profile(time=[946684790.5, 946684799.5]))
    assert "timestamps from 0 to 125, which are an order rather than dates" in profile_headline(
        a_profile(time=[0.0, 125.0], time_reads_as_order=True)
    )
    assert ": 1 distinct item, " in profile_headline(a_profile(distinct_items=1))


def test_rejected_rows_are_a_share_of_all_rows() -> None:
    dirty = a_profile(rejected={"empty text": 37_500, "no user_id": 12_500}, rejected_rows=50_000)
    assert rows_of(dirty, "Rejected rows") == {
        "empty text": ["37,500", "19%"],
        "no user_id": ["12,500", "6.2%"],
    }
    assert (
        "50,000 of 200,000 rows (25%) were rejected" in profile_tables(dirty)["Rejected rows"].note
    )
    assert "No row was rejected" not in profile_tables(dirty)["How the log was read"].note


def test_clean_log_says_so() -> None:
    tables = profile_tables(a_profile())
    assert "Rejected rows" not in tables
    assert tables["How the log was read"].note == "No row was rejected."


def test_how_the_log_was_read() -> None:
    found = rows_of(a_profile(), "How the log was read")
    assert found["duplicate rows: same user, service, time and text (kept)"] == ["70"]
    assert found["values that were not UTF-8"] == ["3"]
    assert found["timestamps read as milliseconds since 1970"] == ["150,000"]
    dropped = rows_of(a_profile(events=149_930), "How the log was read")
    assert "duplicate rows: same user, service, time and text (dropped)" in dropped
    later = rows_of(a_profile(events=149_990, events_after_cut=10), "How the log was read")
    assert "duplicate rows: same user, service, time and text (kept)" in later


def test_later_events_and_missing_times_are_noted() -> None:
    def note(**changes: Any) -> str:
        return profile_tables(a_profile(**changes))["How the log was read"].note

    assert "1,234 events lie after the cut in time and are kept separately." in note(
        events_after_cut=1234
    )
    assert "1 event lies after the cut in time and is kept separately." in note(events_after_cut=1)
    assert "in order of appearance: a.csv; b.csv." in note(
        in_order_of_appearance=["a.csv", "b.csv"]
    )
    assert "rows of omitted services" in note(timestamps_read_as={"seconds": 150_001})


def test_services_are_listed_by_users_and_only_all_is_100_percent() -> None:
    services = rows_of(a_profile(("b", "a"), users=901), "Services")
    assert services == {"b": ["900", ">99%", "50,000", "50%"], "a": ["890", "99%", "50,000", "50%"]}
    assert rows_of(a_profile(), "Fit by sequence length")["8"] == ["23%", ">99%"]
    assert (
        "900 of 1,000 users (90%) have two or more services"
        in profile_tables(a_profile())["Users by number of services"].note
    )


def test_lengths_and_cut_texts() -> None:
    assert rows_of(a_profile(), "Lengths")["tokens of an event"] == ["2", "6", "11", "18", "25"]
    assert profile_tables(a_profile())["Lengths"].note.startswith("0.042% of events")


def test_overlap_of_many_services_shows_the_largest(html: str) -> None:
    assert "Shown are the 12 services with the most users, of 15." in html
    assert "<title>service-8: " in html
    assert "<title>service-9: " not in html
    assert ">service-9</td>" in html  # the table holds all
    assert (
        html.count("<title>검색: 440 of 880 users also in $\\frac{shop}$</title>") == 2
    )  # wide and narrow


def test_one_service_has_no_overlap(tmp_path: Path) -> None:
    assert "Overlap of services" not in page_of(tmp_path, a_profile(("only",)))


def test_fit_is_drawn_in_per_cent_over_all_lengths(ax: Axes) -> None:
    fits = a_profile()["fits_sequence_length"]
    events, histories = draw_fit(fits, ax).lines[:2]
    assert np.array_equal(events.get_xydata(), [(4, 11), (8, 23)])
    assert np.array_equal(histories.get_ydata(), [45, 99.8])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4", "8"]


def test_lengths_are_drawn_with_their_numbers(ax: Axes) -> None:
    draw_lengths({"p10": 2, "p50": 2, "p90": 2, "p99": 2, "p100": 2}, ax)
    assert [words.get_text() for words in ax.texts] == ["2"] * 5
    assert ax.get_xlim() == (1, 10)


def test_bars_leave_room_for_numbers_without_users(ax: Axes) -> None:
    draw_users({1: 5, 4: 7}, ax)
    assert [bar.get_height() for bar in ax.patches] == [5, 0, 0, 7]
    assert [words.get_text() for words in ax.texts] == ["5", "0", "0", "7"]


def test_overlap_is_a_share_of_the_row(ax: Axes) -> None:
    draw_overlap(["a", "b"], [[200, 50], [50, 50]], ax)
    assert [words.get_text() for words in ax.texts] == ["200", "25%\n50", "100%\n50", "50"]


def test_cells_of_many_services_hold_whole_per_cents(ax: Axes) -> None:
    empty, first = [0] * 7, [1000, 0, 4, 15, 994, 999, 1000]
    draw_overlap([f"service {number}" for number in range(7)], [first, *[empty] * 6], ax)
    assert [words.get_text() for words in ax.texts[:7]] == ["", "0", "<1", "2", ">99", ">99", "100"]
    assert {words.get_text() for words in ax.texts[7:]} == {
        "",
        "0",
    }  # no users, no division by zero


def test_folder_without_a_profile_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read as a profile"):
        write_profile(tmp_path)
    (tmp_path / "profile.json").write_text("{")
    with pytest.raises(CorpusError, match=r"prepare the corpus again\.$"):
        write_profile(tmp_path)
