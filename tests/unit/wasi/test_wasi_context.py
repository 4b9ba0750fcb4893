"""Promises of an instance's WASI state: descriptors, rights, arguments and clocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from faas.errors import OutputLimitError
from faas.wasi.context import GuestExit, WasiContext, string_block
from faas.wasi.descriptors import DirectoryDescriptor, FileDescriptor
from faas.wasi.errno import Errno, ErrnoError, FdFlags, FileType, FstFlags, OFlags, Rights, Whence
from faas.wasi.files import ENTRY_COST, INODE_COST, BundleTree, TmpFile
from faas.wasi.streams import BytesInput, CollectingOutput, EmptyInput

READ_WRITE = int(Rights.FD_READ | Rights.FD_WRITE)
TMP = 4


class FakeClock:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 1.5

    def time_ns(self) -> int:
        return 42


class FullOutput(CollectingOutput):
    full = True


def make_context(env: Any = (), stdin: Any = None, **kwargs: Any) -> WasiContext:
    options: dict[str, Any] = {"bundle": BundleTree({"f": b"12345"}), "tmp_bytes": 1 << 20, "clock": FakeClock()}
    options.update(kwargs)
    return WasiContext((b"prog",), env, stdin or EmptyInput(), CollectingOutput(), CollectingOutput(), **options)


@pytest.fixture
def wasi() -> WasiContext:
    return make_context()


def errno_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Errno:
    with pytest.raises(ErrnoError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def open_at(
    wasi: WasiContext, path: bytes, oflags: int = 0, *, fd: int = TMP, rights: int = READ_WRITE, fd_flags: int = 0
) -> int:
    return wasi.open(fd, path, follow=True, oflags=oflags, rights=rights, inheriting=0, fd_flags=fd_flags)


def create(wasi: WasiContext, path: bytes, content: bytes = b"", fd_flags: int = 0) -> int:
    fd = open_at(wasi, path, OFlags.CREAT, fd_flags=fd_flags)
    wasi.descriptor(fd).write(content)
    wasi.descriptor(fd).seek(0, Whence.SET)
    return fd


def test_strings_are_laid_out_with_nuls() -> None:
    assert string_block([b"a", b"bcd", b""]) == (3, b"a\0bcd\0\0", (0, 2, 6))
    assert string_block([]) == (0, b"", ())


def test_the_environment_is_not_made_before_the_guest_asks() -> None:
    calls = []
    wasi = make_context(env=lambda: calls.append(1) or [b"K=V"])
    assert calls == []
    assert wasi.environ() is wasi.environ()
    assert wasi.environ().content == b"K=V\0"
    assert calls == [1]


def test_exit_carries_its_code() -> None:
    assert GuestExit(3).code == 3


# Clocks


def test_clocks_come_from_the_clock_passed_in(wasi: WasiContext) -> None:
    assert wasi.now_ns(0) == 42
    assert wasi.now_ns(1) == 1_500_000_000


@pytest.mark.parametrize("clock_id", [2, 3, 4, 2**32 - 1])
def test_clocks_that_are_not_there_are_invalid(wasi: WasiContext, clock_id: int) -> None:
    assert errno_of(wasi.now_ns, clock_id) == Errno.INVAL
    assert errno_of(wasi.resolution_ns, clock_id) == Errno.INVAL


def test_contradictory_time_flags_are_invalid(wasi: WasiContext) -> None:
    assert errno_of(wasi.times_to_set, 1, 2, FstFlags.ATIM | FstFlags.ATIM_NOW) == Errno.INVAL
    assert errno_of(wasi.times_to_set, 1, 2, 16) == Errno.INVAL
    assert wasi.times_to_set(1, 2, FstFlags.ATIM | FstFlags.MTIM_NOW) == (1, 42)


# Streams


def test_stdio_is_no_terminal(wasi: WasiContext) -> None:
    assert [wasi.descriptor(fd).filetype for fd in range(3)] == [FileType.UNKNOWN] * 3


def test_streams_only_go_their_own_way(wasi: WasiContext) -> None:
    assert errno_of(wasi.descriptor(0).write, b"x") == Errno.BADF
    assert errno_of(wasi.descriptor(1).read, 1) == Errno.BADF
    assert errno_of(wasi.descriptor(1).seek, 0, Whence.CUR) == Errno.SPIPE
    assert errno_of(wasi.descriptor(0).pread, 1, 0) == Errno.SPIPE


def test_an_error_of_the_stream_is_not_the_guests_to_see() -> None:
    class Limited(CollectingOutput):
        def write(self, data: bytes) -> int:
            raise OutputLimitError("too much")

    wasi = WasiContext((), (), EmptyInput(), Limited(), CollectingOutput(), None, 0, FakeClock())
    with pytest.raises(OutputLimitError):
        wasi.descriptor(1).write(b"x")


def test_a_full_stream_shows_through_its_descriptor() -> None:
    wasi = WasiContext((), (), EmptyInput(), FullOutput(), CollectingOutput(), None, 0, FakeClock())
    assert wasi.descriptor(1).full
    assert not wasi.descriptor(2).full


def test_looking_whether_stdin_is_readable_loses_nothing() -> None:
    stdin = make_context(stdin=BytesInput(b"hello")).descriptor(0)
    assert stdin.readable_bytes() == 5
    assert [stdin.read(2), stdin.read(9), stdin.read(9)] == [b"he", b"llo", b""]


# The table


def test_preopens_are_root_and_tmp(wasi: WasiContext) -> None:
    assert (wasi.preopen(3), wasi.preopen(4)) == (b"/", b"/tmp")


@pytest.mark.parametrize("fd", [0, 5, 2**32 - 1])
def test_everything_else_is_no_preopen(wasi: WasiContext, fd: int) -> None:
    assert errno_of(wasi.preopen, fd) == Errno.BADF


def test_a_function_without_a_bundle_has_both_preopens() -> None:
    wasi = make_context(bundle=None)
    assert wasi.preopen(3) == b"/"
    assert wasi.directory(3).entry(2)[0] == b"tmp"


def test_open_gives_the_lowest_free_number(wasi: WasiContext) -> None:
    assert [create(wasi, b"a"), create(wasi, b"b")] == [5, 6]
    wasi.close(5)
    wasi.close(0)
    assert [create(wasi, b"c"), create(wasi, b"d"), create(wasi, b"e")] == [0, 5, 7]


def test_a_closed_descriptor_is_bad(wasi: WasiContext) -> None:
    wasi.close(1)
    assert errno_of(wasi.descriptor, 1) == Errno.BADF
    assert errno_of(wasi.close, 1) == Errno.BADF


def test_closed_preopens_stay_closed(wasi: WasiContext) -> None:
    wasi.close(3)
    assert errno_of(wasi.preopen, 3) == Errno.BADF


def test_open_stops_at_the_limit() -> None:
    wasi = make_context(max_open_files=7)
    create(wasi, b"a")
    create(wasi, b"b")
    assert errno_of(create, wasi, b"c") == Errno.MFILE
    wasi.close(5)
    create(wasi, b"c")


def test_open_at_the_limit_makes_no_file() -> None:
    wasi = make_context(max_open_files=5)
    assert errno_of(create, wasi, b"a") == Errno.MFILE
    assert wasi.files.tmp.entries == {}


def test_renumber_moves_and_closes_what_was_there(wasi: WasiContext) -> None:
    one, two = create(wasi, b"one", b"1"), create(wasi, b"two", b"2")
    wasi.renumber(one, two)
    assert wasi.descriptor(two).read(1) == b"1"
    assert errno_of(wasi.descriptor, one) == Errno.BADF


def test_renumber_needs_two_open_descriptors(wasi: WasiContext) -> None:
    assert errno_of(wasi.renumber, 1, 99) == Errno.BADF
    assert errno_of(wasi.renumber, 99, 1) == Errno.BADF
    wasi.renumber(1, 1)
    wasi.descriptor(1)


def test_open_under_a_file_is_not_a_directory(wasi: WasiContext) -> None:
    assert errno_of(open_at, wasi, b"x", fd=1) == Errno.NOTDIR


def test_unknown_open_flags_are_invalid(wasi: WasiContext) -> None:
    assert errno_of(open_at, wasi, b"x", 16) == Errno.INVAL
    assert errno_of(open_at, wasi, b"x", fd_flags=32) == Errno.INVAL


# Files


def test_what_is_written_is_read_at_its_position(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x", b"hello"))
    assert file.read(2) == b"he"
    assert file.pread(3, 1) == b"ell"
    assert file.seek(-1, Whence.END) == 4
    assert file.read(9) == b"o"
    assert file.read(9) == b""


def test_append_writes_at_the_end_wherever_the_position_is(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x", b"ab", fd_flags=FdFlags.APPEND))
    file.write(b"c")
    assert file.pread(9, 0) == b"abc"


def test_seek_before_the_start_or_from_nowhere_is_invalid(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x"))
    assert errno_of(file.seek, -1, Whence.CUR) == Errno.INVAL
    assert errno_of(file.seek, 0, 3) == Errno.INVAL
    assert file.seek(2**63 - 1, Whence.SET) == 2**63 - 1
    assert errno_of(file.seek, 1, Whence.CUR) == Errno.INVAL


def test_a_file_opened_one_way_refuses_the_other(wasi: WasiContext) -> None:
    create(wasi, b"x", b"1")
    reader = wasi.descriptor(open_at(wasi, b"x", rights=Rights.FD_READ))
    writer = wasi.descriptor(open_at(wasi, b"x", rights=Rights.FD_WRITE))
    assert errno_of(reader.write, b"x") == Errno.BADF
    assert errno_of(reader.set_size, 0) == Errno.BADF
    assert errno_of(writer.read, 1) == Errno.BADF


def test_a_bundle_file_opened_to_read_can_not_be_changed(wasi: WasiContext) -> None:
    file = wasi.descriptor(open_at(wasi, b"f", fd=3, rights=Rights.FD_READ))
    assert file.read(9) == b"12345"
    for call in (lambda: file.write(b"x"), lambda: file.allocate(0, 9), lambda: file.set_size(0)):
        assert errno_of(call) == Errno.BADF
    assert errno_of(file.set_times, 1, 1) == Errno.ROFS


def test_allocate_extends_and_never_cuts(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x", b"abc"))
    file.allocate(0, 1)
    assert file.stat().size == 3
    file.allocate(2, 3)
    assert file.pread(9, 0) == b"abc\0\0"
    assert errno_of(file.allocate, 0, 0) == Errno.INVAL
    assert errno_of(file.allocate, 0, 2**63) == Errno.FBIG


def test_a_file_lives_until_its_last_descriptor_is_closed(wasi: WasiContext) -> None:
    fd = create(wasi, b"x", b"abc")
    wasi.files.unlink(wasi.files.tmp, b"x")
    assert wasi.descriptor(fd).read(9) == b"abc"
    wasi.close(fd)
    assert wasi.files.volume.used == 0


def test_rights_can_be_given_up_and_not_taken(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x"))
    assert isinstance(file, FileDescriptor)
    file.set_rights(int(Rights.FD_READ), 0)
    assert errno_of(file.write, b"x") == Errno.BADF
    assert errno_of(file.set_rights, READ_WRITE, 0) == Errno.NOTCAPABLE


def test_flags_can_be_set_and_unknown_ones_not(wasi: WasiContext) -> None:
    file = wasi.descriptor(create(wasi, b"x", b"ab"))
    file.set_flags(int(FdFlags.APPEND))
    file.write(b"c")
    assert file.stat().size == 3
    assert errno_of(file.set_flags, 32) == Errno.INVAL


# Listings


def listed(directory: DirectoryDescriptor, cookie: int = 0) -> list[bytes]:
    names = []
    while True:
        try:
            entry = directory.entry(cookie)
        except IndexError:
            return names
        cookie += 1
        if entry is not None:
            names.append(entry[0])


def test_a_listing_begins_with_the_dots(wasi: WasiContext) -> None:
    assert listed(wasi.directory(3)) == [b".", b"..", b"f", b"tmp"]


def test_a_guest_that_removes_what_it_lists_sees_every_entry_once(wasi: WasiContext) -> None:
    names = [b"%d" % number for number in range(20)]
    for name in names:
        wasi.close(create(wasi, name))
    directory = wasi.directory(TMP)
    directory.entry(0)
    for cookie in range(2, 22):
        name = directory.entry(cookie)[0]
        wasi.files.unlink(wasi.files.tmp, name)
    assert wasi.files.tmp.entries == {}


def test_an_entry_that_is_gone_is_left_out(wasi: WasiContext) -> None:
    for name in (b"a", b"b"):
        create(wasi, name)
    directory = wasi.directory(TMP)
    directory.entry(0)
    wasi.files.unlink(wasi.files.tmp, b"a")
    assert listed(directory, 1) == [b"..", b"b"]


def test_cookie_zero_begins_anew(wasi: WasiContext) -> None:
    directory = wasi.directory(TMP)
    assert listed(directory) == [b".", b".."]
    create(wasi, b"a")
    assert listed(directory) == [b".", b"..", b"a"]


def test_a_listing_is_paid_for_and_given_back() -> None:
    wasi = make_context(tmp_bytes=INODE_COST + ENTRY_COST + 1 + 8)
    create(wasi, b"a")
    used = wasi.files.volume.used
    fd = open_at(wasi, b".", rights=0)
    assert listed(wasi.directory(fd)) == [b".", b"..", b"a"]
    assert errno_of(wasi.directory(TMP).entry, 0) == Errno.NOMEM
    wasi.close(fd)
    assert wasi.files.volume.used == used


def test_a_directory_is_not_read_like_a_file(wasi: WasiContext) -> None:
    directory = wasi.directory(TMP)
    assert errno_of(directory.read, 1) == Errno.ISDIR
    assert errno_of(directory.write, b"x") == Errno.BADF
    assert errno_of(directory.seek, 0, 0) == Errno.BADF


def test_files_are_counted_open_once_per_descriptor(wasi: WasiContext) -> None:
    fd = create(wasi, b"x")
    open_at(wasi, b"x")
    wasi.close(fd)
    node = wasi.files.tmp.entries[b"x"]
    assert isinstance(node, TmpFile)
    assert node.opens == 1
