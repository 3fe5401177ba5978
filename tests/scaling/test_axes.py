"""Lines of an axis: runs that differ in it alone, at equal steps or at equal examples."""

import itertools

import pandas as pd

from clue_ray.scaling.answering.axes import axis_effects


def table(rows):
    frame = pd.DataFrame(rows)
    return frame.assign(
        run_id=[f"r{row}" for row in range(len(frame))],
        loss=5.0 - 0.01 * frame.index,
        train_flops=frame["steps"] * frame["non_embedding_params"],
        users_seen=frame["steps"] * frame["global_batch_size"],
        learning_rate=0.003,
        seed=0,
    )


def lines(frame):
    return {effect.column: effect.lines for effect in axis_effects(frame)}


def test_training_length_is_an_axis_of_its_own():
    grid = itertools.product([1000, 4000, 16_000], [100, 200, 400, 800])
    rows = [{"non_embedding_params": n, "steps": s, "global_batch_size": 64} for n, s in grid]
    found = lines(table(rows))
    assert set(found) == {"non_embedding_params", "steps"}
    assert [line["steps"].nunique() for line in found["non_embedding_params"]] == [1] * 4
    assert [line["non_embedding_params"].nunique() for line in found["steps"]] == [1] * 3


def test_sizes_at_equal_compute_are_no_line():
    rows = [
        {"non_embedding_params": n, "steps": 64_000 // n, "global_batch_size": 64}
        for n in (1000, 2000, 4000)
    ]
    assert "non_embedding_params" not in lines(table(rows))


def test_batches_are_joined_at_equal_examples_where_steps_differ():
    rows = [
        {"non_embedding_params": 1000, "steps": 6400 // b, "global_batch_size": b}
        for b in (32, 64, 128)
    ]
    (line,) = lines(table(rows))["global_batch_size"]
    assert line["users_seen"].nunique() == 1
    assert len(line) == 3


def test_tokens_are_the_length_of_runs_that_count_no_steps():
    """As in tables of other tools, where sizes are compared at equal tokens and in one family."""
    grid = itertools.product(["dense", "moe"], [1e6, 3e6, 1e7], [1e8, 1e9])
    frame = pd.DataFrame(
        [{"encoder_size": f, "non_embedding_params": n, "train_tokens": d} for f, n, d in grid]
    )
    frame = frame.assign(
        run_id=[f"r{row}" for row in range(len(frame))],
        loss=5 - 0.01 * frame.index,
        train_flops=6 * frame["non_embedding_params"] * frame["train_tokens"],
    )
    found = lines(frame)
    assert set(found) == {"non_embedding_params", "train_tokens"}
    assert [len(line) for line in found["non_embedding_params"]] == [3] * 4
    for line in found["non_embedding_params"]:
        assert line["train_tokens"].nunique() == line["encoder_size"].nunique() == 1


def test_equal_sizes_of_unknown_length_are_no_line():
    frame = pd.DataFrame({"non_embedding_params": [1e6, 1e6, 3e6], "loss": [5.0, 4.0, 3.0]})
    frame = frame.assign(run_id=list("abc"), train_flops=[1e12, 2e12, 3e12])
    assert lines(frame) == {}
    assert len(lines(frame.tail(2))["non_embedding_params"]) == 1


def test_runs_of_other_settings_are_on_other_lines():
    grid = itertools.product(["", "train.past_future 0.5"], [1000, 2000, 4000])
    frame = table(
        [{"non_embedding_params": n, "steps": 64, "global_batch_size": 64} for _, n in grid]
    )
    frame["other_settings"] = [""] * 3 + ["train.past_future 0.5"] * 3
    found = lines(frame)["non_embedding_params"]
    assert [line["other_settings"].unique().tolist() for line in found] == [
        ["train.past_future 0.5"],
        [""],
    ]
