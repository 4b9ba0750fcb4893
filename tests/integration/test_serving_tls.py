"""TLS on both ports of a real host, and what of a host listens at all."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate, self_signed
from hosting import Host, HostFailedError, MakeHost, until, wasm


def settings_of(public: Certificate | None = None, admin: Certificate | None = None) -> dict[str, Any]:
    return {
        f"{prefix}tls_{part}": str(getattr(files, part))
        for prefix, files in (("", public), ("admin_", admin))
        if files is not None
        for part in ("cert", "key")
    }


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host with TLS on both ports."""
    folder = tmp_path_factory.mktemp("secure")
    files, admin = self_signed(folder, "public"), self_signed(folder, "admin")
    host = Host(folder / "home", workers=2, **settings_of(files, admin))
    try:
        host.start()
        yield host
        host.stop()
        assert "Traceback" not in host.stderr_path.read_text()
    finally:
        host.dispose()


@contextlib.contextmanager
def over_tls(host: Host) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=host.settings["tls_cert"])
    with (
        socket.create_connection(("127.0.0.1", host.port), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        yield client


# --- guests ----------------------------------------------------------------------------------------------------------


def test_a_command_knows_that_it_is_called_over_https(secure: Host) -> None:
    name = secure.serves("env")
    variables = dict(line.partition("=")[::2] for line in secure.get(f"/{name}?a=b").text.splitlines())
    assert variables["HTTPS"] == "on"
    assert variables["SERVER_PORT"] == str(secure.port)
    assert variables["X_FULL_URL"] == f"https://127.0.0.1:{secure.port}/{name}?a=b"


def test_without_tls_there_is_no_such_variable(host: Host) -> None:
    name = host.serves("env")
    assert "HTTPS=" not in host.get(f"/{name}").text


def test_bodies_and_keep_alive(secure: Host) -> None:
    name = secure.serves("echo-c")
    body = os.urandom(2_000_000)
    with contextlib.closing(secure.connect()) as connection:
        for _ in range(3):
            connection.request("POST", f"/{name}", body)
            response = connection.getresponse()
            assert response.read() == body
            connection.request("GET", f"/{name}")
            assert connection.getresponse().read()


def test_a_guest_that_streams_is_heard_piece_by_piece(secure: Host) -> None:
    name = secure.serves("stream")
    with over_tls(secure) as client:
        client.sendall(f"GET /{name} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        pieces = list(iter(lambda: client.recv(65536), b""))
    assert len(pieces) > 2
    assert b"".join(pieces).endswith(b"0\r\n\r\n")


def test_a_client_that_goes_away_cancels_its_guest(secure: Host) -> None:
    name = secure.serves("loop", cpu_s=60, timeout_s=60)
    with over_tls(secure) as client:
        client.sendall(f"GET /{name} HTTP/1.1\r\nHost: h\r\nX-Request-Id: gone-over-tls\r\n\r\n".encode())
        until(lambda: secure.gauge("active") == 1)
    (*_, last) = secure.log_of(name, "gone-over-tls")
    assert last["outcome"] == "cancelled"


# --- ports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["port", "admin_port"])
def test_plain_http_is_told_to_come_with_tls(secure: Host, port: str) -> None:
    before = secure.stderr_path.read_text()
    with socket.create_connection(("127.0.0.1", getattr(secure, port)), timeout=20) as raw:
        raw.sendall(b"GET /_faas/health HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"this port speaks TLS" in answer
    assert secure.get("/_faas/health").status == secure.admin("GET", "/api/status").status == 200
    assert secure.stderr_path.read_text() == before


def test_urls_say_https(secure: Host) -> None:
    status = secure.status()
    assert status["public_url"] == f"https://127.0.0.1:{secure.port}"
    assert status["admin_url"] == f"https://127.0.0.1:{secure.admin_port}"
    view = secure.deploy("urls", wasm("hello-c"))
    assert view["urls"] == [f"https://127.0.0.1:{secure.port}/urls"]


def test_new_certificates_are_taken_without_a_restart_by_every_process(make_host: MakeHost, tmp_path: Path) -> None:
    files, admin = self_signed(tmp_path, "public"), self_signed(tmp_path, "admin")
    host = make_host(workers=2, **settings_of(files, admin)).start()

    def presented(port: int, times: int = 1) -> set[str]:
        return {ssl.get_server_certificate(("127.0.0.1", port)) for _ in range(times)}

    assert presented(host.port, 10) == {files.cert.read_text()}
    self_signed(tmp_path, "public", type_of_key="rsa")
    self_signed(tmp_path, "admin")
    until(lambda: presented(host.port, 10) == {files.cert.read_text()})
    until(lambda: presented(host.admin_port) == {admin.cert.read_text()})
    assert host.get("/_faas/health").status == host.admin("GET", "/api/status").status == 200

    kept = files.cert.read_text()
    files.key.write_text("nonsense")
    until(lambda: host.stderr_path.read_text().count("certificate.refused") == 2)
    assert presented(host.port, 10) == {kept}
    host.stop()


@pytest.mark.parametrize("prefix", ["", "admin_"])
def test_a_start_with_files_that_do_not_fit_is_refused_with_one_line(
    make_host: MakeHost, tmp_path: Path, prefix: str
) -> None:
    one, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    host = make_host(**{f"{prefix}tls_cert": str(one.cert), f"{prefix}tls_key": str(other.key)})
    with pytest.raises(HostFailedError) as failed:
        host.start()
    assert str(failed.value).startswith(f"config-invalid: {prefix}tls_key: {other.key} is not the key")
    assert len(str(failed.value).splitlines()) == 1


# --- what listens ----------------------------------------------------------------------------------------------------


def listening(host: Host) -> set[tuple[str, int]]:
    """Return the address and port of each TCP socket that a process of *host* listens on."""
    pids = [host.pid, *map(int, Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split())]
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(entry))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
                found.add((str(ipaddress.ip_address(b"".join(words))), int(port, 16)))
    return found


def test_nothing_listens_beyond_loopback_unless_told_to(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    assert listening(host) == {("127.0.0.1", host.port), ("127.0.0.1", host.admin_port)}
    assert "host.exposed" not in host.stderr_path.read_text()
    host.stop()


def test_what_is_told_to_listen_everywhere_does_and_the_admin_port_without_tls_is_warned_of_once(
    make_host: MakeHost,
) -> None:
    host = make_host(workers=1, host="0.0.0.0", admin_host="0.0.0.0").start()
    assert listening(host) == {("0.0.0.0", host.port), ("0.0.0.0", host.admin_port)}
    warned = [line for line in host.stderr_path.read_text().splitlines() if " warning " in line]
    assert len(warned) == 1
    assert "host.exposed" in warned[0]
    assert "answers on 0.0.0.0 without TLS" in warned[0]
    host.stop()
