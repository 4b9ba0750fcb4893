"""
The virtual file system of an instance: its function's bundle, read-only at ``/``, and a private in-memory ``/tmp``.

A path is resolved from an open directory with a stack of the directories walked through. ``..`` that would leave
the starting directory, and anything absolute, is NOTCAPABLE: there is no node above to reach, let alone a host file.
Names and paths are bytes throughout, checked to be UTF-8.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from faas.clock import Clock
from faas.wasi.errno import Errno, ErrnoError, FileType, OFlags

MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 4096
MAX_LINKS_FOLLOWED: Final = 40
MAX_DEPTH: Final = 256
MAX_FILE_OFFSET: Final = 2**63 - 1

# What an empty inode and a name cost the host in Python objects, rounded up; counted against the cap of /tmp.
INODE_COST: Final = 1024
PAGE_BYTES: Final = 64 * 1024
ENTRY_COST: Final = 256

_TMP_NAME: Final = b"tmp"
_ROOT_INO: Final = 1
_TMP_INO: Final = 1 << 32  # bundle inodes stay below
_BUNDLE_DEV: Final = 1
_TMP_DEV: Final = 2


class FileStat(NamedTuple):
    """What ``filestat`` tells about a node or stream."""

    dev: int
    ino: int
    filetype: FileType
    nlink: int
    size: int
    atim_ns: int
    mtim_ns: int
    ctim_ns: int


class BundleFile:
    """One read-only file of a bundle; shared by all instances of the function."""

    __slots__ = ("_content", "ino", "mtime_ns", "size")

    filetype = FileType.REGULAR_FILE

    def __init__(self, content: bytes | bytearray | memoryview, ino: int, mtime_ns: int) -> None:
        self._content = content if isinstance(content, bytes) else memoryview(content).toreadonly().cast("B")
        self.ino = ino
        self.mtime_ns = mtime_ns
        self.size = len(self._content)

    def read_at(self, offset: int, n: int) -> bytes:
        """Return at most *n* bytes at *offset*."""
        return bytes(self._content[offset : offset + n])

    def stat(self) -> FileStat:
        """Return the file's attributes."""
        return FileStat(_BUNDLE_DEV, self.ino, self.filetype, 1, self.size, self.mtime_ns, self.mtime_ns, self.mtime_ns)


class BundleDirectory:
    """One read-only directory of a bundle; shared by all instances of the function."""

    __slots__ = ("entries", "ino", "mtime_ns", "names", "parent_ino")

    filetype = FileType.DIRECTORY

    def __init__(self, ino: int, parent_ino: int, mtime_ns: int) -> None:
        self.entries: dict[bytes, BundleFile | BundleDirectory] = {}
        self.names: tuple[bytes, ...] = ()
        self.ino = ino
        self.parent_ino = parent_ino
        self.mtime_ns = mtime_ns

    def stat(self) -> FileStat:
        """Return the directory's attributes."""
        return FileStat(_BUNDLE_DEV, self.ino, self.filetype, 1, 0, self.mtime_ns, self.mtime_ns, self.mtime_ns)


class BundleTree:
    """
    The files of a function as an immutable tree; built once per function and shared by all its instances.

    Args: *files* maps relative POSIX paths to contents, which are kept by reference and must not change.
    A ``tmp`` folder in it can't be seen: ``/tmp`` of the instance lies over it.
    Raises: ValueError for a path that is absolute, not normal, too long, or both a file and a folder.
    """

    __slots__ = ("root",)

    def __init__(self, files: Mapping[str, bytes | bytearray | memoryview], *, mtime_ns: int = 0) -> None:
        root = BundleDirectory(_ROOT_INO, _ROOT_INO, mtime_ns)
        directories = [root]
        ino = _ROOT_INO
        for path in sorted(files):
            *folders, name = path.encode().split(b"/")
            for part in (*folders, name):
                if part in (b"", b".", b"..") or b"\0" in part or len(part) > MAX_NAME_BYTES:
                    raise ValueError(f"not a normal relative path: {path!r}")
            directory = root
            for part in folders:
                child = directory.entries.get(part)
                if child is None:
                    ino += 1
                    child = directory.entries[part] = BundleDirectory(ino, directory.ino, mtime_ns)
                    directories.append(child)
                if not isinstance(child, BundleDirectory):
                    raise ValueError(f"a file of the bundle is also a folder: {path!r}")
                directory = child
            if name in directory.entries:
                raise ValueError(f"a file of the bundle is also a folder: {path!r}")
            ino += 1
            directory.entries[name] = BundleFile(files[path], ino, mtime_ns)
        root.entries.pop(_TMP_NAME, None)
        for directory in directories:
            directory.names = tuple(directory.entries)
        root.names += (_TMP_NAME,)
        self.root = root


