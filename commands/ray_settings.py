"""Settings for every use of Ray: token authentication, no usage statistics, no copies of the working directory."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
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
QUIET_SETTINGS: Final = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
"""Settings that end Ray's reports of metrics and tasks, which nobody reads in a run of one command."""
REMOVED: Final = ("PYTHONDONTWRITEBYTECODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
"""Environment variables that are removed for Ray.

With ``PYTHONDONTWRITEBYTECODE``, Ray's agents start too slowly. The other variables would override options.
"""

THREADS: Final = "OMP_NUM_THREADS"


def thread_settings(present: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that keep Ray from limiting its workers to one thread.

    Ray sets ``OMP_NUM_THREADS`` to 1 in a worker unless it is set, also to an empty text. With another number of
    threads PyTorch is slower or faster, and rounds sums differently. A value of the user is kept.
    """
    return {} if present.get(THREADS) else {THREADS: ""}


def restore_threads(environment: MutableMapping[str, str]) -> None:
    """Undo ``thread_settings`` in a worker; must run before PyTorch is loaded."""
    if environment.get(THREADS) == "":
        del environment[THREADS]


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
