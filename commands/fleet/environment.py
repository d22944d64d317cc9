"""Prepares the environment variables of Ray: sets the token and the loopback, and disables usage statistics."""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from commands.ray_settings import LOOPBACK_SETTINGS, REMOVED, SETTINGS, thread_settings
from pipeline.errors import ConfigError

ROOT: Final = Path(__file__).resolve().parents[2]
LOOPBACK: Final = "127.0.0.1"
PORT: Final = 6379
NODE: Final = "RECIPRO_FLEET_NODE"
"""Environment variable with the name of the node, in all processes of the node."""
ROLE: Final = "RECIPRO_FLEET_ROLE"
"""Environment variable with the role of the node: ``head`` or ``node``."""
HEAD: Final = "head"
_SETTINGS: Final = SETTINGS | {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers select their GPUs themselves
    "RAY_DEDUP_LOGS": "0",
    # Detects a lost node within 2 s.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_agent_register_timeout_ms": "120000",  # Ray's agents start slowly on a busy machine
    # Nodes continue without the head for a day.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    "OMP_WAIT_POLICY": "PASSIVE",
    "ORT_DISABLE_TELEMETRY": "1",
}


def default_token_file() -> Path:
    """Return the default path of the token file."""
    import platformdirs

    return platformdirs.user_config_path("recipro-stream") / "fleet.token"


def create_token(path: Path) -> None:
    """Write a new token that only this user can read; keep an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def check_token(path: Path) -> None:
    """Check that the token file exists and that only this user can read it.

    Raises:
        ConfigError: the file is missing or cannot be read, or other users can read it.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: the fleet's token is missing; copy it from the head node (scp), or give --token-file FILE"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: the fleet's token cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path}: other users can read the token, with which they can run programs on this machine; "
            f"restrict it: chmod 600 {path}"
        )


def is_loopback(address: str) -> bool:
    """Return whether an address is on the loopback interface.

    Raises:
        ConfigError: the address is not an IP address.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise ConfigError(f"--listen {address!r}: give an IP address of this machine, such as 192.168.0.10") from None


def check_listen(listen: str, *, port: int) -> None:
    """Check that this machine can listen at an address.

    Args:
        listen: IP address of this machine.
        port: port of the head; 0: any free port.

    Raises:
        ConfigError: the address is not one of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"--listen {listen}: port {port} is taken; a head, another Ray or Redis runs on this machine: end "
                    "it, or join that fleet: --join HOST:PORT"
                ) from None
            raise ConfigError(
                f"--listen {listen}: is no address of this machine ({error.strerror}); `ip address` lists them"
            ) from None


def ray_environment(present: Mapping[str, str], token_file: Path, listen: str) -> dict[str, str]:
    """Return the environment of Ray's processes.

    Args:
        present: the environment of this process.
        token_file: path of the token file.
        listen: IP address of this node; for a loopback address, Ray listens only on the loopback.
    """
    environment = {name: value for name, value in present.items() if name not in REMOVED}
    environment |= thread_settings(environment) | _SETTINGS | {"RAY_AUTH_TOKEN_PATH": str(token_file.resolve())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if is_loopback(listen):
        environment |= LOOPBACK_SETTINGS
    return environment


def enter(environment: MutableMapping[str, str], token_file: Path, listen: str = LOOPBACK) -> None:
    """Set Ray's variables in the environment of this process; must run before Ray is imported."""
    updated = ray_environment(environment, token_file, listen)
    for name in REMOVED:
        environment.pop(name, None)
    environment.update(updated)
