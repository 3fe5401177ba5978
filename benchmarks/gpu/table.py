"""The table that the acceptance command prints last, and docs/gpu.md, both from gpu.json.

python -m benchmarks.gpu.table GPU_JSON_FOLDER    writes docs/gpu.md
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import NO_CARD, Measurement, find, read_results

MOST_LINES = 60
WIDEST = 150
MARKS = {True: "ok", False: "FAIL", None: ""}
PAGE = Path("docs/gpu.md")
OPENING = (
    "# What one GPU was measured to do\n\n"
    "`make gpu` runs `python -m benchmarks.gpu` on the machine's card, at most nine minutes, and "
    "writes this page from what\nit found. For a machine without a package index there is "
    "`make gpu-carry` (`benchmarks/gpu/carry.py` says how).\n"
)
NOT_YET = (
    "**No GPU was at hand so far.** The GPU path is tested on a CPU, by the equality tests in "
    "`tests/` and by\n`python -m benchmarks.gpu --dry`, which runs every phase in tiny sizes. None "
    "of it has run on a card. `make gpu` on a\nmachine with one card answers all of this; `pytest "
    "-m gpu` runs the tests that need one.\n"
)
WAITING = {
    "vectors, loss and every gradient of `l` against the CPU in fp64": (
        "1e-4 in fp32, 1e-2 in bf16"
    ),
    "20 steps in fp32 on the card and on the CPU": ("1e-4 in loss"),
    "save on the card, resume on the CPU and back": ("equal in state"),
    "attention over 10,000 to 100,000 items in one step, forward and backward": ("never fails"),
    "heads of 8 to 256": ("2e-2"),
    "`clue-110m`, 1,024 users of 128 events, bf16, no item twice": (
        "35 % of the measured peak in executed FLOPs"
    ),
    "the same on a Zipf catalogue": ("60 % in asked FLOPs"),
    "`l`, 4,096 users": ("GPU busy 80 % of a step"),
    "`s`, 4,096 users": ("20 times the steps per second of the earlier path"),
    "`clue-725m`, 4,096 users": ("trains on 80 GB"),
    "Ray Train, one worker over NCCL": ("at most 3 % slower than bare PyTorch"),
    "a study on a whole card and on quarters of one; its driver": (
        "all runs done; holds no memory of the card"
    ),
    "a worker killed": ("the study goes on"),
    "embedding on the card and on the CPU": ("1e-3"),
}
"""What waits for a card, and what is required of it."""


def render_table(results: list[Measurement]) -> list[str]:
    """Return the results as text: failures first, then a line per measurement, 60 at most."""
    failed = [each for each in results if each["passed"] is False]
    others = [each for each in results if each["passed"] is not False and each["name"] != "phase"]
    lines = [_line(each) for each in [*failed, *others]]
    if len(lines) > MOST_LINES - 2:
        left = len(lines) - (MOST_LINES - 3)
        lines = [*lines[: MOST_LINES - 3], f"... {left} more measurements in gpu.json"]
    required = [each for each in results if each["passed"] is not None]
    met = sum(each["passed"] for each in required)
    card = find(results, "machine").get("card", "unknown")
    return [f"clue-ray on one GPU ({card}): {met} of {len(required)} checks passed", *lines]


def _line(each: Measurement) -> str:
    values = "  ".join(_value(key, value) for key, value in each["values"].items() if key != "top")
    line = f"{each['phase']:<12}{each['name']:<34}{MARKS[each['passed']]:<5}{values}"
    return " ".join([line.rstrip(), each["note"]]).rstrip()[:WIDEST]


def _value(key: str, value: Any) -> str:
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def render_page(results: list[Measurement]) -> str:
    """Return docs/gpu.md: all measurements, a table per phase; or what waits for a card."""
    machine, software = find(results, "machine"), find(results, "software")
    if machine.get("card", NO_CARD) == NO_CARD:
        rows = [f"| {what} | {required} |" for what, required in WAITING.items()]
        head = ["| waits for a card | required |", "|---|---|"]
        return "\n".join([OPENING, NOT_YET, *head, *rows, ""])
    parts = [OPENING, "Required figures are marked ok or FAIL; the others are facts.\n"]
    facts = ", ".join(f"{key} {value}" for key, value in {**machine, **software}.items())
    parts.append(f"Machine: {facts}.\n")
    for phase in dict.fromkeys(each["phase"] for each in results):
        mine = [each for each in results if each["phase"] == phase]
        parts.append(_phase_table(phase, mine))
    return "\n".join(parts)


def _phase_table(phase: str, results: list[Measurement]) -> str:
    rows = [f"## {phase.capitalize()}\n", "| what | passed | found |", "|---|---|---|"]
    for each in results:
        values = {key: value for key, value in each["values"].items() if key != "top"}
        found = ", ".join(_value(key, value) for key, value in values.items())
        note = f" {each['note']}" if each["note"] else ""
        rows.append(f"| {each['name']} | {MARKS[each['passed']]} | {found}{note} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render_page(read_results(Path(sys.argv[1]))), encoding="utf-8")
