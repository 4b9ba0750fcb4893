"""What this process may use of its machine's memory, and what of its own may end up on the machine's disks."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def memory_bytes(root: Path = ROOT) -> int:
    """
    Return the physical memory, or the lowest limit of this process's control group and its ancestors.

    Args: *root* is where /proc and /sys are.
    Source: Linux, cgroup-v2 ``memory.max``, cgroup-v1 ``memory.limit_in_bytes``; "no limit" is a word or a huge number.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(root)])


def forbid_dumps(root: Path = ROOT) -> None:
    """
    Have no crash of this process, or of those it starts, leave its memory in a file: it may hold secrets.

    The limit does not stop what the system pipes core dumps to, so on Linux they are also told to leave all memory out.
    Who may debug the process is not changed: that is its own user, who may read the home and its keys anyway.

    Args: *root* is where /proc is.
    Source: Linux, core(5): ``RLIMIT_CORE``, ``/proc/PID/coredump_filter``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # another system, or a kernel without core dumps
        (root / "proc/self/coredump_filter").write_text("0")


def _limits(root: Path) -> Iterator[int]:
    """Yield every limit there is; a container sees its own group as the mount's root, whatever its path says."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            folders, name = (mount, mount / "unified"), "memory.max"
        elif "memory" in controllers.split(","):
            folders, name = (mount / "memory", mount / controllers), "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
        for folder in folders:
            for depth in range(len(parts) + 1):
                said = _read(folder.joinpath(*parts[:depth], name)).strip()
                if said.isdecimal():
                    yield int(said)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""  # another system, or a group whose files are not shown to us: that says nothing about a limit
