"""What a guest's file descriptor can refer to: a stream, a file or a directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from faas.wasi.errno import Errno, ErrnoError, FdFlags, FileType, Rights, Whence
from faas.wasi.files import (
    MAX_FILE_OFFSET,
    BundleFile,
    Directory,
    File,
    FileStat,
    FileSystem,
    TmpDirectory,
    TmpFile,
    set_node_times,
)
from faas.wasi.streams import InputStream, OutputStream

# Plain ints: an IntFlag's operators cost a microsecond each, and these are used on every call.
_READ: Final = int(Rights.FD_READ)
_WRITE: Final = int(Rights.FD_WRITE)
_APPEND: Final = int(FdFlags.APPEND)
_ALL_FLAGS: Final = int(FdFlags.APPEND | FdFlags.DSYNC | FdFlags.NONBLOCK | FdFlags.RSYNC | FdFlags.SYNC)

ALL_RIGHTS: Final = (1 << 30) - 1
# No SEEK and TELL for streams: together with a character device they are how libcs tell a terminal.
INPUT_RIGHTS: Final = int(
    Rights.FD_READ | Rights.FD_FDSTAT_SET_FLAGS | Rights.FD_FILESTAT_GET | Rights.POLL_FD_READWRITE
)
OUTPUT_RIGHTS: Final = int(
    Rights.FD_WRITE | Rights.FD_FDSTAT_SET_FLAGS | Rights.FD_FILESTAT_GET | Rights.POLL_FD_READWRITE
)
DIRECTORY_RIGHTS: Final = int(
    Rights.PATH_CREATE_DIRECTORY
    | Rights.PATH_CREATE_FILE
    | Rights.PATH_LINK_SOURCE
    | Rights.PATH_LINK_TARGET
    | Rights.PATH_OPEN
    | Rights.FD_READDIR
    | Rights.PATH_READLINK
    | Rights.PATH_RENAME_SOURCE
    | Rights.PATH_RENAME_TARGET
    | Rights.PATH_FILESTAT_GET
    | Rights.PATH_FILESTAT_SET_SIZE
    | Rights.PATH_FILESTAT_SET_TIMES
    | Rights.FD_FILESTAT_GET
    | Rights.FD_FILESTAT_SET_TIMES
    | Rights.PATH_SYMLINK
    | Rights.PATH_REMOVE_DIRECTORY
    | Rights.PATH_UNLINK_FILE
)
FILE_RIGHTS: Final = int(
    Rights.FD_DATASYNC
    | Rights.FD_READ
    | Rights.FD_SEEK
    | Rights.FD_FDSTAT_SET_FLAGS
    | Rights.FD_SYNC
    | Rights.FD_TELL
    | Rights.FD_WRITE
    | Rights.FD_ADVISE
    | Rights.FD_ALLOCATE
    | Rights.FD_FILESTAT_GET
    | Rights.FD_FILESTAT_SET_SIZE
    | Rights.FD_FILESTAT_SET_TIMES
    | Rights.POLL_FD_READWRITE
)

_READ_AHEAD_BYTES: Final = 65536
_SNAPSHOT_BYTES_PER_NAME: Final = 8


class Descriptor:
    """
    One open descriptor; lives until it is closed or the instance ends.

    Every operation is refused here; subclasses define those that they have. Raises: ErrnoError.
    """

    __slots__ = ("flags", "inheriting", "rights")

    filetype: ClassVar[FileType] = FileType.UNKNOWN

    def __init__(self, rights: int, inheriting: int = 0, flags: int = 0) -> None:
        self.rights = rights
        self.inheriting = inheriting
        self.flags = flags

    @property
    def full(self) -> bool:
        """True when the guest should yield before it writes more."""
        return False

    def read(self, n: int) -> bytes | None:
        """Return at most *n* bytes, None when a stream has none yet, ``b""`` at the end."""
        raise ErrnoError(Errno.BADF)

    def write(self, data: bytes) -> int:
        """Write *data* or its beginning; return how many bytes."""
        raise ErrnoError(Errno.BADF)

    def pread(self, n: int, offset: int) -> bytes:
        """Read at *offset* without moving."""
        raise ErrnoError(Errno.SPIPE)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write at *offset* without moving."""
        raise ErrnoError(Errno.SPIPE)

    def seek(self, offset: int, whence: int) -> int:
        """Move by the signed *offset*; return the new position."""
        raise ErrnoError(Errno.SPIPE)

    def advise(self) -> None:
        """Take advice on how the file will be used."""
        raise ErrnoError(Errno.SPIPE)

    def allocate(self, offset: int, n: int) -> None:
        """Make sure that *n* bytes at *offset* exist."""
        raise ErrnoError(Errno.SPIPE)

    def stat(self) -> FileStat:
        """Return the attributes of what is open."""
        return FileStat(0, 0, self.filetype, 1, 0, 0, 0, 0)

    def set_size(self, size: int) -> None:
        """Cut or extend the file."""
        raise ErrnoError(Errno.INVAL)

    def set_times(self, atim_ns: int | None, mtim_ns: int | None) -> None:
        """Set the times that are not None."""
        raise ErrnoError(Errno.INVAL)

    def set_flags(self, flags: int) -> None:
        """Replace the descriptor's flags."""
        if flags & ~_ALL_FLAGS:
            raise ErrnoError(Errno.INVAL)
        self.flags = flags

    def set_rights(self, rights: int, inheriting: int) -> None:
        """Give up rights; NOTCAPABLE if one is asked for that is not there."""
        if rights & ~self.rights or inheriting & ~self.inheriting:
            raise ErrnoError(Errno.NOTCAPABLE)
        self.rights = rights
        self.inheriting = inheriting

    def readable_bytes(self) -> int | None:
        """Return how much a read would give now, None when it would wait."""
        return 0

    async def wait_readable(self) -> None:
        """Return once a read would not give None: at once, for all but stdin."""

    def close(self) -> None:
        """Let go of what is open."""