EMPTY_BUNDLE: Final = BundleTree({})


class TmpVolume:
    """The byte account of one instance's ``/tmp``; what is taken from it bounds the host memory a guest can hold."""

    __slots__ = ("capacity", "clock", "next_ino", "used")

    def __init__(self, capacity: int, clock: Clock) -> None:
        self.capacity = capacity
        self.clock = clock
        self.used = 0
        self.next_ino = _TMP_INO

    def take(self, n: int) -> None:
        """Count *n* more bytes, or raise NOSPC and count nothing."""
        if self.used + n > self.capacity:
            raise ErrnoError(Errno.NOSPC)
        self.used += n

    def give(self, n: int) -> None:
        """Count *n* bytes less."""
        self.used -= n

    def new_ino(self) -> int:
        """Return an inode number that was never used."""
        ino = self.next_ino
        self.next_ino = ino + 1
        return ino


class _TmpNode:
    """What files, directories and links of ``/tmp`` share: an inode that dies with its last name and last opener."""

    __slots__ = ("atim_ns", "ctim_ns", "ino", "mtim_ns", "nlink", "opens", "volume")

    filetype = FileType.UNKNOWN

    def __init__(self, volume: TmpVolume) -> None:
        self.volume = volume
        self.ino = volume.new_ino()
        self.nlink = 0
        self.opens = 0
        self.atim_ns = self.mtim_ns = self.ctim_ns = volume.clock.time_ns()

    @property
    def size(self) -> int:
        """Bytes that the node holds beside the inode itself."""
        return 0

    def stat(self) -> FileStat:
        """Return the node's attributes."""
        return FileStat(
            _TMP_DEV, self.ino, self.filetype, self.nlink, self.size, self.atim_ns, self.mtim_ns, self.ctim_ns
        )

    def touch(self) -> None:
        """Record a change of content."""
        self.mtim_ns = self.ctim_ns = self.volume.clock.time_ns()

    def set_times(self, atim_ns: int | None, mtim_ns: int | None) -> None:
        """Set the times that are not None."""
        if atim_ns is not None:
            self.atim_ns = atim_ns
        if mtim_ns is not None:
            self.mtim_ns = mtim_ns
        self.ctim_ns = self.volume.clock.time_ns()

    def unlinked(self) -> None:
        """Count one name less; the last one frees the inode unless it is open."""
        self.nlink -= 1
        self.ctim_ns = self.volume.clock.time_ns()
        self._free_if_dead()

    def closed(self) -> None:
        """Count one opener less; the last one frees an inode without a name."""
        self.opens -= 1
        self._free_if_dead()

    def _free_if_dead(self) -> None:
        if self.nlink == 0 and self.opens == 0:
            self.volume.give(INODE_COST + self.size)


