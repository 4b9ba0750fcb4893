"""The WIT interfaces of this host and of its components: functions and types, parsed from ``wit/*.wit``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any, Final, NamedTuple

Type = str | tuple[Any, ...]
"""
A WIT type, with `use` and aliases resolved; equal types of one set of texts may be one object.

Primitives by name ("bool", "u8" … "u64", "s8" … "s64", "f32", "f64", "char", "string");
("list", T), ("option", T), ("result", T | None, E | None), ("tuple", (T, …)), ("record", ((name, T), …)),
("variant", ((name, T | None), …)), ("enum", (name, …)), ("flags", (name, …)), and for handles
("own", "wasi:io/streams#output-stream") or ("borrow", …): the key of the resource's interface, `#`, its name.
"""

_PRIMITIVES = frozenset({"bool", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64", "char", "string"})
_ID = r"%?[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*"
# A version only after its '@': elsewhere digits mean nothing in these files.
_TOKEN = re.compile(
    rf"\s+|//[^\n]*|/\*.*?\*/|(@\d+\.\d+\.\d+(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?|@{_ID}|{_ID}|->|[^\s])", re.DOTALL
)


EXPORTED: Final = frozenset({"wasi:cli/run", "wasi:http/incoming-handler"})
"""The interfaces among them that a component exports, for the host to call; all others are for it to import."""


class Function(NamedTuple):
    """A function as in the component binary: "get-environment", "[method]output-stream.write" (with its `self`)."""

    name: str
    params: tuple[tuple[str, Type], ...]
    result: Type | None


class Interface(NamedTuple):
    """
    One interface of one version, whole.

    ``name`` is "wasi:io/streams", with the version where that is a pre-release: those are compatible with nothing but
    themselves. ``types`` has what the interface itself defines, resources apart; ``resources`` are their names.
    """

    name: str
    version: str
    functions: Mapping[str, Function]
    resources: tuple[str, ...]
    types: Mapping[str, Type]


class WitError(ValueError):
    """A WIT text is not what this parser reads: it was edited, or uses what none of the shipped ones does."""


@functools.cache
def interfaces() -> Mapping[str, Interface]:
    """Return every interface of the shipped texts by its name; parsed at the first call, for the whole process."""
    folder = resources.files("faas.wasi").joinpath("wit")
    return parse(entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".wit"))


def parse(texts: Iterable[str]) -> dict[str, Interface]:
    """
    Return the interfaces of *texts* by name; each text is one package, and they may use each other's types.

    Worlds are skipped, and gates (`@since`, `@unstable`, `@deprecated`) are open.
    Raises: WitError.
    Source: the component model's WIT.md.
    """
    drafts: dict[str, _Draft] = {}
    for text in texts:
        for draft in _Parser(text).package():
            drafts[draft.name] = draft
    resolver = _Resolver(drafts)
    return {name: resolver.interface(draft) for name, draft in drafts.items()}


class _Draft:
    """An interface as written: names that are not resolved yet."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.uses: dict[str, tuple[str, str]] = {}  # local name → (interface, name there)
        self.types: dict[str, Type] = {}  # names stand in them as ("name", N)
        self.resources: list[str] = []
        self.functions: list[Function] = []


