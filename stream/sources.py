"""The registry of sources, with one line per kind; importing it does not import FFmpeg or OpenCV."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from pipeline.errors import SourceError, did_you_mean
from pipeline.kinds import Kind, KindRegistry, split_query
from pipeline.ports import Source
from pipeline.settings import SourceContext, SourceSettings
from stream.bags.paths import is_bag
from stream.limits import FILE_MAX_PIXELS, LIVE_MAX_PIXELS
from stream.local_uri import camera_of, expanded, form_of, split_features, split_options
from stream.paths import kind_of
from stream.redact import authority_of, has_certain_host, host_and_path, redact
from stream.settings import (
    BagSettings,
    BroadcastSettings,
    CameraSettings,
    FileSettings,
    GenicamSettings,
    HttpSettings,
    ImagesSettings,
    LineSettings,
    LiveSettings,
    NetworkSettings,
    RtspSettings,
)

if TYPE_CHECKING:
    from stream.hwaccel import DecoderSelector
    from stream.network import Timeouts

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".hif"}
)
"""Suffixes of image files. A GIF counts as a video, animated or not."""

# A GPU decoder conceals the damage of a lost packet and does not report it.
_HOLES: Final = "a GPU decoder does not report images that lost UDP packets damage"

_MAX_NAME: Final = 56
"""Maximum length of a name derived from an address; below the 64 of given names, to leave room for ``-2``."""
EXAMPLES: Final = (
    "camera:0, genicam:SERIAL, rtsp://HOST/PATH, http://HOST/PATH, rtmp://HOST/PATH, udp://@GROUP:PORT, a video file, "
    "a folder or glob of images, a bag (.mcap, .db3, .bag), line:"
)


def build_source(
    given: str | SourceSettings,
    *,
    camera: str | None = None,
    context: SourceContext | None = None,
    **options: Any,  # noqa: ANN401 - the models check them
) -> Source:
    """Create the source for a URI or for settings, without opening it.

    Args:
        given: settings, or a URI, which may contain options: ``film.mp4?loop=1``.
        camera: the camera's name if ``context`` is None; None: derived from the URI.
        context: values that the run sets for all sources.
        options: further options of the URI's kind.

    Raises:
        SourceError: the scheme is unknown, the path does not exist, or the kind has no such option.
    """
    settings = SOURCES.settings(given.strip(), **options) if isinstance(given, str) else given
    source: Source = SOURCES.build(settings, context or SourceContext(camera))
    return source


def path_of(uri: str) -> str:
    """Return the local path in ``uri``, without its options; ``uri`` itself if it is an address."""
    uri = uri.strip()
    scheme = _scheme(uri)
    if scheme not in {"file", ""}:
        return uri
    return split_options(expanded(_local(uri) if scheme == "file" else uri))[0]


def plain_name(name: str) -> str:
    """Return a name derived from an address as one line of valid UTF-8 of limited length.

    The name appears in logs, legends, topics and metrics, and a file name may contain any bytes.
    """
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", name.encode("utf-8", "replace").decode())
    return line.strip()[:_MAX_NAME].strip() or "camera"


def unique_names(names: Iterable[str]) -> list[str]:
    """Append ``-2``, ``-3`` to repeated names, because topics on the wire must differ."""
    requested = list(names)
    used, unique = set(requested), []
    seen: set[str] = set()
    for name in requested:
        candidate, number = name, 1
        while candidate in seen or (candidate != name and candidate in used):
            number += 1
            candidate = f"{name}-{number}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


def _scheme(uri: str) -> str:
    """Return the scheme of ``uri``; empty for a path."""
    if not uri:
        message = f"the source is empty; use one of {EXAMPLES}"
        raise SourceError(message)
    if uri.isdecimal() and not _exists(uri):
        return "camera"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", uri)
    return "" if match is None or _exists(uri) else match[1].lower()


def _key(uri: str) -> str:
    """Return the registry's key for ``uri``."""
    scheme = _scheme(uri)
    if scheme not in {"", "file"}:
        word, known = f"{scheme}:", [key for kind in SOURCES.kinds for key in kind.keys]
        is_word = word in known or any(entry.name == word for entry in SOURCES.plugins())
        return word if is_word else f"{scheme}://"
    path = expanded(_local(uri) if scheme else uri)
    if is_bag(path):
        return "BAG"
    try:
        form = form_of(path, IMAGE_SUFFIXES, examples=EXAMPLES)
    except SourceError:  # missing: building the source reports it
        suffix = re.search(r"\.\w+$", path)
        form = "video" if suffix is not None and suffix[0].lower() not in IMAGE_SUFFIXES else "images"
    return "VIDEO" if form == "video" else "FOLDER"


