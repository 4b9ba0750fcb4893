"""The artifact store: kept modules and bundles by digest, native code by key and proved ours by an HMAC."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import mmap
import os
import secrets
import shutil
import stat
import threading
from collections import deque
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from faas.errors import ArtifactMissingError, ArtifactTamperedError, ConfigError, StateError

_KEY_BYTES = 32
_LEAF_BYTES = 512 * 1024
"""What is hashed at once; another size gives other HMACs, and so has every function compiled anew."""
_HASH_THREADS = 4
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_HEX = frozenset("0123456789abcdef")
_DISK_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@contextmanager
def disk_watched() -> Iterator[None]:
    """Turn what a full or broken disk answers into a StateError; any other OSError stays what it is."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _DISK_REFUSES:
            raise
        raise StateError(
            f"disk full or broken under the host's home ({exc.strerror}): nothing was changed; make room there and"
            " try again"
        ) from exc


def native_key(wasm_digest: str, preinit: str, fingerprint: str) -> str:
    """
    Return the name of the native code made from that module, snapshot export and engine fingerprint; hex.

    Whatever would give other native code gives another key, so nothing stored is ever out of date.
    """
    digest = hashlib.sha256()
    for part in ("native-2", wasm_digest, preinit, fingerprint):
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.hexdigest()


