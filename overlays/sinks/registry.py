"""The table of sinks: a URI becomes a door. A newcomer is one file beside this one and one line here.

Importing it imports no vendor: ZeroMQ, OpenCV's windows and FFmpeg come with the first sink that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final, NamedTuple

from overlays.sinks.options import SinkOptions
from overlays.sinks.paths import parse_target
from pipeline.errors import SinkError, did_you_mean
from pipeline.ports import Sink

__all__ = ["SINKS", "SinkOptions", "build_sink"]

Builder = Callable[[str, Sequence[str], SinkOptions], Sink]


def _mqtt(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:
    try:
        from overlays.sinks.mqtt.sink import MqttSink
    except ModuleNotFoundError as missing:
        raise SinkError(f"{_shown(uri)}: a broker is spoken to with {missing.name}: uv sync --extra mqtt") from None

    return MqttSink(uri, cameras=cameras, options=options)


def _window(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:  # noqa: ARG001 - one shape for all
    from overlays.sinks.window import WindowSink

    return WindowSink(options=options)


def _zeromq(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:  # noqa: ARG001 - one shape for all
    from overlays.sinks.zeromq import ZeroMqSink

    return ZeroMqSink(uri, options=options)


def _web(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:
    from overlays.sinks.web import WebSink

    return WebSink(uri, cameras=tuple(cameras), options=options)


def _video(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:
    from overlays.sinks.video import VideoSink

    path, replace = parse_target(uri)
    return VideoSink(path, cameras=tuple(cameras), options=options, replace=replace)


def _clips(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:
    from overlays.sinks.clips.sink import ClipSink

    return ClipSink(uri, cameras=tuple(cameras), options=options)


def _jsonl(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:  # noqa: ARG001 - one shape for all
    from overlays.sinks.jsonl import JsonlSink

    path, replace = parse_target(uri)
    return JsonlSink(path, cameras=cameras, replace=replace)


def _parquet(uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:  # noqa: ARG001 - one shape for all
    try:
        from overlays.sinks.parquet import ParquetSink
    except ModuleNotFoundError as missing:
        raise SinkError(f"{uri}: a table needs {missing.name}: uv sync --extra parquet; .jsonl needs nothing") from None

    path, replace = parse_target(uri)
    return ParquetSink(path, replace=replace)


SINKS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "window": _window,
        "tcp://": _zeromq,
        "ipc://": _zeromq,
        "http://": _web,
        "mqtt://": _mqtt,
        "mqtts://": _mqtt,
        "/": _clips,
        ".mp4": _video,
        ".mkv": _video,
        ".jsonl": _jsonl,
        ".parquet": _parquet,
    }
)
"""What a sink's URI is, begins with, or ends with."""

GROUP: Final = "recipro_stream.sinks"
_MEMBERS: Final = ("uri", "lossless", "needs_image", "put", "idle", "__enter__", "__exit__")
_WIRE: Final = frozenset({"tcp://", "ipc://"})
_BROKERS: Final = frozenset({"mqtt://", "mqtts://"})
_PAGES: Final = frozenset({"http://"})
_PLAIN: Final = SinkOptions()


class _OptionScope(NamedTuple):
    """Options that concern some kinds of sinks; given to another they would do nothing, and nobody would know."""

    kinds: frozenset[str]
    said: str
    asked: Callable[[SinkOptions], bool]
    """Whether somebody asked for them."""


_ONLY: Final = (
    _OptionScope(
        frozenset("/"),
        "rotation, disk budget and record_when are for a folder of clips; write it with a slash at its end, such as "
        "clips/",
        lambda options: options.clips != _PLAIN.clips,
    ),
    _OptionScope(
        _BROKERS,
        "qos, status, credentials_file and ca_file are for a broker, such as mqtts://broker.example/factory",
        lambda options: options.mqtt != _PLAIN.mqtt,
    ),
    _OptionScope(
        _WIRE,
        "curve admits viewers of tcp:// and ipc:// by their keys; a page asks for a token (token_file)",
        lambda options: bool(options.curve_secret_key_file or options.curve_authorized_keys),
    ),
    _OptionScope(
        _PAGES,
        "token_file, hosts, embed_origins and root_path are for a page, http://; tcp:// admits viewers by their keys "
        "(curve)",
        lambda options: bool(options.token or options.allowed_hosts or options.embed_origins or options.root_path),
    ),
    _OptionScope(
        _WIRE,
        "scale is for pictures on tcp:// and ipc://; leave it out",
        lambda options: options.scale != _PLAIN.scale,
    ),
    _OptionScope(
        _WIRE | _BROKERS,
        "max_rate is for tcp://, ipc:// and mqtt://; leave it out",
        lambda options: options.max_rate is not None,
    ),
    _OptionScope(
        _WIRE | _PAGES,
        "quality is for pictures on tcp://, ipc:// and http://; leave it out",
        lambda options: options.jpeg_quality != _PLAIN.jpeg_quality,
    ),
)
_EXAMPLES: Final = (
    "window, tcp://127.0.0.1:5555, ipc:///tmp/overlays, http://127.0.0.1:8000, mqtt://127.0.0.1:1883/factory, "
    "out.mp4, out.mkv, clips/, out.jsonl or out.parquet"
)


