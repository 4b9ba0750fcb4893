"""Key-value stores, config values and secrets with a real host: over workers, restarts and kill -9; and no leaks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hosting import FUNCTIONS, Host, MakeHost, Reply, until, wasm


def component(draft: str = "kv") -> bytes:
    return (FUNCTIONS / "http" / f"{draft}.wasm").read_bytes()


def deploy(host: Host, name: str, draft: str = "kv", **capabilities: Any) -> None:
    host.deploy(name, component(draft), {"capabilities": {"kv": ["default"], **capabilities}})


def ask(host: Host, function: str, *words: str) -> Reply:
    return host.get(f"/{function}?{'&'.join(words)}")


def admin(host: Host, method: str, path: str, document: Any = None) -> Reply:
    body = None if document is None else json.dumps(document).encode()
    reply = host.admin(method, path, body)
    assert reply.status < 300, reply.body
    return reply


@pytest.fixture(scope="module", params=["kv", "kv-draft"])
def stores(request: pytest.FixtureRequest, host: Host) -> tuple[Host, str]:
    """The shared host with a guest of each draft of wasi:keyvalue."""
    deploy(host, f"it-{request.param}", request.param)
    return host, f"it-{request.param}"


def test_component_keeps_a_value_for_later_requests(stores: tuple[Host, str]) -> None:
    host, name = stores
    assert ask(host, name, "get", "default", "a").status == 404
    assert ask(host, name, "set", "default", "a", "1").text == "done"
    assert ask(host, name, "get", "default", "a").text == "1"
    assert ask(host, name, "get", "", "a").text == "1"
    assert ask(host, name, "exists", "default", "a").text == "yes"
    assert ask(host, name, "delete", "default", "a").text == "done"
    assert ask(host, name, "delete", "default", "a").text == "done"
    assert ask(host, name, "exists", "default", "a").text == "no"


def test_component_lists_all_its_keys_in_pages(stores: tuple[Host, str]) -> None:
    host, name = stores
    admin(host, "DELETE", f"/api/kv/{name}")
    keys = [f"k{i:04}" for i in range(1001)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: host.admin("PUT", f"/api/kv/{name}/value?key={key}", b""), keys))
    assert ask(host, name, "list", "default").text.splitlines() == [*keys, "2"]
    admin(host, "DELETE", f"/api/kv/{name}")
    assert ask(host, name, "list", "default").text.splitlines() == ["1"]


def test_component_adds_and_sets_many_at_once(stores: tuple[Host, str]) -> None:
    host, name = stores
    assert ask(host, name, "increment", "default", "n", "5").text == "5"
    assert ask(host, name, "increment", "default", "n", "3").text == "8"
    assert ask(host, name, "many", "default", "x", "y").text.splitlines() == ["none", "y=2"]
    refused = ask(host, name, "increment", "default", "", "5")
    assert (refused.status, refused.text.partition(":")[0]) == (502, "other")
    ask(host, name, "set", "default", "n", "no-number")
    assert "not a decimal integer" in ask(host, name, "increment", "default", "n", "5").text


def test_component_swaps_what_it_has_seen_and_nothing_else(host: Host) -> None:
    deploy(host, "it-swap")
    assert ask(host, "it-swap", "swap", "default", "k", "1").text == "none"
    assert ask(host, "it-swap", "swap", "default", "k", "2").text == "1"
    assert ask(host, "it-swap", "race", "default", "k", "3").text == "2, then theirs"
    assert ask(host, "it-swap", "get", "default", "k").text == "3"
    assert ask(host, "it-swap", "increment", "default", "minus", "-3").text == "-3"


@pytest.mark.parametrize("draft", ["kv", "kv-draft"])
def test_component_without_a_store_is_refused_with_the_way_to_grant_one(host: Host, draft: str) -> None:
    reply = host.try_deploy("it-none", component(draft), {})
    assert (reply.status, reply.code) == (422, "unknown-imports")
    assert 'kv = ["default"]' in reply.json()["detail"]


def test_thousand_increments_at_once_over_all_workers_are_a_thousand(host: Host) -> None:
    deploy(host, "it-count")
    with ThreadPoolExecutor(64) as pool:
        sums = list(pool.map(lambda _: int(ask(host, "it-count", "increment", "default", "n", "1").text), range(1000)))
    assert sorted(sums) == list(range(1, 1001))
    assert host.admin("GET", "/api/kv/it-count/value?key=n").body == b"1000"


def test_other_function_can_not_read_the_key_before_it_is_granted(host: Host) -> None:
    deploy(host, "it-owner")
    deploy(host, "it-other", kv=["default", "it-owner"])
    deploy(host, "it-stranger")
    ask(host, "it-owner", "set", "default", "k", "mine")
    assert ask(host, "it-other", "get", "default", "k").status == 404  # its own store has nothing there
    for name, *words in (
        ("it-other", "get", "it-owner", "k"),
        ("it-other", "list", "it-owner"),
        ("it-other", "exists", "it-owner", "k"),
        ("it-other", "swap", "it-owner", "k", "theirs"),
        ("it-other", "many", "it-owner", "k", "l"),
        ("it-stranger", "get", "it-owner", "k"),
    ):
        refused = ask(host, name, *words)
        assert (refused.status, refused.text) == (502, "access-denied")

    admin(host, "POST", "/api/kv/it-owner/grants", {"function": "it-other", "read_only": True})
    admin(host, "POST", "/api/kv/it-owner/grants", {"function": "it-stranger"})
    assert ask(host, "it-other", "get", "it-owner", "k").text == "mine"
    assert ask(host, "it-other", "list", "it-owner").text == "k\n1"
    assert ask(host, "it-other", "set", "it-owner", "k", "theirs").text == "access-denied"
    assert ask(host, "it-other", "increment", "it-owner", "n", "1").text == "access-denied"
    assert ask(host, "it-stranger", "get", "it-owner", "k").text == "access-denied"  # its manifest does not name it

    admin(host, "POST", "/api/kv/it-owner/grants", {"function": "it-other"})
    assert ask(host, "it-other", "set", "it-owner", "k", "theirs").text == "done"
    assert ask(host, "it-owner", "get", "default", "k").text == "theirs"
    admin(host, "DELETE", "/api/kv/it-owner/grants/it-other")
    assert ask(host, "it-other", "get", "it-owner", "k").text == "access-denied"


def test_core_module_counts_in_its_store_and_goes_by_its_config_values(host: Host) -> None:
    host.deploy("kv-counter", wasm("kv-counter"), {"routes": ["/kv-counter/*"], "capabilities": {"kv": ["default"]}})
    assert [host.get("/kv-counter/a").text for _ in range(3)] == ["visits: 1\n", "visits: 2\n", "visits: 3\n"]
    admin(host, "PATCH", "/api/functions/kv-counter/config", {"values": {"GREETING": "Besuche:"}})
    assert {host.get("/kv-counter/b").text.split()[0] for _ in range(10)} == {"Besuche:"}
    assert host.get("/kv-counter/").text == "a 3\nb 10\n"
    assert host.request("DELETE", "/kv-counter/a").status == 204
    assert host.admin("GET", "/api/kv/kv-counter/keys").json()["keys"] == ["visits/b"]


def test_limits_reach_the_guest_as_errors_it_can_handle(make_host: MakeHost) -> None:
    host = make_host(kv_max_value_bytes=10, kv_max_store_bytes=30).start()
    deploy(host, "small")
    assert "over 10" in ask(host, "small", "set", "default", "k", "x" * 11).text
    for key in ("1", "2"):
        assert ask(host, "small", "set", "default", key, "x" * 10).text == "done"
    assert "may hold 30" in ask(host, "small", "set", "default", "3", "x" * 10).text
    assert "1 to 512 bytes" in ask(host, "small", "set", "default", "k" * 513, "x").text
    assert ask(host, "small", "get", "default", "1").text == "x" * 10
    assert host.admin("PUT", "/api/kv/small/value?key=k", b"x" * 11).code == "kv-too-large"


def test_value_that_was_acknowledged_survives_kill_minus_nine_of_everything(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    deploy(host, "kept")
    seen: list[int] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            try:
                reply = ask(host, "kept", "increment", "default", "n", "1")
            except OSError:
                return
            if reply.status == 200:
                seen.append(int(reply.text))

    callers = [threading.Thread(target=count) for _ in range(8)]
    for caller in callers:
        caller.start()
    until(lambda: len(seen) >= 100)
    host.kill_all()
    stop.set()
    for caller in callers:
        caller.join()
    host.start()
    total = int(ask(host, "kept", "get", "default", "n").text)
    assert max(seen) <= total <= max(seen) + len(callers)
    assert len(set(seen)) == len(seen)


def test_removed_function_keeps_its_store_unless_it_is_purged(host: Host) -> None:
    deploy(host, "it-gone", secrets=["TOKEN"])
    ask(host, "it-gone", "set", "default", "k", "1")
    admin(host, "PATCH", "/api/functions/it-gone/config", {"values": {"MODE": "old"}})
    admin(host, "PUT", "/api/functions/it-gone/secrets/TOKEN", {"value": "old"})
    admin(host, "DELETE", "/api/functions/it-gone")
    deploy(host, "it-gone", secrets=["TOKEN"])
    assert ask(host, "it-gone", "get", "default", "k").text == "1"
    assert ask(host, "it-gone", "config", "MODE").status == 404
    assert ask(host, "it-gone", "config", "TOKEN").status == 404
    admin(host, "DELETE", "/api/functions/it-gone?purge=1")
    deploy(host, "it-gone")
    assert ask(host, "it-gone", "get", "default", "k").status == 404


# --- config values ---------------------------------------------------------------------------------------------------


def test_config_value_wins_over_the_manifest_on_all_workers_when_the_answer_comes(host: Host) -> None:
    host.deploy(
        "it-config", component(), {"env": {"MODE": "manifest", "ALSO": "x"}, "capabilities": {"kv": ["default"]}}
    )

    def modes() -> set[str]:
        return {ask(host, "it-config", "config", "MODE").text for _ in range(20)}

    assert modes() == {"manifest"}
    for mode in ("one", "two"):
        admin(host, "PATCH", "/api/functions/it-config/config", {"values": {"MODE": mode}})
        assert modes() == {mode}
    assert ask(host, "it-config", "config").text.split() == ["MODE", "ALSO"]
    admin(host, "DELETE", "/api/functions/it-config/config?name=MODE")
    assert modes() == {"manifest"}


def test_config_value_is_an_environment_variable_of_core_modules_and_no_deploy(host: Host) -> None:
    manifest = {"env": {"MODE": "manifest"}, "routes": ["/it-env"]}
    version = host.deploy("it-env", wasm("env"), manifest)["version"]
    admin(host, "PATCH", "/api/functions/it-env/config", {"values": {"MODE": "set"}})
    replies = [host.get("/it-env") for _ in range(10)]
    assert {b"MODE=set" in reply.body.split(b"\n") for reply in replies} == {True}
    assert {reply.headers["X-Faas-Version"] for reply in replies} == {str(version)}


def test_instance_that_was_kept_warm_does_not_go_on_with_an_old_config_value(host: Host) -> None:
    host.deploy("it-warm", wasm("echo-c"), {"warm": {"max": 2, "reuse": 1000}})
    with contextlib.closing(host.connect()) as connection:  # all of it to one worker

        def start() -> str:
            connection.request("GET", "/it-warm")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            return response.headers["Server-Timing"]

        until(lambda: "reused" in start())
        admin(host, "PATCH", "/api/functions/it-warm/config", {"values": {"MODE": "set"}})
        assert "reused" not in start()


def test_config_values_and_secrets_are_there_from_the_first_request_after_a_restart(make_host: MakeHost) -> None:
    host = make_host().start()
    deploy(host, "again", secrets=["TOKEN"])
    admin(host, "PATCH", "/api/functions/again/config", {"values": {"MODE": "kept"}})
    admin(host, "PUT", "/api/functions/again/secrets/TOKEN", {"value": "12345"})
    for stop in (host.stop, host.kill_all):
        stop()
        host.start()
        assert ask(host, "again", "config", "MODE").text == "kept"
        assert ask(host, "again", "secret", "TOKEN").text == "5"
    os.kill(host.worker_pids()[0], signal.SIGKILL)
    until(lambda: host.status()["workers"][0]["restarts"] == 1)
    until(lambda: host.status()["workers"][0]["state"] == "serving")
    assert ask(host, "again", "secret", "TOKEN").text == "5"


def test_hosts_on_one_database_share_stores_grants_config_values_and_secrets(
    make_host: MakeHost, postgres_url: str, tmp_path: Path
) -> None:
    key = tmp_path / "common.key"
    key.write_bytes(base64.b64encode(os.urandom(32)))
    one, two = (make_host(state=postgres_url, secrets_key_file=str(key)).start() for _ in range(2))
    for host in (one, two):
        deploy(host, "shared", secrets=["TOKEN"])
        deploy(host, "friend", kv=["shared"])
    with ThreadPoolExecutor(16) as pool:
        hosts = [one, two] * 50
        sums = list(pool.map(lambda host: int(ask(host, "shared", "increment", "default", "n", "1").text), hosts))
    assert sorted(sums) == list(range(1, 101))
    assert ask(two, "friend", "get", "shared", "n").text == "access-denied"
    admin(one, "POST", "/api/kv/shared/grants", {"function": "friend"})
    until(lambda: ask(two, "friend", "get", "shared", "n").text == "100")
    admin(one, "DELETE", "/api/kv/shared/grants/friend")
    until(lambda: ask(two, "friend", "get", "shared", "n").text == "access-denied")
    admin(one, "PATCH", "/api/functions/shared/config", {"values": {"MODE": "set"}})
    until(lambda: ask(two, "shared", "config", "MODE").text == "set")
    admin(two, "PUT", "/api/functions/shared/secrets/TOKEN", {"value": "12345"})
    until(lambda: ask(one, "shared", "secret", "TOKEN").text == "5")
    for host in (one, two):
        host.stop()


def test_host_that_shares_its_state_keeps_no_secrets_with_a_key_of_its_own(
    make_host: MakeHost, postgres_url: str
) -> None:
    host = make_host(state=postgres_url).start()
    reply = host.admin("PUT", "/api/functions/f/secrets/TOKEN", b'{"value": "x"}')
    assert (reply.status, reply.code) == (500, "secrets-key")
    assert "secrets_key_file" in reply.json()["detail"]


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secret_reaches_a_guest_by_name_if_its_manifest_grants_it(host: Host) -> None:
    deploy(host, "it-secret", secrets=["TOKEN"])
    admin(host, "PUT", "/api/functions/it-secret/secrets/TOKEN", {"value": "geheim"})
    admin(host, "PUT", "/api/functions/it-secret/secrets/UNGRANTED", {"value": "geheim"})
    assert ask(host, "it-secret", "config", "TOKEN").text == "geheim"
    assert ask(host, "it-secret", "config", "UNGRANTED").status == 404
    assert ask(host, "it-secret", "config").text == ""  # not among all values
    admin(host, "DELETE", "/api/functions/it-secret/secrets/TOKEN")
    assert ask(host, "it-secret", "config", "TOKEN").status == 404


def test_version_that_no_alias_names_has_its_secrets_and_config_values_while_it_is_invoked(host: Host) -> None:
    deploy(host, "it-visit", secrets=["TOKEN"])
    deploy(host, "it-visit")
    admin(host, "PUT", "/api/functions/it-visit/secrets/TOKEN", {"value": "geheim"})
    visit = {"qualifier": "1", "target": "/it-visit?config&TOKEN"}
    for mode in ("a", "b"):
        reply = admin(host, "POST", "/api/functions/it-visit/invoke", visit).json()
        assert (reply["version"], base64.b64decode(reply["body"])) == (1, b"geheim")
        admin(host, "PATCH", "/api/functions/it-visit/config", {"values": {"MODE": mode}})
        seen = admin(host, "POST", "/api/functions/it-visit/invoke", {**visit, "target": "/it-visit?config&MODE"})
        assert base64.b64decode(seen.json()["body"]) == mode.encode()
    assert ask(host, "it-visit", "config", "TOKEN").status == 404


def forms(secret: str) -> list[bytes]:
    """Return *secret* as it might be written down somewhere."""
    raw = secret.encode()
    encoded = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, *encoded, raw.hex().encode(), raw.hex().upper().encode(), quote(secret).encode(), raw[::-1], raw[3:-3]]


def crash(host: Host, victim: int, number: int) -> None:
    """End a worker by a signal that others would leave a core dump of, and wait for the one that takes its place."""
    limits = Path(f"/proc/{victim}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    assert int(Path(f"/proc/{victim}/coredump_filter").read_text(), 16) == 0

    def is_gone() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, number)  # the engine's handler takes the first SIGSEGV for an access of a guest's
        return victim not in host.worker_pids()

    until(is_gone)
    until(lambda: [worker["state"] for worker in host.status()["workers"]] == ["serving"] * 2)


def test_nothing_that_is_written_or_answered_anywhere_has_a_secret(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    deploy(host, "user", secrets=["TOKEN"])
    secret = "Zq8-" + os.urandom(16).hex() + "-qZ"
    admin(host, "PUT", "/api/functions/user/secrets/TOKEN", {"value": "before-" + secret})
    admin(host, "PUT", "/api/functions/user/secrets/TOKEN", {"value": secret})
    assert int(ask(host, "user", "secret", "TOKEN").text) == len(secret)

    # Refusals of requests that carry it.
    for path, document in (
        ("/api/functions/user/secrets/TOKEN", {"value": secret, "more": 1}),
        ("/api/functions/user/secrets/TOKEN", {"value": [secret]}),
        ("/api/functions/user/secrets/TOKEN", {"value": secret + "\0"}),
        ("/api/functions/user/secrets/TOKEN", {"value": secret * 2000}),
        ("/api/functions/user/secrets/0", {"value": secret}),
        ("/api/functions/UPPER/secrets/TOKEN", {"value": secret}),
    ):
        reply = host.admin("PUT", path, json.dumps(document).encode())
        assert reply.status == 400
        assert secret.encode() not in reply.body
    reply = host.admin("PUT", "/api/functions/user/secrets/TOKEN", b'{"value": "' + secret.encode())
    assert reply.status == 400
    assert secret.encode() not in reply.body

    # A handler that fails with it in its hands.
    with contextlib.closing(sqlite3.connect(host.home / "state.db")) as database:
        database.execute("CREATE TRIGGER refuse BEFORE UPDATE ON secrets BEGIN SELECT RAISE(ABORT, 'no'); END")
        reply = host.admin("PUT", "/api/functions/user/secrets/TOKEN", json.dumps({"value": secret}).encode())
        assert (reply.status, reply.code) == (500, "state-failed")
        database.execute("DROP TRIGGER refuse")

    # Crashes: of a worker that holds it, and of the guest that has just read it.
    for number in (signal.SIGSEGV, signal.SIGABRT):
        crash(host, host.worker_pids()[0], number)
    assert ask(host, "user", "secret", "TOKEN").text == str(len(secret))
    ask(host, "user", "nonsense", "nowhere")

    answers = [reply.body]
    openapi = json.loads(host.admin("GET", "/api/openapi.json").body)
    for path, methods in openapi["paths"].items():
        if "get" in methods and "logs" not in path:
            filled = path.replace("{name}", "user").replace("{store}", "user").replace("{", "").replace("}", "")
            answers.append(host.admin("GET", filled).body)
    answers.append(host.admin("GET", "/api/functions/user/logs?tail=1000").body)
    assert any(b'"TOKEN"' in answer for answer in answers)
    for pid in (host.pid, *host.worker_pids()):
        for name in ("cmdline", "environ"):
            answers.append(Path(f"/proc/{pid}/{name}").read_bytes())

    files = [path for path in host.home.parent.rglob("*") if path.is_file()]
    assert {"state.db", "secrets.key", "host.json"} <= {path.name for path in files}
    assert host.stderr_path in files
    running = {path: path.read_bytes() for path in files}
    host.stop()
    stopped = {path: path.read_bytes() for path in host.home.parent.rglob("*") if path.is_file()}
    for where, content in [*running.items(), *stopped.items(), *enumerate(answers)]:
        for form in forms(secret):
            assert form not in content, where
    assert any(b"secret.set" in content for content in stopped.values())  # what was looked through is what was written
