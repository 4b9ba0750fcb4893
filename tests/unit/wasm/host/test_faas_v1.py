"""Promises of the faas_v1 host functions: right layouts, every errno, no guest value raises or writes elsewhere."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faas.errors import GuestTrapError
from faas.guest.errno import Errno
from faas.guest.requests import MAX_REQUEST_BYTES
from faas.guest.session import MAX_HANDLES, MAX_KEY_BYTES, MAX_VALUE_BYTES, GuestSession
from faas.guest.signatures import SIGNATURES
from faas.manifest import Capabilities
from faas.testing.memory import BytesMemory
from faas.testing.services import MemoryServices
from faas.wasm.fiber import NoMemory
from faas.wasm.host import HostFunction
from faas.wasm.host.faas import FUNCTIONS, MAX_READ_BYTES

MEMORY_BYTES = 1 << 16
OUT, INPUT, MORE, BUFFER = 256, 1024, 4096, 8192
OUTSIDE = MEMORY_BYTES - 2
LAST_U32, LAST_U64 = 2**32 - 1, 2**64 - 1
ALL = Capabilities(outbound=("a.test",), kv=("default", "other"), calls=("g",), secrets=("KEY",))
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class FakeGuest:
    """An instance without an engine; its calls wait as a fiber would."""

    def __init__(self, capabilities: Capabilities = ALL) -> None:
        self.memory: Any = BytesMemory(MEMORY_BYTES)
        self.host = MemoryServices(config={("f", "MODE"): "größer"}, secrets={("f", "KEY"): "s3cret"})
        self.log: list[bytes] = []
        self.services: GuestSession | None = GuestSession("f", capabilities, self.host.ports, self.log.append)

    async def call(self, name: str, *args: int) -> Errno:
        result = FUNCTIONS[name].call(self, *args)
        if inspect.isawaitable(result):
            assert FUNCTIONS[name].may_suspend
            result = await result
        return Errno(result)

    async def ok(self, name: str, *args: int) -> int:
        """Call, and return the u32 at OUT."""
        assert await self.call(name, *args) == Errno.SUCCESS, self.log
        return int(self.memory.read_u32(OUT))

    def put(self, content: bytes, at: int = INPUT) -> tuple[int, int]:
        self.memory.write(at, content)
        return at, len(content)

    async def result(self, length: int) -> bytes:
        await self.ok("result_read", BUFFER, length, 0)
        return bytes(self.memory.read(BUFFER, length))

    async def store(self, name: bytes = b"default") -> int:
        return await self.ok("kv_open", *self.put(name), OUT)

    async def begin(self, kind: str = "http_begin", **request: Any) -> int:
        return await self.ok(kind, *self.put(encode(request)), OUT)

    async def body(self, handle: int) -> bytes:
        whole = b""
        while n := await self.ok("response_read", handle, BUFFER, 7, OUT):
            whole += self.memory.read(BUFFER, n)
        return whole


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


# The table


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_function_has_the_parameters_of_its_signature(name: str) -> None:
    function = FUNCTIONS[name]
    assert isinstance(function, HostFunction)
    assert (function.params, function.results) == SIGNATURES[name]
    assert len(inspect.signature(function.call).parameters) == 1 + len(function.params)


def test_the_functions_are_those_of_the_signatures() -> None:
    assert set(FUNCTIONS) == set(SIGNATURES)


# Keys and values


async def test_a_value_is_read_as_length_and_then_copied(guest: FakeGuest) -> None:
    store = await guest.store()
    await guest.ok("kv_set", store, *guest.put(b"key"), *guest.put(b"the value", MORE), 0)
    size = await guest.ok("kv_get", store, *guest.put(b"key"), OUT)
    assert size == 9
    assert await guest.result(size) == b"the value"
    await guest.ok("result_read", BUFFER, 5, 4)
    assert guest.memory.read(BUFFER, 5) == b"value"
    assert await guest.call("result_read", BUFFER, 6, 4) == Errno.INVALID


async def test_a_missing_key_is_not_found_and_leaves_the_result_as_it_was(guest: FakeGuest) -> None:
    store = await guest.store()
    await guest.ok("config_get", *guest.put(b"MODE"), OUT)
    assert await guest.call("kv_get", store, *guest.put(b"no"), OUT) == Errno.NOT_FOUND
    assert await guest.call("kv_delete", store, *guest.put(b"no")) == Errno.NOT_FOUND
    assert await guest.result(8) == "größer".encode()
    assert guest.log == []


async def test_keys_are_listed_page_by_page(guest: FakeGuest) -> None:
    store = await guest.store()
    for key in (b"a/1", b"a/2", b"a/3", b"b/1"):
        await guest.ok("kv_set", store, *guest.put(key), *guest.put(b"", MORE), 0)
    size = await guest.ok("kv_list", store, *guest.put(b"a/"), MORE, 0, 2, OUT)
    page = decode(await guest.result(size))
    assert page == {"keys": ["a/1", "a/2"], "cursor": page["cursor"]}
    size = await guest.ok("kv_list", store, *guest.put(b"a/"), *guest.put(page["cursor"].encode(), MORE), 2, OUT)
    assert decode(await guest.result(size)) == {"keys": ["a/3"], "cursor": ""}
    for limit in (0, 1001, LAST_U32):
        assert await guest.call("kv_list", store, INPUT, 0, MORE, 0, limit, OUT) == Errno.INVALID


async def test_an_increment_is_signed_in_both_directions(guest: FakeGuest) -> None:
    store = await guest.store()
    await guest.ok("kv_increment", store, *guest.put(b"n"), LAST_U64 - 4, OUT)
    assert int.from_bytes(guest.memory.read(OUT, 8), "little", signed=True) == -5
    await guest.ok("kv_increment", store, *guest.put(b"n"), 47, OUT)
    assert int.from_bytes(guest.memory.read(OUT, 8), "little", signed=True) == 42
    assert await guest.result(await guest.ok("kv_get", store, *guest.put(b"n"), OUT)) == b"42"
    assert await guest.call("kv_increment", store, *guest.put(b"n"), 2**63 - 1, OUT) == Errno.CONFLICT


async def test_compare_and_set_wants_the_very_value_or_none(guest: FakeGuest) -> None:
    store = await guest.store()
    key, old, new = guest.put(b"k"), guest.put(b"old", MORE), guest.put(b"new", MORE + 16)
    assert await guest.call("kv_compare_and_set", store, *key, 0, *old, *new, 0) == Errno.CONFLICT
    await guest.ok("kv_compare_and_set", store, *key, 1, 0, 0, *old, 0)
    assert await guest.call("kv_compare_and_set", store, *key, 1, 0, 0, *new, 0) == Errno.CONFLICT
    await guest.ok("kv_compare_and_set", store, *key, 0, *old, *new, 0)
    assert await guest.result(await guest.ok("kv_get", store, *key, OUT)) == b"new"
    assert await guest.call("kv_compare_and_set", store, *key, 2, *old, *new, 0) == Errno.INVALID
    assert await guest.call("kv_compare_and_set", store, *key, 1, *old, *new, 0) == Errno.INVALID


async def test_a_time_to_live_is_in_milliseconds(guest: FakeGuest) -> None:
    now = [100.0]
    guest.host.kv._now = lambda: now[0]
    store = await guest.store()
    await guest.ok("kv_set", store, *guest.put(b"k"), *guest.put(b"v", MORE), 1500)
    now[0] = 101.4
    await guest.ok("kv_get", store, *guest.put(b"k"), OUT)
    now[0] = 101.5
    assert await guest.call("kv_get", store, *guest.put(b"k"), OUT) == Errno.NOT_FOUND
    assert await guest.call("kv_set", store, *guest.put(b"k"), *guest.put(b"v", MORE), LAST_U64) == Errno.INVALID


async def test_only_stores_of_the_manifest_are_opened_and_the_grant_is_the_hosts(guest: FakeGuest) -> None:
    assert await guest.call("kv_open", *guest.put(b"third"), OUT) == Errno.DENIED
    assert b"capabilities] kv" in guest.log[0]
    other = await guest.store(b"other")
    assert await guest.call("kv_get", other, *guest.put(b"k"), OUT) == Errno.DENIED
    guest.host.kv.grants.add(("f", "other"))
    assert await guest.call("kv_get", other, *guest.put(b"k"), OUT) == Errno.NOT_FOUND


# Settings


async def test_config_is_free_and_secrets_are_granted(guest: FakeGuest) -> None:
    assert await guest.result(await guest.ok("config_get", *guest.put(b"MODE"), OUT)) == "größer".encode()
    assert await guest.call("config_get", *guest.put(b"NONE"), OUT) == Errno.NOT_FOUND
    assert await guest.result(await guest.ok("secret_get", *guest.put(b"KEY"), OUT)) == b"s3cret"
    assert await guest.call("secret_get", *guest.put(b"OTHER"), OUT) == Errno.DENIED
    assert not any(b"s3cret" in line for line in guest.log)


# Requests


async def test_a_request_is_begun_and_its_response_read(guest: FakeGuest) -> None:
    handle = await guest.begin(method="PUT", url="https://a.test/x", headers={"x-a": "b"}, body=b"hello world")
    head = decode(await guest.result(await guest.ok("response_head", handle, OUT)))
    assert head["status"] == 200
    assert ["x-a", "b"] in head["headers"]
    assert await guest.body(handle) == b"hello world"
    assert await guest.ok("response_read", handle, BUFFER, 1, OUT) == 0
    await guest.ok("close", handle)
    assert guest.host.http.responses[0].closed
    assert await guest.call("close", handle) == Errno.BAD_HANDLE
    assert await guest.call("response_head", handle, OUT) == Errno.BAD_HANDLE


async def test_a_call_names_function_and_qualifier(guest: FakeGuest) -> None:
    handle = await guest.begin("call_begin", function="g", qualifier="3", path="/p", query="a=b", body="text")
    assert await guest.body(handle) == b"text"
    function, qualifier, request = guest.host.calls.sent[0]
    assert (function, qualifier, request.method, request.target) == ("g", "3", "GET", "/p?a=b")
    assert await guest.call("call_begin", *guest.put(encode({"function": "h"})), OUT) == Errno.DENIED
    assert await guest.call("call_begin", *guest.put(encode({"path": "/"})), OUT) == Errno.INVALID


async def test_a_job_is_enqueued_with_its_options(guest: FakeGuest) -> None:
    size = await guest.begin(
        "job_enqueue", function="g", method="POST", body="x", delay_ms=1500, idempotency_key="once"
    )
    job = await guest.result(size)
    caller, function, _, request, options = guest.host.jobs.jobs[job.decode()]
    assert (caller, function, request.method, options.delay_s, options.idempotency_key) == (
        "f",
        "g",
        "POST",
        1.5,
        "once",
    )
    assert await guest.call("job_enqueue", *guest.put(encode({"function": "f"})), OUT) == Errno.DENIED


async def test_several_requests_are_under_way_side_by_side_and_the_first_ready_one_is_told(guest: FakeGuest) -> None:
    slow, quick = guest.host.http.hold("https://a.test/slow"), guest.host.http.hold("https://a.test/quick")
    handles = [await guest.begin(url=f"https://a.test/{name}") for name in ("slow", "quick")]
    guest.put(b"".join(handle.to_bytes(4, "little") for handle in handles), MORE)
    assert await guest.call("wait_any", MORE, 2, 0, OUT) == Errno.TIMEOUT
    waiting = asyncio.ensure_future(guest.ok("wait_any", MORE, 2, LAST_U64, OUT))
    await asyncio.sleep(0)
    assert guest.host.http.n_running == 2
    quick.set()
    assert await waiting == 1
    await guest.ok("response_head", handles[1], OUT)
    slow.set()
    assert await guest.ok("wait_any", MORE, 1, LAST_U64, OUT) == 0


async def test_requests_that_no_map_describes_are_invalid(guest: FakeGuest) -> None:
    for request in (b"", b"\xc1", encode([]), encode({"url": 1}), encode({"url": ""}), encode({"url": "u"}) + b"x"):
        assert await guest.call("http_begin", *guest.put(request), OUT) == Errno.INVALID
    for wrong in (
        {"headers": [["a", 1]]},
        {"body": 1},
        {"timeout_ms": -1},
        {"headers": {str(n): "" for n in range(201)}},
    ):
        assert await guest.call("http_begin", *guest.put(encode({"url": "u", **wrong})), OUT) == Errno.INVALID
    assert guest.host.http.sent == []


async def test_handles_are_limited_and_never_taken_for_another_kind(guest: FakeGuest) -> None:
    store = await guest.store()
    handles = [await guest.begin(url="https://a.test/") for _ in range(MAX_HANDLES)]
    assert len({store, *handles}) == MAX_HANDLES + 1
    assert await guest.call("http_begin", *guest.put(encode({"url": "https://a.test/"})), OUT) == Errno.LIMIT
    await guest.ok("close", handles[0])
    await guest.begin(url="https://a.test/")
    assert await guest.call("kv_get", handles[1], *guest.put(b"k"), OUT) == Errno.BAD_HANDLE
    assert await guest.call("response_head", store, OUT) == Errno.BAD_HANDLE
    await guest.ok("close", store)
    assert await guest.call("close", store) == Errno.BAD_HANDLE
    assert await guest.call("kv_get", store, *guest.put(b"k"), OUT) == Errno.BAD_HANDLE


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("kv_open", (INPUT, 1, OUT)),
        ("secret_get", (INPUT, 1, OUT)),
        ("call_begin", (*(INPUT, 12), OUT)),
        ("job_enqueue", (*(INPUT, 12), OUT)),
    ],
)
async def test_what_the_manifest_does_not_grant_is_denied(name: str, args: tuple[int, ...]) -> None:
    guest = FakeGuest(Capabilities())
    guest.put(encode({"function": "g"}) if "_" in name and name[0] in "cj" else b"g")
    assert await guest.call(name, *args) == Errno.DENIED


async def test_without_an_invocation_everything_is_unavailable(guest: FakeGuest) -> None:
    guest.services = None
    guest.put(b"k")
    for name, (params, _) in SIGNATURES.items():
        args = [1 if letter == "i" else 0 for letter in params]
        if name == "kv_compare_and_set":
            args[3] = 0  # its flags
        assert await guest.call(name, *args) == Errno.UNAVAILABLE, name


# Hostile guests


async def test_a_range_outside_of_the_memory_is_a_fault_and_nothing_is_done(guest: FakeGuest) -> None:
    store = await guest.store()
    key, before = guest.put(b"k"), bytes(guest.memory.data)
    calls: list[tuple[Any, ...]] = [
        ("result_read", OUTSIDE, 3, 0),
        ("kv_open", OUTSIDE, 3, OUT),
        ("kv_open", *key, OUTSIDE),
        ("kv_get", store, OUTSIDE, 3, OUT),
        ("kv_get", store, *key, OUTSIDE),
        ("kv_set", store, OUTSIDE, LAST_U32, *key, 0),
        ("kv_set", store, *key, OUTSIDE, LAST_U32, 0),
        ("kv_delete", store, LAST_U32, LAST_U32),
        ("kv_list", store, OUTSIDE, 3, INPUT, 0, 1, OUT),
        ("kv_list", store, INPUT, 0, OUTSIDE, 3, 1, OUT),
        ("kv_list", store, INPUT, 0, INPUT, 0, 1, OUTSIDE),
        ("kv_increment", store, *key, 1, MEMORY_BYTES - 7),
        ("kv_compare_and_set", store, *key, 0, OUTSIDE, 3, *key, 0),
        ("kv_compare_and_set", store, *key, 0, *key, OUTSIDE, 3, 0),
        ("config_get", *key, OUTSIDE),
        ("secret_get", OUTSIDE, 3, OUT),
        ("http_begin", OUTSIDE, 3, OUT),
        ("http_begin", *key, OUTSIDE),
        ("call_begin", *key, OUTSIDE),
        ("job_enqueue", *key, OUTSIDE),
        ("response_head", 0, OUTSIDE),
        ("response_read", 0, OUTSIDE, 3, OUT),
        ("response_read", 0, BUFFER, 1, OUTSIDE),
        ("wait_any", OUTSIDE, LAST_U32, 0, OUT),
        ("wait_any", INPUT, 1, 0, OUTSIDE),
    ]
    for name, *args in calls:
        assert await guest.call(name, *args) == Errno.FAULT, (name, args)
    assert bytes(guest.memory.data) == before
    assert guest.host.kv._stores.get("f", {}) == {}
    assert (guest.host.http.sent, guest.host.jobs.jobs) == ([], {})


async def test_what_is_too_long_is_refused_before_it_is_asked_for() -> None:
    guest = FakeGuest()
    guest.memory = BytesMemory(MAX_REQUEST_BYTES + MEMORY_BYTES)
    store = await guest.store()
    assert await guest.call("kv_set", store, INPUT, MAX_KEY_BYTES + 1, MORE, 1, 0) == Errno.TOO_LARGE
    assert await guest.call("kv_set", store, INPUT, 1, MORE, MAX_VALUE_BYTES + 1, 0) == Errno.TOO_LARGE
    assert await guest.call("http_begin", INPUT, MAX_REQUEST_BYTES + 1, OUT) == Errno.TOO_LARGE
    assert await guest.call("kv_set", store, INPUT, 0, MORE, 1, 0) == Errno.INVALID
    guest.put(b"\xff")
    assert await guest.call("kv_set", store, INPUT, 1, MORE, 1, 0) == Errno.INVALID
    assert guest.host.kv._stores.get("f", {}) == {}


async def test_a_guest_that_exports_no_memory_traps(guest: FakeGuest) -> None:
    guest.memory = NoMemory()
    with pytest.raises(GuestTrapError, match="export it as 'memory'"):
        await guest.call("config_get", 0, 0, 0)


async def test_one_read_moves_no_more_than_its_most(guest: FakeGuest) -> None:
    guest.memory = BytesMemory(4 * MAX_READ_BYTES)
    handle = await guest.begin(url="https://a.test/", body=b"x" * 2000)
    assert await guest.ok("response_read", handle, BUFFER, 3 * MAX_READ_BYTES, OUT) == 2000
    assert await guest.call("response_read", handle, BUFFER, 0, OUT) == Errno.INVALID


async def test_reasons_are_logged_a_hundred_times(guest: FakeGuest) -> None:
    for _ in range(150):
        await guest.call("kv_open", *guest.put(b"no"), OUT)
    assert len(guest.log) == 101
    assert b"not logged" in guest.log[-1]


words = st.one_of(
    st.sampled_from((0, 1, 2, OUT, INPUT, MORE, OUTSIDE, MEMORY_BYTES, 1 << 16, (1 << 16) + 1, LAST_U32)),
    st.integers(0, LAST_U32),
)
longs = st.one_of(st.sampled_from((0, 1, 2**63, LAST_U64)), st.integers(0, LAST_U64))
# A guest whose waits would last is none of these promises: nothing it waits for is held here.
hostile_calls = st.lists(
    st.sampled_from(sorted(SIGNATURES)).flatmap(
        lambda name: st.tuples(st.just(name), *(longs if letter == "I" else words for letter in SIGNATURES[name][0]))
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(content=st.binary(max_size=64), calls=hostile_calls)
@example(
    content=encode({"url": "https://a.test/"}), calls=[("http_begin", INPUT, 21, OUT), ("response_head", 65536, 0)]
)
def test_no_values_of_a_guest_raise_or_leave_anything_behind(content: bytes, calls: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        guest = FakeGuest()
        guest.put(content)
        await guest.store()
        guest.put(content)
        for name, *args in calls:
            async with asyncio.timeout(5):
                await guest.call(name, *args)
        assert len(guest.memory.data) == MEMORY_BYTES
        assert guest.services is not None
        guest.services.close()
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
        assert all(response.closed for response in guest.host.http.responses)

    asyncio.run(run())


@given(st.binary(max_size=300))
def test_no_bytes_of_a_request_raise(content: bytes) -> None:
    async def run() -> None:
        guest = FakeGuest()
        for name in ("http_begin", "call_begin", "job_enqueue"):
            await guest.call(name, *guest.put(content), OUT)
        assert guest.services is not None
        guest.services.close()

    asyncio.run(run())