class TmpFile(_TmpNode):
    """A regular file in memory, as pages: a call takes time for the bytes that it moves, never for a whole file."""

    __slots__ = ("_pages", "_size")

    filetype = FileType.REGULAR_FILE

    def __init__(self, volume: TmpVolume) -> None:
        super().__init__(volume)
        self._pages: dict[int, bytearray] = {}  # without what was never written: those are zeros
        self._size = 0

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def read_at(self, offset: int, n: int) -> bytes:
        """Return at most *n* bytes at *offset*."""
        end = min(offset + n, self._size)
        parts = []
        while offset < end:
            index, start = divmod(offset, PAGE_BYTES)
            length = min(PAGE_BYTES - start, end - offset)
            parts.append(bytes(self._pages.get(index, b"")[start : start + length]).ljust(length, b"\0"))
            offset += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, data: bytes) -> int:
        """
        Store as much of *data* at *offset* as /tmp has room for, zeros before it, and return how much.

        Raises: NOSPC when no byte fits, FBIG past the largest offset.
        """
        if not data:
            return 0
        if offset + len(data) > MAX_FILE_OFFSET:
            raise ErrnoError(Errno.FBIG)
        growth = offset + len(data) - self._size
        if growth > 0:
            lacking = growth - (self.volume.capacity - self.volume.used)
            if lacking >= len(data):
                raise ErrnoError(Errno.NOSPC)
            if lacking > 0:
                data = data[:-lacking]
                growth -= lacking
            if growth > 0:
                self.volume.take(growth)
                self._size += growth
        done = 0
        while done < len(data):
            index, start = divmod(offset + done, PAGE_BYTES)
            piece = data[done : done + PAGE_BYTES - start]
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray()
            if len(page) < start:
                page.extend(bytes(start - len(page)))
            page[start : start + len(piece)] = piece
            done += len(piece)
        self.touch()
        return len(data)

    def set_size(self, size: int) -> None:
        """Cut the file, or extend it with zeros."""
        if size > MAX_FILE_OFFSET:
            raise ErrnoError(Errno.FBIG)
        growth = size - self._size
        if growth > 0:
            self.volume.take(growth)
        elif growth < 0:
            last, length = divmod(size, PAGE_BYTES)
            for index in [index for index in self._pages if index > last]:
                del self._pages[index]
            if last in self._pages:
                del self._pages[last][length:]
            self.volume.give(-growth)
        self._size = size
        self.touch()


class TmpSymlink(_TmpNode):
    """A symbolic link in memory; its target is a relative path."""

    __slots__ = ("target",)

    filetype = FileType.SYMBOLIC_LINK

    def __init__(self, volume: TmpVolume, target: bytes) -> None:
        super().__init__(volume)
        self.target = target

    @property
    def size(self) -> int:
        """Length of the target in bytes."""
        return len(self.target)


class TmpDirectory(_TmpNode):
    """A directory in memory; knows its parent weakly, so that a finished instance is freed without the collector."""

    __slots__ = ("__weakref__", "_parent", "_peak", "entries")

    filetype = FileType.DIRECTORY

    def __init__(self, volume: TmpVolume) -> None:
        super().__init__(volume)
        self.entries: dict[bytes, TmpNode] = {}
        self._peak = 0
        self._parent: weakref.ref[TmpDirectory] | None = None

    @property
    def parent(self) -> TmpDirectory | None:
        """The directory this one is in; None for the root of /tmp."""
        return None if self._parent is None else self._parent()

    @parent.setter
    def parent(self, directory: TmpDirectory) -> None:
        self._parent = weakref.ref(directory)

    @property
    def parent_ino(self) -> int:
        """What ``..`` shows in a listing."""
        parent = self.parent
        return _ROOT_INO if parent is None else parent.ino

    def lineage(self) -> Iterable[TmpDirectory]:
        """Yield this directory and those above it; MLINK when there are over MAX_DEPTH."""
        directory: TmpDirectory | None = self
        for _ in range(MAX_DEPTH):
            if directory is None:
                return
            yield directory
            directory = directory.parent
        raise ErrnoError(Errno.MLINK)

    def attach(self, name: bytes, node: TmpNode) -> None:
        """Give *node* the name *name*, already paid for."""
        self.put(name, node)
        node.nlink += 1
        self.touch()

    def put(self, name: bytes, node: TmpNode) -> None:
        """Let *name* mean *node*, and nothing more."""
        self.entries[name] = node
        self._peak = max(self._peak, len(self.entries))

    def pop(self, name: bytes) -> TmpNode:
        """Forget *name*, and nothing more."""
        node = self.entries.pop(name)
        if len(self.entries) * 8 < self._peak:
            # A dict never shrinks: a guest could leave many large empty ones that it no longer pays for.
            self.entries = dict(self.entries)
            self._peak = len(self.entries)
        return node

    def detach(self, name: bytes) -> None:
        """Take the name away again and give back what it cost."""
        node = self.pop(name)
        self.volume.give(ENTRY_COST + len(name))
        self.touch()
        node.unlinked()


