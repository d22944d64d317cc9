"""What a file is that was meant to hold weights: a failed download looks like weights until it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final

LOOKED_AT_BYTES: Final = 512
_SHOWN: Final = 40
_ONLY_PYTORCH: Final = "only PyTorch's networks are explained here; give a state dict (.pth, .safetensors)"
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras writes its weights; {_ONLY_PYTORCH}"),
    (4, b"TFL3", f"is a TensorFlow Lite model; {_ONLY_PYTORCH}"),
    (0, b"GGUF", f"is a GGUF file of a language model; {_ONLY_PYTORCH}"),
    (0, b"\x93NUMPY", f"is a NumPy array; {_ONLY_PYTORCH}"),
    (0, b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (0, b"BZh", "is compressed by bzip2; unpack it first"),
    (0, b"\xfd7zXZ\x00", "is compressed by xz; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; unpack it first"),
    (0, b"Rar!", "is a RAR archive; unpack it first"),
    (0, b"ptrt", f"is a compiled TensorRT engine; {_ONLY_PYTORCH}"),
    (0, b"\xff\xd8\xff", "is a JPEG picture; give the file of weights"),
    (0, b"\x89PNG", "is a PNG picture; give the file of weights"),
    (257, b"ustar", "is a tar archive; unpack it first, and give the file of weights"),
    (0, b"%PDF", "is a PDF document; give the file of weights"),
)
"""Offset, bytes and what they mean, with the cure."""
_ONNX_PRODUCERS: Final = (b"pytorch", b"tf2onnx", b"onnx", b"skl2onnx", b"keras2onnx", b"paddle")


def why_not_weights(begin: bytes) -> str | None:
    """Return what a file is, and the cure, by its first bytes; None where it may hold weights."""
    if not begin:
        return "is empty; fetch or save it again"
    signed = next((told for at, signature, told in _SIGNATURES if begin[at:].startswith(signature)), None)
    return signed or _onnx(begin) or _text(begin)


def _onnx(begin: bytes) -> str | None:
    if begin[:1] != b"\x08" or begin[2:3] != b"\x12" or not any(one in begin[:64] for one in _ONNX_PRODUCERS):
        return None
    return f"is an ONNX model; if `run.py export` wrote it, give it by --model FILE.onnx. Otherwise {_ONLY_PYTORCH}"


def _text(begin: bytes) -> str | None:
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, and not the file it stands for; fetch that with `git lfs pull`"
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        if b"<net " in begin:
            return f"is an OpenVINO model; {_ONLY_PYTORCH}"
        return "is a web page, perhaps an error's: the download failed; fetch it again, from where the file itself lies"
    try:
        text = begin.decode("utf-8", "ignore" if len(begin) == LOOKED_AT_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if not all(one.isprintable() or one in "\t\r\n" for one in text):
        return None
    line = (text.strip().splitlines() or [""])[0]
    return f"is text, which begins {line[:_SHOWN]!r}; give the file of weights itself"


def is_safetensors(begin: bytes) -> bool:
    """Say whether a file looks like safetensors, whatever its name: a length of eight bytes, then JSON."""
    return begin[8:9] == b"{"


def read_head(path: Path) -> bytes:
    """Return as much as is looked at."""
    with path.open("rb") as file:
        return file.read(LOOKED_AT_BYTES)
