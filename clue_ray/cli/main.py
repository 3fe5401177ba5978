import errno
import sys

import typer

from clue_ray.errors import ClueRayError

app = typer.Typer(
    help="Scaling-law studies of user encoders on Ray: from event logs to a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except ClueRayError as error:
        sys.stderr.write(f"clue-ray: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write("clue-ray: No free disk; free some space and run the same command again.\n")
        sys.exit(2)