TmpNode: TypeAlias = TmpFile | TmpDirectory | TmpSymlink
Directory: TypeAlias = BundleDirectory | TmpDirectory
File: TypeAlias = BundleFile | TmpFile
Node: TypeAlias = BundleFile | BundleDirectory | TmpNode


class Found(NamedTuple):
    """Where a path leads."""

    parent: Directory | None
    """The directory that holds, or would hold, the last name; None when the path ends in ``.`` or ``..``."""
    name: bytes
    node: Node | None
    trailing_slash: bool

    def existing(self) -> Node:
        """Return the node; NOENT if there is none, NOTDIR if a trailing slash follows anything but a directory."""
        node = self.node
        if node is None:
            raise ErrnoError(Errno.NOENT)
        if self.trailing_slash and node.filetype is not FileType.DIRECTORY:
            raise ErrnoError(Errno.NOTDIR)
        return node

    def writable_parent(self) -> TmpDirectory:
        """Return the directory to change; ROFS in the bundle, NOENT if it was itself removed."""
        if not isinstance(self.parent, TmpDirectory):
            raise ErrnoError(Errno.ROFS)
        if self.parent.nlink == 0:
            raise ErrnoError(Errno.NOENT)
        return self.parent


def checked_path(path: bytes) -> bytes:
    """Return *path* if it may be walked or stored as a link's target, else raise the errno that says why not."""
    if not path:
        raise ErrnoError(Errno.NOENT)
    if len(path) > MAX_PATH_BYTES:
        raise ErrnoError(Errno.NAMETOOLONG)
    if not path.isascii():
        try:
            path.decode()
        except UnicodeDecodeError:
            raise ErrnoError(Errno.ILSEQ) from None
    if b"\0" in path:
        raise ErrnoError(Errno.INVAL)
    if path[0] == 0x2F:
        raise ErrnoError(Errno.NOTCAPABLE)
    return path


