"""Checks the address that a ZeroMQ socket binds; error messages contain remedies."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

import zmq

from overlays.sinks.paths import no_folder, path_errors
from overlays.wire.endpoint import Endpoint
from pipeline.errors import SinkError


def check_path(address: Endpoint) -> None:
    """Check the path of an ``ipc`` address, because libzmq would replace an existing file or another run's socket.

    Raises:
        SinkError: the path is a file, another run uses it, or its folder is missing.
    """
    if not address.path or address.path.startswith("@"):
        return
    path = Path(address.path)
    with path_errors(address.uri):
        _check_socket_path(address, path)


def _check_socket_path(address: Endpoint, path: Path) -> None:
    if not path.parent.is_dir():
        raise no_folder(address.uri, path.parent)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SinkError(f"{address.uri}: {path} is a file, not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise SinkError(f"{address.uri}: is in use by another run; choose another path, or stop that run")


def bind_error_message(uri: str, error: zmq.ZMQError) -> SinkError:
    """Return the error for an address that cannot be bound, with a remedy."""
    hints = {
        errno.EADDRINUSE: "is in use; choose another port, or stop the program that uses it (ss -ltnp shows which)",
        errno.EADDRNOTAVAIL: "is not an address of this machine; bind tcp://0.0.0.0:port to serve other machines",
        errno.ENODEV: "is not an address of this machine; bind tcp://0.0.0.0:port to serve other machines",
        errno.EACCES: "may not be used by this user; choose a port above 1023",
    }
    return SinkError(f"{uri}: {hints.get(error.errno or 0, f'cannot be bound ({error.strerror})')}")
