"""Guests that misbehave: each has its own code, its reason is in its log, and the next request is unharmed."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
from typing import Any

import pytest
from hosting import Host
from wasmtime import wat2wasm

_ids = (f"bad-{i}" for i in itertools.count())

BAD_GUESTS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("trap", "", {}, 502, "guest-trap"),
    ("deep-recursion", "", {}, 502, "guest-trap"),
    ("exit", "", {}, 502, "guest-exit"),
    ("exit", "?255", {}, 502, "guest-exit"),
    ("exit", "?0", {}, 502, "malformed-response"),
    ("loop", "", {"cpu_s": 0.2}, 504, "cpu-limit"),
    ("loop", "", {"timeout_s": 0.2}, 504, "deadline-exceeded"),
    ("sleeper", "?60000", {"timeout_s": 0.2}, 504, "deadline-exceeded"),
    ("hog", "", {"memory_bytes": 16 << 20}, 507, "memory-limit"),
    ("hog-once", "", {"memory_bytes": 16 << 20}, 507, "memory-limit"),
    ("flood", "", {"max_output_bytes": 1000}, 507, "output-limit"),
    *(
        ("bad-headers", query, {}, 502, "malformed-response")
        for query in (
            "",
            "?no-blank",
            "?none",
            "?no-headers",
            "?status",
            "?range",
            "?space",
            "?nul",
            "?control",
            "?fold",
            "?framing",
            "?long",
            "?many",
        )
    ),
    *(("reactor-bad", query, {}, 502, "malformed-response") for query in ("", *(f"?{c}" for c in "ezgtxasrncd"))),
    ("reactor-bad", "?w", {}, 507, "output-limit"),
    ("reactor-alloc", "", {}, 502, "malformed-response"),
    ("reactor-trap", "", {}, 502, "guest-trap"),
    ("reactor-loop", "", {"cpu_s": 0.2}, 504, "cpu-limit"),
]


@pytest.mark.parametrize("case", BAD_GUESTS, ids=lambda case: f"{case[0]}{case[1]}-{case[4]}")
def test_a_bad_guest_is_a_problem_of_its_own_and_harms_nobody(
    host: Host, case: tuple[str, str, dict[str, Any], int, str]
) -> None:
    guest, query, limits, status, code = case
    name, request_id = host.serves(guest, **limits), next(_ids)
    reply = host.get(f"/{name}{query}", {"X-Request-Id": request_id})
    assert (reply.status, reply.code) == (status, code)
    assert "trace" not in reply.json()
    assert host.get(f"/{host.serves('hello-c')}").status == 200
    finished = host.log_of(name, request_id)[-1]
    assert finished["reason"].startswith(f"{code}: ")
    assert finished["outcome"] == ("failed" if status == 502 else "limited")
    assert finished["status"] == status


def test_a_correct_answer_of_the_same_reactor_is_served(host: Host) -> None:
    reply = host.get(f"/{host.serves('reactor-bad')}?o")
    assert (reply.status, reply.text) == (200, "ok")


def test_a_table_that_grows_is_refused_more(host: Host) -> None:
    assert host.get(f"/{host.serves('table-hog')}").text == "refused\n"


@pytest.mark.parametrize("query", ["64", "files"])
def test_tmp_has_a_cap_of_its_own(host: Host, query: str) -> None:
    text = host.get(f"/{host.serves('tmp-hog', tmp_bytes=1 << 20)}?{query}").text
    made = int(text.split()[1])
    assert 0 < made <= 1 << 20


def test_the_exit_code_is_among_the_facts(host: Host) -> None:
    assert host.get(f"/{host.serves('exit')}?7").json()["exit_code"] == 7


@pytest.mark.parametrize(
    ("guest", "limits"),
    [
        ("flood", {"max_output_bytes": 2 << 20}),
        ("flood", {"timeout_s": 0.3, "max_output_bytes": 1 << 40}),
        ("flood", {"cpu_s": 0.05, "max_output_bytes": 1 << 40}),
        ("stream", {"timeout_s": 0.3}),
    ],
)
def test_a_reply_that_has_begun_is_cut_off_so_that_the_client_notices(
    host: Host, guest: str, limits: dict[str, Any]
) -> None:
    name, request_id = host.serves(guest, **limits), next(_ids)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        host.get(f"/{name}?100", {"X-Request-Id": request_id})
    assert host.log_of(name, request_id)[-1]["outcome"] == "limited"


def test_nothing_follows_a_reply_that_was_cut_off(host: Host) -> None:
    """A second response in the middle of the first one's body would be taken for a part of it."""
    name = host.serves("stream", timeout_s=0.3)
    with host.socket() as raw:
        raw.sendall(f"GET /{name}?100 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(65536):
                received += piece
    assert received.count(b"HTTP/1.1") == 1
    assert b"0\r\n\r\n" not in received


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Type: text/plain\nX-Raw: \xff\xfe",
        b"Status: 200 \xff\nX: y",
        b"Status: 200 \xc3\xa4\nX: \xc3\xa4",
        b"Location: /\xff",
        b"Location: https://e.org/\xff",
        b"Date: never\nServer: mine\nContent-Type: nonsense\nContent-Encoding: none",
        b"X: " + b"y" * 60_000,
    ],
)
def test_odd_bytes_in_headers_are_served_or_a_problem_and_end_in_one_outcome(host: Host, head: bytes) -> None:
    name, request_id = f"says-{hashlib.sha256(head).hexdigest()[:8]}", next(_ids)
    host.deploy(name, saying(head + b"\n\nbody"))
    with host.socket() as raw:
        raw.sendall(f"GET /{name} HTTP/1.0\r\nX-Request-Id: {request_id}\r\n\r\n".encode())
        reply = raw.makefile("rb").read()
    assert int(reply.split()[1]) in {200, 302, 404, 502}
    assert host.log_of(name, request_id)[-1]["outcome"] in {"ok", "failed"}


