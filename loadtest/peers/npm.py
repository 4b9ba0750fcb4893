"""Packages from npm, without their dependencies and without running anything that is in them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from loadtest.peers.base import CACHE, PeerUnavailableError, made_once, tool


def package(name: str, version: str) -> Path:
    """
    Return the folder of one package's files, fetched by ``npm pack`` at the first call.

    Raises: PeerUnavailableError.
    """

    def fetch(folder: Path) -> None:
        tool(["npm", "pack", "--silent", f"{name}@{version}"], f"fetch {name}@{version} from npm", cwd=folder)
        archives = list(folder.glob("*.tgz"))
        if len(archives) != 1:
            raise PeerUnavailableError(
                f"can't fetch {name}@{version}: npm pack left {len(archives)} archives; try again"
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        archives[0].unlink()

    return made_once(CACHE / "npm" / f"{name.replace('/', '-').lstrip('@')}-{version}", fetch) / "package"
