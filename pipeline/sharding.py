"""Splits a run over several devices: one configuration for each device, with its cameras and sink addresses.

Pure functions; ``commands.multi_device`` starts the processes.
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
    """Parse a list of devices such as ``cuda:0,cuda:1``; a device that is named twice gets two processes.

    Raises:
        ConfigError: an item of the list is not a device.
    """
    devices = tuple(part.strip() for part in text.split(","))
    for name in devices:
        if not _DEVICE.fullmatch(name):
            raise ConfigError(f"--devices: {name!r} is not a device; give devices such as cuda:0,cuda:1")
    return devices


def shard_config(config: Config, devices: Sequence[str]) -> list[Config]:
    """Return one configuration for each device; the cameras are distributed in turn (round robin).

    A device without a camera gets none. Every camera must have a name, so that names are unique over all processes.
    Shard 0 keeps the addresses of the sinks. In shard k, network sinks listen k ports higher, file names contain
    ``.k``, and the process has its own status topic.

    Raises:
        ConfigError: the configuration limits the frames of the run or names a device.
    """
    if config.frames is not None:
        raise ConfigError("--frames counts the frames of one process; use --seconds together with --devices")
    if config.engine.device != "auto":
        raise ConfigError(f"--device {config.engine.device} and --devices: give only one of these two options")
    unnamed = [source.uri for source in config.sources if source.name is None]
    if unnamed:
        message = f"{len(unnamed)} cameras have no name; name all cameras before you distribute them"
        raise ValueError(message)
    shards = []
    for index, device in enumerate(devices):
        sources = list(config.sources[index :: len(devices)])
        if sources:
            engine = config.engine.model_copy(update={"device": device})
            sinks = [_shard_sink(sink, index) for sink in config.sinks]
            external = [str(other.name) for other in config.sources if other not in sources]
            update = {
                "sources": sources,
                "engine": engine,
                "sinks": sinks,
                "external_cameras": external + config.external_cameras,
            }
            shards.append(config.model_copy(update=update))
    return shards


def isolate_gpus(shard: Config, visible: str | None) -> tuple[Config, str | None]:
    """Return a shard for a process that sees only the GPUs it uses.

    A library without a configured device uses the first visible GPU, and creates a context of hundreds of MB there.

    Args:
        shard: a configuration of ``shard_config``.
        visible: ``CUDA_VISIBLE_DEVICES`` of this process; None if it is not set.

    Returns:
        The configuration with GPU numbers that count the visible GPUs only (the first is ``cuda:0``), and the value of
        ``CUDA_VISIBLE_DEVICES`` for the process. For a shard on a CPU: the shard, unchanged, and None.

    Raises:
        ConfigError: a GPU is not among the visible ones.
    """
    if not shard.engine.device.startswith("cuda"):
        return shard, None
    decoders = [shard.decoder, *(getattr(source, "decoder", None) or "" for source in shard.sources)]
    numbers = [_gpu_number(shard.engine.device), *(_gpu_number(name) for name in decoders if name.startswith("cuda:"))]
    own = list(dict.fromkeys(numbers))
    update: dict[str, object] = {
        "engine": shard.engine.model_copy(update={"device": "cuda:0"}),
        "decoder": _renumbered(shard.decoder, own),
        "sources": [
            source.model_copy(update={"decoder": _renumbered(decoder, own)})
            if isinstance(decoder := getattr(source, "decoder", None), str)
            else source
            for source in shard.sources
        ],
    }
    return shard.model_copy(update=update), ",".join(_visible_gpu(number, visible) for number in own)


def _gpu_number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _renumbered(decoder: str, own: Sequence[int]) -> str:
    return f"cuda:{own.index(_gpu_number(decoder))}" if decoder.startswith("cuda:") else decoder


def _visible_gpu(number: int, visible: str | None) -> str:
    """Return the name that ``CUDA_VISIBLE_DEVICES`` uses for ``cuda:number``."""
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if number >= len(names):
        raise ConfigError(
            f"--devices: cuda:{number} is not visible: CUDA_VISIBLE_DEVICES={visible} lists {len(names)} GPUs; "
            "unset this variable, or name fewer devices"
        )
    return names[number]


def _shard_sink(sink: SinkSettings, index: int) -> SinkSettings:
    """Return the settings of a sink in the shard with this index."""
    update = {"uri": shard_uri(sink, index)}
    if index and (status := getattr(sink, "status_topic", None)) is not None:
        update["status_topic"] = f"{status}-{index}"
    return sink.model_copy(update=update)


def shard_uri(sink: SinkSettings, index: int) -> str:
    """Return the address of a sink in the shard with this index; shard 0 keeps the configured address."""
    uri = sink.uri
    if index == 0 or uri == "window" or uri.startswith(_BROKERS):
        return uri  # windows and MQTT topics are named by camera
    network = _NETWORK.fullmatch(uri)
    if network:
        port = int(network["port"])
        if port + index > 65535:
            raise ConfigError(f"sink {uri}: shard {index} would listen on port {port + index}; choose a lower port")
        return f"{network['before']}{port + index if port else 0}{network['after']}"
    if uri.startswith("ipc://"):
        return f"{uri}.{index}"
    if uri.endswith("/"):
        return f"{uri.rstrip('/')}.{index}/"
    path = PurePath(uri)
    return str(path.with_name(f"{path.stem}.{index}{path.suffix}"))