def saying(output: bytes) -> bytes:
    """Return a command that writes *output* to stdout and ends."""
    text = "".join(f"\\{byte:02x}" for byte in output)
    return bytes(
        wat2wasm(f"""(module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (data (i32.const 16) "{text}")
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const {len(output)}))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""")
    )


# --- what the log tells ----------------------------------------------------------------------------------------------


def test_a_trap_leaves_its_backtrace_in_the_log(host: Host) -> None:
    request_id = next(_ids)
    host.get(f"/{host.serves('trap')}", {"X-Request-Id": request_id})
    lines = host.log_of("trap", request_id)
    traced = [line["text"] for line in lines if line["stream"] == "trap"]
    assert any("wasm backtrace" in text for text in traced)
    assert any("unreachable" in text for text in traced)
    assert lines[0]["stream"] == "stderr", "what the guest said comes before how it ended"
    assert "unreachable" in lines[-1]["reason"]


def test_stderr_is_logged_line_by_line_and_the_tail_is_not_lost(host: Host) -> None:
    request_id = next(_ids)
    assert host.get(f"/{host.serves('stderr')}?3", {"X-Request-Id": request_id}).status == 200
    *lines, finished = host.log_of("stderr", request_id)
    texts = [line["text"] for line in lines]
    assert texts[:4] == ["line 0", "line 1", "line 2", ""]
    assert texts[4] == "y" * 10_000
    assert texts[5].startswith("bad utf-8: \ufffd\ufffd")
    assert texts[6] == "controls: nul \0 esc \x1b[31m cr \r end"
    assert texts[7] == "valid utf-8: ä€"
    assert texts[8:] == ["no newline at the end"]
    assert {line["stream"] for line in lines} == {"stderr"}
    assert finished["outcome"] == "ok"


def test_a_log_over_its_limit_is_cut_with_a_last_word(host: Host) -> None:
    name, request_id = host.serves("stderr", max_log_bytes=100), next(_ids)
    assert host.get(f"/{name}?1000", {"X-Request-Id": request_id}).status == 200
    *lines, _ = host.log_of(name, request_id)
    assert lines[-1]["text"] == "log limit reached"
    assert sum(len(line["text"]) + 1 for line in lines[:-1]) <= 101


def test_a_good_request_is_one_line_with_its_numbers(host: Host) -> None:
    request_id = next(_ids)
    host.get(f"/{host.serves('hello-c')}", {"X-Request-Id": request_id})
    (line,) = host.log_of("hello-c", request_id)
    assert line.items() >= {"event": "invocation.finished", "outcome": "ok", "status": 200, "version": 1}.items()
    assert 0 < line["start_ms"] < line["duration_ms"]
    assert line["cpu_ms"] > 0
