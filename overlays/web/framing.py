"""Binary message of a frame for the page: header length (4 bytes, big endian), header, image. Pure.

The header is that of the wire format (``docs/wire.md``); the image has no heat map, which the header holds as its grid.
An image is a JPEG, or a unit of H.264 with the key ``video`` in the header.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from overlays.web.video import VideoUnit
from overlays.wire.message import header_record, record_bytes
from pipeline.errors import WireError
from pipeline.frames import Overlay


def pack(overlay: Overlay, jpeg: bytes, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Encode a message; ``overlay.image`` is the plain image in the size it is sent in, ``jpeg`` the same as JPEG.

    Raises:
        WireError: the explanation exceeds a limit of the wire format.
    """
    return _packed(header_record(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic), jpeg)


def pack_video(overlay: Overlay, unit: VideoUnit, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Encode a message with H.264; ``overlay.image`` is the image that ``unit`` holds.

    Raises:
        WireError: the explanation exceeds a limit of the wire format.
    """
    video = {"codec": unit.codec, "key": unit.is_key, "number": unit.number}
    record = header_record(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    record |= {"encoding": "h264", "video": video}
    return _packed(record, unit.payload)


def _packed(record: Mapping[str, Any], payload: bytes) -> bytes:
    header = record_bytes(record)
    return struct.pack(">I", len(header)) + header + payload


def unpack(packet: bytes) -> tuple[bytes, bytes]:
    """Return the header and the image of a message.

    Raises:
        WireError: the message is truncated.
    """
    length = int.from_bytes(packet[:4], "big")
    if len(packet) < 4 + length:
        raise WireError(f"packet: {len(packet)} bytes, but its header alone has {length}")
    return packet[4 : 4 + length], packet[4 + length :]