class InputDescriptor(Descriptor):
    """Stdin."""

    __slots__ = ("_ahead", "_stream")

    def __init__(self, stream: InputStream) -> None:
        self.rights = INPUT_RIGHTS
        self.inheriting = 0
        self.flags = 0
        self._stream = stream
        self._ahead: bytes | None = None

    def read(self, n: int) -> bytes | None:
        """Return what is there, at most *n* bytes."""
        if not self.rights & _READ:
            raise ErrnoError(Errno.BADF)
        ahead = self._ahead
        if ahead is None:
            return self._stream.read_nowait(n)
        self._ahead = ahead[n:] or None
        return ahead[:n]

    def readable_bytes(self) -> int | None:
        """Return how many bytes are known to be there, 0 at the end, None for nothing yet."""
        # The stream can't be asked without being read, so a polled stdin is read ahead.
        if self._ahead is None:
            self._ahead = self._stream.read_nowait(_READ_AHEAD_BYTES)
        return None if self._ahead is None else len(self._ahead)

    async def wait_readable(self) -> None:
        """Return once a read would not give None."""
        while self.readable_bytes() is None:
            await self._stream.wait_readable()


class OutputDescriptor(Descriptor):
    """Stdout or stderr."""

    __slots__ = ("_stream",)

    def __init__(self, stream: OutputStream) -> None:
        self.rights = OUTPUT_RIGHTS
        self.inheriting = 0
        self.flags = 0
        self._stream = stream

    @property
    def full(self) -> bool:
        """True when the guest should yield before it writes more."""
        return self._stream.full

    def write(self, data: bytes) -> int:
        """Pass *data* on; a FaasError of the stream goes through."""
        if not self.rights & _WRITE:
            raise ErrnoError(Errno.BADF)
        return self._stream.write(data)


