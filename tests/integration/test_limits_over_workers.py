"""A function's limit of concurrency is the whole host's, whichever worker the kernel gives a connection to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import aiohttp
import pytest
from hosting import Host

SLEEP_S = 0.04


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with two workers."""
    two = Host(tmp_path_factory.mktemp("pair") / "home", workers=2)
    try:
        yield two.start()
        two.stop()
    finally:
        two.dispose()


@pytest.mark.parametrize(("limit", "n_requests"), [(1, 24), (3, 60)])
async def test_two_workers_together_run_no_more_than_the_limit_and_serve_all_that_wait(
    pair: Host, limit: int, n_requests: int
) -> None:
    """With one permit on two workers, one of them begins without any."""
    url = f"http://127.0.0.1:{pair.port}/{pair.serves('sleeper', max_concurrency=limit)}?{SLEEP_S * 1000:.0f}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:

        async def get() -> int:
            async with session.get(url) as response:  # a connection of its own: the kernel chooses the worker
                await response.read()
                return response.status

        began = time.monotonic()
        statuses = await asyncio.gather(*(get() for _ in range(n_requests)))
        took_s = time.monotonic() - began
    assert statuses == [200] * n_requests
    # No clock of the host is looked at: fewer than this takes more than `limit` at once.
    assert took_s >= n_requests * SLEEP_S / limit
