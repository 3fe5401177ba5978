"""Prove the GPU path of clue-ray on one card, in at most nine minutes.

    python -m benchmarks.gpu [--dry] [--output DIR] [--phases facts,correctness,...]

Each phase is a process of its own with its own limit, so an illegal access or a hang ends one phase
and not the rest. Every measurement is appended to DIR/gpu.json as soon as it is made. The last
output is one table of at most 60 lines. With --dry every phase runs on the CPU in tiny sizes: it
shows that the phases work, and none of its figures means anything.

The exit code is 1 if a requirement was not met, a phase failed or there is no GPU.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.phases import PHASES, run_phases
from benchmarks.gpu.results import FILE, read_results
from benchmarks.gpu.table import render_table


def main() -> None:
    """Run all phases and print the table; or run one phase, in a process started for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"))
    parser.add_argument("--phases", default=",".join(PHASES))
    args = parser.parse_args()
    phases = args.phases.split(",")
    if unknown := set(phases) - set(PHASES):
        parser.error(f"--phases names {', '.join(unknown)}; choose among {', '.join(PHASES)}")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / FILE).unlink(missing_ok=True)
    run_phases(phases, args.output, args.dry)
    results = read_results(args.output)
    print("\n".join(render_table(results)))
    sys.exit(any(each["passed"] is False for each in results))


if __name__ == "__main__":
    main()
