"""Frames between our processes: what goes in comes out, and whatever else comes in is one of our errors."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.errors import FrameTooLargeError, PeerGoneError, ProtocolError, WireError
from faas.invocation import Deployment, Kind
from faas.manifest import Manifest
from faas.wire import framing
from faas.wire.framing import Channel, encode_frame
from faas.wire.messages import (
    Drain,
    FromControl,
    FromWorker,
    Hello,
    Lines,
    Prepared,
    Ready,
    Spending,
    Spent,
    Stats,
    Table,
)
from faas.wire.models import FromModelClient, Generate, Sampling

texts = st.text(max_size=20)
numbers = st.integers(0, 2**53)
floats = st.floats(allow_nan=False, allow_infinity=False)
deployments = st.builds(
    Deployment,
    function=texts,
    version=numbers,
    kind=st.sampled_from(Kind),
    wasm_digest=texts,
    artifact_key=texts,
    bundle_digest=texts,
    manifest=st.builds(
        Manifest, name=st.just("f"), routes=st.lists(texts).map(tuple), env=st.dictionaries(texts, texts)
    ),
    created_at=floats,
)
spent = st.builds(
    Spent, names=st.dictionaries(texts, st.builds(Spending, st.integers(-(2**53), 2**53), numbers, numbers))
)
from_worker = st.one_of(
    spent,
    st.builds(Hello, protocol=numbers, worker=numbers, pid=numbers, token=texts),
    st.builds(Ready, generation=numbers),
    st.builds(Prepared, id=numbers, problem=st.none() | st.dictionaries(texts, texts | numbers)),
    st.builds(Lines, by_function=st.dictionaries(texts, st.binary(max_size=50))),
    st.builds(
        Stats, functions=st.dictionaries(texts, st.dictionaries(texts, floats)), gauges=st.dictionaries(texts, floats)
    ),
)
from_control = st.one_of(
    spent,
    st.builds(Drain, timeout_s=floats),
    st.builds(Table, generation=numbers, deployments=st.lists(deployments, max_size=3).map(tuple)),
)


def fed(raw: bytes, incoming: Any) -> Channel[Any]:
    """Return the receiving end of a connection on which *raw* arrived, and then its end."""
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return Channel(reader, None, incoming)  # type: ignore[arg-type]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Channel[Any], Channel[Any]]]:
    """Lend both ends of one connection: the worker's and the control process's."""
    ours, theirs = socket.socketpair()
    worker = Channel(*await asyncio.open_connection(sock=ours), FromControl)
    control = Channel(*await asyncio.open_connection(sock=theirs), FromWorker)
    try:
        yield worker, control
    finally:
        await worker.aclose()
        await control.aclose()


@given(st.lists(from_worker, max_size=5))
def test_messages_of_a_worker_arrive_whole_and_in_order(messages: list[Any]) -> None:
    async def run() -> None:
        channel = fed(b"".join(map(encode_frame, messages)), FromWorker)
        assert [await channel.receive() for _ in messages] == messages

    asyncio.run(run())


@given(st.lists(from_control, max_size=5))
def test_messages_of_control_arrive_whole_and_in_order(messages: list[Any]) -> None:
    async def run() -> None:
        channel = fed(b"".join(map(encode_frame, messages)), FromControl)
        assert [await channel.receive() for _ in messages] == messages

    asyncio.run(run())


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_a_message_or_one_of_our_errors(raw: bytes) -> None:
    async def run() -> None:
        channel = fed(raw, FromWorker)
        while True:
            try:
                await channel.receive()
            except WireError:
                return

    asyncio.run(run())


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
        lambda i: st.lists(i) | st.dictionaries(st.text() | st.integers(0, 9), i),
    )
)
@settings(max_examples=60)
def test_any_msgpack_value_is_a_message_or_a_protocol_error(value: Any) -> None:
    payload = msgpack.packb(value)

    async def run() -> None:
        try:
            await fed(struct.pack("<I", len(payload)) + payload, FromWorker).receive()
        except ProtocolError:
            return

    asyncio.run(run())


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91" * 60_000, b"\x81\xa4type\xa5hello", b"\x80\x80"])
async def test_a_frame_of_garbage_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        await fed(struct.pack("<I", len(payload)) + payload, FromWorker).receive()


async def test_a_frame_that_is_announced_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameTooLargeError):
        await fed(struct.pack("<I", framing.MAX_FRAME_BYTES + 1), FromWorker).receive()


def test_a_message_that_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameTooLargeError):
        encode_frame(Lines({"f": b"x" * 100}))


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 10])
async def test_half_a_frame_is_a_peer_that_went_away(n_bytes: int) -> None:
    with pytest.raises(PeerGoneError):
        await fed(encode_frame(Hello(1, 0, 7, "token"))[:n_bytes], FromWorker).receive()


async def test_a_message_of_the_other_direction_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        await fed(encode_frame(Drain(1.0)), FromWorker).receive()


async def test_both_ends_talk_at_once() -> None:
    async with connected() as (worker, control):
        await asyncio.gather(worker.send(Ready(1)), control.send(Drain(2.0)))
        assert await asyncio.gather(control.receive(), worker.receive()) == [Ready(1), Drain(2.0)]


async def test_receiving_from_a_closed_peer_says_that_it_is_gone() -> None:
    async with connected() as (worker, control):
        await worker.aclose()
        with pytest.raises(PeerGoneError):
            await control.receive()


async def test_sending_on_a_closed_channel_says_that_the_peer_is_gone() -> None:
    async with connected() as (worker, _control):
        await worker.aclose()
        with pytest.raises(PeerGoneError):
            await worker.send(Ready(1))


async def test_closing_twice_is_fine() -> None:
    async with connected() as (worker, control):
        await worker.aclose()
        await worker.aclose()
        await control.aclose()


async def test_maps_with_integer_keys_arrive_as_they_were_sent() -> None:
    reader = asyncio.StreamReader()
    request = Generate(id=1, model="m", function="f", prompt=b"p", sampling=Sampling(logit_bias={5: -1.5, 7: 2.0}))
    reader.feed_data(encode_frame(request))
    channel: Channel[Any] = Channel(reader, cast("asyncio.StreamWriter", None), FromModelClient)
    assert await channel.receive() == request
