"""Promises of the WASI host functions: right layouts, no guest value that raises, nothing large allocated for a lie."""

from __future__ import annotations

import asyncio
import gc
import inspect
import struct
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.clock import SystemClock
from faas.errors import OutputLimitError
from faas.testing.memory import BytesMemory
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.errno import Errno, EventType, FdFlags, FileType, OFlags, Rights
from faas.wasi.files import BundleTree
from faas.wasi.signatures import SIGNATURES
from faas.wasi.streams import BytesInput, CollectingOutput, EmptyInput
from faas.wasm.host import HostFunction
from faas.wasm.host.wasi import FUNCTIONS, MAX_IO_BYTES, MAX_IOVECS, MAX_RANDOM_BYTES, MAX_SUBSCRIPTIONS

MEMORY_BYTES = 1 << 16
ROOT, TMP = 3, 4
OUT = 256  # where results go; inputs go from INPUT on
INPUT = 1024
READ_WRITE = int(Rights.FD_READ | Rights.FD_WRITE)


class FakeGuest:
    """An instance without an engine."""

    def __init__(self, *, stdin: Any = None, env: Any = (b"K=V", b"LONG=\xc3\xa4"), size: int = MEMORY_BYTES) -> None:
        self.memory = BytesMemory(size)
        self.stdout = CollectingOutput()
        self.n_yields = 0
        self.wasi = WasiContext(
            (b"prog", b"--flag"),
            env,
            stdin or EmptyInput(),
            self.stdout,
            CollectingOutput(),
            BundleTree({"f": b"12345", "d/e": b""}, mtime_ns=9),
            1 << 16,
            SystemClock(),
        )

    def request_yield(self) -> None:
        self.n_yields += 1

    def call(self, name: str, *args: int) -> Any:
        return FUNCTIONS[name].call(self, *args)

    def ok(self, name: str, *args: int) -> None:
        assert Errno(self.call(name, *args)) == Errno.SUCCESS

    def u32(self, ptr: int = OUT) -> int:
        return self.memory.read_u32(ptr)

    def u64(self, ptr: int = OUT) -> int:
        return int.from_bytes(self.memory.read(ptr, 8), "little")

    def path(self, path: bytes, at: int = INPUT) -> tuple[int, int]:
        self.memory.write(at, path)
        return at, len(path)

    def iovecs(self, *buffers: tuple[int, int]) -> tuple[int, int]:
        for index, buffer in enumerate(buffers):
            self.memory.write(INPUT + 8 * index, struct.pack("<II", *buffer))
        return INPUT, len(buffers)

    def open(self, path: bytes, oflags: int = 0, *, fd: int = TMP, rights: int = READ_WRITE) -> int:
        self.ok("path_open", fd, 1, *self.path(path), oflags, rights, 0, 0, OUT)
        return self.u32()


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


# The table


def test_every_function_of_preview1_is_there_and_no_other() -> None:
    assert set(FUNCTIONS) == set(SIGNATURES)
    assert len(FUNCTIONS) == 46


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_function_has_the_signature_of_the_witx(name: str) -> None:
    function = FUNCTIONS[name]
    assert isinstance(function, HostFunction)
    assert (function.params, function.results) == SIGNATURES[name]
    assert len(inspect.signature(function.call).parameters) == 1 + len(function.params)


def test_only_what_can_wait_may_suspend() -> None:
    assert {name for name, function in FUNCTIONS.items() if function.may_suspend} == {"fd_read", "poll_oneoff"}


# No value of a guest raises

_LETTERS = {"i": 32, "I": 64}
_GARBAGE = {
    letter: st.one_of(
        st.sampled_from([0, 1, 2, 3, 4, OUT, INPUT, MEMORY_BYTES - 1, MEMORY_BYTES, 2 ** (bits - 1), 2**bits - 1]),
        st.integers(0, 2**bits - 1),
    )
    for letter, bits in _LETTERS.items()
}
_CALLS = st.sampled_from(sorted(SIGNATURES)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*(_GARBAGE[letter] for letter in SIGNATURES[name][0])))
)


def call_and_drop(guest: FakeGuest, name: str, args: tuple[int, ...]) -> Any:
    result = guest.call(name, *args)
    if inspect.iscoroutine(result):
        result.close()
        return 0
    return result


