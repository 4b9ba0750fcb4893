"""A reader of the component binary format: what a component imports, exports and is made of, without compiling it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from faas.errors import InvalidModuleError
from precompile.binary import MAGIC, MemoryType, Reader, TableType, read_sizes

_HEADER = MAGIC + b"\x0d\0\x01\0"
_PRIMITIVES = {
    0x7F: "bool",
    0x7E: "s8",
    0x7D: "u8",
    0x7C: "s16",
    0x7B: "u16",
    0x7A: "s32",
    0x79: "u32",
    0x78: "s64",
    0x77: "u64",
    0x76: "f32",
    0x75: "f64",
    0x74: "char",
    0x73: "string",
    0x64: "error-context",
}
_SORTS = {1: "func", 2: "value", 3: "type", 4: "component", 5: "instance"}
# Deeper than any toolchain nests, and far from the interpreter's own limit.
_MAX_DEPTH = 50
# `%` can't stand in a name, so nothing that a component says can be taken for one of these.
_UNREAD = ("%unread",)
_LIFT, _LOWER = 0x00, 0x01
_CORE_MODULE = 0x11
# canonical definitions by the number of plain indices that follow: resource.new, resource.drop, resource.rep
_PLAIN_CANONS = {0x02: 1, 0x03: 1, 0x04: 1}
_OPTION_WITH_INDEX = frozenset({0x03, 0x04, 0x05, 0x07})
OPTION_REALLOC = 0x04


class Span(NamedTuple):
    """A part of the file: from its first byte to before *end*."""

    start: int
    end: int


class FuncDef(NamedTuple):
    """
    A function's type, as ``faas.wasi.wit`` writes types.

    ``params_at`` is where its parameter count begins, ``param_spans`` are its parameters, ``ok_end`` is where the
    reference to the type of the ok side of its result ends, where that is a `result`.
    """

    params: tuple[tuple[str, Any], ...]
    result: Any
    params_at: int
    param_spans: tuple[Span, ...]
    ok_end: int | None


class ByteList(NamedTuple):
    """A definition of `list<u8>` in an instance's type, and where each reference to it ends."""

    span: Span
    used: tuple[int, ...]


class InstanceImport(NamedTuple):
    """
    An imported instance of an interface.

    ``resources`` are those that are the interface's own, ``others`` what is neither a function nor a type.
    ``declared`` is, for each function, what its declaration says after the name; ``count_at`` says how many
    declarations there are, ``end`` is where they end.
    """

    name: str
    functions: Mapping[str, FuncDef]
    resources: tuple[str, ...]
    others: tuple[str, ...]
    byte_lists: tuple[ByteList, ...]
    declared: Mapping[str, Span]
    count_at: Span
    end: int


class Import(NamedTuple):
    """Another import: a function, a type, a module or a component."""

    name: str
    sort: str


class Export(NamedTuple):
    """An export."""

    name: str
    sort: str


class CoreModule(NamedTuple):
    """A core module of the component itself, or of one nested in it."""

    span: Span
    memories: tuple[MemoryType, ...]
    tables: tuple[TableType, ...]


class Lower(NamedTuple):
    """
    A `canon lower`: an imported function (``instance`` None: of another origin) made callable for core modules.

    ``name`` is where the function's alias names it.
    """

    instance: int | None
    function: str
    name: Span | None
    options: tuple[tuple[int, int, Span], ...]


class Section(NamedTuple):
    """A section of the component itself."""

    id: int
    header: int
    contents: Span


class Component(NamedTuple):
    """
    What a component says about itself in its declarations.

    ``modules`` are its own core modules, by index; ``all_modules`` also those of nested components.
    ``core_instances`` has for each of its core instances the module that it is made of, None where it is made of
    exports of others. ``n_core_before_guests`` is how many of them come before anything else of the component runs:
    a nested component's instance, or a lifted function.
    ``core_funcs`` has for each core function where it is from: (core instance, export name), or None.
    """

    imports: tuple[Import, ...]
    instances: tuple[InstanceImport | None, ...]
    exports: tuple[Export, ...]
    modules: tuple[CoreModule, ...]
    all_modules: tuple[CoreModule, ...]
    core_instances: tuple[int | None, ...]
    n_core_before_guests: int
    core_funcs: tuple[tuple[int, str] | None, ...]
    lowers: tuple[Lower, ...]
    sections: tuple[Section, ...]


