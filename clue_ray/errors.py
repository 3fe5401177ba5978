"""The exceptions that clue-ray raises for errors a user can correct.

    ClueRayError
    ├── SpecError        an invalid study file or spec
    ├── EventLogError    an event log that cannot be read, or has too many unusable rows
    ├── CorpusError      a prepared corpus that is damaged, incompatible or too small
    ├── RunsError        a runs table that cannot be read or fitted
    ├── FitError         a law whose parameters the runs cannot identify
    ├── StudyError       a study that cannot run here: its plan, output directory or disk
    └── ClusterError     a Ray cluster that cannot be reached, or lacks requested resources

Each message is one sentence: what is wrong, the value found, what is allowed, what to do. The
command line prints it without a traceback and exits with code 2.
"""

import difflib
import re
import traceback

EXTRAS = {
    **dict.fromkeys(("torch", "tokenizers", "safetensors", "tensorboard"), "train"),
    **dict.fromkeys(("ray", "fsspec"), "cluster"),
}
"""Packages that are not part of the base installation, and the extra that installs each."""
TOKEN_REMEDY = (
    "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, "
    "or write it to ~/.ray/auth_token, and set RAY_AUTH_MODE=token"
)
"""The end of an error message: how to pass the token of a Ray cluster."""


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that steer a terminal; carriage returns too, which overwrite a line."""


class ClueRayError(Exception):
    """Base class of all errors that a user can correct; the message says how."""


class SpecError(ClueRayError):
    """Invalid study file or spec."""


class EventLogError(ClueRayError):
    """Event log that cannot be read, or has too many unusable rows."""


class CorpusError(ClueRayError):
    """Prepared corpus that is damaged, incompatible or too small."""


class RunsError(ClueRayError):
    """Runs table that cannot be read or fitted."""


class FitError(ClueRayError):
    """Law whose parameters the runs cannot identify."""


class StudyError(ClueRayError):
    """Study that cannot run here: its plan, output directory or disk."""


class ClusterError(ClueRayError):
    """Ray cluster that cannot be reached, or lacks requested resources."""


LONGEST_REASON, LONGEST_VALUE = 300, 80
"""Characters of a library's message, and of a value of a file, that a sentence quotes."""


def nearest(name: str, allowed: list[str]) -> str:
    """Return the end of an error message: the allowed key closest to `name`, or all keys."""
    # A name inside a longer key is a better match than one of similar spelling: size, encoder.size.
    close = [key for key in allowed if name and name in key] or difflib.get_close_matches(
        name, allowed, n=1, cutoff=0.5
    )
    return f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(allowed)}."


def without_controls(text: str) -> str:
    """Return a text with its control characters as escapes, but for line breaks and tabs."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def missing_extra(error: ImportError) -> str | None:
    """Return the sentence for a package of an extra that is not installed; None for others."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return (
        f"This needs {package}, which is not part of the base installation; run: pip install "
        f"'clue-ray[train,cluster]' ({package} alone: 'clue-ray[{EXTRAS[package]}]')."
    )


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line, for brackets in a sentence of ours.

    A library may quote what it could not read; so the message is cut. Without one it is the type.
    """
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]} ..."


def short(value: object) -> str:
    """Return a value of a file for a sentence of ours: on one line, and cut."""
    return " ".join(str(value).split())[:LONGEST_VALUE]


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return an error's type with the first line of its message, and its traceback."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    reason = f"{type(error).__name__}: {first_line}"
    return reason, "".join(traceback.format_exception(error))


def find_worker_error(error: BaseException, kinds: str) -> tuple[str, str] | None:
    """Find the last error of some kinds in the text of a Ray error; return its type and message.

    Ray keeps the type of a worker's error only in the text of the traceback.

    Args:
        error: raised by Ray on the driver.
        kinds: a regular expression of the types' names.
    """
    pattern = rf"^\s*(?:[\w.]+\.)?({kinds}): (.+)$"
    found: list[tuple[str, str]] = re.findall(pattern, str(error), re.MULTILINE)
    return found[-1] if found else None
