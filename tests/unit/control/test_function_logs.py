"""Log lines are kept up to a size, tailed without reading everything, and followed without waiting for slow readers."""

from __future__ import annotations

import os
import threading

import pytest

from faas.clock import SystemClock
from faas.control.logs import FunctionLogs


@pytest.fixture
def logs(tmp_path):
    logs = FunctionLogs(tmp_path / "logs", 4096, SystemClock(), max_pending=2)
    yield logs
    logs.close()


async def tail(logs, function, n_lines):
    return await logs.snapshot(function).last_lines(n_lines)


def line(i):
    return f'{{"text":"line {i}"}}\n'.encode()


async def test_tail_returns_the_last_lines_oldest_first(logs):
    for i in range(10):
        logs.append("hello", line(i))
    assert await tail(logs, "hello", 3) == [line(7), line(8), line(9)]
    assert await tail(logs, "hello", 0) == []
    assert await tail(logs, "nobody", 3) == []


def test_full_file_is_set_aside_and_two_old_ones_are_kept(logs, tmp_path):
    for i in range(2000):
        logs.append("hello", line(i))
    files = sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in files] == ["hello.jsonl", "hello.jsonl.1", "hello.jsonl.2"]
    assert all(path.stat().st_size <= 4096 for path in files)


async def test_tail_reads_on_in_older_files(logs):
    for i in range(2000):
        logs.append("hello", line(i))
    assert await tail(logs, "hello", 250) == [line(i) for i in range(1750, 2000)]
    assert len(await tail(logs, "hello", 100_000)) < 2000


async def test_blob_larger_than_a_file_is_kept_whole(logs):
    logs.append("hello", line(0))
    logs.append("hello", b"".join(line(i) for i in range(1, 1000)))
    assert await tail(logs, "hello", 1000) == [line(i) for i in range(1000)]


async def test_lines_longer_than_a_read_come_back_whole(logs):
    long = b'{"text":"' + b"x" * 200_000 + b'"}\n'
    logs.append("hello", long)
    logs.append("hello", line(1))
    assert await tail(logs, "hello", 2) == [long, line(1)]


@pytest.mark.parametrize("name", ["../state", "a/b", "", "..", "A", "x" * 64, "a\0"])
async def test_name_that_is_no_function_writes_nothing(logs, tmp_path, name):
    logs.append(name, line(1))
    assert list(tmp_path.rglob("*")) == [tmp_path / "logs"]
    assert await tail(logs, name, 5) == []
    assert not logs.known(name)


async def test_many_functions_do_not_keep_many_files_open(logs):
    before = len(os.listdir("/proc/self/fd"))
    for i in range(200):
        logs.append(f"f{i}", line(i))
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert await tail(logs, "f0", 1) == [line(0)]
    logs.append("f0", line(1))
    assert await tail(logs, "f0", 2) == [line(0), line(1)]


async def test_follower_gets_new_lines_of_its_function_only(logs):
    logs.append("hello", line(0))
    follower = logs.follow("hello")
    logs.append("other", line(1))
    logs.append("hello", line(2))
    logs.unfollow(follower)
    logs.append("hello", line(3))
    assert [blob async for blob in follower] == [line(2)]
    assert not follower.too_slow


async def test_slow_follower_is_dropped_and_the_others_go_on(logs):
    slow, quick = logs.follow("hello"), logs.follow("hello")
    reader = aiter(quick)
    for i in range(5):
        logs.append("hello", line(i))
        assert await anext(reader) == line(i)
    assert [blob async for blob in slow] == [line(0), line(1)]
    assert slow.too_slow
    assert not quick.too_slow
    assert b"logs.dropped" in logs.dropped_note("hello")


async def test_close_ends_followers(logs):
    follower = logs.follow("hello")
    logs.close()
    assert [blob async for blob in follower] == []


async def test_full_disk_loses_lines_and_nothing_else(logs, monkeypatch):
    logs.append("hello", line(0))

    def refuse(descriptor, blob):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        logs.append("hello", line(1))
    logs.append("hello", line(2))
    assert await tail(logs, "hello", 5) == [line(0), line(2)]


async def test_snapshot_is_of_its_moment_even_when_files_are_rotated_meanwhile(logs):
    for i in range(3):
        logs.append("hello", line(i))
    before = logs.snapshot("hello")
    for i in range(3, 2000):
        logs.append("hello", line(i))
    assert await before.last_lines(100) == [line(0), line(1), line(2)]


async def test_tail_of_a_large_file_reads_no_byte_twice_and_never_on_the_loop(logs, monkeypatch):
    text = b"".join(line(i) for i in range(50_000))
    logs.append("hello", text)
    reads = []
    snapshot = logs.snapshot("hello")
    (file, size), *_ = snapshot._files

    class Counted:
        seek, close = file.seek, file.close

        def read(self, n):
            reads.append((n, threading.current_thread()))
            return file.read(n)

    snapshot._files[0] = (Counted(), size)
    assert b"".join(await snapshot.last_lines(100_000)) == text
    assert sum(n for n, _ in reads) == len(text)
    assert threading.main_thread() not in {thread for _, thread in reads}
    assert file.closed
