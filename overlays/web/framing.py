"""A frame for the page as one message: the header's length (4 bytes, big endian), the header, the JPEG. Pure.

The header is the wire's (``docs/wire.md``); the picture is the plain frame or a smaller one, the heat goes as its grid.
"""

from __future__ import annotations

import struct

from overlays.wire.message import encode
from pipeline.errors import WireError
from pipeline.frames import Overlay


def pack(overlay: Overlay, picture: bytes, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Write the message; the overlay's image is the plain frame in the size it is sent in, ``picture`` its JPEG.

    Raises:
        WireError: the explanation breaks a limit of the wire.
    """
    _, header, payload = encode(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic, picture=picture)
    return struct.pack(">I", len(header)) + header + payload


def unpack(packet: bytes) -> tuple[bytes, bytes]:
    """Return the header and the JPEG.

    Raises:
        WireError: it is cut off.
    """
    length = int.from_bytes(packet[:4], "big")
    if len(packet) < 4 + length:
        raise WireError(f"packet: {len(packet)} bytes, but its header alone has {length}")
    return packet[4 : 4 + length], packet[4 + length :]
