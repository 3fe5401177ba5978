"""A report is one safe, self-contained page that shows every run and stands without any law."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue_ray.errors import RunsError
from clue_ray.report.page import write_report
from clue_ray.runs import COLUMNS, Runs

HOSTILE = '<script>alert("x")</script> | `"'
STUDY = """\
name: planted
question: Is <script>alert(1)</script> a law?
corpus: {events: logs/*.parquet}
base: {train: {steps: 400}, sequence_length: 4}
axes: {encoder.size: [xxs, xs, s], sequence_length: [2, 4, 8]}
fit: {laws: [power_law, log_linear]}
"""


def planted(runs: int = 9) -> pd.DataFrame:
    """Runs of a size by length grid whose loss falls log-linearly in compute; one failed, one diverged."""
    rng = np.random.default_rng(3)
    params = {"xxs": 5_000, "xs": 20_000, "s": 90_000}
    rows = []
    for number, (size, length) in enumerate([(size, length) for size in params for length in (2, 4, 8)][:runs]):
        flops = 6.0 * params[size] * 400 * 64 * length * 24
        rows.append(
            dict.fromkeys(COLUMNS)
            | {
                "run_id": f"{number:012x}",
                "status": "done",
                "error": "",
                "study": "planted",
                "corpus_digest": "9f8e7d6c5b4a",
                "encoder_size": size,
                "non_embedding_params": params[size],
                "corpus_users": 8000,
                "sequence_length": length,
                "global_batch_size": 64,
                "learning_rate": 3e-3,
                "seed": 0,
                "steps": 400,
                "train_flops": flops,
                "loss_candidates": 256,
                "num_workers": 1,
                "loss": 6.9 - 0.15 * math.log10(flops) + rng.normal(0, 0.003),
                "recall_at_10": 0.1,
                "mrr": 0.05,
                "wall_seconds": 60.0 + number,
                "device": "cpu",
                "clue_ray_version": "0.1.0",
            }
        )
    lost = {"loss": None, "recall_at_10": None, "mrr": None, "wall_seconds": None}
    rows.append(rows[0] | lost | {"run_id": "lost0", "status": "failed", "error": HOSTILE, "sequence_length": 16})
    rows.append(rows[0] | lost | {"run_id": "lost1", "status": "diverged", "error": "nan at step 7"})
    return pd.DataFrame(rows, columns=COLUMNS)


def write_study(directory: Path, table: pd.DataFrame) -> Path:
    """Write a study directory with everything a report can use."""
    directory.mkdir(parents=True, exist_ok=True)
    Runs(table).write(directory)
    (directory / "study.yaml").write_text(STUDY)
    curves = pd.concat([table.assign(step=s, train_flops=table["train_flops"] * s / 400) for s in (200, 400)])
    curves[["run_id", "step", "train_flops", "loss"]].to_parquet(directory / "curves.parquet")
    plan = {"runs": [{"run_id": run_id, "expected_seconds": 30.0} for run_id in table["run_id"]]}
    baseline = {"name": "TF-IDF", "loss": 5.3, "recall_at_10": 0.05, "mrr": 0.04, "loss_candidates": 256}
    corpus = {"digest": "9f8e7d6c5b4a", "users": 10_000, "rejected": {"empty text": 1234}, "licence_note": "CC0"}
    for name, document in (("plan", plan), ("baseline", baseline), ("corpus", corpus)):
        (directory / f"{name}.json").write_text(json.dumps(document))
    return directory


def files_under(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_study(tmp_path_factory.mktemp("study"), planted())
    assert write_report(directory) == directory / "report" / "index.html"
    return directory


@pytest.fixture(scope="module")
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
    links = [v for _, a in Elements(html).found for k, v in a.items() if k in {"src", "href", "xlink:href"}]
    assert links and all(str(link).startswith("#") for link in links)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


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
    assert ">failed</td>" in html and ">diverged</td>" in html and "nan at step 7" in html
    assert "11 runs: 9 done, 1 failed, 1 diverged." in html
    assert "nan at step 7" in (study / "report" / "report.md").read_text(encoding="utf-8")


def test_points_of_the_headline_name_their_runs(html: str) -> None:
    assert html.count("<title>size xs, length 4, 8,000 users, batch 64: loss 5.") == 2  # wide and narrow


def test_answer_law_table_and_comparison_are_there(html: str, study: Path) -> None:
    fits = json.loads((study / "fits.json").read_text())
    assert set(fits["fits"]) == {"power_law", "log_linear"}
    assert "(preferred)" in html and "The backtest prefers the" in html
    assert "log-linear in compute rather than a power law" in html
    assert "TF-IDF" in html and "chance among 256" in html and "5.545" in html
    assert "below chance" in html and "empty text: 1,234" in html and "CC0" in html
    assert "The plan expected 4.5 min of training for the 9 runs that finished" in html


def test_laws_are_named_in_words_and_errors_are_in_nats(html: str, study: Path) -> None:
    assert "log-linear law" in html and "backtest error, nats" in html
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
    assert "not identified" in html and "5.00]" not in html and "inf nats" not in html
    assert html.count("<li>") <= 6
    row = json.loads((tmp_path / "fits.json").read_text())["laws"][0]
    ends = f"{row['loss_at_10x_low']:.2f} to {row['loss_at_10x_high']:.2f} nats"
    assert f"At 3.3e13 FLOP the interval is {ends}" in html  # also where the axis cuts the band


def test_corpus_is_described(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=2))
    summary = {"path": "logs/a.parquet", "digest": "9f8e", "services": ["shop", "search"], "users": 2469}
    summary |= {"users_in_two_services": 2466, "training_users": 1972, "held_out_users": 494, "events": 1_400_000}
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
    assert "TF-IDF: 5.30</text>" in html and ">TF-IDF</td>" in html


def test_second_report_has_the_same_bytes(study: Path) -> None:
    before = files_under(study)
    write_report(study)
    assert files_under(study) == before
    assert not [name for name in before if name.endswith(".tmp")]


def test_markdown_links_and_figures_exist(study: Path) -> None:
    markdown = (study / "report" / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]*(?:\[[^\]]*\][^\]]*)*\]\(([^)]+)\)", markdown)
    assert len(links) == 5  # headline, two axes, heat table, curves
    for link in links:
        assert (study / "report" / link).stat().st_size > 1000
        assert (study / "report" / link).with_suffix(".svg").is_file()


def test_svg_text_is_text_without_a_date(study: Path) -> None:
    svg = (study / "report" / "figures" / "loss-against-compute.svg").read_text(encoding="utf-8")
    assert "training compute, FLOP</text>" in svg and "dc:date" not in svg


def test_report_without_any_fit_says_why_and_shows_all_runs(tmp_path: Path) -> None:
    table = planted(runs=2)
    Runs(table).write(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There is no answer yet. No law could be fitted" in html and "Which law" not in html
    assert all(f">{run_id}</td>" in html for run_id in table["run_id"])
    assert (tmp_path / "report" / "figures" / "loss-against-compute.svg").is_file()
    assert json.loads((tmp_path / "fits.json").read_text())["error"]


def test_report_of_failures_only_still_lists_them(tmp_path: Path) -> None:
    Runs(planted().tail(2)).write(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 runs: 1 failed, 1 diverged." in html and "lost0" in html
    assert not (tmp_path / "report" / "figures").exists()


def test_report_of_a_table_made_elsewhere_needs_few_columns(tmp_path: Path) -> None:
    table = planted(9).head(9)[["train_flops", "loss", "loss_candidates"]]
    table.to_parquet(tmp_path / "runs.parquet")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Which law" in html and ">row-8</td>" in html


def test_unusable_side_files_become_warnings(tmp_path: Path) -> None:
    write_study(tmp_path, planted(runs=2))
    (tmp_path / "plan.json").write_text("{")
    (tmp_path / "study.yaml").write_text("name: [")
    (tmp_path / "baseline.json").write_text(json.dumps({"name": "b", "loss": 3.0, "loss_candidates": 64}))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "plan.json cannot be read" in html and "is not valid YAML" in html
    assert "The baseline was scored at 64 candidates and the runs at 256" in html


def test_report_without_a_table_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="No runs table"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
