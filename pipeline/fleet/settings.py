"""The configuration file of a fleet: its cameras, nodes and devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError
from pipeline.settings import Device, Name, Settings


class FleetCamera(Settings):
    """A camera of the fleet. Its address and credentials are in the stream configuration of each node."""

    rate: float = Field(default=10.0, gt=0, le=1000, allow_inf_nan=False)
    """Frames per second of the camera; a worker gets the camera only if its free capacity is at least this rate."""


def _by_name(value: object) -> object:
    """Parse a list of names, or a map from names to options, which may be empty."""
    if isinstance(value, list):
        for number, name in enumerate(value):
            if not isinstance(name, str):
                message = f"{name!r} is not a name; give names, or a map such as {{north: {{rate: 25}}}}"
                raise ValueError(message)  # noqa: TRY004 - pydantic reports it
            if name in value[:number]:
                raise ValueError(f"{name!r} is given twice; remove one")
        return {name: {} for name in value}
    return {name: {} if each is None else each for name, each in value.items()} if isinstance(value, dict) else value


class FleetConfig(Settings):
    """The configuration of a fleet."""

    name: Annotated[Name, Field(pattern=r"^[a-z0-9-]+$")] = "fleet"
    """Name of the fleet: small letters, digits and hyphens."""
    stream: str = "stream.yaml"
    """File with a configuration of ``stream`` on each node: engine, sinks and guards, and named sources for the cameras
    that the node can open."""
    devices: list[Device] = Field(default=["auto"], min_length=1, max_length=64)
    """Devices of each node; one worker runs on each device."""
    nodes: int = Field(default=1, ge=1, le=1000)
    """Number of nodes that a new fleet waits for, at most a minute, before it assigns its first cameras. Without
    waiting, the first node gets all cameras, and loses some of them when the other nodes join."""
    cameras: Annotated[dict[Name, FleetCamera], BeforeValidator(_by_name)]
    """The cameras: a list of names, or a map of names and options."""
    without_director: Literal["stop", "keep"] = "stop"
    """Action of a worker that reaches no director: ``stop`` its cameras when their leases end, or ``keep`` them, at the
    risk that two workers publish the same camera."""

    @property
    def rates(self) -> dict[str, float]:
        """Frames per second by camera."""
        return {name: camera.rate for name, camera in self.cameras.items()}


def read_fleet(text: str, name: str) -> FleetConfig:
    """Parse the configuration of a fleet.

    Args:
        text: the YAML text.
        name: name of the file, for messages.

    Raises:
        ConfigError: the text is not YAML, or a key or value is wrong.
    """
    settings: dict[str, Any] = read_yaml(text, name)
    try:
        return FleetConfig.model_validate(settings)
    except ValidationError as error:
        lines = [
            f"{name}: {'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None
