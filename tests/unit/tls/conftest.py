"""TLS is tried on the loop that workers run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that each asynchronous test of this folder runs on."""
    return {"uvloop": uvloop.new_event_loop}
