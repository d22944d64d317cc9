"""One run over several devices: cameras dealt out, one process for each device, every door with an address of its own.

Pure: configurations in, configurations out. Who starts the processes is somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.settings import SinkSettings

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_BROKERS = ("mqtt://", "mqtts://")
_NETWORK = re.compile(r"(?P<before>(tcp|http)://.*:)(?P<port>\d+)(?P<after>/?)")


def read_devices(text: str) -> tuple[str, ...]:
    """Read ``cuda:0,cuda:1``; the same device twice means two processes on it.

    Raises:
        ConfigError: one of them is no device.
    """
    told = tuple(part.strip() for part in text.split(","))
    for name in told:
        if not _DEVICE.fullmatch(name):
            raise ConfigError(f"--devices: {name!r} is no device; such as cuda:0,cuda:1")
    return told


def shard_config(config: Config, devices: Sequence[str]) -> list[Config]:
    """Deal a run's cameras out to devices, in turn: one configuration for each device that gets any.

    Every camera must have its name already, so that no two processes call theirs the same. The first shard keeps the
    addresses of the doors; network doors of the k-th listen k ports higher, files have ``.k`` in their names, and a
    broker is told by each whether it is there.

    Raises:
        ConfigError: what is asked counts or concerns the run as a whole.
    """
    if config.frames is not None:
        raise ConfigError("--frames counts the frames of one process; with --devices use --seconds")
    if config.engine.device != "auto":
        raise ConfigError(f"--device {config.engine.device} and --devices: give one of the two")
    unnamed = [source.uri for source in config.sources if source.name is None]
    if unnamed:
        message = f"cameras must be named before they are dealt out: {len(unnamed)} are not"
        raise ValueError(message)
    shards = []
    for number, device in enumerate(devices):
        sources = list(config.sources[number :: len(devices)])
        if sources:
            engine = config.engine.model_copy(update={"device": device})
            sinks = [_sink_of(sink, number) for sink in config.sinks]
            elsewhere = [str(other.name) for other in config.sources if other not in sources]
            dealt = {
                "sources": sources,
                "engine": engine,
                "sinks": sinks,
                "external_cameras": elsewhere + config.external_cameras,
            }
            shards.append(config.model_copy(update=dealt))
    return shards


def _sink_of(sink: SinkSettings, number: int) -> SinkSettings:
    """Return a door of the shard of this number; each tells a broker by itself whether it is there."""
    update = {"uri": shard_uri(sink, number)}
    if number and (status := getattr(sink, "status_topic", None)) is not None:
        update["status_topic"] = f"{status}-{number}"
    return sink.model_copy(update=update)


def shard_uri(sink: SinkSettings, number: int) -> str:
    """Return the address of a door in the shard of this number: of the first one, as it was given."""
    uri = sink.uri
    if number == 0 or uri == "window" or uri.startswith(_BROKERS):
        return uri  # windows are named by camera, a broker's topics too
    network = _NETWORK.fullmatch(uri)
    if network:
        port = int(network["port"])
        if port + number > 65535:
            raise ConfigError(f"sink {uri}: shard {number} would listen on port {port + number}; choose a lower one")
        return f"{network['before']}{port + number if port else 0}{network['after']}"
    if uri.startswith("ipc://"):
        return f"{uri}.{number}"
    if uri.endswith("/"):
        return f"{uri.rstrip('/')}.{number}/"
    path = PurePath(uri)
    return str(path.with_name(f"{path.stem}.{number}{path.suffix}"))
