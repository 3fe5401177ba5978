"""The command that writes a study for a log and a budget, and prints its plan."""

import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clue_ray.cli.options import Columns, Json, Output, console, make_corpus_spec
from clue_ray.errors import SpecError
from clue_ray.spec.yaml import FILE_NAME

if TYPE_CHECKING:
    from clue_ray.corpus.guess import Guess, LogFacts
    from clue_ray.spec.specs import CorpusSpec
    from clue_ray.study.planned import Plan

DEMO = Path("data/completejourney.parquet")
DEMO_MINUTES = 5.0
FIRST_SPEED = 2e10
"""FLOP per second from which the sizing starts, rather too many than too few: the plan measures the
real ones, but cannot plan a run of less than one step."""
AROUND_TRAINING = 1.0
"""Minutes for the start of Ray, the cheap rivals and the report, which a plan does not count."""
ROUNDS = 4
CLOSE = (0.6, 1.05)
"""Planned over wanted time at which the sizing ends."""
FEWEST_FLOPS = 3e10
"""FLOPs of a study below which its cheapest runs have no step."""


@dataclass(frozen=True)
class Wish:
    """What a study may take: one of the three is given."""

    minutes: float | None
    gpu_hours: float | None
    budget: float | None

    @property
    def words(self) -> str:
        """The wish as a sentence of the study file."""
        if self.minutes is not None:
            return f"Sized to {self.minutes:g} minutes here."
        if self.gpu_hours is not None:
            return f"Sized to {self.gpu_hours:g} GPU-hours."
        return f"Sized to {self.budget:g} FLOP."

    @property
    def training_minutes(self) -> float:
        """Minutes of training, of a GPU where there is one; 0 where FLOPs are given."""
        if self.minutes is not None:
            return max(0.5 * self.minutes, self.minutes - AROUND_TRAINING)
        return (self.gpu_hours or 0.0) * 60

    def taken_by(self, plan: "Plan") -> float:
        """Return how much of the training minutes a plan takes, as a share."""
        taken = plan.gpu_hours * 60 if self.gpu_hours else plan.expected_minutes
        return taken / self.training_minutes


def init(
    events: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or URIs of logs; or SERVICE=FILES each."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time that the study may take here.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="GPU-hours that the study may take, on this machine's GPU.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Training FLOPs of all runs; nothing is timed.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the study, and of <name>.yaml.", show_default="study, or demo with --demo"
        ),
    ] = None,
    columns: Columns = None,
    text: Annotated[
        str | None, typer.Option(help='Template of the item text, such as "{brand}; {title}".')
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Take the demo's log, and five minutes where none are given."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what seems best.")] = False,
    output: Output = Path("results"),
    as_json: Json = False,
) -> None:
    """Write a commented study file for a log, sized to a time or a budget, and print its plan."""
    if demo and {minutes, gpu_hours, budget} == {None}:
        minutes = DEMO_MINUTES
    name = ("demo" if demo else "study") if name is None else name
    file, wish = Path(f"{name}.yaml"), Wish(minutes, gpu_hours, budget)
    _check_log(events, demo)
    _check_budget(wish)
    _check_name(name, file, output)
    logs = [str(_fetch_demo())] if demo else events or []
    spec, why = _find_columns(logs, columns, text, ask=sys.stdin.isatty() and not (yes or as_json))
    plan = _write_study(file, spec, why, wish, output, _ignore if as_json else _say)
    command = f"clue-ray run {shlex.quote(str(file))} --output {shlex.quote(str(output))}"
    if as_json:
        return print(json.dumps({"file": str(file), "run": command, **plan.to_dict()}))
    from clue_ray.cli.tables import print_plan

    print_plan(console, plan)
    console.print(f"Study: {file}\nRun it: {command}", highlight=False, soft_wrap=True)
    return None


def _fetch_demo() -> Path:
    from clue_ray.corpus.public import fetch_source

    DEMO.parent.mkdir(parents=True, exist_ok=True)
    fetch_source("completejourney", DEMO)
    return DEMO


def _say(words: str) -> None:
    """Print what is done now: preparing and timing take minutes."""
    console.print(words, style="dim", highlight=False, soft_wrap=True)


