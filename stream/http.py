"""The source of an HTTP address: a live stream or a recording."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from pipeline.frames import Frame
from pipeline.ports import SourceWrapper
from stream.file import FileOptions, FileSource
from stream.http_client import WebClient
from stream.http_file import WebFile
from stream.http_probe import CONTAINER_OPTIONS, RecordingFoundError, WebOptions, WebStream
from stream.http_uri import is_recording
from stream.hwaccel import DecoderSelector
from stream.live import ConnectionSpec, LiveSource
from stream.network import Timeouts
from stream.redact import redact

_MIN_RECORDING_READ_SECONDS = 5.0  # a slow reader of a recording must not cause a read timeout


class WebSource(SourceWrapper):
    """The frames of an HTTP address.

    The server's first answer decides whether the address is live; until then ``live`` is a guess from the address.
    ``frames`` raises ``SourceError`` if the address cannot be read, and ``CorruptMediaError`` for an incomplete
    recording.
    """

    def __init__(
        self, uri: str, *, camera: str, timeouts: Timeouts, decoder: DecoderSelector, options: WebOptions | None = None
    ) -> None:
        options = options or WebOptions()
        self.camera = camera
        self.uri = redact(uri)
        self._timeouts = timeouts
        self._decoder = decoder
        self._client = WebClient(uri, allowed_hosts=options.allowed_hosts)
        web = WebStream(self._client, lambda: self.camera, options, decoder)
        seems_finite = options.live is False or (options.live is None and is_recording(uri))
        spec = ConnectionSpec(
            web.open,
            web.packets,
            timeouts.open_timeout_seconds,
            timeouts.read_timeout_seconds,
            attempts=timeouts.attempts,
            first_attempts=1 if seems_finite else None,
            decoder=decoder,
        )
        stream = LiveSource(uri=self.uri, camera=camera, spec=spec)
        stream.live = not seems_finite
        self.inner = stream

    def __enter__(self) -> Self:
        self._decoder.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.inner.__exit__(kind, error, trace)

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the end of a finite stream, or until ``stop`` is set."""
        self.inner.camera = self.camera
        try:
            yield from self.inner.frames(stop)
        except RecordingFoundError:
            self.inner = self._recording()
        else:
            return
        yield from self.inner.frames(stop)

    def _recording(self) -> FileSource:
        timeouts = self._timeouts

        def opened(stop: threading.Event) -> WebFile:
            return WebFile(
                self._client,
                self._client.address,
                answer_seconds=timeouts.open_timeout_seconds,
                read_seconds=max(timeouts.read_timeout_seconds, _MIN_RECORDING_READ_SECONDS),
                stop=stop,
            )

        options = FileOptions(threads="SLICE", options=tuple(CONTAINER_OPTIONS.items()), open_remote=opened)
        return FileSource(self.uri, camera=self.camera, remote=True, reading=options, decoder=self._decoder)
