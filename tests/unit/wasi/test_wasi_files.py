"""Promises of the virtual file system: nothing outside is reachable, nothing held is uncounted."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.clock import SystemClock
from faas.wasi.errno import Errno, ErrnoError, FileType, OFlags
from faas.wasi.files import (
    ENTRY_COST,
    INODE_COST,
    MAX_DEPTH,
    BundleFile,
    BundleTree,
    Directory,
    FileSystem,
    TmpDirectory,
    TmpFile,
)

BUNDLE = BundleTree({"index.html": b"<h1>", "a/b/c.txt": b"deep", "a/x": b"", "tmp/hidden": b"no"}, mtime_ns=7)
ROOM = 1 << 20


def make_files(tmp_bytes: int = ROOM, bundle: BundleTree | None = BUNDLE) -> FileSystem:
    return FileSystem(bundle, tmp_bytes, SystemClock())


@pytest.fixture
def files() -> FileSystem:
    return make_files()


def errno_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Errno:
    with pytest.raises(ErrnoError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


def open_at(files: FileSystem, path: bytes, oflags: int = 0, *, write: bool = False, start: Directory | None = None):
    return files.open(start or files.tmp, path, follow=True, oflags=oflags, write=write)


def put(files: FileSystem, path: bytes, content: bytes = b"") -> TmpFile:
    file = open_at(files, path, OFlags.CREAT, write=True)
    assert isinstance(file, TmpFile)
    file.write_at(0, content)
    return file


# The bundle


def test_bundle_file_reads_back(files: FileSystem) -> None:
    file = open_at(files, b"a/b/c.txt", start=files.root)
    assert isinstance(file, BundleFile)
    assert file.read_at(1, 2) == b"ee"


@pytest.mark.parametrize("content", [bytearray(b"abc"), memoryview(b"abc")])
def test_bundle_takes_any_bytes(content: bytearray | memoryview) -> None:
    files = make_files(bundle=BundleTree({"f": content}))
    file = open_at(files, b"f", start=files.root)
    assert isinstance(file, BundleFile)
    assert file.read_at(0, 9) == b"abc"


@pytest.mark.parametrize("path", ["/abs", "../up", "a//b", "a/./b", "a/..", "", "a/", "n\0l", "x" * 256])
def test_bundle_refuses_paths_that_are_not_normal(path: str) -> None:
    with pytest.raises(ValueError, match="not a normal relative path"):
        BundleTree({path: b""})


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a-b", "a", "a/b")])
def test_bundle_refuses_a_file_that_is_also_a_folder(paths: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="also a folder"):
        BundleTree(dict.fromkeys(paths, b""))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: open_at(f, b"new", OFlags.CREAT, start=f.root),
        lambda f: open_at(f, b"index.html", write=True, start=f.root),
        lambda f: open_at(f, b"index.html", OFlags.TRUNC, start=f.root),
        lambda f: f.make_directory(f.root, b"new"),
        lambda f: f.remove_directory(f.root, b"a"),
        lambda f: f.remove_directory(f.root, b"tmp"),
        lambda f: f.unlink(f.root, b"a/x"),
        lambda f: f.rename(f.root, b"a/x", f.tmp, b"x"),
        lambda f: f.rename(f.root, b"tmp", f.root, b"tmp2"),
        lambda f: f.symlink(b"x", f.root, b"link"),
        lambda f: f.set_times(f.root, b"a", follow=True, atim_ns=1, mtim_ns=1),
    ],
)
def test_bundle_can_not_be_changed(files: FileSystem, change: Callable[[FileSystem], Any]) -> None:
    assert errno_of(change, files) == Errno.ROFS


def test_two_instances_share_a_bundle_but_not_tmp() -> None:
    one, two = make_files(), make_files()
    put(one, b"x")
    assert one.root is two.root
    assert errno_of(open_at, two, b"x") == Errno.NOENT


def test_tmp_of_the_instance_lies_over_tmp_of_the_bundle(files: FileSystem) -> None:
    put(files, b"mine")
    assert files.find(files.root, b"tmp/mine", follow=True).node is not None
    assert errno_of(open_at, files, b"tmp/hidden", start=files.root) == Errno.NOENT
    assert sorted(files.names(files.root)) == [b"a", b"index.html", b"tmp"]


# Walking


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        (b"", Errno.NOENT),
        (b"/", Errno.NOTCAPABLE),
        (b"/tmp", Errno.NOTCAPABLE),
        (b"..", Errno.NOTCAPABLE),
        (b"a/../..", Errno.NOTCAPABLE),
        (b"a/b/../../../etc/passwd", Errno.NOTCAPABLE),
        (b"nope", Errno.NOENT),
        (b"nope/x", Errno.NOENT),
        (b"index.html/", Errno.NOTDIR),
        (b"index.html/x", Errno.NOTDIR),
        (b"index.html/..", Errno.NOTDIR),
        (b"index.html/.", Errno.NOTDIR),
        (b"x" * 256, Errno.NAMETOOLONG),
        (b"a/" * 2049, Errno.NAMETOOLONG),
        (b"\xff", Errno.ILSEQ),
        (b"\xed\xa0\x80", Errno.ILSEQ),
        (b"index.html\0.txt", Errno.INVAL),
    ],
)
def test_a_path_that_leads_nowhere_says_why(files: FileSystem, path: bytes, errno: Errno) -> None:
    assert errno_of(open_at, files, path, start=files.root) == errno


@pytest.mark.parametrize("path", [b"a/b/c.txt", b"./a//b/./c.txt", b"a/../a/b/c.txt", b"tmp/../a/b/c.txt"])
def test_a_path_need_not_be_normal(files: FileSystem, path: bytes) -> None:
    assert open_at(files, path, start=files.root).size == 4


def test_a_directory_opened_below_can_not_reach_above_itself(files: FileSystem) -> None:
    below = open_at(files, b"a/b", start=files.root)
    assert errno_of(open_at, files, b"../x", start=below) == Errno.NOTCAPABLE


_PARTS = st.sampled_from([b"..", b".", b"", b"d", b"f", b"up", b"self", b"out", b"tmp", b"a", b"\xff", b"x" * 256])


@given(st.lists(_PARTS, max_size=12), st.integers(0, 15), st.booleans())
def test_no_path_escapes_the_directory_it_starts_from(parts: list[bytes], oflags: int, follow: bool) -> None:
    files = make_files()
    files.make_directory(files.tmp, b"jail")
    put(files, b"secret")
    jail = files.find(files.tmp, b"jail", follow=False).node
    assert isinstance(jail, TmpDirectory)
    files.make_directory(jail, b"d")
    for target, name in ((b"..", b"up"), (b"d/../../secret", b"out"), (b"self", b"self"), (b"../f", b"d/f")):
        files.symlink(target, jail, name)
    outside = {id(files.tmp), id(files.root), *map(id, files.root.entries.values()), id(files.tmp.entries[b"secret"])}
    try:
        node = files.open(jail, b"/".join(parts), follow=follow, oflags=oflags, write=False)
    except ErrnoError:
        pass
    else:
        assert id(node) not in outside
    assert set(files.tmp.entries) == {b"jail", b"secret"}


@given(st.binary(max_size=40))
def test_any_bytes_as_a_path_are_answered(path: bytes) -> None:
    files = make_files()
    for call in (files.make_directory, files.remove_directory, files.unlink, files.readlink):
        with contextlib.suppress(ErrnoError):
            call(files.tmp, path)


# Files


def test_a_new_file_reads_back_what_was_written(files: FileSystem) -> None:
    put(files, b"x", b"hello")
    again = open_at(files, b"x")
    assert isinstance(again, TmpFile)
    assert again.read_at(0, 100) == b"hello"


def test_excl_refuses_what_exists_even_a_dangling_link(files: FileSystem) -> None:
    put(files, b"x")
    files.symlink(b"nowhere", files.tmp, b"link")
    for name in (b"x", b"link"):
        assert errno_of(open_at, files, name, OFlags.CREAT | OFlags.EXCL) == Errno.EXIST


def test_trunc_empties(files: FileSystem) -> None:
    put(files, b"x", b"hello")
    assert open_at(files, b"x", OFlags.TRUNC, write=True).size == 0


def test_creating_through_a_dangling_link_makes_its_target(files: FileSystem) -> None:
    files.symlink(b"target", files.tmp, b"link")
    put(files, b"link", b"z")
    assert open_at(files, b"target").size == 1


def test_open_flags_that_do_not_fit_the_node_are_refused(files: FileSystem) -> None:
    put(files, b"x")
    files.make_directory(files.tmp, b"d")
    assert errno_of(open_at, files, b"x", OFlags.DIRECTORY) == Errno.NOTDIR
    assert errno_of(open_at, files, b"d", write=True) == Errno.ISDIR
    assert errno_of(open_at, files, b"d", OFlags.CREAT) == Errno.ISDIR
    assert errno_of(open_at, files, b"new/", OFlags.CREAT) == Errno.ISDIR
    assert errno_of(open_at, files, b"n", OFlags.CREAT | OFlags.DIRECTORY) == Errno.INVAL


def test_a_gap_reads_as_zeros(files: FileSystem) -> None:
    file = put(files, b"x")
    file.write_at(3, b"ab")
    assert file.read_at(0, 10) == b"\0\0\0ab"


def test_times_follow_changes_and_can_be_set(files: FileSystem) -> None:
    file = put(files, b"x")
    files.set_times(files.tmp, b"x", follow=True, atim_ns=5, mtim_ns=6)
    assert files.stat(files.tmp, b"x", follow=True)[5:7] == (5, 6)
    file.write_at(0, b"z")
    assert files.stat(files.tmp, b"x", follow=True).mtim_ns > 6


# The cap


def test_a_write_past_the_cap_is_cut_and_the_next_refused() -> None:
    files = make_files(INODE_COST + ENTRY_COST + 1 + 10)
    file = put(files, b"x")
    assert file.write_at(0, b"y" * 20) == 10
    assert errno_of(file.write_at, 10, b"y") == Errno.NOSPC
    assert file.write_at(4, b"zz") == 2


def test_a_sparse_write_far_out_is_refused_without_allocating(files: FileSystem) -> None:
    file = put(files, b"x")
    assert errno_of(file.write_at, 1 << 40, b"y") == Errno.NOSPC
    assert errno_of(file.write_at, 2**63 - 1, b"y") == Errno.FBIG
    assert errno_of(file.set_size, 1 << 40) == Errno.NOSPC
    assert errno_of(file.set_size, 1 << 63) == Errno.FBIG
    assert file.size == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda f, name: open_at(f, name, OFlags.CREAT),
        lambda f, name: f.make_directory(f.tmp, name),
        lambda f, name: f.symlink(b"t", f.tmp, name),
        lambda f, name: (open_at(f, b"one", OFlags.CREAT), f.link(f.tmp, b"one", f.tmp, name, follow=False)),
    ],
)
def test_names_and_empty_inodes_count_against_the_cap(make: Callable[[FileSystem, bytes], Any]) -> None:
    files = make_files(64 * 1024)

    def make_many() -> None:
        for number in range(256):
            make(files, b"%d" % number)

    assert errno_of(make_many) == Errno.NOSPC


def test_deleting_gives_everything_back(files: FileSystem) -> None:
    put(files, b"x", b"hello")
    files.link(files.tmp, b"x", files.tmp, b"y", follow=False)
    files.make_directory(files.tmp, b"d")
    files.symlink(b"x", files.tmp, b"link")
    put(files, b"d/longer-name", b"1")
    files.rename(files.tmp, b"d/longer-name", files.tmp, b"s")
    files.rename(files.tmp, b"s", files.tmp, b"y")
    for name in (b"x", b"y", b"link"):
        files.unlink(files.tmp, name)
    files.remove_directory(files.tmp, b"d")
    assert files.volume.used == 0
    assert files.tmp.entries == {}


def test_an_unlinked_file_is_counted_until_it_is_closed(files: FileSystem) -> None:
    file = put(files, b"x", b"hello")
    file.opens += 1
    files.unlink(files.tmp, b"x")
    assert files.volume.used == INODE_COST + 5
    file.closed()
    assert files.volume.used == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "cut"]),
            st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/f"]),
            st.sampled_from([b"a", b"b", b"long-name", b"d", b"d/a", b"d/e", b"d/e/f"]),
        ),
        max_size=30,
    )
)
def test_the_account_equals_what_is_there_after_any_changes(steps: list[tuple[str, bytes, bytes]]) -> None:
    files = make_files(20_000)
    tmp = files.tmp
    calls: dict[str, Callable[[bytes, bytes], Any]] = {
        "put": lambda a, b: put(files, a, b * 7),
        "mkdir": lambda a, b: files.make_directory(tmp, a),
        "unlink": lambda a, b: files.unlink(tmp, a),
        "rmdir": lambda a, b: files.remove_directory(tmp, a),
        "rename": lambda a, b: files.rename(tmp, a, tmp, b),
        "link": lambda a, b: files.link(tmp, a, tmp, b, follow=True),
        "symlink": lambda a, b: files.symlink(b, tmp, a),
        "cut": lambda a, b: open_at(files, a, OFlags.TRUNC, write=True),
    }
    for name, a, b in steps:
        try:
            calls[name](a, b)
        except ErrnoError:
            continue
    inodes = {}
    names = 0
    pending: list[TmpDirectory] = [tmp]
    while pending:
        for name_bytes, node in pending.pop().entries.items():
            names += ENTRY_COST + len(name_bytes)
            inodes[node.ino] = INODE_COST + node.size
            if isinstance(node, TmpDirectory):
                pending.append(node)
    assert files.volume.used == names + sum(inodes.values())


def test_an_emptied_directory_does_not_keep_a_large_table(files: FileSystem) -> None:
    for number in range(500):
        put(files, b"%d" % number)
    large = files.tmp.entries.__sizeof__()
    for number in range(499):
        files.unlink(files.tmp, b"%d" % number)
    assert files.tmp.entries.__sizeof__() * 8 < large


def test_a_dropped_file_system_is_freed_without_the_collector() -> None:
    files = make_files()
    files.make_directory(files.tmp, b"d")
    put(files, b"d/x", b"content")
    inner = files.tmp.entries[b"d"]
    gone = weakref.ref(inner)
    gc.disable()
    try:
        del files, inner
        assert gone() is None
    finally:
        gc.enable()


# Directories


def test_a_directory_with_entries_can_not_be_removed(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    put(files, b"d/x")
    assert errno_of(files.remove_directory, files.tmp, b"d") == Errno.NOTEMPTY


def test_removing_answers_what_it_is_not(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    put(files, b"x")
    assert errno_of(files.remove_directory, files.tmp, b"x") == Errno.NOTDIR
    assert errno_of(files.unlink, files.tmp, b"d") == Errno.ISDIR
    assert errno_of(files.unlink, files.tmp, b"x/") == Errno.NOTDIR
    assert errno_of(files.remove_directory, files.tmp, b".") == Errno.INVAL
    assert errno_of(files.make_directory, files.tmp, b"d/") == Errno.EXIST
    assert errno_of(files.make_directory, files.tmp, b".") == Errno.EXIST


def test_nothing_can_be_made_in_a_removed_directory(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    removed = open_at(files, b"d")
    assert isinstance(removed, TmpDirectory)
    removed.opens += 1
    files.remove_directory(files.tmp, b"d")
    assert errno_of(files.make_directory, removed, b"x") == Errno.NOENT


def test_depth_is_bounded(files: FileSystem) -> None:
    directory: Any = files.tmp
    for _ in range(MAX_DEPTH - 1):
        files.make_directory(directory, b"d")
        directory = directory.entries[b"d"]
    assert errno_of(files.make_directory, directory, b"d") == Errno.MLINK


def test_rename_replaces_a_file(files: FileSystem) -> None:
    put(files, b"a", b"new")
    put(files, b"b", b"old")
    files.rename(files.tmp, b"a", files.tmp, b"b")
    assert list(files.names(files.tmp)) == [b"b"]
    assert files.stat(files.tmp, b"b", follow=True).size == 3


def test_rename_refuses_what_posix_refuses(files: FileSystem) -> None:
    for name in (b"d", b"d/in", b"e"):
        files.make_directory(files.tmp, name)
    put(files, b"x")

    def rename(old: bytes, new: bytes) -> Errno:
        return errno_of(files.rename, files.tmp, old, files.tmp, new)

    assert rename(b"d", b"d/in/d") == Errno.INVAL
    assert rename(b"e", b"d") == Errno.NOTEMPTY
    assert rename(b"e", b"x") == Errno.NOTDIR
    assert rename(b"x", b"e") == Errno.ISDIR
    assert rename(b"x", b"y/") == Errno.NOTDIR
    assert rename(b"nope", b"y") == Errno.NOENT
    assert rename(b".", b"y") == Errno.BUSY


def test_rename_sees_a_descendant_through_another_starting_directory(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    files.make_directory(files.tmp, b"d/in")
    inner = files.find(files.tmp, b"d/in", follow=False).node
    assert isinstance(inner, TmpDirectory)
    assert errno_of(files.rename, files.tmp, b"d", inner, b"d") == Errno.INVAL


def test_renaming_a_name_to_another_of_the_same_file_changes_nothing(files: FileSystem) -> None:
    put(files, b"a")
    files.link(files.tmp, b"a", files.tmp, b"b", follow=False)
    files.rename(files.tmp, b"a", files.tmp, b"b")
    assert sorted(files.names(files.tmp)) == [b"a", b"b"]


# Links


def test_a_hard_link_is_the_same_file(files: FileSystem) -> None:
    put(files, b"a", b"123")
    files.link(files.tmp, b"a", files.tmp, b"b", follow=False)
    first, second = (files.stat(files.tmp, name, follow=False) for name in (b"a", b"b"))
    assert first == second
    assert first.nlink == 2


def test_linking_answers_what_can_not_be_linked(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    put(files, b"a")

    def link(start: Directory, old: bytes, new: bytes) -> Errno:
        return errno_of(files.link, start, old, files.tmp, new, follow=False)

    assert link(files.tmp, b"d", b"e") == Errno.PERM
    assert link(files.tmp, b"a", b"d") == Errno.EXIST
    assert link(files.root, b"index.html", b"i") == Errno.XDEV
    assert link(files.tmp, b"a", b"n/") == Errno.NOENT


def test_a_symbolic_link_is_followed_and_read(files: FileSystem) -> None:
    files.make_directory(files.tmp, b"d")
    put(files, b"d/x", b"123")
    files.symlink(b"d", files.tmp, b"link")
    assert files.stat(files.tmp, b"link/x", follow=False).size == 3
    assert files.stat(files.tmp, b"link", follow=False).filetype is FileType.SYMBOLIC_LINK
    assert files.stat(files.tmp, b"link/", follow=False).filetype is FileType.DIRECTORY
    assert files.readlink(files.tmp, b"link") == b"d"


def test_dot_dot_behind_a_link_means_the_parent_of_where_it_leads(files: FileSystem) -> None:
    for name in (b"d", b"d/e"):
        files.make_directory(files.tmp, name)
    put(files, b"d/x", b"123")
    files.symlink(b"d/e", files.tmp, b"link")
    assert files.stat(files.tmp, b"link/../x", follow=False).size == 3


def test_links_in_a_circle_are_a_loop(files: FileSystem) -> None:
    files.symlink(b"b", files.tmp, b"a")
    files.symlink(b"a", files.tmp, b"b")
    assert errno_of(open_at, files, b"a") == Errno.LOOP


def test_links_that_lead_through_more_than_a_path_are_too_long(files: FileSystem) -> None:
    put(files, b"x")
    files.symlink(b"./" * 1500 + b"x", files.tmp, b"once")
    files.symlink(b"./" * 1500 + b"once", files.tmp, b"twice")
    assert open_at(files, b"once").size == 0
    assert errno_of(open_at, files, b"twice") == Errno.NAMETOOLONG


@pytest.mark.parametrize("target", [b"..", b"d/../../etc"])
def test_a_link_that_leads_out_is_refused_when_it_is_followed(files: FileSystem, target: bytes) -> None:
    files.make_directory(files.tmp, b"d")
    files.symlink(target, files.tmp, b"link")
    assert errno_of(open_at, files, b"link") == Errno.NOTCAPABLE


def test_an_absolute_link_is_refused_when_it_is_made(files: FileSystem) -> None:
    assert errno_of(files.symlink, b"/etc/passwd", files.tmp, b"link") == Errno.NOTCAPABLE


def test_readlink_of_anything_else_is_invalid(files: FileSystem) -> None:
    put(files, b"x")
    assert errno_of(files.readlink, files.tmp, b"x") == Errno.INVAL
