"""Pixel formats of industrial cameras, by the names and codes of the Pixel Format Naming Convention (PFNC, EMVA)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_BAYER: Final = {"RG": "rggb", "GR": "grbg", "GB": "gbrg", "BG": "bggr"}
_PACKED: Final = ("10p", "12p", "10Packed", "12Packed")

ENCODINGS: Final = {
    "RGB8": "rgb8",
    "BGR8": "bgr8",
    "RGBa8": "rgba8",
    "BGRa8": "bgra8",
    "YUV422_8": "yuv422_yuy2",
    "YUV422_8_UYVY": "yuv422",
    **{f"Mono{bits}": "mono8" if bits == 8 else "mono16" for bits in (8, 10, 12, 14, 16)},
    **{f"Mono{packing}": "mono16" for packing in _PACKED},
    **{
        f"Bayer{name}{bits}": f"bayer_{pattern}{8 if bits == 8 else 16}"
        for name, pattern in _BAYER.items()
        for bits in (8, 10, 12, 16)
    },
    **{f"Bayer{name}{packing}": f"bayer_{pattern}16" for name, pattern in _BAYER.items() for packing in _PACKED},
}
"""``ImageMessage.encoding`` of each supported pixel format; packed formats are unpacked first."""

CODES: Final = {
    0x02180014: "RGB8",
    0x02180015: "BGR8",
    0x02200016: "RGBa8",
    0x02200017: "BGRa8",
    0x02100032: "YUV422_8",
    0x0210001F: "YUV422_8_UYVY",
    0x01080001: "Mono8",
    0x01100003: "Mono10",
    0x01100005: "Mono12",
    0x01100025: "Mono14",
    0x01100007: "Mono16",
    0x010A0046: "Mono10p",
    0x010C0047: "Mono12p",
    0x010C0004: "Mono10Packed",
    0x010C0006: "Mono12Packed",
    **{0x01080008 + at: f"Bayer{name}8" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x0110000C + at: f"Bayer{name}10" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x01100010 + at: f"Bayer{name}12" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x0110002E + at: f"Bayer{name}16" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x010C0026 + at: f"Bayer{name}10Packed" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x010C002A + at: f"Bayer{name}12Packed" for at, name in enumerate(("GR", "RG", "GB", "BG"))},
    **{0x010A0052 + 2 * at: f"Bayer{name}10p" for at, name in enumerate(("BG", "GB", "GR", "RG"))},
    **{0x010C0053 + 2 * at: f"Bayer{name}12p" for at, name in enumerate(("BG", "GB", "GR", "RG"))},
}
"""Names of the pixel format codes that GigE Vision and USB3 Vision cameras send."""


def unpacked(name: str, data: bytes) -> bytes:
    """Return the pixels of a format; packed pixels become 16-bit values, others stay unchanged.

    ``10p`` and ``12p`` are bit streams, least significant bit first. ``Packed`` is GigE Vision's older layout: two
    pixels in three bytes, the low bits of both in the middle byte.
    """
    if name.endswith("12p"):
        low, middle, high = _groups(data, 3)
        return _joined(low | (middle & 0x0F) << 8, middle >> 4 | high << 4)
    if name.endswith("10p"):
        a, b, c, d, e = _groups(data, 5)
        return _joined(a | (b & 0x03) << 8, b >> 2 | (c & 0x0F) << 6, c >> 4 | (d & 0x3F) << 4, d >> 6 | e << 2)
    if name.endswith("Packed"):
        first, low, second = _groups(data, 3)
        bits = 4 if name.endswith("12Packed") else 2
        mask = (1 << bits) - 1
        return _joined(first << bits | low & mask, second << bits | low >> 4 & mask)
    return data


def _groups(data: bytes, size: int) -> npt.NDArray[np.uint16]:
    """Split ``data`` into groups of ``size`` bytes: (size, groups); the last group is zero-padded."""
    padded = np.frombuffer(data + bytes(-len(data) % size), np.uint8)
    return padded.reshape(-1, size).T.astype(np.uint16)


def _joined(*pixels: npt.NDArray[np.uint16]) -> bytes:
    """Interleave the pixels of all groups, as 16-bit values."""
    return np.stack(pixels, axis=1).astype("<u2").tobytes()
