"""Open packed files and files in UTF-16 for reading, by their first bytes rather than their names.

A browser may unpack a download and keep its name, and a file may be packed without saying so.
"""

import codecs
import lzma
import zipfile
from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

MARKS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
"""First bytes of the compressions that Arrow reads, several members in one file included."""
ZIP, XZ = b"PK\x03\x04", b"\xfd7zXZ\x00"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Readable(Protocol):
    """What is read from front to back."""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def unpack(file: pa.NativeFile) -> Readable:
    """Return the content of a file that is open for random access, unpacked if it is packed.

    Text that begins with a byte order mark of UTF-16, as Excel and SQL Server write it, is UTF-8.

    Raises:
        OSError: it is an archive of several files, or its beginning is damaged.
    """
    start = file.read(6)
    file.seek(0)
    stream = _unpack(file, start)
    return file if stream is file and start[:2] not in UTF_16 else _AsUtf8(stream)


def _unpack(file: pa.NativeFile, start: bytes) -> Any:
    if start.startswith(ZIP):
        return _Guarded(_open_zip(file))
    if start.startswith(XZ):
        return _Guarded(lzma.open(file))
    for mark, codec in MARKS.items():
        if start.startswith(mark):
            return pa.CompressedInputStream(file, codec)
    return file


def _open_zip(file: pa.NativeFile) -> Any:
    """Open the only file of a zip archive."""
    archive = _guard(lambda: zipfile.ZipFile(file))
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise OSError(f"the zip archive holds {len(names)} files, and one is needed: unpack it")
    return _guard(lambda: archive.open(names[0]))


class _AsUtf8:
    """A stream that is UTF-8 where it begins with a byte order mark of UTF-16."""

    def __init__(self, stream: Readable):
        self.stream = stream
        self.start = bytes(stream.read(2))
        self.decoder = codecs.getincrementaldecoder("utf-16")("replace")
        self.is_utf_16 = self.start in UTF_16

    def read(self, size: int) -> bytes:
        if not self.is_utf_16:
            return self._read_bytes(size)
        text = ""
        while not text and (data := self._read_bytes(max(2, size // 2))):  # two bytes become three
            text = self.decoder.decode(data)
        return (text or self.decoder.decode(b"", final=True)).encode()

    def _read_bytes(self, size: int) -> bytes:
        start, self.start = self.start[:size], self.start[size:]
        return start + bytes(self.stream.read(size - len(start)))


class _Guarded:
    """A stream whose errors of damaged archives are OSErrors, as Arrow's are."""

    def __init__(self, stream: Any):
        self.stream = stream

    def read(self, size: int) -> bytes:
        return bytes(_guard(lambda: self.stream.read(size)))


def _guard(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (
        zipfile.BadZipFile,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise OSError(f"the archive is damaged or locked: {error}") from None
