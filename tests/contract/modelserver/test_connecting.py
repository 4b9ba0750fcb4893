"""Connections and models: hellos, hostile frames, slow readers, loading and unloading, the process itself."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hosting import demo_model
from rigging import ENDLESS, TIMEOUT_S, TOKEN, MakeRig, needs_llama, wait_for

from faas.errors import PeerGoneError
from faas.nn.errno import NnErrno, to_nn_error
from faas.problems import from_problem
from faas.testing.fake_backend import FakeFile
from faas.wire.framing import MAX_FRAME_BYTES, Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    ClientHello,
    Describe,
    Final,
    Finish,
    FromModelServer,
    Generate,
    More,
    Ping,
    Pong,
    Register,
    ServerHello,
    Unregister,
)

pytestmark = pytest.mark.timeout(60)


async def test_hello_tells_the_backend_and_the_models(make_rig: MakeRig) -> None:
    client = await (await make_rig(files={"a": FakeFile(), "b": FakeFile()})).connect()
    assert client.hello.backend == "fake"
    assert [(card.name, card.loaded) for card in client.hello.models] == [("a", False), ("b", False)]


@pytest.mark.parametrize("hello", [{"token": "wrong"}, {"protocol": MODEL_PROTOCOL_VERSION + 1}])
async def test_a_wrong_hello_closes_the_connection(make_rig: MakeRig, hello: dict[str, object]) -> None:
    rig = await make_rig()
    with pytest.raises(PeerGoneError):
        await rig.connect(**hello)
    assert (await (await rig.connect()).generate(b"x", max_tokens=1)).final.finish is Finish.LENGTH


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        struct.pack("<I", 1) + b"\x01",
        struct.pack("<I", 100) + b"short",
    ],
)
@pytest.mark.parametrize("after_hello", [False, True])
async def test_garbage_closes_its_connection_and_nothing_else(
    make_rig: MakeRig, garbage: bytes, after_hello: bool
) -> None:
    rig = await make_rig()
    reader, writer = await asyncio.open_unix_connection(rig.socket)
    if after_hello:
        channel: Channel[ServerHello] = Channel(reader, writer, FromModelServer)
        await channel.send(ClientHello(MODEL_PROTOCOL_VERSION, "x", TOKEN))
        await channel.receive()
    writer.write(garbage)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert (await (await rig.connect()).generate(b"x", max_tokens=1)).final.finish is Finish.LENGTH


async def test_an_id_used_twice_at_once_closes_the_connection(make_rig: MakeRig) -> None:
    rig = await make_rig(gated=True)
    client = await rig.connect()
    for _ in range(2):
        await client.channel.send(Generate(1, "m", "f", b"x", sampling=ENDLESS))
    with pytest.raises(PeerGoneError):
        await client.receive()


async def test_ping_is_answered_while_a_model_computes(make_rig: MakeRig) -> None:
    rig = await make_rig(gated=True)
    client = await rig.connect()
    await client.start(b"x", sampling=ENDLESS)
    await client.channel.send(Ping(7))
    assert await client.receive() == Pong(7)


async def test_disconnect_cancels_what_the_client_asked_for(make_rig: MakeRig) -> None:
    rig = await make_rig()
    client = await rig.connect()
    request_id = await client.start(b"x", sampling=ENDLESS, credit=1)
    await client.first_piece(request_id)
    await client.channel.aclose()
    row = await wait_for(rig, lambda row: row["active"] == 0)
    assert row["generated_tokens"] == 1


async def test_a_reader_that_does_not_read_is_not_decoded_for(make_rig: MakeRig) -> None:
    rig = await make_rig(files={"m": FakeFile(n_ctx=100_000)}, n_ctx=100_000)
    slow, quick = await rig.connect(), await rig.connect()
    slow.writer.transport.pause_reading()
    request_id = await slow.start(b"x", sampling=ENDLESS, n_probs=29)
    # Its sequence is left out of the batches once the buffers are full: the counter stands still.
    async with asyncio.timeout(TIMEOUT_S):
        while not rig.owner._held_back:
            await asyncio.sleep(0)
    seen = (await rig.stats()).models["m"]["generated_tokens"]
    assert seen > 0
    assert (await quick.generate(b"y", max_tokens=20, sampling=ENDLESS)).final.finish is Finish.LENGTH
    assert (await rig.stats()).models["m"]["generated_tokens"] == seen + 20
    slow.writer.transport.resume_reading()
    for _ in range(int(seen) + 50):
        await slow.first_piece(request_id)


async def test_models_are_loaded_at_their_first_use_and_once(make_rig: MakeRig) -> None:
    rig = await make_rig()
    client = await rig.connect()
    assert (await rig.stats()).models["m"]["loads"] == 0
    ids = [await client.start(b"x%d" % n, max_tokens=2, sampling=ENDLESS) for n in range(20)]
    await client.collect(*ids)
    assert (await rig.stats()).models["m"]["loads"] == 1


async def test_the_least_recently_used_model_makes_room(make_rig: MakeRig) -> None:
    files = {name: FakeFile(needs_bytes=400) for name in "abc"}
    rig = await make_rig(files=files, budget_bytes=1000)
    client = await rig.connect()
    for model in ("a", "b", "a", "c"):
        assert (await client.generate(b"x", model=model, max_tokens=1)).final.finish is Finish.LENGTH
    cards = (await client.ask(Describe)).cards
    assert [card.loaded for card in cards] == [True, False, True]


async def test_a_model_in_use_is_not_unloaded_for_another(make_rig: MakeRig) -> None:
    files = {name: FakeFile(needs_bytes=600) for name in "ab"}
    rig = await make_rig(files=files, budget_bytes=1000)
    client = await rig.connect()
    busy = await client.start(b"x", model="a", sampling=ENDLESS, credit=1, max_tokens=2)
    await client.first_piece(busy)
    waiting = await client.start(b"x", model="b", max_tokens=1)
    await wait_for(rig, lambda row: row["waiting"] == 1, "b")
    await client.channel.send(More(busy, 5))
    answers = await client.collect(busy, waiting)
    assert answers[waiting].final.finish is Finish.LENGTH


async def test_a_model_over_the_budget_is_refused(make_rig: MakeRig) -> None:
    client = await (await make_rig(files={"m": FakeFile(needs_bytes=2000)}, budget_bytes=1000)).connect()
    assert (await client.generate(b"x")).code == "model-over-budget"


async def test_a_broken_file_is_refused_until_it_is_repaired(make_rig: MakeRig, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("no json")
    client = await (await make_rig(files={"m": path})).connect()
    assert (await client.generate(b"x")).code == "model-file-invalid"
    path.write_text("{}")
    assert (await client.generate(b"x", max_tokens=1)).final.finish is Finish.LENGTH


@needs_llama
async def test_a_truncated_gguf_is_refused_by_llama(make_rig: MakeRig, tmp_path: Path) -> None:
    whole = demo_model()
    assert whole is not None
    path = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        path.write_bytes(file.read(20_000_000))
    (tmp_path / "not.gguf").write_bytes(b"hello" * 100)
    client = await (await make_rig("llama", files={"cut": path, "not": tmp_path / "not.gguf"})).connect()
    assert (await client.generate(b"x", model="cut")).code == "model-file-invalid"
    assert (await client.generate(b"x", model="not")).code == "model-file-invalid"


async def test_control_registers_and_unregisters_models(make_rig: MakeRig, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.write_text("{}")
    rig = await make_rig()
    control, other = await rig.connect("control"), await rig.connect()
    assert (await other.ask(Register, "new", str(path))).problem is not None
    assert (await control.ask(Register, "bad", str(tmp_path / "none"))).problem is not None
    assert (await control.ask(Register, "new", str(path))).cards[0].name == "new"
    running = await other.start(b"x", model="new", sampling=ENDLESS, credit=1, max_tokens=3)
    await other.first_piece(running)
    assert (await control.ask(Unregister, "new")).problem is None
    assert (await other.generate(b"x", model="new")).code == "model-not-found"
    await other.channel.send(More(running, 5))
    assert (await other.collect(running))[running].final.finish is Finish.LENGTH


async def test_stopping_ends_every_request(make_rig: MakeRig) -> None:
    rig = await make_rig()
    client = await rig.connect()
    request_id = await client.start(b"x", sampling=ENDLESS, credit=1)
    await client.first_piece(request_id)
    await asyncio.get_running_loop().run_in_executor(None, rig.owner._inbox.put, rig.owner._stop)
    answer = (await client.collect(request_id))[request_id]
    assert answer.code == "model-unavailable"


class Process:
    """The real process, on a socket of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.socket = folder / "m.sock"
        document = {"socket": str(self.socket), "token": TOKEN, "models": {}, "backend": "fake", **settings}
        self.ready = b""
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "faas.modelserver.main"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(document).encode())
        self.popen.stdin.close()
        assert self.popen.stderr is not None
        self.ready = self.popen.stderr.readline()

    async def wait(self) -> int:
        return await asyncio.get_running_loop().run_in_executor(None, self.popen.wait)

    def dispose(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stderr is not None
        self.popen.stderr.close()


async def test_the_process_ends_when_control_goes_away(tmp_path: Path) -> None:
    model = tmp_path / "m.json"
    model.write_text("{}")
    process = Process(tmp_path, models={"m": str(model)})
    try:
        assert b"modelserver.ready" in process.ready
        assert os.stat(process.socket).st_mode & 0o077 == 0
        reader, writer = await asyncio.open_unix_connection(process.socket)
        channel: Channel[object] = Channel(reader, writer, FromModelServer)
        await channel.send(ClientHello(MODEL_PROTOCOL_VERSION, "control", TOKEN))
        hello = await channel.receive()
        assert isinstance(hello, ServerHello)
        assert hello.pid == process.popen.pid
        await channel.send(Generate(1, "m", "f", b"x", max_tokens=3, sampling=ENDLESS))
        while not isinstance(await channel.receive(), Final):
            pass
        await channel.aclose()
        assert await process.wait() == 0
    finally:
        process.dispose()


async def test_the_process_ends_on_sigterm(tmp_path: Path) -> None:
    process = Process(tmp_path)
    try:
        process.popen.terminate()
        assert await process.wait() == 0
    finally:
        process.dispose()


async def test_the_process_refuses_unknown_settings(tmp_path: Path) -> None:
    process = Process(tmp_path, colour="red")
    try:
        assert b"colour" in process.ready
        assert await process.wait() == 2
    finally:
        process.dispose()


def model_file(kind: str, path: Path) -> Path:
    """Return *path*, which is now a model of that kind."""
    demo = demo_model() if kind == "llama" else None
    if demo is None:
        path.write_bytes(b"{}")
    else:
        path.symlink_to(demo)
    return path


@pytest.mark.parametrize("kind", ["fake", pytest.param("llama", marks=needs_llama)])
async def test_a_file_that_vanished_before_its_first_use_is_told_from_a_broken_one(
    make_rig: MakeRig, tmp_path: Path, kind: str
) -> None:
    files = {name: model_file(kind, tmp_path / name) for name in ("gone", "broken")}
    client = await (await make_rig(kind, files=files)).connect()
    for path in files.values():
        path.unlink()
    files["broken"].write_bytes(b"this is no model at all")
    errnos = []
    for name in files:
        final = await client.ask(Describe, name, load=True)
        assert final.problem is not None
        assert final.problem["code"] == "model-file-invalid"
        told = to_nn_error(from_problem(final.problem))
        assert told is not None
        errnos.append(told.errno)
    assert errnos == [NnErrno.MODEL_NOT_FOUND, NnErrno.INVALID_ARGUMENT]


@pytest.mark.parametrize("kind", ["fake", pytest.param("llama", marks=needs_llama)])
async def test_a_file_that_comes_back_is_loaded(make_rig: MakeRig, tmp_path: Path, kind: str) -> None:
    path, aside = model_file(kind, tmp_path / "m"), tmp_path / "aside"
    client = await (await make_rig(kind, files={"m": path})).connect()
    path.rename(aside)
    assert (await client.ask(Describe, "m", load=True)).problem is not None
    aside.rename(path)
    assert (await client.ask(Describe, "m", load=True)).cards[0].loaded
