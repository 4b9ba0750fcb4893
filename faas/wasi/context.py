"""The WASI state of one instance: arguments, environment, clocks and the table of open descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from faas.clock import Clock
from faas.wasi.descriptors import (
    ALL_RIGHTS,
    DIRECTORY_RIGHTS,
    Descriptor,
    DirectoryDescriptor,
    FileDescriptor,
    InputDescriptor,
    OutputDescriptor,
)
from faas.wasi.errno import ClockId, Errno, ErrnoError, FstFlags, Rights
from faas.wasi.files import BundleDirectory, BundleTree, FileSystem, TmpDirectory
from faas.wasi.streams import InputStream, OutputStream

_FIRST_PREOPEN: Final = 3
_REALTIME: Final = int(ClockId.REALTIME)
_MONOTONIC: Final = int(ClockId.MONOTONIC)
# A Python clock call takes some tens of nanoseconds and monotonic() is a float: finer would be a promise we break.
_RESOLUTION_NS: Final = 1000
_NOTHING: Final[frozenset[str]] = frozenset()


class GuestExit(Exception):
    """The guest called ``proc_exit`` with *code*, an unsigned 32-bit number."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class StringBlock(NamedTuple):
    """Strings as ``args_get`` and ``environ_get`` lay them out."""

    n_strings: int
    content: bytes
    """Every string with a NUL behind it."""
    offsets: tuple[int, ...]
    """Where each string starts in the content."""


def string_block(strings: Sequence[bytes]) -> StringBlock:
    """Lay out *strings*."""
    if not strings:
        return StringBlock(0, b"", ())
    content = b"\0".join(strings) + b"\0"
    offsets = tuple(accumulate((len(string) + 1 for string in strings[:-1]), initial=0))
    return StringBlock(len(strings), content, offsets)


