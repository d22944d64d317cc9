"""A web address as a source: a live stream or a recording, whichever is found there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from pipeline.frames import Frame
from pipeline.ports import Health
from stream.file import FileOptions, FileSource
from stream.http_client import WebClient
from stream.http_file import WebFile
from stream.http_probe import CONTAINER_OPTIONS, RecordingFoundError, WebLine, WebOptions
from stream.http_uri import is_recording
from stream.hwaccel import DecoderSelector
from stream.live import ConnectionSpec, LiveSource
from stream.network import Timeouts
from stream.redact import redact

_RECORDING_SECONDS = 5.0  # a reader that pauses must not be cut off by its own pause, only by the server's


class WebSource:
    """Frames of what stands behind a web address.

    Whether it is live is known once the server has answered, before the first frame; until then ``live`` is a guess by
    the address. ``frames`` raises ``SourceError`` where it cannot be had, and ``CorruptMediaError`` for a recording
    that is not whole.
    """

    def __init__(
        self, uri: str, *, camera: str, timeouts: Timeouts, decoder: DecoderSelector, options: WebOptions | None = None
    ) -> None:
        options = options or WebOptions()
        self.camera = camera
        self.uri = redact(uri)
        self._patience = timeouts
        self._decoder = decoder
        self._client = WebClient(uri, allowed_hosts=options.allowed_hosts)
        web = WebLine(self._client, lambda: self.camera, options, decoder)
        seems_finite = options.live is False or (options.live is None and is_recording(uri))
        line = ConnectionSpec(
            web.open,
            web.packets,
            timeouts.open_timeout_seconds,
            timeouts.read_timeout_seconds,
            attempts=timeouts.attempts,
            first_attempts=1 if seems_finite else None,
            decoder=decoder,
        )
        stream = LiveSource(uri=self.uri, camera=camera, spec=line)
        stream.live = not seems_finite
        self._inner: LiveSource | FileSource = stream

    @property
    def live(self) -> bool:
        """Whether the world goes on when nobody reads; a guess until the server has answered."""
        return self._inner.live

    @property
    def frames_total(self) -> int | None:
        """How many frames it will give, where that is known."""
        return self._inner.frames_total

    @property
    def rate(self) -> float | None:
        """Frames per second it says it gives."""
        return self._inner.rate

    @property
    def health(self) -> Health:
        """How it does right now."""
        return self._inner.health

    def __enter__(self) -> Self:
        self._decoder.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames until the end of what is finite, or until ``stop`` is set."""
        self._inner.camera = self.camera
        try:
            yield from self._inner.frames(stop)
        except RecordingFoundError:
            self._inner = self._recording()
        else:
            return
        yield from self._inner.frames(stop)

    def _recording(self) -> FileSource:
        timeouts = self._patience

        def opened(stop: threading.Event) -> WebFile:
            return WebFile(
                self._client,
                self._client.address,
                answer_seconds=timeouts.open_timeout_seconds,
                read_seconds=max(timeouts.read_timeout_seconds, _RECORDING_SECONDS),
                stop=stop,
            )

        reading = FileOptions(threads="SLICE", options=tuple(CONTAINER_OPTIONS.items()), open_remote=opened)
        return FileSource(self.uri, camera=self.camera, remote=True, reading=reading, decoder=self._decoder)
