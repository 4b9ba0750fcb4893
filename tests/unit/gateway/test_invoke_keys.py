"""Who may invoke a function: asked before a permit is taken, in the lane, and only where there are keys at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from multidict import CIMultiDict
from whole_gateways import whole_gateway
from wires import Served

from faas.config import HostConfig, PoolConfig
from faas.errors import InvokeKeyError, RateLimitedError
from faas.gateway.invoke_keys import InvokeKeyRing
from faas.gateway.metering import Meter
from faas.invocation import Kind
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime
from faas.wire.messages import InvokeKey, Spending, Spent

FUNCTIONS = Path(__file__).resolve().parents[3] / "functions"
CONFIG = HostConfig(pool=PoolConfig(slots=4), guest_threads=1)
TEXT = "faas-fn-a-key"
BOTH = frozenset(("x-faas-key", "authorization"))


class FakeClock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0


def key(name: str = "bot", *, function: str = "f", text: str = TEXT, per_minute: int = 0) -> InvokeKey:
    return InvokeKey(function, name, hashlib.sha256(text.encode()).hexdigest(), per_minute)


def ring(*keys: InvokeKey, clock: FakeClock | None = None) -> InvokeKeyRing:
    return InvokeKeyRing(Meter(clock or FakeClock()), keys)


# --- the ring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, CIMultiDict])
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TEXT}"},
        {"authorization": f"bearer  {TEXT} "},
        {"x-faas-key": TEXT},
        {"x-faas-key": TEXT, "authorization": "Basic dXNlcjpwYXNz"},
    ],
    ids=["bearer", "spaces", "header", "header goes first"],
)
def test_a_key_opens_its_function(kind: Any, headers: dict[str, str]) -> None:
    keys = ring(key(), key("other", text="another"))
    hidden = keys.admit("f", kind(headers), needed=True)
    assert hidden == ({"x-faas-key"} if "x-faas-key" in headers else BOTH)
    assert keys._meter.stats() == {"invoke:f:bot": {"requests": 1, "rate_limited": 0}}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "none was given"),
        ({"authorization": ""}, "none was given"),
        ({"authorization": f"Basic {TEXT}"}, "none was given"),
        ({"authorization": TEXT}, "none was given"),
        ({"x-faas-key": ""}, "none was given"),
        ({"authorization": "Bearer wrong"}, "not one of its keys"),
        ({"authorization": f"Bearer {TEXT}x"}, "not one of its keys"),
        ({"x-faas-key": "wrong", "authorization": f"Bearer {TEXT}"}, "not one of its keys"),
        ({"x-faas-key": "\udcff\udcfe"}, "not one of its keys"),
        ({"authorization": "Bearer of-other"}, "not one of its keys"),
    ],
)
def test_anything_else_is_refused_and_counted_and_never_repeated(headers: dict[str, str], said: str) -> None:
    keys = ring(key(), key(function="other", text="of-other"))
    with pytest.raises(InvokeKeyError) as caught:
        keys.admit("f", headers, needed=True)
    assert said in caught.value.message
    assert not any(text in caught.value.message for text in (TEXT, "wrong", "of-other"))
    assert keys.stats() == {"f": {"key_refused": 1}}


def test_a_function_without_a_key_that_asks_for_one_is_closed() -> None:
    with pytest.raises(InvokeKeyError):
        ring().admit("f", {"x-faas-key": TEXT}, needed=True)


def test_where_none_is_needed_a_key_is_counted_and_what_is_none_stays_the_guests() -> None:
    keys = ring(key())
    assert keys.admit("f", {"authorization": f"Bearer {TEXT}"}, needed=False) == BOTH
    assert keys.admit("f", {"authorization": "Bearer of-the-guest"}, needed=False) == {"x-faas-key"}
    assert keys.admit("f", {"x-faas-key": "unknown"}, needed=False) == {"x-faas-key"}
    assert keys._meter.stats() == {"invoke:f:bot": {"requests": 1, "rate_limited": 0}}
    assert keys.stats() == {}


def test_replaced_keys_open_nothing() -> None:
    keys = ring(key())
    keys.replace([key("new", text="new text")])
    with pytest.raises(InvokeKeyError):
        keys.admit("f", {"x-faas-key": TEXT}, needed=True)
    keys.admit("f", {"x-faas-key": "new text"}, needed=True)
    keys.replace([])
    assert keys.by_function == {}


def test_one_key_over_its_limit_waits_and_another_does_not() -> None:
    clock = FakeClock()
    keys = ring(key(per_minute=2), key("free", text="free"), clock=clock)
    for _ in range(2):
        keys.admit("f", {"x-faas-key": TEXT}, needed=True)
    with pytest.raises(RateLimitedError) as caught:
        keys.admit("f", {"x-faas-key": TEXT}, needed=True)
    assert caught.value.retry_after_s == pytest.approx(30)
    keys.admit("f", {"x-faas-key": "free"}, needed=True)
    assert keys._meter.stats()["invoke:f:bot"] == {"requests": 2, "rate_limited": 1}
    clock.now += 30
    keys.admit("f", {"x-faas-key": TEXT}, needed=True)


def test_a_limit_also_holds_where_no_key_is_needed() -> None:
    keys = ring(key(per_minute=1))
    keys.admit("f", {"x-faas-key": TEXT}, needed=False)
    with pytest.raises(RateLimitedError):
        keys.admit("f", {"x-faas-key": TEXT}, needed=False)
    keys.admit("f", {}, needed=False)


def test_workers_keep_a_limit_together() -> None:
    here, there = ring(key(per_minute=2)), ring(key(per_minute=2))
    for _ in range(2):
        here.admit("f", {"x-faas-key": TEXT}, needed=True)
    spent = here._meter.take_unreported()
    assert spent == Spent({"invoke:f:bot": Spending(2, 2)})
    there._meter.spent_elsewhere(spent)
    with pytest.raises(RateLimitedError):
        there.admit("f", {"x-faas-key": TEXT}, needed=True)


def test_a_limit_that_is_changed_counts_from_now_on() -> None:
    keys = ring(key(per_minute=1))
    keys.admit("f", {"x-faas-key": TEXT}, needed=True)
    keys.replace([key(per_minute=5)])
    for _ in range(4):
        keys.admit("f", {"x-faas-key": TEXT}, needed=True)
    with pytest.raises(RateLimitedError):
        keys.admit("f", {"x-faas-key": TEXT}, needed=True)


# --- the whole gateway -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    made = Runtime(CONFIG)
    yield made
    made.close()


@asynccontextmanager
async def gateway(
    runtime: Runtime, keys: InvokeKeyRing, guest: str = "echo-c", *, invoke: str = "key", permits: int = 4
) -> AsyncIterator[Served]:
    """A gateway whose function tells what it was sent."""
    path = next(path for path in (FUNCTIONS / guest, FUNCTIONS / "bad") if (path / f"{guest}.wasm").exists())
    engine = new_engine(EngineProfile.from_config(CONFIG), pooling=False)
    template = runtime.load(bytes(wasmtime.Module(engine, (path / f"{guest}.wasm").read_bytes()).serialize()))
    kind = Kind.REACTOR if guest == "echo-c" else Kind.COMMAND
    template.has_initialize = kind is Kind.REACTOR
    manifest = {"access": {"invoke": invoke}}
    try:
        async with whole_gateway(runtime, template, kind, permits=permits, manifest=manifest, invoke_keys=keys) as one:
            yield one
    finally:
        template.close()


def get(*headers: str) -> bytes:
    return "\r\n".join(["GET /f HTTP/1.1", "Host: h", *headers, "", ""]).encode()


def status_of(reply: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+) ", reply)
    assert found
    return int(found[1])


async def test_a_request_without_a_key_is_answered_in_the_lane(runtime: Runtime) -> None:
    async with gateway(runtime, ring(key())) as one:
        one.connection.data_received(get())
        assert one.inside == [True]
        reply = one.wire.written
    assert status_of(reply) == 401
    assert b'\r\nWWW-Authenticate: Bearer realm="faas functions"\r\n' in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["code"] == "invalid-invoke-key"


async def test_the_right_key_is_answered_in_the_lane_too(runtime: Runtime) -> None:
    async with gateway(runtime, ring(key())) as one:
        assert status_of(await one.send(get(f"X-Faas-Key: {TEXT}"))) == 200
        assert one.inside == [True]


async def test_who_has_no_key_takes_no_permit_and_no_place_in_the_queue(runtime: Runtime) -> None:
    async with gateway(runtime, ring(key()), permits=1) as one:
        gateway_ = one._handler.__self__  # type: ignore[attr-defined]
        admission = gateway_._admission

        def asked(_permits: object) -> bool:
            raise AssertionError("a permit was asked for")

        admission.try_acquire, before = asked, admission.try_acquire
        assert status_of(await one.send(get())) == 401
        admission.try_acquire = before
        assert status_of(await one.send(get(f"X-Faas-Key: {TEXT}"))) == 200


async def test_who_has_no_key_is_answered_before_its_body_has_come(runtime: Runtime) -> None:
    async with gateway(runtime, ring(key())) as one:
        reply = await one.send(b"POST /f HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        assert status_of(reply) == 401
        assert b"100 Continue" not in reply
        assert b"Connection: close" in reply


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("guest", ["echo-c", "env"])
@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ((f"X-Faas-Key: {TEXT}", "Authorization: Bearer mine"), ["bearer mine"]),
        ((f"Authorization: Bearer {TEXT}", "X-Other: kept"), ["kept"]),
    ],
)
async def test_guests_see_no_keys(
    runtime: Runtime, guest: str, sent: tuple[str, ...], seen: list[str], lane: bool
) -> None:
    async with gateway(runtime, ring(key()), guest) as one:
        one.server.has_lane = one.connection._has_lane = lane
        reply = await one.send(get(*sent))
    assert status_of(reply) == 200
    body = reply.partition(b"\r\n\r\n")[2].decode().lower()
    assert TEXT not in body
    assert "faas-key" not in body
    assert "faas_key" not in body
    for text in seen:
        assert text in body


async def test_a_public_function_without_keys_is_not_asked_about_any(runtime: Runtime) -> None:
    keys = ring(key(function="other"))

    def asked(*_arguments: object, **_options: object) -> frozenset[str]:
        raise AssertionError("keys were looked at")

    keys.admit = asked  # type: ignore[method-assign]
    async with gateway(runtime, keys, invoke="public") as one:
        reply = await one.send(get(f"X-Faas-Key: {TEXT}", "Authorization: Bearer x"))
    assert status_of(reply) == 200
    assert TEXT.encode() in reply  # nothing is taken out either


async def test_a_public_function_with_keys_counts_them_and_serves_everybody(runtime: Runtime) -> None:
    keys = ring(key(per_minute=1))
    async with gateway(runtime, keys, invoke="public") as one:
        assert status_of(await one.send(get())) == 200
        assert status_of(await one.send(get(f"X-Faas-Key: {TEXT}"))) == 200
        limited = await one.send(get(f"X-Faas-Key: {TEXT}"))
        assert status_of(limited) == 429
        assert re.search(rb"\r\nRetry-After: \d+\r\n", limited)
        assert json.loads(limited.partition(b"\r\n\r\n")[2])["code"] == "rate-limited"
        assert status_of(await one.send(get())) == 200
