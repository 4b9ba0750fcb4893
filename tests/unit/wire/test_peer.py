"""Two ends that ask each other: a question ends in an answer, an error, a cancellation, or with the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from faas.errors import FrameTooLargeError, InternalError, OverloadedError, PeerGoneError, RouteTakenError
from faas.wire import peer as peers
from faas.wire.framing import encode_frame
from faas.wire.peer import Answer, Ask, Cancel, Peer

_decoder = msgspec.msgpack.Decoder(Ask | Answer | Cancel)


class Wire:
    """Both ends and what was said, through real encoding; ``gone`` makes sending fail."""

    def __init__(self, here: dict[str, Any], there: dict[str, Any]) -> None:
        self.gone = False
        self.said: list[Any] = []
        self.here = Peer(lambda message: self._carry(message, self.there), here)
        self.there = Peer(lambda message: self._carry(message, self.here), there)

    def _carry(self, message: msgspec.Struct, to: Peer) -> None:
        if self.gone:
            raise PeerGoneError("gone")
        copied = _decoder.decode(encode_frame(message)[4:])
        self.said.append(copied)
        asyncio.get_running_loop().call_soon(to.take, copied)


async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


async def test_an_answer_carries_what_the_handler_returned_bytes_included() -> None:
    wire = Wire({}, {"echo": echo})
    assert await wire.here.ask("echo", key=b"\xff\x00", n=2**40, none=None) == {
        "key": b"\xff\x00",
        "n": 2**40,
        "none": None,
    }


async def test_both_ends_may_ask_at_the_same_time_with_the_same_ids() -> None:
    async def here(arguments: dict[str, Any]) -> str:
        return f"here {arguments['n']}"

    async def there(arguments: dict[str, Any]) -> str:
        return f"there {arguments['n']}"

    wire = Wire({"f": here}, {"f": there})
    asked = [end.ask("f", n=n) for n in range(3) for end in (wire.here, wire.there)]
    assert await asyncio.gather(*asked) == [f"{end} {n}" for n in range(3) for end in ("there", "here")]


async def test_an_error_of_ours_comes_out_as_itself_with_its_facts() -> None:
    async def refuse(_arguments: dict[str, Any]) -> None:
        raise RouteTakenError("taken", route="/x")

    with pytest.raises(RouteTakenError, match="taken") as caught:
        await Wire({}, {"f": refuse}).here.ask("f")
    assert caught.value.facts["route"] == "/x"


async def test_a_bug_in_a_handler_is_an_internal_error_without_its_text() -> None:
    async def fail(_arguments: dict[str, Any]) -> None:
        raise KeyError("a secret")

    with pytest.raises(InternalError) as caught:
        await Wire({}, {"f": fail}).here.ask("f")
    assert "secret" not in caught.value.message


def test_questions_and_answers_do_not_show_what_they_carry() -> None:
    shown = repr(Ask(1, "op", {"secrets": {"TOKEN": "geheim"}})) + repr(Answer(1, value=b"geheim"))
    assert "geheim" not in shown
    assert "op" in shown


async def test_an_unknown_operation_is_an_error() -> None:
    with pytest.raises(InternalError, match="nobody answers 'f'"):
        await Wire({}, {}).here.ask("f")


async def test_cancelling_a_question_cancels_its_handler() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_arguments: dict[str, Any]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    wire = Wire({}, {"f": wait})
    asking = asyncio.create_task(wire.here.ask("f"))
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await cancelled.wait()


async def test_the_end_of_the_connection_ends_questions_and_handlers() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_arguments: dict[str, Any]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    wire = Wire({}, {"f": wait})
    asking = asyncio.create_task(wire.here.ask("f"))
    await began.wait()
    wire.gone = True
    wire.here.close()
    wire.there.close()
    with pytest.raises(PeerGoneError):
        await asking
    await cancelled.wait()
    with pytest.raises(PeerGoneError):
        await wire.here.ask("f")


async def test_an_answer_that_fits_no_frame_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.wire.framing.MAX_FRAME_BYTES", 4096)

    async def large(_arguments: dict[str, Any]) -> bytes:
        return b"x" * 5000

    with pytest.raises(FrameTooLargeError):
        await Wire({}, {"f": large}).here.ask("f")


async def test_a_question_that_fits_no_frame_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.wire.framing.MAX_FRAME_BYTES", 4096)
    wire = Wire({}, {"echo": echo})
    with pytest.raises(FrameTooLargeError):
        await wire.here.ask("echo", body=b"x" * 5000)
    assert await wire.here.ask("echo", n=1) == {"n": 1}


async def test_more_questions_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_UNDER_WAY", 1)
    began, go = asyncio.Event(), asyncio.Event()

    async def wait(_arguments: dict[str, Any]) -> str:
        began.set()
        await go.wait()
        return "done"

    wire = Wire({}, {"f": wait})
    first = asyncio.create_task(wire.here.ask("f"))
    await began.wait()
    with pytest.raises(OverloadedError):
        await wire.here.ask("f")
    go.set()
    assert await first == "done"