class ArtifactStore:
    """
    Files under ``root/artifacts`` and the signing key under ``root/keys``; holds no descriptor, lives as long as liked.

    Every file appears whole or not at all (written in ``scratch``, synced, renamed), readable by the host's user only.
    Several processes may use one root at once; ``remove_unreferenced`` is for the control process alone.
    A full disk is a StateError, and leaves what was there before.
    Thread: safe; long hashes release the GIL.
    """

    def __init__(self, root: Path) -> None:
        """
        Make the folders and, on the first start, the signing key.

        Args: *root* is the host's home.
        Raises: ConfigError when others may read the key, or the folders can't be made.
        """
        base = root / "artifacts"
        self._wasm = base / "wasm"
        self._native = base / "native"
        self._bundles = base / "bundles"
        self._scratch = base / "scratch"
        keys = root / "keys"
        try:
            for folder in (root, base, self._wasm, self._native, self._bundles, self._scratch, keys):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = _load_key(keys / "artifact.key")
        except OSError as exc:
            raise ConfigError(f"can't use {exc.filename or root} as home: {exc.strerror}; check --home") from exc

    @property
    def scratch(self) -> Path:
        """A folder on the same file system for work in progress; whoever makes something there removes it."""
        return self._scratch

    # --- modules ----------------------------------------------------------------------------------------------------

    def put_wasm(self, wasm: bytes) -> str:
        """Keep *wasm* and return its digest; keeping the same bytes again changes nothing."""
        return self._put_by_digest(self._wasm, ".wasm", wasm)

    def wasm_path(self, digest: str) -> Path:
        """
        Return the path of a kept module, its bytes checked against *digest*.

        Raises: ArtifactMissingError, ArtifactTamperedError.
        """
        return _verified(_named(self._wasm, digest, ".wasm"), digest, "module")

    # --- bundles ----------------------------------------------------------------------------------------------------

    def put_bundle(self, archive: bytes) -> str:
        """Keep a bundle's archive and return its digest; keeping the same bytes again changes nothing."""
        return self._put_by_digest(self._bundles, ".tar", archive)

    def bundle_path(self, digest: str) -> Path:
        """
        Return the path of a kept bundle, its bytes checked against *digest*.

        Raises: ArtifactMissingError, ArtifactTamperedError.
        """
        return _verified(_named(self._bundles, digest, ".tar"), digest, "bundle")

    # --- native code ------------------------------------------------------------------------------------------------

    def put_native(self, key: str, file: Path) -> None:
        """
        Move *file*, native code on the same file system, into the store under *key*, with its HMAC beside it.

        Each file is replaced whole; should the host die between the two, ``open_native`` refuses the pair and the
        module is compiled anew. What is already there and proved stays: the key says that it is as good.
        Of several at once under one key the first is kept (a snapshot made twice may differ, and so the native code),
        also when they are of several processes: each waits until the pair of the one before is whole.
        """
        target = _named(self._native, key, ".cwasm")
        if self.has_native(key):
            file.unlink()
            return
        mac = self._mac(key, file)
        with disk_watched():
            os.chmod(file, 0o400)
            _sync_file(file)
            with _alone_in(self._native):
                if self.has_native(key):
                    file.unlink()
                    return
                os.replace(file, target)
                self._write_whole(target.with_suffix(".mac"), mac)

    def open_native(self, key: str) -> Path:
        """
        Return the path of the native code under *key*, proved to be what this host stored under this very key.

        Raises: ArtifactMissingError, ArtifactTamperedError; after either, compile again from the kept module.
        """
        path = _named(self._native, key, ".cwasm")
        try:
            expected = path.with_suffix(".mac").read_bytes()
            actual = self._mac(key, path)
        except FileNotFoundError as exc:
            raise ArtifactMissingError(f"no native code is stored under {key}; deploy the function again") from exc
        if not hmac.compare_digest(actual, expected):
            raise ArtifactTamperedError(
                f"the native code under {key} is not what this host compiled; it was not loaded: deploy the function"
                " again"
            )
        return path

    @contextmanager
    def sealed_native(self, key: str) -> Iterator[Path]:
        """
        Lend a path to the native code under *key* as it was proved: what happens to the stored file can't change it.

        The file is copied inside the kernel into memory that is sealed against writing, and that copy is proved; so
        an engine may map it, where a file that is cut or overwritten later would crash it, or be executed.
        The path is good inside the context only, what was mapped from it for as long as it is mapped.
        Raises: ArtifactMissingError, ArtifactTamperedError; after either, compile again from the kept module.
        """
        path = _named(self._native, key, ".cwasm")
        descriptor = os.memfd_create(key, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            try:
                expected = path.with_suffix(".mac").read_bytes()
                with open(path, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    while size > 0 and (n := os.sendfile(descriptor, file.fileno(), None, size)):
                        size -= n
            except FileNotFoundError as exc:
                raise ArtifactMissingError(f"no native code is stored under {key}; deploy the function again") from exc
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            sealed = Path(f"/proc/self/fd/{descriptor}")
            if not hmac.compare_digest(self._mac(key, sealed), expected):
                raise ArtifactTamperedError(
                    f"the native code under {key} is not what this host compiled; it was not loaded: deploy the"
                    " function again"
                )
            yield sealed
        finally:
            os.close(descriptor)

    def has_native(self, key: str) -> bool:
        """Return whether ``open_native(key)`` would succeed."""
        try:
            self.open_native(key)
        except (ArtifactMissingError, ArtifactTamperedError):
            return False
        return True

    def keeps_native(self, key: str) -> bool:
        """Return whether native code and its HMAC are there under *key*; only loading it shows if they fit together."""
        path = _named(self._native, key, ".cwasm")
        return path.exists() and path.with_suffix(".mac").exists()

    # --- cleaning ---------------------------------------------------------------------------------------------------

    def remove_unreferenced(self, wasm_digests: Set[str], keys: Set[str], bundle_digests: Set[str]) -> int:
        """
        Remove all that is not named, and return how many files that were; files in use stay readable until closed.

        What is named may be put meanwhile: half-written files are in ``scratch`` and not looked at.
        """
        kept = {self._wasm: wasm_digests, self._native: keys, self._bundles: bundle_digests}
        n_removed = 0
        for folder, names in kept.items():
            for path in list(folder.iterdir()):
                if path.name.partition(".")[0] not in names:
                    path.unlink(missing_ok=True)
                    n_removed += 1
        return n_removed

    def clear_scratch(self) -> None:
        """Remove what jobs and writers left behind when their host was killed; only before the first of either."""
        for path in list(self._scratch.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # --- writing ----------------------------------------------------------------------------------------------------

    def _put_by_digest(self, folder: Path, suffix: str, contents: bytes) -> str:
        digest = hashlib.sha256(contents).hexdigest()
        path = folder / (digest + suffix)
        # A file that was changed on disk has the right name and wrong bytes: write it anew.
        try:
            _verified(path, digest, "file")
        except (ArtifactMissingError, ArtifactTamperedError):
            with disk_watched():
                self._write_whole(path, contents)
        return digest

    def _write_whole(self, path: Path, contents: bytes) -> None:
        """Write *contents* aside, sync, and rename into place: readers see the old file or the new one, no part."""
        aside = self._scratch / f"{path.name}.{secrets.token_hex(8)}.tmp"
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with open(descriptor, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _mac(self, key: str, file: Path) -> bytes:
        """Return the HMAC-SHA-256 over key, size and contents; the first two are of fixed length, so nothing blurs."""
        # The contents go into the MAC as the hashes of their leaves, in order: several processors can share the work.
        with _mapped(file) as contents:
            leaves = b"".join(_leaf_digests(contents))
            return hmac.digest(
                self._key, b"native-2" + bytes.fromhex(key) + len(contents).to_bytes(8, "little") + leaves, "sha256"
            )


def _named(folder: Path, digest: str, suffix: str) -> Path:
    """Return the path of *digest* in *folder*; a name that is no digest can't lead elsewhere."""
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise ArtifactMissingError(f"{digest[:80]!r} is not the name of a stored artifact; check the deployment")
    return folder / (digest + suffix)


def _leaf_digests(contents: bytes | mmap.mmap) -> list[bytes]:
    """Return the SHA-256 of each ``_LEAF_BYTES`` of *contents*, in order; several threads hash, without the GIL."""
    n_leaves = -(-len(contents) // _LEAF_BYTES)
    digests = [b""] * n_leaves
    todo = deque(range(n_leaves))

    def work() -> None:
        with memoryview(contents) as whole:
            while True:
                try:
                    number = todo.popleft()
                except IndexError:
                    return
                with whole[number * _LEAF_BYTES : (number + 1) * _LEAF_BYTES] as leaf:
                    digests[number] = hashlib.sha256(leaf).digest()

    n_threads = min(n_leaves, _HASH_THREADS, os.cpu_count() or 1)
    others = [threading.Thread(target=work, name=f"faas-hash-{i}") for i in range(1, n_threads)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if not all(digests):
        raise MemoryError("a thread that hashes stored code failed; its own message is in the log")
    return digests


def _verified(path: Path, digest: str, what: str) -> Path:
    try:
        with _mapped(path) as contents:
            actual = hashlib.sha256(contents).hexdigest()
    except FileNotFoundError as exc:
        raise ArtifactMissingError(f"the kept {what} {digest} is gone; deploy the function again") from exc
    if actual != digest:
        raise ArtifactTamperedError(f"the kept {what} {digest} was changed on disk; deploy the function again")
    return path


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # an empty file can't be mapped
            yield b""
            return
        # All of it is read at once: mapped in one call, not page by page as faults.
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as contents:
            yield contents


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of *folder*: against other threads too, since each opens it anew."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_key(path: Path) -> bytes:
    """Return the signing key, made when it is not there yet; refuse one that others can read or that is cut short."""
    if not path.exists():
        _make_key(path)
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path} signs native code and others may read it; run: chmod 600 {path}")
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{path} does not hold {_KEY_BYTES} bytes; remove it and every function is compiled anew")
    return key


def _make_key(path: Path) -> None:
    """Make a key unless another process was faster: the link fails when the name is taken."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)