class FileDescriptor(Descriptor):
    """An open file of the bundle or of /tmp."""

    __slots__ = ("_file", "_position")

    filetype = FileType.REGULAR_FILE

    def __init__(self, file: File, rights: int, flags: int) -> None:
        super().__init__(rights & FILE_RIGHTS, 0, flags)
        self._file = file
        self._position = 0
        if isinstance(file, TmpFile):
            file.opens += 1

    def _writable(self) -> TmpFile:
        file = self._file
        if not self.rights & _WRITE or isinstance(file, BundleFile):
            raise ErrnoError(Errno.BADF)
        return file

    def read(self, n: int) -> bytes | None:
        """Return the next bytes, at most *n*."""
        chunk = self.pread(n, self._position)
        self._position += len(chunk)
        return chunk

    def write(self, data: bytes) -> int:
        """Write at the position, or at the end in append mode."""
        file = self._writable()
        position = file.size if self.flags & _APPEND else self._position
        n_written = file.write_at(position, data)
        self._position = position + n_written
        return n_written

    def pread(self, n: int, offset: int) -> bytes:
        """Read at *offset* without moving."""
        if not self.rights & _READ:
            raise ErrnoError(Errno.BADF)
        if offset > MAX_FILE_OFFSET:
            raise ErrnoError(Errno.INVAL)
        return self._file.read_at(offset, n)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write at *offset* without moving."""
        if offset > MAX_FILE_OFFSET:
            raise ErrnoError(Errno.INVAL)
        return self._writable().write_at(offset, data)

    def seek(self, offset: int, whence: int) -> int:
        """Move by the signed *offset*; past the end is fine."""
        if whence == Whence.SET:
            position = offset
        elif whence == Whence.CUR:
            position = self._position + offset
        elif whence == Whence.END:
            position = self._file.size + offset
        else:
            raise ErrnoError(Errno.INVAL)
        if not 0 <= position <= MAX_FILE_OFFSET:
            raise ErrnoError(Errno.INVAL)
        self._position = position
        return position

    def advise(self) -> None:
        """Take note of nothing."""

    def allocate(self, offset: int, n: int) -> None:
        """Extend the file to hold *n* bytes at *offset*; never cut it."""
        file = self._writable()
        if n == 0 or offset > MAX_FILE_OFFSET:
            raise ErrnoError(Errno.INVAL)
        if offset + n > file.size:
            file.set_size(offset + n)

    def stat(self) -> FileStat:
        """Return the file's attributes."""
        return self._file.stat()

    def set_size(self, size: int) -> None:
        """Cut the file or extend it with zeros."""
        self._writable().set_size(size)

    def set_times(self, atim_ns: int | None, mtim_ns: int | None) -> None:
        """Set the times that are not None."""
        set_node_times(self._file, atim_ns, mtim_ns)

    def readable_bytes(self) -> int | None:
        """Return what is left after the position."""
        return max(0, self._file.size - self._position)

    def close(self) -> None:
        """Let go of the file; without a name left it is gone."""
        if isinstance(self._file, TmpFile):
            self._file.closed()


class DirectoryDescriptor(Descriptor):
    """An open directory, a preopen if it has a guest path."""

    __slots__ = ("_files", "_n_paid", "_names", "node", "preopen")

    filetype = FileType.DIRECTORY

    def __init__(
        self, files: FileSystem, node: Directory, rights: int, inheriting: int, *, preopen: bytes | None = None
    ) -> None:
        super().__init__(rights & DIRECTORY_RIGHTS, inheriting)
        self._files = files
        self.node = node
        self.preopen = preopen
        self._names: Sequence[bytes] | None = None
        self._n_paid = 0
        if isinstance(node, TmpDirectory):
            node.opens += 1

    def read(self, n: int) -> bytes | None:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.ISDIR)

    def pread(self, n: int, offset: int) -> bytes:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.ISDIR)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.BADF)

    def seek(self, offset: int, whence: int) -> int:
        """Refuse: a listing has cookies, not positions."""
        raise ErrnoError(Errno.BADF)

    def advise(self) -> None:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.BADF)

    def allocate(self, offset: int, n: int) -> None:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.BADF)

    def set_size(self, size: int) -> None:
        """Refuse: a directory is not a file."""
        raise ErrnoError(Errno.BADF)

    def stat(self) -> FileStat:
        """Return the directory's attributes."""
        return self.node.stat()

    def set_times(self, atim_ns: int | None, mtim_ns: int | None) -> None:
        """Set the times that are not None."""
        set_node_times(self.node, atim_ns, mtim_ns)

    def entry(self, cookie: int) -> tuple[bytes, int, FileType] | None:
        """
        Return name, inode and type of the listing's entry number *cookie*; None if it is gone by now.

        Cookie 0 takes the listing anew, so that entries neither repeat nor hide while a guest removes what it reads.
        Raises: IndexError past the last one; NOMEM when a listing of /tmp has no room under its cap.
        """
        node = self.node
        if cookie == 0:
            self._take_listing()
            return b".", node.ino, FileType.DIRECTORY
        if cookie == 1:
            return b"..", node.parent_ino, FileType.DIRECTORY
        if self._names is None:
            self._take_listing()
        names = self._names or ()
        name = names[cookie - 2]
        child = self._files.child(node, name)
        return None if child is None else (name, child.ino, child.filetype)

    def _take_listing(self) -> None:
        self._drop_listing()
        if isinstance(self.node, TmpDirectory):
            n_bytes = len(self.node.entries) * _SNAPSHOT_BYTES_PER_NAME
            try:
                self._files.volume.take(n_bytes)
            except ErrnoError:
                raise ErrnoError(Errno.NOMEM) from None
            self._n_paid = n_bytes
        self._names = self._files.names(self.node)

    def _drop_listing(self) -> None:
        self._names = None
        self._files.volume.give(self._n_paid)
        self._n_paid = 0

    def close(self) -> None:
        """Let go of the directory and its listing."""
        self._drop_listing()
        if isinstance(self.node, TmpDirectory):
            self.node.closed()