def _split(uri: str) -> tuple[str, dict[str, str]]:
    """Split a URI into address and options; ``file:`` is removed from a path."""
    scheme = _scheme(uri)
    if scheme in {"", "file"}:
        return split_options(_local(uri) if scheme else uri)
    if scheme == "genicam":
        return split_features(uri)
    if scheme != "line":
        return split_query(uri, _exists)
    path, mark, tail = uri.partition("?")
    if path.lower() not in {"line:", "line://"}:
        raise ValueError(
            "the address is malformed; write line: or line:?key=value&..., for example "
            "line:?fps=30&size=1280x720&seed=7"
        )
    split = split_query(f"line:?{tail}", _exists) if tail else ("line:", {})
    if mark and tail and not split[1]:
        raise ValueError("the options are malformed; write them as key=value, separated by &")
    return split


def _exists(path: str) -> bool:
    try:
        return kind_of(path) != "missing"
    except SourceError:  # too long for a path, so an address
        return False


def open_camera(settings: CameraSettings, context: SourceContext) -> Source:
    """Create the source of a webcam."""
    from stream.camera import CameraMode, CameraSource
    from stream.hwaccel import DecoderSelector

    number = settings.uri.partition(":")[2] if ":" in settings.uri else settings.uri
    if not number.isdecimal():
        message = f"{settings.uri}: a webcam is chosen by its number; use camera:0 for /dev/video0, the first webcam"
        raise SourceError(message)
    return CameraSource(
        int(number),
        camera=context.camera or f"camera{int(number)}",
        timeouts=_timeouts(settings),
        mode=CameraMode(settings.size, settings.rate, settings.encoding),
        decoder=DecoderSelector(max_pixels=settings.max_pixels or LIVE_MAX_PIXELS),
    )


def open_rtsp(settings: RtspSettings, context: SourceContext) -> Source:
    """Create the source of an RTSP camera."""
    from stream.rtsp import rtsp_source

    return rtsp_source(
        _with_host(settings.uri),
        camera=context.camera or host_and_path(settings.uri),
        timeouts=_timeouts(settings),
        transport=settings.transport,
        decoder=_decoder(settings, context, doubt=_HOLES if settings.transport == "udp" else ""),
        allowed_hosts=tuple(settings.allowed_hosts),
    )


def open_http(settings: HttpSettings, context: SourceContext) -> Source:
    """Create the source of an HTTP address."""
    from stream.http import WebSource
    from stream.http_probe import WebOptions

    max_pixels = LIVE_MAX_PIXELS if _http_is_live(settings.uri) else FILE_MAX_PIXELS
    live = None if settings.live == "auto" else settings.live
    return WebSource(
        _with_host(settings.uri),
        camera=context.camera or host_and_path(settings.uri),
        timeouts=_timeouts(settings),
        decoder=_decoder(settings, context, max_pixels=max_pixels),
        options=WebOptions(live, tuple(settings.allowed_hosts), settings.still_rate),
    )


