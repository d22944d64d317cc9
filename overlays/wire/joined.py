"""Receives the cameras of several streams in one run, with names that contain the stream's host."""

from __future__ import annotations

from collections.abc import Sequence

from overlays.wire.endpoint import parse_address, without_user
from overlays.wire.remote import RemoteCamera, RemoteStream
from pipeline.errors import ConfigError, SourceError
from pipeline.ports import Discovery


def stream_suffixes(addresses: Sequence[str]) -> list[str]:
    """Return the suffix of the camera names of each stream: "" for a single stream, otherwise ``@HOST``.

    Several streams from one host have the suffix ``@HOST:PORT``, ``ipc`` streams ``@PATH``.

    Raises:
        SourceError: an address is invalid, or two addresses are equal.
    """
    endpoints = []
    for address in addresses:
        try:
            endpoints.append(parse_address(address))
        except ValueError as error:
            raise SourceError(f"{without_user(address)}: {error}") from None
    if len(endpoints) < 2:
        return [""] * len(endpoints)
    hosts = [endpoint.host for endpoint in endpoints]
    names = [
        endpoint.path or (endpoint.host if hosts.count(endpoint.host) == 1 else f"{endpoint.host}:{endpoint.port}")
        for endpoint in endpoints
    ]
    for name, address in zip(names, addresses, strict=True):
        if names.count(name) > 1:
            raise SourceError(f"{address}: the same stream is given twice; give each address once")
    return [f"@{name}" for name in names]


def cameras_by_stream(cameras: Sequence[str], suffixes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the cameras to receive from each stream, without suffixes; an empty tuple selects all cameras.

    Args:
        cameras: names in this run, with the suffix of their stream; empty: all cameras of all streams.
        suffixes: the suffixes of the streams.

    Raises:
        ConfigError: a camera's name ends with no stream's suffix, or no camera of a stream is named.
    """
    chosen = [tuple(name.removesuffix(each) for name in cameras if name.endswith(each)) for each in suffixes]
    for name in cameras:
        if not any(name.endswith(suffix) for suffix in suffixes):
            raise ConfigError(f"--camera {name}: with several streams, name its stream, such as {name}{suffixes[0]}")
    for suffix, names in zip(suffixes, chosen, strict=True):
        if cameras and not names:
            raise ConfigError(
                f"--camera: no given camera belongs to the stream {suffix[1:]}; omit the address of this stream"
            )
    return chosen


class JoinedStreams(Discovery):
    """Finds the cameras of several streams. The names of all cameras must differ."""

    def __init__(self, streams: Sequence[RemoteStream]) -> None:
        self._streams = streams
        for stream in streams:
            stream.notify = self._wake

    def take(self) -> list[RemoteCamera]:
        """Return the cameras that appeared since the previous call; raises the errors of ``RemoteStream.take``."""
        return [camera for stream in self._streams for camera in stream.take()]

    @property
    def notes(self) -> list[str]:
        """Lines for the summary of a run."""
        return [note for stream in self._streams for note in stream.notes]

    @property
    def problem(self) -> str:
        """The streams from which no message arrives, with the reasons; empty if all streams send."""
        return "; ".join(f"{stream.uri}: {stream.problem}" for stream in self._streams if stream.problem)

    def _wake(self) -> None:
        self.notify()
