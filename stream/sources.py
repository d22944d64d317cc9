"""The table: URI -> Source. Imports no decoder until one is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote, unquote, urlsplit

from pipeline.errors import SourceError, did_you_mean
from pipeline.ports import Source
from stream.limits import FILE_MAX_PIXELS, LIVE_MAX_PIXELS
from stream.paths import kind_of
from stream.redact import authority_of, host_and_path, redact

if TYPE_CHECKING:
    from stream.hwaccel import DecoderSelector

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".hif"}
)
"""Files that are photos. A GIF is a video, animated or not."""

# A card conceals what a lost packet tore out of a picture, and tells nobody.
_HOLES: Final = "a card does not tell of pictures that UDP tore holes into"

_MAX_NAME: Final = 56
"""Of a camera that is called by its address; a stated name may have 64 letters, and ``-2`` may come behind it."""
EXAMPLES: Final = (
    "camera:0, rtsp://HOST/PATH, http://HOST/PATH, rtmp://HOST/PATH, udp://@GROUP:PORT, a video file, "
    "a folder or glob of images, line:"
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources are read: plain values, the same for every kind; each takes what concerns it."""

    read_timeout_seconds: float = 2.0
    """How long a live source may stay silent before it counts as lost; also how soon a blocked read notices a stop."""
    open_timeout_seconds: float = 3.0
    """How long a live source may take to answer."""
    transport: Literal["tcp", "udp"] = "tcp"
    """How RTSP carries pictures."""
    attempts: int | None = None
    """How many attempts in a row may fail before a live source is given up; None: never."""
    threads: Literal["auto", "slice"] = "auto"
    """How files are decoded: ``auto`` for throughput, ``slice`` for the least processor time. Live is always slice."""
    decoder: str = "cpu"
    """What decodes files and network streams: ``cpu``; ``cuda`` or ``cuda:N``, a card or an error; ``auto``, a card
    where it can."""
    gpu: int = 0
    """The card that ``cuda`` and ``auto`` mean."""
    images_per_second: float = 1.0
    """The rate assumed for photos."""
    camera_size: str | None = None
    """What to ask of a webcam, ``WIDTHxHEIGHT``; None: its default."""
    camera_rate: float | None = None
    """What to ask of a webcam, frames per second; None: its default."""
    camera_encoding: str | None = None
    """What to ask of a webcam: ``mjpeg``, ``yuyv422``; None: its default."""
    max_pixels: int | None = None
    """How many pixels a picture may have; a larger one is refused. None: ``LIVE_MAX_PIXELS`` of ``stream.limits`` for
    live sources, ``FILE_MAX_PIXELS`` for files."""

    live: bool | None = None
    """Whether a web address is live; None: found by asking."""
    allowed_hosts: tuple[str, ...] = ()
    """Further hosts that a web address may lead to, ``HOST`` or ``HOST:PORT``."""
    still_rate: float = 1.0
    """Pictures a second asked of a web address that gives one still."""

    def __post_init__(self) -> None:
        for name in ("read_timeout_seconds", "open_timeout_seconds", "images_per_second", "still_rate"):
            if not getattr(self, name) > 0:
                message = f"{name}={getattr(self, name)}: must be above 0"
                raise SourceError(message)
        if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.decoder) is None:
            message = f"decoder={self.decoder!r}: a decoder is cpu, auto, cuda or cuda:N"
            raise SourceError(message)
        if self.max_pixels is not None and self.max_pixels < 1:
            message = f"max_pixels={self.max_pixels}: must be 1 or more; leave it out for the default"
            raise SourceError(message)
        if self.attempts is not None and self.attempts < 1:
            message = f"attempts={self.attempts}: must be 1 or more; leave it out to try for ever"
            raise SourceError(message)


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be built."""

    uri: str
    camera: str | None
    options: SourceOptions


def build_source(uri: str, *, camera: str | None = None, options: SourceOptions | None = None) -> Source:
    """Return the source that ``uri`` names, not yet opened; ``camera`` names it, else its address does.

    Raises ``SourceError`` for a scheme nobody knows and a path where nothing is.
    """
    order = _Order(uri.strip(), camera, options or SourceOptions())
    return _SCHEMES[_scheme(order.uri)].build(order)


def is_live(uri: str) -> bool:
    """Say whether the world goes on when nobody reads ``uri``; opens nothing. Raises like ``build_source``."""
    uri = uri.strip()
    return _SCHEMES[_scheme(uri)].live(uri)


def path_of(uri: str) -> str:
    """Return the path that ``uri`` reads, without the options behind it; ``uri`` itself where it is an address."""
    from stream.local_uri import expanded, split_options

    uri = uri.strip()
    scheme = _scheme(uri)
    if scheme not in {"file", "path"}:
        return uri
    return split_options(expanded(_local(uri) if scheme == "file" else uri))[0]


def plain_name(name: str) -> str:
    """Return a name taken from an address as one may be stated: a line of utf-8 that is not too long.

    It stands in logs, legends, topics and figures, and a file may be called by any bytes.
    """
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", name.encode("utf-8", "replace").decode())
    return line.strip()[:_MAX_NAME].strip() or "camera"


def unique_names(names: Iterable[str]) -> list[str]:
    """Return the names in order, a repeated one with ``-2``, ``-3`` behind it: topics on the wire must differ."""
    given = list(names)
    taken, unique = set(given), []
    seen: set[str] = set()
    for name in given:
        candidate, number = name, 1
        while candidate in seen or (candidate != name and candidate in taken):
            number += 1
            candidate = f"{name}-{number}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


def _scheme(uri: str) -> str:
    """Return the key of the table that reads ``uri``."""
    if not uri:
        message = f"an empty source: name one of {EXAMPLES}"
        raise SourceError(message)
    if uri.isdecimal() and not _exists(uri):
        return "camera"
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", uri)
    if found is None or _exists(uri):
        return "path"
    scheme = found[1].lower()
    if scheme in _ELSEWHERE:
        raise SourceError(f"{redact(uri)}: {_ELSEWHERE[scheme]}")
    if scheme not in _SCHEMES or scheme == "path":
        known = [name for name in _SCHEMES if name != "path"]
        message = f"{redact(uri)}: unknown scheme {scheme!r}.{did_you_mean(scheme, known)} Known: {EXAMPLES}"
        raise SourceError(message)
    return scheme


def _exists(path: str) -> bool:
    try:
        return kind_of(path) != "nothing"
    except SourceError:  # too long for a name: an address
        return False


def _camera(order: _Order) -> Source:
    from stream.camera import CameraMode, CameraSource
    from stream.hwaccel import DecoderSelector
    from stream.network import Timeouts

    options = order.options
    number = order.uri.partition(":")[2] if ":" in order.uri else order.uri
    if not number.isdecimal():
        message = f"{order.uri}: a webcam has a number: camera:0 is the first, /dev/video0"
        raise SourceError(message)
    return CameraSource(
        int(number),
        camera=order.camera or f"camera{int(number)}",
        timeouts=Timeouts(options.open_timeout_seconds, options.read_timeout_seconds, options.attempts),
        mode=CameraMode(options.camera_size, options.camera_rate, options.camera_encoding),
        decoder=DecoderSelector(max_pixels=options.max_pixels or LIVE_MAX_PIXELS),
    )


def _rtsp(order: _Order) -> Source:
    from stream.network import Timeouts
    from stream.rtsp import rtsp_source

    options = order.options
    timeouts = Timeouts(options.open_timeout_seconds, options.read_timeout_seconds, options.attempts)
    return rtsp_source(
        _with_host(order.uri),
        camera=order.camera or host_and_path(order.uri),
        timeouts=timeouts,
        transport=options.transport,
        decoder=_decoder(options, doubt=_HOLES if options.transport == "udp" else ""),
    )


def _http(order: _Order) -> Source:
    from stream.http import WebSource
    from stream.http_probe import WebOptions
    from stream.network import Timeouts

    options = order.options
    return WebSource(
        _with_host(order.uri),
        camera=order.camera or host_and_path(order.uri),
        timeouts=Timeouts(options.open_timeout_seconds, options.read_timeout_seconds, options.attempts),
        decoder=_decoder(options, max_pixels=LIVE_MAX_PIXELS if _http_is_live(order.uri) else FILE_MAX_PIXELS),
        options=WebOptions(options.live, options.allowed_hosts, options.still_rate),
    )


def _broadcast(order: _Order) -> Source:
    """Return a stream that FFmpeg reads by RTMP, or as MPEG-TS in UDP packets."""
    from stream.network import Timeouts, network_source

    options = order.options
    is_udp = order.uri.lower().startswith("udp:")
    if is_udp and not re.match(r"udp://@?[^/@]*:\d{1,5}([/?].*)?$", order.uri, re.IGNORECASE):
        message = f"{redact(order.uri)}: names no port to listen at; write udp://@GROUP:PORT or udp://0.0.0.0:PORT"
        raise SourceError(message)
    # FFmpeg looks for a second what it is; packets wait in 9 MB of memory while a picture is decoded.
    wanted = {"analyzeduration": "1000000", "format_whitelist": "mpegts" if is_udp else "flv,live_flv"}
    if is_udp:
        wanted |= {"fifo_size": "50000", "overrun_nonfatal": "1"}
    return network_source(
        order.uri if is_udp else _with_host(order.uri),
        camera=order.camera or host_and_path(order.uri).lstrip("@"),
        options=wanted,
        timeouts=Timeouts(options.open_timeout_seconds, options.read_timeout_seconds, options.attempts),
        decoder=_decoder(options, doubt=_HOLES if is_udp else ""),
    )


def _decoder(options: SourceOptions, *, doubt: str = "", max_pixels: int = LIVE_MAX_PIXELS) -> DecoderSelector:
    """Return what decodes one source; ``max_pixels`` is its limit where the options state none."""
    from stream.hwaccel import DecoderSelector

    return DecoderSelector(
        options.decoder, gpu=options.gpu, reason_against_gpu=doubt, max_pixels=options.max_pixels or max_pixels
    )


def _http_is_live(uri: str) -> bool:
    from stream.http_uri import is_recording

    return not is_recording(uri)


def _with_host(uri: str) -> str:
    """Return ``uri`` if it has a host that can be asked. Raises ``SourceError``."""
    authority = authority_of(uri)
    try:
        parts = urlsplit(uri)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    behind = uri.partition("://")[2][len(authority) :]
    if "@" not in authority and "@" in (urlsplit(f"x://h{behind}").fragment if named else behind):
        sign = "#" if named else behind[0]
        message = (
            f"{redact(uri)}: its user name or password holds a {sign!r}, which ends the host of an address; write "
            f"{quote(sign, safe='')} in its place (%23 is #, %3F is ?, %2F is /, %40 is @, %25 is %), or put "
            "user:password into a credentials_file"
        )
        raise SourceError(message)
    if not named:
        message = f"{redact(uri)}: names no host, or a port outside 1 to 65535; write SCHEME://HOST/PATH"
        raise SourceError(message)
    return uri


def _line(order: _Order) -> Source:
    from stream.simulated.source import SimulatedLineSource

    return SimulatedLineSource.from_uri(order.uri, camera=order.camera)


def _line_is_live(uri: str) -> bool:
    return bool(_line(_Order(uri, None, SourceOptions())).live)


def _file(order: _Order) -> Source:
    return _path(_Order(_local(order.uri), order.camera, order.options))


def _local(uri: str) -> str:
    """Return the path of a ``file:`` address, with the options behind it."""
    parts = urlsplit(uri)
    return unquote(parts.path) + (f"?{parts.query}" if parts.query else "")


def _path(order: _Order) -> Source:
    from stream.local_uri import camera_of, check_options, expanded, form_of, image_reader, split_options

    options = order.options
    path, stated = split_options(expanded(order.uri))
    camera = order.camera or camera_of(path)
    if form_of(path, IMAGE_SUFFIXES, examples=EXAMPLES) == "images":
        from stream.folder_watch import WatchedFolder
        from stream.images import ImagesSource

        check_options(order.uri, stated, ("watch", "bits"), "pictures")
        reader = image_reader(stated, options.max_pixels or FILE_MAX_PIXELS)
        if watch := stated.get("watch"):
            begin: Literal["all", "new"] = "all" if watch == "all" else "new"
            return WatchedFolder(path, suffixes=IMAGE_SUFFIXES, camera=camera, reader=reader, begin=begin)
        rate = options.images_per_second
        return ImagesSource(path, suffixes=IMAGE_SUFFIXES, camera=camera, images_per_second=rate, reader=reader)
    from stream.file import FileOptions, FileSource

    check_options(order.uri, stated, ("loop",), "a video")
    reading = FileOptions(threads="SLICE" if options.threads == "slice" else "AUTO", loop="loop" in stated)
    return FileSource(path, camera=camera, reading=reading, decoder=_decoder(options, max_pixels=FILE_MAX_PIXELS))


def _path_is_live(uri: str) -> bool:
    from stream.local_uri import expanded, split_options

    return "watch" in split_options(expanded(uri))[1]


@dataclass(frozen=True, slots=True)
class _Scheme:
    """A row of the table."""

    build: Callable[[_Order], Source]
    live: Callable[[str], bool]


_GATEWAY: Final = "let a gateway such as MediaMTX or go2rtc receive it, and give that one's rtsp:// address"
_ELSEWHERE: Final = {
    "srt": f"SRT is not spoken by this build of FFmpeg; {_GATEWAY}",
    "rtp": f"RTP alone does not tell what it carries; {_GATEWAY}",
    "rist": f"RIST is not spoken by this build of FFmpeg; {_GATEWAY}",
    "webrtc": f"WebRTC is not spoken here; {_GATEWAY}",
    "rtmpe": "encrypted RTMP is not spoken here; use rtmps://",
    "rtmpt": "RTMP in HTTP is not spoken here; use rtmp://",
    "mms": f"MMS is not spoken by this build of FFmpeg; {_GATEWAY}",
    "onvif": "an ONVIF address is for control; give the rtsp:// address that the camera's media profile names",
    "ws": f"video in a WebSocket is not read; {_GATEWAY}",
    "wss": f"video in a WebSocket is not read; {_GATEWAY}",
}
"""Schemes that people give, and what to give instead."""

_SCHEMES: Final[dict[str, _Scheme]] = {
    "camera": _Scheme(_camera, lambda _: True),
    "rtsp": _Scheme(_rtsp, lambda _: True),
    "rtsps": _Scheme(_rtsp, lambda _: True),
    "http": _Scheme(_http, _http_is_live),
    "https": _Scheme(_http, _http_is_live),
    "rtmp": _Scheme(_broadcast, lambda _: True),
    "rtmps": _Scheme(_broadcast, lambda _: True),
    "udp": _Scheme(_broadcast, lambda _: True),
    "line": _Scheme(_line, _line_is_live),
    "file": _Scheme(_file, lambda uri: _path_is_live(_local(uri))),
    "path": _Scheme(_path, _path_is_live),
}
