"""Options of the OPC UA sink: addresses, users and certificates are checked before the run."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("asyncua")

from overlays.sinks.plc.opcua import OpcUaSink
from overlays.sinks.settings import OpcUaSettings
from pipeline.errors import SinkError
from pipeline.settings import Secret, SinkContext

ANY_PORT = "opc.tcp://127.0.0.1:0/line"


@pytest.mark.parametrize("address", ["0.0.0.0:4840/line", "192.168.1.4:4840", "[::]:4840"])
def test_address_for_other_machines_needs_users_and_encryption(address):
    with pytest.raises(SinkError, match=r"users_file, certificate_file and private_key_file.*insecure"):
        OpcUaSink(f"opc.tcp://{address}")
    assert OpcUaSink(OpcUaSettings(uri=f"opc.tcp://{address}", insecure=True)).uri


@pytest.mark.parametrize("address", ["127.0.0.1", "", "127.0.0.1:4840/a/b", "127.0.0.1:99999/x"])
def test_malformed_address_is_refused_with_an_example(address):
    with pytest.raises(SinkError, match=r"opc\.tcp://127\.0\.0\.1:4840/line"):
        OpcUaSink(f"opc.tcp://{address}")


def test_certificate_that_cannot_be_used_is_refused_before_the_run(tmp_path):
    (tmp_path / "x.pem").write_text("hello")
    for path in (tmp_path / "x.pem", tmp_path / "missing.pem"):
        settings = OpcUaSettings(uri=ANY_PORT, certificate_file=str(path), private_key_file=str(path))
        with pytest.raises(SinkError, match=f"{path.name}: cannot be used"):
            OpcUaSink(settings).__enter__()


def test_certificate_without_its_key_is_refused():
    with pytest.raises(SinkError, match="belong together"):
        OpcUaSink(OpcUaSettings(uri=ANY_PORT, certificate_file="x.pem"))


def test_certificates_of_clients_without_encryption_are_refused(tmp_path):
    with pytest.raises(SinkError, match="no effect without encryption"):
        OpcUaSink(OpcUaSettings(uri=ANY_PORT, client_certificates_folder=str(tmp_path)))


@pytest.mark.parametrize("text", ["", "\n", "plc", ":x", "plc:", "plc:x\nscada"])
def test_users_file_without_passwords_is_refused(text):
    context = SinkContext(secrets={"users_file": Secret(text, "users.txt")})
    with pytest.raises(SinkError, match=r"users\.txt: .*user:password"):
        OpcUaSink(ANY_PORT, context)


def test_port_in_use_is_refused_at_once():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SinkError, match="choose another port"):
            OpcUaSink(f"opc.tcp://127.0.0.1:{other.getsockname()[1]}/x").__enter__()
