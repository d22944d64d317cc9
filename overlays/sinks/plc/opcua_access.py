"""Authenticates OPC UA clients by certificate, and by user name and password.

A folder contains the trusted certificates of clients and of certificate authorities, and revocation lists of these
authorities. The certificate of a refused client is stored in a subfolder; moving it up into the folder admits the
client.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import UserManager
from asyncua.ua.status_codes import StatusCodes
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from pipeline.atomic import write_atomically
from pipeline.errors import SinkError

log = logging.getLogger(__name__)

REJECTED: Final = "rejected"
"""Subfolder with the certificates of refused clients."""
MAX_REJECTED: Final = 100
"""Maximum number of files in this subfolder, because any client can offer certificates."""
_SUFFIXES: Final = frozenset({".der", ".cer", ".crt", ".pem"})
_LIST_SUFFIX: Final = ".crl"
_MAX_LOGGED: Final = 1000


class ClientCertificates:
    """Admits clients whose certificates a folder trusts; the folder is read again for each connection."""

    def __init__(self, uri: str, folder: Path | str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Set the folder of trusted certificates.

        Args:
            uri: address of the sink, for messages.
            folder: the folder with certificates, DER or PEM.
            clock: returns the current time with a time zone.

        Raises:
            SinkError: the folder does not exist.
        """
        self._uri, self._folder, self._clock = uri, Path(folder), clock
        self._logged: set[tuple[str, str]] = set()
        """Logged fingerprints and reasons, because a refused controller tries again every few seconds."""
        if not self._folder.is_dir():
            raise SinkError(
                f"{uri}: client_certificates_folder: {folder} is not a folder; create it: mkdir -p {folder}, and copy "
                "the certificates of the clients into it"
            )

    def admits(self, certificate: bytes | None) -> bool:
        """Return whether a client with this certificate (DER) may connect; log the reason of a refusal once."""
        try:
            client = x509.load_der_x509_certificate(certificate or b"")
        except ValueError:
            self._refuse("", "it has no certificate that can be read; connect it with a certificate")
            return False
        fingerprint, subject = client.fingerprint(SHA256()).hex(), _one_line(client.subject)
        if now_fault := _time_fault(client, self._clock()):
            self._refuse(fingerprint, f"its certificate {subject} {now_fault}")
            return False
        trusted = list(self._trusted())
        if revoked := self._revoked_by(client, trusted):
            self._refuse(fingerprint, f"its certificate {subject} is revoked by {revoked}; give the client a new one")
            return False
        issuers = [each for each in trusted if self._trusts(each, client)]
        if any(each == client or not self._revoked_by(each, trusted) for each in issuers):
            return True
        if issuers:
            revoked = self._revoked_by(issuers[0], trusted)
            self._refuse(fingerprint, f"the authority of its certificate {subject} is revoked by {revoked}")
            return False
        kept = self._kept(client, fingerprint)
        remedy = f"mv {kept} {self._folder}/" if kept else f"copy its certificate into {self._folder}"
        self._refuse(
            fingerprint, f"its certificate {subject} is not trusted; to admit it: {remedy}; {self._hint(client)}"
        )
        return False

    def _hint(self, client: x509.Certificate) -> str:
        """Return how to admit all clients of the authority that issued a certificate."""
        if client.issuer == client.subject:
            return "it is self-signed, so it has no authority to trust instead"
        issuer = _one_line(client.issuer)
        return f"to admit all clients of {issuer}, copy the certificate of this authority into the same folder"

    def _revoked_by(self, certificate: x509.Certificate, trusted: list[x509.Certificate]) -> str:
        """Return the file name of the list that revokes a certificate; empty if no list does."""
        for path, revocations in self._lists():
            is_listed = revocations.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
            if revocations.issuer == certificate.issuer and is_listed:
                if any(_is_authority(each) and _has_signed(each, revocations) for each in trusted):
                    return path.name
                self._log(path.name, "unsigned", f"{path} has no effect: no authority in {self._folder} has signed it")
        return ""

    def _lists(self) -> Iterator[tuple[Path, x509.CertificateRevocationList]]:
        """Yield the revocation lists in the folder; a list that is invalid or out of date is logged once."""
        with suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if path.suffix.lower() == _LIST_SUFFIX and path.is_file():
                    try:
                        revocations = _read_list(path)
                    except (OSError, ValueError) as error:
                        self._log(path.name, "unreadable", f"{path} is not a revocation list ({error}); replace it")
                        continue
                    due = revocations.next_update_utc
                    if due is not None and due < self._clock():
                        self._log(
                            path.name, "due", f"{path} is out of date since {due:%Y-%m-%d}, and is used; replace it"
                        )
                    yield path, revocations

    def _trusts(self, trusted: x509.Certificate, client: x509.Certificate) -> bool:
        """Return whether ``trusted`` is the client's certificate, or a valid authority that issued it."""
        if trusted == client:
            return True
        try:
            client.verify_directly_issued_by(trusted)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return _is_authority(trusted) and not _time_fault(trusted, self._clock())

    def _trusted(self) -> Iterator[x509.Certificate]:
        """Yield the certificates in the folder; an invalid file is logged once."""
        with suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if path.suffix.lower() in _SUFFIXES and path.is_file():
                    try:
                        certificate = read_certificate(path)
                        if path.read_bytes().count(b"-----BEGIN CERTIFICATE-----") > 1:
                            reason = "has several certificates, of which the first counts; write one to each file"
                            self._log(path.name, "several", f"{path} {reason}")
                        yield certificate
                    except (OSError, ValueError) as error:
                        self._log(path.name, "unreadable", f"{path} is not a certificate ({error}); remove it")

    def _kept(self, client: x509.Certificate, fingerprint: str) -> Path | None:
        """Store a refused client's certificate in the subfolder; return its path, or None if it was not stored."""
        folder = self._folder / REJECTED
        path = folder / f"{fingerprint[:16]}.der"
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            if not path.exists() and len(list(folder.iterdir())) < MAX_REJECTED:
                write_atomically(path, client.public_bytes(Encoding.DER))
        return path if path.is_file() else None

    def _refuse(self, fingerprint: str, reason: str) -> None:
        self._log(fingerprint, reason, f"a client is refused: {reason}")

    def _log(self, key: str, reason: str, text: str) -> None:
        if (key, reason) in self._logged:
            return
        if len(self._logged) >= _MAX_LOGGED:
            self._logged.clear()
        self._logged.add((key, reason))
        log.warning("%s: %s", self._uri, text)


