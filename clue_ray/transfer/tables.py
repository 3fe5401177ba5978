"""A task's result as a person reads it: a table of methods, and the sentence below it."""

from typing import Any

from rich.table import Table

MEASURES = {"mrr": "MRR", "ndcg_at_10": "nDCG@10", "recall_at_10": "recall@10", "auc": "AUC", "r2": "R2"}


def task_table(result: dict[str, Any]) -> Table:
    """Set the methods below each other, each measure with its interval, and the encoder's lead in the first measure."""
    shown = [name for name in MEASURES if name in result["methods"][0]]
    users = result["users"]
    table = Table(title=f"{result['task']}: encoder {result['run_id']}, {users['test']:,} test users")
    table.add_column("method")
    for name in shown:
        table.add_column(f"{MEASURES[name]} [95 %]", justify="right")
    table.add_column(f"encoder's lead in {MEASURES[shown[0]]} [95 %]", justify="right")
    for row in result["methods"]:
        lead = row.get(f"{shown[0]}_lead")
        table.add_row(row["method"], *(spell(row[name]) for name in shown), spell(lead, "+") if lead else "")
    return table


def spell(found: dict[str, float], sign: str = "") -> str:
    """Write a value with its interval."""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def task_words(result: dict[str, Any]) -> str:
    """Say whom the encoder beats beyond doubt, who was judged, and who was left out."""
    first = next(name for name in MEASURES if name in result["methods"][0])
    leads = {row["method"]: row[f"{first}_lead"] for row in result["methods"] if f"{first}_lead" in row}
    said = {
        "beats": [name for name, lead in leads.items() if lead["low"] > 0],
        "is beaten by": [name for name, lead in leads.items() if lead["high"] < 0],
        "cannot be told from": [name for name, lead in leads.items() if lead["low"] <= 0 <= lead["high"]],
    }
    words = "; ".join(f"{verb} {', '.join(names)}" for verb, names in said.items() if names)
    users = ", ".join(f"{count:,} {part}" for part, count in result["users"].items())
    lines = [f"By {MEASURES[first]} the encoder {words} (95 %, over users).", f"Users: {users}."]
    lines += [f"Left out, {reason}: {count:,} users." for reason, count in result["left_out"].items()]
    return "\n".join(lines)
