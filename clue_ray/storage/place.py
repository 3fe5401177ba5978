"""Places: local folders and pyarrow.fs URIs, with checks that they are valid and accessible."""

import re
import uuid
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs

from clue_ray.errors import StudyError

SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "file")
SECRET_WORDS = ("secret", "token", "password", "signature", "key", "sig")
"""Endings of query parameters that hold a secret.

They cover the parameters for Azure that pyarrow reads and the ones that users try for S3.
"""
ACCESS_ERRORS = {
    "ACCESS_DENIED": "access is denied, 403: check the credentials in the environment",
    "NO_SUCH_BUCKET": "the bucket does not exist: check its name",
    "NETWORK_CONNECTION": "the storage does not answer: check its address",
    "Unrecognized filesystem type": "this build of pyarrow lacks that filesystem",
}
"""Fragments of pyarrow's error messages, with explanations."""
OBJECT_STORES = {"s3", "gcs", "abfs"}
"""Filesystems in which a folder is only a prefix of names and needs no creation."""


def is_uri(place: str | Path) -> bool:
    """Return whether a place is a URI rather than a folder."""
    return "://" in str(place)


def resolve_place(place: str) -> str:
    """Return a folder as an absolute path, with `~` expanded, or a URI unchanged.

    Call it on the driver: a trial runs in a working folder of its own.

    Raises:
        StudyError: a URI names no bucket or lacks its slashes.
    """
    if is_uri(place) or re.match(r"(s3|gs|gcs|abfs|abfss|hdfs|file):", place):
        _check_uri(place)
    return place if is_uri(place) else str(Path(place).expanduser().absolute())


def place_below(place: str, name: str) -> str:
    """Return the path or URI of a file or folder below a place; a URI keeps its query."""
    if not is_uri(place):
        return f"{resolve_place(place)}/{name}"
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def open_place(place: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """Return the filesystem of a folder or URI and the path within it.

    Raises:
        StudyError: the URI holds a secret, or its filesystem is unknown or cannot be reached.
    """
    if not is_uri(place):
        return pa.fs.LocalFileSystem(), resolve_place(str(place))
    check_no_secret(str(place))
    try:
        store, path = pa.fs.FileSystem.from_uri(str(place))
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"Storage {place} cannot be used ({explain_access(error)}); "
            "give a folder or a URI such as s3://bucket/folder."
        ) from None
    return store, path


def check_writable(place: str, remedy: str) -> None:
    """Check that a place can be written by writing and deleting an empty file there.

    Args:
        remedy: what to do if it cannot be written, the end of the error message.

    Raises:
        StudyError: the place cannot be written.
    """
    store, folder = open_place(place)
    probe = f"{folder}/.probe.{uuid.uuid4().hex}"
    try:
        # On an object store it would write a key for each folder above, which a policy that is
        # limited to one prefix forbids.
        if store.type_name not in OBJECT_STORES:
            store.create_dir(folder, recursive=True)
        store.open_output_stream(probe).close()
        store.delete_file(probe)
    except (OSError, pa.ArrowException) as error:
        raise StudyError(
            f"{place} cannot be written ({explain_access(error)}); {remedy}."
        ) from None


def check_no_secret(place: str) -> None:
    """Check that a URI holds no secret, because URIs are written to logs and records.

    Raises:
        StudyError: the URI holds a secret, which the message leaves out.
    """
    _check_uri(place)
    if found := find_secret(place):
        start, what = found
        raise StudyError(
            f"{start} holds {what}; give it through the environment, for example as "
            "AWS_SECRET_ACCESS_KEY."
        )


def find_secret(place: str) -> tuple[str, str] | None:
    """Return a URI without its secret and a description of the secret, or None if it has none."""
    scheme, _, rest = place.partition("://")
    authority = re.split("[/?#]", rest)[0]
    user, colon, after = authority.partition(":")
    if colon and not after.isdigit():  # only digits after the colon are a port
        # A secret key may hold a slash, so the authority can end within it: keep only what
        # follows an "@" that is certainly after the key.
        path = rest[len(authority) :].split("?")[0]
        host = f"@{after.split('@')[-1]}{path}" if "@" in after else ""
        return f"{scheme}://{user}:...{host}", "a password"
    for name, value in parse_qsl(place.partition("?")[2]):
        letters = re.sub("[^a-z]", "", name.lower())
        if letters.endswith(SECRET_WORDS) or "@" in value:
            return place.split("?")[0], f"a secret ({name})"
    return None


def explain_access(error: Exception) -> str:
    """Return the reason for an access error in plain words."""
    message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    for fragment, explanation in ACCESS_ERRORS.items():
        if fragment in message:
            return explanation
    return message


def _check_uri(place: str) -> None:
    """Raise StudyError if a URI names no bucket or host, where its scheme needs one."""
    try:
        parts = urlsplit(place)
        valid = bool(parts.netloc) or parts.scheme in {"file", "hdfs"}
    except ValueError:
        valid = False
    if not valid:
        raise StudyError(
            f"Storage {place!r} names no bucket; give a folder or a URI such as s3://bucket/folder."
        )
