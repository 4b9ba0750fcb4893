"""The memory of this machine: the lowest limit of any control group above this process counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faas.machine import memory_bytes

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


def tree(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """Make /proc/self/cgroup with *groups*, and *limits* under /sys/fs/cgroup; return where."""
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": c for n, c in limits.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, PHYSICAL),
        ("0::/\n", {}, PHYSICAL),
        ("0::/a/b\n", {"a/memory.max": "max\n", "a/b/memory.max": "max\n"}, PHYSICAL),
        ("0::/a/b\n", {"a/memory.max": "max\n", "a/b/memory.max": f"{64 * MIB}\n"}, 64 * MIB),
        ("0::/a/b\n", {"a/memory.max": f"{32 * MIB}\n", "a/b/memory.max": f"{64 * MIB}\n"}, 32 * MIB),
        ("0::/a/b\n", {"a/b/c/memory.max": "1\n", "x/memory.max": "1\n"}, PHYSICAL),
        ("0::/\n", {"memory.max": f"{16 * MIB}\n"}, 16 * MIB),
        ("0::/outer/name\n", {"memory.max": f"{16 * MIB}\n"}, 16 * MIB),
        ("0::/../../x\n", {"memory.max": f"{16 * MIB}\n"}, 16 * MIB),
        ("0::/a:b\n", {"a:b/memory.max": f"{16 * MIB}\n"}, 16 * MIB),
        (
            "12:cpu,cpuacct:/a\n9:memory:/a/b\n0::/\n",
            {
                "memory/a/memory.limit_in_bytes": f"{48 * MIB}\n",
                "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
                "cpu,cpuacct/a/memory.limit_in_bytes": "1\n",
            },
            48 * MIB,
        ),
        ("3:cpu,memory:/a\n", {"cpu,memory/a/memory.limit_in_bytes": f"{48 * MIB}\n"}, 48 * MIB),
        ("0::/a\n", {"unified/a/memory.max": f"{48 * MIB}\n"}, 48 * MIB),
        ("0::/a\n", {"a/memory.max": "garbage\n"}, PHYSICAL),
        ("no colons at all", {"memory.max": "max\n"}, PHYSICAL),
    ],
    ids=[
        "nothing there",
        "root without a limit",
        "no limits",
        "own limit",
        "an ancestor's limit",
        "not another group's",
        "a container's root",
        "a container that sees its outer path",
        "a path above the namespace",
        "a colon in a name",
        "version 1",
        "version 1, controllers mounted together",
        "hybrid",
        "not a number",
        "not the format",
    ],
)
def test_the_lowest_limit_of_the_own_group_and_its_ancestors_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert memory_bytes(tree(tmp_path, groups, limits)) == expected


def test_a_limit_above_the_physical_memory_is_none(tmp_path: Path) -> None:
    assert memory_bytes(tree(tmp_path, "0::/\n", {"memory.max": f"{2 * PHYSICAL}\n"})) == PHYSICAL


def test_this_machine_has_memory() -> None:
    assert 2**28 < memory_bytes() <= PHYSICAL


def test_a_process_that_may_not_be_dumped_starts_others_that_may_not(tmp_path):
    shows = "print(open('/proc/self/coredump_filter').read(), resource.getrlimit(resource.RLIMIT_CORE))"
    code = (
        "import resource, subprocess, sys; from faas.machine import forbid_dumps; forbid_dumps();"
        f'subprocess.run([sys.executable, "-c", "import resource; {shows}"])'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["00000000", "(0, 0)\n"]
