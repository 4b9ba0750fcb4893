"""TLS by certificate files: what a server presents, taken anew when its files change, and whom a client trusts."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from faas.errors import ConfigError

LOOK_S = 2.0
"""How often the files are looked at for a change."""

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"

_Mark = tuple[tuple[int, int, int] | None, ...]


class ServerCertificate:
    """
    A certificate with its chain and its key, two PEM files; lives as long as the server.

    ``context`` is the server's for good: each handshake is given the certificate that was loaded last. TLS 1.2 and 1.3.
    """

    def __init__(self, cert: str, key: str, *, setting: str) -> None:
        """
        Args: *setting* is the one that names *cert*, such as ``tls_cert``.

        Raises: ConfigError with the file that can't be used, and why.
        """
        self._cert = cert
        self._key = key
        self._setting = setting
        self._seen = self._mark()
        self._newest = self.context = self._loaded()
        # A certificate that is loaded into the same context would stay beside one of another type of key.
        self.context.sni_callback = self._present

    def refresh(self) -> bool:
        """
        Return whether the files changed and are what handshakes get from now on.

        Raises: ConfigError, once for each change, if what is there now can't be used: the old ones are kept then.
        """
        mark = self._mark()
        if mark == self._seen:
            return False
        self._seen = mark
        self._newest = self._loaded()
        return True

    async def watch(
        self,
        told: Callable[[ConfigError | None], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """
        Look at the files every ``LOOK_S``, until cancelled.

        Args: *told* hears of each change: None, or why it is not taken. *sleep* is there for tests.
        """
        while True:
            await sleep(LOOK_S)
            try:
                if self.refresh():
                    told(None)
            except ConfigError as exc:
                told(exc)

    def _present(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _mark(self) -> _Mark:
        return tuple(map(_file_mark, (self._cert, self._key)))

    def _loaded(self) -> ssl.SSLContext:
        key_setting = self._setting.replace("cert", "key")
        cert = _read(self._cert, self._setting)
        key = _read(self._key, key_setting)
        if _BEGIN not in cert:
            raise ConfigError(f"{self._setting}: {self._cert} has no PEM certificate; begin it with the server's own")
        if "PRIVATE KEY-----" not in key:
            raise ConfigError(f"{key_setting}: {self._key} has no PEM private key")
        if "ENCRYPTED" in key:
            raise ConfigError(
                f"{key_setting}: {self._key} is encrypted; write it without a passphrase, and readable only to the host"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key)
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"{key_setting}: {self._key} is not the key of the certificate in {self._cert}; the file begins "
                    "with the server's own certificate, then come those of its chain"
                ) from exc
            raise ConfigError(
                f"{self._setting}: {self._cert} and {self._key} can't be used ({exc.reason or exc}); are both whole?"
            ) from exc
        except OSError as exc:  # it was readable a moment ago
            raise ConfigError(f"{self._setting}: {self._cert} or {self._key}: {exc.strerror}") from exc
        return context


def both_or_neither(cert: str, key: str, *, setting: str) -> bool:
    """
    Return whether TLS is asked for.

    Args: *setting* is the one that names *cert*, such as ``tls_cert``.
    Raises: ConfigError if only one of the two files is named.
    """
    if bool(cert) != bool(key):
        there, missing = setting, setting.replace("cert", "key")
        if key:
            there, missing = missing, there
        raise ConfigError(f"{there} is set and {missing} is not; TLS takes both files, see docs/configuration.md")
    return bool(cert)


def fingerprint(cert: str) -> bytes:
    """
    Return the SHA-256 of the first certificate in the PEM file *cert*, b'' if there is none to be read.

    Who can read the host's own files needs nobody else to vouch for it.
    """
    try:
        text = Path(cert).read_text()
        return hashlib.sha256(
            ssl.PEM_cert_to_DER_cert(text[text.index(_BEGIN) : text.index(_END) + len(_END)])
        ).digest()
    except (OSError, ValueError):
        return b""


def trusting(ca_file: str) -> ssl.SSLContext:
    """
    Return a client's context that trusts the certificates in *ca_file* and no others; the system's without one.

    Raises: ConfigError.
    """
    if not ca_file:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # SSLError is one
        why = "no PEM certificates are in it" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError(f"can't use {ca_file} as CA file: {why}; check --ca-file and FAAS_CA_FILE") from exc


def _file_mark(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: str, setting: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as exc:
        raise ConfigError(f"{setting}: can't read {path}: {exc.strerror}; check the path, and who may read it") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{setting}: {path} is no PEM file; convert it") from exc
