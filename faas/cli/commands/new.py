"""``faas new``."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from faas.errors import BadRequestError
from faas.manifest import manifest_from_builtins


class Language(str, Enum):
    """Languages there is a template for."""

    C = "c"
    RUST = "rust"


class TemplateKind(str, Enum):
    """Kinds of function there is a template for."""

    COMMAND = "command"
    REACTOR = "reactor"


def new(
    name: Annotated[str, typer.Argument(help="Name of the function and of its folder.", show_default=False)],
    lang: Annotated[Language, typer.Option(help="Language.")] = Language.C,
    kind: Annotated[
        TemplateKind, typer.Option(help="command: a program that speaks CGI; reactor: the fastest, with an SDK.")
    ] = TemplateKind.COMMAND,
) -> None:
    """Make a folder with a function that builds and deploys as it is."""
    manifest_from_builtins({"name": name}, origin="NAME")
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError as exc:
        raise BadRequestError(f"{folder} exists already; choose another name, or remove it first") from exc
    except OSError as exc:
        raise BadRequestError(f"can't make {folder}: {exc.strerror}") from exc
    words = {"@NAME@": name, "@CRATE@": "f_" + name.replace("-", "_"), "@PYTHON@": shlex.quote(sys.executable)}
    _copy(files("faas.cli") / "templates" / f"{lang.value}-{kind.value}", folder, words)
    print(f"made {folder}/ ({kind.value}, {lang.value})")
    print(f"build:   make -C {folder}")
    print(f"deploy:  faas deploy {folder}")


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        if entry.is_dir():
            folder = target / entry.name
            folder.mkdir()
            _copy(entry, folder, words)
            continue
        text = entry.read_text(encoding="utf-8")
        for mark, word in words.items():
            text = text.replace(mark, word)
        # Named without its dot in the package, where it would hide the templates themselves.
        (target / (".gitignore" if entry.name == "gitignore" else entry.name)).write_text(text, encoding="utf-8")
