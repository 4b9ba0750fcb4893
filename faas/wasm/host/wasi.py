"""
``wasi_snapshot_preview1`` as host functions: guest memory to values of ``faas.wasi`` and back.

A handler takes ``guest`` and the call's integers, all unsigned, and returns an errno. A pointer outside of the guest's
memory answers FAULT and a refused call its errno; any other exception is not the guest's to see and goes through.
The calls of every plain request carry their own ``try``, which costs nothing; the others share ``_answering``.

Source: wasi_snapshot_preview1.witx; where it is silent, wasmtime's behaviour.
"""
# ruff: noqa: PLR0917 - WASI fixes the parameters, and an engine calls by position

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Protocol

from faas.wasi.context import GuestExit, StringBlock, WasiContext
from faas.wasi.descriptors import Descriptor
from faas.wasi.errno import Errno, ErrnoError, EventRwFlags, EventType, LookupFlags, PreopenType
from faas.wasi.files import MAX_PATH_BYTES, FileStat
from faas.wasi.poll import ClockSubscription, Event, FdSubscription, Subscription, poll
from faas.wasi.signatures import SIGNATURES
from faas.wasm.host import HostFunction
from faas.wasm.memory import GuestMemory, MemoryFaultError

MAX_IOVECS: Final = 1024
MAX_IO_BYTES: Final = 1 << 20  # one call moves at most this much; guests go on with the rest
MAX_SUBSCRIPTIONS: Final = 1024  # four for each descriptor that may be open; some 2 ms
MAX_LISTING_BYTES: Final = 128 * 1024  # some 3 ms; a listing can't be cut, as less than a full buffer means its end
MAX_RANDOM_BYTES: Final = 1 << 20  # some 2 ms of the loop's time; the call can't answer less than it was asked

_RANDOM_CHUNK_BYTES: Final = 65536

# IntEnum members are looked up slowly; these are answered by every request.
_SUCCESS: Final = 0
_FAULT: Final = int(Errno.FAULT)
_INVAL: Final = int(Errno.INVAL)
_AGAIN: Final = int(Errno.AGAIN)
_NONBLOCK: Final = 4
_FOLLOW: Final = int(LookupFlags.SYMLINK_FOLLOW)

_FDSTAT: Final = struct.Struct("<BxHxxxxQQ")
_FILESTAT: Final = struct.Struct("<QQB7xQQQQQ")
_PRESTAT: Final = struct.Struct("<B3xI")
_DIRENT: Final = struct.Struct("<QQIB3x")
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
_EVENT: Final = struct.Struct("<QHB5xQH6x")


class WasiGuest(Protocol):
    """What a handler needs of the instance that calls it; valid during the call, and while its awaitable runs."""

    @property
    def memory(self) -> GuestMemory:
        """The instance's linear memory."""

    @property
    def wasi(self) -> WasiContext:
        """The instance's WASI state."""

    def request_yield(self) -> None:
        """Make the guest yield to the loop at its next epoch check."""


_P = ParamSpec("_P")


