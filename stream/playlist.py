"""Parses HLS playlists (RFC 8216)."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin

from stream.failures import Failure, FailureError

MAX_PLAYLIST_BYTES: Final = 4 << 20
_MAX_LINES: Final = 300_000
"""Enough for one day of segments of 1 s, with three lines each."""
_MAX_SEGMENTS: Final = 100_000
_ATTRIBUTE: Final = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)')
_MAX_TARGET_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Resource:
    """A URL to fetch, or a range of its bytes."""

    url: str
    start: int | None = None
    length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The request headers for the byte range; empty for the whole URL."""
        if self.start is None or self.length is None:
            return {}
        return {"Range": f"bytes={self.start}-{self.start + self.length - 1}"}


@dataclass(frozen=True, slots=True)
class Key:
    """The encryption of segments (``EXT-X-KEY``)."""

    method: str
    url: str
    iv: str | None = None
    """Initialization vector, hexadecimal without ``0x``; None: the segment's number."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A media segment."""

    number: int
    """The media sequence number."""
    resource: Resource
    seconds: float
    key: Key | None = None
    header: Resource | None = None
    """The initialization section (``EXT-X-MAP``); None for MPEG-TS."""
    is_discontinuous: bool = False
    """True if its clock or format differs from the previous segment's (``EXT-X-DISCONTINUITY``)."""


@dataclass(frozen=True, slots=True)
class Playlist:
    """A media playlist."""

    segments: tuple[Segment, ...]
    target_seconds: float
    """The maximum duration of a segment."""
    ended: bool
    """True if the playlist is final (``EXT-X-ENDLIST``)."""


@dataclass(slots=True)
class _State:
    """Values of the tags before a segment."""

    number: int = 0
    seconds: float = 0.0
    key: Key | None = None
    header: Resource | None = None
    is_discontinuous: bool = False
    range: str | None = None
    range_ends: dict[str, int] = field(default_factory=dict)


def best_variant(text: str, url: str) -> str | None:
    """Return the URL of the variant with the highest bandwidth; None: no multivariant playlist."""
    variants: list[tuple[int, str]] = []
    bandwidth: int | None = None
    for line in _lines(text):
        if line.startswith("#EXT-X-STREAM-INF:"):
            value = _attributes(line).get("BANDWIDTH", "0")
            bandwidth = int(value) if value.isdecimal() and len(value) < 19 else 0
        elif bandwidth is not None and not line.startswith("#"):
            with contextlib.suppress(ValueError):  # not a valid address
                variants.append((bandwidth, urljoin(url, line)))
            bandwidth = None
    return max(variants, key=lambda variant: variant[0])[1] if variants else None


def parse_playlist(text: str, url: str) -> Playlist:
    """Return the media playlist in ``text``. Raises ``FailureError``."""
    if not text.startswith("#EXTM3U"):
        raise FailureError(Failure("the server's response is not an HLS playlist", cause="corrupt"))
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
                _apply_tag(state, url, line)
    except ValueError:
        raise FailureError(Failure("the HLS playlist contains an invalid number", cause="corrupt")) from None
    longest = max((segment.seconds for segment in segments), default=1.0)
    target = target if target > 0 else longest
    return Playlist(tuple(segments), min(max(target, 0.2), _MAX_TARGET_SECONDS), ended)


def _lines(text: str) -> list[str]:
    """Return the lines that are not empty. Raises ``FailureError``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        raise _too_long()
    return lines


def _too_long() -> FailureError:
    message = f"its HLS playlist has more than {_MAX_SEGMENTS} segments; limit its length on the server"
    return FailureError(Failure(message, "slow", "corrupt", hint=""))


def _apply_tag(state: _State, url: str, line: str) -> None:
    """Apply the tag in ``line`` to ``state``, for the segments after it."""
    tag, _, value = line.partition(":")
    if tag == "#EXT-X-MEDIA-SEQUENCE":
        state.number = int(value)
    elif tag == "#EXTINF":
        seconds = float(value.partition(",")[0] or 0)
        state.seconds = seconds if 0 <= seconds < 86400 else 0.0
    elif tag == "#EXT-X-DISCONTINUITY":
        state.is_discontinuous = True
    elif tag == "#EXT-X-BYTERANGE":
        state.range = value
    elif tag == "#EXT-X-KEY":
        attributes = _attributes(line)
        method, iv = attributes.get("METHOD", "NONE"), attributes.get("IV")
        key = Key(method, urljoin(url, attributes.get("URI", "")), iv and f"{int(iv, 16):032x}")
        state.key = None if method == "NONE" else key
    elif tag == "#EXT-X-MAP":
        attributes = _attributes(line)
        header_url = urljoin(url, attributes.get("URI", ""))
        header = _resource(state, header_url, attributes.get("BYTERANGE"))
        state.is_discontinuous |= state.header is not None and header != state.header
        state.header = header


def _segment(state: _State, url: str, line: str) -> Segment:
    resource = _resource(state, urljoin(url, line), state.range)
    segment = Segment(state.number, resource, state.seconds, state.key, state.header, state.is_discontinuous)
    state.number, state.seconds, state.is_discontinuous, state.range = state.number + 1, 0.0, False, None
    return segment


def _resource(state: _State, url: str, byte_range: str | None) -> Resource:
    if byte_range is None:
        return Resource(url)
    length, _, start = byte_range.partition("@")
    begin = int(start) if start else state.range_ends.get(url, 0)
    state.range_ends[url] = begin + int(length)
    return Resource(url, begin, int(length))


def _attributes(line: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in _ATTRIBUTE.findall(line.partition(":")[2])}
