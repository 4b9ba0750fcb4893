"""
Sealing secrets: AES-256-GCM under a key of this host, bound to the function and the name that they are for.

The key's file holds one key a line, base64: the first seals, all of them open. Rotating puts a new one on top, seals
everything again and then takes the others away, so there is no moment at which something could not be opened.
Source: NIST SP 800-38D; a nonce is 96 random bits, far fewer than 2^32 secrets are ever sealed with one key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from faas.errors import SecretsKeyError
from faas.state.settings import SecretEntry

KEY_FILE: Final = "secrets.key"
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_MAX_FILE_BYTES: Final = 16 * 1024


class Vault:
    """Seals and opens secrets; lives as long as the host. Nothing here shows a key or a secret in its repr."""

    def __init__(self, path: Path, keys: tuple[bytes, ...]) -> None:
        """Use ``open_vault``."""
        self.path = path
        self._sealing = key_id(keys[0])
        self._keys = {key_id(key): AESGCM(key) for key in keys}
        self._texts = keys

    @property
    def key_id(self) -> str:
        """Which key seals."""
        return self._sealing

    def opens(self, entry: SecretEntry) -> bool:
        """Return whether the key that sealed *entry* is one of ours."""
        return entry.key_id in self._keys

    def seal(self, function: str, name: str, value: str) -> SecretEntry:
        """Return *value*, sealed for *function* and *name* alone."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self._sealing].encrypt(nonce, value.encode(), _bound_to(function, name))
        return SecretEntry(function, name, nonce + sealed, self._sealing)

    def open(self, entry: SecretEntry) -> str:
        """
        Return what *entry* holds.

        Raises: SecretsKeyError if it was sealed with another key, or is not what was sealed.
        """
        key = self._keys.get(entry.key_id)
        if key is None:
            raise SecretsKeyError(
                f"the secret {entry.name!r} of {entry.function!r} was sealed with another key than those in"
                f" {self.path}; put the right key into that file and restart the host, or set the secret again"
            )
        try:
            opened = key.decrypt(
                entry.sealed[:_NONCE_BYTES], entry.sealed[_NONCE_BYTES:], _bound_to(entry.function, entry.name)
            )
        except (InvalidTag, ValueError):
            raise SecretsKeyError(
                f"the secret {entry.name!r} of {entry.function!r} is damaged, or was sealed for something else; set it"
                " again"
            ) from None
        return opened.decode()

    def with_new_key(self) -> Vault:
        """
        Return a vault that seals with a new key and still opens what ours sealed; the file has it already.

        Raises: SecretsKeyError if the file can't be written.
        """
        keys = (secrets.token_bytes(KEY_BYTES), *self._texts)
        _write(self.path, keys)
        return Vault(self.path, keys)

    def without_old_keys(self) -> Vault:
        """
        Return a vault with the sealing key alone; the file has no other any more.

        Raises: SecretsKeyError if the file can't be written.
        """
        _write(self.path, self._texts[:1])
        return Vault(self.path, self._texts[:1])


def open_vault(home: Path, key_file: str) -> Vault:
    """
    Return the vault of the host: with the key of *key_file*, or of ``secrets.key`` in *home*, made at the first start.

    Raises: SecretsKeyError if the file holds no key, or *key_file* is not there.
    """
    path = Path(key_file) if key_file else home / KEY_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        if key_file:
            raise SecretsKeyError(
                f"secrets_key_file: there is no {path}; make it with 'head -c {KEY_BYTES} /dev/urandom | base64 >"
                f" {path}; chmod 600 {path}'"
            ) from None
        keys: tuple[bytes, ...] = (secrets.token_bytes(KEY_BYTES),)
        _write(path, keys)
        return Vault(path, keys)
    except OSError as exc:
        raise SecretsKeyError(f"can't read the key of the secrets in {path}: {exc.strerror}; make it readable") from exc
    if not key_file:
        with contextlib.suppress(OSError):
            path.chmod(0o600)
    keys = tuple(_key_of(line, path) for line in text.split())
    if not keys:
        raise SecretsKeyError(
            f"{path} is empty; put the key of the secrets back, or remove the file and set all secrets again"
        )
    return Vault(path, keys)


def key_id(key: bytes) -> str:
    """Return the name under which *key* is known; it tells nothing about it."""
    return hashlib.sha256(b"faas secrets key\0" + key).hexdigest()[:16]


def _key_of(line: bytes, path: Path) -> bytes:
    try:
        key = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SecretsKeyError(f"{path} does not hold {KEY_BYTES} bytes in base64, one key a line; put the key back")
    return key


def _write(path: Path, keys: tuple[bytes, ...]) -> None:
    """Replace the file as a whole, for its owner alone."""
    aside = path.with_name(path.name + ".new")
    try:
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(b"".join(base64.b64encode(key) + b"\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise SecretsKeyError(
            f"can't write the key of the secrets to {path}: {exc.strerror}; make it writable"
        ) from exc


def _bound_to(function: str, name: str) -> bytes:
    return f"faas secret\0{function}\0{name}".encode()
