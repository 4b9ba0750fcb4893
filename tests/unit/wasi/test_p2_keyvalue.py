"""Promises of wasi:keyvalue in both drafts: who may open what, and what its functions make of the host's answers."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from faas.clock import SystemClock
from faas.errors import InternalError, KvDeniedError, KvFullError, StateError
from faas.wasi import wit
from faas.wasi.context import WasiContext
from faas.wasi.p2 import keyvalue
from faas.wasi.p2.keyvalue import Bucket, Cas, Granted
from faas.wasi.p2.resources import WitError
from faas.wasi.streams import DiscardedOutput, EmptyInput, LineOutput

DRAFT2 = "0.2.0-draft2"
DRAFT = "0.2.0-draft"


class FakePort:
    """Stores in memory, one answer after another; ``fails`` makes each of them an error."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.fails: Exception | None = None
        self.n_writes = 0

    def _ask(self, caller: str, store: str) -> None:
        self.asked.append((caller, store))
        if self.fails is not None:
            raise self.fails

    def put(self, key: str, value: bytes) -> None:
        self.n_writes += 1
        self.entries[key] = (value, self.n_writes)

    async def get(self, caller: str, store: str, key: str) -> bytes | None:
        self._ask(caller, store)
        return self.entries.get(key, (None, 0))[0]

    async def set(self, caller: str, store: str, key: str, value: bytes) -> None:
        self._ask(caller, store)
        self.put(key, value)

    async def delete(self, caller: str, store: str, key: str) -> bool:
        self._ask(caller, store)
        return self.entries.pop(key, None) is not None

    async def exists(self, caller: str, store: str, key: str) -> bool:
        self._ask(caller, store)
        return key in self.entries

    async def list(
        self, caller: str, store: str, prefix: str, *, cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[str], str]:
        self._ask(caller, store)
        keys = [key for key in sorted(self.entries) if key > cursor]
        return tuple(keys[:2]), keys[1] if len(keys) > 2 else ""

    async def increment(self, caller: str, store: str, key: str, delta: int) -> int:
        self._ask(caller, store)
        total = int(self.entries.get(key, (b"0", 0))[0]) + delta
        self.put(key, b"%d" % total)
        return total

    async def entry(self, caller: str, store: str, key: str) -> tuple[bytes | None, int]:
        self._ask(caller, store)
        return self.entries.get(key, (None, 0))

    async def swap(self, caller: str, store: str, key: str, revision: int, value: bytes) -> bool:
        self._ask(caller, store)
        if self.entries.get(key, (None, 0))[1] != revision:
            return False
        self.put(key, value)
        return True

    async def get_many(self, caller: str, store: str, keys: Sequence[str]) -> dict[str, bytes]:
        self._ask(caller, store)
        return {key: self.entries[key][0] for key in keys if key in self.entries}

    async def set_many(self, caller: str, store: str, entries: Sequence[tuple[str, bytes]]) -> None:
        self._ask(caller, store)
        for key, value in entries:
            self.put(key, value)

    async def delete_many(self, caller: str, store: str, keys: Sequence[str]) -> int:
        self._ask(caller, store)
        return sum(self.entries.pop(key, None) is not None for key in keys)


class FakeGuest:
    """An instance without an engine, of the function ``f``."""

    def __init__(self, *kv: str, port: FakePort | None = None) -> None:
        self.granted: Granted | None = Granted("f", kv, (), port, lambda *_: None)
        self.lines: list[bytes] = []
        stderr = LineOutput(self.lines.append, 1 << 20, 1 << 16)
        self.wasi = WasiContext((), (), EmptyInput(), DiscardedOutput(), stderr, None, 0, SystemClock())

    async def call(self, function: str, *args: Any, draft: str = DRAFT2) -> Any:
        interface = next(
            name for name, there in keyvalue.FUNCTIONS.items() if name.endswith(draft) and function in there
        )
        answer = keyvalue.FUNCTIONS[interface][function].call(self, *args)
        return await answer if isinstance(answer, Awaitable) else answer


@pytest.fixture
def port() -> FakePort:
    return FakePort()


@pytest.fixture
def guest(port: FakePort) -> FakeGuest:
    return FakeGuest("default", "other", port=port)


@pytest.fixture
async def bucket(guest: FakeGuest) -> Bucket:
    opened = await guest.call("open", "default")
    assert isinstance(opened, Bucket)
    return opened


def test_the_registry_has_the_functions_of_both_drafts() -> None:
    wanted = {name: interface for name, interface in wit.interfaces().items() if name.startswith("wasi:keyvalue/")}
    assert set(keyvalue.FUNCTIONS) == set(wanted)
    assert len(wanted) == 6
    for name, functions in keyvalue.FUNCTIONS.items():
        assert set(functions) == set(wanted[name].functions)
        for function, registered in functions.items():
            parameters = inspect.signature(registered.call).parameters
            assert len(parameters) == 1 + len(wanted[name].functions[function].params)
            waits = "Awaitable" in str(inspect.signature(registered.call).return_annotation)
            assert waits is registered.may_suspend


@pytest.mark.parametrize(("identifier", "store"), [("default", "f"), ("", "f"), ("other", "other")])
async def test_a_store_is_opened_by_the_name_in_the_manifest(
    guest: FakeGuest, port: FakePort, identifier: str, store: str
) -> None:
    await guest.call("[method]bucket.get", await guest.call("open", identifier), "k")
    assert port.asked == [("f", store)]


@pytest.mark.parametrize("identifier", ["unknown", "f", "Default"])
async def test_a_store_that_the_manifest_does_not_name_is_refused(guest: FakeGuest, identifier: str) -> None:
    with pytest.raises(WitError) as caught:
        await guest.call("open", identifier)
    assert caught.value.value == ("access-denied", None)
    assert b"[capabilities] kv" in guest.lines[0]


