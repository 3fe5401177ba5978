"""A task's result as a person reads it: a table of methods, and the sentence below it."""

from typing import Any

from rich.table import Table

from clue_ray.scaling.downstream import MEASURES, compare_methods, spell


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


def task_words(result: dict[str, Any]) -> str:
    """Say whom the encoder beats beyond doubt, who was judged, and who was left out."""
    users = ", ".join(f"{count:,} {part}" for part, count in result["users"].items())
    lines = [compare_methods(result), f"Users: {users}."]
    lines += [f"Left out, {reason}: {count:,} users." for reason, count in result["left_out"].items()]
    if result["left_out"]:
        lines.append(f"They are listed in {result['left_out_list']}, in the folder of the run or its study.")
    return "\n".join(lines)
