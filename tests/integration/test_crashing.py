"""kill -9 of anything: what was acknowledged is served again, and nobody shares a home or a port by accident."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hosting import Host, HostFailedError, MakeHost, alive, free_port, until, wasm

HELLO = wasm("hello-c")


def test_a_killed_worker_is_replaced_and_the_other_goes_on(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    path = f"/{host.serves('hello-c')}"
    victim, survivor = host.worker_pids()
    os.kill(victim, signal.SIGKILL)

    def served() -> bool:
        try:
            return host.get(path).status == 200
        except (ConnectionError, http.client.HTTPException):
            return False  # this connection was still the victim's

    until(served, timeout_s=2, what="the other worker answers")

    def replaced() -> bool:
        pids = host.worker_pids()
        states = [worker["state"] for worker in host.status()["workers"]]
        return len(pids) == 2 and victim not in pids and survivor in pids and states == ["serving"] * 2

    until(replaced, what="a new worker serves")
    assert {host.get(path).status for _ in range(30)} == {200}
    assert sorted(worker["restarts"] for worker in host.status()["workers"]) == [0, 1]
    host.stop()


def test_a_deploy_goes_on_when_a_worker_dies_meanwhile(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    for _ in range(3):
        victim = host.worker_pids()[0]
        killer = threading.Thread(target=os.kill, args=(victim, signal.SIGKILL))
        killer.start()
        version = host.deploy("hello", HELLO)["version"]
        killer.join()
        until(lambda: len(host.worker_pids()) == 2 and all(w["state"] == "serving" for w in host.status()["workers"]))
        assert {host.get("/hello").headers["X-Faas-Version"] for _ in range(20)} == {str(version)}
    host.stop()


@pytest.mark.parametrize("n_acknowledged", [1, 3])
def test_kill_9_of_everything_during_deploys_loses_nothing_acknowledged(
    make_host: MakeHost, n_acknowledged: int
) -> None:
    host = make_host("crash", workers=2).start()
    acknowledged: dict[str, int] = {}
    tried: list[str] = []
    enough = threading.Event()

    def deploy_on_and_on() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for i in range(1000):
                name = f"f{i % 3}"
                tried.append(name)
                version = host.deploy(name, HELLO, {"env": {"N": str(i)}})["version"]
                acknowledged[name] = version
                if len(acknowledged) >= n_acknowledged:
                    enough.set()

    deploying = threading.Thread(target=deploy_on_and_on)
    deploying.start()
    assert enough.wait(30)
    host.kill_all()
    deploying.join()

    again = make_host("crash", workers=2).start()
    functions = again.functions()
    in_doubt = tried[-1]
    for name, version in acknowledged.items():
        allowed = {version, version + 1} if name == in_doubt else {version}
        assert functions[name] in allowed
    assert set(functions) <= set(acknowledged) | {in_doubt}
    for name, version in functions.items():
        assert {again.get(f"/{name}").headers["X-Faas-Version"] for _ in range(20)} == {str(version)}
    again.stop()


def test_workers_end_when_their_control_process_is_killed(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    workers = host.worker_pids()
    os.kill(host.pid, signal.SIGKILL)
    host.wait()
    until(lambda: not any(alive(pid) for pid in workers), what="the workers are gone")


def test_a_killed_host_starts_again_on_the_same_port(make_host: MakeHost) -> None:
    port = free_port()
    host = make_host("same", port=port).start()
    host.deploy("hello", HELLO)
    os.kill(host.pid, signal.SIGKILL)  # its worker is still there, and lets go of the port only by and by
    host.wait()
    again = make_host("same", port=port).start()
    assert again.get("/hello").status == 200
    again.stop()


def test_a_second_host_on_the_same_home_is_refused(make_host: MakeHost) -> None:
    first = make_host("shared").start()
    with pytest.raises(HostFailedError, match="home-locked") as raised:
        make_host("shared").start()
    assert str(first.pid) in str(raised.value)
    first.stop()


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What hosts say whose port is taken; all at once, as each waits a while for the port to become free."""
    folder = tmp_path_factory.mktemp("refusals")
    first = Host(folder / "first").start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = {"public": {"port": port}, "admin": {"admin_port": port}, "host": {"port": first.port}}

        def refusal(name: str) -> str:
            host = Host(folder / name, **wanted[name])
            with pytest.raises(HostFailedError) as raised:
                host.start()
            return str(raised.value)

        with ThreadPoolExecutor() as threads:
            said = dict(zip(wanted, threads.map(refusal, wanted), strict=True))
    first.stop()
    return said


@pytest.mark.parametrize(("which", "flag"), [("public", "--port"), ("admin", "--admin-port")])
def test_a_taken_port_is_refused_with_what_to_change(refusals: dict[str, str], which: str, flag: str) -> None:
    assert "port-taken: " in refusals[which]
    assert f"choose another {flag}" in refusals[which]


def test_two_hosts_never_share_a_public_port(refusals: dict[str, str]) -> None:
    """SO_REUSEPORT would let them, and requests would go to either."""
    assert "port-taken: " in refusals["host"]


def test_an_unknown_setting_keeps_a_host_from_starting(make_host: MakeHost) -> None:
    with pytest.raises(HostFailedError, match=r"config-invalid: .*no_such_setting"):
        make_host(no_such_setting=1).start()
