"""Rebuild the reports, the figures and the page of the open CLUE study from its runs table.

    make open-clue-report                       # needs studies/open-clue/runs.csv; trains nothing
    python -m paper.findings --gather results   # first collect the table from study directories

The page is docs/notes/open-clue-study.md.
"""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clue_ray.corpus.planted import PlantedSpec, planted_floor
from clue_ray.report.page import write_report
from clue_ray.runs import Runs, read_runs
from clue_ray.spec.specs import read_study
from clue_ray.spec.yaml import read_yaml
from clue_ray.storage.files import atomic_write, write_json
from paper import answers, figures
from paper.points import ROOT, STUDIES, TITLES, Points, read_points

MACHINE_COLUMNS = ["memory_bytes"]
"""Columns of the learning curves that describe only the machine."""


def gather(results: Path) -> None:
    """Write runs.csv and curves.parquet from the directories of finished studies."""
    names = [read_study(STUDIES / f"{name}.yaml").name for name in TITLES]
    folders = [results / name for name in names if (results / name / "runs.csv").exists()]
    pd.concat([read_runs(folder).table for folder in folders]).to_csv(
        STUDIES / "runs.csv", index=False
    )
    curves = [
        pd.read_parquet(folder / "curves.parquet").assign(study=folder.name) for folder in folders
    ]
    pd.concat(curves).drop(columns=MACHINE_COLUMNS).to_parquet(
        STUDIES / "curves.parquet", index=False
    )


def known_floor(points: Points) -> dict[str, Any]:
    """Compute the lowest possible loss per history length, in the form of corpus.json.

    Only that of the planted log is known. For other logs the result is empty.
    """
    if points.name != "planted":
        return {}
    planted = PlantedSpec(**read_yaml(STUDIES / "planted-log.yaml")).model_dump_json()
    runs = points.runs
    return planted_floor(
        planted, map(int, runs["sequence_length"].unique()), int(runs["loss_candidates"].iloc[0])
    )


def rebuild_report(points: Points, output: Path) -> Path:
    """Write the report of a corpus from the runs table alone."""
    folder = output / points.spec.name
    folder.mkdir(parents=True, exist_ok=True)
    Runs(points.runs).write(folder)
    shutil.copyfile(STUDIES / f"{points.name}.yaml", folder / "study.yaml")
    write_json(folder / "corpus.json", known_floor(points))
    return write_report(folder)


def describe(points: Points, floor: dict[int, float]) -> dict[str, Any]:
    """Compute everything that the page reports about a corpus."""
    return {
        "points": points,
        "floor": floor,
        "noise": points.noise(),
        "headline": answers.headline(points),
        "factors": answers.two_factors(points),
        "length": answers.by_axis(points, "length"),
        "longest": answers.last_step(points, "length"),
        "users": answers.by_axis(points, "users"),
        "most_users": answers.last_step(points, "users"),
        "batch": answers.batch_effects(points),
        "sizes": answers.best_sizes(points),
        "follows": answers.follows(points),
    }


def templates() -> Environment:
    """Return the environment of the page's template and the texts that it includes."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, STUDIES]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["span"] = lambda found, digits=2: (
        f"{found[0]:.{digits}f} [{found[1]:.{digits}f}, {found[2]:.{digits}f}]"
    )
    environment.filters["grid"] = grid
    return environment


def render(corpora: dict[str, dict[str, Any]]) -> str:
    """Render the page."""
    sizes = sorted(
        {int(n) for c in corpora.values() for n in c["points"].runs["non_embedding_params"]}
    )
    page = templates().get_template("page.md.j2")
    return page.render(corpora=corpora, sizes=sizes, **corpora)


def grid(table: pd.DataFrame) -> str:
    """Format losses by width and another column as a Markdown table."""
    head = f"| width | {' | '.join(f'{value:,}' for value in table.columns)} |"
    rule = "|" + "---:|" * (len(table.columns) + 1)
    rows = [
        f"| {width} | {' | '.join(f'{loss:.3f}' for loss in row)} |"
        for width, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join([head, rule, *rows])


def main() -> None:
    """Rebuild everything and print the paths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gather",
        type=Path,
        metavar="RESULTS",
        help="first collect runs.csv from finished studies",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results" / "open-clue", help="folder of the reports"
    )
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="folder of the page and its figures"
    )
    args = parser.parse_args()
    if args.gather:
        gather(args.gather)
    corpora = read_points()
    losses = {name: known_floor(points).get("bayes_loss", {}) for name, points in corpora.items()}
    floors = {
        name: {int(length): loss for length, loss in found.items()}
        for name, found in losses.items()
    }
    with ProcessPoolExecutor(2) as pool:  # reports take the most time, one core each
        pages = pool.map(partial(rebuild_report, output=args.output), corpora.values())
        figures.draw_all(corpora, floors, args.docs / "images" / "open-clue")
        page = render({name: describe(points, floors[name]) for name, points in corpora.items()})
    place = args.docs / "notes" / "open-clue-study.md"
    with atomic_write(place) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(*(f"Report: {path}" for path in pages), f"Page: {place}", sep="\n")


if __name__ == "__main__":
    main()
