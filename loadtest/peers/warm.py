"""
The HTTP server inside the container that is kept: asyncio and nothing else, a fixed answer to every request.

Usage: python warm.py PORT. Waits the query's number of milliseconds, if there is one, before it answers.
"""

import asyncio
import signal
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nhello world\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection's requests, which have no bodies."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            _, _, query = head.split(b" ", 2)[1].partition(b"?")
            if query:
                await asyncio.sleep(int(query) / 1000)
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(port: int) -> None:
    """Serve until SIGTERM: the first process of a container gets no default action for it."""
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with server:
        await over.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
