"""Log lines are kept up to a size, tailed without reading everything, and followed without waiting for slow readers."""

from __future__ import annotations

import os

import pytest

from faas.clock import SystemClock
from faas.control.logs import FunctionLogs


@pytest.fixture
def logs(tmp_path):
    logs = FunctionLogs(tmp_path / "logs", 4096, SystemClock(), max_pending=2)
    yield logs
    logs.close()


def line(i):
    return f'{{"text":"line {i}"}}\n'.encode()


def test_tail_returns_the_last_lines_oldest_first(logs):
    for i in range(10):
        logs.append("hello", line(i))
    assert logs.tail("hello", 3) == [line(7), line(8), line(9)]
    assert logs.tail("hello", 0) == []
    assert logs.tail("nobody", 3) == []


def test_full_file_is_set_aside_and_two_old_ones_are_kept(logs, tmp_path):
    for i in range(2000):
        logs.append("hello", line(i))
    files = sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in files] == ["hello.jsonl", "hello.jsonl.1", "hello.jsonl.2"]
    assert all(path.stat().st_size <= 4096 for path in files)


def test_tail_reads_on_in_older_files(logs):
    for i in range(2000):
        logs.append("hello", line(i))
    assert logs.tail("hello", 250) == [line(i) for i in range(1750, 2000)]
    assert len(logs.tail("hello", 100_000)) < 2000


def test_blob_larger_than_a_file_is_kept_whole(logs):
    logs.append("hello", line(0))
    logs.append("hello", b"".join(line(i) for i in range(1, 1000)))
    assert logs.tail("hello", 1000) == [line(i) for i in range(1000)]


def test_lines_longer_than_a_read_come_back_whole(logs):
    long = b'{"text":"' + b"x" * 200_000 + b'"}\n'
    logs.append("hello", long)
    logs.append("hello", line(1))
    assert logs.tail("hello", 2) == [long, line(1)]


@pytest.mark.parametrize("name", ["../state", "a/b", "", "..", "A", "x" * 64, "a\0"])
def test_name_that_is_no_function_writes_nothing(logs, tmp_path, name):
    logs.append(name, line(1))
    assert list(tmp_path.rglob("*")) == [tmp_path / "logs"]
    assert logs.tail(name, 5) == []
    assert not logs.known(name)


def test_many_functions_do_not_keep_many_files_open(logs):
    before = len(os.listdir("/proc/self/fd"))
    for i in range(200):
        logs.append(f"f{i}", line(i))
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert logs.tail("f0", 1) == [line(0)]
    logs.append("f0", line(1))
    assert logs.tail("f0", 2) == [line(0), line(1)]


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


def test_full_disk_loses_lines_and_nothing_else(logs, monkeypatch):
    logs.append("hello", line(0))

    def refuse(descriptor, blob):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        logs.append("hello", line(1))
    logs.append("hello", line(2))
    assert logs.tail("hello", 5) == [line(0), line(2)]
