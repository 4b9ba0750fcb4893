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


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[str]:
    """
    Run a server until the block is left; the value is the URL of an empty database on it.

    Args: *durable* has it sync its files: only needed where the machine itself may fail.
    Raises: RuntimeError if there is no PostgreSQL, or it does not start.
    """
    folder = find_postgres()
    if folder is None:
        raise RuntimeError("there is no PostgreSQL on this machine; 'apt-get install postgresql' brings it")
    with tempfile.TemporaryDirectory(prefix="faas-pg-", ignore_cleanup_errors=True) as home:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = next(pwd.getpwnam(name) for name in _USERS if _known(name))
            os.chown(home, account.pw_uid, account.pw_gid)
            user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        environ = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": home}

        def run(*command: str) -> None:
            done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False, **user)
            if done.returncode:
                log = Path(home) / "log"
                said = log.read_text() if log.exists() else ""
                raise RuntimeError(f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}{said}")

        at = f"{home}/data"
        run(f"{folder}/initdb", "-D", at, "-U", "faas", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c max_connections=200"
        if not durable:
            options += " -c fsync=off -c full_page_writes=off"
        run(f"{folder}/pg_ctl", "-D", at, "-w", "-t", "30", "-l", f"{home}/log", "-o", options, "start")
        try:
            run(f"{folder}/createdb", "-h", home, "-U", "faas", "faas")
            yield f"postgresql://faas@/faas?host={home}"
        finally:
            run(f"{folder}/pg_ctl", "-D", at, "-w", "-t", "30", "-m", "immediate", "stop")


def _known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
