"""``wasi:cli``: environment, arguments, exit and the standard streams; there is never a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from faas.wasi.context import GuestExit, StringBlock
from faas.wasi.p2.io import InputStreamResource, OutputStreamResource
from faas.wasi.p2.lookahead import Lookahead
from faas.wasi.p2.resources import ComponentFunction


def get_environment(guest: Any) -> list[tuple[str, str]]:
    """Return the variables as names and values."""
    pairs = (text.partition("=") for text in _texts(guest.wasi.environ()))
    return [(name, value) for name, _, value in pairs]


def get_arguments(guest: Any) -> list[str]:
    """Return the arguments."""
    return _texts(guest.wasi.args())


def initial_cwd(_guest: Any) -> str:
    """Return the root of the guest's own file system, where relative paths begin."""
    return "/"


def exit_(_guest: Any, status: tuple[str, None]) -> NoReturn:
    """End the guest with exit code 0 for ``ok`` and 1 for ``err``."""
    raise GuestExit(0 if status[0] == "ok" else 1)


def exit_with_code(_guest: Any, code: int) -> NoReturn:
    """End the guest with *code*, 0 to 255."""
    raise GuestExit(code)


def get_stdin(guest: Any) -> InputStreamResource:
    """Return a new handle on stdin; all of them read the same bytes, each byte once."""
    wasi = guest.wasi
    if type(wasi.stdin) is not Lookahead:
        wasi.stdin = Lookahead(wasi.stdin)
    return InputStreamResource(wasi.stdin)


def get_stdout(guest: Any) -> OutputStreamResource:
    """Return a new handle on stdout."""
    return OutputStreamResource(guest.wasi.stdout)


def get_stderr(guest: Any) -> OutputStreamResource:
    """Return a new handle on stderr."""
    return OutputStreamResource(guest.wasi.stderr)


def no_terminal(_guest: Any) -> None:
    """Return None: no stream is a terminal."""
    return


def _texts(block: StringBlock) -> list[str]:
    if not block.n_strings:
        return []
    return [text.decode("utf-8", "replace") for text in block.content[:-1].split(b"\0")]


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:cli/environment": {
        "get-environment": ComponentFunction(get_environment),
        "get-arguments": ComponentFunction(get_arguments),
        "initial-cwd": ComponentFunction(initial_cwd),
    },
    "wasi:cli/exit": {
        "exit": ComponentFunction(exit_),
        "exit-with-code": ComponentFunction(exit_with_code),
    },
    "wasi:cli/stdin": {"get-stdin": ComponentFunction(get_stdin)},
    "wasi:cli/stdout": {"get-stdout": ComponentFunction(get_stdout)},
    "wasi:cli/stderr": {"get-stderr": ComponentFunction(get_stderr)},
    "wasi:cli/terminal-input": {},
    "wasi:cli/terminal-output": {},
    "wasi:cli/terminal-stdin": {"get-terminal-stdin": ComponentFunction(no_terminal)},
    "wasi:cli/terminal-stdout": {"get-terminal-stdout": ComponentFunction(no_terminal)},
    "wasi:cli/terminal-stderr": {"get-terminal-stderr": ComponentFunction(no_terminal)},
}
