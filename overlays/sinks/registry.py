"""The registry of sinks: one line for each kind. A new sink is one file with its settings model, and one line here.

Importing the registry imports no third-party library: ZeroMQ, pygame and FFmpeg are imported with the first sink that
needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import PurePath
from typing import Any, Final

from overlays.sinks.settings import (
    STILLS,
    ClipSettings,
    EventSettings,
    FoxgloveSettings,
    JsonlSettings,
    McapSettings,
    ModbusSettings,
    MqttSettings,
    OpcUaSettings,
    ParquetSettings,
    RtmpPushSettings,
    RtspPushSettings,
    StillsSettings,
    VideoSettings,
    WebSettings,
    WindowSettings,
    ZeroMqSettings,
)
from pipeline.errors import SinkError, did_you_mean
from pipeline.kinds import Kind, KindRegistry, split_query
from pipeline.ports import Sink
from pipeline.settings import SinkContext, SinkSettings

_EXAMPLES: Final = (
    "window, tcp://127.0.0.1:5555, ipc:///tmp/overlays, http://127.0.0.1:8000, mqtt://127.0.0.1:1883/factory, "
    "rtsp://127.0.0.1:8554/line, rtmp://127.0.0.1/live/line, "
    "foxglove://127.0.0.1:8765, modbus://127.0.0.1:5020, opc.tcp://127.0.0.1:4840/line, "
    "out.mp4, out.mkv, clips/, out.jsonl, out.parquet, out.mcap or events.sqlite"
)


def _key(uri: str) -> str:
    """Return the scheme, the suffix or the whole word of a URI; ``/`` for a folder."""
    if "://" in uri:
        return uri.partition("://")[0].lower() + "://"
    if uri.startswith(STILLS):
        return STILLS
    if len(uri) > 1 and uri.endswith("/"):
        return "/"
    return PurePath(uri).suffix.lower() or uri


def _split(uri: str) -> tuple[str, dict[str, str]]:
    """Split a URI from the options that follow it; a folder with the option ``when`` is a folder of stills."""
    path, options = split_query(uri)
    is_stills = path.endswith("/") and "when" in options and not path.startswith(STILLS)
    return f"{STILLS}{path}" if is_stills else path, options


def _shown(uri: str) -> str:
    """Return a URI for messages; only the scheme of a network address, which may contain a password."""
    return f"{_key(uri)}…" if "://" in uri else uri


_MEDIA_SERVER: Final = "push rtsp://HOST:8554/PATH to a media server such as MediaMTX, which serves {} from it"
_REMEDIES: Final = {
    "srt://": "this FFmpeg has no SRT; " + _MEDIA_SERVER.format("SRT"),
    "whip://": _MEDIA_SERVER.format("WebRTC"),
    "whep://": _MEDIA_SERVER.format("WebRTC"),
    "webrtc://": _MEDIA_SERVER.format("WebRTC"),
    "udp://": _MEDIA_SERVER.format("SRT and HLS") + "; the sink for programs is tcp://127.0.0.1:5555",
    "rtp://": _MEDIA_SERVER.format("RTSP"),
    "ws://": "the page sends WebSockets: serve http://127.0.0.1:8000",
    "wss://": "the page sends WebSockets: serve http://127.0.0.1:8000 behind a proxy with TLS, see docs/page.md",
    "opcua://": "an OPC UA server is opc.tcp://127.0.0.1:4840/line",
    "opc.https://": "an OPC UA server is opc.tcp://127.0.0.1:4840/line",
    "modbus+tcp://": "a Modbus server is modbus://127.0.0.1:5020",
}
"""Schemes of other programs, and what takes their place."""


def _unknown(uri: str, known: list[str]) -> str:
    key = _key(uri)
    if (remedy := _REMEDIES.get(key)) is not None:
        return f"sink {_shown(uri)!r}: there is no such sink; {remedy} (docs/integrations)"
    if key == "https://":
        return "sink https://…: use a proxy for TLS, see docs/page.md, and serve on http://127.0.0.1:8000 behind it"
    expected = "a sink's scheme" if "://" in uri else "a sink's name or suffix"
    return f"sink {_shown(uri)!r}: {key!r} is not {expected}; use {_EXAMPLES}.{did_you_mean(key, known)}"


SINKS: Final = KindRegistry[SinkSettings](
    "sink",
    SinkSettings,
    Sink,
    (
        Kind("window", ("window",), WindowSettings, "overlays.sinks.window:WindowSink"),
        Kind("ZeroMQ publisher", ("tcp://", "ipc://"), ZeroMqSettings, "overlays.sinks.zeromq:ZeroMqSink"),
        Kind("web page", ("http://",), WebSettings, "overlays.sinks.web:WebSink"),
        Kind("MQTT client", ("mqtt://", "mqtts://"), MqttSettings, "overlays.sinks.mqtt.sink:MqttSink", extra="mqtt"),
        Kind("OPC UA server", ("opc.tcp://",), OpcUaSettings, "overlays.sinks.plc.opcua:OpcUaSink", extra="opcua"),
        Kind("Modbus server", ("modbus://",), ModbusSettings, "overlays.sinks.plc.modbus:ModbusSink", extra="modbus"),
        Kind(
            "stream to an RTSP server", ("rtsp://", "rtsps://"), RtspPushSettings, "overlays.sinks.push.sink:PushSink"
        ),
        Kind(
            "stream to an RTMP server", ("rtmp://", "rtmps://"), RtmpPushSettings, "overlays.sinks.push.sink:PushSink"
        ),
        Kind("video file", (".mp4", ".mkv"), VideoSettings, "overlays.sinks.video:VideoSink"),
        Kind("folder of clips", ("/",), ClipSettings, "overlays.sinks.clips.sink:ClipSink"),
        Kind("folder of stills", (STILLS,), StillsSettings, "overlays.sinks.stills:StillsSink"),
        Kind("event database", (".sqlite",), EventSettings, "overlays.sinks.events:EventsSink"),
        Kind("JSON log", (".jsonl",), JsonlSettings, "overlays.sinks.jsonl:JsonlSink"),
        Kind("table", (".parquet",), ParquetSettings, "overlays.sinks.parquet:ParquetSink", extra="parquet"),
        Kind(
            "Foxglove server",
            ("foxglove://",),
            FoxgloveSettings,
            "overlays.sinks.foxglove.live:FoxgloveSink",
            extra="foxglove",
        ),
        Kind("MCAP file", (".mcap",), McapSettings, "overlays.sinks.foxglove.mcap_file:McapSink", extra="mcap"),
    ),
    key_of=_key,
    unknown=_unknown,
    shown=_shown,
    error=SinkError,
    split=_split,
)


def build_sink(
    given: str | SinkSettings,
    *,
    cameras: Sequence[str] = (),
    context: SinkContext | None = None,
    **options: Any,  # noqa: ANN401 - the models check them
) -> Sink:
    """Return the sink of a URI or of settings; nothing is opened yet.

    Args:
        given: settings, or a URI: ``window``, ``tcp://host:port``, ``ipc://path``, ``http://host:port``,
            ``mqtt://host:port/topic``, ``rtsp://host/path``, ``rtmp://host/app/key``, ``foxglove://host:port``,
            ``*.mp4``, ``*.mkv``, ``*.jsonl``, ``*.parquet``, ``*.mcap``, ``*.sqlite`` or a folder of clips,
            ``FOLDER/``; options may follow a path: ``out.mp4?crf=28``.
        cameras: the names of the cameras, if they are known and ``context`` is not given.
        context: values that the run passes to the sink.
        options: the options of the kind, for a URI.

    Raises:
        SinkError: no kind matches the URI, the address is invalid, or the kind does not have an option.
    """
    settings = SINKS.settings(given, **options) if isinstance(given, str) else given
    sink: Sink = SINKS.build(settings, context or SinkContext(tuple(cameras)))
    return sink


def plugin_sinks() -> list[EntryPoint]:
    """Return the entry points by which installed packages add sinks."""
    return SINKS.plugins()
