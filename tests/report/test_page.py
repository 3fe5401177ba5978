"""A report is one safe, self-contained page that shows every run and stands without any law."""

import base64
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import RunsError
from clue_ray.report.page import write_report
from clue_ray.report.read import read_directory, sizes_by_name
from clue_ray.report.sections import answer, evidence
from clue_ray.runs import Runs, read_current_runs
from tests.report.planted import planted, write_study


def files_under(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="session")
def html(study: Path) -> str:
    return (study / "report" / "index.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects tags with attributes, to look for what a page loads and runs."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_loads_nothing_from_anywhere(html: str) -> None:
    links = [
        v
        for _, a in Elements(html).found
        for k, v in a.items()
        if k in {"src", "href", "xlink:href"}
    ]
    assert links
    assert all(
        str(link).startswith(("#", "data:text/csv;", "data:application/json;")) for link in links
    )
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    elements = Elements(html).found
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', html)
    assert set(targets) <= set(ids)


def test_text_of_the_user_is_escaped(html: str, study: Path) -> None:
    assert [tag for tag, _ in Elements(html).found].count("script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html  # the question
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html  # the error
    markdown = (study / "report" / "report.md").read_text(encoding="utf-8")
    outside_code = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not any("<script>" in line for line in outside_code)


def test_every_run_is_listed_with_status_and_error_in_words(html: str, study: Path) -> None:
    for run_id in planted()["run_id"]:
        assert f">{run_id}</td>" in html
    assert ">failed</td>" in html
    assert ">diverged</td>" in html
    assert "nan at step 7" in html
    assert "11 runs: 9 done, 1 failed, 1 diverged." in html
    assert "nan at step 7" in (study / "report" / "report.md").read_text(encoding="utf-8")


def test_points_of_the_headline_name_their_runs(html: str) -> None:
    titles = re.findall(
        r'data-run="000000000004"><title>size xs, length 4, users 8,000, batch 64: loss 5\.', html
    )
    assert (
        len(titles) == 2 * 3 + 1
    )  # headline, curves and parallel coordinates, wide and narrow; cost


def test_answer_law_table_and_comparison_are_there(html: str, study: Path) -> None:
    fits = json.loads((study / "fits.json").read_text())
    assert set(fits["fits"]) == {"power_law", "log_linear"}
    assert "(preferred)" in html
    assert "is preferred: it has the lowest backtest error" in html
    assert "log-linear in compute rather than a power law" in html
    assert "TF-IDF" in html
    assert "chance among 256" in html
    assert "5.545" in html
    assert "below chance" in html
    assert "empty text: 1,234" in html
    assert "CC0" in html
    assert "The plan expected 4.5 min of training for the 9 runs that finished" in html


def test_laws_are_named_in_words_and_errors_are_in_nats(html: str, study: Path) -> None:
    assert "log-linear law" in html
    assert "backtest error, nats" in html
    body = html[html.index("</header>") : html.index("Every run")]
    assert "log_linear" not in re.sub(r'data-order="[^"]*"|\bid="[^"]*"', "", body)
    best = json.loads((study / "fits.json").read_text())["laws"][0]["backtest_error_nats"]
    assert f"{best:.2g} nats on average" in html


def test_unidentified_exponent_is_called_so(tmp_path: Path) -> None:
    table = planted().head(6)
    table["train_flops"] = [5.7e10, 1.0e11, 1.7e11, 2.7e11, 9.0e11, 3.3e12]
    table["loss"] = [5.470, 5.438, 5.406, 5.274, 5.267, 5.225]
    Runs(table).write(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "not identified" in html
    assert "inf nats" not in html
    assert html.count("<li>") <= 6
    low, high = json.loads((tmp_path / "fits.json").read_text())["forecast"]["intervals"]["0.8"]
    ends = f"{low:.2f} to {high:.2f} nats"
    assert f"At 3.3e13 FLOP the interval is {ends}" in html  # also where the axis cuts the band


def test_corpus_is_described(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=2))
    summary = {
        "path": "logs/a.parquet",
        "digest": "9f8e",
        "services": ["shop", "search"],
        "users": 2469,
    }
    summary |= {
        "users_in_two_services": 2466,
        "training_users": 1972,
        "held_out_users": 494,
        "events": 1_400_000,
    }
    summary |= {
        "items": 30_000,
        "tokens": 17_008_983,
        "rejected_rows": 1234,
        "rejected": {"empty text": 1200, "late": 34},
    }
    (tmp_path / "corpus.json").write_text(json.dumps(summary))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    for shown in ("logs/a.parquet", "shop, search", "2,466", "1,972", "494", "30,000"):
        assert f">{shown}<" in html
    assert "1,234 (empty text: 1,200, late: 34)" in html


def test_baseline_is_in_the_plot_and_in_the_table(html: str) -> None:
    assert "TF-IDF: 5.30</text>" in html
    assert ">TF-IDF</td>" in html


def test_second_report_has_the_same_bytes(study: Path) -> None:
    before = files_under(study)
    write_report(study)
    assert files_under(study) == before
    assert not [name for name in before if name.endswith(".tmp")]


def test_markdown_states_the_cost_once(study: Path) -> None:
    markdown = (study / "report" / "report.md").read_text(encoding="utf-8")
    assert markdown.count("The plan expected") == 1


def test_the_caption_mentions_an_arrow_only_where_one_is_drawn(tmp_path: Path) -> None:
    """Chance among 256 is 5.545 and the best loss about 5.2: the axis ends at about 5.63 nats."""
    table, drawn = planted(runs=3), {}
    for loss in (5.605, 5.9):
        table.loc[0, "loss"] = loss
        files = read_directory(write_study(tmp_path, table))
        picture = answer.headline(files, None)
        assert picture is not None
        drawn[loss] = "clipped-" in picture.svg
        assert (answer.CLIPPED in picture.caption) == drawn[loss]
    assert drawn == {5.605: False, 5.9: True}


def test_markdown_links_and_figures_exist(study: Path) -> None:
    markdown = (study / "report" / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]*(?:\[[^\]]*\][^\]]*)*\]\(([^)]+)\)", markdown)
    names = {Path(link).stem for link in links}
    assert names == {
        *(
            "loss-against-compute",
            "doubling",
            "axis-non-embedding-params",
            "axis-sequence-length",
            "heat-table",
        ),
        *("backtest", "alternatives", "cost", "learning-curves", "parallel-coordinates"),
    }
    for link in links:
        assert (study / "report" / link).stat().st_size > 1000
        assert (study / "report" / link).with_suffix(".svg").is_file()


