"""The CGI programs that peers start for each request, and the root file systems that containers see of them."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.host import FUNCTIONS
from loadtest.peers.base import CACHE, SOURCES, PeerUnavailableError, made_once, tool

# Not for running programs; a container image would be made without them, too.
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "distutils", "pydoc_data", "tkinter", "turtledemo")
_LEFT_OUT_PATTERNS = ("config-*", "site-packages", "dist-packages", "*.a")
_PROBE = (
    "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib')); print(sys.version_info[:2])"
)


@dataclass(frozen=True)
class Image:
    """A root file system and the command to run in it."""

    root: Path
    command: Sequence[str]


class Program(ABC):
    """A CGI program with the fixed answer."""

    name: str
    title: str

    @abstractmethod
    def native(self) -> Sequence[str]:
        """Return the command that runs it; raises PeerUnavailableError."""

    @abstractmethod
    def image(self) -> Image:
        """Return it with all that it needs in a container; raises PeerUnavailableError."""


class CProgram(Program):
    """The very source of one of our functions, compiled to a static executable: the least a program can be."""

    name = "c"
    title = "static C program"

    def __init__(self, source: Path = FUNCTIONS / "hello-command" / "main.c") -> None:
        self._source = source

    def native(self) -> Sequence[str]:
        """Compile it, once."""
        return [str(self.image().root / "program")]

    def image(self) -> Image:
        """Return a root with the program and nothing else."""
        if importlib.util.find_spec("ziglang") is None:
            raise PeerUnavailableError("the C compiler is not installed; run: pip install ziglang")
        target = f"{platform.machine()}-linux-musl"

        def make(folder: Path) -> None:
            _mount_points(folder)
            tool(
                [
                    *(sys.executable, "-m", "ziglang", "cc", "-target", target, "-Os", "-s", "-static"),
                    *(str(self._source), "-o", str(folder / "program")),
                ],
                f"compile {self._source.name}",
            )

        name = f"c-{self._source.parent.name}-{self._source.stem}"
        return Image(made_once(CACHE / "images" / name, make), ["/program"])


class PythonProgram(Program):
    """``handler.py``, by the system's Python without site packages."""

    name = "python"
    title = "Python program"

    def native(self) -> Sequence[str]:
        """Return the command, which starts nothing that is not needed."""
        return [_python(), "-I", "-S", str(SOURCES / "handler.py")]

    def image(self) -> Image:
        """Return a root with the interpreter, its libraries, the standard library and the scripts here."""
        python, library, _ = tool([_python(), "-I", "-c", _PROBE], "look at Python").splitlines()

        def make(folder: Path) -> None:
            _mount_points(folder)
            for path in (Path(python), *_shared_libraries(Path(python))):
                _copy(path, folder)
            ignored = shutil.ignore_patterns(*_LEFT_OUT, *_LEFT_OUT_PATTERNS)
            shutil.copytree(library, folder / library.lstrip("/"), ignore=ignored, symlinks=True)
            for extension in (Path(library) / "lib-dynload").glob("*.so"):
                for path in _shared_libraries(extension):
                    _copy(path, folder)
            (folder / "app").mkdir()
            for script in ("handler.py", "warm.py"):
                shutil.copyfile(SOURCES / script, folder / "app" / script)

        return Image(made_once(CACHE / "images" / "python", make), [python, "-I", "-S", "/app/handler.py"])


def size_bytes(root: Path) -> int:
    """Return the size of all files below *root*, or of that file."""
    if root.is_file():
        return root.stat().st_size
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_symlink() or path.is_file())


def _python() -> str:
    """Return the system's Python: smaller than one for development, as that of an image would be; else the one here."""
    system = Path("/usr/bin/python3")
    return str(system.resolve()) if system.exists() else getattr(sys, "_base_executable", sys.executable)


def _shared_libraries(binary: Path) -> list[Path]:
    """Return what the dynamic linker loads for it, itself included."""
    words = tool(["ldd", str(binary)], f"list the libraries of {binary.name}").split()
    return [Path(word) for word in words if word.startswith("/")]


def _copy(path: Path, root: Path) -> None:
    """Copy a file to the same place below *root*."""
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path, target)


def _mount_points(root: Path) -> None:
    for name in ("proc", "dev"):
        (root / name).mkdir()
