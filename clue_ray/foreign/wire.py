"""Decode the two binary logs that trackers write, without their libraries.

A TensorBoard event file is a TFRecord stream and a W&B `.wandb` file a LevelDB log; both hold
protobuf messages. Only field numbers, wire types and lengths are read here: no schema is needed,
nothing of a file is executed, and a file that ends in the middle of a record yields those before.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator

BLOCK = 32_768
"""Size of a block of a LevelDB log; a header that does not fit is padding."""
WANDB_HEADER, RECORD_HEADER = 7, 7
"""Bytes before the first record of a `.wandb` file, and before each record of a LevelDB log."""
FULL, FIRST, LAST = 1, 2, 4
"""Kinds of a fragment of a LevelDB log; the third, the middle of a record, needs no name."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_BITS = 70
"""Of a number, in ten bytes: one of a million would take hours."""

Message = dict[int, list[int | bytes]]
"""Values by field number, in order: varints and fixed numbers as ints of their bits, or bytes."""


def decode(message: bytes) -> Message:
    """Decode one protobuf message.

    Raises:
        ValueError: it is not one.
    """
    fields: Message = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            fields[number].append(value)
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is unknown")
        piece = message[at : at + size]
        if len(piece) < size:
            raise ValueError("the message is cut")
        fields[number].append(piece if kind == BYTES else int.from_bytes(piece, "little"))
        at += size
    return fields


def message_in(fields: Message, number: int) -> Message:
    """Return the last message in a field; an empty one where the field is absent."""
    found = fields.get(number, [b""])[-1]
    return decode(found) if isinstance(found, bytes) else {}


def text_in(fields: Message, number: int) -> str:
    """Return the last text in a field; empty where the field is absent."""
    found = fields.get(number, [b""])[-1]
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""


def number_in(fields: Message, number: int, default: int = 0) -> int:
    """Return the last number in a field, a float as its bits; `default` where it is absent."""
    found = fields.get(number, [default])[-1]
    return found if isinstance(found, int) else default


def as_float(bits: int) -> float:
    """Read the lowest 32 bits as a float."""
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])


def as_double(bits: int) -> float:
    """Read the lowest 64 bits as a float."""
    return float(struct.unpack("<d", struct.pack("<Q", bits & 0xFFFFFFFFFFFFFFFF))[0])


def tf_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a TFRecord file up to its end or to the first one that is cut."""
    at = 0
    while at + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        if at + 16 + size > len(content):
            return
        yield content[at + 12 : at + 12 + size]
        at += 16 + size  # length and its checksum, the record and its checksum


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file up to its end or to the first one that is cut."""
    at, parts = WANDB_HEADER, list[bytes]()
    while at + RECORD_HEADER <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        piece = content[at + RECORD_HEADER : at + RECORD_HEADER + size]
        if len(piece) < size or kind == 0:
            return
        at += RECORD_HEADER + size
        parts = [piece] if kind in (FULL, FIRST) else [*parts, piece]
        if kind in (FULL, LAST):
            yield b"".join(parts)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits per byte, and return it with the place behind it."""
    value = shift = 0
    while at < len(message) and shift < MOST_BITS:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("the message is cut, or a number in it has no end")