class Users(UserManager):
    """Admits clients by certificate, by user name and password, or by both."""

    def __init__(self, uri: str, users: dict[str, str] | None, clients: ClientCertificates | None) -> None:
        """Set the checks.

        Args:
            uri: address of the sink, for messages.
            users: passwords by user name; None: users are not checked.
            clients: the trusted certificates; None: certificates are not checked.
        """
        self._uri, self._users, self._clients = uri, users, clients
        self._is_logged = False

    def get_user(
        self,
        iserver: object,  # noqa: ARG002 - asyncua's signature
        username: str | None = None,
        password: str | bytes | None = None,
        certificate: bytes | None = None,
    ) -> User | None:
        """Return the admitted user; None for a wrong user or password.

        ``certificate`` must come from the encrypted connection, where the client has proved that it has the key. A
        client can omit or forge the certificate that it sends when it creates a session.

        Raises:
            ServiceError: the certificate is not trusted.
        """
        if self._clients is not None and not self._clients.admits(certificate):
            raise ServiceError(StatusCodes.BadCertificateUntrusted)
        if self._users is not None:
            expected = self._users.get(username or "")
            given = password.encode() if isinstance(password, str) else password or b""
            if not hmac.compare_digest(given, (expected or "").encode()) or expected is None:
                self._log_refused()
                return None
        return User(role=UserRole.User, name=username)

    def _log_refused(self) -> None:
        """Log only the first refused user, because a controller with a wrong password tries again every few seconds."""
        if not self._is_logged:
            self._is_logged = True
            log.warning("%s: a client is refused: wrong user or password; users_file lists the valid users", self._uri)


def parse_users(text: str, path: str) -> dict[str, str]:
    """Return passwords by user name from lines ``user:password``.

    Raises:
        SinkError: a line has another form, or there is no user; the message names ``path``.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, password = line.partition(":")
        if line.strip() and (not colon or not name or not password):
            raise SinkError(f"{path}: line {number} is not user:password; write one user on each line")
        if line.strip():
            users[name] = password
    if not users:
        raise SinkError(f"{path}: holds no user; write user:password, one on each line")
    return users


def read_certificate(path: Path | str) -> x509.Certificate:
    """Return the certificate in a DER or PEM file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file contains no certificate.
    """
    content = Path(path).read_bytes()
    is_pem = content.lstrip().startswith(b"-----")
    return x509.load_pem_x509_certificate(content) if is_pem else x509.load_der_x509_certificate(content)


def _read_list(path: Path) -> x509.CertificateRevocationList:
    """Return the revocation list in a DER or PEM file. Raises ``OSError`` or ``ValueError``."""
    content = path.read_bytes()
    return x509.load_pem_x509_crl(content) if content.lstrip().startswith(b"-----") else x509.load_der_x509_crl(content)


def _is_authority(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may sign others."""
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid
    except ValueError:  # an extension cannot be read
        return False


def _has_signed(authority: x509.Certificate, revocations: x509.CertificateRevocationList) -> bool:
    """Return whether an authority has signed a revocation list."""
    try:
        return authority.subject == revocations.issuer and revocations.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False  # a key of another kind


def _time_fault(certificate: x509.Certificate, now: datetime) -> str:
    """Return why a certificate is not valid at this time, with a remedy; empty if it is valid."""
    if certificate.not_valid_after_utc < now:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}; give the client a new one"
    if certificate.not_valid_before_utc > now:
        return f"is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; check the clocks of both machines"
    return ""


def _one_line(name: x509.Name) -> str:
    """Return a client's name for messages: at most 100 characters, with unprintable ones replaced."""
    text = "".join(each if each.isprintable() else "?" for each in name.rfc4514_string())
    return repr(text[:100])