class FileSystem:
    """
    The files that one instance sees; made when the guest first touches a path, gone with the instance.

    Every method resolves *path* from the open directory *start* and raises ErrnoError.
    """

    __slots__ = ("root", "tmp", "volume")

    def __init__(self, bundle: BundleTree | None, tmp_bytes: int, clock: Clock) -> None:
        self.root = (EMPTY_BUNDLE if bundle is None else bundle).root
        self.volume = TmpVolume(tmp_bytes, clock)
        self.tmp = TmpDirectory(self.volume)
        self.tmp.nlink = 1

    def find(self, start: Directory, path: bytes, *, follow: bool) -> Found:
        """
        Walk *path*; the last name need not exist.

        *follow*: go on where a symbolic link at the end leads; a trailing slash does so anyway.
        """
        checked_path(path)
        stack: list[Directory] = [start]
        stripped = path.rstrip(b"/")
        trailing_slash = len(stripped) != len(path)
        pending = stripped.split(b"/")
        pending.reverse()
        n_followed = n_followed_bytes = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(stack) == 1:
                    raise ErrnoError(Errno.NOTCAPABLE)
                stack.pop()
                continue
            if len(name) > MAX_NAME_BYTES:
                raise ErrnoError(Errno.NAMETOOLONG)
            directory = stack[-1]
            node = self.child(directory, name)
            if isinstance(node, TmpSymlink) and (pending or follow or trailing_slash):
                n_followed += 1
                if n_followed > MAX_LINKS_FOLLOWED:
                    raise ErrnoError(Errno.LOOP)
                # Long targets in a row would keep the loop busy for tens of milliseconds.
                n_followed_bytes += len(node.target)
                if n_followed_bytes > MAX_PATH_BYTES:
                    raise ErrnoError(Errno.NAMETOOLONG)
                target = node.target.rstrip(b"/")
                trailing_slash = trailing_slash or (not pending and len(target) != len(node.target))
                pending.extend(reversed(target.split(b"/")))
            elif not pending:
                return Found(directory, name, node, trailing_slash)
            elif node is None:
                raise ErrnoError(Errno.NOENT)
            elif isinstance(node, BundleDirectory | TmpDirectory):
                stack.append(node)
            else:
                raise ErrnoError(Errno.NOTDIR)
        return Found(None, b"", stack[-1], trailing_slash)

    def child(self, directory: Directory, name: bytes) -> Node | None:
        """Return what *name* is in *directory*; ``tmp`` in the root is the instance's own."""
        if directory is self.root and name == _TMP_NAME:
            return self.tmp
        return directory.entries.get(name)

    def names(self, directory: Directory) -> Sequence[bytes]:
        """Return the names in *directory*, a copy where they can change."""
        return directory.names if isinstance(directory, BundleDirectory) else tuple(directory.entries)

    def open(self, start: Directory, path: bytes, *, follow: bool, oflags: int, write: bool) -> File | Directory:
        """Return the file or directory at *path*, created or cut as *oflags* say."""
        create, exclusive = oflags & OFlags.CREAT, oflags & OFlags.EXCL
        if create and oflags & OFlags.DIRECTORY:
            raise ErrnoError(Errno.INVAL)
        found = self.find(start, path, follow=follow and not (create and exclusive))
        if found.node is None and create:
            if found.trailing_slash:
                raise ErrnoError(Errno.ISDIR)
            parent = found.writable_parent()
            self.volume.take(INODE_COST + ENTRY_COST + len(found.name))
            file = TmpFile(self.volume)
            parent.attach(found.name, file)
            return file
        if found.node is not None and create and exclusive:
            raise ErrnoError(Errno.EXIST)
        node = found.existing()
        if isinstance(node, TmpSymlink):
            raise ErrnoError(Errno.LOOP)
        if isinstance(node, BundleDirectory | TmpDirectory):
            # Old libcs ask for every right with O_DIRECTORY, so only a plain open is held to its write flag.
            if oflags & (OFlags.CREAT | OFlags.TRUNC) or (write and not oflags & OFlags.DIRECTORY):
                raise ErrnoError(Errno.ISDIR)
            return node
        if oflags & OFlags.DIRECTORY:
            raise ErrnoError(Errno.NOTDIR)
        if isinstance(node, BundleFile):
            if write or oflags & OFlags.TRUNC:
                raise ErrnoError(Errno.ROFS)
        elif oflags & OFlags.TRUNC:
            node.set_size(0)
        return node

    def make_directory(self, start: Directory, path: bytes) -> None:
        """Create an empty directory."""
        found = self.find(start, path, follow=False)
        if found.node is not None:
            raise ErrnoError(Errno.EXIST)
        parent = found.writable_parent()
        for _ in parent.lineage():
            pass
        self.volume.take(INODE_COST + ENTRY_COST + len(found.name))
        directory = TmpDirectory(self.volume)
        directory.parent = parent
        parent.attach(found.name, directory)

    def remove_directory(self, start: Directory, path: bytes) -> None:
        """Remove an empty directory."""
        found = self.find(start, path, follow=False)
        node = found.existing()
        if found.parent is None:
            raise ErrnoError(Errno.INVAL)
        if not isinstance(node, BundleDirectory | TmpDirectory):
            raise ErrnoError(Errno.NOTDIR)
        parent = found.writable_parent()
        if node.entries:
            raise ErrnoError(Errno.NOTEMPTY)
        parent.detach(found.name)

    def unlink(self, start: Directory, path: bytes) -> None:
        """Remove a name that is not a directory's; an open file lives on until it is closed."""
        found = self.find(start, path, follow=False)
        node = found.existing()
        if isinstance(node, BundleDirectory | TmpDirectory):
            raise ErrnoError(Errno.ISDIR)
        found.writable_parent().detach(found.name)

    def rename(self, old_start: Directory, old_path: bytes, new_start: Directory, new_path: bytes) -> None:
        """Move a name, atomically replacing what has the new one."""
        old = self.find(old_start, old_path, follow=False)
        node = old.existing()
        new = self.find(new_start, new_path, follow=False)
        if old.parent is None or new.parent is None:
            raise ErrnoError(Errno.BUSY)
        old_parent = old.writable_parent()
        new_parent = new.writable_parent()
        is_directory = isinstance(node, TmpDirectory)
        if new.trailing_slash and not is_directory:
            raise ErrnoError(Errno.NOTDIR)
        if new.node is node:
            return
        if isinstance(node, TmpDirectory) and any(directory is node for directory in new_parent.lineage()):
            raise ErrnoError(Errno.INVAL)
        if isinstance(new.node, TmpDirectory):
            if not is_directory:
                raise ErrnoError(Errno.ISDIR)
            if new.node.entries:
                raise ErrnoError(Errno.NOTEMPTY)
        elif new.node is not None and is_directory:
            raise ErrnoError(Errno.NOTDIR)
        if new.node is None:
            self.volume.take(max(0, len(new.name) - len(old.name)))
            self.volume.give(max(0, len(old.name) - len(new.name)))
        else:
            self.volume.give(ENTRY_COST + len(old.name))
        moved = old_parent.pop(old.name)
        replaced = new_parent.entries.get(new.name)
        new_parent.put(new.name, moved)
        if isinstance(moved, TmpDirectory):
            moved.parent = new_parent
        if replaced is not None:
            replaced.unlinked()
        old_parent.touch()
        new_parent.touch()

    def link(
        self, old_start: Directory, old_path: bytes, new_start: Directory, new_path: bytes, *, follow: bool
    ) -> None:
        """Give the file at *old_path* a second name."""
        node = self.find(old_start, old_path, follow=follow).existing()
        new = self.find(new_start, new_path, follow=False)
        if new.node is not None:
            raise ErrnoError(Errno.EXIST)
        if new.trailing_slash:
            raise ErrnoError(Errno.NOENT)
        parent = new.writable_parent()
        if isinstance(node, BundleDirectory | TmpDirectory):
            raise ErrnoError(Errno.PERM)
        if isinstance(node, BundleFile):
            raise ErrnoError(Errno.XDEV)
        self.volume.take(ENTRY_COST + len(new.name))
        parent.attach(new.name, node)

    def symlink(self, target: bytes, start: Directory, path: bytes) -> None:
        """Create a symbolic link; an absolute *target* is refused, as it could only lead out."""
        checked_path(target)
        found = self.find(start, path, follow=False)
        if found.node is not None:
            raise ErrnoError(Errno.EXIST)
        if found.trailing_slash:
            raise ErrnoError(Errno.NOENT)
        parent = found.writable_parent()
        self.volume.take(INODE_COST + len(target) + ENTRY_COST + len(found.name))
        parent.attach(found.name, TmpSymlink(self.volume, target))

    def readlink(self, start: Directory, path: bytes) -> bytes:
        """Return the target of a symbolic link."""
        node = self.find(start, path, follow=False).existing()
        if not isinstance(node, TmpSymlink):
            raise ErrnoError(Errno.INVAL)
        return node.target

    def stat(self, start: Directory, path: bytes, *, follow: bool) -> FileStat:
        """Return the attributes of what is at *path*."""
        return self.find(start, path, follow=follow).existing().stat()

    def set_times(
        self, start: Directory, path: bytes, *, follow: bool, atim_ns: int | None, mtim_ns: int | None
    ) -> None:
        """Set the times that are not None."""
        set_node_times(self.find(start, path, follow=follow).existing(), atim_ns, mtim_ns)


def set_node_times(node: Node, atim_ns: int | None, mtim_ns: int | None) -> None:
    """Set the times that are not None; ROFS in the bundle."""
    if isinstance(node, BundleFile | BundleDirectory):
        raise ErrnoError(Errno.ROFS)
    node.set_times(atim_ns, mtim_ns)
