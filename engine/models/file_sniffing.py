"""Detects files that contain no weights, such as failed downloads, by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

HEAD_BYTES: Final = 512
_MAX_QUOTED: Final = 40
_ONLY_PYTORCH: Final = "only PyTorch networks are supported; use a state dict (.pth, .safetensors)"
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, probably weights of Keras; {_ONLY_PYTORCH}"),
    (4, b"TFL3", f"is a TensorFlow Lite model; {_ONLY_PYTORCH}"),
    (0, b"GGUF", f"is a GGUF file of a language model; {_ONLY_PYTORCH}"),
    (0, b"\x93NUMPY", f"is a NumPy array; {_ONLY_PYTORCH}"),
    (0, b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (0, b"BZh", "is compressed by bzip2; unpack it first"),
    (0, b"\xfd7zXZ\x00", "is compressed by xz; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; unpack it first"),
    (0, b"Rar!", "is a RAR archive; unpack it first"),
    (0, b"ptrt", f"is a compiled TensorRT engine; {_ONLY_PYTORCH}"),
    (0, b"\xff\xd8\xff", "is a JPEG image; use a file with weights"),
    (0, b"\x89PNG", "is a PNG image; use a file with weights"),
    (257, b"ustar", "is a tar archive; unpack it first, and use the file with the weights"),
    (0, b"%PDF", "is a PDF document; use a file with weights"),
)
"""Offset, signature, and a description with the remedy."""
_ONNX_PRODUCERS: Final = (b"pytorch", b"tf2onnx", b"onnx", b"skl2onnx", b"keras2onnx", b"paddle")


def why_not_weights(begin: bytes) -> str | None:
    """Describe a file without weights, with the remedy; return None if it may contain weights.

    Args:
        begin: the first ``HEAD_BYTES`` bytes of the file.
    """
    if not begin:
        return "is empty; download or save it again"
    known = next((text for offset, signature, text in _SIGNATURES if begin[offset:].startswith(signature)), None)
    return known or _onnx(begin) or _text(begin)


def _onnx(begin: bytes) -> str | None:
    if begin[:1] != b"\x08" or begin[2:3] != b"\x12" or not any(name in begin[:64] for name in _ONNX_PRODUCERS):
        return None
    return f"is an ONNX model; use it as the network, --model FILE.onnx. Otherwise {_ONLY_PYTORCH}"


def _text(begin: bytes) -> str | None:
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; download the file with `git lfs pull`"
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        if b"<net " in begin:
            return "is an OpenVINO model; use it as the network: --model FILE.xml"
        return "is a web page, perhaps an error page of a failed download; download it again from the file's own URL"
    try:
        text = begin.decode("utf-8", "ignore" if len(begin) == HEAD_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    first_line = (text.strip().splitlines() or [""])[0]
    return f"is text that starts with {first_line[:_MAX_QUOTED]!r}; use a file with weights"


def is_safetensors(begin: bytes) -> bool:
    """Return whether a file starts like safetensors: eight bytes with a length, then JSON."""
    return begin[8:9] == b"{"


def read_head(path: Path) -> bytes:
    """Return the first ``HEAD_BYTES`` bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