def _answering(call: Callable[Concatenate[WasiGuest, _P], None]) -> Callable[Concatenate[WasiGuest, _P], int]:
    """Turn a handler that raises into one that answers: 0, FAULT or the errno raised."""

    @wraps(call)
    def handler(guest: WasiGuest, /, *args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            call(guest, *args, **kwargs)
        except MemoryFaultError:
            return _FAULT
        except ErrnoError as error:
            return error.errno
        return _SUCCESS

    return handler


# Arguments and environment


def args_sizes_get(guest: WasiGuest, n_args_ptr: int, n_bytes_ptr: int) -> int:
    """Store how many arguments there are, and their length with NULs."""
    try:
        _store_sizes(guest.memory, guest.wasi.args(), n_args_ptr, n_bytes_ptr)
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


def args_get(guest: WasiGuest, pointers_ptr: int, content_ptr: int) -> int:
    """Store the arguments and a pointer to each."""
    try:
        _store_strings(guest.memory, guest.wasi.args(), pointers_ptr, content_ptr)
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


def environ_sizes_get(guest: WasiGuest, n_variables_ptr: int, n_bytes_ptr: int) -> int:
    """Store how many variables there are, and their length with NULs."""
    try:
        _store_sizes(guest.memory, guest.wasi.environ(), n_variables_ptr, n_bytes_ptr)
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


def environ_get(guest: WasiGuest, pointers_ptr: int, content_ptr: int) -> int:
    """Store the variables and a pointer to each."""
    try:
        _store_strings(guest.memory, guest.wasi.environ(), pointers_ptr, content_ptr)
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


def _store_sizes(memory: GuestMemory, block: StringBlock, n_ptr: int, n_bytes_ptr: int) -> None:
    memory.write_u32(n_ptr, block.n_strings)
    memory.write_u32(n_bytes_ptr, len(block.content))


def _store_strings(memory: GuestMemory, block: StringBlock, pointers_ptr: int, content_ptr: int) -> None:
    memory.write(content_ptr, block.content)
    pointers = [content_ptr + offset for offset in block.offsets]
    memory.write(pointers_ptr, struct.pack(f"<{len(pointers)}I", *pointers))


# Clocks and randomness


def clock_time_get(guest: WasiGuest, clock_id: int, precision_ns: int, time_ptr: int) -> int:
    """Store the time of a clock in nanoseconds."""
    try:
        guest.memory.write_u64(time_ptr, guest.wasi.now_ns(clock_id))
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


@_answering
def clock_res_get(guest: WasiGuest, clock_id: int, resolution_ptr: int) -> None:
    """Store the resolution of a clock in nanoseconds."""
    guest.memory.write_u64(resolution_ptr, guest.wasi.resolution_ns(clock_id))


def random_get(guest: WasiGuest, buffer_ptr: int, length: int) -> int:
    """Fill the buffer with secure random bytes; INVAL over MAX_RANDOM_BYTES, as a short answer has no way to say so."""
    memory, wasi = guest.memory, guest.wasi
    try:
        if length <= _RANDOM_CHUNK_BYTES:
            memory.write(buffer_ptr, wasi.random_bytes(length))
            return _SUCCESS
        memory.read(buffer_ptr + length - 1, 1)
        if length > MAX_RANDOM_BYTES:
            return _INVAL
        for offset in range(0, length, _RANDOM_CHUNK_BYTES):
            memory.write(buffer_ptr + offset, wasi.random_bytes(min(_RANDOM_CHUNK_BYTES, length - offset)))
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


# Reading and writing


def fd_write(guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, n_written_ptr: int) -> int:
    """Write the gathered buffers, or their beginning, and store how many bytes that were."""
    memory = guest.memory
    try:
        descriptor = guest.wasi.descriptor(fd)
        memory.write_u32(n_written_ptr, descriptor.write(_gather(memory, iovecs_ptr, n_iovecs)))
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    if descriptor.full:
        guest.request_yield()
    return _SUCCESS


@_answering
def fd_pwrite(guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, offset: int, n_written_ptr: int) -> None:
    """Write the gathered buffers at *offset*."""
    memory = guest.memory
    descriptor = guest.wasi.descriptor(fd)
    memory.write_u32(n_written_ptr, descriptor.pwrite(_gather(memory, iovecs_ptr, n_iovecs), offset))


def fd_read(guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, n_read_ptr: int) -> int | Awaitable[int]:
    """Read into the buffers and store how many bytes that were; 0 at the end. Suspends while stdin has none yet."""
    memory = guest.memory
    try:
        descriptor = guest.wasi.descriptor(fd)
        iovecs = _iovecs(memory, iovecs_ptr, n_iovecs)
        wanted = min(sum(iovecs[1::2]), MAX_IO_BYTES)
        chunk = descriptor.read(wanted) if wanted else b""
        if chunk is None:
            if descriptor.flags & _NONBLOCK:
                return _AGAIN
            return _read_later(guest, descriptor, iovecs, wanted, n_read_ptr)
        _scatter(memory, iovecs, chunk)
        memory.write_u32(n_read_ptr, len(chunk))
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


async def _read_later(
    guest: WasiGuest, descriptor: Descriptor, iovecs: tuple[int, ...], wanted: int, n_read_ptr: int
) -> int:
    chunk: bytes | None = None
    while chunk is None:
        await descriptor.wait_readable()
        chunk = descriptor.read(wanted)
    try:
        _scatter(guest.memory, iovecs, chunk)
        guest.memory.write_u32(n_read_ptr, len(chunk))
    except MemoryFaultError:
        return _FAULT
    return _SUCCESS


@_answering
def fd_pread(guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, offset: int, n_read_ptr: int) -> None:
    """Read from *offset* into the buffers; never suspends, as only files can do it."""
    memory = guest.memory
    descriptor = guest.wasi.descriptor(fd)
    iovecs = _iovecs(memory, iovecs_ptr, n_iovecs)
    chunk = descriptor.pread(min(sum(iovecs[1::2]), MAX_IO_BYTES), offset)
    _scatter(memory, iovecs, chunk)
    memory.write_u32(n_read_ptr, len(chunk))


def _iovecs(memory: GuestMemory, ptr: int, count: int) -> tuple[int, ...]:
    """Return pointer, length, pointer, length …"""
    if count > MAX_IOVECS:
        raise ErrnoError(Errno.INVAL)
    return memory.read_u32s(ptr, 2 * count)


def _gather(memory: GuestMemory, iovecs_ptr: int, n_iovecs: int) -> bytes:
    """Return the buffers' bytes, at most MAX_IO_BYTES of them."""
    iovecs = _iovecs(memory, iovecs_ptr, n_iovecs)
    if n_iovecs == 1:
        return memory.read(iovecs[0], min(iovecs[1], MAX_IO_BYTES))
    room = MAX_IO_BYTES
    chunks = []
    for index in range(0, len(iovecs), 2):
        length = min(iovecs[index + 1], room)
        if length:
            chunks.append(memory.read(iovecs[index], length))
            room -= length
    return b"".join(chunks)


def _scatter(memory: GuestMemory, iovecs: tuple[int, ...], chunk: bytes) -> None:
    """Spread *chunk* over the buffers."""
    position = 0
    for index in range(0, len(iovecs), 2):
        piece = chunk[position : position + iovecs[index + 1]]
        if piece:
            memory.write(iovecs[index], piece)
            position += len(piece)


# Descriptors


def fd_close(guest: WasiGuest, fd: int) -> int:
    """Close a descriptor."""
    try:
        guest.wasi.close(fd)
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


def fd_seek(guest: WasiGuest, fd: int, offset: int, whence: int, position_ptr: int) -> int:
    """Move in a file and store the new position; SPIPE for streams."""
    try:
        signed = offset - (1 << 64) if offset >> 63 else offset
        guest.memory.write_u64(position_ptr, guest.wasi.descriptor(fd).seek(signed, whence))
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


def fd_fdstat_get(guest: WasiGuest, fd: int, stat_ptr: int) -> int:
    """Store a descriptor's type, flags and rights."""
    try:
        descriptor = guest.wasi.descriptor(fd)
        guest.memory.write(
            stat_ptr,
            _FDSTAT.pack(descriptor.filetype, descriptor.flags, descriptor.rights, descriptor.inheriting),
        )
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


def fd_prestat_get(guest: WasiGuest, fd: int, prestat_ptr: int) -> int:
    """Store the kind of a preopen and the length of its guest path."""
    try:
        guest.memory.write(prestat_ptr, _PRESTAT.pack(PreopenType.DIR, len(guest.wasi.preopen(fd))))
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno
    return _SUCCESS


@_answering
def fd_prestat_dir_name(guest: WasiGuest, fd: int, path_ptr: int, path_len: int) -> None:
    """Store the guest path of a preopen, without a NUL."""
    path = guest.wasi.preopen(fd)
    if path_len < len(path):
        raise ErrnoError(Errno.NAMETOOLONG)
    guest.memory.write(path_ptr, path)


@_answering
def fd_tell(guest: WasiGuest, fd: int, position_ptr: int) -> None:
    """Store the position in a file."""
    guest.memory.write_u64(position_ptr, guest.wasi.descriptor(fd).seek(0, 1))


@_answering
def fd_advise(guest: WasiGuest, fd: int, offset: int, length: int, advice: int) -> None:
    """Accept advice on a file; there is nothing to do with it."""
    descriptor = guest.wasi.descriptor(fd)
    if advice > 5:
        raise ErrnoError(Errno.INVAL)
    descriptor.advise()


@_answering
def fd_allocate(guest: WasiGuest, fd: int, offset: int, length: int) -> None:
    """Make sure that a range of a file exists."""
    guest.wasi.descriptor(fd).allocate(offset, length)


@_answering
def fd_sync(guest: WasiGuest, fd: int) -> None:
    """Do nothing: what is in memory has nowhere to be synced to."""
    guest.wasi.descriptor(fd)


@_answering
def fd_fdstat_set_flags(guest: WasiGuest, fd: int, flags: int) -> None:
    """Replace a descriptor's flags."""
    guest.wasi.descriptor(fd).set_flags(flags)


@_answering
def fd_fdstat_set_rights(guest: WasiGuest, fd: int, rights: int, inheriting: int) -> None:
    """Give up rights."""
    guest.wasi.descriptor(fd).set_rights(rights, inheriting)


@_answering
def fd_filestat_get(guest: WasiGuest, fd: int, stat_ptr: int) -> None:
    """Store the attributes of what is open."""
    guest.memory.write(stat_ptr, _packed_stat(guest.wasi.descriptor(fd).stat()))


@_answering
def fd_filestat_set_size(guest: WasiGuest, fd: int, size: int) -> None:
    """Cut or extend a file."""
    guest.wasi.descriptor(fd).set_size(size)


@_answering
def fd_filestat_set_times(guest: WasiGuest, fd: int, atim_ns: int, mtim_ns: int, fst_flags: int) -> None:
    """Set the times of what is open."""
    descriptor = guest.wasi.descriptor(fd)
    descriptor.set_times(*guest.wasi.times_to_set(atim_ns, mtim_ns, fst_flags))


@_answering
def fd_renumber(guest: WasiGuest, fd: int, to: int) -> None:
    """Move a descriptor to another open number, which is closed."""
    guest.wasi.renumber(fd, to)


@_answering
def fd_readdir(guest: WasiGuest, fd: int, buffer_ptr: int, buffer_len: int, cookie: int, n_used_ptr: int) -> None:
    """
    Store directory entries from *cookie* on until the buffer is full, and how much of it was used.

    The last entry may be cut off; less than a full buffer means that the listing is at its end. INVAL for a buffer
    over MAX_LISTING_BYTES: libcs take some thousand bytes at a time.
    """
    directory = guest.wasi.directory(fd)
    if buffer_len > MAX_LISTING_BYTES:
        raise ErrnoError(Errno.INVAL)
    packed = bytearray()
    while len(packed) < buffer_len:
        try:
            entry = directory.entry(cookie)
        except IndexError:
            break
        cookie += 1
        if entry is not None:
            name, ino, filetype = entry
            packed += _DIRENT.pack(cookie, ino, len(name), filetype)
            packed += name
    del packed[buffer_len:]
    guest.memory.write(buffer_ptr, bytes(packed))
    guest.memory.write_u32(n_used_ptr, len(packed))


def _packed_stat(stat: FileStat) -> bytes:
    return _FILESTAT.pack(*stat)


# Paths


def _path(memory: GuestMemory, ptr: int, length: int) -> bytes:
    if length > MAX_PATH_BYTES:
        raise ErrnoError(Errno.NAMETOOLONG)
    return memory.read(ptr, length)


def _follows(flags: int) -> bool:
    if flags & ~_FOLLOW:
        raise ErrnoError(Errno.INVAL)
    return bool(flags)


@_answering
def path_open(
    guest: WasiGuest,
    fd: int,
    lookup_flags: int,
    path_ptr: int,
    path_len: int,
    oflags: int,
    rights: int,
    inheriting: int,
    fd_flags: int,
    opened_ptr: int,
) -> None:
    """Open a file or directory and store its descriptor."""
    memory = guest.memory
    memory.read(opened_ptr, 4)
    opened = guest.wasi.open(
        fd,
        _path(memory, path_ptr, path_len),
        follow=_follows(lookup_flags),
        oflags=oflags,
        rights=rights,
        inheriting=inheriting,
        fd_flags=fd_flags,
    )
    memory.write_u32(opened_ptr, opened)


@_answering
def path_create_directory(guest: WasiGuest, fd: int, path_ptr: int, path_len: int) -> None:
    """Create a directory."""
    wasi = guest.wasi
    wasi.files.make_directory(wasi.directory(fd).node, _path(guest.memory, path_ptr, path_len))


@_answering
def path_remove_directory(guest: WasiGuest, fd: int, path_ptr: int, path_len: int) -> None:
    """Remove an empty directory."""
    wasi = guest.wasi
    wasi.files.remove_directory(wasi.directory(fd).node, _path(guest.memory, path_ptr, path_len))


@_answering
def path_unlink_file(guest: WasiGuest, fd: int, path_ptr: int, path_len: int) -> None:
    """Remove a file's name."""
    wasi = guest.wasi
    wasi.files.unlink(wasi.directory(fd).node, _path(guest.memory, path_ptr, path_len))


@_answering
def path_filestat_get(
    guest: WasiGuest, fd: int, lookup_flags: int, path_ptr: int, path_len: int, stat_ptr: int
) -> None:
    """Store the attributes of what is at a path."""
    wasi = guest.wasi
    path = _path(guest.memory, path_ptr, path_len)
    stat = wasi.files.stat(wasi.directory(fd).node, path, follow=_follows(lookup_flags))
    guest.memory.write(stat_ptr, _packed_stat(stat))


@_answering
def path_filestat_set_times(
    guest: WasiGuest,
    fd: int,
    lookup_flags: int,
    path_ptr: int,
    path_len: int,
    atim_ns: int,
    mtim_ns: int,
    fst_flags: int,
) -> None:
    """Set the times of what is at a path."""
    wasi = guest.wasi
    path = _path(guest.memory, path_ptr, path_len)
    atim, mtim = wasi.times_to_set(atim_ns, mtim_ns, fst_flags)
    wasi.files.set_times(wasi.directory(fd).node, path, follow=_follows(lookup_flags), atim_ns=atim, mtim_ns=mtim)


@_answering
def path_link(
    guest: WasiGuest,
    old_fd: int,
    lookup_flags: int,
    old_ptr: int,
    old_len: int,
    new_fd: int,
    new_ptr: int,
    new_len: int,
) -> None:
    """Give a file a second name."""
    memory, wasi = guest.memory, guest.wasi
    wasi.files.link(
        wasi.directory(old_fd).node,
        _path(memory, old_ptr, old_len),
        wasi.directory(new_fd).node,
        _path(memory, new_ptr, new_len),
        follow=_follows(lookup_flags),
    )


@_answering
def path_rename(
    guest: WasiGuest, old_fd: int, old_ptr: int, old_len: int, new_fd: int, new_ptr: int, new_len: int
) -> None:
    """Move a name."""
    memory, wasi = guest.memory, guest.wasi
    wasi.files.rename(
        wasi.directory(old_fd).node,
        _path(memory, old_ptr, old_len),
        wasi.directory(new_fd).node,
        _path(memory, new_ptr, new_len),
    )


@_answering
def path_symlink(guest: WasiGuest, target_ptr: int, target_len: int, fd: int, path_ptr: int, path_len: int) -> None:
    """Create a symbolic link."""
    memory, wasi = guest.memory, guest.wasi
    target = _path(memory, target_ptr, target_len)
    wasi.files.symlink(target, wasi.directory(fd).node, _path(memory, path_ptr, path_len))


@_answering
def path_readlink(
    guest: WasiGuest, fd: int, path_ptr: int, path_len: int, buffer_ptr: int, buffer_len: int, n_used_ptr: int
) -> None:
    """Store the target of a symbolic link, cut to the buffer, and its length there."""
    wasi = guest.wasi
    target = wasi.files.readlink(wasi.directory(fd).node, _path(guest.memory, path_ptr, path_len))[:buffer_len]
    guest.memory.write(buffer_ptr, target)
    guest.memory.write_u32(n_used_ptr, len(target))


# Waiting


def poll_oneoff(
    guest: WasiGuest, subscriptions_ptr: int, events_ptr: int, n_subscriptions: int, n_events_ptr: int
) -> int | Awaitable[int]:
    """Wait until a subscription comes true and store the events; suspends unless one is true already."""
    if not 0 < n_subscriptions <= MAX_SUBSCRIPTIONS:
        return _INVAL
    try:
        packed = guest.memory.read(subscriptions_ptr, n_subscriptions * _SUBSCRIPTION.size)
        events = poll(guest.wasi, [_subscription(*fields) for fields in _SUBSCRIPTION.iter_unpack(packed)])
        if isinstance(events, list):
            return _store_events(guest, events, events_ptr, n_events_ptr)
        return _store_events_later(guest, events, events_ptr, n_events_ptr)
    except MemoryFaultError:
        return _FAULT
    except ErrnoError as error:
        return error.errno


def _subscription(
    userdata: int, tag: int, clock_or_fd: int, timeout_ns: int, precision_ns: int, flags: int
) -> Subscription:
    if tag == EventType.CLOCK:
        return ClockSubscription(userdata, clock_or_fd, timeout_ns, flags)
    if tag == EventType.FD_READ:
        return FdSubscription(userdata, EventType.FD_READ, clock_or_fd)
    if tag == EventType.FD_WRITE:
        return FdSubscription(userdata, EventType.FD_WRITE, clock_or_fd)
    raise ErrnoError(Errno.INVAL)


def _store_events(guest: WasiGuest, events: list[Event], events_ptr: int, n_events_ptr: int) -> int:
    packed = [
        _EVENT.pack(event.userdata, event.errno, event.kind, event.n_bytes, EventRwFlags.HANGUP if event.hangup else 0)
        for event in events
    ]
    guest.memory.write(events_ptr, b"".join(packed))
    guest.memory.write_u32(n_events_ptr, len(packed))
    return _SUCCESS


async def _store_events_later(
    guest: WasiGuest, events: Awaitable[list[Event]], events_ptr: int, n_events_ptr: int
) -> int:
    try:
        return _store_events(guest, await events, events_ptr, n_events_ptr)
    except MemoryFaultError:
        return _FAULT


def sched_yield(guest: WasiGuest) -> int:
    """Let others run: at the next epoch check, which is cheaper than suspending here."""
    guest.request_yield()
    return _SUCCESS


# The process


def proc_exit(guest: WasiGuest, code: int) -> NoReturn:
    """End the guest."""
    raise GuestExit(code)


def proc_raise(guest: WasiGuest, signal: int) -> int:
    """Answer NOTSUP: there are no signals."""
    return Errno.NOTSUP


# Sockets: no descriptor is one


@_answering
def sock_accept(guest: WasiGuest, fd: int, flags: int, opened_ptr: int) -> None:
    """Answer NOTSOCK."""
    _not_a_socket(guest, fd)


@_answering
def sock_recv(
    guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, ri_flags: int, n_read_ptr: int, ro_flags_ptr: int
) -> None:
    """Answer NOTSOCK."""
    _not_a_socket(guest, fd)


@_answering
def sock_send(guest: WasiGuest, fd: int, iovecs_ptr: int, n_iovecs: int, si_flags: int, n_written_ptr: int) -> None:
    """Answer NOTSOCK."""
    _not_a_socket(guest, fd)


@_answering
def sock_shutdown(guest: WasiGuest, fd: int, how: int) -> None:
    """Answer NOTSOCK."""
    _not_a_socket(guest, fd)


def _not_a_socket(guest: WasiGuest, fd: int) -> None:
    guest.wasi.descriptor(fd)
    raise ErrnoError(Errno.NOTSOCK)


_HANDLERS: Final[tuple[Callable[..., Any], ...]] = (
    args_get,
    args_sizes_get,
    environ_get,
    environ_sizes_get,
    clock_res_get,
    clock_time_get,
    fd_advise,
    fd_allocate,
    fd_close,
    fd_fdstat_get,
    fd_fdstat_set_flags,
    fd_fdstat_set_rights,
    fd_filestat_get,
    fd_filestat_set_size,
    fd_filestat_set_times,
    fd_pread,
    fd_prestat_get,
    fd_prestat_dir_name,
    fd_pwrite,
    fd_read,
    fd_readdir,
    fd_renumber,
    fd_seek,
    fd_sync,
    fd_tell,
    fd_write,
    path_create_directory,
    path_filestat_get,
    path_filestat_set_times,
    path_link,
    path_open,
    path_readlink,
    path_remove_directory,
    path_rename,
    path_symlink,
    path_unlink_file,
    poll_oneoff,
    proc_exit,
    proc_raise,
    sched_yield,
    random_get,
    sock_accept,
    sock_recv,
    sock_send,
    sock_shutdown,
)

_SUSPENDING: Final = frozenset({"fd_read", "poll_oneoff"})


def _functions() -> dict[str, HostFunction]:
    calls = {handler.__name__: handler for handler in _HANDLERS}
    calls["fd_datasync"] = fd_sync
    return {name: HostFunction(*SIGNATURES[name], call, name in _SUSPENDING) for name, call in calls.items()}


FUNCTIONS: Final[dict[str, HostFunction]] = _functions()
