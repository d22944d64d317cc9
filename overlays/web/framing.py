"""Binary message of a frame for the page: header length (4 bytes, big endian), header, JPEG. Pure.

The header is that of the wire format (``docs/wire.md``); the image has no heat map, which the header holds as its grid.
"""

from __future__ import annotations

import struct

from overlays.wire.message import encode
from pipeline.errors import WireError
from pipeline.frames import Overlay


def pack(overlay: Overlay, jpeg: bytes, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Encode a message; ``overlay.image`` is the plain image in the size it is sent in, ``jpeg`` the same as JPEG.

    Raises:
        WireError: the explanation exceeds a limit of the wire format.
    """
    _, header, payload = encode(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic, jpeg=jpeg)
    return struct.pack(">I", len(header)) + header + payload


def unpack(packet: bytes) -> tuple[bytes, bytes]:
    """Return the header and the JPEG of a message.

    Raises:
        WireError: the message is truncated.
    """
    length = int.from_bytes(packet[:4], "big")
    if len(packet) < 4 + length:
        raise WireError(f"packet: {len(packet)} bytes, but its header alone has {length}")
    return packet[4 : 4 + length], packet[4 + length :]
