"""What a file promises of itself: how long it is, how many pictures it holds, and where it ends."""

from __future__ import annotations

import contextlib
import os

import av
from av.container import InputContainer
from av.video.stream import VideoStream


def gif_is_whole(path: str) -> bool:
    """Say whether a GIF ends as one does; FFmpeg paints what there is of a picture cut short, and says nothing."""
    with open(path, "rb") as file:  # noqa: PTH123 - the path is FFmpeg's, as given
        file.seek(-min(2, os.path.getsize(path)), os.SEEK_END)  # noqa: PTH202
        return b";" in file.read()


def promised_seconds(container: InputContainer | None, stream: VideoStream) -> float | None:
    """How long the video lasts by the file's own word: the stream's, else the container's where it has no sound."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    with contextlib.suppress(ValueError, KeyError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # Matroska's tag, one for each stream
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container is None or container.duration is None or len(container.streams) > 1:
        return None
    return container.duration / av.time_base


def frames_total(container: InputContainer, stream: VideoStream) -> int | None:
    """How many frames the header counts, where its rate and duration agree: AVI may count fields."""
    if not stream.frames:
        return None
    seconds, rate = promised_seconds(container, stream), stream.average_rate
    if seconds and rate and not 1 / 1.5 < stream.frames / (seconds * float(rate)) < 1.5:
        return None
    return int(stream.frames)