def open_broadcast(settings: BroadcastSettings, context: SourceContext) -> Source:
    """Create the source of an RTMP stream, or of MPEG-TS in UDP packets."""
    from stream.network import network_source, open_container

    uri = settings.uri
    is_udp = uri.lower().startswith("udp:")
    if is_udp and not re.match(r"udp://@?[^/@]*:\d{1,5}([/?].*)?$", uri, re.IGNORECASE):
        message = f"{redact(uri)}: has no valid port to listen at; write udp://@GROUP:PORT or udp://0.0.0.0:PORT"
        raise SourceError(message)
    # FFmpeg probes the format for a second; a buffer of 9 MB stores packets while an image is decoded.
    options = {"analyzeduration": "1000000", "format_whitelist": "mpegts" if is_udp else "flv,live_flv"}
    if is_udp:
        options |= {"fifo_size": "50000", "overrun_nonfatal": "1"}
    uri = uri if is_udp else _with_host(uri)
    decoder = _decoder(settings, context, doubt=_HOLES if is_udp else "")
    return network_source(
        uri,
        camera=context.camera or host_and_path(uri).lstrip("@"),
        timeouts=_timeouts(settings),
        decoder=decoder,
        opened=lambda attempt: open_container(uri, options=options, attempt=attempt, decoder=decoder),
    )


def _timeouts(settings: LiveSettings) -> Timeouts:
    from stream.network import Timeouts

    return Timeouts(settings.open_timeout_seconds, settings.read_timeout_seconds, settings.attempts)


def _decoder(
    settings: NetworkSettings | FileSettings,
    context: SourceContext,
    *,
    doubt: str = "",
    max_pixels: int = LIVE_MAX_PIXELS,
) -> DecoderSelector:
    """Create the decoder of one source; ``max_pixels`` is the default limit."""
    from stream.hwaccel import DecoderSelector

    return DecoderSelector(
        settings.decoder or context.decoder,
        gpu=context.gpu,
        reason_against_gpu=doubt,
        max_pixels=settings.max_pixels or max_pixels,
        copy_planes=context.copy_planes if settings.device_frames else None,
    )


def _http_is_live(uri: str) -> bool:
    from stream.http_uri import is_recording

    return not is_recording(uri)


def _with_host(uri: str) -> str:
    """Return ``uri`` if it has a valid host. Raises ``SourceError``."""
    authority = authority_of(uri)
    try:
        parts = urlsplit(uri)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    behind = uri.partition("://")[2][len(authority) :]
    is_path_suspect = not valid or _may_be_credentials(authority)
    suspect = behind if is_path_suspect else urlsplit(f"x://h{behind}").fragment
    if "@" not in authority and "@" in suspect:
        sign = behind[0] if is_path_suspect else "#"
        message = (
            f"{redact(uri)}: the user name or password contains a {sign!r}, which ends the host of an address; write "
            f"{quote(sign, safe='')} instead (%23 is #, %3F is ?, %2F is /, %40 is @, %25 is %), or put "
            "user:password into a credentials_file"
        )
        if valid and is_path_suspect:
            message += f"; if a host and port come before the {sign!r}, write %40 instead of each @ after it"
        raise SourceError(message)
    if not valid:
        message = f"{redact(uri)}: has no host, or a port outside 1 to 65535; write SCHEME://HOST/PATH"
        raise SourceError(message)
    return uri


def _may_be_credentials(authority: str) -> bool:
    """Return whether ``NAME:DIGITS`` may be ``USER:PASSWORD``, cut at a ``/``, ``?`` or ``#``."""
    return "." not in authority and not has_certain_host(authority)


def open_line(settings: LineSettings, context: SourceContext) -> Source:
    """Create the source of the simulated line."""
    from stream.simulated.source import SimulatedLineSource

    width, _, height = settings.size.partition("x")
    return SimulatedLineSource(
        fps=settings.fps,
        size=(int(width), int(height)),
        seed=settings.seed,
        camera=context.camera or "line",
        paced=settings.paced,
        frames=settings.frames,
        stamp=settings.stamp,
    )


def _local(uri: str) -> str:
    """Return the path of a ``file:`` address, with its options."""
    parts = urlsplit(uri)
    return unquote(parts.path, errors="surrogateescape") + (f"?{parts.query}" if parts.query else "")


