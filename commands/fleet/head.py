"""Notices that the head came back without its data: Ray does not join such a head again."""

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
    """Compares the identity of the head with the first one that it has seen. For one thread.

    A head that keeps its store in memory has a new identity after each start. It refuses the processes that have
    joined the earlier one, which would try again for as long as nodes go on without the head.
    """

    def __init__(self, ask: Callable[[], bytes | None]) -> None:
        """Set the call that returns the identity of the head; None, or an empty one: it does not answer."""
        self._ask = ask
        self._identity: bytes | None = None

    def is_replaced(self) -> bool:
        """Return whether another head than the first one answers."""
        found = self._ask()
        if not found:
            return False
        self._identity = self._identity or found
        return found != self._identity


def head_identity(address: str) -> Callable[[], bytes | None]:
    """Return a call that asks the head at ``HOST:PORT`` for its identity, with the token of this process.

    Each call is answered within a second: clients of Ray's own wait for the head as long as it is gone.
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
