"""Reads from a container its duration, its numbers of frames and packets, and whether it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# Top-level boxes of an MP4 file in which an unfinished copy may end; anything else after the last box is padding.
_MP4_BOXES: Final = frozenset({b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"sidx", b"mfra", b"free", b"skip"})
_COUNTS_PACKETS: Final = frozenset({"mov", "mp4"})


def is_complete_gif(path: str) -> bool:
    """Return whether a GIF has its trailer byte, which FFmpeg does not check.

    Bytes after the trailer count as padding.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
        header = file.read(13)
        if len(header) < 13:
            return False
        _skip_colours(file, header[10])
        while block_type := file.read(1):
            if block_type == b";":
                return True
            if block_type == b",":
                descriptor = file.read(9)
                if len(descriptor) < 9:
                    return False
                _skip_colours(file, descriptor[8])
                file.seek(1, os.SEEK_CUR)  # LZW's code size
            elif block_type == b"!":
                file.seek(1, os.SEEK_CUR)
            else:
                return False
            while size := file.read(1):
                if size == b"\0":
                    break
                file.seek(size[0], os.SEEK_CUR)
        return False


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)


def mp4_is_whole(path: str) -> bool:
    """Return whether the last box of an MP4 file is complete."""
    size = os.path.getsize(path)  # noqa: PTH202 - the path is FFmpeg's, as given
    with open(path, "rb") as file:  # noqa: PTH123
        return all(end <= size for _, end in _boxes(file, size))


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield type and end, in bytes, of each top-level box of an MP4 file."""
    offset = 0
    while offset + 8 <= size:
        file.seek(offset)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind not in _MP4_BOXES or length == 0:  # 0: the box extends to the end of the file
            return
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return
        offset += length
        yield kind, offset


def avi_has_index(path: str) -> bool:
    """Return whether an AVI file has its index, which a recorder writes last.

    In a file of several parts (OpenDML, above 1 GB) only the first part has an index, and it does not cover the others.
    """
    size = os.path.getsize(path)  # noqa: PTH202 - the path is FFmpeg's, as given
    with open(path, "rb") as file:  # noqa: PTH123
        if file.read(4) != b"RIFF":
            return False
        end = 8 + int.from_bytes(file.read(4), "little")
        file.seek(end + end % 2)
        if file.read(4) == b"RIFF":
            return False
        offset = 12
        while offset + 8 <= size:
            file.seek(offset)
            kind, length = file.read(4), int.from_bytes(file.read(4), "little")
            offset += 8 + length + length % 2
            if kind == b"idx1":
                return length > 0 and offset <= size
            if length == 0:
                return False
    return False


def declared_duration(container: InputContainer | None, stream: VideoStream) -> float | None:
    """Return the declared end of the video in seconds; None: not declared.

    The end is the stream's start plus its duration. If the stream declares no duration and is the only stream, the
    container's duration counts.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    with contextlib.suppress(ValueError, KeyError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # Matroska: the end of the stream
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container is None or container.duration is None or len(container.streams) > 1:
        return None
    return (container.duration + (container.start_time or 0)) / av.time_base


def packets_total(container: InputContainer, stream: VideoStream) -> int | None:
    """Return the declared number of packets; None: not declared.

    The edit list of an MP4 file may hide packets: a losslessly trimmed video stores all packets and shows some of them.
    """
    if _COUNTS_PACKETS.isdisjoint(container.format.name.split(",")) or not stream.frames:
        return None
    return min(stream.frames, len(stream.index_entries))


def frames_total(container: InputContainer, stream: VideoStream) -> int | None:
    """Return the declared number of frames; None if it is missing or contradictory."""
    if not stream.frames:
        return None
    shown = (
        [entry for entry in stream.index_entries if not entry.is_discard] if packets_total(container, stream) else []
    )
    counted = min(len(shown), stream.frames) or stream.frames
    end, rate = declared_duration(container, stream), stream.average_rate
    start = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    seconds = None if end is None else end - start
    if seconds and rate and not 1 / 1.5 < counted / (seconds * float(rate)) < 1.5:
        return None
    return int(counted)
