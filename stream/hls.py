"""HLS: follows a playlist, and gives its segments one behind the other, each fetched once.

FFmpeg's own HLS reader begins anew after each silence and fetches the same segments again; it waits between segments
without looking whether it is to stop; and it goes to any host that a playlist names.
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
_FAILURES_IN_A_ROW: Final = 5
_BEHIND_THE_EDGE: Final = 2  # how many segments a live stream is begun before its newest end
_FARTHEST_BEHIND: Final = 6  # a reader that is farther behind goes on at the edge
_PARSE_SHARE: Final = 20
"""For one second that a playlist takes to be read, it is left alone for so many: other cameras need the processor."""
_STALL_TARGETS: Final = 3  # a playlist that does not grow for so many target durations is lost


class HlsFollower:
    """Follows one playlist across connections: a segment that was begun is never fetched again."""

    def __init__(self, client: WebClient, camera: Callable[[], str], *, live: bool | None) -> None:
        """Take what fetches, and how the camera is called in the log.

        ``live``: None believes the playlist's end mark; True takes no end for one; False reads from the beginning.
        """
        self._client = client
        self._camera = camera
        self._live = live
        self.is_live = True
        """Whether segments are still being made."""
        self._url = ""
        self._playlist = Playlist((), 1.0, ended=False)
        self._next: int | None = None
        self._loaded_at = 0.0
        self._parse_seconds = 0.0
        """How long it took to read the playlist that came last."""
        self._failures = 0  # in a row
        self._missing = 0
        self._keys: dict[str, bytes] = {}

    def submit(self, text: str, url: str, attempt: Attempt) -> None:
        """Take the answer of the camera's address: a playlist, or a list of variants. Raises as ``WebClient.get``."""
        variant = best_variant(text, url)
        if variant is not None:
            with self._client.get(variant, attempt) as response:
                text, url = _text(response), response.url
        self._url = url
        self._take(self._parsed(text, url))
        if self._next is None or self._live is not None or not self._playlist.ended:
            self.is_live = self._live if self._live is not None else not self._playlist.ended
        self._settle()

    @property
    def patience_seconds(self) -> float:
        """How long a live playlist may go without a new segment."""
        return _STALL_TARGETS * self._playlist.target_seconds

    def next_segment(self, attempt: Attempt) -> Segment | None:
        """Return the next segment, waiting for it; None at the end, or when stopped.

        Raises:
            OSError: the playlist cannot be had, or did not grow before the deadline.
        """
        while not attempt.stop.is_set():
            known = self._playlist.segments
            found = next((one for one in known if self._next is None or one.number >= self._next), None)
            if found is not None:
                if self._next is not None and found.number > self._next:
                    missed = found.number - self._next
                    log.warning("%s: %d segments left the playlist before they were read", self._camera(), missed)
                self._next = found.number + 1
                return found
            if self._playlist.ended and self._live is not True:
                return None
            self._reload(attempt)
        return None

    def open_segment(self, segment: Segment, attempt: Attempt) -> Response | io.BytesIO:
        """Return a segment, open for reading; it has arrived. Raises ``FailureError`` and ``OSError``."""
        if segment.key is not None:
            return io.BytesIO(self._decrypted(segment, segment.key, attempt))
        response = self._client.get(segment.resource.url, attempt, headers=segment.resource.headers)
        try:
            response.peek(_AHEAD_BYTES)  # while it is paced, the server is not kept waiting
        except BaseException:
            response.close()
            raise
        return response

    def header(self, segment: Segment, attempt: Attempt) -> bytes:
        """Return what stands before a part that begins with ``segment``; empty for MPEG-TS."""
        if segment.header is None:
            return b""
        with self._client.get(segment.header.url, attempt, headers=segment.header.headers) as response:
            return response.whole(MAX_PLAYLIST_BYTES)

    def passes_over(self, segment: Segment, error: FailureError) -> bool:
        """Say whether to go on behind a segment that is gone; not after too many in a row."""
        self._failures += 1
        self._missing += 1
        if self._failures > _FAILURES_IN_A_ROW or error.failure.cause not in {"not found", "server", "ended"}:
            return False
        log.warning("%s: segment %d is missing: %s", self._camera(), segment.number, error)
        return True

    def succeeded(self) -> None:
        """Note that a segment could be read."""
        self._failures = 0

    def check_whole(self) -> None:
        """Raise ``FailureError`` where segments of a finished stream were missing; call it at its end."""
        if self._missing and not self.is_live:
            words = f"{self._missing} of the segments that its playlist names could not be had"
            raise FailureError(Failure(words, "never", "not found", hint="check the server"))

    def _reload(self, attempt: Attempt) -> None:
        """Fetch the playlist again, at most twice in its target duration; a very long one more rarely."""
        rest_seconds = max(self._playlist.target_seconds / 2, _PARSE_SHARE * self._parse_seconds)
        attempt.pause(self._loaded_at + rest_seconds - time.monotonic())
        if attempt.stop.is_set():
            return
        with self._client.get(self._url, attempt) as response:
            text, url = _text(response), response.url
        self._take(self._parsed(text, url))
        self._settle()

    def _parsed(self, text: str, url: str) -> Playlist:
        began_at = time.thread_time()
        try:
            return parse_playlist(text, url)
        finally:
            self._parse_seconds = time.thread_time() - began_at

    def _take(self, playlist: Playlist) -> None:
        if any(one.key is not None and one.key.method != "AES-128" for one in playlist.segments):
            words = "its HLS segments are encrypted by a method that is not known here; only AES-128 is"
            raise FailureError(Failure(words, "never", "codec", hint=""))
        self._playlist, self._loaded_at = playlist, time.monotonic()

    def _settle(self) -> None:
        """Choose where to go on in a playlist that was just loaded."""
        segments = self._playlist.segments
        if not segments:
            return
        last = segments[-1].number
        if not self.is_live or (self._playlist.ended and self._next is not None):
            return
        edge = segments[max(0, len(segments) - _BEHIND_THE_EDGE)].number
        if self._next is None or self._next > last + 1:  # the first, or a camera that counts anew
            self._next = edge
        elif last - self._next >= _FARTHEST_BEHIND:
            log.warning("%s: %d segments are left out to catch up", self._camera(), edge - self._next)
            self._next = edge

    def _decrypted(self, segment: Segment, key: Key, attempt: Attempt) -> bytes:
        if key.url not in self._keys:
            with self._client.get(key.url, attempt) as response:
                self._keys = {key.url: response.whole(1 << 10)}  # the newest alone: a camera may change it for ever
        with self._client.get(segment.resource.url, attempt, headers=segment.resource.headers) as response:
            content = response.whole(_MAX_ENCRYPTED_BYTES)
        return _decrypt(content, key=self._keys[key.url], iv=key.iv or f"{segment.number:032x}")