def _ignore(words: str) -> None:
    """Print nothing, for --json."""


def _check_log(events: list[str] | None, demo: bool) -> None:
    """Raise SpecError where no log is named, or two are."""
    if not events and not demo:
        raise SpecError("Init takes the files of a log, or --demo; give one of them.")
    if events and demo:
        raise SpecError(f"--demo takes the demo's log; leave it out, or leave out {events[0]}.")


def _check_budget(wish: Wish) -> None:
    """Raise SpecError for a budget that nothing can be sized to."""
    minutes, budget = wish.minutes, wish.budget
    given = [value for value in (minutes, wish.gpu_hours, budget) if value is not None]
    if len(given) != 1:
        raise SpecError(
            "Init takes one of --minutes, --gpu-hours and --budget (training FLOPs); "
            f"{len(given)} are given."
        )
    if wish.gpu_hours is not None:
        import torch

        if not torch.cuda.is_available():
            raise SpecError(
                "--gpu-hours times the encoders on a GPU, and this machine has none; run it where "
                "there is one, or give --budget in FLOPs or --minutes of this machine."
            )
    if not given[0] > 0:
        raise SpecError(f"The study's budget is {given[0]:g}; give a positive number.")
    if minutes is not None and minutes < 1:
        raise SpecError(
            f"--minutes is {minutes:g}; a study takes a minute or more to start: give 5."
        )
    if budget is not None and budget < FEWEST_FLOPS:
        raise SpecError(
            f"--budget is {budget:.3g} FLOP, less than a step of each run; give {FEWEST_FLOPS:g} "
            "or more."
        )


def _check_name(name: str, file: Path, output: Path) -> None:
    """Raise SpecError for a name that no study can have, or that another study has."""
    if file.parent != Path():
        raise SpecError(f"--name is {name!r}; give a name without a folder.")
    if not re.fullmatch(FILE_NAME, name):
        raise SpecError(
            f"--name is {name!r}; use letters, digits, '.', '_' and '-', a letter or digit first."
        )
    if file.exists():
        raise SpecError(f"{file} exists and is not replaced; give another --name.")
    home = output / name
    if home.is_dir() and any(home.iterdir()):
        raise SpecError(
            f"{home} holds an earlier study, whose runs would be mixed with these; give another "
            "--name or --output."
        )


def _find_columns(
    events: list[str], columns: list[str] | None, text: str | None, ask: bool
) -> tuple["CorpusSpec", dict[str, str]]:
    """Return the corpus with the guessed columns, and the reason for each.

    Raises:
        SpecError: a column cannot be guessed.
    """
    from clue_ray.corpus.guess import (
        column_names,
        guess_columns,
        guess_time_format,
        text_template,
    )

    asked = make_corpus_spec(events, columns, text, None)
    guesses = guess_columns(asked)
    known = column_names(asked)
    named, why = dict(asked.columns), dict.fromkeys(asked.columns, "named by you")
    by_service = isinstance(asked.events, dict)
    for role in ("user_id", "service", "timestamp", "text"):
        if role in named or (role == "service" and by_service) or (role == "text" and text):
            continue
        guess = guesses[role]
        if ask and not guess.sure and role != "timestamp":
            guess = _ask(role, guess, known)
        if guess.column:
            named[role], why[role] = guess.column, guess.why
        elif role != "timestamp":
            raise SpecError(_absent(role, known))
    item = named.pop("text", "")
    template, reason = (text, "given by you") if text else text_template(known, item)
    columns_ = {role: column for role, column in named.items() if role != column}
    if template == f"{{{item}}}" and item == "text":
        template = "{text}"
    form = guess_time_format(asked, named["timestamp"]) if named.get("timestamp") else None
    given = {"columns": columns_, "text": template, "timestamp_format": form}
    spec = asked.model_copy(update=given)
    return spec, {**why, "text": reason}


