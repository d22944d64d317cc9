"""Settings for every use of Ray: token authentication, no usage statistics, no copies of the working directory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from pipeline.errors import ConfigError

SETTINGS: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Under `uv run`, Ray would copy the working directory, with its secrets, to the head and to all nodes.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
LOOPBACK_SETTINGS: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Settings that make Ray listen only on the loopback."""
REMOVED: Final = ("PYTHONDONTWRITEBYTECODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
"""Environment variables that are removed for Ray.

With ``PYTHONDONTWRITEBYTECODE``, Ray's agents start too slowly. The other variables would override options.
"""


def require_ray(use: str, alternative: str = "") -> None:
    """Check that Ray is installed.

    Args:
        use: the command or option that needs Ray, for the message.
        alternative: a way to work without Ray, for the message.

    Raises:
        ConfigError: Ray is not installed.
    """
    if find_spec("ray") is None:
        instead = f", or {alternative}" if alternative else ""
        raise ConfigError(f"{use}: Ray is not installed; run `uv sync --inexact --extra fleet`{instead}")
