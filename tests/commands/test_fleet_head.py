"""Questions to the head: whether it answers, accepts the token, and is the one that was joined."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from commands.fleet.head import HeadWatch, require_head
from pipeline.errors import ConfigError, ReciproStreamError

grpc = pytest.importorskip("grpc", reason="Ray is an extra: uv sync --extra fleet")
pytest.importorskip("ray", reason="Ray is an extra: uv sync --extra fleet")


@pytest.mark.parametrize(
    ("answers", "is_replaced"),
    [
        ((b"a", b"a"), [False, False]),
        ((b"a", None, b"", b"a"), [False] * 4),
        ((b"a", None, b"b", None, b"b"), [False, False, True, False, True]),
        ((None, b"b", b"b"), [False] * 3),
    ],
)
def test_head_is_replaced_only_if_another_identity_answers(answers, is_replaced):
    given = iter(answers)
    watch = HeadWatch(lambda: next(given))
    assert [watch.is_replaced() for _ in answers] == is_replaced


@pytest.fixture
def head():
    """Start heads on the loopback, which accept a token, or have no store; each call returns an address."""
    from ray.core.generated import gcs_service_pb2

    servers = []

    def start(token: str = "", *, has_store: bool = True) -> str:
        def identity(_request, context):
            if token not in str(context.invocation_metadata()):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")
            return gcs_service_pb2.GetClusterIdReply(cluster_id=b"one")

        method = grpc.unary_unary_rpc_method_handler(
            identity,
            gcs_service_pb2.GetClusterIdRequest.FromString,
            gcs_service_pb2.GetClusterIdReply.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"GetClusterId": method})
        server = grpc.server(ThreadPoolExecutor(1), (service,) if has_store else ())
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def test_head_that_answers_is_accepted_at_once(head):
    require_head(head(), seconds=0.0)


def test_head_that_refuses_the_token_is_named_with_the_remedy_and_without_waiting(head):
    with pytest.raises(ReciproStreamError, match=r"refuses the token; copy the token file .*--token-file FILE"):
        require_head(head("secret"), seconds=600.0)


def test_address_at_which_no_head_answers_is_named_with_the_remedy(head):
    with pytest.raises(ReciproStreamError, match=r"no Ray answers at 127.0.0.1:1 .*check the address"):
        require_head("127.0.0.1:1", seconds=0.0)
    with pytest.raises(ReciproStreamError, match=r"no Ray answers at .* \(unimplemented\)"):
        require_head(head(has_store=False), seconds=0.0)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", ":6379", "10.0.0.5:", "10.0.0.5:x", "10.0.0.5:0", "10.0.0.5:65536", ""]
)
def test_address_without_a_host_or_a_port_is_refused(address):
    with pytest.raises(ConfigError, match="give HOST:PORT"):
        require_head(address, seconds=0.0)
