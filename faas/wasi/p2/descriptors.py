"""What ``wasi:filesystem``'s handles stand for: open files and directories, their streams, listings, error codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from faas.wasi.errno import Errno, ErrnoError, FileType
from faas.wasi.files import BundleDirectory, BundleFile, Directory, File, FileSystem, TmpDirectory, TmpFile
from faas.wasi.p2.io import InputStreamResource, OutputStreamResource
from faas.wasi.p2.poll import StreamFailedError
from faas.wasi.p2.resources import Resource

_LISTING_BYTES_PER_NAME: Final = 8

_TYPES: Final = {
    FileType.DIRECTORY: "directory",
    FileType.REGULAR_FILE: "regular-file",
    FileType.SYMBOLIC_LINK: "symbolic-link",
}

_CODES: Final = {
    Errno.ACCES: "access",
    Errno.AGAIN: "would-block",
    Errno.ALREADY: "already",
    Errno.BADF: "bad-descriptor",
    Errno.BUSY: "busy",
    Errno.DEADLK: "deadlock",
    Errno.DQUOT: "quota",
    Errno.EXIST: "exist",
    Errno.FBIG: "file-too-large",
    Errno.ILSEQ: "illegal-byte-sequence",
    Errno.INPROGRESS: "in-progress",
    Errno.INTR: "interrupted",
    Errno.INVAL: "invalid",
    Errno.IO: "io",
    Errno.ISDIR: "is-directory",
    Errno.LOOP: "loop",
    Errno.MLINK: "too-many-links",
    Errno.MSGSIZE: "message-size",
    Errno.NAMETOOLONG: "name-too-long",
    Errno.NODEV: "no-device",
    Errno.NOENT: "no-entry",
    Errno.NOLCK: "no-lock",
    Errno.NOMEM: "insufficient-memory",
    Errno.NOSPC: "insufficient-space",
    Errno.NOTDIR: "not-directory",
    Errno.NOTEMPTY: "not-empty",
    Errno.NOTRECOVERABLE: "not-recoverable",
    Errno.NOTSUP: "unsupported",
    Errno.NOSYS: "unsupported",
    Errno.NOTTY: "no-tty",
    Errno.NXIO: "no-such-device",
    Errno.OVERFLOW: "overflow",
    Errno.PERM: "not-permitted",
    Errno.NOTCAPABLE: "not-permitted",
    Errno.PIPE: "pipe",
    Errno.ROFS: "read-only",
    Errno.SPIPE: "invalid-seek",
    Errno.TXTBSY: "text-file-busy",
    Errno.XDEV: "cross-device",
}


def error_code(errno: Errno) -> str:
    """Return the ``error-code`` for *errno*."""
    return _CODES.get(errno, "io")


def descriptor_type(filetype: FileType) -> str:
    """Return the ``descriptor-type`` for *filetype*."""
    return _TYPES.get(filetype, "unknown")


class FileFailedError(StreamFailedError):
    """An operation of a file's stream failed with *code*, an ``error-code``."""

    def __init__(self, errno: Errno) -> None:
        self.code = error_code(errno)
        super().__init__(f"the file could not be written: {self.code}")


class Descriptor(Resource):
    """A ``descriptor``: an open file or directory, with the flags that it was opened with."""

    __slots__ = ("files", "flags", "node")

    def __init__(self, files: FileSystem, node: File | Directory, flags: frozenset[str]) -> None:
        super().__init__()
        self.files = files
        self.node = node
        self.flags = flags
        _opened(node)

    def file(self) -> File:
        """Return the file; BADF for a directory."""
        node = self.node
        if isinstance(node, BundleDirectory | TmpDirectory):
            raise ErrnoError(Errno.BADF)
        return node

    def writable(self, otherwise: Errno) -> TmpFile:
        """Return the file to write to; *otherwise* if it was not opened for that."""
        file = self.file()
        if "write" not in self.flags or isinstance(file, BundleFile):
            raise ErrnoError(otherwise)
        return file

    def readable(self, otherwise: Errno) -> File:
        """Return the file to read; *otherwise* if it was not opened for that."""
        file = self.file()
        if "read" not in self.flags:
            raise ErrnoError(otherwise)
        return file

    def directory(self) -> Directory:
        """Return the directory; NOTDIR for a file."""
        node = self.node
        if isinstance(node, BundleFile | TmpFile):
            raise ErrnoError(Errno.NOTDIR)
        return node

    def drop(self) -> None:
        """Close it; a file without a name and without other openers is gone."""
        super().drop()
        _closed(self.node)


