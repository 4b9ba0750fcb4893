"""workerd, the runtime of Cloudflare Workers: JavaScript that makes a new wasm instance for each request."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.peers import wat
from loadtest.peers.base import SOURCES, Peer, PeerUnavailableError
from loadtest.peers.npm import package

VERSION = "1.20261117.1"
_PACKAGES = {
    ("linux", "x86_64"): "@cloudflare/workerd-linux-64",
    ("linux", "aarch64"): "@cloudflare/workerd-linux-arm64",
    ("darwin", "arm64"): "@cloudflare/workerd-darwin-arm64",
    ("darwin", "x86_64"): "@cloudflare/workerd-darwin-64",
}


class Workerd(Peer):
    """One process with one JavaScript thread, as workerd always is."""

    name = "workerd"
    title = "workerd, wasm instance per request"
    isolation = "wasm sandbox in a V8 isolate; all requests in one isolate"

    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """Fetch workerd and write its configuration."""
        machine = sys.platform, platform.machine()
        if machine not in _PACKAGES:
            raise PeerUnavailableError(f"workerd is not published for {' '.join(machine)}; leave it out with --peers")
        binary = package(_PACKAGES[machine], VERSION) / "bin" / "workerd"
        binary.chmod(0o755)
        shutil.copyfile(SOURCES / "worker.js", scratch / "worker.js")
        shutil.copyfile(wat.module("text"), scratch / "text.wasm")
        config = (SOURCES / "workerd.capnp").read_text().replace("PORT", str(port))
        (scratch / "workerd.capnp").write_text(config)
        return [str(binary), "serve", str(scratch / "workerd.capnp")]