def build_sink(uri: str, *, cameras: Sequence[str] = (), options: SinkOptions | None = None) -> Sink:
    """Make the sink a URI names; nothing is opened yet.

    Args:
        uri: ``window``, ``tcp://host:port``, ``ipc://path``, ``http://host:port``, ``mqtt://host:port/topic``,
            ``*.mp4``, ``*.mkv``, ``*.jsonl``, ``*.parquet`` or a folder of clips, ``FOLDER/``.
        cameras: the names of the cameras that will come, where they are known: a recorder gives each its file.
        options: plain values for all sinks.

    Raises:
        SinkError: no sink is named so, its address is written wrong, or an option would do nothing there.
    """
    options = options or SinkOptions()
    kind = _kind(uri)
    build = SINKS.get(kind)
    if build is not None:
        for only in _ONLY:
            if kind not in only.kinds and only.asked(options):
                raise SinkError(f"sink {_shown(uri)!r}: {only.said}")
        return build(uri, cameras, options)
    added = next((entry for entry in plugin_sinks() if entry.name == kind), None)
    if added is None:
        raise SinkError(_unknown(uri))
    return _added(added, uri, cameras, options)


def plugin_sinks() -> list[EntryPoint]:
    """Return what installed packages add to the table: entry points of the group ``recipro_stream.sinks``.

    An entry's name is what a URI begins or ends with (``udp://``, ``.csv``); the table's own kinds cannot be replaced.
    """
    return [entry for entry in entry_points(group=GROUP) if entry.name not in SINKS]


def _added(entry: EntryPoint, uri: str, cameras: Sequence[str], options: SinkOptions) -> Sink:
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        sink = entry.load()(uri, cameras, options)
    except SinkError:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger raises what it likes
        kind = type(error).__name__
        # Its words may repeat the address, and the address may hold a password.
        said = f"{kind}; its words are left out, the address holds a password" if "@" in uri else f"{kind}: {error}"
        raise SinkError(f"sink {_shown(uri)!r}: package {package} fails to make it ({said})") from None
    if not isinstance(sink, Sink):
        lacking = ", ".join(name for name in _MEMBERS if not hasattr(sink, name)) or "none"
        raise SinkError(
            f"sink {_shown(uri)!r}: package {package} gives a {type(sink).__name__}, which lacks {lacking}; see "
            "docs/python.md"
        )
    return sink


def _kind(uri: str) -> str:
    """Return what the table goes by: a scheme, a file's suffix, or the whole word."""
    if "://" in uri:
        return uri.partition("://")[0].lower() + "://"
    if len(uri) > 1 and uri.endswith("/"):
        return "/"
    return parse_target(uri).path.suffix.lower() or uri


def _shown(uri: str) -> str:
    """Return what may be said of it: an address may hold a password."""
    return f"{_kind(uri)}…" if "://" in uri else uri


def _unknown(uri: str) -> str:
    kind = _kind(uri)
    if kind == "https://":
        return "sink https://…: TLS is a proxy's business, see docs/page.md; serve on http://127.0.0.1:8000 behind it"
    if "/?" in uri and "://" not in uri:
        return (
            f"sink {uri!r}: a folder of clips has no settings behind a '?': its clips never replace any; leave it out"
        )
    shown = _shown(uri)
    wanted = "a sink's scheme" if "://" in uri else "a sink's name or suffix"
    known = [*SINKS, *(entry.name for entry in plugin_sinks())]
    return f"sink {shown!r}: {kind!r} is not {wanted}; use {_EXAMPLES}.{did_you_mean(kind, known)}"
