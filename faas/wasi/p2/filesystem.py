"""
``wasi:filesystem``: descriptors and streams over the instance's virtual file system.

Preopened are ``/``, the function's bundle, and ``/tmp``, the instance's own memory. Every directory has
``mutate-directory``, as wasmtime passes it on to what is opened below; in the bundle the files themselves refuse, with
``read-only``. Nothing waits: all of it is memory.

Sync flags are kept and have nothing to do. Where the WIT is silent, codes are wasmtime's: a file that was not opened
for it answers ``not-permitted`` to ``read`` and ``write``, and ``bad-descriptor`` to the streams; a directory where a
file is needed is a ``bad-descriptor``, a file where a directory is needed ``not-directory``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from faas.wasi.errno import Errno, ErrnoError, OFlags
from faas.wasi.files import MAX_FILE_OFFSET, BundleDirectory, FileStat, FileSystem, TmpDirectory, set_node_times
from faas.wasi.p2.descriptors import (
    Descriptor,
    DirectoryEntryStream,
    FileFailedError,
    FileInputStream,
    FileOutputStream,
    descriptor_type,
    error_code,
)
from faas.wasi.p2.io import IoError
from faas.wasi.p2.resources import ComponentFunction, WitError

MAX_READ_BYTES: Final = 64 * 1024
"""What one ``read`` answers at most, so that no host call lasts; the WIT allows to answer less than asked for."""
MAX_WRITE_BYTES: Final = 1024 * 1024
"""What one ``write`` takes at most, for the same reason."""

_NS: Final = 1_000_000_000
_MAX_TIME_NS: Final = 2**64 - 1

Datetime = tuple[int, int]
NewTimestamp = tuple[str, Datetime | None]
Stat = tuple[str, int, int, Datetime | None, Datetime | None, Datetime | None]

_DIRECTORY_FLAGS: Final = frozenset({"read", "mutate-directory"})
_FILE_FLAGS: Final = frozenset({"read", "write", "file-integrity-sync", "data-integrity-sync", "requested-write-sync"})
_OFLAGS: Final = {
    "create": int(OFlags.CREAT),
    "directory": int(OFlags.DIRECTORY),
    "exclusive": int(OFlags.EXCL),
    "truncate": int(OFlags.TRUNC),
}
_NOT_OF_DIRECTORIES: Final = frozenset({"create", "exclusive", "truncate"})

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _answering(call: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], _T]:
    """Turn a function that raises errnos into one that raises ``error-code``s."""

    @wraps(call)
    def function(guest: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return call(guest, *args, **kwargs)
        except ErrnoError as error:
            raise WitError(error_code(error.errno)) from error

    return function


def _follow(path_flags: frozenset[str]) -> bool:
    return "symlink-follow" in path_flags


def _stat(stat: FileStat) -> Stat:
    return (
        descriptor_type(stat.filetype),
        stat.nlink,
        stat.size,
        divmod(stat.atim_ns, _NS),
        divmod(stat.mtim_ns, _NS),
        divmod(stat.ctim_ns, _NS),
    )


def _time_ns(files: FileSystem, new: NewTimestamp) -> int | None:
    """Return the time to set in nanoseconds, None to leave it; OVERFLOW for one that is out of range."""
    case, datetime = new
    if case == "now":
        return files.volume.clock.time_ns()
    if datetime is None:
        return None
    time_ns = datetime[0] * _NS + datetime[1]
    if time_ns > _MAX_TIME_NS:
        raise ErrnoError(Errno.OVERFLOW)
    return time_ns


def _metadata_hash(stat: FileStat) -> tuple[int, int]:
    """
    Return a hash that changes when the object is modified or replaced.

    The lower half depends on the object alone: the preview-1 adapter shows it as the inode number.
    """
    identity = struct.pack("<QQ", stat.dev, stat.ino)
    state = identity + struct.pack("<QQ", stat.size, stat.mtim_ns)
    return _hash(identity), _hash(state)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


# wasi:filesystem/preopens


def get_directories(guest: Any) -> list[tuple[Descriptor, str]]:
    """Return new descriptors of ``/`` and ``/tmp``."""
    files: FileSystem = guest.wasi.files
    return [
        (Descriptor(files, files.root, _DIRECTORY_FLAGS), "/"),
        (Descriptor(files, files.tmp, _DIRECTORY_FLAGS), "/tmp"),
    ]


# wasi:filesystem/types: what is open


@_answering
def read_via_stream(guest: Any, self: Descriptor, offset: int) -> FileInputStream:
    """Return a stream of the file from *offset* on; several streams don't interfere."""
    return FileInputStream(self.readable(Errno.BADF), offset)


