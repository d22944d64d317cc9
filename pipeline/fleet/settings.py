"""The file of a fleet: its cameras, and what each of its nodes runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError
from pipeline.settings import Device, Name, Settings


class FleetCamera(Settings):
    """A camera of the fleet. Each node reads its address and credentials from the node's own file."""

    rate: float = Field(default=10.0, gt=0, le=1000, allow_inf_nan=False)
    """Frames per second that a worker must explain to hold it."""


def _by_name(value: object) -> object:
    """Read a list of names, or a map of names whose values may be left out."""
    if isinstance(value, list):
        for number, name in enumerate(value):
            if not isinstance(name, str):
                message = f"{name!r} is no name; give names, or a map such as {{north: {{rate: 25}}}}"
                raise ValueError(message)  # noqa: TRY004 - pydantic reports it
            if name in value[:number]:
                raise ValueError(f"{name!r} is given twice; remove one")
        return {name: {} for name in value}
    return {name: {} if each is None else each for name, each in value.items()} if isinstance(value, dict) else value


class FleetConfig(Settings):
    """The options of a fleet."""

    name: Annotated[Name, Field(pattern=r"^[a-z0-9-]+$")] = "fleet"
    """Name of the fleet: small letters, digits and hyphens."""
    stream: str = "stream.yaml"
    """A configuration of ``stream`` on each node: engine, sinks and guards, and the sources of the cameras that the
    node can open, by their names."""
    devices: list[Device] = Field(default=["auto"], min_length=1, max_length=64)
    """Devices of each node; each gets a worker."""
    nodes: int = Field(default=1, ge=1, le=1000)
    """Number of nodes that a new fleet waits for, at most a minute, before it deals its first cameras: otherwise the
    first node gets all, and gives some up later."""
    cameras: Annotated[dict[Name, FleetCamera], BeforeValidator(_by_name)]
    """The cameras: a list of names, or a map of names and options."""
    without_director: Literal["stop", "keep"] = "stop"
    """A worker that reaches no director: ``stop`` when its leases end, or ``keep`` its cameras; two workers may then
    publish the same camera."""

    @property
    def rates(self) -> dict[str, float]:
        """Frames per second by camera."""
        return {name: camera.rate for name, camera in self.cameras.items()}


def read_fleet(text: str, name: str) -> FleetConfig:
    """Return the fleet in a YAML text; ``name`` is the file's, for messages.

    Raises:
        ConfigError: it is not YAML, or a key or value is wrong.
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