@settings(max_examples=300, deadline=None)
@given(st.lists(_CALLS, max_size=8), st.binary(max_size=64))
def test_garbage_is_answered_with_an_errno(calls: list[tuple[str, tuple[int, ...]]], content: bytes) -> None:
    guest = FakeGuest(stdin=BytesInput(b"x" * 100))
    guest.memory.write(0, content)
    guest.memory.write(INPUT, content)
    for name, args in calls:
        if name == "proc_exit":
            with pytest.raises(GuestExit):
                guest.call(name, *args)
        else:
            assert Errno(call_and_drop(guest, name, args)) in Errno


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) - {"proc_exit"}))
@pytest.mark.parametrize("value", [0, 2**32 - 1])
def test_the_same_value_everywhere_is_answered_with_an_errno(name: str, value: int) -> None:
    args = tuple(value if letter == "i" else 2**64 - 1 for letter in SIGNATURES[name][0])
    assert Errno(call_and_drop(FakeGuest(), name, args)) in Errno


BAD = MEMORY_BYTES - 2


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("args_sizes_get", (BAD, OUT)),
        ("args_get", (OUT, BAD)),
        ("environ_sizes_get", (OUT, BAD)),
        ("environ_get", (BAD, OUT)),
        ("clock_time_get", (0, 0, BAD)),
        ("clock_res_get", (0, BAD)),
        ("random_get", (BAD, 3)),
        ("random_get", (0, 2**32 - 1)),
        ("fd_write", (1, BAD, 1, OUT)),
        ("fd_write", (1, 0, 0, BAD)),
        ("fd_read", (0, BAD, 1, OUT)),
        ("fd_read", (0, 0, 0, BAD)),
        ("fd_fdstat_get", (1, BAD)),
        ("fd_filestat_get", (ROOT, BAD)),
        ("fd_prestat_get", (ROOT, BAD)),
        ("fd_prestat_dir_name", (ROOT, MEMORY_BYTES, 10)),
        ("fd_readdir", (ROOT, BAD, 100, 0, OUT)),
        ("path_open", (TMP, 0, BAD, 5, 0, 0, 0, 0, OUT)),
        ("path_filestat_get", (ROOT, 0, BAD, 5, OUT)),
        ("poll_oneoff", (BAD, OUT, 1, OUT)),
    ],
)
def test_a_pointer_outside_of_the_memory_is_a_fault(guest: FakeGuest, name: str, args: tuple[int, ...]) -> None:
    assert guest.call(name, *args) == Errno.FAULT


def test_open_with_a_bad_result_pointer_leaves_nothing_open(guest: FakeGuest) -> None:
    args = (TMP, 0, *guest.path(b"x"), OFlags.CREAT, READ_WRITE, 0, 0, BAD)
    assert guest.call("path_open", *args) == Errno.FAULT
    assert guest.wasi.files.tmp.entries == {}


# Arguments and environment


@pytest.mark.parametrize(("kind", "strings"), [("args", [b"prog", b"--flag"]), ("environ", [b"K=V", b"LONG=\xc3\xa4"])])
def test_strings_arrive_with_a_pointer_to_each(guest: FakeGuest, kind: str, strings: list[bytes]) -> None:
    guest.ok(f"{kind}_sizes_get", OUT, OUT + 4)
    assert (guest.u32(), guest.u32(OUT + 4)) == (2, sum(len(string) + 1 for string in strings))
    guest.ok(f"{kind}_get", OUT, INPUT)
    for index, string in enumerate(strings):
        assert guest.memory.read(guest.u32(OUT + 4 * index), len(string) + 1) == string + b"\0"


def test_an_empty_environment_has_sizes_zero() -> None:
    guest = FakeGuest(env=())
    guest.ok("environ_sizes_get", OUT, OUT + 4)
    assert (guest.u32(), guest.u32(OUT + 4)) == (0, 0)
    guest.ok("environ_get", OUT, INPUT)


# Clocks and randomness


@pytest.mark.parametrize("clock_id", [0, 1])
def test_clocks_move(guest: FakeGuest, clock_id: int) -> None:
    guest.ok("clock_time_get", clock_id, 0, OUT)
    guest.ok("clock_time_get", clock_id, 0, OUT + 8)
    assert 0 < guest.u64() <= guest.u64(OUT + 8)
    guest.ok("clock_res_get", clock_id, OUT)
    assert guest.u64() > 0


def test_cpu_clocks_are_invalid(guest: FakeGuest) -> None:
    assert guest.call("clock_time_get", 2, 0, OUT) == Errno.INVAL
    assert guest.call("clock_res_get", 3, OUT) == Errno.INVAL


