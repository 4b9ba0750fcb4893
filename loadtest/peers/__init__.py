"""Other ways to answer a request in isolation, one module each: they are started on loopback, driven, and ended."""

from __future__ import annotations

from loadtest.peers.base import BODY, Peer, PeerUnavailableError
from loadtest.peers.container import ContainerPerRequest, WarmContainer
from loadtest.peers.process import ProcessPerRequest
from loadtest.peers.programs import CProgram, PythonProgram
from loadtest.peers.wasmtime_serve import WasmtimeServe
from loadtest.peers.workerd import Workerd

__all__ = ["BODY", "PEERS", "CProgram", "Peer", "PeerUnavailableError", "PythonProgram"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        WasmtimeServe(),
        Workerd(),
        ProcessPerRequest(CProgram()),
        ProcessPerRequest(PythonProgram()),
        ContainerPerRequest(CProgram()),
        ContainerPerRequest(PythonProgram()),
        WarmContainer(),
    )
}
"""Every peer by its name, in the order of the tables."""