def is_component(wasm: bytes) -> bool:
    """Return whether *wasm* begins like a component."""
    return wasm[:4] == MAGIC and wasm[6:8] == b"\x01\0"


def read_component(wasm: bytes) -> Component:
    """
    Return the declarations of the component in *wasm*; core code is neither read nor copied.

    What it does not know it leaves to the engine where nothing of ours depends on it.
    Raises: InvalidModuleError (``offset``: where reading stopped).
    Source: the component model's Binary.md.
    """
    if wasm[:8] != _HEADER:
        raise InvalidModuleError(
            f"component binary version {int.from_bytes(wasm[4:6], 'little')} is not known; build it with current tools",
            offset=4,
        )
    return _ComponentReader(wasm).read()


class _Scope:
    """The types of a component, or of an instance type inside it; lives for one pass."""

    def __init__(self, parent: _Scope | None = None, interface: str = "") -> None:
        self.parent = parent
        self.interface = interface
        self.types: list[Any] = []
        self.type_exports: dict[str, Any] = {}
        self.func_exports: dict[str, FuncDef] = {}
        self.resources: list[str] = []
        self.others: list[str] = []
        self.ok_ends: dict[int, int] = {}
        self.byte_lists: dict[int, Span] = {}
        self.used: dict[int, list[int]] = {}
        self.declared: dict[str, Span] = {}
        self.count_at = Span(0, 0)
        self.end = 0
        self.depth: int = 0 if parent is None else parent.depth + 1