@pytest.mark.parametrize("granted", [None, Granted("f", ("default",), (), None, lambda *_: None)])
async def test_where_there_are_no_stores_none_is_opened(guest: FakeGuest, granted: Granted | None) -> None:
    guest.granted = granted
    with pytest.raises(WitError):
        await guest.call("open", "default")


@pytest.mark.parametrize(
    ("failure", "declared"),
    [
        (KvDeniedError("no grant"), ("access-denied", None)),
        (KvFullError("full; delete keys"), ("other", "full; delete keys")),
        (StateError("disk full"), ("other", "disk full")),
    ],
)
async def test_what_the_host_refuses_is_an_error_that_the_guest_handles(
    guest: FakeGuest, port: FakePort, bucket: Bucket, failure: Exception, declared: Any
) -> None:
    cas = await guest.call("[static]cas.new", bucket, "k")
    port.fails = failure
    for function, *args in (
        ("[method]bucket.get", bucket, "k"),
        ("[method]bucket.set", bucket, "k", b""),
        ("[method]bucket.delete", bucket, "k"),
        ("[method]bucket.exists", bucket, "k"),
        ("[method]bucket.list-keys", bucket, None),
        ("increment", bucket, "k", 1),
        ("[static]cas.new", bucket, "k"),
        ("[method]cas.current", cas),
        ("get-many", bucket, ["k"]),
        ("set-many", bucket, [("k", b"")]),
        ("delete-many", bucket, ["k"]),
    ):
        with pytest.raises(WitError) as caught:
            await guest.call(function, *args)
        assert caught.value.value == declared
    with pytest.raises(WitError) as caught:
        await guest.call("swap", cas, b"")
    assert caught.value.value == ("store-error", declared)
    # The function's log says why, once, where the error has no room for it.
    assert guest.lines == ([b"wasi:keyvalue: access-denied: no grant"] if declared[1] is None else [])


async def test_a_bug_of_ours_is_nothing_that_a_guest_handles(guest: FakeGuest, port: FakePort, bucket: Bucket) -> None:
    port.fails = InternalError("bug")
    with pytest.raises(InternalError):
        await guest.call("[method]bucket.get", bucket, "k")


async def test_nothing_is_asked_for_a_guest_that_ends_before_it_waits(
    guest: FakeGuest, port: FakePort, bucket: Bucket
) -> None:
    keyvalue.FUNCTIONS[f"wasi:keyvalue/store@{DRAFT2}"]["[method]bucket.get"].call(guest, bucket, "k")
    assert port.asked == []


async def test_pages_follow_one_another_by_their_cursors(guest: FakeGuest, port: FakePort, bucket: Bucket) -> None:
    for key in "abcde":
        port.put(key, b"")
    for draft in (DRAFT2, DRAFT):
        found, cursor = [], None
        while True:
            keys, cursor = await guest.call("[method]bucket.list-keys", bucket, cursor, draft=draft)
            found += keys
            if cursor is None:
                break
            assert isinstance(cursor, str if draft == DRAFT2 else int)
        assert found == list("abcde")


async def test_a_number_that_is_no_cursor_is_an_error(guest: FakeGuest, bucket: Bucket) -> None:
    with pytest.raises(WitError):
        await guest.call("[method]bucket.list-keys", bucket, 0, draft=DRAFT)


async def test_unsigned_increments_stay_unsigned(guest: FakeGuest, port: FakePort, bucket: Bucket) -> None:
    assert await guest.call("increment", bucket, "n", 5, draft=DRAFT) == 5
    with pytest.raises(WitError):
        await guest.call("increment", bucket, "n", 2**63, draft=DRAFT)
    assert port.entries["n"][0] == b"5"
    port.put("n", b"-9")
    with pytest.raises(WitError):
        await guest.call("increment", bucket, "n", 1, draft=DRAFT)


async def test_swap_succeeds_on_what_was_seen(guest: FakeGuest, port: FakePort, bucket: Bucket) -> None:
    cas = await guest.call("[static]cas.new", bucket, "k")
    assert await guest.call("[method]cas.current", cas) is None
    await guest.call("swap", cas, b"1")
    assert port.entries["k"][0] == b"1"


async def test_swap_that_came_too_late_gives_a_handle_on_what_is_there(
    guest: FakeGuest, port: FakePort, bucket: Bucket
) -> None:
    cas = await guest.call("[static]cas.new", bucket, "k")
    port.put("k", b"theirs")
    with pytest.raises(WitError) as caught:
        await guest.call("swap", cas, b"1")
    case, again = caught.value.value
    assert case == "cas-failed"
    assert isinstance(again, Cas)
    assert await guest.call("[method]cas.current", again) == b"theirs"
    await guest.call("swap", again, b"2")
    assert port.entries["k"][0] == b"2"


async def test_a_value_that_was_looked_at_later_is_the_one_to_swap(
    guest: FakeGuest, port: FakePort, bucket: Bucket
) -> None:
    cas = await guest.call("[static]cas.new", bucket, "k")
    port.put("k", b"theirs")
    assert await guest.call("[method]cas.current", cas) == b"theirs"
    await guest.call("swap", cas, b"1")
    assert port.entries["k"][0] == b"1"


async def test_many_come_in_the_order_they_were_asked_for(guest: FakeGuest, bucket: Bucket) -> None:
    await guest.call("set-many", bucket, [("a", b"1"), ("b", b"2")])
    assert await guest.call("get-many", bucket, ["b", "x", "a", "b"]) == [("b", b"2"), None, ("a", b"1"), ("b", b"2")]
    await guest.call("delete-many", bucket, ["a", "x"])
    assert await guest.call("get-many", bucket, ["a"]) == [None]
