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
NOT_YET = """\
**No GPU was at hand so far: nothing on this page was run on one.** Tested on a CPU: batches packed
by the GPU's code on CPU tensors (equal bits); attention in tiles in Triton's interpreter (fp32 and
fp16, heads of 16 to 128), and that its kernels compile for compute capabilities 8.6 and 9.0;
gradients in chunks, and averaged in bf16 by two processes; what follows an out-of-memory error,
which the tests raise. Not run anywhere: streams and asynchronous copies, the variable-length
kernel, the fused optimizer, compiled blocks in bf16, NCCL.
"""
WAITING = {
    "vectors, loss and every gradient of `l` against the CPU in fp64": (
        "correctness",
        "1e-4 in fp32; 1e-2 in bf16, gradients up to twice the CPU's own error in bf16",
    ),
    "20 steps in fp32 on the card and on the CPU": ("correctness", "1e-4 in loss"),
    "save on the card, resume on the CPU and back": ("correctness", "equal in state"),
    "heads of 8 to 264": ("correctness", "2e-2 in vectors and loss"),
    "attention over 10,000 to 100,000 items in one step, forward and backward": (
        "attention",
        "never fails",
    ),
    "`clue-110m`, 1,024 users of 128 events, bf16, compiled, no item twice": (
        "speed",
        "35 % of the measured peak in executed FLOPs",
    ),
    "the same on a Zipf catalogue": ("speed", "60 % in asked FLOPs"),
    "`l`, 4,096 users": ("speed", "GPU busy 80 % of a step"),
    "`s`, 4,096 users": ("candidates", "20 times the steps per second of the earlier path"),
    "`clue-725m`, 4,096 users of a Zipf catalogue": ("large", "one step within 80 GB"),
    "Ray Train, one worker over NCCL": ("cluster", "at most 3 % slower than bare PyTorch"),
    "a study on a whole card and on quarters of one": ("cluster", "all runs done"),
    "the driver of such a study": ("cluster", "holds no memory of the card"),
    "a worker killed": ("cluster", "the study goes on"),
    "embedding on the card and on the CPU": ("embedding", "1e-3"),
}
"""What waits for a card: the phase that measures it, and what is required."""
COMMANDS = """
`python -m benchmarks.gpu --phases NAME` runs one phase. `make gpu` runs all, and writes this page
from what they found. `pytest -m gpu` runs the tests that need a card; one of them is that a step
never waits for it.
"""


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
        return "\n".join([OPENING, NOT_YET, *_waiting(), COMMANDS, *_dry_run(results)])
    parts = [OPENING, "Required figures are marked ok or FAIL; the others are facts.\n"]
    facts = ", ".join(f"{key} {value}" for key, value in {**machine, **software}.items())
    parts.append(f"Machine: {facts}.\n")
    for phase in dict.fromkeys(each["phase"] for each in results):
        mine = [each for each in results if each["phase"] == phase]
        parts.append(_phase_table(phase, mine))
    return "\n".join(parts)


def _waiting() -> list[str]:
    rows = [f"| {what} | {required} | {phase} |" for what, (phase, required) in WAITING.items()]
    return ["| waits for a card | required | phase |", "|---|---|---|", *rows]


def _dry_run(results: list[Measurement]) -> list[str]:
    """Return the table of a dry run: what its checks found, and no timings, which say nothing."""
    if not results:
        return []
    rows = [
        f"| {each['phase']} | {each['name']} | {MARKS[each['passed']]} |"
        for each in results
        if each["passed"] is not None and each["name"] != "phase"
    ]
    words = "`python -m benchmarks.gpu --dry` ran every phase on a CPU, in tiny sizes:"
    return [
        "## The dry run\n",
        f"{words}\n",
        "| phase | check | passed |",
        "|---|---|---|",
        *rows,
        "",
    ]


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
