"""Conditions on columns are evaluated, and nothing else that pandas would run."""

import pandas as pd
import pytest

from clue_ray.spec.condition import evaluate_condition

TABLE = pd.DataFrame(
    {"loss": [1.0, 2.0, 3.0], "size": ["xs", "s`", None], "config/arch": ["dense", "moe", "moe"]}
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("loss < 2.5 and not loss == 1", [1]),
        ("(loss > 1) & (loss <= 3) | loss == 1", [0, 1, 2]),
        ("loss ** 2 - 1 >= loss.mean()", [1, 2]),
        ("`config/arch` == 'moe'", [1, 2]),
        ("`config/arch`.str.startswith('d')", [0]),
        ("size.isna() or size in ['xs']", [0, 2]),
        ("loss.between(2, 3) and size.notna()", [1]),
        ("1 < loss < 3", [1]),
    ],
)
def test_a_condition_selects_rows(where, rows):
    assert list(TABLE[evaluate_condition(TABLE, where)].index) == rows


@pytest.mark.parametrize(
    "where",
    [
        "@pd.io.common.os.system('touch owned') == 0",
        "loss == @loss",
        "__pd_eval_local_TABLE == 1",
        "loss.__class__.__init__.__globals__ == 1",
        "loss.to_csv('owned')",
        "loss.pipe(print)",
        "loss.values.tofile('owned')",
        "loss.apply(size)",
        "(lambda: 1)() == 1",
        "[x for x in loss] == 1",
        "f'{loss}' == 1",
        "loss[0] == 1",
        "(a := 1) == 1",
        "x = 1",
        "loss == 1\nloss == 2",
        "__import__('os').system('touch owned') == 0",
        # A backtick in a text pairs with the next one, and would hide what stands between them.
        "size == '`' or @pd.io.common.os.system('touch owned') == 0 or size == '`'",
        "size == 'a' # ` @pd.io.common.os.system('touch owned') `",
        "`a' or @pd.io.common.os.system('touch owned') or '` == 1",
        "loss == 1 if loss else @pd",
        "(" * 500 + "loss" + ")" * 500,
        "",
    ],
)
def test_nothing_else_is_run(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"."):
        evaluate_condition(TABLE, where)
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_calling_code_are_not_seen():
    from clue_ray.spec import condition

    assert condition.QUOTED is not None
    with pytest.raises(Exception, match="QUOTED"):
        evaluate_condition(TABLE, "loss == QUOTED")
