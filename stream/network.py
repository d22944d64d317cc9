"""Opens network streams with FFmpeg; shared timeouts and options."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from stream.attempt import Attempt
from stream.decode import VideoPacket
from stream.hwaccel import DecoderSelector
from stream.live import ConnectionSpec, LiveSource, demuxed
from stream.redact import redact

Open = Callable[[Attempt], AbstractContextManager[InputContainer]]
Packets = Callable[[InputContainer, threading.Event], Iterator[VideoPacket]]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of connections, in seconds."""

    open_timeout_seconds: float
    read_timeout_seconds: float
    attempts: int | None = None
    """Number of failed attempts in a row after which the source fails; None: no limit."""


def network_source(
    uri: str,
    *,
    camera: str,
    timeouts: Timeouts,
    decoder: DecoderSelector,
    opened: Open,
    packets: Packets = demuxed,
) -> LiveSource:
    """Create a live source of ``uri``; ``opened`` opens its connections, ``packets`` reads them."""
    spec = ConnectionSpec(
        opened,
        packets,
        timeouts.open_timeout_seconds,
        timeouts.read_timeout_seconds,
        attempts=timeouts.attempts,
        decoder=decoder,
    )
    return LiveSource(uri=redact(uri), camera=camera, spec=spec)


def open_container(uri: str, *, options: dict[str, str], attempt: Attempt, decoder: DecoderSelector) -> InputContainer:
    """Open ``uri`` with FFmpeg's ``options`` within the attempt's time limits."""
    container = decoder.open(uri, options=options, timeout=(attempt.answer_seconds, attempt.read_seconds))
    # FFmpeg does not pass options of the container to the decoder, so they are set here.
    for stream in container.streams.video:
        context = cast("VideoCodecContext | None", stream.codec_context)  # None: an unknown codec
        if context is not None and "err_detect" in options:
            context.options = {**context.options, "err_detect": options["err_detect"]}
    return container
