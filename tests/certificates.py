"""Self-signed certificates for tests, made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """The paths of two PEM files."""

    cert: Path
    key: Path

    def trusted(self) -> ssl.SSLContext:
        """Return a client's context that trusts this certificate only."""
        return ssl.create_default_context(cafile=str(self.cert))


def self_signed(
    folder: Path, name: str = "host", *, type_of_key: str = "ec", days: float = 30, passphrase: bytes = b""
) -> Certificate:
    """Write NAME.crt and NAME.key, for localhost and 127.0.0.1; another one of that name is replaced."""
    private = (
        ec.generate_private_key(ec.SECP256R1())
        if type_of_key == "ec"
        else rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    for path, content in (
        (files.cert, made.public_bytes(pem)),
        (files.key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden)),
    ):
        aside = path.with_suffix(".new")  # as a renewal should: never half of it, and another inode
        aside.write_bytes(content)
        aside.chmod(0o600)
        aside.replace(path)
    return files
