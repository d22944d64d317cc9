"""Settings that every use of Ray shares: token, no statistics of usage, no copies of the working directory."""

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
"""With these, Ray listens on the loopback only."""
REMOVED: Final = ("PYTHONDONTWRITEBYTECODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
"""The first makes the agents of Ray start so slowly that Ray gives them up; the others would override the options."""


def require_ray(use: str, alternative: str = "") -> None:
    """Raise ``ConfigError`` if Ray is not installed.

    Args:
        use: the command or option that needs Ray.
        alternative: what works without Ray.
    """
    if find_spec("ray") is None:
        instead = f", or {alternative}" if alternative else ""
        raise ConfigError(f"{use}: Ray is not installed; run `uv sync --extra fleet`{instead}")
