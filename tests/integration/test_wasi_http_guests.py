"""Components of wasi:http over HTTP: both ends of 0.2, bodies and trailers streamed, outbound calls, wrong uses."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import FUNCTIONS, Host, until

GUESTS = FUNCTIONS / "http"
JSON = {"Content-Type": "application/json"}


def guest(name: str) -> bytes:
    return (GUESTS / f"{name}.wasm").read_bytes()


@pytest.fixture(scope="module")
def served(host: Host) -> Host:
    """The shared host with the small guests deployed, each at /NAME."""
    for name in ("hello", "hello-0.2.0", "echo", "trailers", "misuse"):
        deployed = name.replace(".", "-")
        manifest = {"routes": [f"/{deployed}"], "limits": {"timeout_s": 5, "cpu_s": 1, "max_output_bytes": 1 << 20}}
        assert host.deploy(deployed, guest(name), manifest)["kind"] == "http"
    return host


@pytest.mark.parametrize("name", ["hello", "hello-0-2-0"])
def test_a_component_answers_whichever_0_2_it_asks_for(served: Host, name: str) -> None:
    reply = served.get(f"/{name}")
    assert (reply.status, reply.text) == (200, "hello world\n")
    assert reply.headers["X-Faas-Function"] == name


@pytest.mark.parametrize("query", ["", "?splice", "?poll"])
def test_a_body_comes_back_byte_for_byte(served: Host, query: str) -> None:
    body = os.urandom(700_001)
    reply = served.request("POST", f"/echo{query}", body, {"Content-Type": "x/y"})
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "x/y"
    assert reply.body == body


def test_a_mebibyte_comes_back_also_byte_by_byte(served: Host) -> None:
    served.deploy("echo-all", guest("echo"), {"routes": ["/echo-all"]})
    body = os.urandom(1 << 20)
    for query in ("", "?bytes"):
        assert served.request("POST", f"/echo-all{query}", body).body == body


@pytest.mark.parametrize("query", ["", "?splice", "?poll"])
def test_what_was_sent_comes_back_before_the_rest_is_sent(served: Host, query: str) -> None:
    with served.socket() as raw, raw.makefile("rb") as lines:
        raw.sendall(
            f"POST /echo{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n".encode()
        )
        assert lines.readline().startswith(b"HTTP/1.1 200")
        while lines.readline() != b"\r\n":
            pass
        assert lines.readline() == b"4\r\n"
        assert lines.readline() == b"ping\r\n"
        raw.sendall(b"4\r\npong\r\n0\r\n\r\n")
        assert lines.readline() == b"4\r\n"
        assert lines.readline() == b"pong\r\n"
        assert lines.readline() == b"0\r\n"


def exchange(host: Host, request: bytes) -> bytes:
    """Return all that comes back on a connection of its own, which the host closes."""
    with host.socket() as raw:
        raw.sendall(request)
        with raw.makefile("rb") as answer:
            return answer.read()


def test_trailers_follow_a_body_that_was_flushed(served: Host) -> None:
    said = exchange(
        served,
        b"POST /trailers HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
    )
    assert said.endswith(b"0\r\nx-body-bytes: 7\r\n\r\n")


def test_a_body_without_trailers_has_none(served: Host) -> None:
    assert served.request("POST", "/trailers", b"abc").text == "no trailers\n"


@pytest.mark.parametrize("word", ["204", "304"])
def test_where_no_body_may_be_none_is_sent(served: Host, word: str) -> None:
    said = exchange(
        served,
        f"GET /misuse?{word} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        + b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    first, _, rest = said.partition(b"\r\n\r\n")
    assert first.startswith(f"HTTP/1.1 {word}".encode())
    assert b"content-length" not in first.lower()
    assert b"transfer-encoding" not in first.lower()
    assert rest.startswith(b"HTTP/1.1 200")
    assert rest.endswith(b"hello world\n")


@pytest.mark.parametrize("path", ["/hello", "/misuse?none"])
def test_head_has_a_head_and_no_body(served: Host, path: str) -> None:
    said = exchange(served, f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 200")
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("word", ["unset", "kept", "error", "trap", "handle", "hoard"])
def test_a_guest_that_ends_without_an_answer_is_502(served: Host, word: str) -> None:
    reply = served.get(f"/misuse?{word}")
    assert reply.status == 502
    assert reply.code


def test_a_guest_that_never_answers_is_stopped(served: Host) -> None:
    reply = served.get("/misuse?loop")
    assert (reply.status, reply.code) == (504, "cpu-limit")


@pytest.mark.parametrize("word", ["late-trap", "unfinished", "open", "order"])
def test_a_body_that_is_not_finished_never_looks_whole(served: Host, word: str) -> None:
    said = exchange(served, f"GET /misuse?{word} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status = said.split(b" ")[1]
    # The head may have gone out, and then the connection breaks; else there is still time for a real status.
    assert status == b"502" or (status == b"200" and not said.endswith(b"0\r\n\r\n"))


def test_a_body_shorter_than_announced_never_looks_whole(served: Host) -> None:
    said = exchange(served, b"GET /misuse?short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    # A 502 where the head was still to go out; else the connection ends before the announced length.
    assert said.startswith(b"HTTP/1.1 502") or said.endswith(b"\r\n\r\nabc")


def test_no_more_than_was_announced_is_sent(served: Host) -> None:
    said = exchange(served, b"GET /misuse?long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"abcdef" not in said


def test_output_beyond_its_limit_never_looks_whole(served: Host) -> None:
    said = exchange(served, b"GET /misuse?flood HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert len(said) < 4 << 20
    assert not said.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("word", "text"), [("twice", "once\n"), ("after", "answered\n"), ("taken", "1\n")])
def test_a_finished_answer_reaches_the_client_whatever_the_guest_does_next(served: Host, word: str, text: str) -> None:
    reply = served.get(f"/misuse?{word}")
    assert (reply.status, reply.text) == (200, text)


def test_a_connection_outlives_a_guest_that_is_late_after_its_answer(served: Host) -> None:
    served.deploy("late", guest("misuse"), {"routes": ["/late"], "limits": {"timeout_s": 1, "cpu_s": 60}})
    said = exchange(
        served,
        b"GET /late?after HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    first, _, second = said.partition(b"0\r\n\r\n")
    assert first.endswith(b"answered\n\r\n")
    assert second.startswith(b"HTTP/1.1 200")
    assert second.endswith(b"hello world\n")


def test_headers_are_refused_as_elsewhere(served: Host) -> None:
    # What wasmtime answers: the host's own names are forbidden (1), what is no name or value is invalid (0).
    assert served.get("/misuse?fields").text == "-111110000-\n"


def test_a_header_block_without_end_ends_the_guest(served: Host) -> None:
    assert served.get("/misuse?large").status in (502, 504, 507)


def test_the_host_serves_on_after_all_of_that(served: Host) -> None:
    for word in ("trap", "twice", "kept", "order", "hoard"):
        exchange(served, f"GET /misuse?{word} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert served.get("/hello").text == "hello world\n"


def test_a_guest_that_waits_for_a_body_that_stalls_is_ended(tmp_path: Path) -> None:
    host = Host(tmp_path / "home", body_timeout_s=0.3)
    try:
        host.start()
        host.deploy("echo", guest("echo"), {"routes": ["/echo"]})
        for query in ("", "?poll"):
            said = exchange(host, f"POST /echo{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nping".encode())
            assert said.startswith(b"HTTP/1.1 200")
            assert not said.endswith(b"0\r\n\r\n")
        host.stop()
    finally:
        host.dispose()


# --- outbound -----------------------------------------------------------------------------------------------------


@pytest.fixture
def upstream() -> Iterator[int]:
    """The port of a server that answers one request with a body of two chunks, and a header that is its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                while lines.readline().strip():
                    pass
                connection.sendall(
                    b"HTTP/1.1 203 Other\r\nX-Own: yes\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
                )

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def test_an_outbound_call_reaches_what_the_manifest_allows_and_nothing_else(served: Host, upstream: int) -> None:
    granted = f"127.0.0.1:{upstream}"
    served.deploy(
        "outbound-granted",
        guest("outbound"),
        {"routes": ["/outbound-granted"], "capabilities": {"outbound": [granted]}},
    )
    for other in (f"127.0.0.1:{upstream + 1}", f"localhost:{upstream}", "169.254.169.254", "example.org"):
        refused = served.get(f"/outbound-granted?http://{other}/")
        assert (refused.status, refused.text) == (502, "error-code 15\n"), other
    reply = served.get(f"/outbound-granted?http://{granted}/a?b=c")
    assert (reply.status, reply.text, reply.headers["X-Own"]) == (203, "abcdef", "yes")