def test_svg_text_is_text_without_a_date(study: Path) -> None:
    svg = (study / "report" / "figures" / "loss-against-compute.svg").read_text(encoding="utf-8")
    assert "training compute, FLOP</text>" in svg
    assert "dc:date" not in svg


def test_report_without_any_fit_gives_the_reason_and_shows_all_runs(tmp_path: Path) -> None:
    table = planted(runs=2)
    Runs(table).write(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There is no answer yet. No law could be fitted" in html
    assert "Which law" not in html
    assert all(f">{run_id}</td>" in html for run_id in table["run_id"])
    assert (tmp_path / "report" / "figures" / "loss-against-compute.svg").is_file()
    assert json.loads((tmp_path / "fits.json").read_text())["error"]


def test_report_of_failures_only_still_lists_them(tmp_path: Path) -> None:
    Runs(planted().tail(2)).write(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 runs: 1 failed, 1 diverged." in html
    assert "lost0" in html
    assert not (tmp_path / "report" / "figures").exists()


@pytest.mark.slow
def test_report_of_a_table_made_elsewhere_needs_few_columns(tmp_path: Path) -> None:
    table = planted(9).head(9)[["train_flops", "loss", "loss_candidates"]]
    table.to_parquet(tmp_path / "runs.parquet")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Which law" in html
    assert ">row-8</td>" in html


def test_unusable_side_files_become_warnings(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=2))
    (tmp_path / "plan.json").write_text("{")
    (tmp_path / "study.yaml").write_text("name: [")
    baseline = {"name": "b", "loss": 3.0, "loss_candidates": 64}
    (tmp_path / "baselines.json").write_text(json.dumps({"baselines": [baseline]}))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "plan.json cannot be read" in html
    assert "is not valid YAML" in html
    assert "The baseline b was scored at 64 candidates and the runs at 256" in html


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        (
            "baselines",
            {"baselines": [{"name": "b", "loss": 5.0}]},
            "baseline b has no number as loss_candidates",
        ),
        (
            "baselines",
            {"baselines": [{"name": "b", "loss": None, "loss_candidates": 256}]},
            "has no number as loss,",
        ),
        ("baselines", {"baselines": 3}, "baselines is not a list of mappings"),
        (
            "corpus",
            {"bayes_loss": 5.0},
            "bayes_loss is not a mapping of sequence lengths to losses",
        ),
        (
            "corpus",
            {"users": [3], "rejected": {"late": "many"}},
            "users, rejected cannot be used as written",
        ),
        ("plan", {"runs": None}, "runs is not a list of mappings"),
        (
            "plan",
            {"runs": [{"run_id": "0", "expected_seconds": "x"}, {}]},
            "expected_seconds is not a positive number",
        ),
    ],
)
def test_a_part_of_a_side_file_that_cannot_be_used_is_left_out_in_one_sentence(
    tmp_path: Path, name: str, document: dict[str, object], said: str
) -> None:
    write_study(tmp_path, planted(runs=2))
    (tmp_path / f"{name}.json").write_text(json.dumps(document))
    files = read_directory(tmp_path)
    assert len([warning for warning in files.warnings if said in warning]) == 1
    evidence.provenance(files)
    read_current_runs(tmp_path, skip_damaged=True)


