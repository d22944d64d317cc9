"""HLS playlists (RFC 8216), as far as cameras and recordings need them. Pure."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin

from stream.failures import Failure, FailureError

MAX_PLAYLIST_BYTES: Final = 4 << 20
_MAX_LINES: Final = 300_000
"""A day of segments of one second, with three lines each."""
_MAX_SEGMENTS: Final = 100_000
_ATTRIBUTE: Final = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')
_MAX_TARGET_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Resource:
    """Something to fetch: all of a URL, or a range of its bytes."""

    url: str
    start: int | None = None
    length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that ask for the range."""
        if self.start is None or self.length is None:
            return {}
        return {"Range": f"bytes={self.start}-{self.start + self.length - 1}"}


@dataclass(frozen=True, slots=True)
class Key:
    """How segments are encrypted."""

    method: str
    url: str
    iv: str | None = None
    """Hexadecimal, without ``0x``; None: the segment's number."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the stream."""

    number: int
    """Its media sequence number."""
    resource: Resource
    seconds: float
    key: Key | None = None
    header: Resource | None = None
    """What stands before it (``EXT-X-MAP``); None for MPEG-TS."""
    starts_anew: bool = False
    """Whether its clock or format differs from that of the segment before it."""


@dataclass(frozen=True, slots=True)
class Playlist:
    """The segments that are there now."""

    segments: tuple[Segment, ...]
    target_seconds: float
    """No segment is longer."""
    ended: bool
    """Whether no segment will be added."""


@dataclass(slots=True)
class _State:
    """What the tags before a segment say of it."""

    number: int = 0
    seconds: float = 0.0
    key: Key | None = None
    header: Resource | None = None
    starts_anew: bool = False
    range: str | None = None
    range_ends: dict[str, int] = field(default_factory=dict)


def best_variant(text: str, url: str) -> str | None:
    """Return the URL of the variant of the highest bandwidth; None where ``text`` is no list of variants."""
    found: list[tuple[int, str]] = []
    bandwidth: int | None = None
    for line in _lines(text):
        if line.startswith("#EXT-X-STREAM-INF:"):
            told = _attributes(line).get("BANDWIDTH", "0")
            bandwidth = int(told) if told.isdecimal() and len(told) < 19 else 0
        elif bandwidth is not None and not line.startswith("#"):
            with contextlib.suppress(ValueError):  # what is no address
                found.append((bandwidth, urljoin(url, line)))
            bandwidth = None
    return max(found, key=lambda one: one[0])[1] if found else None


def parse_playlist(text: str, url: str) -> Playlist:
    """Return what a media playlist fetched from ``url`` says. Raises ``FailureError`` where it is none."""
    if not text.startswith("#EXTM3U"):
        raise FailureError(Failure("what comes from there is no HLS playlist", cause="corrupt"))
    state, segments, ended, target = _State(), list[Segment](), False, 0.0
    try:
        for line in _lines(text):
            if not line.startswith("#"):
                if len(segments) >= _MAX_SEGMENTS:
                    raise _too_long()
                segments.append(_segment(state, url, line))
            elif line.startswith("#EXT-X-TARGETDURATION:"):
                target = float(line.partition(":")[2])
            elif line.startswith("#EXT-X-ENDLIST"):
                ended = True
            else:
                _note(state, url, line)
    except ValueError:
        raise FailureError(Failure("the HLS playlist holds a number that is none", cause="corrupt")) from None
    longest = max((one.seconds for one in segments), default=1.0)
    target = target if target > 0 else longest
    return Playlist(tuple(segments), min(max(target, 0.2), _MAX_TARGET_SECONDS), ended)


def _lines(text: str) -> list[str]:
    """Return the lines that are not empty. Raises ``FailureError`` where they are too many to be worth reading."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        raise _too_long()
    return lines


def _too_long() -> FailureError:
    words = f"its HLS playlist names more than {_MAX_SEGMENTS} segments; limit its length on the server"
    return FailureError(Failure(words, "slow", "corrupt", hint=""))


def _note(state: _State, url: str, line: str) -> None:
    """Take note of a tag that concerns the segments after it."""
    tag, _, told = line.partition(":")
    if tag == "#EXT-X-MEDIA-SEQUENCE":
        state.number = int(told)
    elif tag == "#EXTINF":
        seconds = float(told.partition(",")[0] or 0)
        state.seconds = seconds if 0 <= seconds < 86400 else 0.0
    elif tag == "#EXT-X-DISCONTINUITY":
        state.starts_anew = True
    elif tag == "#EXT-X-BYTERANGE":
        state.range = told
    elif tag == "#EXT-X-KEY":
        attributes = _attributes(line)
        method, iv = attributes.get("METHOD", "NONE"), attributes.get("IV")
        key = Key(method, urljoin(url, attributes.get("URI", "")), iv and f"{int(iv, 16):032x}")
        state.key = None if method == "NONE" else key
    elif tag == "#EXT-X-MAP":
        attributes = _attributes(line)
        place = urljoin(url, attributes.get("URI", ""))
        header = _resource(state, place, attributes.get("BYTERANGE"))
        state.starts_anew |= state.header is not None and header != state.header
        state.header = header


def _segment(state: _State, url: str, line: str) -> Segment:
    resource = _resource(state, urljoin(url, line), state.range)
    segment = Segment(state.number, resource, state.seconds, state.key, state.header, state.starts_anew)
    state.number, state.seconds, state.starts_anew, state.range = state.number + 1, 0.0, False, None
    return segment


def _resource(state: _State, url: str, told: str | None) -> Resource:
    if told is None:
        return Resource(url)
    length, _, start = told.partition("@")
    begin = int(start) if start else state.range_ends.get(url, 0)
    state.range_ends[url] = begin + int(length)
    return Resource(url, begin, int(length))


def _attributes(line: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in _ATTRIBUTE.findall(line.partition(":")[2])}
