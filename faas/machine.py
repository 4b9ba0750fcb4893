"""How much memory this process may use: what the machine has, or what its control group allows if that is less."""

from __future__ import annotations

import os
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