def test_report_without_a_table_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="No runs table"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_to_double_ranks_the_axes_with_intervals_and_cost(html: str) -> None:
    words = re.search(
        r"Doubling ([a-z -]+) alone, from \S+ to \S+, is predicted to lower held-out loss by (.*?) "
        r"nats",
        html,
    )
    assert words
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", words[2])
    assert (
        "nats for 2.0 times the compute" in html
    )  # the planted compute is proportional to either axis
    assert "These are extrapolations: at the other settings of the best run" in html


def test_downloads_are_the_files_themselves(html: str, study: Path) -> None:
    found = {a["download"]: a["href"] for _, a in Elements(html).found if "download" in a}
    inside = {name: base64.b64decode(str(link).partition(",")[2]) for name, link in found.items()}
    assert inside == {name: (study / name).read_bytes() for name in ("fits.json", "runs.csv")}


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=3))
    figures = tmp_path / "report" / "figures"
    figures.mkdir(parents=True)
    for name in ("axis-of-yore.svg", "axis-of-yore.png", "mine.txt"):
        (figures / name).write_text("old")
    write_report(tmp_path)
    left = {path.name for path in figures.iterdir()}
    assert "mine.txt" in left
    assert "axis-of-yore.svg" not in left
    assert "axis-of-yore.png" not in left
    Runs(planted().tail(2)).write(tmp_path)
    (tmp_path / "curves.parquet").unlink()
    write_report(tmp_path)
    assert {path.name for path in figures.iterdir()} == {"mine.txt"}


@pytest.mark.slow
def test_floor_of_a_planted_log_is_drawn_if_it_holds_for_these_candidates(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=3))
    (tmp_path / "corpus.json").write_text(
        json.dumps({"bayes_loss": {"4": 5.0, "8": 4.9}, "bayes_loss_candidates": 256})
    )
    assert "lowest possible loss (Bayes): 4.90" in write_report(tmp_path).read_text(
        encoding="utf-8"
    )
    (tmp_path / "corpus.json").write_text(
        json.dumps({"bayes_loss": {"8": 4.9}, "bayes_loss_candidates": 64})
    )
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "(Bayes)" not in html
    assert "computed for 64 candidates and the runs were scored at 256" in html


def test_a_study_with_a_rising_loss_states_first_that_there_is_no_answer(tmp_path: Path) -> None:
    table = planted()
    done = table["loss"].notna()
    table.loc[done, "loss"] = table.loc[done, "loss"].to_numpy()[::-1]
    html = write_report(write_study(tmp_path, table)).read_text(encoding="utf-8")
    answer = html[html.index('<div class="answer">') :]
    assert re.match(r'<div class="answer">\s*<p>There is no answer yet for more compute', answer)
    assert "What to double next" not in html
    assert "At ten times the" not in html


@pytest.mark.slow
def test_a_report_of_five_hundred_runs_stays_below_six_megabytes(tmp_path: Path) -> None:
    table = planted(runs=1)
    base = table.iloc[0].to_dict()
    grid = itertools.product(
        range(5), (4, 8, 16, 32, 64), (32, 64, 128, 256), (1000, 2000, 4000, 8000, 16000)
    )
    rng, rows = np.random.default_rng(0), []
    for number, (rung, length, batch, users) in enumerate(grid):
        params = 5_000 * 4**rung
        loss = 5.5 / (
            1
            + 4 / (1.2 + 30 * params**-0.3 + 4 * length**-0.5 + 8 * batch**-0.6 + 60 * users**-0.5)
        )
        settings = {
            "encoder_size": "abcde"[rung],
            "non_embedding_params": params,
            "sequence_length": length,
        }
        settings |= {"global_batch_size": batch, "corpus_users": users, "run_id": f"{number:012x}"}
        flops = 6.0 * params * 400 * batch * length * 24
        rows.append(
            base | settings | {"train_flops": flops, "loss": loss * rng.lognormal(0, 0.004)}
        )
    write_study(tmp_path, pd.concat([pd.DataFrame(rows, columns=table.columns), table.tail(2)]))
    assert write_report(tmp_path).stat().st_size < 6e6


def test_encoders_spelled_out_are_named_by_their_shape():
    shape = {"width": [8, 8, 24, 16], "item_layers": 1, "service_layers": 1, "heads": [1, 2, 1, 2]}
    table = pd.DataFrame({"encoder_size": ["custom", "custom", "custom", "xs"], **shape})
    assert sizes_by_name(table).tolist() == ["w8 heads 1", "w8 heads 2", "w24 heads 1", "xs"]
    assert sizes_by_name(table.assign(heads=1)).tolist() == ["w8", "w8", "w24", "xs"]
