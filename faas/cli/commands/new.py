"""``faas new``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from enum import Enum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from faas.errors import BadRequestError
from faas.manifest import manifest_from_builtins


class Language(str, Enum):
    """Languages there is a template for."""

    C = "c"
    RUST = "rust"
    PYTHON = "python"
    JS = "js"


class TemplateKind(str, Enum):
    """Kinds of function there is a template for."""

    COMMAND = "command"
    REACTOR = "reactor"
    HTTP = "http"


KINDS: Final[Mapping[Language, tuple[TemplateKind, ...]]] = {
    Language.C: (TemplateKind.COMMAND, TemplateKind.REACTOR),
    Language.RUST: (TemplateKind.COMMAND, TemplateKind.REACTOR),
    Language.PYTHON: (TemplateKind.HTTP,),
    Language.JS: (TemplateKind.HTTP,),
}
"""What there are templates for; the first kind of a language is its default."""

# componentize-js finds the handler of fetch events by the one version of wasi:http that its engine was built with.
WASI_VERSIONS: Final[Mapping[Language, str]] = {Language.PYTHON: "0.2.12", Language.JS: "0.2.10"}
WIT_TEXTS: Final = (
    "cli",
    "clocks",
    "filesystem",
    "http",
    "io",
    "random",
    "sockets",
    "config",
    "logging",
    "nn-2024-10-28",
)
"""What the world wasi:http/proxy refers to, and what may be added to it."""


def new(
    name: Annotated[str, typer.Argument(help="Name of the function and of its folder.", show_default=False)],
    lang: Annotated[Language, typer.Option(help="Language.")] = Language.C,
    kind: Annotated[
        TemplateKind | None,
        typer.Option(
            help="command: a program that speaks CGI; reactor: the fastest, with an SDK; http: a wasi:http component. "
            "Default: command for C and Rust, http for Python and JavaScript.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a folder with a function that builds and deploys as it is."""
    manifest_from_builtins({"name": name}, origin="NAME")
    kinds = KINDS[lang]
    kind = kind or kinds[0]
    if kind not in kinds:
        choices = " or ".join(f"--kind {one.value}" for one in kinds)
        raise BadRequestError(f"there is no template for a {kind.value} in {lang.value}; use {choices}")
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError as exc:
        raise BadRequestError(f"{folder} exists already; choose another name, or remove it first") from exc
    except OSError as exc:
        raise BadRequestError(f"can't make {folder}: {exc.strerror}") from exc
    words = {"@NAME@": name, "@CRATE@": "f_" + name.replace("-", "_"), "@PYTHON@": shlex.quote(sys.executable)}
    if kind is TemplateKind.HTTP:
        words["@WASI@"] = WASI_VERSIONS[lang]
    _copy(files("faas.cli") / "templates" / f"{lang.value}-{kind.value}", folder, words)
    if kind is TemplateKind.HTTP:
        _copy_wit(files("faas.wasi") / "wit", folder / "wit" / "deps", WASI_VERSIONS[lang])
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
        # Named without its dot in the package, where it would hide the templates themselves; and Python's with .in,
        # since it is not the host's.
        name = ".gitignore" if entry.name == "gitignore" else entry.name.removesuffix(".in")
        (target / name).write_text(text, encoding="utf-8")


def _copy_wit(source: Traversable, target: Path, version: str) -> None:
    """Copy the texts of WASI that the host has, with *version* in place of its own: they share what is used."""
    target.mkdir()
    for name in WIT_TEXTS:
        text = (source / f"{name}.wit").read_text(encoding="utf-8")
        # A release candidate, 0.2.0-rc…, is a version of its own.
        text = re.sub(r"@0\.2\.\d+(?![-\d])", f"@{version}", text)
        (target / f"{name}.wit").write_text(text, encoding="utf-8")
