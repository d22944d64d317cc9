"""What a file says of itself: how long it is, how many pictures it holds, and where it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# The boxes at the top of an MP4 file that an unfinished copy may end in; anything else behind the last is padding.
_MP4_BOXES: Final = frozenset({b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"sidx", b"mfra", b"free", b"skip"})
_COUNTS_PACKETS: Final = frozenset({"mov", "mp4"})


def is_complete_gif(path: str) -> bool:
    """Say whether a GIF ends as one does; FFmpeg paints what there is of a picture cut short, and says nothing.

    What lies behind the end mark is padding.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
        header = file.read(13)
        if len(header) < 13:
            return False
        _skip_colours(file, header[10])
        while mark := file.read(1):
            if mark == b";":
                return True
            if mark == b",":
                descriptor = file.read(9)
                if len(descriptor) < 9:
                    return False
                _skip_colours(file, descriptor[8])
                file.seek(1, os.SEEK_CUR)  # LZW's code size
            elif mark == b"!":
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
    """Say whether the last box of an MP4 file is there to its end: a fragmented file states no length elsewhere."""
    size = os.path.getsize(path)  # noqa: PTH202 - the path is FFmpeg's, as given
    with open(path, "rb") as file:  # noqa: PTH123
        return all(end <= size for _, end in _boxes(file, size))


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Give the kind and the end, in bytes, of each box at the top of an MP4 file; stops at what is none."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind not in _MP4_BOXES or length == 0:  # 0: to the end of the file, whatever that is
            return
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return
        at += length
        yield kind, at


def avi_has_index(path: str) -> bool:
    """Say whether an AVI file holds its index, which is written last: it is whole then, whatever its header reserved.

    A file of several parts (OpenDML, above 1 GB) has an index in the first that says nothing of the others.
    """
    size = os.path.getsize(path)  # noqa: PTH202 - the path is FFmpeg's, as given
    with open(path, "rb") as file:  # noqa: PTH123
        if file.read(4) != b"RIFF":
            return False
        end = 8 + int.from_bytes(file.read(4), "little")
        file.seek(end + end % 2)
        if file.read(4) == b"RIFF":
            return False
        at = 12
        while at + 8 <= size:
            file.seek(at)
            kind, length = file.read(4), int.from_bytes(file.read(4), "little")
            at += 8 + length + length % 2
            if kind == b"idx1":
                return length > 0 and at <= size
            if length == 0:
                return False
    return False


def declared_duration(container: InputContainer | None, stream: VideoStream) -> float | None:
    """Return when the video ends by the file's own word, on the file's clock; None where it does not say.

    That is the stream's duration behind its start, or the container's where the stream states none and is alone.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    with contextlib.suppress(ValueError, KeyError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # Matroska's tag: the end of each stream
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container is None or container.duration is None or len(container.streams) > 1:
        return None
    return (container.duration + (container.start_time or 0)) / av.time_base


def packets_total(container: InputContainer, stream: VideoStream) -> int | None:
    """Return how many packets a container that counts them gives when it is whole; None where it does not count.

    An MP4 file may hide some by its edit list: a video trimmed without loss holds them all, and shows a part.
    """
    if _COUNTS_PACKETS.isdisjoint(container.format.name.split(",")) or not stream.frames:
        return None
    return min(stream.frames, len(stream.index_entries))


def frames_total(container: InputContainer, stream: VideoStream) -> int | None:
    """How many frames the header counts, where its rate and duration agree: AVI may count fields."""
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
