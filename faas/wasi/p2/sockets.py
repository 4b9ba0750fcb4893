"""
``wasi:sockets``: all of it is there, as toolchains import more than programs use, and nothing reaches a network.

Creating a socket is refused with ``access-denied``, as wasmtime does unless it is told otherwise, and so is every
look-up of a name. The function's log says so once, and what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from faas.errors import GuestTrapError
from faas.wasi.p2.io import IoError
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError

REFUSED_LINE: Final = (
    "wasi:sockets: access denied, functions have no sockets; make requests through wasi:http/outgoing-handler, "
    "to hosts that [capabilities] outbound of function.toml names"
)


class Network(Resource):
    """A ``network``: stands for no network at all."""

    __slots__ = ()


def instance_network(_guest: Any) -> Network:
    """Return a network to hand to the functions that want one."""
    return Network()


def network_error_code(_guest: Any, _error: IoError) -> None:
    """Return None: no stream's error comes from a network."""
    return


def denied(guest: Any, *_args: Any) -> NoReturn:
    """Refuse, and say so in the log the first time."""
    guest.wasi.warn_once(REFUSED_LINE)
    raise WitError("access-denied")


def unreachable(_guest: Any, *_args: Any) -> NoReturn:
    """Trap: it takes a handle that nothing here gives out; the function is there for the linker."""
    raise GuestTrapError("the guest used a socket that was never created; check the error of create-tcp-socket")


_METHODS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "wasi:sockets/tcp": {
        "tcp-socket": (
            "start-bind",
            "finish-bind",
            "start-connect",
            "finish-connect",
            "start-listen",
            "finish-listen",
            "accept",
            "local-address",
            "remote-address",
            "is-listening",
            "address-family",
            "set-listen-backlog-size",
            "keep-alive-enabled",
            "set-keep-alive-enabled",
            "keep-alive-idle-time",
            "set-keep-alive-idle-time",
            "keep-alive-interval",
            "set-keep-alive-interval",
            "keep-alive-count",
            "set-keep-alive-count",
            "hop-limit",
            "set-hop-limit",
            "receive-buffer-size",
            "set-receive-buffer-size",
            "send-buffer-size",
            "set-send-buffer-size",
            "subscribe",
            "shutdown",
        ),
    },
    "wasi:sockets/udp": {
        "udp-socket": (
            "start-bind",
            "finish-bind",
            "stream",
            "local-address",
            "remote-address",
            "address-family",
            "unicast-hop-limit",
            "set-unicast-hop-limit",
            "receive-buffer-size",
            "set-receive-buffer-size",
            "send-buffer-size",
            "set-send-buffer-size",
            "subscribe",
        ),
        "incoming-datagram-stream": ("receive", "subscribe"),
        "outgoing-datagram-stream": ("check-send", "send", "subscribe"),
    },
    "wasi:sockets/ip-name-lookup": {"resolve-address-stream": ("resolve-next-address", "subscribe")},
}


def _methods(interface: str) -> dict[str, ComponentFunction]:
    return {
        f"[method]{resource}.{name}": ComponentFunction(unreachable)
        for resource, names in _METHODS[interface].items()
        for name in names
    }


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:sockets/network": {"network-error-code": ComponentFunction(network_error_code)},
    "wasi:sockets/instance-network": {"instance-network": ComponentFunction(instance_network)},
    "wasi:sockets/tcp-create-socket": {"create-tcp-socket": ComponentFunction(denied)},
    "wasi:sockets/udp-create-socket": {"create-udp-socket": ComponentFunction(denied)},
    "wasi:sockets/tcp": _methods("wasi:sockets/tcp"),
    "wasi:sockets/udp": _methods("wasi:sockets/udp"),
    "wasi:sockets/ip-name-lookup": {
        "resolve-addresses": ComponentFunction(denied),
        **_methods("wasi:sockets/ip-name-lookup"),
    },
}
