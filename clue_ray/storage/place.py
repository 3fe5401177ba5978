"""Places: a folder, or any URI that pyarrow.fs knows; what they are called and whether they can be
used.
"""

import re
import uuid
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs

from clue_ray.errors import StudyError

SECRET_WORDS = ("secret", "token", "password", "signature", "key", "sig")
"""How a name in a URI's query ends that holds one: of Azure's, which pyarrow reads, and those
people take for S3's."""
SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "file")


def find_secret(place: str) -> tuple[str, str] | None:
    """Find a secret in a URI; return the URI without it, and what it is. A secret key may itself
    hold a slash.
    """
    scheme, _, rest = place.partition("://")
    authority = re.split("[/?#]", rest)[0]
    user, colon, after = authority.partition(":")
    if colon and not after.isdigit():  # a port is a number
        path = rest[len(authority) :].split("?")[0]
        return f"{scheme}://{user}:..." + (
            f"@{after.split('@')[-1]}{path}" if "@" in after else ""
        ), "a password"
    query = parse_qsl(place.partition("?")[2])
    secrets = [
        n
        for n, value in query
        if re.sub("[^a-z]", "", n.lower()).endswith(SECRET_WORDS) or "@" in value
    ]
    return (place.split("?")[0], f"a secret ({secrets[0]})") if secrets else None


def explain_access(error: Exception) -> str:
    """Say in words a person uses why storage refused."""
    words = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    for sign, meaning in REFUSALS.items():
        if sign in words:
            return meaning
    return words


REFUSALS = {
    "ACCESS_DENIED": "access is denied, 403: check the credentials in the environment",
    "NO_SUCH_BUCKET": "the bucket does not exist: check its name",
    "NETWORK_CONNECTION": "the storage does not answer: check its address",
    "Unrecognized filesystem type": "this build of pyarrow lacks that filesystem",
}


def is_uri(place: str | Path) -> bool:
    """Tell a URI from a folder."""
    return "://" in str(place)


def resolve_place(place: str) -> str:
    """Make a folder absolute, `~` the home; a URI stays. For the driver: a trial has a working
    folder of its own.

    Raises:
        StudyError: a URI names no bucket, or has lost its slashes.
    """
    if is_uri(place) or re.match(r"(s3|gs|gcs|abfs|abfss|hdfs|file):", place):
        _check_uri(place)
    return place if is_uri(place) else str(Path(place).expanduser().absolute())


def place_below(place: str, name: str) -> str:
    """Name a file or folder below a folder or URI; a URI keeps its query."""
    if not is_uri(place):
        return f"{resolve_place(place)}/{name}"
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def open_place(place: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """Return the filesystem of a folder or URI, and the path on it.

    Raises:
        StudyError: no filesystem is known or reached at the URI, or it holds a password, which
            would be written down.
    """
    if not is_uri(place):
        return pa.fs.LocalFileSystem(), resolve_place(str(place))
    refuse_secrets(str(place))
    try:
        store, path = pa.fs.FileSystem.from_uri(str(place))
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"Storage {place} cannot be used ({explain_access(error)}); give a folder or a URI "
            f"such as s3://bucket/folder."
        ) from None
    return store, path


def _check_uri(place: str) -> None:
    """Refuse what is no URI of a bucket, folder or host; raise StudyError."""
    try:
        parts = urlsplit(place)
        whole = bool(parts.netloc) or parts.scheme in {"file", "hdfs"}
    except ValueError:
        whole = False
    if not whole:
        raise StudyError(
            f"Storage {place!r} names no bucket; give a folder or a URI such as s3://bucket/folder."
        )


def refuse_secrets(place: str) -> None:
    """Refuse a URI that holds a secret, which would be written down in logs and records.

    Raises:
        StudyError: it does; the message leaves the secret out.
    """
    _check_uri(place)
    if found := find_secret(place):
        start, what = found
        raise StudyError(
            f"{start} holds {what}; give it by the environment, as AWS_SECRET_ACCESS_KEY is."
        )


def check_writable(place: str, remedy: str) -> None:
    """Write and delete an empty file below a folder or URI.

    Args:
        remedy: what to do when that fails, the end of a sentence.

    Raises:
        StudyError: it cannot be written.
    """
    store, folder = open_place(place)
    probe = f"{folder}/.probe.{uuid.uuid4().hex}"
    try:
        store.create_dir(folder, recursive=True)
        store.open_output_stream(probe).close()
        store.delete_file(probe)
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"{place} cannot be written ({explain_access(error)}); {remedy}."
        ) from None