class _Parser:
    """Reads one text; lives for one ``package``."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = [token for token in _TOKEN.findall(text) if token]
        self._tokens.append("")
        self._at = 0
        self._package = ""
        self._version = ""

    def package(self) -> list[_Draft]:
        self._gates()
        self._expect("package")
        self._package, self._version = self._package_name()
        self._expect(";")
        drafts = []
        while self._peek():
            self._gates()
            word = self._next()
            if word == "interface":
                drafts.append(self._interface(self._id()))
            elif word == "world":
                self._id()
                self._skip_braces()
            else:
                raise self._error(f"{word!r} begins neither an interface nor a world")
        return drafts

    def _interface(self, name: str) -> _Draft:
        draft = _Draft(_key(self._package, name, self._version), self._version)
        self._expect("{")
        while not self._take("}"):
            self._gates()
            item = self._next()
            read = self._ITEMS.get(item)
            if read is not None:
                read(self, draft)
            else:
                self._at -= 1
                draft.functions.append(self._function(self._id()))
        return draft

    # --- items ------------------------------------------------------------------------------------------------------

    def _use(self, draft: _Draft) -> None:
        package, version, name = self._package, self._version, self._id()
        if self._take(":"):
            package = f"{name}:{self._id()}"
            self._expect("/")
            name = self._id()
            version = self._version_suffix()
        self._expect(".")
        self._expect("{")
        for there, here in self._items("}", self._used):
            draft.uses[here] = (_key(package, name, version), there)
        self._expect(";")

    def _used(self) -> tuple[str, str]:
        there = self._id()
        return there, self._id() if self._take("as") else there

    def _alias(self, draft: _Draft) -> None:
        name = self._id()
        self._expect("=")
        draft.types[name] = self._type()
        self._expect(";")

    def _record(self, draft: _Draft) -> None:
        name = self._open()
        draft.types[name] = ("record", self._items("}", self._field))

    def _variant(self, draft: _Draft) -> None:
        name = self._open()
        draft.types[name] = ("variant", self._items("}", self._case))

    def _enum(self, draft: _Draft) -> None:
        name = self._open()
        draft.types[name] = ("enum", self._items("}", self._id))

    def _flags(self, draft: _Draft) -> None:
        name = self._open()
        draft.types[name] = ("flags", self._items("}", self._id))

    def _resource(self, draft: _Draft) -> None:
        name = self._id()
        draft.resources.append(name)
        if self._take(";"):
            return
        self._expect("{")
        own: Type = ("name", name)
        this = ("self", ("borrow", own))
        while not self._take("}"):
            self._gates()
            if self._peek() == "constructor" and self._tokens[self._at + 1] == "(":
                self._next()
                params = self._params()
                result = self._type() if self._take("->") else own
                self._expect(";")
                draft.functions.append(Function(f"[constructor]{name}", params, result))
                continue
            member = self._id()
            function = self._function(member, f"{name}.{member}")
            if function.name.startswith("[method]"):
                function = function._replace(params=(this, *function.params))
            draft.functions.append(function)

    _ITEMS: Final[Mapping[str, Callable[[_Parser, _Draft], None]]] = {
        "use": _use,
        "type": _alias,
        "record": _record,
        "variant": _variant,
        "enum": _enum,
        "flags": _flags,
        "resource": _resource,
    }

    def _function(self, name: str, member: str = "") -> Function:
        self._expect(":")
        if member:
            name = f"[static]{member}" if self._take("static") else f"[method]{member}"
        self._expect("func")
        params = self._params()
        result = self._type() if self._take("->") else None
        self._expect(";")
        return Function(name, params, result)

    def _params(self) -> tuple[tuple[str, Type], ...]:
        self._expect("(")
        return self._items(")", self._field)

    def _field(self) -> tuple[str, Type]:
        name = self._id()
        self._expect(":")
        return name, self._type()

    def _case(self) -> tuple[str, Type | None]:
        name = self._id()
        if not self._take("("):
            return name, None
        payload = self._type()
        self._expect(")")
        return name, payload

    def _type(self) -> Type:
        word = self._next()
        if word in _PRIMITIVES:
            return word
        if word in {"list", "option", "borrow", "own"}:
            self._expect("<")
            inner = self._type()
            self._expect(">")
            return (word, inner)
        if word == "tuple":
            self._expect("<")
            return ("tuple", self._items(">", self._type))
        if word == "result":
            sides = self._items(">", self._side) if self._take("<") else ()
            if len(sides) > 2:
                raise self._error("a result has two sides at most")
            return ("result", *sides, *(None,) * (2 - len(sides)))
        self._at -= 1
        return ("name", self._id())

    def _side(self) -> Type | None:
        return None if self._take("_") else self._type()

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _gates(self) -> None:
        while self._peek().startswith("@"):
            self._next()
            if self._take("("):
                while self._next() != ")":
                    pass

    def _skip_braces(self) -> None:
        self._expect("{")
        depth = 1
        while depth:
            word = self._next()
            depth += (word == "{") - (word == "}")

    def _open(self) -> str:
        name = self._id()
        self._expect("{")
        return name

    def _items(self, end: str, read: Callable[[], Any]) -> tuple[Any, ...]:
        """Return the comma-separated items up to *end*."""
        items = []
        while not self._take(end):
            self._gates()
            items.append(read())
            if not self._take(","):
                self._expect(end)
                break
        return tuple(items)

    def _package_name(self) -> tuple[str, str]:
        namespace = self._id()
        self._expect(":")
        return f"{namespace}:{self._id()}", self._version_suffix()

    def _version_suffix(self) -> str:
        return self._next()[1:] if self._peek().startswith("@") else ""

    def _id(self) -> str:
        word = self._next()
        if not (word[:1].isalpha() or word[:1] == "%"):
            raise self._error(f"{word!r} stands where a name was expected")
        return word.removeprefix("%")

    def _peek(self) -> str:
        return self._tokens[self._at]

    def _next(self) -> str:
        word = self._tokens[self._at]
        if not word:
            raise self._error("the text ends too early")
        self._at += 1
        return word

    def _take(self, wanted: str) -> bool:
        if self._tokens[self._at] != wanted:
            return False
        self._at += 1
        return True

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise self._error(f"{self._peek()!r} stands where {wanted!r} was expected")

    def _error(self, what: str) -> WitError:
        around = " ".join(self._tokens[max(0, self._at - 5) : self._at + 3])
        return WitError(f"package {self._package or '?'}: {what}, near: {around}")


class _Resolver:
    """Puts types in the place of names, over all drafts; lives for one ``parse``."""

    def __init__(self, drafts: Mapping[str, _Draft]) -> None:
        self._drafts = drafts
        self._known: dict[tuple[str, str], Type] = {}
        self._open: set[tuple[str, str]] = set()

    def interface(self, draft: _Draft) -> Interface:
        """Return *draft* with every name resolved."""
        functions = {
            function.name: Function(
                function.name,
                tuple((name, self._type(draft, type_)) for name, type_ in function.params),
                None if function.result is None else self._type(draft, function.result),
            )
            for function in draft.functions
        }
        types = {name: self._named(draft, name) for name in draft.types}
        return Interface(draft.name, draft.version, functions, tuple(draft.resources), types)

    def _named(self, draft: _Draft, name: str) -> Type:
        place = (draft.name, name)
        known = self._known.get(place)
        if known is not None:
            return known
        if place in self._open:
            raise WitError(f"{draft.name}: the type {name} contains itself")
        self._open.add(place)
        if name in draft.resources:
            found: Type = ("own", f"{draft.name}#{name}")
        elif name in draft.types:
            found = self._type(draft, draft.types[name])
        elif name in draft.uses:
            interface, there = draft.uses[name]
            if interface not in self._drafts:
                raise WitError(f"{draft.name}: it uses {interface}, which is in none of the texts")
            found = self._named(self._drafts[interface], there)
        else:
            raise WitError(f"{draft.name}: there is no type {name}")
        self._open.discard(place)
        self._known[place] = found
        return found

    def _type(self, draft: _Draft, type_: Type) -> Type:
        if isinstance(type_, str):
            return type_
        form, *rest = type_
        if form == "name":
            return self._named(draft, rest[0])
        if form in {"own", "borrow"}:
            handle = self._type(draft, rest[0])
            if handle[0] != "own":
                raise WitError(f"{draft.name}: {form}<…> is of resources only")
            return (form, handle[1])
        if form in {"enum", "flags"}:
            return type_
        if form in {"record", "variant"}:
            return (form, tuple((name, None if t is None else self._type(draft, t)) for name, t in rest[0]))
        if form == "tuple":
            return (form, tuple(self._type(draft, t) for t in rest[0]))
        return (form, *(None if t is None else self._type(draft, t) for t in rest))


def _key(package: str, interface: str, version: str) -> str:
    """Return the name of an interface: with the version only where that has no compatible ones."""
    name = f"{package}/{interface}"
    return f"{name}@{version}" if "-" in version else name