@_answering
def write_via_stream(guest: Any, self: Descriptor, offset: int) -> FileOutputStream:
    """Return a stream that writes from *offset* on."""
    return FileOutputStream(self.writable(Errno.BADF), offset)


@_answering
def append_via_stream(guest: Any, self: Descriptor) -> FileOutputStream:
    """Return a stream that writes at the end, wherever that is at each write."""
    return FileOutputStream(self.writable(Errno.BADF), None)


@_answering
def advise(guest: Any, self: Descriptor, offset: int, length: int, advice: str) -> None:
    """Take note of nothing."""
    self.file()


def sync(guest: Any, self: Descriptor) -> None:
    """Do nothing: there is no disk. The same for ``sync-data``."""


def get_flags(guest: Any, self: Descriptor) -> frozenset[str]:
    """Return the flags that the descriptor was opened with."""
    return self.flags


def get_type(guest: Any, self: Descriptor) -> str:
    """Return the type of what is open."""
    return descriptor_type(self.node.filetype)


@_answering
def set_size(guest: Any, self: Descriptor, size: int) -> None:
    """Cut the file, or extend it with zeros."""
    self.writable(Errno.PERM).set_size(size)


@_answering
def set_times(guest: Any, self: Descriptor, accessed: NewTimestamp, modified: NewTimestamp) -> None:
    """Set the times of what is open."""
    set_node_times(self.node, _time_ns(self.files, accessed), _time_ns(self.files, modified))


@_answering
def read(guest: Any, self: Descriptor, length: int, offset: int) -> tuple[bytes, bool]:
    """Return at most *length* bytes at *offset*, fewer if that is many; True when nothing was left to read."""
    file = self.readable(Errno.PERM)
    if offset > MAX_FILE_OFFSET:
        raise ErrnoError(Errno.INVAL)
    contents = file.read_at(offset, min(length, MAX_READ_BYTES))
    # As in wasmtime the end comes with no bytes: the preview-1 adapter takes "no bytes, no end" for an interruption.
    return contents, not contents


@_answering
def write(guest: Any, self: Descriptor, contents: bytes, offset: int) -> int:
    """Write *contents* or its beginning at *offset*, zeros before it where the file ended; return how many bytes."""
    file = self.writable(Errno.PERM)
    if offset > MAX_FILE_OFFSET:
        raise ErrnoError(Errno.INVAL)
    return file.write_at(offset, contents[:MAX_WRITE_BYTES])


@_answering
def read_directory(guest: Any, self: Descriptor) -> DirectoryEntryStream:
    """Return a stream of the directory's entries, without ``.`` and ``..``."""
    return DirectoryEntryStream(self.files, self.directory())


@_answering
def stat(guest: Any, self: Descriptor) -> Stat:
    """Return the attributes of what is open."""
    return _stat(self.node.stat())


def is_same_object(guest: Any, self: Descriptor, other: Descriptor) -> bool:
    """Return whether both are the same file or directory."""
    return self.node is other.node


def metadata_hash(guest: Any, self: Descriptor) -> tuple[int, int]:
    """Return a hash that changes when what is open is modified."""
    return _metadata_hash(self.node.stat())


# wasi:filesystem/types: paths


@_answering
def create_directory_at(guest: Any, self: Descriptor, path: str) -> None:
    """Create an empty directory."""
    self.files.make_directory(self.directory(), path.encode())


@_answering
def stat_at(guest: Any, self: Descriptor, path_flags: frozenset[str], path: str) -> Stat:
    """Return the attributes of what is at *path*."""
    return _stat(self.files.stat(self.directory(), path.encode(), follow=_follow(path_flags)))


@_answering
def set_times_at(  # noqa: PLR0917 - the WIT's parameters
    guest: Any,
    self: Descriptor,
    path_flags: frozenset[str],
    path: str,
    accessed: NewTimestamp,
    modified: NewTimestamp,
) -> None:
    """Set the times of what is at *path*."""
    files = self.files
    times = {"atim_ns": _time_ns(files, accessed), "mtim_ns": _time_ns(files, modified)}
    files.set_times(self.directory(), path.encode(), follow=_follow(path_flags), **times)


