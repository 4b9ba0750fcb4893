"""Functions that call functions on a real host: what comes back, what is logged, and callers that take all permits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hosting import FUNCTIONS, Host, MakeHost, wasm

CALLER = (FUNCTIONS / "http" / "outbound.wasm").read_bytes()
COMPONENT = (FUNCTIONS / "http" / "hello.wasm").read_bytes()


def deploy_circle(host: Host, **limits: int) -> None:
    """Deploy ``ring-a`` and ``ring-b``, which call each other, themselves, ``ring-hello`` and ``ring-sleeper``."""
    calls = ["ring-a", "ring-b", "ring-hello", "ring-sleeper"]
    for name in ("ring-a", "ring-b"):
        host.deploy(name, CALLER, {"routes": [f"/{name}"], "capabilities": {"calls": calls}, "limits": limits})
    host.deploy("ring-hello", COMPONENT)
    host.deploy("ring-sleeper", wasm("sleeper"))


def test_a_function_is_called_through_functions_and_logged_under_one_request_id(host: Host) -> None:
    deploy_circle(host)
    reply = host.get("/ring-a?http://ring-b.faas.internal/?http://ring-hello.faas.internal/")
    assert (reply.status, reply.text) == (200, "hello world\n")
    request_id = reply.headers["X-Request-Id"]
    for name, caller in (("ring-a", None), ("ring-b", "ring-a"), ("ring-hello", "ring-b")):
        (finished,) = [entry for entry in host.log_of(name, request_id) if entry.get("event")]
        assert (finished["outcome"], finished.get("caller")) == ("ok", caller)
    for url, code in (("http://other.faas.internal/", 15), ("https://ring-hello.faas.internal/", 19)):
        reply = host.get(f"/ring-a?{url}")
        assert (reply.status, reply.text) == (502, f"error-code {code}\n")


def test_callers_that_take_every_permit_of_the_host_are_answered(make_host: MakeHost) -> None:
    host = make_host(workers=1, pool={"slots": 8}, guest_threads=1, call_slots=1).start()
    deploy_circle(host, max_concurrency=4)
    # Five HTTP slots; each of these holds one while the callee sleeps, which has one slot for all of them.
    url = "/ring-a?http://ring-b.faas.internal/?http://ring-a.faas.internal/?http://ring-sleeper.faas.internal/?20"
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: host.get(url), range(36)))
    assert [(reply.status, reply.text) for reply in replies] == [(200, "slept 20 ms\n")] * 36
    host.stop()