def _ask(role: str, guess: "Guess", known: list[str]) -> "Guess":
    """Ask a person which column has a role; the guess is the default."""
    from clue_ray.corpus.guess import Guess

    words = {"user_id": "is the user", "service": "is the service", "text": "describes the item"}
    console.print(f"Columns: {', '.join(known)}", highlight=False)
    while True:
        answer = typer.prompt(f"Which column {words[role]}?", default=guess.column or None)
        if answer in known:
            return Guess(answer, True, "named by you")
        console.print(f"There is no column {answer!r}.", highlight=False)


def _absent(role: str, known: list[str]) -> str:
    found = ", ".join(map(repr, known))
    if role == "service":
        return (
            f"No column of the log looks like a service (columns are {found}); name it with "
            "--columns service=COLUMN, or give one log per service, SERVICE=FILES."
        )
    what = "has no text" if role == "text" else "has no column that looks like a user"
    return f"The log {what} (columns are {found}); name it with --columns {role}=COLUMN."


def _write_study(
    file: Path,
    spec: "CorpusSpec",
    why: dict[str, str],
    wish: Wish,
    output: Path,
    say: Callable[[str], None],
) -> "Plan":
    """Write the study, sized to the wish, and return its plan; leave no file behind an error."""
    from clue_ray.corpus.guess import survey_log

    taken = [f"{role} {name!r}" for role, name in [*spec.columns.items(), ("text", spec.text)]]
    say(f"Columns: {', '.join(taken)}.")
    facts, written = survey_log(spec), False
    say(
        f"{facts.rows:,} events of {facts.users:,} users in {len(facts.services)} services. "
        "Preparing the corpus and timing the encoders takes minutes for a long log."
    )
    try:
        plan = _size(file, spec, why, facts, wish, output, say)
        written = True
    except SpecError as error:
        if "is less than one step" in str(error):
            raise SpecError(f"{wish.words} That is too little for this log: {error}") from None
        raise
    finally:  # also where the user interrupts it: a study that is not sized is no study
        if not written:
            file.unlink(missing_ok=True)
    return plan


def _size(
    file: Path,
    spec: "CorpusSpec",
    why: dict[str, str],
    facts: "LogFacts",
    wish: Wish,
    output: Path,
    say: Callable[[str], None],
) -> "Plan":
    """Write the study, time its plan here, and size it again until it takes the time."""
    from clue_ray.spec.specs import read_study
    from clue_ray.study.propose.sizes import propose
    from clue_ray.study.propose.written import Head, study_text
    from clue_ray.study.run import plan_study

    schema = Path(__file__).parents[1] / "schemas" / "study.schema.json"
    head = Head(file.stem, shlex.join(["clue-ray", *sys.argv[1:]]), wish.words, str(schema))
    total = wish.budget or FIRST_SPEED * wish.training_minutes * 60
    rounds: list[tuple[float, str, Plan]] = []
    for number in range(1, ROUNDS + 1):
        made = propose(facts, total)
        text = study_text(head, spec, why, facts, made, 1 if wish.gpu_hours else 0)
        file.write_text(text, encoding="utf-8")
        plan = plan_study(read_study(file), output)
        if wish.budget:
            return plan
        share = wish.taken_by(plan)
        taken = f"{share * wish.training_minutes:.1f} of {wish.training_minutes:g}"
        say(f"Round {number}: {total:.1e} FLOP take {taken} minutes of training.")
        if CLOSE[0] <= share <= CLOSE[1]:
            return plan
        rounds.append((share, text, plan))
        total *= max(0.05, min(20.0, 0.85 / share))
    return _closest(file, wish, rounds)


def _closest(file: Path, wish: Wish, rounds: list[tuple[float, str, "Plan"]]) -> "Plan":
    """Keep the round closest to the wanted time, with a warning of how far it is from it."""
    share, text, plan = min(rounds, key=lambda made: abs(math.log(made[0])))
    file.write_text(text, encoding="utf-8")
    taken = share * wish.training_minutes
    warning = (
        f"After {len(rounds)} rounds the closest plan trains for {taken:.1f} minutes where "
        f"{wish.training_minutes:g} are wanted; ask for another time, or change `budgets` in "
        f"{file}."
    )
    return replace(plan, warnings=[warning, *plan.warnings])
