"""Binary message with one frame for the page: header length (4 bytes, big endian), header, image.

The header has the wire format (``docs/wire.md``). The image is a JPEG, or an H.264 access unit, which the header's key
``video`` describes. The image has no heat map; the header contains the heat as a grid.
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
    """Return a message with a JPEG.

    Args:
        overlay: the explained frame; ``overlay.image`` is the plain image in the size of ``jpeg``.
        jpeg: the same image, encoded.
        sent_at_unix: time of encoding, in Unix seconds.
        now_monotonic: the same time on the monotonic clock, in seconds.

    Raises:
        WireError: the explanation exceeds a limit of the wire format.
    """
    return _packed(header_record(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic), jpeg)


def pack_video(overlay: Overlay, unit: VideoUnit, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Return a message with an H.264 access unit; ``overlay.image`` is the plain image encoded in ``unit``.

    The other arguments have the same meaning as in ``pack``.

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
        WireError: the message ends before its header does.
    """
    length = int.from_bytes(packet[:4], "big")
    if len(packet) < 4 + length:
        raise WireError(f"packet: {len(packet)} bytes, but its header alone has {length}")
    return packet[4 : 4 + length], packet[4 + length :]
