"""A host owns its home and its ports, or says plainly why it can't."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from faas.config import HostConfig
from faas.control import main
from faas.control.views import base_url
from faas.errors import ConfigError, HomeLockedError, PortTakenError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_home_is_the_users_alone(tmp_path):
    home = tmp_path / "a" / "b"
    main._make_home(home)
    assert mode(home) == 0o700


def test_home_that_can_not_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--home"):
        main._make_home(tmp_path / "file" / "home")


def test_second_host_on_a_home_is_refused_and_told_who_has_it(tmp_path):
    with main._locked(tmp_path), pytest.raises(HomeLockedError, match=str(os.getpid())), main._locked(tmp_path):
        pass
    with main._locked(tmp_path):
        pass


def test_token_is_made_once_and_readable_by_its_owner_only(tmp_path):
    token = main._admin_token(tmp_path)
    assert len(token) >= 32
    assert mode(tmp_path / "token") == 0o600
    assert main._admin_token(tmp_path) == token


def test_token_that_others_could_read_is_closed_again(tmp_path):
    main._admin_token(tmp_path)
    (tmp_path / "token").chmod(0o644)
    main._admin_token(tmp_path)
    assert mode(tmp_path / "token") == 0o600


def test_home_with_a_long_name_gets_its_socket_elsewhere(tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with main._run_folder(deep) as folder:
        assert len(os.fsencode(folder / "control.sock")) <= 100
        assert mode(folder) == 0o700
    assert not folder.exists()


async def test_port_zero_holds_a_real_port_that_only_workers_can_share():
    with await main._held_port("127.0.0.1", 0, "--port") as port:
        assert port > 0
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass


async def test_taken_port_is_refused_even_if_its_owner_would_share(monkeypatch):
    monkeypatch.setattr(main, "PORT_PATIENCE_S", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTakenError, match="--port"):
            await main._held_port("127.0.0.1", other.getsockname()[1], "--port")


async def test_port_that_becomes_free_in_a_moment_is_waited_for(monkeypatch):
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]

    async def sleep(delay_s):
        other.close()

    monkeypatch.setattr(main.asyncio, "sleep", sleep)
    with await main._held_port("127.0.0.1", port, "--port") as held:
        assert held == port


async def test_host_without_an_address_is_a_config_error():
    with pytest.raises(ConfigError, match="--host"):
        await main._held_port("no such host at all", 0, "--port")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_url_can_be_tried_from_this_machine(host, url):
    assert base_url(host, 80) == url


async def test_start_removes_what_a_killed_host_left_in_the_scratch_folder(tmp_path, monkeypatch):
    left = tmp_path / "artifacts" / "scratch" / "job-1"
    left.mkdir(parents=True)
    (left / "module.wasm").write_bytes(b"x")

    class Enough(Exception):
        pass

    async def stop_here(url, path, clock):
        raise Enough

    monkeypatch.setattr(main, "open_state", stop_here)
    with main._locked(tmp_path), pytest.raises(HomeLockedError):
        async with main._running(HostConfig(home=str(tmp_path))):
            pass
    assert left.exists(), "the scratch folder is another host's while it holds the home"
    with pytest.raises(Enough):
        async with main._running(HostConfig(home=str(tmp_path))):
            pass
    assert not left.exists()
