"""Many requests at once: sleepers, spinners, clients that leave, limits on concurrency, and no leaks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hosting import Host, MakeHost, until, wasm


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with one worker, so that what shares a worker is sure to share it."""
    one = Host(tmp_path_factory.mktemp("single") / "home", workers=1)
    try:
        yield one.start()
        one.stop()
    finally:
        one.dispose()


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(30))


async def get(session: aiohttp.ClientSession, host: Host, path: str, **options: Any) -> tuple[int, str]:
    async with session.get(f"http://127.0.0.1:{host.port}{path}", **options) as response:
        return response.status, await response.text()


async def test_200_sleepers_of_one_second_finish_together(single: Host) -> None:
    path = f"/{single.serves('sleeper')}?1000"
    async with client() as session:
        began = time.monotonic()
        replies = await asyncio.gather(*(get(session, single, path) for _ in range(200)))
        took_s = time.monotonic() - began
    assert Counter(replies) == {(200, "slept 1000 ms\n"): 200}
    assert took_s < 3


async def test_endless_loops_end_at_their_limit_while_others_are_served(single: Host) -> None:
    """Four loops on one worker; what they may use of the CPU is theirs, the rest is everybody's."""
    loop, hello = single.serves("loop", cpu_s=0.4), single.serves("hello-c")
    async with client() as session:

        async def spin() -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{single.port}/{loop}") as response:
                return response.status, (await response.json())["code"]

        spinning = asyncio.gather(*(spin() for _ in range(4)))
        took_s: list[float] = []
        while not spinning.done():
            began = time.monotonic()
            assert (await get(session, single, f"/{hello}"))[0] == 200
            took_s.append(time.monotonic() - began)
        assert await spinning == [(504, "cpu-limit")] * 4
    assert len(took_s) > 20
    assert sorted(took_s)[len(took_s) * 9 // 10] < 0.2


async def test_a_client_that_leaves_cancels_its_guest(single: Host) -> None:
    name = single.serves("sleeper", timeout_s=60)
    async with client() as session:
        with pytest.raises(asyncio.TimeoutError):
            await get(
                session,
                single,
                f"/{name}?50000",
                headers={"X-Request-Id": "left"},
                timeout=aiohttp.ClientTimeout(total=0.3),
            )
    finished = (await asyncio.to_thread(single.log_of, name, "left"))[-1]
    assert finished["outcome"] == "cancelled"
    assert finished["duration_ms"] < 10_000
    await asyncio.to_thread(until, lambda: single.gauge("instances") == 0, what="no instance is left")


async def test_a_client_that_leaves_ends_a_spinning_guest_too(single: Host) -> None:
    name = single.serves("loop", cpu_s=60, timeout_s=60)
    with socket.create_connection(("127.0.0.1", single.port)) as raw:
        raw.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\nX-Request-Id: left-spinning\r\n\r\n".encode())
        await asyncio.to_thread(until, lambda: single.gauge("instances") == 1, what="the guest runs")
    finished = (await asyncio.to_thread(single.log_of, name, "left-spinning"))[-1]
    assert finished["outcome"] == "cancelled"
    await asyncio.to_thread(until, lambda: single.gauge("instances") == 0, what="no instance is left")


async def test_max_concurrency_lets_the_rest_wait_their_turn(single: Host) -> None:
    path = f"/{single.serves('sleeper', max_concurrency=2)}?200"
    async with client() as session:
        began = time.monotonic()
        replies = await asyncio.gather(*(get(session, single, path) for _ in range(6)))
    assert Counter(status for status, _ in replies) == {200: 6}
    assert time.monotonic() - began >= 0.6


async def test_a_full_queue_answers_at_once_with_when_to_try_again(make_host: MakeHost) -> None:
    host = make_host(max_queue=2, queue_timeout_s=10).start()
    path = f"/{host.serves('sleeper', max_concurrency=1)}?300"
    async with client() as session:

        async def status() -> tuple[int, str | None]:
            async with session.get(f"http://127.0.0.1:{host.port}{path}") as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")

        began = time.monotonic()
        replies = await asyncio.gather(*(status() for _ in range(8)))
    assert Counter(replies) == {(200, None): 3, (429, "1"): 5}
    assert time.monotonic() - began < 5


async def test_a_wait_that_is_too_long_ends_with_the_functions_own_limit(make_host: MakeHost) -> None:
    host = make_host(queue_timeout_s=0.2).start()
    name = host.serves("sleeper", max_concurrency=1)
    async with client() as session:
        replies = await asyncio.gather(*(get(session, host, f"/{name}?600") for _ in range(2)))
    assert sorted(status for status, _ in replies) == [200, 429]


def test_requests_leave_no_descriptors_and_no_threads_behind(make_host: MakeHost) -> None:
    """25 requests of each kind, good and bad: what a worker holds afterwards is what it held before."""
    host = make_host().start()
    paths = [
        f"/{host.serves('hello-c')}",
        f"/{host.serves('echo-c')}",
        f"/{host.serves('trap')}",
        f"/{host.serves('stream')}?1",
        f"/{host.serves('tmp-hog', tmp_bytes=1000)}?1",
        f"/{host.serves('loop', cpu_s=0.01)}",
    ]
    (worker,) = host.worker_pids()

    def round_of_requests() -> None:
        for path in paths:
            host.get(path)

    def held() -> tuple[int, int]:
        return len(list(Path(f"/proc/{worker}/fd").iterdir())), len(list(Path(f"/proc/{worker}/task").iterdir()))

    for _ in range(5):
        round_of_requests()
    n_descriptors, n_threads = held()
    for _ in range(25):
        round_of_requests()
    assert host.worker_pids() == [worker]
    until(lambda: held()[0] <= n_descriptors, what="connections are closed")
    assert held()[1] <= n_threads + 1


def test_a_host_can_be_opened_and_closed_again_and_again(make_host: MakeHost) -> None:
    """Each time it serves what it served before, and leaves no socket, process or temporary file behind."""
    first = make_host("again").start()
    first.deploy("hello", wasm("hello-c"))
    first.stop()
    kept: set[str] = set()
    for _ in range(3):
        host = make_host("again").start()
        assert host.get("/hello").status == 200
        workers = host.worker_pids()
        host.stop()
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        files = {path.relative_to(host.home).as_posix() for path in host.home.rglob("*") if not path.is_dir()}
        assert not kept or files == kept
        kept = files
