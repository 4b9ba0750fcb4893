"""``faas doctor``."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import msgspec
import typer

from faas.cli.client import environ
from faas.cli.options import Home, Json
from faas.cli.output import print_json, size
from faas.config import HostConfig, load_config
from faas.wasm.engine import EngineProfile

_MIN_DISK_BYTES = 1024**3
_FDS_PER_HOST = 256
_PINNED_WASMTIME = "50.0.1"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; ``next_step`` is empty when all is well."""

    what: str
    ok: bool
    found: str
    next_step: str = ""
    optional: bool = False


def doctor(home: Home = None, json: Json = False) -> None:
    """Check what the host needs from this machine; exit code 1 if something is missing."""
    config = load_config({"home": None if home is None else str(home)}, environ())
    findings = [finding for check in CHECKS for finding in check(config)]
    if json:
        print_json(findings)
    else:
        for finding in findings:
            mark = "✓" if finding.ok else ("-" if finding.optional else "✗")
            print(f"{mark} {finding.what}: {finding.found}")
            if not finding.ok and finding.next_step:
                print(f"    → {finding.next_step}")
    raise typer.Exit(0 if all(finding.ok or finding.optional for finding in findings) else 1)


def _python(_config: HostConfig) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def _wasmtime(_config: HostConfig) -> Iterator[Finding]:
    wanted = _wanted_wasmtime()
    try:
        found = version("wasmtime")
    except PackageNotFoundError:
        found = "not installed"
    yield Finding("wasmtime", found == wanted, found, f"pip install wasmtime=={wanted}")
    # In a process of its own: a library that lacks a symbol, or doesn't fit this machine, must not end the doctor.
    probe = subprocess.run(
        [sys.executable, "-c", "import faas.wasm.capi"], capture_output=True, text=True, check=False, timeout=60
    )
    last = (probe.stderr.strip().splitlines() or ["no message"])[-1]
    yield Finding(
        "wasmtime C API",
        probe.returncode == 0,
        "every symbol is there" if probe.returncode == 0 else last,
        f"pip install --force-reinstall wasmtime=={wanted}",
    )


def _home(config: HostConfig) -> Iterator[Finding]:
    home = config.home_path
    if not home.exists():
        parent = next(folder for folder in home.parents if folder.exists())
        writable = os.access(parent, os.W_OK | os.X_OK)
        yield Finding("home", writable, f"{home} (will be made)", "choose a --home below a folder you may write to")
        return
    status = home.stat()
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and os.access(home, os.W_OK | os.X_OK)
    yield Finding("home", mine, str(home), f"choose another --home, or: chown -R $USER {home}")
    open_to = stat.S_IMODE(status.st_mode) & 0o077
    yield Finding(
        "home permissions", not open_to, f"{stat.S_IMODE(status.st_mode):04o}", f"chmod 700 {home}: it holds keys"
    )


def _ports(config: HostConfig) -> Iterator[Finding]:
    if _host_runs(config.home_path):
        yield Finding("ports", True, f"a host already runs from {config.home}")
        return
    for flag, host, port in (("--port", config.host, config.port), ("--admin-port", "127.0.0.1", config.admin_port)):
        reason = _why_not_bound(host, port)
        yield Finding(
            f"port {port}", not reason, reason or "free", f"stop what uses it (ss -ltnp), or choose another {flag}"
        )


def _disk(config: HostConfig) -> Iterator[Finding]:
    home = config.home_path
    free = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free
    yield Finding("disk space", free >= _MIN_DISK_BYTES, f"{size(free)} free", f"free at least {size(_MIN_DISK_BYTES)}")


def _address_space(config: HostConfig) -> Iterator[Finding]:
    needed = EngineProfile.from_config(config.with_whole_pool).address_space_bytes
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    enough = soft == resource.RLIM_INFINITY or soft > needed
    limit = "unlimited" if soft == resource.RLIM_INFINITY else size(soft)
    yield Finding(
        "address space (ulimit -v)",
        enough,
        f"{limit}; each worker reserves {needed / 2**40:.1f} TiB (reserved is not used)",
        "ulimit -v unlimited, or lower pool.slots",
    )


def _descriptors(config: HostConfig) -> Iterator[Finding]:
    # Each request in flight is a connection; the rest is files, sockets and pipes of the worker itself.
    needed = config.pool.slots + config.max_queue + _FDS_PER_HOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    step = f"ulimit -n {needed}" if hard == resource.RLIM_INFINITY or hard >= needed else "raise it in limits.conf"
    yield Finding("file descriptors (ulimit -n)", soft >= needed, f"{soft} per process, {needed} wanted", step)


def _extras(_config: HostConfig) -> Iterator[Finding]:
    for extra, module, purpose in (
        ("preinit", "wasmtime_cli", "snapshots of initialised modules"),
        ("models", "llama_cpp", "resident models"),
    ):
        there = find_spec(module) is not None
        yield Finding(
            f"extra {extra!r}",
            there,
            f"installed: {purpose}" if there else f"not installed: no {purpose}",
            f"pip install 'faas[{extra}]'",
            optional=True,
        )


CHECKS: tuple[Callable[[HostConfig], Iterator[Finding]], ...] = (
    _python,
    _wasmtime,
    _home,
    _ports,
    _disk,
    _address_space,
    _descriptors,
    _extras,
)


def _wanted_wasmtime() -> str:
    """Return the version that our own metadata pins."""
    try:
        pins = [text for text in requires("faas") or [] if text.startswith("wasmtime==")]
    except PackageNotFoundError:
        pins = []
    return pins[0].partition("==")[2].partition(";")[0].strip() if pins else _PINNED_WASMTIME


def _host_runs(home: Path) -> bool:
    try:
        with (home / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _why_not_bound(host: str, port: int) -> str:
    """Return why nothing can listen on *port* now; '' if something can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as exc:
        return f"{host!r} has no address ({exc.strerror})"
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            return "another program listens there" if exc.errno == errno.EADDRINUSE else str(exc.strerror)
    return ""