class HlsPart:
    """A file of the segments up to the next break of clock or format; ``attempt.at_end`` tells what follows it."""

    def __init__(self, follower: HlsFollower, first: Segment | None, attempt: Attempt) -> None:
        self._follower = follower
        self._attempt = attempt
        self.following: Segment | None = first
        """The segment that the next part begins with; None: it is yet to be found."""
        self._begun: Segment | None = None
        self._response: Response | io.BytesIO | None = None
        self._header = b""

    def submit(self) -> bool:
        """Open the first segment; return whether there is one. Raises ``OSError``."""
        return self._advance()

    def close(self) -> None:
        """Close what is open."""
        if self._response is not None:
            self._response.close()

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end of the part. Raises ``OSError``."""
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
        """Open the next segment of this part. Returns False at the part's end."""
        attempt, follower = self._attempt, self._follower
        segment = self.following or follower.next_segment(attempt)
        self.following = None
        if segment is None:
            attempt.at_end = "ended"
            return False
        if self._begun is not None and segment.starts_anew:
            self.following, attempt.at_end = segment, "next"
            return False
        try:
            if self._begun is None:
                self._header = follower.header(segment, attempt)
            self._response = follower.open_segment(segment, attempt)
        except FailureError as error:
            if not follower.passes_over(segment, error):
                raise
            attempt.at_end = "next"  # what follows the gap is decoded anew
            return False
        self._begun = segment
        follower.succeeded()
        attempt.heard()
        return True


def _text(response: Response) -> str:
    return response.whole(MAX_PLAYLIST_BYTES).decode("utf-8", "replace").removeprefix("\ufeff")


def _decrypt(content: bytes, *, key: bytes, iv: str) -> bytes:
    """Return what AES-128-CBC hides, by FFmpeg's own ``crypto`` protocol."""
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
