"""Encodes and decodes Action Message Format 0, the format of RTMP's commands (Adobe, 2006)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

_NUMBER, _BOOLEAN, _STRING, _OBJECT, _NULL, _UNDEFINED, _ARRAY, _END = 0, 1, 2, 3, 5, 6, 8, 9
_MAX_DEPTH: Final = 8

Value = float | bool | str | None | dict[str, Any]


class Amf0Error(ValueError):
    """A message cannot be decoded."""


def encode(values: Sequence[Value]) -> bytes:
    """Return values as AMF0; objects are dictionaries."""
    return b"".join(map(_encode, values))


def decode(data: bytes) -> list[Value]:
    """Return the values of a message.

    Raises:
        Amf0Error: the message is damaged, or has a type that commands do not use.
    """
    values: list[Value] = []
    offset = 0
    try:
        while offset < len(data):
            value, offset = _decode(data, offset, 0)
            values.append(value)
    except (struct.error, IndexError):
        raise Amf0Error("a message is truncated") from None
    return values


def _encode(value: Value) -> bytes:
    if value is None:
        return bytes((_NULL,))
    if isinstance(value, bool):
        return bytes((_BOOLEAN, value))
    if isinstance(value, (int, float)):
        return struct.pack(">Bd", _NUMBER, value)
    if isinstance(value, str):
        return bytes((_STRING,)) + _name(value)
    body = b"".join(_name(key) + _encode(inner) for key, inner in value.items())
    return bytes((_OBJECT,)) + body + struct.pack(">HB", 0, _END)


def _name(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _decode(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    kind, offset = data[offset], offset + 1
    if kind == _NUMBER:
        return struct.unpack_from(">d", data, offset)[0], offset + 8
    if kind == _BOOLEAN:
        return bool(data[offset]), offset + 1
    if kind == _STRING:
        return _text(data, offset)
    if kind in {_NULL, _UNDEFINED}:
        return None, offset
    if kind in {_OBJECT, _ARRAY} and depth < _MAX_DEPTH:
        return _object(data, offset + (4 if kind == _ARRAY else 0), depth)
    if kind in {_OBJECT, _ARRAY}:
        raise Amf0Error(f"objects are nested more than {_MAX_DEPTH} levels deep")
    raise Amf0Error(f"a value has the unknown type {kind}")


def _object(data: bytes, offset: int, depth: int) -> tuple[dict[str, Value], int]:
    values: dict[str, Value] = {}
    while True:
        key, offset = _text(data, offset)
        if not key and data[offset] == _END:
            return values, offset + 1
        values[key], offset = _decode(data, offset, depth + 1)


def _text(data: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">H", data, offset)
    text = data[offset + 2 : offset + 2 + length]
    if len(text) < length:
        raise Amf0Error("a message is truncated")
    return text.decode("utf-8", "replace"), offset + 2 + length
