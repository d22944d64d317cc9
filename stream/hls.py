"""HLS: follows a playlist and reads its segments in order, each fetched once.

FFmpeg's HLS demuxer is not used: it restarts after each pause and fetches segments again, its waits between segments
cannot be interrupted, and it connects to any host that a playlist names.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Final

import av
import av.error

from stream.attempt import Attempt
from stream.failures import Failure, FailureError
from stream.http_client import Response, WebClient
from stream.playlist import MAX_PLAYLIST_BYTES, Key, Playlist, Segment, best_variant, parse_playlist

log = logging.getLogger(__name__)

_MAX_ENCRYPTED_BYTES: Final = 64 << 20
_AHEAD_BYTES: Final = 32 << 20
_MAX_FAILURES: Final = 5  # in a row
_START_SEGMENTS: Final = 2  # distance from the newest segment at which reading of a live stream starts
_MAX_LAG_SEGMENTS: Final = 6  # a reader that is further behind skips to the newest segments
_MIN_IDLE_FACTOR: Final = 20
"""Minimum pause between two loads of a playlist, as a multiple of its parse time, to save CPU time."""
_STALL_TARGETS: Final = 3  # target durations without a new segment after which a playlist has stalled


class HlsFollower:
    """Reads one playlist across several connections; never fetches a segment twice."""

    def __init__(self, client: WebClient, camera: Callable[[], str], *, live: bool | None) -> None:
        """Create a follower.

        Args:
            client: fetches playlists and segments.
            camera: returns the camera's name, for the log.
            live: True: the stream is live; False: a recording, read from its first segment; None: a recording if the
                playlist has ``EXT-X-ENDLIST``.
        """
        self._client = client
        self._camera = camera
        self._live = live
        self.is_live = True
        """True if the playlist still grows."""
        self._url = ""
        self._playlist = Playlist((), 1.0, ended=False)
        self._next: int | None = None
        self._loaded_at = 0.0
        self._parse_seconds = 0.0
        """Duration of the last request for the playlist, in seconds."""
        self._failures = 0  # in a row
        self._missing = 0
        self._keys: dict[str, bytes] = {}

    def submit(self, text: str, url: str, attempt: Attempt) -> None:
        """Load a media or multivariant playlist; raises the errors of ``WebClient.get``."""
        variant = best_variant(text, url)
        if variant is not None:
            with self._client.get(variant, attempt) as response:
                text, url = _text(response), response.url
        self._url = url
        self._update(self._parse(text, url))
        if self._next is None or self._live is not None or not self._playlist.ended:
            self.is_live = self._live if self._live is not None else not self._playlist.ended
        self._seek_edge()

    @property
    def stall_seconds(self) -> float:
        """Time after which a live playlist without a new segment has stalled."""
        return _STALL_TARGETS * self._playlist.target_seconds

    def next_segment(self, attempt: Attempt) -> Segment | None:
        """Wait for the next segment and return it; None at the end, or when stopped.

        Raises:
            OSError: the playlist cannot be fetched, or did not grow before the deadline.
        """
        while not attempt.stop.is_set():
            segments = self._playlist.segments
            segment = next((s for s in segments if self._next is None or s.number >= self._next), None)
            if segment is not None:
                if self._next is not None and segment.number > self._next:
                    missed = segment.number - self._next
                    log.warning(
                        "%s: %d segments were removed from the playlist before they were read", self._camera(), missed
                    )
                self._next = segment.number + 1
                return segment
            if self._playlist.ended and self._live is not True:
                return None
            self._reload(attempt)
        return None

    def open_segment(self, segment: Segment, attempt: Attempt) -> Response | io.BytesIO:
        """Open a segment and buffer its start. Raises ``OSError``."""
        if segment.key is not None:
            return io.BytesIO(self._decrypted(segment, segment.key, attempt))
        response = self._client.get(segment.resource.url, attempt, headers=segment.resource.headers)
        try:
            response.peek(_AHEAD_BYTES)  # buffer, because paced reading would let the server time out
        except BaseException:
            response.close()
            raise
        return response

    def header(self, segment: Segment, attempt: Attempt) -> bytes:
        """Fetch the initialization section of ``segment``; empty for MPEG-TS."""
        if segment.header is None:
            return b""
        with self._client.get(segment.header.url, attempt, headers=segment.header.headers) as response:
            return response.whole(MAX_PLAYLIST_BYTES)

    def skips(self, segment: Segment, error: FailureError) -> bool:
        """Record the error of a segment; return whether to skip the segment."""
        self._failures += 1
        self._missing += 1
        if self._failures > _MAX_FAILURES or error.failure.cause not in {"not found", "server", "ended"}:
            return False
        log.warning("%s: segment %d is skipped: %s", self._camera(), segment.number, error)
        return True

    def record_success(self) -> None:
        """Record that a segment was read."""
        self._failures = 0

    def check_whole(self) -> None:
        """Raise ``FailureError`` if a finite stream lacks segments."""
        if self._missing and not self.is_live:
            message = f"{self._missing} segments of its playlist could not be fetched"
            raise FailureError(Failure(message, "never", "not found", hint="check the server"))

    def _reload(self, attempt: Attempt) -> None:
        """Fetch the playlist again, at most twice per target duration."""
        pause_seconds = max(self._playlist.target_seconds / 2, _MIN_IDLE_FACTOR * self._parse_seconds)
        attempt.pause(self._loaded_at + pause_seconds - time.monotonic())
        if attempt.stop.is_set():
            return
        with self._client.get(self._url, attempt) as response:
            text, url = _text(response), response.url
        self._update(self._parse(text, url))
        self._seek_edge()

    def _parse(self, text: str, url: str) -> Playlist:
        started_at = time.thread_time()
        try:
            return parse_playlist(text, url)
        finally:
            self._parse_seconds = time.thread_time() - started_at

    def _update(self, playlist: Playlist) -> None:
        if any(segment.key is not None and segment.key.method != "AES-128" for segment in playlist.segments):
            message = "the encryption method of its HLS segments is not supported; only AES-128 is supported"
            raise FailureError(Failure(message, "never", "codec", hint=""))
        self._playlist, self._loaded_at = playlist, time.monotonic()

    def _seek_edge(self) -> None:
        """Choose the next segment to read from a live playlist, after loading it."""
        segments = self._playlist.segments
        if not segments:
            return
        last = segments[-1].number
        if not self.is_live or (self._playlist.ended and self._next is not None):
            return
        edge = segments[max(0, len(segments) - _START_SEGMENTS)].number
        if self._next is None or self._next > last + 1:  # the first playlist, or the camera restarted its numbering
            self._next = edge
        elif last - self._next >= _MAX_LAG_SEGMENTS:
            log.warning(
                "%s: reading is slower than the live stream; %d segments are skipped", self._camera(), edge - self._next
            )
            self._next = edge

    def _decrypted(self, segment: Segment, key: Key, attempt: Attempt) -> bytes:
        if key.url not in self._keys:
            with self._client.get(key.url, attempt) as response:
                self._keys = {
                    key.url: response.whole(1 << 10)
                }  # only the newest key: a camera may change its key any number of times
        with self._client.get(segment.resource.url, attempt, headers=segment.resource.headers) as response:
            content = response.whole(_MAX_ENCRYPTED_BYTES)
        return _decrypt(content, key=self._keys[key.url], iv=key.iv or f"{segment.number:032x}")


class HlsPart:
    """A readable file of all segments up to the next discontinuity."""

    def __init__(self, follower: HlsFollower, first: Segment | None, attempt: Attempt) -> None:
        self._follower = follower
        self._attempt = attempt
        self.following: Segment | None = first
        """The first segment after the discontinuity; None: not known yet."""
        self._segment: Segment | None = None
        self._response: Response | io.BytesIO | None = None
        self._header = b""

    def submit(self) -> bool:
        """Open the first segment; return False if there is none. Raises ``OSError``."""
        return self._advance()

    def close(self) -> None:
        """Close the open segment."""
        if self._response is not None:
            self._response.close()

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; ``b""`` at the end of the part."""
        attempt = self._attempt
        while not attempt.stop.is_set():
            if self._header:
                part, self._header = self._header[:size], self._header[size:]
                return part
            if self._response is None and not self._advance():
                return b""
            if self._response is not None:
                if part := self._response.read(size):
                    return part
                self._response.close()
                self._response = None
        return b""

    def _advance(self) -> bool:
        """Open the next segment of this part; return False at the part's end."""
        attempt, follower = self._attempt, self._follower
        segment = self.following or follower.next_segment(attempt)
        self.following = None
        if segment is None:
            attempt.at_end = "ended"
            return False
        if self._segment is not None and segment.is_discontinuous:
            self.following, attempt.at_end = segment, "next"
            return False
        try:
            if self._segment is None:
                self._header = follower.header(segment, attempt)
            self._response = follower.open_segment(segment, attempt)
        except FailureError as error:
            if not follower.skips(segment, error):
                raise
            attempt.at_end = "next"  # the decoder restarts after the gap
            return False
        self._segment = segment
        follower.record_success()
        attempt.record_data()
        return True


def _text(response: Response) -> str:
    return response.whole(MAX_PLAYLIST_BYTES).decode("utf-8", "replace").removeprefix("\ufeff")


def _decrypt(content: bytes, *, key: bytes, iv: str) -> bytes:
    """Return ``content`` decrypted with AES-128-CBC, by FFmpeg."""
    if len(key) != 16:
        raise FailureError(Failure(f"the key of its HLS segments has {len(key)} bytes; it must have 16", "slow"))
    with tempfile.NamedTemporaryFile(suffix=".ts") as file:
        file.write(content)
        file.flush()
        options = {"decryption_key": key.hex(), "decryption_iv": iv}
        try:
            with av.open(f"crypto:{os.fspath(file.name)}", format="data", options=options) as container:
                return b"".join(bytes(packet) for packet in container.demux() if packet.size)
        except av.error.FFmpegError:
            raise FailureError(Failure("its HLS segments cannot be decrypted with their key", "slow")) from None
