"""Guests that call the host for ever: each call is short, all of them count, and others are served meanwhile."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hosting import Host
from wasmtime import wat2wasm

WASI = {
    "clock_time_get": "(param i32 i64 i32) (result i32)",
    "fd_allocate": "(param i32 i64 i64) (result i32)",
    "fd_filestat_set_size": "(param i32 i64) (result i32)",
    "fd_readdir": "(param i32 i32 i32 i64 i32) (result i32)",
    "fd_write": "(param i32 i32 i32 i32) (result i32)",
    "path_create_directory": "(param i32 i32 i32) (result i32)",
    "path_open": "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
    "poll_oneoff": "(param i32 i32 i32 i32) (result i32)",
    "random_get": "(param i32 i32) (result i32)",
    "sched_yield": "(result i32)",
}
OPEN = (
    "(call $path_open (i32.const 4) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 1) (i64.const 0x1fffffff)"
    " (i64.const 0) (i32.const 0) (i32.const 128))"
)
# Each is called until the CPU limit. At 0: an iovec of 1 MiB; at 64: a name; at 1024: subscriptions.
ENDLESS = {
    "random bytes": "(call $random_get (i32.const 65536) (i32.const 1048576))",
    "more random bytes than there are": "(call $random_get (i32.const 0) (i32.const -1))",
    "writes of nothing": "(call $fd_write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 128))",
    "a flood of log": "(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 128))",
    "overlapping buffers": "(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 128))",
    "a billion buffers": "(call $fd_write (i32.const 1) (i32.const 0) (i32.const 1000000000) (i32.const 128))",
    "open files": OPEN,
    "growing and cutting a file": f"""(drop {OPEN})
      (drop (call $fd_filestat_set_size (i32.const 5) (i64.const 16000000)))
      (call $fd_filestat_set_size (i32.const 5) (i64.const 0))""",
    "directories": "(call $path_create_directory (i32.const 4) (i32.const 64) (i32.const 200))",
    "listings": "(call $fd_readdir (i32.const 4) (i32.const 65536) (i32.const 131072) (i64.const 0) (i32.const 128))",
    "a million subscriptions": (
        "(call $poll_oneoff (i32.const 1024) (i32.const 99000) (i32.const 1000000) (i32.const 128))"
    ),
    "subscriptions that are all true": (
        "(call $poll_oneoff (i32.const 1024) (i32.const 99000) (i32.const 1024) (i32.const 128))"
    ),
    "the time": "(call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 128))",
    "yielding": "(call $sched_yield)",
    "memory": "(memory.grow (i32.const 1))",
    "a table": "(table.grow (ref.null func) (i32.const 1))",
}


def endless(call: str) -> bytes:
    imports = "\n".join(f'(import "wasi_snapshot_preview1" "{n}" (func ${n} {t}))' for n, t in WASI.items())
    return bytes(
        wat2wasm(f"""(module {imports} (memory (export "memory") 40) (table 1 funcref)
          (func (export "_start") (loop $l {call} drop (br $l)))
          (data (i32.const 0) "\\00\\00\\01\\00\\00\\00\\10\\00") (data (i32.const 64) "name"))""")
    )


@pytest.mark.parametrize("kind", ENDLESS)
def test_host_calls_without_end_are_stopped_by_the_cpu_limit(host: Host, kind: str) -> None:
    name, others = kind.replace(" ", "-"), host.serves("hello-c")
    limits = {"cpu_s": 0.1, "timeout_s": 20, "max_log_bytes": 4096, "memory_bytes": 8 << 20}
    host.deploy(name, endless(ENDLESS[kind]), {"limits": limits})
    workers = host.worker_pids()
    assert host.get(f"/{name}").code == "cpu-limit"
    assert host.get(f"/{others}").status == 200
    assert host.worker_pids() == workers


def test_writing_nothing_again_and_again_costs_no_memory(host: Host) -> None:
    host.deploy("nothings", endless(ENDLESS["writes of nothing"]), {"limits": {"cpu_s": 2, "timeout_s": 20}})
    before = resident_bytes(host)
    assert host.get("/nothings").code == "cpu-limit"
    assert resident_bytes(host) - before < 8 << 20


def resident_bytes(host: Host) -> int:
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in host.worker_pids())
    return sum(pages) * resource.getpagesize()