def _opened(node: File | Directory) -> None:
    if isinstance(node, TmpFile | TmpDirectory):
        node.opens += 1


def _closed(node: File | Directory) -> None:
    if isinstance(node, TmpFile | TmpDirectory):
        node.closed()


class _Reader:
    """An InputStream over a file, from an offset to where the file ends when it is read."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: File, offset: int) -> None:
        self._file = file
        self._offset = offset

    def read_nowait(self, n: int) -> bytes | None:
        """Return the next bytes, ``b""`` at the end."""
        chunk = self._file.read_at(self._offset, n)
        self._offset += len(chunk)
        return chunk

    async def wait_readable(self) -> None:
        """Return at once."""


class _Writer:
    """An OutputStream over a file, from an offset on, or always at the end."""

    __slots__ = ("_file", "_offset")

    full = False

    def __init__(self, file: TmpFile, offset: int | None) -> None:
        """Args: *offset* None: append."""
        self._file = file
        self._offset = offset

    def write(self, data: bytes) -> int:
        """Store *data* or its beginning; raises FileFailedError."""
        offset = self._offset
        try:
            n_written = self._file.write_at(self._file.size if offset is None else offset, data)
        except ErrnoError as error:
            raise FileFailedError(error.errno) from error
        if offset is not None:
            self._offset = offset + n_written
        return n_written


class FileInputStream(InputStreamResource):
    """An ``input-stream`` of a file, which stays open as long; the descriptor may be dropped before."""

    __slots__ = ("_file",)

    def __init__(self, file: File, offset: int) -> None:
        super().__init__(_Reader(file, offset))
        self._file = file
        _opened(file)

    def ready(self) -> bool:
        """Return True without a look at the file: what a look had read would be kept for each of many streams."""
        return True

    def drop(self) -> None:
        """Close it."""
        super().drop()
        _closed(self._file)


class FileOutputStream(OutputStreamResource):
    """An ``output-stream`` of a file, which stays open as long; the descriptor may be dropped before."""

    __slots__ = ("_file",)

    def __init__(self, file: TmpFile, offset: int | None) -> None:
        super().__init__(_Writer(file, offset))
        self._file = file
        _opened(file)

    def drop(self) -> None:
        """Close it."""
        super().drop()
        _closed(self._file)


class DirectoryEntryStream(Resource):
    """
    A ``directory-entry-stream``: the names that a directory had when it was asked, less those that are gone by now.

    The names of /tmp that it keeps count against the cap of /tmp. Raises: NOMEM when there is no room for them.
    """

    __slots__ = ("_directory", "_files", "_n_paid", "_names", "_position")

    def __init__(self, files: FileSystem, directory: Directory) -> None:
        super().__init__()
        self._n_paid = 0
        if isinstance(directory, TmpDirectory):
            n_bytes = len(directory.entries) * _LISTING_BYTES_PER_NAME
            try:
                files.volume.take(n_bytes)
            except ErrnoError:
                raise ErrnoError(Errno.NOMEM) from None
            self._n_paid = n_bytes
        self._files = files
        self._directory = directory
        self._names: Sequence[bytes] = files.names(directory)
        self._position = 0

    def next(self) -> tuple[str, str] | None:
        """Return type and name of the next entry; None after the last one."""
        while self._position < len(self._names):
            name = self._names[self._position]
            self._position += 1
            node = self._files.child(self._directory, name)
            if node is not None:
                return descriptor_type(node.filetype), name.decode()
        return None

    def drop(self) -> None:
        """Forget the names."""
        super().drop()
        self._files.volume.give(self._n_paid)