def test_random_fills_the_buffer_and_no_more() -> None:
    guest = FakeGuest(size=300_000)
    guest.ok("random_get", 1000, 200_000)
    filled = guest.memory.read(1000, 200_000)
    assert len(set(filled)) == 256
    assert filled[:65536] != filled[65536:131072]
    assert guest.memory.read(0, 1000) == bytes(1000)
    assert guest.memory.read(201_000, 99_000) == bytes(99_000)


def test_random_of_too_much_is_refused() -> None:
    guest = FakeGuest(size=MAX_RANDOM_BYTES + 1)
    assert guest.call("random_get", 0, MAX_RANDOM_BYTES + 1) == Errno.INVAL


# Reading and writing


def test_write_gathers(guest: FakeGuest) -> None:
    guest.memory.write(0, b"hello world")
    guest.ok("fd_write", 1, *guest.iovecs((0, 5), (0, 0), (5, 6)), OUT)
    assert guest.stdout.getvalue() == b"hello world"
    assert guest.u32() == 11


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=12))
def test_write_gathers_any_buffers_in_order(buffers: list[tuple[int, int]]) -> None:
    guest = FakeGuest()
    guest.memory.write(0, bytes(range(256)))
    content = b"".join(guest.memory.read(*buffer) for buffer in buffers)
    guest.ok("fd_write", 1, *guest.iovecs(*buffers), OUT)
    assert guest.stdout.getvalue() == content
    assert guest.u32() == len(content)


@given(st.lists(st.integers(0, 60), max_size=12), st.binary(max_size=200))
def test_read_scatters_into_any_buffers_in_order(lengths: list[int], content: bytes) -> None:
    guest = FakeGuest(stdin=BytesInput(content))
    buffers = [(4096 + 100 * index, length) for index, length in enumerate(lengths)]
    guest.ok("fd_read", 0, *guest.iovecs(*buffers), OUT)
    expected = content[: sum(lengths)]
    assert guest.u32() == len(expected)
    assert b"".join(guest.memory.read(*buffer) for buffer in buffers).startswith(expected)


@pytest.mark.parametrize("n_iovecs", [1, 3, MAX_IOVECS])
def test_one_write_takes_a_bounded_number_of_bytes(n_iovecs: int) -> None:
    guest = FakeGuest(size=2 * MAX_IO_BYTES)
    guest.ok("fd_write", 1, *guest.iovecs(*[(0, 2 * MAX_IO_BYTES)] * n_iovecs), OUT)
    assert guest.u32() == len(guest.stdout.getvalue()) == MAX_IO_BYTES


@pytest.mark.parametrize("name", ["fd_write", "fd_read"])
def test_too_many_iovecs_are_invalid(guest: FakeGuest, name: str) -> None:
    assert guest.call(name, 1, 0, MAX_IOVECS + 1, OUT) == Errno.INVAL


def test_a_write_that_fills_stdout_asks_the_guest_to_yield(guest: FakeGuest) -> None:
    class Full(CollectingOutput):
        full = True

    guest.wasi = WasiContext((), (), EmptyInput(), Full(), CollectingOutput(), None, 0, SystemClock())
    guest.ok("fd_write", 2, *guest.iovecs((0, 1)), OUT)
    assert guest.n_yields == 0
    guest.ok("fd_write", 1, *guest.iovecs((0, 1)), OUT)
    assert guest.n_yields == 1


def test_an_output_limit_goes_through(guest: FakeGuest) -> None:
    class Limited(CollectingOutput):
        def write(self, data: bytes) -> int:
            raise OutputLimitError("too much")

    guest.wasi = WasiContext((), (), EmptyInput(), Limited(), CollectingOutput(), None, 0, SystemClock())
    with pytest.raises(OutputLimitError):
        guest.call("fd_write", 1, *guest.iovecs((0, 1)), OUT)


