"""Promises of wasi:filesystem: what the WIT documents of each function, and nothing outside of the virtual files."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from faas.errors import GuestTrapError
from faas.wasi import wit
from faas.wasi.context import WasiContext
from faas.wasi.errno import Errno
from faas.wasi.files import BundleTree
from faas.wasi.p2 import io
from faas.wasi.p2.descriptors import Descriptor, DirectoryEntryStream, error_code
from faas.wasi.p2.filesystem import FUNCTIONS, MAX_READ_BYTES, MAX_WRITE_BYTES
from faas.wasi.p2.resources import WitError
from faas.wasi.streams import DiscardedOutput, EmptyInput

TYPES = "wasi:filesystem/types"
FOLLOW = frozenset({"symlink-follow"})
NONE: frozenset[str] = frozenset()
READ, WRITE, BOTH = frozenset({"read"}), frozenset({"write"}), frozenset({"read", "write"})
CREATE = frozenset({"create"})
BUNDLE_TIME_NS = 7_000_000_009
ROOM = 1 << 20


class HandClock:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def monotonic(self) -> float:
        return 1.0

    def time_ns(self) -> int:
        return self.now_ns


class FakeGuest:
    """An instance without an engine, with a small bundle and an empty /tmp."""

    def __init__(self, tmp_bytes: int = ROOM) -> None:
        self.clock = HandClock()
        bundle = BundleTree({"index.html": b"<h1>hello", "a/b/c.txt": b"deep", "a/x": b""}, mtime_ns=BUNDLE_TIME_NS)
        self.wasi = WasiContext(
            (), (), EmptyInput(), DiscardedOutput(), DiscardedOutput(), bundle, tmp_bytes, self.clock
        )
        directories = self.call("get-directories", interface="wasi:filesystem/preopens")
        self.paths = [path for _, path in directories]
        self.root, self.tmp = (descriptor for descriptor, _ in directories)

    def call(self, name: str, *args: Any, interface: str = TYPES) -> Any:
        result = FUNCTIONS[interface][name].call(self, *args)
        assert not isinstance(result, Awaitable)
        return result

    def do(self, name: str, descriptor: Descriptor, *args: Any) -> Any:
        """Call a method of a descriptor."""
        return self.call(f"[method]descriptor.{name}", descriptor, *args)

    def code(self, name: str, descriptor: Descriptor, *args: Any) -> str:
        """Return the error-code that a method of a descriptor answers."""
        with pytest.raises(WitError) as caught:
            self.do(name, descriptor, *args)
        return caught.value.value

    def open(self, path: str, flags: frozenset[str] = READ, oflags: frozenset[str] = NONE) -> Descriptor:
        return self.do("open-at", self.root, FOLLOW, path, oflags, flags)

    def put(self, name: str, content: bytes = b"") -> Descriptor:
        """Create a file in /tmp and return its descriptor, for reading and writing."""
        file = self.do("open-at", self.tmp, FOLLOW, name, CREATE, BOTH)
        assert self.do("write", file, content, 0) == len(content)
        return file

    def content(self, path: str) -> bytes:
        """Return what is in a small file."""
        file = self.open(path)
        content, _ = self.do("read", file, ROOM, 0)
        file.drop()
        return content

    def listing(self, directory: Descriptor) -> set[tuple[str, str]]:
        stream = self.do("read-directory", directory)
        entries = list(self.entries(stream))
        stream.drop()
        assert len(entries) == len(set(entries))
        return set(entries)

    def entries(self, stream: DirectoryEntryStream) -> Iterator[tuple[str, str]]:
        while (entry := self.call("[method]directory-entry-stream.read-directory-entry", stream)) is not None:
            yield entry

    def stream(self, name: str, *args: Any) -> Any:
        """Call a function of wasi:io/streams, which never has to wait for a file."""
        result = io.FUNCTIONS["wasi:io/streams"][name].call(self, *args)
        assert not isinstance(result, Awaitable)
        return result

    def stream_error(self, name: str, *args: Any) -> tuple[str, Any]:
        with pytest.raises(WitError) as caught:
            self.stream(name, *args)
        return caught.value.value


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


# The table


def test_the_registry_has_every_function_of_the_package_and_no_other() -> None:
    wanted = {n: set(i.functions) for n, i in wit.interfaces().items() if n.startswith("wasi:filesystem/")}
    assert {name: set(functions) for name, functions in FUNCTIONS.items()} == wanted


def test_a_function_takes_the_guest_and_the_parameters_of_its_wit_and_never_waits() -> None:
    for interface, functions in FUNCTIONS.items():
        for name, function in functions.items():
            parameters = wit.interfaces()[interface].functions[name].params
            assert len(inspect.signature(function.call).parameters) == 1 + len(parameters), name
            assert not function.may_suspend


def test_every_errno_has_a_code_of_the_wit() -> None:
    form, cases = wit.interfaces()[TYPES].types["error-code"]
    assert form == "enum"
    assert {error_code(errno) for errno in Errno} <= set(cases)
    assert error_code(Errno.NOTCAPABLE) == "not-permitted"
    assert error_code(Errno.ROFS) == "read-only"
    assert error_code(Errno.SUCCESS) == "io"


# Preopens


def test_root_and_tmp_are_preopened(guest: FakeGuest) -> None:
    assert guest.paths == ["/", "/tmp"]
    assert guest.listing(guest.root) == {("regular-file", "index.html"), ("directory", "a"), ("directory", "tmp")}
    assert guest.listing(guest.tmp) == set()
    assert guest.do("get-flags", guest.root) == {"read", "mutate-directory"}
    below = guest.do("open-at", guest.root, FOLLOW, "tmp", frozenset({"directory"}), READ)
    assert guest.do("is-same-object", below, guest.tmp)
    assert not guest.do("is-same-object", guest.root, guest.tmp)


# Reading


def test_read_answers_bytes_at_an_offset_and_then_the_end(guest: FakeGuest) -> None:
    file = guest.open("index.html")
    assert guest.do("read", file, 4, 0) == (b"<h1>", False)
    assert guest.do("read", file, 100, 4) == (b"hello", False)
    assert guest.do("read", file, 100, 9) == (b"", True)
    assert guest.do("read", file, 0, 0) == (b"", True)
    assert guest.do("read", file, 1, 2**63 - 1) == (b"", True)
    assert guest.code("read", file, 1, 2**63) == "invalid"


def test_read_answers_a_piece_of_what_is_too_much(guest: FakeGuest) -> None:
    file = guest.put("large", bytes(MAX_READ_BYTES + 1))
    assert guest.do("read", file, 2**64 - 1, 0) == (bytes(MAX_READ_BYTES), False)
    assert guest.do("read", file, 2**64 - 1, MAX_READ_BYTES) == (b"\0", False)


def test_a_file_that_was_not_opened_for_it_is_neither_read_nor_written(guest: FakeGuest) -> None:
    guest.put("f", b"content")
    writer, reader = guest.open("tmp/f", WRITE), guest.open("tmp/f", READ)
    assert guest.code("read", writer, 1, 0) == "not-permitted"
    assert guest.code("read-via-stream", writer, 0) == "bad-descriptor"
    assert guest.code("write", reader, b"x", 0) == "not-permitted"
    assert guest.code("set-size", reader, 0) == "not-permitted"
    assert guest.code("write-via-stream", reader, 0) == "bad-descriptor"
    assert guest.code("append-via-stream", reader) == "bad-descriptor"
    assert guest.content("tmp/f") == b"content"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("read", (1, 0)),
        ("write", (b"x", 0)),
        ("set-size", (0,)),
        ("advise", (0, 0, "normal")),
        ("read-via-stream", (0,)),
        ("write-via-stream", (0,)),
        ("append-via-stream", ()),
    ],
)
def test_a_directory_is_no_file(guest: FakeGuest, name: str, args: tuple[Any, ...]) -> None:
    assert guest.code(name, guest.tmp, *args) == "bad-descriptor"


def test_a_file_is_no_directory(guest: FakeGuest) -> None:
    file = guest.put("f")
    for name, *args in (
        ("read-directory",),
        ("create-directory-at", "d"),
        ("stat-at", NONE, "x"),
        ("set-times-at", NONE, "x", ("now", None), ("now", None)),
        ("link-at", NONE, "x", guest.tmp, "y"),
        ("open-at", NONE, "x", NONE, READ),
        ("readlink-at", "x"),
        ("remove-directory-at", "x"),
        ("rename-at", "x", guest.tmp, "y"),
        ("symlink-at", "x", "y"),
        ("unlink-file-at", "x"),
        ("metadata-hash-at", NONE, "x"),
    ):
        assert guest.code(name, file, *args) == "not-directory", name
    assert guest.code("link-at", guest.tmp, NONE, "f", file, "y") == "not-directory"
    assert guest.code("rename-at", guest.tmp, "f", file, "y") == "not-directory"


def test_advice_and_syncs_succeed_without_effect(guest: FakeGuest) -> None:
    for descriptor in (guest.open("index.html"), guest.put("f")):
        assert guest.do("advise", descriptor, 0, 2**64 - 1, "will-need") is None
        assert guest.do("sync", descriptor) is None
        assert guest.do("sync-data", descriptor) is None
    assert guest.do("sync", guest.root) is None


# Writing


def test_write_extends_a_file_with_zeros_before(guest: FakeGuest) -> None:
    file = guest.put("f", b"ab")
    assert guest.do("write", file, b"cd", 4) == 2
    assert guest.do("write", file, b"X", 0) == 1
    assert guest.content("tmp/f") == b"Xb\0\0cd"
    assert guest.do("write", file, b"", 100) == 0
    assert guest.do("stat", file)[2] == 6
    assert guest.code("write", file, b"xx", 2**63 - 1) == "file-too-large"
    assert guest.code("write", file, b"x", 2**63) == "invalid"


def test_one_write_takes_a_piece_of_what_is_too_much() -> None:
    guest = FakeGuest(tmp_bytes=4 * MAX_WRITE_BYTES)
    file = guest.do("open-at", guest.tmp, FOLLOW, "f", CREATE, WRITE)
    assert guest.do("write", file, bytes(MAX_WRITE_BYTES + 5), 0) == MAX_WRITE_BYTES


def test_write_takes_what_there_is_room_for_and_then_refuses(guest: FakeGuest) -> None:
    file = guest.put("f")
    assert 0 < guest.do("write", file, bytes(ROOM), 0) < ROOM
    assert guest.code("write", file, bytes(ROOM), ROOM - 1) == "insufficient-space"
    assert guest.wasi.tmp_used_bytes <= ROOM


def test_set_size_cuts_and_extends(guest: FakeGuest) -> None:
    file = guest.put("f", b"abcdef")
    guest.do("set-size", file, 3)
    assert guest.content("tmp/f") == b"abc"
    guest.do("set-size", file, 5)
    assert guest.content("tmp/f") == b"abc\0\0"
    assert guest.code("set-size", file, 2 * ROOM) == "insufficient-space"
    assert guest.code("set-size", file, 2**63) == "file-too-large"


# Streams


def test_an_input_stream_reads_from_its_offset_to_the_end(guest: FakeGuest) -> None:
    file = guest.open("index.html")
    stream = guest.do("read-via-stream", file, 4)
    other = guest.do("read-via-stream", file, 0)
    assert guest.stream("[method]input-stream.read", stream, 3) == b"hel"
    assert guest.stream("[method]input-stream.blocking-read", other, 100) == b"<h1>hello"
    assert guest.stream("[method]input-stream.blocking-read", stream, 100) == b"lo"
    assert guest.stream_error("[method]input-stream.blocking-read", stream, 1) == ("closed", None)
    beyond = guest.do("read-via-stream", file, 2**64 - 1)
    assert guest.stream_error("[method]input-stream.read", beyond, 1) == ("closed", None)


def test_a_files_streams_are_ready_at_once(guest: FakeGuest) -> None:
    file = guest.put("f", b"x")
    for stream, name in (
        (guest.do("read-via-stream", file, 0), "[method]input-stream.subscribe"),
        (guest.do("append-via-stream", file), "[method]output-stream.subscribe"),
    ):
        pollable = guest.stream(name, stream)
        assert io.FUNCTIONS["wasi:io/poll"]["[method]pollable.ready"].call(guest, pollable)
        with pytest.raises(GuestTrapError):
            stream.drop()  # its pollable is still there
        pollable.drop()
        stream.drop()


def test_an_input_stream_that_was_polled_keeps_no_content(guest: FakeGuest) -> None:
    file = guest.put("f", b"old")
    stream = guest.do("read-via-stream", file, 0)
    pollable = guest.stream("[method]input-stream.subscribe", stream)
    assert io.FUNCTIONS["wasi:io/poll"]["poll"].call(guest, [pollable]) == [0]
    guest.do("write", file, b"new", 0)
    assert guest.stream("[method]input-stream.blocking-read", stream, 10) == b"new"


def test_an_output_stream_writes_on_from_its_offset(guest: FakeGuest) -> None:
    file = guest.put("f", b"0123456789")
    stream = guest.do("write-via-stream", file, 2)
    assert guest.stream("[method]output-stream.check-write", stream) > 0
    guest.stream("[method]output-stream.write", stream, b"ab")
    guest.stream("[method]output-stream.blocking-write-and-flush", stream, b"cd")
    assert guest.content("tmp/f") == b"01abcd6789"


def test_an_appending_stream_writes_at_the_end_wherever_that_is(guest: FakeGuest) -> None:
    file = guest.put("f", b"one")
    stream = guest.do("append-via-stream", file)
    guest.stream("[method]output-stream.write", stream, b" two")
    guest.do("write", file, b" three", 7)
    guest.stream("[method]output-stream.write", stream, b" four")
    assert guest.content("tmp/f") == b"one two three four"


def test_a_stream_outlives_its_descriptor_and_the_name_of_the_file(guest: FakeGuest) -> None:
    before = guest.wasi.tmp_used_bytes
    file = guest.put("f", b"content")
    reader, writer = guest.do("read-via-stream", file, 0), guest.do("append-via-stream", file)
    file.drop()
    guest.do("unlink-file-at", guest.tmp, "f")
    guest.stream("[method]output-stream.write", writer, b"!")
    writer.drop()
    assert guest.stream("[method]input-stream.read", reader, 100) == b"content!"
    assert guest.wasi.tmp_used_bytes > before
    reader.drop()
    assert guest.wasi.tmp_used_bytes == before


def test_a_failed_write_of_a_stream_tells_its_code_once_and_closes_it(guest: FakeGuest) -> None:
    file = guest.put("f")
    stream = guest.do("write-via-stream", file, 2 * ROOM)
    case, error = guest.stream_error("[method]output-stream.write", stream, b"x")
    assert case == "last-operation-failed"
    assert guest.call("filesystem-error-code", error) == "insufficient-space"
    text = io.FUNCTIONS["wasi:io/error"]["[method]error.to-debug-string"].call(guest, error)
    assert "insufficient-space" in text
    assert guest.stream_error("[method]output-stream.check-write", stream) == ("closed", None)


def test_an_error_of_another_stream_has_no_code_of_the_file_system(guest: FakeGuest) -> None:
    error = io.IoError(io.StreamFailedError("the connection broke"))
    assert guest.call("filesystem-error-code", error) is None


# Attributes


def test_stat_tells_type_links_size_and_times(guest: FakeGuest) -> None:
    bundle_time = (7, 9)
    expected = ("regular-file", 1, 9, bundle_time, bundle_time, bundle_time)
    assert guest.do("stat", guest.open("index.html")) == expected
    assert guest.do("stat-at", guest.root, FOLLOW, "index.html") == expected
    assert guest.do("stat", guest.root)[0] == "directory"
    guest.put("f", b"abc")
    guest.do("link-at", guest.tmp, NONE, "f", guest.tmp, "g")
    assert guest.do("stat-at", guest.root, FOLLOW, "tmp/g") == ("regular-file", 2, 3, *([(1000, 0)] * 3))
    assert guest.code("stat-at", guest.root, FOLLOW, "nope") == "no-entry"
    assert guest.code("stat-at", guest.root, FOLLOW, "") == "no-entry"


def test_stat_at_follows_a_link_only_when_asked(guest: FakeGuest) -> None:
    guest.put("f", b"abc")
    guest.do("symlink-at", guest.tmp, "f", "l")
    assert guest.do("stat-at", guest.tmp, NONE, "l")[:3] == ("symbolic-link", 1, 1)
    assert guest.do("stat-at", guest.tmp, FOLLOW, "l")[:3] == ("regular-file", 1, 3)
    assert guest.listing(guest.tmp) == {("regular-file", "f"), ("symbolic-link", "l")}


def test_get_type_tells_what_is_open(guest: FakeGuest) -> None:
    assert guest.do("get-type", guest.root) == guest.do("get-type", guest.tmp) == "directory"
    assert guest.do("get-type", guest.open("index.html")) == "regular-file"


def test_times_are_left_set_to_now_or_set(guest: FakeGuest) -> None:
    file = guest.put("f")
    guest.clock.now_ns = 5_000_000_006
    guest.do("set-times", file, ("timestamp", (3, 4)), ("no-change", None))
    assert guest.do("stat", file)[3:] == ((3, 4), (1000, 0), (5, 6))
    guest.do("set-times-at", guest.tmp, NONE, "f", ("no-change", None), ("now", None))
    assert guest.do("stat", file)[3:5] == ((3, 4), (5, 6))
    assert guest.code("set-times", file, ("timestamp", (2**64 - 1, 0)), ("no-change", None)) == "overflow"
    assert guest.code("set-times", guest.open("index.html"), ("now", None), ("now", None)) == "read-only"
    assert guest.code("set-times-at", guest.root, NONE, "index.html", ("now", None), ("now", None)) == "read-only"


def test_set_times_at_follows_a_link_only_when_asked(guest: FakeGuest) -> None:
    file = guest.put("f")
    guest.do("symlink-at", guest.tmp, "f", "l")
    guest.do("set-times-at", guest.tmp, NONE, "l", ("timestamp", (1, 1)), ("timestamp", (1, 1)))
    assert guest.do("stat", file)[4] == (1000, 0)
    assert guest.do("stat-at", guest.tmp, NONE, "l")[4] == (1, 1)
    guest.do("set-times-at", guest.tmp, FOLLOW, "l", ("timestamp", (2, 2)), ("timestamp", (2, 2)))
    assert guest.do("stat", file)[4] == (2, 2)


def test_a_metadata_hash_changes_with_the_object_and_its_lower_half_does_not(guest: FakeGuest) -> None:
    file = guest.put("f", b"abc")
    first = guest.do("metadata-hash", file)
    assert guest.do("metadata-hash-at", guest.root, FOLLOW, "tmp/f") == first
    assert all(0 <= half < 2**64 for half in first)
    guest.clock.now_ns += 1
    guest.do("write", file, b"xyz", 0)
    second = guest.do("metadata-hash", file)
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
    guest.do("rename-at", guest.tmp, "f", guest.tmp, "g")
    assert guest.do("metadata-hash", file)[0] == first[0]
    hashes = {guest.do("metadata-hash", each)[0] for each in (file, guest.root, guest.tmp, guest.put("f"))}
    assert len(hashes) == 4
    guest.do("symlink-at", guest.tmp, "g", "l")
    assert guest.do("metadata-hash-at", guest.tmp, FOLLOW, "l")[0] == first[0]
    assert guest.do("metadata-hash-at", guest.tmp, NONE, "l")[0] != first[0]
    assert guest.code("metadata-hash-at", guest.tmp, NONE, "nope") == "no-entry"


def test_two_descriptors_of_one_file_are_the_same_object(guest: FakeGuest) -> None:
    file = guest.put("f")
    guest.do("link-at", guest.tmp, NONE, "f", guest.tmp, "g")
    assert guest.do("is-same-object", file, guest.open("tmp/g"))
    assert not guest.do("is-same-object", file, guest.put("h"))


# Opening


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (NONE, READ),
        (READ, READ),
        (WRITE, WRITE),
        (BOTH, BOTH),
        (WRITE | {"mutate-directory"}, WRITE),
        (BOTH | {"file-integrity-sync"}, BOTH | {"file-integrity-sync"}),
    ],
)
def test_get_flags_tells_how_a_file_was_opened(guest: FakeGuest, flags: frozenset[str], kept: frozenset[str]) -> None:
    guest.put("f")
    assert guest.do("get-flags", guest.open("tmp/f", flags)) == kept


def test_open_flags_create_exclusively_cut_and_want_directories(guest: FakeGuest) -> None:
    exclusive = frozenset({"create", "exclusive"})
    guest.do("write", guest.open("tmp/f", WRITE, exclusive), b"abc", 0)
    assert guest.code("open-at", guest.root, FOLLOW, "tmp/f", exclusive, WRITE) == "exist"
    assert guest.do("get-type", guest.open("tmp/f", WRITE, CREATE)) == "regular-file"
    assert guest.content("tmp/f") == b"abc"
    guest.open("tmp/f", WRITE, frozenset({"truncate"}))
    assert guest.content("tmp/f") == b""
    directory = frozenset({"directory"})
    assert guest.code("open-at", guest.root, FOLLOW, "tmp/f", directory, READ) == "not-directory"
    assert guest.do("get-flags", guest.open("a", READ, directory)) == {"read", "mutate-directory"}
    for other in ("create", "exclusive", "truncate"):
        assert guest.code("open-at", guest.root, FOLLOW, "tmp", directory | {other}, READ) == "invalid"


def test_open_refuses_what_is_not_there_or_not_to_be_had(guest: FakeGuest) -> None:
    assert guest.code("open-at", guest.root, FOLLOW, "nope", NONE, READ) == "no-entry"
    assert guest.code("open-at", guest.root, FOLLOW, "index.html/x", NONE, READ) == "not-directory"
    assert guest.code("open-at", guest.root, FOLLOW, "index.html", NONE, WRITE) == "read-only"
    assert guest.code("open-at", guest.root, FOLLOW, "index.html", frozenset({"truncate"}), READ) == "read-only"
    assert guest.code("open-at", guest.root, FOLLOW, "new", CREATE, WRITE) == "read-only"
    assert guest.code("open-at", guest.root, FOLLOW, "tmp", NONE, WRITE) == "is-directory"
    assert guest.code("open-at", guest.root, FOLLOW, "x" * 256, NONE, READ) == "name-too-long"
    assert guest.code("open-at", guest.root, FOLLOW, "nul\0", NONE, READ) == "invalid"


@pytest.mark.parametrize("path", ["/", "/index.html", "..", "../x", "a/../../x", "/tmp"])
def test_no_path_leads_out(guest: FakeGuest, path: str) -> None:
    guest.do("create-directory-at", guest.tmp, "a")
    assert guest.code("open-at", guest.root, FOLLOW, path, NONE, READ) == "not-permitted"
    assert guest.code("stat-at", guest.tmp, FOLLOW, path) == "not-permitted"
    assert guest.code("create-directory-at", guest.tmp, path) == "not-permitted"


def test_paths_begin_at_the_descriptor(guest: FakeGuest) -> None:
    a = guest.open("a", READ, frozenset({"directory"}))
    file = guest.do("open-at", a, FOLLOW, "b/../b/./c.txt", NONE, READ)
    assert guest.do("read", file, 10, 0) == (b"deep", False)
    assert guest.code("open-at", a, FOLLOW, "../index.html", NONE, READ) == "not-permitted"


def test_open_follows_a_link_only_when_asked(guest: FakeGuest) -> None:
    guest.put("f", b"abc")
    guest.do("symlink-at", guest.tmp, "f", "l")
    assert guest.content("tmp/l") == b"abc"
    assert guest.code("open-at", guest.tmp, NONE, "l", NONE, READ) == "loop"


# Directories


def test_a_listing_is_what_was_there_when_it_began_less_what_is_gone(guest: FakeGuest) -> None:
    for name in ("x", "y", "z"):
        guest.put(name)
    stream = guest.do("read-directory", guest.tmp)
    first = next(guest.entries(stream))
    guest.do("unlink-file-at", guest.tmp, "z")
    guest.put("new")
    assert [first, *guest.entries(stream)] == [("regular-file", "x"), ("regular-file", "y")]
    assert guest.listing(guest.tmp) == {("regular-file", name) for name in ("x", "y", "new")}


def test_streams_of_one_directory_do_not_interfere(guest: FakeGuest) -> None:
    guest.put("x")
    first, second = guest.do("read-directory", guest.tmp), guest.do("read-directory", guest.tmp)
    assert list(guest.entries(first)) == list(guest.entries(second)) == [("regular-file", "x")]
    assert list(guest.entries(first)) == []


def test_a_listing_counts_against_the_cap_of_tmp_until_it_is_dropped(guest: FakeGuest) -> None:
    for name in "abc":
        guest.put(name)
    used = guest.wasi.tmp_used_bytes
    guest.wasi.files.volume.capacity = used + 30
    stream = guest.do("read-directory", guest.tmp)
    assert guest.wasi.tmp_used_bytes == used + 24
    assert guest.code("read-directory", guest.tmp) == "insufficient-memory"
    stream.drop()
    assert guest.wasi.tmp_used_bytes == used


def test_directories_are_made_and_removed(guest: FakeGuest) -> None:
    guest.do("create-directory-at", guest.tmp, "d")
    guest.do("create-directory-at", guest.root, "tmp/d/e")
    assert guest.code("create-directory-at", guest.tmp, "d") == "exist"
    assert guest.code("create-directory-at", guest.root, "d") == "read-only"
    assert guest.code("create-directory-at", guest.tmp, "no/d") == "no-entry"
    assert guest.code("remove-directory-at", guest.tmp, "d") == "not-empty"
    guest.put("f")
    assert guest.code("remove-directory-at", guest.tmp, "f") == "not-directory"
    assert guest.code("remove-directory-at", guest.tmp, "nope") == "no-entry"
    guest.do("remove-directory-at", guest.tmp, "d/e")
    guest.do("remove-directory-at", guest.tmp, "d")
    assert guest.listing(guest.tmp) == {("regular-file", "f")}


def test_what_is_opened_below_can_be_changed_too(guest: FakeGuest) -> None:
    guest.do("create-directory-at", guest.tmp, "d")
    below = guest.do("open-at", guest.tmp, FOLLOW, "d", frozenset({"directory"}), READ)
    guest.do("open-at", below, FOLLOW, "f", CREATE, WRITE)
    assert guest.listing(below) == {("regular-file", "f")}


# Names


def test_unlink_removes_a_name_and_no_directory(guest: FakeGuest) -> None:
    guest.put("f")
    guest.do("create-directory-at", guest.tmp, "d")
    assert guest.code("unlink-file-at", guest.tmp, "d") == "is-directory"
    assert guest.code("unlink-file-at", guest.root, "index.html") == "read-only"
    guest.do("unlink-file-at", guest.tmp, "f")
    assert guest.code("unlink-file-at", guest.tmp, "f") == "no-entry"


def test_an_unlinked_file_lives_until_its_descriptor_is_dropped(guest: FakeGuest) -> None:
    before = guest.wasi.tmp_used_bytes
    file = guest.put("f", b"abc")
    guest.do("unlink-file-at", guest.tmp, "f")
    assert guest.do("read", file, 10, 0) == (b"abc", False)
    assert guest.do("stat", file)[1] == 0
    file.drop()
    assert guest.wasi.tmp_used_bytes == before


def test_rename_moves_and_replaces(guest: FakeGuest) -> None:
    guest.put("f", b"new")
    guest.put("g", b"old")
    guest.do("create-directory-at", guest.tmp, "d")
    d = guest.do("open-at", guest.tmp, FOLLOW, "d", NONE, READ)
    guest.do("rename-at", guest.tmp, "f", d, "f")
    guest.do("rename-at", d, "f", guest.tmp, "g")
    assert guest.content("tmp/g") == b"new"
    assert guest.listing(d) == set()
    assert guest.code("rename-at", guest.tmp, "nope", guest.tmp, "x") == "no-entry"
    assert guest.code("rename-at", guest.tmp, "g", guest.tmp, "d") == "is-directory"
    assert guest.code("rename-at", guest.tmp, "d", guest.tmp, "g") == "not-directory"
    assert guest.code("rename-at", guest.tmp, "d", d, "inside") == "invalid"
    assert guest.code("rename-at", guest.root, "index.html", guest.tmp, "x") == "read-only"


def test_link_gives_a_file_a_second_name(guest: FakeGuest) -> None:
    guest.put("f", b"abc")
    guest.do("symlink-at", guest.tmp, "f", "l")
    guest.do("create-directory-at", guest.tmp, "d")
    guest.do("link-at", guest.tmp, NONE, "f", guest.tmp, "d/g")
    guest.do("unlink-file-at", guest.tmp, "f")
    assert guest.content("tmp/d/g") == b"abc"
    guest.do("link-at", guest.tmp, NONE, "l", guest.tmp, "l2")
    assert guest.do("readlink-at", guest.tmp, "l2") == "f"
    guest.put("f")
    guest.do("link-at", guest.tmp, FOLLOW, "l", guest.tmp, "h")
    assert guest.do("stat-at", guest.tmp, NONE, "h")[:2] == ("regular-file", 2)
    assert guest.code("link-at", guest.tmp, NONE, "f", guest.tmp, "h") == "exist"
    assert guest.code("link-at", guest.tmp, NONE, "d", guest.tmp, "x") == "not-permitted"
    assert guest.code("link-at", guest.root, NONE, "index.html", guest.tmp, "x") == "cross-device"
    assert guest.code("link-at", guest.tmp, NONE, "nope", guest.tmp, "x") == "no-entry"


def test_a_symbolic_link_holds_a_relative_path(guest: FakeGuest) -> None:
    guest.do("symlink-at", guest.tmp, "übermut/../x", "l")
    assert guest.do("readlink-at", guest.tmp, "l") == "übermut/../x"
    assert guest.code("symlink-at", guest.tmp, "/etc/passwd", "m") == "not-permitted"
    assert guest.code("symlink-at", guest.tmp, "x", "l") == "exist"
    assert guest.code("symlink-at", guest.root, "x", "l") == "read-only"
    guest.put("f")
    assert guest.code("readlink-at", guest.tmp, "f") == "invalid"
    assert guest.code("readlink-at", guest.tmp, "nope") == "no-entry"


def test_a_link_that_leads_out_leads_nowhere(guest: FakeGuest) -> None:
    guest.do("symlink-at", guest.tmp, "../../etc", "l")
    guest.do("symlink-at", guest.tmp, "self", "self")
    assert guest.code("open-at", guest.tmp, FOLLOW, "l/passwd", NONE, READ) == "not-permitted"
    assert guest.code("stat-at", guest.tmp, FOLLOW, "self") == "loop"
