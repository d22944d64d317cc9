"""Asks the head: whether it answers, and whether it restarted without its data; Ray does not rejoin such a head."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from pipeline.errors import ConfigError, ReciproStreamError

log = logging.getLogger("recipro-stream")

_ANSWER_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.5
_CHANNEL: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class HeadWatch:
    """Compares the identity of the head with the first identity that it received. Not thread-safe.

    A head whose store is in memory gets a new identity at each start. It refuses processes that joined the head with
    the previous identity. Without this check, these processes would retry for a day.
    """

    def __init__(self, ask: Callable[[], bytes | None]) -> None:
        """Store the function that returns the head's identity; None or empty means that the head does not answer."""
        self._ask = ask
        self._identity: bytes | None = None

    def is_replaced(self) -> bool:
        """Return whether the head answers with another identity than the first one."""
        found = self._ask()
        if not found:
            return False
        self._identity = self._identity or found
        return found != self._identity


def head_identity(address: str) -> Callable[[], bytes | None]:
    """Return a function that asks the head at ``HOST:PORT`` for its identity, with the token of this process.

    Each call returns within a second. Ray's own clients would wait until the head is back.
    """
    import grpc

    request = _identity_request(address)

    def ask() -> bytes | None:
        try:
            return request()
        except grpc.RpcError as error:
            log.debug("the head at %s does not answer: %s", address, error)
            return None

    return ask


def require_head(address: str, *, seconds: float) -> None:
    """Wait until the head at ``HOST:PORT`` answers; Ray would wait for a quarter of an hour.

    Args:
        address: address of the head.
        seconds: time limit.

    Raises:
        ReciproStreamError: the address is wrong, nothing answers there, or the head refuses the token.
    """
    import grpc

    _check_address(address)
    request = _identity_request(address)
    deadline = time.monotonic() + seconds
    while True:
        try:
            request()
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
                raise ReciproStreamError(
                    f"fleet: the head at {address} refuses the token; copy the token file from the head node (scp), or "
                    "name it: --token-file FILE"
                ) from None
            if time.monotonic() >= deadline:
                raise ReciproStreamError(
                    f"fleet: no Ray answers at {address} ({code.name.lower().replace('_', ' ')}); check the address, "
                    "that the head runs with --listen and an IP address of that machine, and the firewalls between"
                ) from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"fleet: {address!r} is no address of a head; give HOST:PORT, such as 10.0.0.5:6379")


def _identity_request(address: str) -> Callable[[], bytes]:
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(init_grpc_channel(address, _CHANNEL))
    request = gcs_service_pb2.GetClusterIdRequest()
    return lambda: bytes(stub.GetClusterId(request, timeout=_ANSWER_SECONDS).cluster_id)
