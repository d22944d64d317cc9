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

    def __init__(self, name, *, issuer=None, begin=NOW - DAY, end=NOW + DAY, authority=False, usage=None):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(
            (issuer or self).subject, self.subject, self.key.public_key(), x509.random_serial_number(), begin, end
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if usage is not None:
            builder = builder.add_extension(usage, critical=True)
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


def revocations(authority, *revoked, due=NOW + DAY):
    """Return a revocation list of an authority, as DER."""
    builder = x509.CertificateRevocationListBuilder(authority.subject, NOW - DAY, due)
    for each in revoked:
        entry = x509.RevokedCertificateBuilder(each.certificate.serial_number, NOW - DAY).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, SHA256()).public_bytes(Encoding.DER)


def test_client_of_an_intermediate_authority_is_admitted_by_the_certificate_of_that_authority(
    clients, tmp_path, caplog
):
    root = Issued("root", authority=True)
    line = Issued("line authority", issuer=root, authority=True)
    plc = Issued("plc", issuer=line)
    root.save(tmp_path / "root.der")
    assert not clients.admits(plc.der)
    assert (
        "to admit all clients of 'CN=line authority', copy the certificate of this authority into the same folder"
        in caplog.text
    )
    line.save(tmp_path / "line.der")
    assert clients.admits(plc.der)
    (tmp_path / "root.crl").write_bytes(revocations(root, line))
    assert not clients.admits(plc.der)
    assert "the authority of its certificate 'CN=plc' is revoked by root.crl" in caplog.text
    plc.save(tmp_path / "plc.der")
    assert clients.admits(plc.der), "trusted by itself"


def test_revoked_client_is_refused_also_if_its_own_certificate_is_trusted(clients, tmp_path, caplog):
    authority = Issued("factory", authority=True)
    lost, other = Issued("lost", issuer=authority), Issued("other", issuer=authority)
    authority.save(tmp_path / "factory.der")
    lost.save(tmp_path / "lost.der")
    assert clients.admits(lost.der)
    (tmp_path / "factory.crl").write_bytes(revocations(authority, lost))
    assert not clients.admits(lost.der)
    assert "'CN=lost' is revoked by factory.crl; give the client a new one" in caplog.text
    assert clients.admits(other.der)


def test_revocation_list_of_another_signer_has_no_effect_and_is_named_once(clients, tmp_path, caplog):
    authority, forger = Issued("factory", authority=True), Issued("factory", authority=True)
    authority.save(tmp_path / "factory.der")
    plc = Issued("plc", issuer=authority)
    (tmp_path / "forged.crl").write_bytes(revocations(forger, plc))
    (tmp_path / "broken.crl").write_bytes(b"hello")
    (tmp_path / "old.crl").write_bytes(revocations(authority, due=NOW - DAY / 2))
    for _ in range(2):
        assert clients.admits(plc.der)
    assert caplog.text.count("forged.crl has no effect: no authority in") == 1
    assert caplog.text.count("broken.crl is not a revocation list") == 1
    assert caplog.text.count("old.crl is out of date since 2030-05-31, and is used") == 1


def test_authority_whose_key_may_not_sign_certificates_admits_nobody(clients, tmp_path):
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    signer = Issued("signer", authority=True, usage=x509.KeyUsage(digital_signature=True, **usage))
    signer.save(tmp_path / "signer.der")
    assert not clients.admits(Issued("plc", issuer=signer).der)


def test_file_of_several_certificates_counts_as_its_first_and_is_named(clients, tmp_path, caplog):
    plc, other = Issued("plc"), Issued("other")
    both = plc.certificate.public_bytes(Encoding.PEM) + other.certificate.public_bytes(Encoding.PEM)
    (tmp_path / "both.pem").write_bytes(both)
    assert clients.admits(plc.der)
    assert not clients.admits(other.der)
    assert caplog.text.count("both.pem has several certificates, of which the first counts") == 1


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
    [command] = re.findall(r"to admit it: (mv [^;]*);", caplog.text)
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
