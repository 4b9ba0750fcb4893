"""What lies on this side of the network is out of reach for modules and components, and their logs say why."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosting import FUNCTIONS, Host


class Kind(NamedTuple):
    """A guest that fetches the URL in its query, and how it is asked."""

    module: Path
    ask: str


KINDS = {
    "command": Kind(FUNCTIONS / "services" / "services-c.wasm", "fetch="),
    "component": Kind(FUNCTIONS / "http" / "outbound.wasm", ""),
}
GRANTED: dict[str, Any] = {"kv": ["default", "other"], "calls": ["callee"], "secrets": ["TOKEN"]}
REFUSED = {
    "http://169.254.169.254/latest/meta-data/": "cloud metadata",
    "http://localhost:{port}/": "loopback",
    "http://2130706433:{port}/": "not an IPv4 address of four decimal numbers",
    "http://0x7f.1:{port}/": "not an IPv4 address of four decimal numbers",
    "http://[::ffff:127.0.0.1]:{port}/": "loopback",
    "http://[::1]:{port}/": "loopback",
    "http://10.0.0.1/": "private",
    "http://0.0.0.0:{port}/": "this host",
}


@pytest.fixture(scope="module")
def origin() -> Iterator[int]:
    """The port of a server that sends everybody on to the metadata service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as lines:
                    while lines.readline().strip():
                        pass
                    connection.sendall(
                        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 5\r\n"
                        b"Connection: close\r\n\r\nthere"
                    )

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture(scope="module", params=sorted(KINDS))
def fetcher(request, host: Host, origin: int) -> str:
    """A function of each kind that may reach everything, and this server by its very name."""
    name = f"fetch-{request.param}"
    outbound = ["*", f"http://127.0.0.1:{origin}"]
    granted = {"outbound": outbound} if request.param == "component" else {"outbound": outbound, **GRANTED}
    host.deploy(name, KINDS[request.param].module.read_bytes(), {"routes": [f"/{name}"], "capabilities": granted})
    return name


def fetch(host: Host, name: str, url: str) -> tuple[int, str, str]:
    """Return the status and the text that the guest made of *url*, and what was logged of it."""
    reply = host.get(f"/{name}?{KINDS[name.removeprefix('fetch-')].ask}{url}")
    lines = host.log_of(name, reply.headers["X-Request-Id"])
    return reply.status, reply.text, "\n".join(line.get("text", "") for line in lines)


@pytest.mark.parametrize("url", sorted(REFUSED))
def test_an_address_of_this_side_is_refused_with_its_reason_in_the_log(
    host: Host, fetcher: str, origin: int, url: str
) -> None:
    status, text, logged = fetch(host, fetcher, url.format(port=origin + 1))  # its own port is named
    assert status == 502
    assert "there" not in text
    assert REFUSED[url] in logged, logged


def test_a_redirect_leads_nowhere_that_its_target_would_not(host: Host, fetcher: str, origin: int) -> None:
    status, text, _ = fetch(host, fetcher, f"http://127.0.0.1:{origin}/")
    assert (status, text) == (302, "there")  # the guest's to follow, and then checked as any other
    status, _, logged = fetch(host, fetcher, "http://169.254.169.254/")
    assert status == 502
    assert "cloud metadata" in logged
