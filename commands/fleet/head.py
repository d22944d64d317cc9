"""Detects that the head restarted without its data; Ray does not rejoin such a head."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("recipro-stream")

_ANSWER_SECONDS: Final = 1.0
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
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(init_grpc_channel(address, _CHANNEL))
    request = gcs_service_pb2.GetClusterIdRequest()

    def ask() -> bytes | None:
        try:
            return bytes(stub.GetClusterId(request, timeout=_ANSWER_SECONDS).cluster_id)
        except grpc.RpcError as error:
            log.debug("the head at %s does not answer: %s", address, error)
            return None

    return ask
