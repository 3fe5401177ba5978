"""The command line: each command parses its options, calls one function and prints the result.

The exit code is 0 for success, 2 for a user's mistake (one sentence, no traceback) and 1 otherwise.
Ray and torch are imported inside the commands, so that help texts and mistakes appear at once.
"""

import errno
import io
import os
import sys

import typer

from clue_ray.cli.clusters import submit
from clue_ray.cli.corpora import fetch, prepare
from clue_ray.cli.doctor import doctor
from clue_ray.cli.encoders import embed, export, transfer
from clue_ray.cli.explain import explain
from clue_ray.cli.forecasts import forecast
from clue_ray.cli.init import init
from clue_ray.cli.laws import browse, fit, predict, report
from clue_ray.cli.options import HomeGroup
from clue_ray.cli.studies import plan, results, run, train
from clue_ray.errors import ClueRayError, missing_extra, without_controls

app = typer.Typer(
    cls=HomeGroup,
    help="Scaling-law studies of user encoders on Ray, from event logs to a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    init,
    fetch,
    prepare,
    plan,
    run,
    train,
    results,
    fit,
    forecast,
    report,
    browse,
    predict,
    embed,
    transfer,
    export,
    submit,
    doctor,
    explain,
):
    app.command()(command)


def _read_names_as_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding.

    Otherwise arguments with other letters would name files that pyarrow and Ray cannot find.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_what_the_terminal_can() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line."""
    _read_names_as_utf8()
    _print_what_the_terminal_can()
    try:
        app()
    except ClueRayError as error:
        sys.stderr.write(f"clue-ray: {without_controls(str(error))}\n")
        sys.exit(2)
    except ImportError as error:
        if (sentence := missing_extra(error)) is None:
            raise
        sys.stderr.write(f"clue-ray: {sentence}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write(
            "clue-ray: The disk is full; free some space and run the same command again.\n"
        )
        sys.exit(2)