def open_images(settings: ImagesSettings, context: SourceContext) -> Source:
    """Create the source of an image file, a folder of images or a glob."""
    from stream.folder_watch import WatchedFolder
    from stream.image_file import ImageReader
    from stream.images import ImagesSource

    path = expanded(settings.uri)
    form_of(path, IMAGE_SUFFIXES, examples=EXAMPLES)  # raises SourceError for a missing path
    camera = context.camera or camera_of(path)
    reader = ImageReader(max_pixels=settings.max_pixels or FILE_MAX_PIXELS, bits=settings.bits)
    if settings.watch != "no":
        return WatchedFolder(path, suffixes=IMAGE_SUFFIXES, camera=camera, reader=reader, begin=settings.watch)
    rate = settings.images_per_second
    return ImagesSource(path, suffixes=IMAGE_SUFFIXES, camera=camera, images_per_second=rate, reader=reader)


def open_file(settings: FileSettings, context: SourceContext) -> Source:
    """Create the source of a video file."""
    from stream.file import FileOptions, FileSource

    path = expanded(settings.uri)
    form_of(path, IMAGE_SUFFIXES, examples=EXAMPLES)  # raises SourceError for a missing path
    reading = FileOptions(threads="SLICE" if settings.threads == "slice" else "AUTO", loop=settings.loop)
    decoder = _decoder(settings, context, max_pixels=FILE_MAX_PIXELS)
    return FileSource(path, camera=context.camera or camera_of(path), reading=reading, decoder=decoder)


_GATEWAY: Final = "receive it with a gateway such as MediaMTX or go2rtc, and use the gateway's rtsp:// address"
_ELSEWHERE: Final = {
    "srt": f"this build of FFmpeg does not support SRT; {_GATEWAY}",
    "rtp": f"an rtp:// address does not state the codec; {_GATEWAY}",
    "rist": f"this build of FFmpeg does not support RIST; {_GATEWAY}",
    "webrtc": f"WebRTC is not supported; {_GATEWAY}",
    "rtmpe": "encrypted RTMP is not supported; use rtmps://",
    "rtmpt": "RTMP over HTTP is not supported; use rtmp://",
    "mms": f"this build of FFmpeg does not support MMS; {_GATEWAY}",
    "onvif": "an ONVIF address only controls a camera; use the rtsp:// address in the camera's media profile",
    "ws": f"video over a WebSocket is not supported; {_GATEWAY}",
    "wss": f"video over a WebSocket is not supported; {_GATEWAY}",
}
"""Schemes that are not supported, and what to use instead."""


def _unknown(uri: str, known: list[str]) -> str:
    scheme = _scheme(uri)
    if scheme in _ELSEWHERE:
        return f"{redact(uri)}: {_ELSEWHERE[scheme]}"
    schemes = [key.partition(":")[0] for key in known if ":" in key]
    return f"{redact(uri)}: unknown scheme {scheme!r}.{did_you_mean(scheme, schemes)} Known: {EXAMPLES}"


SOURCES: Final = KindRegistry[SourceSettings](
    "source",
    SourceSettings,
    Source,
    (
        Kind("webcam", ("camera:",), CameraSettings, "stream.sources:open_camera"),
        Kind(
            "industrial camera", ("genicam:",), GenicamSettings, "stream.genicam.source:open_genicam", extra="genicam"
        ),
        Kind("RTSP camera", ("rtsp://", "rtsps://"), RtspSettings, "stream.sources:open_rtsp"),
        Kind("web address", ("http://", "https://"), HttpSettings, "stream.sources:open_http"),
        Kind("broadcast", ("rtmp://", "rtmps://", "udp://"), BroadcastSettings, "stream.sources:open_broadcast"),
        Kind("video file", ("VIDEO",), FileSettings, "stream.sources:open_file"),
        Kind("bag", ("BAG",), BagSettings, "stream.bags.source:open_bag", extra="bags"),
        Kind("folder of images", ("FOLDER", "IMAGE", "GLOB"), ImagesSettings, "stream.sources:open_images"),
        Kind("simulated line", ("line:",), LineSettings, "stream.sources:open_line"),
    ),
    key_of=_key,
    unknown=_unknown,
    shown=redact,
    error=SourceError,
    split=_split,
)
