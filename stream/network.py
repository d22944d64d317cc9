"""Network streams that FFmpeg opens: shared timeouts and options."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from stream.attempt import Attempt
from stream.failures import FailureError
from stream.hwaccel import DecoderSelector
from stream.live import ConnectionSpec, LiveSource, demuxed
from stream.redact import redact
from stream.rtsp_challenge import why_unauthorised


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of connections, in seconds."""

    open_timeout_seconds: float
    read_timeout_seconds: float
    attempts: int | None = None
    """How many attempts in a row may fail before the source fails; None: no limit."""


def network_source(
    uri: str, *, camera: str, options: dict[str, str], timeouts: Timeouts, decoder: DecoderSelector
) -> LiveSource:
    """Return a live source of ``uri`` that FFmpeg opens with ``options``."""

    def opened(attempt: Attempt) -> AbstractContextManager[InputContainer]:
        timeout = (attempt.answer_seconds, attempt.read_seconds)
        try:
            container = decoder.open(uri, options=options, timeout=timeout)
        except av.error.HTTPUnauthorizedError:
            if failure := why_unauthorised(uri, attempt):
                raise FailureError(failure) from None
            raise
        # FFmpeg does not pass options of the container to the decoder.
        for stream in container.streams.video:
            context = cast("VideoCodecContext | None", stream.codec_context)  # None: an unknown codec
            if context is not None and "err_detect" in options:
                context.options = {**context.options, "err_detect": options["err_detect"]}
        return container

    spec = ConnectionSpec(
        opened,
        demuxed,
        timeouts.open_timeout_seconds,
        timeouts.read_timeout_seconds,
        attempts=timeouts.attempts,
        decoder=decoder,
    )
    return LiveSource(uri=redact(uri), camera=camera, spec=spec)