@_answering
def link_at(  # noqa: PLR0917 - the WIT's parameters
    guest: Any, self: Descriptor, path_flags: frozenset[str], old_path: str, new_parent: Descriptor, new_path: str
) -> None:
    """Give a file a second name."""
    self.files.link(
        self.directory(), old_path.encode(), new_parent.directory(), new_path.encode(), follow=_follow(path_flags)
    )


@_answering
def open_at(  # noqa: PLR0917 - the WIT's parameters
    guest: Any,
    self: Descriptor,
    path_flags: frozenset[str],
    path: str,
    open_flags: frozenset[str],
    flags: frozenset[str],
) -> Descriptor:
    """Open a file or a directory; without ``write`` a file is opened to be read, whether or not *flags* say so."""
    if "directory" in open_flags and open_flags & _NOT_OF_DIRECTORIES:
        raise ErrnoError(Errno.INVAL)
    files = self.files
    oflags = sum(_OFLAGS[flag] for flag in open_flags)
    node = files.open(
        self.directory(), path.encode(), follow=_follow(path_flags), oflags=oflags, write="write" in flags
    )
    if isinstance(node, BundleDirectory | TmpDirectory):
        return Descriptor(files, node, _DIRECTORY_FLAGS)
    kept = flags & _FILE_FLAGS
    return Descriptor(files, node, kept if "write" in kept else kept | {"read"})


@_answering
def readlink_at(guest: Any, self: Descriptor, path: str) -> str:
    """Return the target of a symbolic link."""
    return self.files.readlink(self.directory(), path.encode()).decode()


@_answering
def remove_directory_at(guest: Any, self: Descriptor, path: str) -> None:
    """Remove an empty directory."""
    self.files.remove_directory(self.directory(), path.encode())


@_answering
def rename_at(guest: Any, self: Descriptor, old_path: str, new_parent: Descriptor, new_path: str) -> None:
    """Move a name, replacing what has the new one."""
    self.files.rename(self.directory(), old_path.encode(), new_parent.directory(), new_path.encode())


@_answering
def symlink_at(guest: Any, self: Descriptor, old_path: str, new_path: str) -> None:
    """Create a symbolic link to *old_path*, a relative one."""
    self.files.symlink(old_path.encode(), self.directory(), new_path.encode())


@_answering
def unlink_file_at(guest: Any, self: Descriptor, path: str) -> None:
    """Remove a name that is not a directory's."""
    self.files.unlink(self.directory(), path.encode())


@_answering
def metadata_hash_at(guest: Any, self: Descriptor, path_flags: frozenset[str], path: str) -> tuple[int, int]:
    """Return a hash that changes when what is at *path* is modified, or another object takes its place."""
    return _metadata_hash(self.files.stat(self.directory(), path.encode(), follow=_follow(path_flags)))


# wasi:filesystem/types: the rest


def read_directory_entry(guest: Any, self: DirectoryEntryStream) -> tuple[str, str] | None:
    """Return the next entry; None after the last one."""
    return self.next()


def filesystem_error_code(guest: Any, error: IoError) -> str | None:
    """Return the code of a stream's error, if it comes from a file."""
    return error.cause.code if isinstance(error.cause, FileFailedError) else None


_METHODS: Final[dict[str, Callable[..., Any]]] = {
    "read-via-stream": read_via_stream,
    "write-via-stream": write_via_stream,
    "append-via-stream": append_via_stream,
    "advise": advise,
    "sync-data": sync,
    "get-flags": get_flags,
    "get-type": get_type,
    "set-size": set_size,
    "set-times": set_times,
    "read": read,
    "write": write,
    "read-directory": read_directory,
    "sync": sync,
    "create-directory-at": create_directory_at,
    "stat": stat,
    "stat-at": stat_at,
    "set-times-at": set_times_at,
    "link-at": link_at,
    "open-at": open_at,
    "readlink-at": readlink_at,
    "remove-directory-at": remove_directory_at,
    "rename-at": rename_at,
    "symlink-at": symlink_at,
    "unlink-file-at": unlink_file_at,
    "is-same-object": is_same_object,
    "metadata-hash": metadata_hash,
    "metadata-hash-at": metadata_hash_at,
}

FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:filesystem/preopens": {"get-directories": ComponentFunction(get_directories)},
    "wasi:filesystem/types": {
        **{f"[method]descriptor.{name}": ComponentFunction(call) for name, call in _METHODS.items()},
        "[method]directory-entry-stream.read-directory-entry": ComponentFunction(read_directory_entry),
        "filesystem-error-code": ComponentFunction(filesystem_error_code),
    },
}