def test_an_outbound_call_is_refused_where_nothing_was_granted(served: Host) -> None:
    served.deploy("outbound-denied", guest("outbound"), {"routes": ["/outbound-denied"]})
    reply = served.get("/outbound-denied?http://127.0.0.1:9/")
    assert (reply.status, reply.text) == (502, "error-code 15\n")  # HTTP-request-denied


# --- models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a model that is a fake, and the guests of both snapshots of wasi:nn."""
    folder = tmp_path_factory.mktemp("models")
    files = {}
    for name, options in {"default": {"answers": {"hi": "hello there"}}, "other": {}}.items():
        files[name] = folder / f"{name}.fake"
        files[name].write_text(json.dumps(options))
    host = Host(
        folder / "home", model_backend="fake", model_ctx=512, models={name: str(path) for name, path in files.items()}
    )
    try:
        host.start()
        for name in ("models", "models-august"):
            host.deploy(name, guest(name), {"routes": [f"/{name}"], "capabilities": {"models": ["default"]}})
        until(lambda: host.get("/v1/models").json()["data"], what="the model server")
        yield host
        host.stop()
    finally:
        host.dispose()


@pytest.mark.parametrize("name", ["models", "models-august"])
def test_a_component_reaches_its_model(models: Host, name: str) -> None:
    whole = models.request("POST", f"/{name}", b"hi")
    assert (whole.status, whole.text) == (200, "hello there<eog>")  # with the token that ended it
    streamed = models.request("POST", f"/{name}?stream", b"hi")
    assert (streamed.status, streamed.text) == (200, "hello there")


@pytest.mark.parametrize("name", ["models", "models-august"])
def test_a_component_reaches_no_model_that_it_was_not_granted(models: Host, name: str) -> None:
    reply = models.request("POST", f"/{name}?other", b"hi")
    assert reply.status == 502
    assert reply.text.startswith("6 ")  # not-found


def test_models_have_to_be_granted_to_be_imported(served: Host) -> None:
    reply = served.try_deploy("models-denied", guest("models"), {"routes": ["/models-denied"]})
    assert reply.status == 422
    assert "capabilities" in reply.text
