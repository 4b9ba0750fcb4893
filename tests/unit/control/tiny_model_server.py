"""A model server of a few lines, as a process of its own: it says hello, counts, and ends when control hangs up."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from faas.errors import PeerGoneError
from faas.wire.framing import Channel
from faas.wire.models import MODEL_PROTOCOL_VERSION, FromModelClient, ModelStats, ServerHello


async def main():
    settings = json.loads(sys.stdin.read())
    ended = asyncio.Event()

    async def accept(reader, writer):
        channel = Channel(reader, writer, FromModelClient)
        try:
            hello = await channel.receive()
            assert hello.token == settings["token"]
            await channel.send(ServerHello(MODEL_PROTOCOL_VERSION, os.getpid(), "tiny", 1, "abc", ()))
            await channel.send(ModelStats({name: {"loads": 1, "active": 1} for name in settings["models"]}, {}))
            while True:
                await channel.receive()
        except PeerGoneError:
            ended.set()
        finally:
            await channel.aclose()

    server = await asyncio.start_unix_server(accept, settings["socket"])
    await ended.wait()
    server.close()


asyncio.run(main())