class _ComponentReader(Reader):
    """One pass over a component's sections; lives for one ``read``."""

    def __init__(self, wasm: bytes) -> None:
        super().__init__(wasm, 8, len(wasm))
        self._scope = _Scope()
        self._imports: list[Import] = []
        self._exports: list[Export] = []
        self._instances: list[InstanceImport | None] = []
        self._instance_types: list[dict[str, Any]] = []
        self._funcs: list[tuple[int, str, Span] | None] = []
        self._core_funcs: list[tuple[int, str] | None] = []
        self._core_instances: list[int | None] = []
        self._n_core_before_guests: int | None = None
        self._modules: list[CoreModule] = []
        self._nested: list[CoreModule] = []
        self._lowers: list[Lower] = []
        self._sections: list[Section] = []

    def read(self) -> Component:
        for section in self._walk(self._pos, len(self._wasm)):
            self._sections.append(section)
            self._pos, self._end = section.contents
            if section.id == 1:
                self._modules.append(self._module(section.contents))
            elif section.id == 4:
                self._nested += self._modules_of(section.contents, 1)
            else:
                read = self._SECTIONS.get(section.id)
                if read is not None:
                    read(self)
                    if self._pos != self._end:
                        raise self._error(f"section {section.id} is longer than its contents", self._pos)
        own = tuple(self._modules)
        n_core = len(self._core_instances)
        return Component(
            imports=tuple(self._imports),
            instances=tuple(self._instances),
            exports=tuple(self._exports),
            modules=own,
            all_modules=(*own, *self._nested),
            core_instances=tuple(self._core_instances),
            n_core_before_guests=n_core if self._n_core_before_guests is None else self._n_core_before_guests,
            core_funcs=tuple(self._core_funcs),
            lowers=tuple(self._lowers),
            sections=tuple(self._sections),
        )

    def _walk(self, pos: int, end: int) -> list[Section]:
        """Return the sections from *pos* to *end*, their contents unread."""
        sections = []
        self._pos, self._end = pos, end
        while self._pos < end:
            header = self._pos
            number = self._byte()
            size = self._u32()
            if size > end - self._pos:
                raise self._error(
                    f"section {number} claims {size} bytes and {end - self._pos} are left: the file is cut off; upload"
                    " the whole file",
                    header,
                )
            sections.append(Section(number, header, Span(self._pos, self._pos + size)))
            self._pos += size
        return sections

    def _module(self, span: Span) -> CoreModule:
        layout = read_sizes(self._wasm, *span)
        return CoreModule(span, layout.memories, layout.tables)

    def _modules_of(self, span: Span, depth: int) -> list[CoreModule]:
        """Return the core modules of a nested component, and of those in it."""
        self._check_depth(depth, span.start)
        if self._wasm[span.start : span.start + 8] != _HEADER:
            raise self._error("no component begins there", span.start)
        found: list[CoreModule] = []
        for section in self._walk(span.start + 8, span.end):
            if section.id == 1:
                found.append(self._module(section.contents))
            elif section.id == 4:
                found += self._modules_of(section.contents, depth + 1)
        return found

    # --- sections ---------------------------------------------------------------------------------------------------

    def _read_core_instances(self) -> None:
        for _ in range(self._count(min_item_bytes=2)):
            at = self._pos
            form = self._byte()
            if form == 0:
                module = self._u32()
                if module >= len(self._modules):
                    raise self._error(f"module {module} is not one of the component's own", at)
                self._core_instances.append(module)
                for _ in range(self._count(min_item_bytes=3)):
                    self._name()
                    self._byte()
                    self._u32()
            elif form == 1:
                self._core_instances.append(None)
                for _ in range(self._count(min_item_bytes=3)):
                    self._name()
                    self._byte()
                    self._u32()
            else:
                raise self._error(f"core instance form {form} is not known", at)

    def _read_instances(self) -> None:
        for _ in range(self._count(min_item_bytes=2)):
            at = self._pos
            form = self._byte()
            if form == 0:
                self._guests_begin()
                self._u32()
                for _ in range(self._count(min_item_bytes=3)):
                    self._name()
                    self._sort_index()
            elif form == 1:
                for _ in range(self._count(min_item_bytes=3)):
                    self._extern_name()
                    self._sort_index()
            else:
                raise self._error(f"instance form {form} is not known", at)
            self._add_instance(None, {})

    def _read_aliases(self) -> None:
        for _ in range(self._count(min_item_bytes=3)):
            self._alias(self._scope)

    def _read_types(self) -> None:
        for _ in range(self._count(min_item_bytes=1)):
            self._scope.types.append(self._definition(self._scope))

    def _read_canons(self) -> None:
        for _ in range(self._count(min_item_bytes=2)):
            at = self._pos
            form = self._byte()
            if form == _LIFT:
                self._guests_begin()
                self._zero()
                self._u32()
                self._options()
                self._u32()
                self._funcs.append(None)
            elif form == _LOWER:
                self._zero()
                index = self._u32()
                if index >= len(self._funcs):
                    raise self._error(f"function {index} does not exist (there are {len(self._funcs)})", at)
                instance, function, span = self._funcs[index] or (None, "", None)
                self._lowers.append(Lower(instance, function, span, self._options()))
                self._core_funcs.append(None)
            elif form in _PLAIN_CANONS:
                self._u32()
                self._core_funcs.append(None)
            else:
                raise self._error(
                    f"canonical function 0x{form:02x} is of asynchronous components (WASI 0.3), which are off on this"
                    " host; build for WASI 0.2",
                    at,
                )

    def _read_imports(self) -> None:
        for _ in range(self._count(min_item_bytes=4)):
            name = self._extern_name()
            sort, index = self._extern_type(self._scope, name)
            if sort == "instance":
                found = self._type(self._scope, index)
                if not isinstance(found, _InstanceType):
                    raise self._error("an instance is imported with a type that is of no instance", self._pos)
                scope = self._instance_scope(found, name)
                self._add_instance(_imported(name, scope), scope.type_exports)
            else:
                self._imports.append(Import(name, sort))
                if sort == "func":
                    self._funcs.append(None)

    def _read_exports(self) -> None:
        for _ in range(self._count(min_item_bytes=4)):
            at = self._pos
            name = self._extern_name()
            sort, index = self._sort_index()
            if sort == "core module":
                raise self._shared_module(at)
            self._exports.append(Export(name, sort))
            if sort == "type":
                self._scope.types.append(self._type(self._scope, index))
            elif sort == "func":
                self._funcs.append(self._funcs[index] if index < len(self._funcs) else None)
            elif sort == "instance":
                here = index < len(self._instances)
                self._add_instance(
                    self._instances[index] if here else None, self._instance_types[index] if here else {}
                )
            if self._flag():
                n_types = len(self._scope.types)
                self._extern_type(self._scope, "")
                del self._scope.types[n_types:]

    _SECTIONS: Mapping[int, Callable[[_ComponentReader], None]] = {
        2: _read_core_instances,
        5: _read_instances,
        6: _read_aliases,
        7: _read_types,
        8: _read_canons,
        10: _read_imports,
        11: _read_exports,
    }

    def _guests_begin(self) -> None:
        if self._n_core_before_guests is None:
            self._n_core_before_guests = len(self._core_instances)

    def _add_instance(self, instance: InstanceImport | None, types: dict[str, Any]) -> None:
        self._instances.append(instance)
        self._instance_types.append(types)

    def _alias(self, scope: _Scope) -> None:
        at = self._pos
        sort = self._byte()
        core_sort = self._byte() if sort == 0 else None
        target = self._byte()
        outer = scope.parent is not None
        if target == 0:
            instance, start, name = self._u32(), self._pos, self._name()
            if sort == 3:
                here = not outer and instance < len(self._instance_types)
                scope.types.append(self._instance_types[instance].get(name, _UNREAD) if here else _UNREAD)
            elif not outer and sort == 1:
                self._funcs.append((instance, name, Span(start, self._pos)))
            elif not outer and sort == 5:
                self._add_instance(None, {})
            elif core_sort == _CORE_MODULE:
                raise self._shared_module(at)
        elif target == 1:
            core_instance, name = self._u32(), self._name()
            if not outer and core_sort == 0:
                self._core_funcs.append((core_instance, name))
        elif target == 2:
            n_out, index = self._u32(), self._u32()
            if sort == 3:
                whose: _Scope | None = scope
                for _ in range(min(n_out, _MAX_DEPTH)):
                    whose = whose.parent if whose is not None else None
                scope.types.append(_UNREAD if whose is None else self._type(whose, index))
            elif core_sort == _CORE_MODULE:
                raise self._shared_module(at)
        else:
            raise self._error(f"alias form {target} is not known", at)

    def _shared_module(self, at: int) -> InvalidModuleError:
        # It would get a number of its own, and modules and instances are counted as the engine counts them.
        return self._error("modules that are shared between components are not read; build it in one piece", at)

    # --- types ------------------------------------------------------------------------------------------------------

    def _definition(self, scope: _Scope) -> Any:
        """Read one type definition and return it as ``faas.wasi.wit`` writes types, or as a class of ours."""
        at = self._pos
        form = self._byte()
        if form in _PRIMITIVES:
            return _PRIMITIVES[form]
        read = self._FORMS.get(form)
        if read is None:
            raise self._error(f"type form 0x{form:02x} is not known, or of a proposal that is off on this host", at)
        return read(self, scope)

    def _record(self, scope: _Scope) -> Any:
        return ("record", tuple(self._labelled(scope) for _ in range(self._count(min_item_bytes=3))))

    def _variant(self, scope: _Scope) -> Any:
        cases = []
        for _ in range(self._count(min_item_bytes=3)):
            cases.append((self._name(), self._value_type(scope) if self._flag() else None))
            if self._flag():  # `refines`, which was never used and is gone
                self._u32()
        return ("variant", tuple(cases))

    def _list(self, scope: _Scope) -> Any:
        at = self._pos - 1
        of = self._value_type(scope)
        if of == "u8":
            scope.byte_lists[len(scope.types)] = Span(at, self._pos)
        return ("list", of)

    def _tuple(self, scope: _Scope) -> Any:
        return ("tuple", tuple(self._value_type(scope) for _ in range(self._count(min_item_bytes=1))))

    def _flags(self, scope: _Scope) -> Any:
        return ("flags", tuple(self._name() for _ in range(self._count(min_item_bytes=1))))

    def _enum(self, scope: _Scope) -> Any:
        return ("enum", tuple(self._name() for _ in range(self._count(min_item_bytes=1))))

    def _option(self, scope: _Scope) -> Any:
        return ("option", self._value_type(scope))

    def _result(self, scope: _Scope) -> Any:
        ok = None
        if self._flag():
            ok = self._value_type(scope)
            scope.ok_ends[len(scope.types)] = self._pos
        return ("result", ok, self._value_type(scope) if self._flag() else None)

    def _own(self, scope: _Scope) -> Any:
        return self._handle(scope, "own")

    def _borrow(self, scope: _Scope) -> Any:
        return self._handle(scope, "borrow")

    def _handle(self, scope: _Scope, form: str) -> Any:
        resource = self._type(scope, self._u32())
        return (form, resource[1]) if isinstance(resource, tuple) and resource[0] == "%resource" else _UNREAD

    def _resource(self, scope: _Scope) -> Any:
        self._byte()
        if self._flag():
            self._u32()
        return _UNREAD

    def _func(self, scope: _Scope) -> Any:
        params_at = self._pos
        params, spans = [], []
        for _ in range(self._count(min_item_bytes=2)):
            start = self._pos
            params.append(self._labelled(scope))
            spans.append(Span(start, self._pos))
        at = self._pos
        form = self._byte()
        result, ok_end = None, None
        if form == 0:
            result, ok_end = self._value_type_and_ok(scope)
        elif form == 1:
            if self._byte():
                raise self._error("a function has several results by name, which is no longer known", at)
        else:
            raise self._error(f"result form {form} is not known", at)
        return FuncDef(tuple(params), result, params_at, tuple(spans), ok_end)

    def _component_type(self, scope: _Scope) -> Any:
        self._declarations(_Scope(scope), imports=True)
        return _UNREAD

    def _instance_type(self, scope: _Scope) -> Any:
        start = self._pos
        self._declarations(_Scope(scope), imports=False)
        return _InstanceType(start, scope)

    _FORMS: Mapping[int, Callable[[_ComponentReader, _Scope], Any]] = {
        0x72: _record,
        0x71: _variant,
        0x70: _list,
        0x6F: _tuple,
        0x6E: _flags,
        0x6D: _enum,
        0x6B: _option,
        0x6A: _result,
        0x69: _own,
        0x68: _borrow,
        0x40: _func,
        0x41: _component_type,
        0x42: _instance_type,
        0x3F: _resource,
    }

    def _instance_scope(self, type_: _InstanceType, interface: str) -> _Scope:
        """Return what an instance type declares, read again now that it is known whose resources those are."""
        scope = _Scope(type_.scope, interface)
        place = self._pos, self._end
        self._pos, self._end = type_.start, len(self._wasm)
        self._declarations(scope, imports=False)
        self._pos, self._end = place
        return scope

    def _declarations(self, scope: _Scope, *, imports: bool) -> None:
        start = self._pos
        self._check_depth(scope.depth, start)
        n = self._count(min_item_bytes=2)
        scope.count_at = Span(start, self._pos)
        for _ in range(n):
            at = self._pos
            form = self._byte()
            if form == 1:
                scope.types.append(self._definition(scope))
            elif form == 2:
                self._alias(scope)
            elif form == 4 or (form == 3 and imports):
                name = self._extern_name()
                start = self._pos
                sort, index = self._extern_type(scope, name)
                if sort == "func":
                    scope.declared[name] = Span(start, self._pos)
                    found = self._type(scope, index)
                    if not isinstance(found, FuncDef):
                        raise self._error("a function is declared with a type that is of no function", at)
                    scope.func_exports[name] = found
                elif sort == "type":
                    scope.type_exports[name] = scope.types[-1]
                    if index < 0:
                        scope.resources.append(name)
                else:
                    scope.others.append(name)
            else:
                raise self._error(f"declaration form {form} is of core types, which are not read there", at)
        scope.end = self._pos

    def _extern_type(self, scope: _Scope, name: str) -> tuple[str, int]:
        """Read what is imported or exported under *name*; a type joins the scope's own."""
        at = self._pos
        form = self._byte()
        if form == 0:
            self._byte()
            return "core module", self._u32()
        if form == 3:
            if self._flag():  # a resource: abstract, and named after where it is from
                scope.types.append(("%resource", f"{interface_key(scope.interface)}#{name}"))
                return "type", -1
            index = self._u32()
            scope.types.append(self._type(scope, index))
            return "type", index
        sort = _SORTS.get(form)
        if sort is None or form == 2:
            raise self._error(f"import or export form {form} is not known", at)
        return sort, self._u32()

    def _labelled(self, scope: _Scope) -> tuple[str, Any]:
        return self._name(), self._value_type(scope)

    def _value_type(self, scope: _Scope) -> Any:
        return self._value_type_and_ok(scope)[0]

    def _value_type_and_ok(self, scope: _Scope) -> tuple[Any, int | None]:
        at = self._pos
        index = self._index_or_none()
        if index is not None:
            return self._type(scope, index), scope.ok_ends.get(index)
        primitive = _PRIMITIVES.get(self._wasm[at])
        if primitive is None:
            raise self._error(f"value type 0x{self._wasm[at]:02x} is not known", at)
        return primitive, None

    def _index_or_none(self) -> int | None:
        """Read the index of a type, or a primitive type: those are negative as signed numbers of one byte."""
        if self._pos < self._end and 0x40 <= self._wasm[self._pos] < 0x80:
            self._pos += 1
            return None
        return self._leb(33)

    def _type(self, scope: _Scope, index: int) -> Any:
        if index >= len(scope.types):
            raise self._error(f"type {index} does not exist (there are {len(scope.types)})", self._pos)
        scope.used.setdefault(index, []).append(self._pos)
        return scope.types[index]

    # --- items ------------------------------------------------------------------------------------------------------

    def _extern_name(self) -> str:
        at = self._pos
        if self._byte() > 1:
            raise self._error("a name has attributes, which are not known", at)
        return self._name()

    def _sort_index(self) -> tuple[str, int]:
        at = self._pos
        form = self._byte()
        if form == 0:
            self._byte()
            return "core module", self._u32()
        sort = _SORTS.get(form)
        if sort is None:
            raise self._error(f"sort {form} is not known", at)
        return sort, self._u32()

    def _options(self) -> tuple[tuple[int, int, Span], ...]:
        """Return the options as (kind, index or 0, where)."""
        options = []
        for _ in range(self._count(min_item_bytes=1)):
            at = self._pos
            kind = self._byte()
            if kind > 0x07:
                raise self._error(f"canonical option 0x{kind:02x} is off on this host", at)
            index = self._u32() if kind in _OPTION_WITH_INDEX else 0
            options.append((kind, index, Span(at, self._pos)))
        return tuple(options)

    def _flag(self) -> bool:
        at = self._pos
        byte = self._byte()
        if byte > 1:
            raise self._error(f"0x{byte:02x} is neither 0 nor 1", at)
        return bool(byte)

    def _zero(self) -> None:
        at = self._pos
        if self._byte():
            raise self._error("the sort of a canonical function is not known", at)

    def _check_depth(self, depth: int, at: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._error(f"components or types are nested more than {_MAX_DEPTH} deep", at)


class _InstanceType(NamedTuple):
    """An instance type: where its declarations begin, and what was around it."""

    start: int
    scope: _Scope


def _imported(name: str, scope: _Scope) -> InstanceImport:
    return InstanceImport(
        name=name,
        functions=scope.func_exports,
        resources=tuple(scope.resources),
        others=tuple(scope.others),
        byte_lists=tuple(ByteList(span, tuple(scope.used.get(i, ()))) for i, span in scope.byte_lists.items()),
        declared=scope.declared,
        count_at=scope.count_at,
        end=scope.end,
    )


def interface_key(name: str) -> str:
    """
    Return the name that ``faas.wasi.wit`` has for an import or export: released 0.2.x interfaces have no version there.

    All others keep theirs; one without a version gets an empty one, and so is none of ours.
    """
    base, _, version = name.partition("@")
    released = version.startswith("0.2.") and version.removeprefix("0.2.").isdecimal()
    return base if released else f"{base}@{version}"