class LateInput:
    """An input whose bytes come only after somebody waited."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def read_nowait(self, n: int) -> bytes | None:
        return None if self.content is None else self.content[:n]

    async def wait_readable(self) -> None:
        await asyncio.sleep(0)
        self.content = b"late"


async def test_reading_stdin_waits_for_bytes() -> None:
    guest = FakeGuest(stdin=LateInput())
    answer = guest.call("fd_read", 0, *guest.iovecs((0, 3)), OUT)
    assert inspect.iscoroutine(answer)
    assert await answer == Errno.SUCCESS
    assert guest.memory.read(0, guest.u32()) == b"lat"


async def test_a_bad_buffer_is_a_fault_after_the_wait_too() -> None:
    guest = FakeGuest(stdin=LateInput())
    assert await guest.call("fd_read", 0, *guest.iovecs((BAD, 4)), OUT) == Errno.FAULT


def test_reading_stdin_without_blocking_says_again() -> None:
    guest = FakeGuest(stdin=LateInput())
    guest.ok("fd_fdstat_set_flags", 0, FdFlags.NONBLOCK)
    assert guest.call("fd_read", 0, *guest.iovecs((0, 3)), OUT) == Errno.AGAIN


def test_reading_nothing_does_not_wait() -> None:
    guest = FakeGuest(stdin=LateInput())
    guest.ok("fd_read", 0, *guest.iovecs((0, 0)), OUT)
    assert guest.u32() == 0


def test_pread_and_pwrite_do_not_move(guest: FakeGuest) -> None:
    fd = guest.open(b"x", OFlags.CREAT)
    guest.memory.write(0, b"hello")
    guest.ok("fd_pwrite", fd, *guest.iovecs((0, 5)), 2, OUT)
    guest.ok("fd_pread", fd, *guest.iovecs((100, 50)), 1, OUT)
    assert guest.memory.read(100, guest.u32()) == b"\0hello"
    guest.ok("fd_tell", fd, OUT)
    assert guest.u64() == 0


def test_seek_takes_a_signed_offset(guest: FakeGuest) -> None:
    fd = guest.open(b"f", fd=ROOT, rights=Rights.FD_READ)
    guest.ok("fd_seek", fd, 2**64 - 2, 2, OUT)
    assert guest.u64() == 3
    assert guest.call("fd_seek", fd, 2**64 - 4, 1, OUT) == Errno.INVAL


# Layouts


def test_fdstat_of_stdout_does_not_look_like_a_terminal(guest: FakeGuest) -> None:
    guest.ok("fd_fdstat_get", 1, OUT)
    filetype, flags, rights, inheriting = struct.unpack("<BxHxxxxQQ", guest.memory.read(OUT, 24))
    assert (filetype, flags, inheriting) == (FileType.UNKNOWN, 0, 0)
    assert rights & Rights.FD_WRITE
    assert not rights & Rights.FD_READ


def test_fdstat_of_a_preopen_lets_its_files_be_written(guest: FakeGuest) -> None:
    guest.ok("fd_fdstat_get", TMP, OUT)
    filetype, _, rights, inheriting = struct.unpack("<BxHxxxxQQ", guest.memory.read(OUT, 24))
    assert filetype == FileType.DIRECTORY
    assert rights & Rights.PATH_OPEN
    assert inheriting & READ_WRITE == READ_WRITE


def test_filestat_has_its_64_bytes(guest: FakeGuest) -> None:
    guest.memory.write(OUT, b"\xee" * 72)
    guest.ok("path_filestat_get", ROOT, 1, *guest.path(b"f"), OUT)
    dev, ino, filetype, nlink, size, *times = struct.unpack("<QQB7xQQQQQ", guest.memory.read(OUT, 64))
    assert (dev, filetype, nlink, size, times) == (1, FileType.REGULAR_FILE, 1, 5, [9, 9, 9])
    assert ino > 0
    assert guest.memory.read(OUT + 64, 8) == b"\xee" * 8


def test_prestat_names_the_preopen(guest: FakeGuest) -> None:
    guest.ok("fd_prestat_get", TMP, OUT)
    assert struct.unpack("<BxxxI", guest.memory.read(OUT, 8)) == (0, 4)
    guest.ok("fd_prestat_dir_name", TMP, INPUT, 4)
    assert guest.memory.read(INPUT, 5) == b"/tmp\0"
    assert guest.call("fd_prestat_dir_name", TMP, OUT, 3) == Errno.NAMETOOLONG


def dirents(packed: bytes) -> list[tuple[int, bytes, int]]:
    entries = []
    while len(packed) >= 24:
        cookie, _ino, length, filetype = struct.unpack_from("<QQIB3x", packed)
        if len(packed) < 24 + length:
            break
        entries.append((cookie, packed[24 : 24 + length], filetype))
        packed = packed[24 + length :]
    return entries


def test_readdir_lists_with_cookies(guest: FakeGuest) -> None:
    guest.ok("fd_readdir", ROOT, 4096, 4096, 0, OUT)
    assert dirents(guest.memory.read(4096, guest.u32())) == [
        (1, b".", FileType.DIRECTORY),
        (2, b"..", FileType.DIRECTORY),
        (3, b"d", FileType.DIRECTORY),
        (4, b"f", FileType.REGULAR_FILE),
        (5, b"tmp", FileType.DIRECTORY),
    ]


@given(st.integers(30, 200), st.integers(0, 12))
@settings(deadline=None)
def test_readdir_through_any_buffer_lists_everything_once(buffer_len: int, n_files: int) -> None:
    guest = FakeGuest()
    for number in range(n_files):
        guest.open(b"%d" % number, OFlags.CREAT)
    names: list[bytes] = []
    cookie = 0
    while True:
        guest.ok("fd_readdir", TMP, 4096, buffer_len, cookie, OUT)
        entries = dirents(guest.memory.read(4096, guest.u32()))
        names += [name for _, name, _ in entries]
        if guest.u32() < buffer_len:
            break
        cookie = entries[-1][0]
    assert names == [b".", b"..", *(b"%d" % number for number in range(n_files))]


@pytest.mark.parametrize("cookie", [6, 2**63, 2**64 - 1])
def test_readdir_past_the_end_is_empty(guest: FakeGuest, cookie: int) -> None:
    guest.ok("fd_readdir", ROOT, 4096, 100, cookie, OUT)
    assert guest.u32() == 0


# Paths


def test_the_path_calls_work_together(guest: FakeGuest) -> None:
    guest.ok("path_create_directory", TMP, *guest.path(b"d"))
    guest.ok("fd_close", guest.open(b"d/x", OFlags.CREAT))
    guest.ok("path_rename", TMP, *guest.path(b"d/x"), TMP, *guest.path(b"y", 2048))
    guest.ok("path_link", TMP, 0, *guest.path(b"y"), TMP, *guest.path(b"z", 2048))
    guest.ok("path_symlink", *guest.path(b"target"), TMP, *guest.path(b"link", 2048))
    guest.ok("path_readlink", TMP, *guest.path(b"link"), 4096, 3, OUT)
    assert guest.memory.read(4096, guest.u32() + 1) == b"tar\0"
    guest.ok("path_filestat_set_times", TMP, 0, *guest.path(b"y"), 5, 6, 5)
    guest.ok("path_filestat_get", TMP, 0, *guest.path(b"z"), OUT)
    assert (guest.u64(OUT + 24), guest.u64(OUT + 40), guest.u64(OUT + 48)) == (2, 5, 6)
    for name in (b"y", b"z", b"link"):
        guest.ok("path_unlink_file", TMP, *guest.path(name))
    guest.ok("path_remove_directory", TMP, *guest.path(b"d"))
    assert guest.wasi.files.volume.used == 0


def test_the_file_calls_work_together(guest: FakeGuest) -> None:
    fd = guest.open(b"x", OFlags.CREAT)
    guest.ok("fd_allocate", fd, 0, 100)
    guest.ok("fd_filestat_set_size", fd, 50)
    guest.ok("fd_filestat_set_times", fd, 7, 8, 5)
    guest.ok("fd_advise", fd, 0, 0, 5)
    guest.ok("fd_sync", fd)
    guest.ok("fd_datasync", fd)
    guest.ok("fd_fdstat_set_rights", fd, Rights.FD_READ, 0)
    guest.ok("fd_filestat_get", fd, OUT)
    assert (guest.u64(OUT + 32), guest.u64(OUT + 40), guest.u64(OUT + 48)) == (50, 7, 8)
    guest.ok("fd_renumber", fd, 2)
    guest.ok("fd_close", 2)
    assert guest.call("fd_close", 2) == Errno.BADF


@pytest.mark.parametrize(("path", "errno"), [(b"../etc/passwd", 76), (b"/etc/passwd", 76), (b"", 44), (b"\xff", 25)])
def test_paths_out_of_the_sandbox_are_refused(guest: FakeGuest, path: bytes, errno: int) -> None:
    assert guest.call("path_open", ROOT, 1, *guest.path(path), 0, 0, 0, 0, OUT) == errno


def test_a_path_longer_than_any_is_not_even_read(guest: FakeGuest) -> None:
    assert guest.call("path_unlink_file", TMP, 0, 2**32 - 1) == Errno.NAMETOOLONG


def test_unknown_lookup_flags_are_invalid(guest: FakeGuest) -> None:
    assert guest.call("path_filestat_get", ROOT, 2, *guest.path(b"f"), OUT) == Errno.INVAL


# Waiting


def clock_subscription(userdata: int, timeout_ns: int) -> bytes:
    return struct.pack("<QB7xI4xQQH6x", userdata, EventType.CLOCK, 1, timeout_ns, 0, 0)


def read_subscription(userdata: int, fd: int) -> bytes:
    return struct.pack("<QB7xI28x", userdata, EventType.FD_READ, fd)


def events(guest: FakeGuest) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<QHB5xQH6x", guest.memory.read(4096, 32 * guest.u32())))


@pytest.mark.parametrize("n_subscriptions", [0, MAX_SUBSCRIPTIONS + 1, 2**32 - 1])
def test_polling_nothing_or_too_much_is_invalid(guest: FakeGuest, n_subscriptions: int) -> None:
    assert guest.call("poll_oneoff", 0, 4096, n_subscriptions, OUT) == Errno.INVAL


def test_polling_something_unknown_is_invalid(guest: FakeGuest) -> None:
    guest.memory.write(INPUT, b"\x03" * 48)
    assert guest.call("poll_oneoff", INPUT, 4096, 1, OUT) == Errno.INVAL


def test_events_have_their_32_bytes() -> None:
    guest = FakeGuest(stdin=BytesInput(b"abc"))
    guest.memory.write(INPUT, clock_subscription(1, 0) + read_subscription(2, 0) + read_subscription(3, 99))
    guest.ok("poll_oneoff", INPUT, 4096, 3, OUT)
    assert events(guest) == [(2, 0, 1, 3, 0), (3, Errno.BADF, 1, 0, 0), (1, 0, 0, 0, 0)]


def test_stdin_at_its_end_hangs_up(guest: FakeGuest) -> None:
    guest.memory.write(INPUT, read_subscription(2**64 - 1, 0))
    guest.ok("poll_oneoff", INPUT, 4096, 1, OUT)
    assert events(guest) == [(2**64 - 1, 0, 1, 0, 1)]


def test_a_wait_that_is_dropped_before_it_began_leaves_nothing_behind(guest: FakeGuest) -> None:
    """A coroutine that nobody starts would be warned of, which is an error here."""
    guest.memory.write(INPUT, clock_subscription(7, 1_000_000))
    answer = guest.call("poll_oneoff", INPUT, 4096, 1, OUT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer.close()
        del answer
        gc.collect()
    assert caught == []


async def test_sleeping_suspends(guest: FakeGuest) -> None:
    guest.memory.write(INPUT, clock_subscription(7, 1_000_000))
    answer = guest.call("poll_oneoff", INPUT, 4096, 1, OUT)
    assert inspect.iscoroutine(answer)
    assert await answer == Errno.SUCCESS
    assert events(guest) == [(7, 0, 0, 0, 0)]


async def test_a_bad_event_pointer_is_a_fault_after_the_wait_too(guest: FakeGuest) -> None:
    guest.memory.write(INPUT, clock_subscription(7, 1000))
    assert await guest.call("poll_oneoff", INPUT, BAD, 1, OUT) == Errno.FAULT


@settings(deadline=None)
@given(st.binary(max_size=480).filter(bool))
def test_any_subscriptions_are_answered_or_waited_for(content: bytes) -> None:
    guest = FakeGuest()
    guest.memory.write(INPUT, content)
    n_subscriptions = -(-len(content) // 48)
    answer = call_and_drop(guest, "poll_oneoff", (INPUT, 4096, n_subscriptions, OUT))
    assert answer in (Errno.SUCCESS, Errno.INVAL)
    assert guest.u32() <= n_subscriptions


def test_yielding_asks_for_a_yield(guest: FakeGuest) -> None:
    guest.ok("sched_yield")
    assert guest.n_yields == 1


# The process and sockets


@pytest.mark.parametrize("code", [0, 3, 2**32 - 1])
def test_exit_ends_the_guest(guest: FakeGuest, code: int) -> None:
    with pytest.raises(GuestExit) as caught:
        guest.call("proc_exit", code)
    assert caught.value.code == code


def test_signals_are_not_supported(guest: FakeGuest) -> None:
    assert guest.call("proc_raise", 9) == Errno.NOTSUP


@pytest.mark.parametrize("name", ["sock_accept", "sock_recv", "sock_send", "sock_shutdown"])
def test_no_descriptor_is_a_socket(guest: FakeGuest, name: str) -> None:
    rest = (0,) * (len(SIGNATURES[name][0]) - 1)
    assert guest.call(name, 0, *rest) == Errno.NOTSOCK
    assert guest.call(name, 99, *rest) == Errno.BADF
