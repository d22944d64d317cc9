"""Certificates for servers in tests, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.limits import PROGRAM_SECONDS


def make_certificate(
    key_file: Path, certificate: Path, *, alternative: str, subject: str = "localhost", key: str = "rsa:2048"
) -> None:
    """Write a self-signed certificate, valid for two days; skip the test where openssl is missing.

    Args:
        key_file: receives the key.
        certificate: receives the certificate.
        alternative: the alternative names, as openssl writes them: ``IP:127.0.0.1,DNS:localhost``.
        subject: the common name.
        key: kind of the key: ``rsa:BITS`` or ``ec``.
    """
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"] if key == "ec" else []
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", key, *curve, "-nodes", "-days", "2", "-subj", f"/CN={subject}", "-addext",
         f"subjectAltName={alternative}", "-keyout", str(key_file), "-out", str(certificate)],
        check=True, capture_output=True, timeout=PROGRAM_SECONDS,
    )  # fmt: skip
