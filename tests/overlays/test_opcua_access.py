"""Which OPC UA clients may connect, by the files of a folder."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("asyncua")

from asyncua.common.utils import ServiceError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from overlays.sinks.plc.opcua_access import MAX_REJECTED, REJECTED, ClientCertificates, Users
from pipeline.errors import SinkError

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
URI = "opc.tcp://127.0.0.1:4840/line"


class Issued:
    """A certificate and its key."""

    def __init__(self, name, *, issuer=None, begin=NOW - DAY, end=NOW + DAY, authority=False):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(
            (issuer or self).subject, self.subject, self.key.public_key(), x509.random_serial_number(), begin, end
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        self.certificate = builder.sign((issuer or self).key, SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)

    def save(self, path, encoding=Encoding.DER):
        path.write_bytes(self.certificate.public_bytes(encoding))


@pytest.fixture
def clients(tmp_path):
    return ClientCertificates(URI, tmp_path, clock=lambda: NOW)


@pytest.mark.parametrize(("name", "encoding"), [("plc.der", Encoding.DER), ("PLC.PEM", Encoding.PEM)])
def test_client_whose_certificate_is_in_the_folder_is_admitted(clients, tmp_path, caplog, name, encoding):
    plc, other = Issued("plc"), Issued("plc")
    plc.save(tmp_path / name, encoding)
    assert clients.admits(plc.der)
    assert not clients.admits(other.der), "a name alone is not trusted"
    assert "'CN=plc' is not trusted" in caplog.text


def test_client_of_a_trusted_authority_is_admitted_unless_the_issuer_is_no_authority(clients, tmp_path):
    authority, client = Issued("factory", authority=True), Issued("another plc")
    authority.save(tmp_path / "factory.pem", Encoding.PEM)
    client.save(tmp_path / "client.der")
    assert clients.admits(Issued("plc", issuer=authority).der)
    assert not clients.admits(Issued("plc", issuer=client).der), "a client's key signs no clients"
    assert not clients.admits(Issued("plc", issuer=Issued("factory", authority=True)).der), "another key, same name"


def test_authority_that_expired_admits_nobody(tmp_path):
    authority = Issued("factory", authority=True)
    authority.save(tmp_path / "factory.der")
    client = Issued("plc", issuer=authority, end=NOW + 9 * DAY)
    assert not ClientCertificates(URI, tmp_path, clock=lambda: NOW + 2 * DAY).admits(client.der)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"begin": NOW - 2 * DAY, "end": NOW - DAY}, "expired on 2030-05-31; give the client a new one"),
        ({"begin": NOW + DAY, "end": NOW + 2 * DAY}, "is valid from 2030-06-02 00:00 UTC; check the clocks"),
    ],
)
def test_trusted_certificate_out_of_its_time_is_refused_with_the_remedy(clients, tmp_path, caplog, times, words):
    plc = Issued("plc", **times)
    plc.save(tmp_path / "plc.der")
    assert not clients.admits(plc.der)
    assert words in caplog.text


def test_refused_client_is_admitted_once_its_kept_certificate_is_moved_as_the_log_says(clients, caplog):
    plc = Issued("plc")
    for _ in range(3):
        assert not clients.admits(plc.der)
    [command] = re.findall(r"to admit it: (mv .*)", caplog.text)
    subprocess.run(command.split(), check=True)
    assert clients.admits(plc.der)


def test_number_of_kept_certificates_is_limited(clients, tmp_path, caplog):
    (tmp_path / REJECTED).mkdir()
    for number in range(MAX_REJECTED):
        (tmp_path / REJECTED / f"{number}.der").touch()
    assert not clients.admits(Issued("plc").der)
    assert len(list((tmp_path / REJECTED).iterdir())) == MAX_REJECTED
    assert f"copy its certificate into {tmp_path}" in caplog.text


@pytest.mark.parametrize("offered", [None, b"", b"garbage"])
def test_client_without_a_certificate_is_refused(clients, caplog, offered):
    assert not clients.admits(offered)
    assert "connect it with a certificate" in caplog.text


def test_file_that_is_no_certificate_is_named_once_and_the_others_count(clients, tmp_path, caplog):
    plc = Issued("plc")
    (tmp_path / "a.pem").write_text("hello")
    (tmp_path / "note.txt").write_text("not looked at")
    plc.save(tmp_path / "plc.crt")
    assert clients.admits(plc.der)
    assert clients.admits(plc.der)
    assert caplog.text.count("is not a certificate") == 1
    assert "a.pem" in caplog.text


def test_name_that_a_client_chooses_stays_on_one_short_line(clients, caplog):
    clients.admits(Issued("plc\n\x1b[31m" + "x" * 40).der)
    [record] = caplog.records
    assert record.getMessage().isprintable()


def test_folder_that_is_missing_is_refused_with_the_command(tmp_path):
    with pytest.raises(SinkError, match=f"mkdir -p {tmp_path}/none"):
        ClientCertificates(URI, tmp_path / "none")


def test_user_is_checked_after_the_certificate(clients, tmp_path, caplog):
    plc = Issued("plc")
    plc.save(tmp_path / "plc.der")
    users = Users(URI, {"plc": "right"}, clients)
    assert users.get_user(None, "plc", "right", plc.der) is not None
    for _ in range(2):
        assert users.get_user(None, "plc", "wrong", plc.der) is None
    assert caplog.text.count("wrong user or password") == 1
    with pytest.raises(ServiceError):
        users.get_user(None, "plc", "right", Issued("plc").der)
