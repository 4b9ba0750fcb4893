"""OCI containers by runc: one for each request, or one that is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.peers.base import Peer, PeerUnavailableError, tool
from loadtest.peers.process import front
from loadtest.peers.programs import Image, Program, PythonProgram

_ISOLATION = "namespaces of the machine's kernel, no capabilities, read-only root"


class ContainerPerRequest(Peer):
    """A front server that runs *program* in a container of its own for each request."""

    isolation = f"{_ISOLATION}; a container for each request"
    connections = 8

    def __init__(self, program: Program) -> None:
        self._program = program
        self._runtime = Runtime()
        self.name = f"container-{program.name}"
        self.title = f"container per request, {program.title}"

    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """Write the bundle that all the containers are made from."""
        return front(port, self._runtime.command(self._program.image(), scratch, "{id}"))

    def cleanup(self) -> None:
        """Remove containers that were running when the front ended."""
        self._runtime.cleanup()


class WarmContainer(Peer):
    """A container that is kept and serves all requests, in the machine's network."""

    name = "container-warm"
    title = "container kept warm, asyncio server"
    isolation = f"{_ISOLATION}; none between requests"

    def __init__(self) -> None:
        self._runtime = Runtime()

    def command(self, port: int, scratch: Path) -> Sequence[str]:
        """Write the bundle."""
        return self._runtime.command(warm_server(port), scratch, "warm", own_network=False)

    def cleanup(self) -> None:
        """Remove the container if it is still there."""
        self._runtime.cleanup()


def warm_server(port: int) -> Image:
    """Return the image whose program is an HTTP server on *port*; raises PeerUnavailableError."""
    image = PythonProgram().image()
    return Image(image.root, [image.command[0], "-I", "-S", "/app/warm.py", str(port)])


class Runtime:
    """runc with a folder of its own for its state, so that no other containers are in its way; empty until used."""

    def __init__(self) -> None:
        self._root = Path(tempfile.gettempdir()) / f"faas-bench-runc-{uuid.uuid4().hex[:12]}"

    def command(
        self, image: Image, bundle: Path, name: str, *, own_network: bool = True, env: Sequence[str] = ()
    ) -> Sequence[str]:
        """
        Write *image*'s configuration into *bundle* and return the command that runs a container and waits for its end.

        Raises: PeerUnavailableError.
        """
        if shutil.which("runc") is None:
            raise PeerUnavailableError("runc is not installed; run: apt-get install runc")
        if os.geteuid() != 0:
            raise PeerUnavailableError("runc needs root to make containers; run the benchmark as root")
        config, path = json.dumps(_config(image, own_network, env)), bundle / "config.json"
        if not path.exists() or path.read_text() != config:  # else a runc that was just started may be reading it
            path.write_text(config)
        return [*self._runc, "run", "--bundle", str(bundle), name]

    def n_running(self) -> int:
        """Return how many containers run their program by now."""
        listed = json.loads(tool([*self._runc, "list", "--format", "json"], "list containers")) or []
        return sum(container["status"] == "running" for container in listed)

    def cleanup(self) -> None:
        """End the containers that are left over and remove all traces."""
        if self._root.exists():
            for state in self._root.iterdir():
                # Those that ended meanwhile are no error.
                subprocess.run([*self._runc, "delete", "--force", state.name], capture_output=True, check=False)
            shutil.rmtree(self._root)

    @property
    def _runc(self) -> Sequence[str]:
        return ["runc", "--root", str(self._root)]


def _config(image: Image, own_network: bool, env: Sequence[str]) -> Mapping[str, Any]:
    """
    Return a configuration with as little in it as a program needs, which is the fastest that runc gets.

    No limits: those need control groups, which not every machine lets runc have.
    Source: OCI runtime specification 1.0.
    """
    namespaces = ["pid", "ipc", "uts", "mount", *(["network"] if own_network else [])]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(image.command),
            "env": ["PATH=/usr/bin:/bin", *env],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.root), "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
        ],
        "linux": {"resources": {}, "namespaces": [{"type": kind} for kind in namespaces]},
    }