class WasiContext:
    """
    Everything WASI that belongs to one instance; cheap to make, dropped with the instance.

    What a plain request does not use is made on first use: the encoded environment, the file system, the preopens.

    Args: *env* is a sequence of ``K=V``, or a callable that makes it when the guest asks; *stdin*, *stdout* and
    *stderr* stay the caller's to close; *bundle* None means an empty ``/``; *tmp_bytes* caps ``/tmp``;
    *max_open_files* counts all descriptors.
    Thread: any, one at a time.
    """

    __slots__ = (
        "_args",
        "_args_block",
        "_bundle",
        "_clock",
        "_descriptors",
        "_env",
        "_env_block",
        "_files",
        "_lowest_free",
        "_max_open_files",
        "_tmp_bytes",
        "_warned",
        "stderr",
        "stdin",
        "stdout",
    )

    def __init__(  # noqa: PLR0917 - the parts of one instance's world
        self,
        args: Sequence[bytes],
        env: Callable[[], Sequence[bytes]] | Sequence[bytes],
        stdin: InputStream,
        stdout: OutputStream,
        stderr: OutputStream,
        bundle: BundleTree | None,
        tmp_bytes: int,
        clock: Clock,
        max_open_files: int = 256,
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._args = args
        self._env = env
        self._bundle = bundle
        self._tmp_bytes = tmp_bytes
        self._clock = clock
        self._max_open_files = max_open_files
        self._args_block: StringBlock | None = None
        self._env_block: StringBlock | None = None
        self._files: FileSystem | None = None
        self._warned: frozenset[str] = _NOTHING
        self._lowest_free = 0
        self._descriptors: dict[int, Descriptor] = {
            0: InputDescriptor(stdin),
            1: OutputDescriptor(stdout),
            2: OutputDescriptor(stderr),
        }

    # Arguments, environment, clocks, randomness

    def args(self) -> StringBlock:
        """Return the arguments, laid out once."""
        block = self._args_block
        if block is None:
            block = self._args_block = string_block(self._args)
        return block

    def environ(self) -> StringBlock:
        """Return the environment, made and laid out once."""
        block = self._env_block
        if block is None:
            env = self._env
            block = self._env_block = string_block(env() if callable(env) else env)
        return block

    def now_ns(self, clock_id: int) -> int:
        """
        Return the time of a clock.

        Raises: INVAL for a CPU clock: the witx names it for "unsupported", and an instance has no thread to measure.
        """
        if clock_id == _MONOTONIC:
            return int(self._clock.monotonic() * 1e9)
        if clock_id == _REALTIME:
            return self._clock.time_ns()
        raise ErrnoError(Errno.INVAL)

    def resolution_ns(self, clock_id: int) -> int:
        """Return the resolution of a clock; INVAL like ``now_ns``."""
        if clock_id in (_REALTIME, _MONOTONIC):
            return _RESOLUTION_NS
        raise ErrnoError(Errno.INVAL)

    def random_bytes(self, n: int) -> bytes:
        """Return *n* bytes from the host's secure source."""
        return os.urandom(n)

    def times_to_set(self, atim_ns: int, mtim_ns: int, fst_flags: int) -> tuple[int | None, int | None]:
        """Return the times that ``filestat_set_times`` sets, None for those to leave; INVAL for contradictory flags."""
        access = _time_to_set(fst_flags & 3, atim_ns, self._clock)
        return access, _time_to_set(fst_flags >> 2, mtim_ns, self._clock)

    # Lines for the log

    def log(self, line: str) -> None:
        """Write *line* to stderr as a line of its own."""
        rest = line.encode("utf-8", "replace") + b"\n"
        while rest:
            rest = rest[self.stderr.write(rest) :]

    def warn_once(self, line: str) -> None:
        """Write *line* to stderr, unless this instance has been told so already."""
        if line not in self._warned:
            self._warned |= {line}
            self.log(line)

    # Descriptors

    def descriptor(self, fd: int) -> Descriptor:
        """Return the open descriptor *fd*, or raise BADF."""
        descriptor = self._descriptors.get(fd)
        if descriptor is None:
            if self._files is not None:
                raise ErrnoError(Errno.BADF)
            self._mount()
            return self.descriptor(fd)
        return descriptor

    def directory(self, fd: int) -> DirectoryDescriptor:
        """Return the open directory *fd*; BADF if it is not open, NOTDIR if it is something else."""
        descriptor = self.descriptor(fd)
        if not isinstance(descriptor, DirectoryDescriptor):
            raise ErrnoError(Errno.NOTDIR)
        return descriptor

    def preopen(self, fd: int) -> bytes:
        """Return the guest path of a preopen; BADF for every other descriptor: it ends a libc's search for them."""
        descriptor = self.descriptor(fd)
        if not isinstance(descriptor, DirectoryDescriptor) or descriptor.preopen is None:
            raise ErrnoError(Errno.BADF)
        return descriptor.preopen

    @property
    def files(self) -> FileSystem:
        """The instance's file system."""
        return self._files or self._mount()

    @property
    def tmp_used_bytes(self) -> int:
        """What ``/tmp`` takes of the host's memory."""
        return 0 if self._files is None else self._files.volume.used

    def _mount(self) -> FileSystem:
        files = self._files = FileSystem(self._bundle, self._tmp_bytes, self._clock)
        for fd, node, path in ((_FIRST_PREOPEN, files.root, b"/"), (_FIRST_PREOPEN + 1, files.tmp, b"/tmp")):
            # All rights are inheritable, in the bundle too: libc asks for no more than these,
            # and a file that silently opened without its write flag would fail later with a worse errno.
            self._descriptors[fd] = DirectoryDescriptor(files, node, ALL_RIGHTS, ALL_RIGHTS, preopen=path)
        return files

    def close(self, fd: int) -> None:
        """Close *fd*."""
        self.descriptor(fd).close()
        del self._descriptors[fd]
        self._lowest_free = min(self._lowest_free, fd)

    def renumber(self, fd: int, to: int) -> None:
        """Move *fd* to the number *to*, closing what was there; both must be open, so the table can't grow."""
        moved = self.descriptor(fd)
        replaced = self.descriptor(to)
        if fd == to:
            return
        replaced.close()
        self._descriptors[to] = moved
        del self._descriptors[fd]
        self._lowest_free = min(self._lowest_free, fd)

    def open(
        self,
        fd: int,
        path: bytes,
        *,
        follow: bool,
        oflags: int,
        rights: int,
        inheriting: int,
        fd_flags: int,
    ) -> int:
        """Open *path* under the directory *fd* and return the lowest free descriptor; MFILE at the limit."""
        directory = self.directory(fd)
        if len(self._descriptors) >= self._max_open_files:
            raise ErrnoError(Errno.MFILE)
        if oflags & ~15 or fd_flags & ~31:
            raise ErrnoError(Errno.INVAL)
        # Only rights the directory passes on; those it does not are left out, as other hosts do.
        rights &= directory.inheriting
        inheriting &= directory.inheriting
        files = self.files
        node = files.open(directory.node, path, follow=follow, oflags=oflags, write=bool(rights & int(Rights.FD_WRITE)))
        opened: Descriptor
        if isinstance(node, BundleDirectory | TmpDirectory):
            opened = DirectoryDescriptor(files, node, rights & DIRECTORY_RIGHTS, inheriting)
        else:
            opened = FileDescriptor(node, rights, fd_flags)
        number = self._lowest_free
        while number in self._descriptors:
            number += 1
        self._descriptors[number] = opened
        self._lowest_free = number + 1
        return number


def _time_to_set(flags: int, time_ns: int, clock: Clock) -> int | None:
    if flags == 0:
        return None
    if flags == int(FstFlags.ATIM):
        return time_ns
    if flags == int(FstFlags.ATIM_NOW):
        return clock.time_ns()
    raise ErrnoError(Errno.INVAL)
