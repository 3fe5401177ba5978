"""The gain from each part of the encoder: pairs, law, words, table and figure, on planted runs."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from clue_ray.report.figures.headline import loss_against_compute
from clue_ray.report.figures.parts import gain_against_compute
from clue_ray.report.figures.style import distinct
from clue_ray.report.page import write_report
from clue_ray.report.read import StudyFiles, read_directory
from clue_ray.report.sections.parts import law_of_gain, pair_runs, parts
from clue_ray.runs import WHOLE, Runs
from clue_ray.scaling.fitting.fit import fit_law

SIZES = {"xxs": 7e3, "xs": 2e4, "s": 5e4}
LENGTHS = (16, 40, 100)
BAG = {16: 5.30, 40: 5.20, 100: 5.10}


def run(parts: str, size: str, length: int, loss: float, seed: int = 0, **more) -> dict:
    flops = 2e7 * SIZES[size] * length * (0.01 if parts == "bag" else 1)
    return {
        "run_id": f"{parts}-{size}-{length}-{seed}", "status": "done", "encoder_parts": parts,
        "encoder_size": size, "non_embedding_params": SIZES[size], "sequence_length": length,
        "corpus_users": 1900, "global_batch_size": 256, "learning_rate": 0.003, "steps": 200,
        "seed": seed, "train_flops": flops, "loss": loss, "loss_candidates": 256,
    } | more  # fmt: skip


def planted(exponent: float = 0.3, noise: float = 0.0) -> list[dict]:
    """Three sizes by three lengths, ahead of the bag by .02 (C / 1e12)^exponent."""
    rng = np.random.default_rng(1)
    rows = [run("bag", "xs", length, loss) for length, loss in BAG.items()]
    for size in SIZES:
        for length in LENGTHS:
            gain = 0.02 * (2e7 * SIZES[size] * length / 1e12) ** exponent
            rows.append(
                run(WHOLE, size, length, BAG[length] - gain * math.exp(rng.normal(0, noise)))
            )
    return rows


def study(folder: Path, rows: list[dict] | pd.DataFrame) -> StudyFiles:
    Runs(pd.DataFrame(rows)).write(folder)
    return read_directory(folder)


def words(files: StudyFiles) -> str:
    section = parts(files)
    assert section is not None
    return " ".join(section.words)


def test_pairs_agree_in_the_training_and_average_over_seeds(tmp_path):
    rows = [
        run("bag", "xs", 16, 5.3), run("bag", "xs", 16, 5.2, seed=1), run("bag", "xs", 40, 5.1),
        run(WHOLE, "s", 16, 5.0), run(WHOLE, "s", 16, 4.9, seed=1), run(WHOLE, "xxs", 16, 5.35),
        run(WHOLE, "s", 16, 4.0, steps=400), run(WHOLE, "s", 100, 4.0),
        run(WHOLE, "s", 16, 4.0, learning_rate=0.01), run(WHOLE, "s", 16, 4.0, corpus_users=500),
        run(WHOLE, "s", 16, 4.0, global_batch_size=64), run(WHOLE, "s", 40, 4.0, status="failed"),
    ]  # fmt: skip
    pairs = pair_runs(study(tmp_path, rows), "bag")
    assert list(pairs["encoder_size"]) == ["xxs", "s"]
    assert list(pairs["gain"]) == pytest.approx([-0.1, 0.3])
    assert list(pairs["alone"]) == pytest.approx([5.25, 5.25])


def test_the_law_of_the_gain_recovers_a_planted_exponent(tmp_path):
    files = study(tmp_path, planted(exponent=0.3))
    line = law_of_gain(pair_runs(files, "bag"))
    assert line is not None
    assert line.exponent == pytest.approx(0.3)
    assert line.coefficient * 1e12**line.exponent == pytest.approx(0.02)
    assert "The gain grows as compute^b, b = 0.300 [0.300, 0.300]." in words(files)


def test_the_interval_of_the_law_covers_its_exponent_and_says_when_it_decides_nothing(tmp_path):
    low, high = law_of_gain(pair_runs(study(tmp_path, planted(0.3, noise=0.3)), "bag")).interval(9)
    assert low < 0.3 < high
    assert 0.1 < high - low < 1
    assert "so these runs do not decide whether it grows" in words(study(tmp_path, planted(0, 0.3)))


@pytest.mark.parametrize(
    "left_out",
    [
        lambda pairs: pairs.head(4),  # too few
        lambda pairs: pairs.assign(train_flops=np.geomspace(1e12, 9e12, 9)),  # under a decade
        lambda pairs: pairs.assign(gain=[-0.01] + [0.1] * 8),
    ],
)
def test_no_law_without_enough_positive_gains_over_a_decade(tmp_path, left_out):
    pairs = pair_runs(study(tmp_path, planted()), "bag")
    assert len(pairs) == 9
    assert law_of_gain(left_out(pairs)) is None


def test_the_words_count_gains_and_say_why_there_is_no_law(tmp_path):
    rows = [run("bag", "xs", 16, 5.3), run("bag", "xs", 40, 5.1)]
    rows += [run(WHOLE, "s", 16, 5.2, seed=0), run(WHOLE, "s", 16, 5.22, seed=1)]
    files = study(tmp_path, [*rows, run(WHOLE, "xxs", 16, 5.35)])
    said = words(files)
    assert "ahead in 1 of 2 comparisons." in said
    assert "−0.050 to +0.090 nats, the largest at size s and 16 events" in said  # noqa: RUF001
    assert "Gains below 0.028 nats are within the noise" in said
    assert "A law of the gain needs 5 comparisons over 1 decade of compute" in said
    assert "there are 2 over 0.9 decades, 1 of them positive." in said
    assert "From 16 to 40 events, the loss of the bag alone goes from 5.300 to 5.100 nats." in said


def test_what_the_bag_adds_is_compared_at_equal_size(tmp_path):
    rows = [run(WHOLE, "s", 16, 5.0), run(WHOLE, "xs", 16, 5.1), run("transformer", "s", 16, 5.2)]
    files = study(tmp_path, rows)
    section = parts(files)
    assert section.title == "What does the bag of tokens add to the transformer?"
    assert section.words == (
        "Against CLUE's own model, which has no bag, the gain of the whole encoder at equal size "
        "and training is +0.20 nats in 1 comparison.",
    )
    assert not section.pictures
    assert not section.tables


def test_runs_that_were_trained_otherwise_are_not_compared(tmp_path):
    files = study(tmp_path, [run("bag", "xs", 16, 5.3, steps=100), run(WHOLE, "s", 16, 5.0)])
    assert "No run of the whole encoder agrees in sequence length" in words(files)
    files = study(tmp_path, [run("transformer", "xs", 16, 5.3), run(WHOLE, "s", 16, 5.0)])
    assert "agrees in encoder size, sequence length" in words(files)
    assert parts(study(tmp_path, [run(WHOLE, "s", 16, 5.0)])) is None


def test_the_figure_and_the_table_hold_every_gain(tmp_path):
    files = study(tmp_path, planted(noise=0.1))
    pairs = pair_runs(files, "bag")
    ax = gain_against_compute(pairs, Figure().add_subplot(), law_of_gain(pairs))
    drawn = [line for line in ax.lines if str(line.get_gid()).startswith("gain-")]
    assert [float(line.get_ydata()[0]) for line in drawn] == list(pairs["gain"])
    assert len({line.get_color() for line in drawn}) == len(LENGTHS)
    assert len({line.get_marker() for line in drawn}) == len(SIZES)
    table = parts(files).tables[0]
    assert len(table.rows) == 9
    assert table.heads[:3] == ("sequence length", "encoder size", "training compute")


def test_the_headline_shows_runs_of_one_part_as_open_marks(tmp_path):
    files = study(tmp_path, planted())
    ax = loss_against_compute(files.done, Figure().add_subplot(), ablations=files.ablations)
    open_marks = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert {line.get_gid() for line in open_marks} == {f"run-bag-xs-{n}-0" for n in LENGTHS}
    assert ax.get_xlim()[0] < files.ablations["train_flops"].min()
    assert "one part of the encoder" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_the_page_and_its_markdown_have_the_section(tmp_path):
    rows = pd.DataFrame(planted(noise=0.05))
    study(tmp_path, rows)
    curves = pd.concat([rows.assign(step=100, train_flops=rows["train_flops"] / 2), rows])
    curves[["run_id", "step", "train_flops", "loss"]].to_parquet(tmp_path / "curves.parquet")
    page = write_report(tmp_path).read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    for written in (page, text):
        assert "What does the transformer add to the bag of tokens?" in written
    assert page.index('id="learned"') < page.index('id="parts"') < page.index('id="axes"')
    assert "length 16, users 1,900, batch 256, bag alone" in page
    assert "Runs of one part of the encoder are left out." in page
    assert "12 of 12 runs finished" in page


def test_a_size_keeps_its_place_where_the_bag_alone_has_its_name():
    table = pd.DataFrame([run(WHOLE, size, 16, 5.0) for size in SIZES])
    bag = run("bag", "xs", 16, 5.3, non_embedding_params=2)
    assert distinct(pd.concat([pd.DataFrame([bag]), table]), "encoder_size") == list(SIZES)


def test_laws_are_fitted_to_the_whole_encoder_and_say_what_they_leave_out():
    fit = fit_law("power_law", pd.DataFrame(planted()), x="train_flops", y="loss")
    assert fit.num_runs == 9
    assert "3 runs of one part of the encoder were left out." in fit.warnings
    assert not any("not done" in warning for warning in fit.warnings)
