"""A real PostgreSQL server of its own for tests, trials and benchmarks: a fresh folder, a socket, no network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DEBIAN = Path("/usr/lib/postgresql")
_USERS = ("postgres", "nobody")
"""Who runs it when we are root, which it refuses to be."""


def find_postgres() -> Path | None:
    """Return the folder with ``initdb`` and ``pg_ctl``; None if there is no server on this machine."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(_DEBIAN.glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer:
    """A server with its files in a folder, and an empty database on it; lives while ``running_postgres`` does."""

    def __init__(self, folder: Path, home: str, *, durable: bool) -> None:
        """Use ``running_postgres``."""
        self.url = f"postgresql://faas@/faas?host={home}"
        self._folder = folder
        self._home = home
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = next(pwd.getpwnam(name) for name in _USERS if _known(name))
            os.chown(home, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._options = f"-c listen_addresses= -c unix_socket_directories={home} -c max_connections=200"
        if not durable:
            self._options += " -c fsync=off -c full_page_writes=off"

    def make(self) -> None:
        """Make the files, start, and make the database."""
        self._run("initdb", "-D", f"{self._home}/data", "-U", "faas", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        self._run("createdb", "-h", self._home, "-U", "faas", "faas")

    def start(self) -> None:
        """Start it; it answers when this returns."""
        self._control("-l", f"{self._home}/log", "-o", self._options, "start")

    def stop(self) -> None:
        """Stop it, as by a kill; what was committed is there when it is started again."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", f"{self._home}/data", "-w", "-t", "30", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            (f"{self._folder}/{program}", *arguments),
            cwd=self._home,
            env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": self._home},
            capture_output=True,
            text=True,
            check=False,
            **self._user,
        )
        if done.returncode:
            log = Path(self._home) / "log"
            said = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}{said}")


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[str]:
    """Run a server until the block is left; the value is the URL of an empty database on it."""
    with running_postgres(durable=durable) as server:
        yield server.url


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[PostgresServer]:
    """
    Run a server, which may be stopped and started meanwhile, until the block is left.

    Args: *durable* has it sync its files: only needed where the machine itself may fail.
    Raises: RuntimeError if there is no PostgreSQL, or it does not start.
    """
    folder = find_postgres()
    if folder is None:
        raise RuntimeError("there is no PostgreSQL on this machine; 'apt-get install postgresql' brings it")
    with tempfile.TemporaryDirectory(prefix="faas-pg-", ignore_cleanup_errors=True) as home:
        server = PostgresServer(folder, home, durable=durable)
        server.make()
        try:
            yield server
        finally:
            server.stop()


def _known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
