"""Promises of wasi:sockets: everything links, nothing reaches a network, and the log says once what to use instead."""

from __future__ import annotations

from typing import Any

import pytest

from faas.clock import SystemClock
from faas.errors import GuestTrapError
from faas.wasi import wit
from faas.wasi.context import WasiContext
from faas.wasi.p2 import io
from faas.wasi.p2.resources import WitError
from faas.wasi.p2.sockets import FUNCTIONS, REFUSED_LINE, Network
from faas.wasi.streams import CollectingOutput, DiscardedOutput, EmptyInput

INTERFACES = {name: each for name, each in wit.interfaces().items() if name.startswith("wasi:sockets/")}


class FakeGuest:
    """An instance without an engine."""

    def __init__(self) -> None:
        self.stderr = CollectingOutput()
        self.wasi = WasiContext((), (), EmptyInput(), DiscardedOutput(), self.stderr, None, 0, SystemClock())

    def call(self, interface: str, name: str, *args: Any) -> Any:
        return FUNCTIONS[f"wasi:sockets/{interface}"][name].call(self, *args)

    def code(self, interface: str, name: str, *args: Any) -> str:
        with pytest.raises(WitError) as caught:
            self.call(interface, name, *args)
        return caught.value.value


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


def test_the_registry_has_every_function_of_the_package_and_no_other() -> None:
    wanted = {name: set(interface.functions) for name, interface in INTERFACES.items()}
    assert {name: set(functions) for name, functions in FUNCTIONS.items()} == wanted


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_no_socket_is_made(guest: FakeGuest, protocol: str, family: str) -> None:
    assert guest.code(f"{protocol}-create-socket", f"create-{protocol}-socket", family) == "access-denied"


def test_what_takes_a_handle_that_nobody_has_traps(guest: FakeGuest) -> None:
    n_methods = 0
    for interface, functions in FUNCTIONS.items():
        for name, function in functions.items():
            if name.startswith("[method]"):
                n_methods += 1
                n_params = len(INTERFACES[interface].functions[name].params)
                with pytest.raises(GuestTrapError, match="never created"):
                    function.call(guest, *[None] * n_params)
    assert n_methods == 48


def test_names_are_not_looked_up(guest: FakeGuest) -> None:
    network = guest.call("instance-network", "instance-network")
    assert isinstance(network, Network)
    assert guest.code("ip-name-lookup", "resolve-addresses", network, "localhost") == "access-denied"
    network.drop()


def test_access_denied_is_a_code_of_the_wit() -> None:
    form, cases = INTERFACES["wasi:sockets/network"].types["error-code"]
    assert (form, "access-denied" in cases) == ("enum", True)


def test_the_log_names_the_way_out_once(guest: FakeGuest) -> None:
    network = guest.call("instance-network", "instance-network")
    assert guest.stderr.getvalue() == b""
    for _ in range(2):
        guest.code("tcp-create-socket", "create-tcp-socket", "ipv4")
        guest.code("udp-create-socket", "create-udp-socket", "ipv4")
        guest.code("ip-name-lookup", "resolve-addresses", network, "localhost")
    assert guest.stderr.getvalue().decode() == REFUSED_LINE + "\n"
    assert "wasi:http/outgoing-handler" in REFUSED_LINE


def test_no_error_of_a_stream_comes_from_a_network(guest: FakeGuest) -> None:
    error = io.IoError(io.StreamFailedError("disk"))
    assert guest.call("network", "network-error-code", error) is None
