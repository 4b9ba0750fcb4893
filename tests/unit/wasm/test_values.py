"""Component values: every WIT type both ways, handles, calls that wait, and components that lie, by ctypes and in C."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import math
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import wasmtime
from wasmtime import component as wasmtime_component

from faas.config import HostConfig, PoolConfig
from faas.errors import CpuLimitError, FaasError, GuestTrapError, InternalError, OutputLimitError, OverloadedError
from faas.wasi import wit
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError
from faas.wasm import calls, capi, components, values
from faas.wasm.engine import MEMORY_EXPORT, ROOM_EXPORT, EngineProfile, engine_pointer, new_engine
from faas.wasm.turns import Turns

PROFILE = EngineProfile.from_config(HostConfig(pool=PoolConfig(slots=20), guest_threads=1))
HOST, ROOMS = "test:values/host", "test:values/rooms"
THING = ("own", f"{HOST}#thing")


class Case(NamedTuple):
    """A WIT type, what it is in a component's text and in core wasm, and some values of it."""

    name: str
    wit: str
    wat: str
    core: str
    values: tuple[Any, ...]


EVERY_BYTE = bytes(range(256))
CASES = (
    Case("bool", "bool", "bool", "i32", (False, True)),
    Case("s8", "s8", "s8", "i32", (-128, -1, 0, 127)),
    Case("u8", "u8", "u8", "i32", (0, 255)),
    Case("s16", "s16", "s16", "i32", (-32768, 32767)),
    Case("u16", "u16", "u16", "i32", (0, 65535)),
    Case("s32", "s32", "s32", "i32", (-(2**31), 2**31 - 1)),
    Case("u32", "u32", "u32", "i32", (0, 2**32 - 1)),
    Case("s64", "s64", "s64", "i64", (-(2**63), 2**63 - 1)),
    Case("u64", "u64", "u64", "i64", (0, 2**64 - 1)),
    Case("f32", "f32", "f32", "f32", (0.0, -1.5, float("inf"))),
    Case("f64", "f64", "f64", "f64", (0.1, -1e300, float("-inf"))),
    Case("char", "char", "char", "i32", ("a", "é", "\x00", "\U0010ffff", "\ue000", "\ud7ff")),
    Case("string", "string", "string", "i32 i32", ("", "plain", "\x00 ünï 漢 \U0001f600", "x" * 70_000)),
    Case("bytes", "list<u8>", "(list u8)", "i32 i32", (b"", b"\x00", EVERY_BYTE, EVERY_BYTE * 4096)),
    Case("blobs", "list<list<u8>>", "(list (list u8))", "i32 i32", ([], [b"", EVERY_BYTE])),
    Case("list", "list<u32>", "(list u32)", "i32 i32", ([], [1, 2**32 - 1], list(range(1000)))),
    Case("tuple", "tuple<bool, string, s64>", "(tuple bool string s64)", "i32 i32 i32 i64", ((True, "x", -1),)),
    Case("record", "point", "$point", "i32 i32 i32", ((-7, "here"), (0, ""))),
    Case("records", "list<point>", "(list $point)", "i32 i32", ([(1, "a"), (2, "b")],)),
    Case(
        "variant",
        "shape",
        "$shape",
        "i32 i32 i32 i32",
        (("empty", None), ("side", 1.5), ("name", "x"), ("blob", EVERY_BYTE), ("at", (3, "there"))),
    ),
    Case("enum", "colour", "$colour", "i32", ("red", "green", "dark-blue")),
    Case("flags", "bits", "$bits", "i32", (frozenset(), frozenset({"b"}), frozenset({"a", "b", "c"}))),
    Case("option", "option<string>", "(option string)", "i32 i32 i32", (None, "", "x")),
    Case("options", "list<option<u64>>", "(list (option u64))", "i32 i32", ([None, 2**64 - 1],)),
    # Behind a list: as the whole result of a function, a result is answered and raised.
    Case(
        "results",
        "list<result<u32, string>>",
        "(list (result u32 (error string)))",
        "i32 i32",
        ([("ok", 7), ("err", "no")],),
    ),
    Case("bare", "list<result>", "(list (result))", "i32 i32", ([("ok", None), ("err", None)],)),
)
BYTES = {case.name: case for case in CASES}["bytes"]

TYPES = """
  resource thing;
  record point { x: s32, label: string }
  variant shape { empty, side(f32), name(string), blob(list<u8>), at(point) }
  enum colour { red, green, dark-blue }
  flags bits { a, b, c }
"""
WIT = f"""package test:values@1.0.0;
interface host {{{TYPES}
  {" ".join(f"echo-{case.name}: func(v: {case.wit}) -> {case.wit};" for case in CASES)}
  fallible: func(v: u32) -> result<u32, shape>;
  bare: func(v: u32) -> result;
  wait: func(v: u32) -> result<u32, shape>;
  wait-plain: func(v: u32) -> u32;
  make: func() -> thing;
  child: func(of: borrow<thing>) -> thing;
  look: func(of: borrow<thing>) -> u32;
  take: func(it: thing);
  take-last: func(n: u32, it: thing) -> option<thing>;
}}
interface other {{
  resource stranger;
  make-other: func() -> stranger;
}}
interface rooms {{
  get: func(n: u32) -> result<list<u8>, string>;
  wait-for: func(n: u32) -> result<list<u8>, string>;
  tick: func() -> u32;
}}
"""
INTERFACES = wit.parse([WIT])

# What an imported instance's type says of the named types, and their names outside of it.
NAMED = {
    "thing": "(sub resource)",
    "point": '(record (field "x" s32) (field "label" string))',
    "shape": """(variant (case "empty") (case "side" f32) (case "name" string) (case "blob" (list u8))
      (case "at" $point))""",
    "colour": '(enum "red" "green" "dark-blue")',
    "bits": '(flags "a" "b" "c")',
}

LIBC = """(core module $Libc (memory (export "memory") 4) (global $at (mut i32) (i32.const 4096))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $at) (i32.const 7)) (i32.const -8)))
    (global.set $at (i32.add (local.get $p) (local.get 3)))
    (if (i32.gt_u (global.get $at) (i32.shl (memory.size) (i32.const 16)))
      (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))))))
    (memory.copy (local.get $p) (local.get 0)
      (select (local.get 1) (local.get 3) (i32.lt_u (local.get 1) (local.get 3))))
    (local.get $p))
  (data (i32.const 256) "@every-byte@"))
(core instance $libc (instantiate $Libc))""".replace("@every-byte@", "".join(f"\\{byte:02x}" for byte in EVERY_BYTE))
OPTIONS = '(memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))'


class Import(NamedTuple):
    """A function that a component imports, as it declares it; ``echo`` exports one that calls it."""

    name: str
    params: tuple[str, ...] = ()
    core_params: str = ""
    result: str = ""
    core_result: str = ""
    interface: str = HOST
    echo: bool = True


def component(*imports: Import, code: str = "", exports: str = "", named: dict[str, str] | None = None) -> bytes:
    """Return a component in its text form; *code* is put into its core module, *exports* beside the echoes."""
    named = NAMED if named is None else named
    out = ["(component"]
    for interface in dict.fromkeys(one.interface for one in imports):
        alias = interface.rpartition("/")[2]
        out.append(f'(import "{interface}@1.0.0" (instance ${alias}')
        for name, text in named.items() if interface == HOST else ():
            bound = text if text.startswith("(sub") else f"(eq ${name}-)"
            if bound != text:
                out.append(f"(type ${name}- {text})")
            out.append(f'(export "{name}" (type ${name} {bound}))')
        for one in imports:
            if one.interface == interface:
                params = " ".join(f'(param "p{i}" {text})' for i, text in enumerate(one.params))
                result = f"(result {one.result})" if one.result else ""
                out.append(f'(export "{one.name}" (func {params} {result}))')
        out.append("))")
        if interface == HOST:
            out += [f'(alias export ${alias} "{name}" (type ${name}))' for name in named]
    out.append(LIBC)
    core, instance, lifted = [], [], []
    for one in imports:
        alias, name = one.interface.rpartition("/")[2], one.name
        out.append(f'(core func $l-{name} (canon lower (func ${alias} "{name}") {OPTIONS}))')
        instance.append(f'(export "{name}" (func $l-{name}))')
        several = len(one.core_result.split()) > 1
        taken = one.core_params + (" i32" if several else "")
        given = f"(result {one.core_result})" if one.core_result and not several else ""
        core.append(f'(import "h" "{name}" (func ${name} (param {taken}) {given}))')
        if one.echo:
            pushed = " ".join(f"(local.get {i})" for i in range(len(one.core_params.split())))
            called = f"(call ${name} {pushed} {'(i32.const 64)' if several else ''})"
            code += f'(func (export "{name}") (param {one.core_params}) {"(result i32)" if several else given}'
            code += f" {called} {'(i32.const 64)' if several else ''})"
            lifted.append(_lifted(name, one.params, one.result))
    out.append(f'(core module $Code {" ".join(core)} (import "libc" "memory" (memory 1)) @drop@ {code})')
    drop = ""
    if "resource.drop" in exports or "$drop" in code:
        out.append("(core func $drop (canon resource.drop $thing))")
        instance.append('(export "drop" (func $drop))')
        drop = '(import "h" "drop" (func $drop (param i32)))'
    out.append(f'(core instance $code (instantiate $Code (with "h" (instance {" ".join(instance)}))')
    out.append('(with "libc" (instance $libc))))')
    text = "\n".join([*out, *lifted, exports, ")"])
    return bytes(wasmtime.wat2wasm(text.replace("@drop@", drop)))


def _lifted(name: str, params: tuple[str, ...], result: str) -> str:
    declared = " ".join(f'(param "p{i}" {text})' for i, text in enumerate(params))
    answer = f"(result {result})" if result else ""
    return f'(func (export "{name}") {declared} {answer} (canon lift (core func $code "{name}") {OPTIONS}))'


class Host:
    """What the host functions of a test answer, and what they were called with."""

    def __init__(self) -> None:
        self.answer: Callable[..., Any] = lambda *_args: None
        self.seen: list[tuple[Any, ...]] = []
        self.guests: list[Any] = []

    def call(self, guest: Any, *args: Any) -> Any:
        self.guests.append(guest)
        self.seen.append(args)
        return self.answer(*args)


class Thing(Resource):
    """A resource that counts how often it was dropped."""

    def __init__(self, parent: Resource | None = None) -> None:
        super().__init__(parent)
        self.dropped = 0

    def drop(self) -> None:
        super().drop()
        self.dropped += 1


class World:
    """An engine with the linkers of the test's interfaces, for one of the two ways to convert values."""

    def __init__(self, into: Any, over: Any) -> None:
        self.into = into
        self.host = Host()
        self.engine = new_engine(PROFILE, pooling=True)
        self.pointer = engine_pointer(self.engine)
        self.calls = over
        self.turns = Turns(1)
        self.ticker = over.Ticker(self.pointer, 0.001)
        self.awaiting = {"wait", "wait-plain", "wait-for"}
        functions = {
            name: {
                function: ComponentFunction(self._call, function in self.awaiting) for function in interface.functions
            }
            for name, interface in INTERFACES.items()
        }
        self.linker = components.ComponentLinker(self.pointer, functions, into)
        self._templates: dict[bytes, components.ComponentTemplate] = {}

    def _call(self, guest: Any, *args: Any) -> Any:
        return self.host.call(guest, *args)

    def template(self, binary: bytes) -> components.ComponentTemplate:
        if binary not in self._templates:
            native = bytes(wasmtime_component.Component(self.engine, binary).serialize())
            self._templates[binary] = components.load(self.pointer, native, self.linker)
        return self._templates[binary]

    def fiber(self, **options: Any) -> components.ComponentFiber:
        limits = {"memory_limit_bytes": 64 << 20, "table_limit_elements": 1000, "cpu_limit_s": 20.0, **options}
        return components.ComponentFiber(
            self.pointer, self.calls, self.into, self.turns, self.ticker.wake, None, **limits
        )

    def close(self) -> None:
        for template in self._templates.values():
            template.close()
        self.linker.close()
        self.ticker.stop()
        self.turns.close()


@pytest.fixture(scope="module", params=["ctypes", "c"])
def made(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "c" and values.chosen() is values:
        pytest.skip("_values was not compiled here")
    with pytest.MonkeyPatch.context() as patch:
        known = {**wit.interfaces(), **INTERFACES}
        patch.setattr(wit, "interfaces", lambda: known)
        patch.setattr(components, "BYTES_RETURNED", frozenset({(ROOMS, "get"), (ROOMS, "wait-for")}))
        world = World(values, calls) if request.param == "ctypes" else World(values.chosen(), calls.chosen())
        yield world
        world.close()


@pytest.fixture
def world(made: World) -> World:
    made.host = Host()
    return made


@asynccontextmanager
async def instance(world: World, binary: bytes, **options: Any) -> AsyncIterator[components.ComponentFiber]:
    fiber = world.fiber(**options)
    try:
        await fiber.instantiate(world.template(binary))
        yield fiber
    finally:
        fiber.close()


async def call(
    world: World,
    fiber: components.ComponentFiber,
    name: str,
    *args: tuple[wit.Type, Any],
    result: wit.Type | None = None,
) -> Any:
    assert fiber._template is not None
    index = capi.component_get_export_index(fiber._template.pointer, None, name.encode(), len(name.encode()))
    try:
        nodes = tuple((world.linker.node(type_), value) for type_, value in args)
        wanted = None if result is None else world.linker.node(result)
        return await fiber.call_export(index, name.encode(), nodes, wanted)
    finally:
        capi.component_export_index_delete(index)


def type_of(function: str, interface: str = HOST) -> wit.Type:
    return INTERFACES[interface].functions[function].params[0][1]


ECHOES = component(*(Import(f"echo-{case.name}", (case.wat,), case.core, case.wat, case.core) for case in CASES))

U32_RESULT = "(result u32 (error $shape))"
# A result over u32 and the shape: whether it is ok, then the parts of a shape, of which u32 is the first.
FALLIBLE = component(
    Import("fallible", ("u32",), "i32", U32_RESULT, "i32 i32 i32 i32 i32"),
    Import("bare", ("u32",), "i32", "(result)", "i32"),
    Import("wait", ("u32",), "i32", U32_RESULT, "i32 i32 i32 i32 i32"),
    Import("wait-plain", ("u32",), "i32", "u32", "i32"),
)
FALLIBLE_TYPE = INTERFACES[HOST].functions["fallible"].result
assert FALLIBLE_TYPE is not None

RESOURCES = component(
    Import("make", (), "", "(own $thing)", "i32", echo=False),
    Import("child", ("(borrow $thing)",), "i32", "(own $thing)", "i32", echo=False),
    Import("look", ("(borrow $thing)",), "i32", "u32", "i32", echo=False),
    Import("take", ("(own $thing)",), "i32", echo=False),
    Import("take-last", ("u32", "(own $thing)"), "i32 i32", "(option (own $thing))", "i32 i32", echo=False),
    code="""
    (func (export "hold") (param i32) (loop $l (if (local.get 0) (then (drop (call $make))
      (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br $l)))))
    (func (export "cycle") (param i32) (loop $l (if (local.get 0) (then (call $drop (call $make))
      (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br $l)))))
    (func (export "look-at-one") (result i32) (call $look (call $make)))
    (func (export "drop-one") (call $drop (call $make)))
    (func (export "drop-given") (param i32) (call $drop (local.get 0)))
    (func (export "drop-twice") (local $it i32) (local.set $it (call $make))
      (call $drop (local.get $it)) (call $drop (local.get $it)))
    (func (export "give-one") (call $take (call $make)))
    (func (export "give-and-look") (result i32) (local $it i32) (local.set $it (call $make))
      (call $take (local.get $it)) (call $look (local.get $it)))
    (func (export "parent-first") (local $it i32) (local.set $it (call $make))
      (drop (call $child (local.get $it))) (call $drop (local.get $it)))
    (func (export "child-first") (local $it i32) (local.set $it (call $make))
      (call $drop (call $child (local.get $it))) (call $drop (local.get $it)))
    (func (export "pass") (param i32) (result i32) (call $take-last (i32.const 7) (local.get 0) (i32.const 64))
      (if (result i32) (i32.load (i32.const 64)) (then (i32.load (i32.const 68))) (else (call $make))))
    """,
    exports="\n".join(
        (
            _lifted("hold", ("u32",), ""),
            _lifted("cycle", ("u32",), ""),
            _lifted("look-at-one", (), "u32"),
            _lifted("drop-one", (), ""),
            _lifted("drop-given", ("u32",), ""),
            _lifted("drop-twice", (), ""),
            _lifted("give-one", (), ""),
            _lifted("give-and-look", (), "u32"),
            _lifted("parent-first", (), ""),
            _lifted("child-first", (), ""),
            _lifted("pass", ("(own $thing)",), "(own $thing)"),
        )
    ),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = (
        ("_up_to_maps", ctypes.c_size_t * 4),
        ("hblkhd", ctypes.c_size_t),
        ("_maxima", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("_free", ctypes.c_size_t * 2),
    )


def needs_mallinfo() -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not tell what is allocated")


def allocated_bytes() -> int:
    """Return what is allocated from the C library's heap by the main thread, and mapped."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    now = mallinfo2()
    return int(now.uordblks + now.hblkhd)


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_type_gets_through_both_ways(world: World, case: Case) -> None:
    """As an argument into the component, from it into the host, back into the component, and out as its result."""
    world.host.answer = lambda value: value
    type_ = type_of(f"echo-{case.name}")
    async with instance(world, ECHOES) as fiber:
        for value in case.values:
            got = await call(world, fiber, f"echo-{case.name}", (type_, value), result=type_)
            assert [got, *world.host.seen.pop()] == [value, value]
            assert type(got) is type(value)
        assert set(map(id, world.host.guests)) == {id(fiber)}
        assert len(fiber._handles) == 0


async def test_nan_stays_one(world: World) -> None:
    world.host.answer = lambda value: value
    async with instance(world, ECHOES) as fiber:
        for name in ("f32", "f64"):
            got = await call(world, fiber, f"echo-{name}", (name, float("nan")), result=name)
            assert math.isnan(got)
            assert math.isnan(world.host.seen[-1][0])


async def test_any_bytes_like_object_can_be_answered(world: World) -> None:
    async with instance(world, ECHOES) as fiber:
        for answer in (bytearray(EVERY_BYTE), memoryview(EVERY_BYTE)[:]):
            world.host.answer = lambda _value, answer=answer: answer
            assert await call(world, fiber, "echo-bytes", (("list", "u8"), b""), result=("list", "u8")) == EVERY_BYTE


WRONG_ANSWERS = [
    ("s8", 128),
    ("s8", -129),
    ("u8", 256),
    ("u8", -1),
    ("s16", 32768),
    ("u16", 65536),
    ("s32", 2**31),
    ("u32", 2**32),
    ("u32", -1),
    ("s64", 2**63),
    ("s64", -(2**63) - 1),
    ("u64", 2**64),
    ("u64", -1),
    ("u64", 10**40),
    ("u32", 1.5),
    ("u32", "1"),
    ("u32", None),
    ("f32", "x"),
    ("f64", None),
    ("char", ""),
    ("char", "ab"),
    ("char", 65),
    ("char", "\ud800"),
    ("char", "\udfff"),
    ("string", b"x"),
    ("string", None),
    ("string", "lone \udc80"),
    ("bytes", "text"),
    ("bytes", 5),
    ("bytes", None),
    ("list", None),
    ("list", [1, 2**32]),
    ("list", [1, "x"]),
    ("blobs", [b"fine", "x"]),
    ("tuple", (True, "x")),
    ("tuple", (True, "x", 1, 2)),
    ("tuple", (True, 7, 1)),
    ("record", (1,)),
    ("record", ("x", "label")),
    ("records", [(1, "a"), (2, 3)]),
    ("variant", ("unknown", None)),
    ("variant", "empty"),
    ("variant", ("name", 7)),
    ("variant", ("at", (3, 7))),
    ("variant", ("side", "x")),
    ("variant", (None, None)),
    ("enum", "blue"),
    ("enum", 0),
    ("flags", frozenset({"a", "z"})),
    ("flags", {1}),
    ("flags", None),
    ("option", 7),
    ("options", [None, -1]),
    ("results", [("ok", 7), ("maybe", 1)]),
    ("results", [("ok", 7), (7, 1)]),
    ("results", [("ok", "x")]),
    ("results", ["ok"]),
    ("bare", [("ok",)]),
]


@pytest.mark.parametrize(("name", "answer"), WRONG_ANSWERS, ids=lambda value: repr(value)[:30])
async def test_an_answer_that_its_type_does_not_have_is_a_failure_of_the_host(
    world: World, name: str, answer: Any
) -> None:
    """It ends the invocation, whatever part of it had been converted; nothing is cut to fit."""
    case = next(case for case in CASES if case.name == name)
    world.host.answer = lambda _value: answer
    type_ = type_of(f"echo-{name}")
    async with instance(world, ECHOES) as fiber:
        with pytest.raises(InternalError, match="a host function failed") as failed:
            await call(world, fiber, f"echo-{name}", (type_, case.values[0]), result=type_)
    assert isinstance(failed.value.__cause__, (TypeError, ValueError, OverflowError))


async def test_an_argument_that_its_type_does_not_have_is_refused_before_the_call(world: World) -> None:
    world.host.answer = lambda value: value
    async with instance(world, ECHOES) as fiber:
        with pytest.raises(TypeError):
            await call(world, fiber, "echo-records", (type_of("echo-records"), [(1, "a"), (2, 3)]), result="u8")
        assert world.host.seen == []
        assert await call(world, fiber, "echo-u8", ("u8", 1), result="u8") == 1


async def test_a_result_that_nobody_took_is_freed_by_the_next_call(world: World) -> None:
    world.host.answer = lambda value: value
    async with instance(world, ECHOES) as fiber:
        for _ in range(3):
            with pytest.raises(GuestTrapError, match="other types"):
                await call(world, fiber, "echo-string", ("string", "x" * 1000), result="u8")


async def test_a_function_that_is_not_there_is_named(world: World) -> None:
    async with instance(world, ECHOES) as fiber, instance(world, FALLIBLE) as other:
        assert fiber._template is not None
        index = capi.component_get_export_index(fiber._template.pointer, None, b"echo-u8", 7)
        with contextlib.ExitStack() as stack:
            stack.callback(capi.component_export_index_delete, index)
            with pytest.raises(GuestTrapError, match="'echo-u8'"):
                await other.call_export(index, b"echo-u8")


@pytest.mark.parametrize(
    "type_",
    [
        "u128",
        ("list",),
        ("list", "u33"),
        ("result", "u8"),
        ("result", None, None, None),
        ("option", "u8", "u8"),
        ("set", ("a",)),
        ("tuple", "u8"),
        ("enum", (1, 2)),
        ("record", (("x", "nothing"),)),
        ("record", ((1, "u8"),)),
        None,
        7,
    ],
    ids=repr,
)
def test_what_is_no_type_is_refused(world: World, type_: Any) -> None:
    with pytest.raises(TypeError):
        world.into.node(type_, {})


def test_a_handle_of_an_unknown_resource_is_refused(world: World) -> None:
    with pytest.raises(LookupError, match="nowhere#thing"):
        world.into.node(("list", ("own", "nowhere#thing")), {"test#thing": 1})


def test_host_functions_take_nodes(world: World) -> None:
    node = world.into.node("u8", {})
    for params, result in (([node], None), ((node,) * 13, None), (("u8",), None), ((node,), "u8")):
        with pytest.raises(TypeError, match=r"host_function\(\)"):
            world.into.host_function(print, params, result, False, 0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fallible", "wait"])
async def test_an_answer_is_the_ok_of_a_result_and_a_wit_error_its_err(world: World, name: str) -> None:
    def answer(value: int) -> int:
        if value > 9:
            raise WitError(("at", (value, "too far")))
        return value + 1

    world.host.answer = answer
    async with instance(world, FALLIBLE) as fiber:
        assert await call(world, fiber, name, ("u32", 9), result=FALLIBLE_TYPE) == ("ok", 10)
        got = await call(world, fiber, name, ("u32", 10), result=FALLIBLE_TYPE)
        assert got == ("err", ("at", (10, "too far")))


async def test_a_result_without_payloads_is_none_or_raised(world: World) -> None:
    def answer(value: int) -> None:
        if value:
            raise WitError

    world.host.answer = answer
    async with instance(world, FALLIBLE) as fiber:
        assert await call(world, fiber, "bare", ("u32", 0), result=("result", None, None)) == ("ok", None)
        assert await call(world, fiber, "bare", ("u32", 1), result=("result", None, None)) == ("err", None)


@pytest.mark.parametrize("name", ["fallible", "wait"])
async def test_an_error_of_another_type_than_declared_is_a_failure_of_the_host(world: World, name: str) -> None:
    def answer(_value: int) -> int:
        raise WitError(("at", (1, 2)))

    world.host.answer = answer
    async with instance(world, FALLIBLE) as fiber:
        with pytest.raises(InternalError, match="a host function failed"):
            await call(world, fiber, name, ("u32", 1), result=FALLIBLE_TYPE)


@pytest.mark.parametrize("name", ["echo-u32", "wait-plain"])
async def test_a_declared_error_where_none_is_declared_is_a_failure_of_the_host(world: World, name: str) -> None:
    def answer(_value: int) -> int:
        raise WitError("no")

    world.host.answer = answer
    async with instance(world, ECHOES if name == "echo-u32" else FALLIBLE) as fiber:
        with pytest.raises(InternalError) as failed:
            await call(world, fiber, name, ("u32", 1), result="u32")
    assert isinstance(failed.value.__cause__, WitError)


@pytest.mark.parametrize("name", ["fallible", "wait"])
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (GuestTrapError("trap; stop"), GuestTrapError),
        (OutputLimitError("too much; write less"), OutputLimitError),
        (ValueError("a bug"), InternalError),
        (KeyboardInterrupt(), InternalError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_what_a_host_function_raises_ends_the_invocation(
    world: World, name: str, raised: BaseException, expected: type[FaasError]
) -> None:
    def answer(_value: int) -> int:
        raise raised

    world.host.answer = answer
    async with instance(world, FALLIBLE) as fiber:
        with pytest.raises(expected) as failed:
            await call(world, fiber, name, ("u32", 1), result=FALLIBLE_TYPE)
        assert raised in (failed.value, failed.value.__cause__)


# --- calls that wait -------------------------------------------------------------------------------------------------


class Later:
    """An awaitable that comes to something once it was let go."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = False

    def __await__(self) -> Any:
        self.begun.set()
        try:
            yield from self.go.wait().__await__()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


async def _waited(world: World, fiber: components.ComponentFiber, later: Later, name: str = "wait") -> Any:
    world.host.answer = lambda _value: later
    result: wit.Type = "u32" if name == "wait-plain" else FALLIBLE_TYPE  # type: ignore[assignment]
    task = asyncio.ensure_future(call(world, fiber, name, ("u32", 1), result=result))
    await later.begun.wait()
    assert not task.done()
    later.go.set()
    return await task


async def test_a_call_that_waits_gets_its_answer_later(world: World) -> None:
    async with instance(world, FALLIBLE) as fiber:
        assert await _waited(world, fiber, Later(7)) == ("ok", 7)
        assert await _waited(world, fiber, Later(8)) == ("ok", 8)
        assert await _waited(world, fiber, Later(9), "wait-plain") == 9


async def test_a_call_that_waits_and_one_that_does_not_take_turns(world: World) -> None:
    async with instance(world, FALLIBLE) as fiber:
        for i in range(3):
            assert await _waited(world, fiber, Later(i)) == ("ok", i)
            world.host.answer = lambda value: value
            assert await call(world, fiber, "wait", ("u32", i), result=FALLIBLE_TYPE) == ("ok", i)


async def test_two_guests_wait_at_once_and_each_gets_its_own(world: World) -> None:
    first, second = Later(1), Later(2)
    async with instance(world, FALLIBLE) as one, instance(world, FALLIBLE) as other:
        world.host.answer = lambda value: {1: first, 2: second}[value]
        tasks = [
            asyncio.ensure_future(call(world, fiber, "wait", ("u32", i), result=FALLIBLE_TYPE))
            for i, fiber in ((1, one), (2, other))
        ]
        await first.begun.wait()
        await second.begun.wait()
        second.go.set()
        assert await tasks[1] == ("ok", 2)
        first.go.set()
        assert await tasks[0] == ("ok", 1)


async def test_a_call_that_waited_can_end_in_its_declared_error(world: World) -> None:
    async with instance(world, FALLIBLE) as fiber:
        assert await _waited(world, fiber, Later(WitError(("name", "no")))) == ("err", ("name", "no"))


@pytest.mark.parametrize("name", ["wait", "wait-plain"])
async def test_a_call_that_waited_can_end_the_invocation(world: World, name: str) -> None:
    async with instance(world, FALLIBLE) as fiber:
        with pytest.raises(OutputLimitError):
            await _waited(world, fiber, Later(OutputLimitError("too much; write less")), name)


@pytest.mark.parametrize(
    ("name", "value"), [("wait", -1), ("wait", WitError("no case")), ("wait-plain", "x"), ("wait-plain", WitError(1))]
)
async def test_what_a_wait_came_to_is_checked_like_any_answer(world: World, name: str, value: Any) -> None:
    async with instance(world, FALLIBLE) as fiber:
        with pytest.raises(InternalError, match="a host function failed"):
            await _waited(world, fiber, Later(value), name)


async def test_a_guest_may_be_closed_while_a_call_waits(world: World) -> None:
    """The awaitable is cancelled, and what the engine kept for its result is not touched again."""
    later = Later(7)
    world.host.answer = lambda _value: later
    async with instance(world, FALLIBLE) as fiber:
        task = asyncio.ensure_future(call(world, fiber, "wait", ("u32", 1), result=FALLIBLE_TYPE))
        await later.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert later.cancelled
    world.host.answer = lambda value: value
    async with instance(world, FALLIBLE) as fiber:
        assert await call(world, fiber, "wait", ("u32", 3), result=FALLIBLE_TYPE) == ("ok", 3)


async def test_an_awaitable_may_be_dropped_before_it_has_begun(world: World) -> None:
    later = Later(7)
    world.host.answer = lambda _value: later

    async def refuse() -> None:
        raise OutputLimitError("too much; write less")

    async with instance(world, FALLIBLE, on_pause=refuse) as fiber:
        with pytest.raises(OutputLimitError):
            await call(world, fiber, "wait", ("u32", 1), result=FALLIBLE_TYPE)
    assert not later.begun.is_set()


async def test_the_engine_has_no_components_that_wait_in_two_calls_at_once(world: World) -> None:
    """What ``suspend`` and ``settled`` rest on: the component model's own async calls are off."""
    text = """(component (import "h" (instance $h (export "f" (func))))
      (core func (canon lower (func $h "f") async)))"""
    with pytest.raises(wasmtime.WasmtimeError, match="async"):
        wasmtime_component.Component(world.engine, wasmtime.wat2wasm(text))


# --- handles ---------------------------------------------------------------------------------------------------------


async def test_a_borrow_stays_the_guests_and_an_own_is_taken(world: World) -> None:
    things = [Thing(), Thing()]
    answers = iter((things[0], 5, things[1], None))
    world.host.answer = lambda *_args: next(answers)
    async with instance(world, RESOURCES) as fiber:
        assert await call(world, fiber, "look-at-one", result="u32") == 5
        assert world.host.seen[1] == (things[0],)
        assert fiber._handles.objects() == [things[0]]
        await call(world, fiber, "give-one")
        assert world.host.seen[3] == (things[1],)
        assert fiber._handles.objects() == [things[0]]
        assert len(fiber._handles) == 1
    assert [thing.dropped for thing in things] == [0, 0]


async def test_dropping_a_handle_drops_what_it_stands_for_once(world: World) -> None:
    thing = Thing()
    world.host.answer = lambda: thing
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "drop-one")
        assert (thing.dropped, len(fiber._handles)) == (1, 0)
    assert thing.dropped == 1


@pytest.mark.parametrize("name", ["drop-twice", "give-and-look"])
async def test_a_handle_that_is_gone_traps(world: World, name: str) -> None:
    thing = Thing()
    world.host.answer = lambda *args: None if args else thing
    async with instance(world, RESOURCES) as fiber:
        with pytest.raises(GuestTrapError, match="unknown handle index"):
            await call(world, fiber, name, result="u32" if name == "give-and-look" else None)


@pytest.mark.parametrize("number", [0, 1, 99, 2**32 - 1])
async def test_dropping_a_handle_that_never_was_traps(world: World, number: int) -> None:
    async with instance(world, RESOURCES) as fiber:
        with pytest.raises(GuestTrapError, match="handle index"):
            await call(world, fiber, "drop-given", ("u32", number))


async def test_dropping_a_parent_before_its_child_traps(world: World) -> None:
    world.host.answer = lambda parent=None: Thing(parent)
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "child-first")
        assert len(fiber._handles) == 0
        with pytest.raises(GuestTrapError, match="drop those first"):
            await call(world, fiber, "parent-first")


async def test_what_a_drop_raises_is_a_failure_of_the_host(world: World) -> None:
    class Broken(Resource):
        def drop(self) -> None:
            raise ValueError("a bug")

    world.host.answer = Broken
    async with instance(world, RESOURCES) as fiber:
        with pytest.raises(InternalError, match="a bug"):
            await call(world, fiber, "drop-one")


async def test_handles_go_in_and_out_of_a_component_and_inside_other_values(world: World) -> None:
    first, second = Thing(), Thing()
    world.host.answer = lambda n, thing: second if (n, thing) == (7, first) else None
    async with instance(world, RESOURCES) as fiber:
        assert await call(world, fiber, "pass", (THING, first), result=THING) is second
        assert len(fiber._handles) == 0
        world.host.answer = lambda *args: None if args else first
        assert await call(world, fiber, "pass", (THING, second), result=THING) is first
        assert len(fiber._handles) == 0


async def test_a_guest_holds_as_many_handles_as_the_limit_and_not_one_more(world: World) -> None:
    world.host.answer = Thing
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "hold", ("u32", components.MAX_HANDLES - 1))
        await call(world, fiber, "cycle", ("u32", 10))
        await call(world, fiber, "hold", ("u32", 1))
        assert len(fiber._handles) == components.MAX_HANDLES
        with pytest.raises(GuestTrapError, match="more than 10000 handles"):
            await call(world, fiber, "hold", ("u32", 1))
        assert len(fiber._handles) == components.MAX_HANDLES


async def test_numbers_of_handles_are_used_again(world: World) -> None:
    needs_mallinfo()
    world.host.call = lambda _guest, *_args: Thing()  # type: ignore[method-assign] # without noting them
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "hold", ("u32", 3))
        await call(world, fiber, "cycle", ("u32", 10))
        before = allocated_bytes()
        await call(world, fiber, "cycle", ("u32", 30_000))
        assert len(fiber._handles) == 3
        assert allocated_bytes() - before < 30_000


async def test_what_handles_stand_for_goes_with_the_guest(world: World) -> None:
    made: list[weakref.ref[Any]] = []

    class Known(Resource):
        __slots__ = ("__weakref__", "guest")

    def make() -> Known:
        known = Known()
        known.guest = world.host.guests[-1]  # a cycle: the guest has the table, which has this
        made.append(weakref.ref(known))
        return known

    world.host.answer = make
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "hold", ("u32", 100))
        assert all(one() is not None for one in made)
    del fiber
    world.host = Host()
    gc.collect()
    assert [one() for one in made] == [None] * 100


# --- bytes by address ------------------------------------------------------------------------------------------------

BYTES_AT = 256
MEMORY_BYTES = 4 * 65536
BY_ADDRESS = Import("echo-bytes", ("u32", "u32"), "i32 i32", "(list u8)", "i32 i32")
# What the compile job adds: the first core instance has the memory.
MARK = f'(instance $mark) (export "{MEMORY_EXPORT}1" (instance $mark))'
FILLED = component(BY_ADDRESS, exports=MARK)


async def _by_address(world: World, binary: bytes, at: int, size: int) -> Any:
    world.host.answer = lambda value: value
    async with instance(world, binary) as fiber:
        return await call(world, fiber, "echo-bytes", ("u32", at), ("u32", size), result=("list", "u8"))


@pytest.mark.parametrize(("first", "last"), [(0, 256), (0, 1), (255, 256), (100, 117)])
async def test_bytes_by_address_are_copied_out_of_the_guests_memory(world: World, first: int, last: int) -> None:
    assert await _by_address(world, FILLED, BYTES_AT + first, last - first) == EVERY_BYTE[first:last]
    assert world.host.seen == [(EVERY_BYTE[first:last],)]


@pytest.mark.parametrize("at", [0, MEMORY_BYTES, 2**32 - 1])
async def test_no_bytes_are_at_any_address(world: World, at: int) -> None:
    assert await _by_address(world, FILLED, at, 0) == b""


async def test_bytes_by_address_reach_to_the_end_of_the_memory(world: World) -> None:
    assert await _by_address(world, FILLED, MEMORY_BYTES - 2, 2) == bytes(2)


@pytest.mark.parametrize(
    ("at", "size"),
    [(MEMORY_BYTES - 1, 2), (0, MEMORY_BYTES + 1), (MEMORY_BYTES, 1), (2**32 - 1, 1), (2**32 - 1, 2**32 - 1)],
)
async def test_bytes_by_address_that_are_not_in_the_memory_trap(world: World, at: int, size: int) -> None:
    with pytest.raises(GuestTrapError, match="not in its memory"):
        await _by_address(world, FILLED, at, size)
    assert world.host.seen == []


async def test_bytes_by_address_are_refused_where_the_memory_is_not_known(world: World) -> None:
    with pytest.raises(GuestTrapError, match="other types than the interface has"):
        await _by_address(world, component(BY_ADDRESS), BYTES_AT, 1)
    assert world.host.seen == []


@pytest.mark.parametrize(
    "lie",
    [
        Import("echo-bytes", ("u32", "u64"), "i32 i64", "(list u8)", "i32 i32"),
        Import("echo-bytes", ("s32", "u32"), "i32 i32", "(list u8)", "i32 i32"),
        Import("echo-bytes", ("u32", "u32", "u32"), "i32 i32 i32", "(list u8)", "i32 i32"),
        Import("echo-string", ("u32", "u32"), "i32 i32", "string", "i32 i32"),
        Import("make", ("u32",), "i32", "(own $thing)", "i32"),
    ],
    ids=lambda lie: f"{lie.name} as {lie.params}",
)
async def test_only_two_numbers_for_a_last_byte_list_are_an_address(world: World, lie: Import) -> None:
    async with instance(world, component(lie, exports=MARK)) as fiber:
        with pytest.raises(GuestTrapError, match="other types than the interface has"):
            await call(world, fiber, lie.name, *((text, 1) for text in lie.params), result="u8")
    assert world.host.seen == []


async def test_bytes_can_be_passed_by_address_before_the_component_is_whole(world: World) -> None:
    """A start function's calls come while there is no instance yet, whose handle would tell the store's number."""
    world.host.answer = lambda value: value
    start = (
        f"""(func $start (call $echo-bytes (i32.const {BYTES_AT + 7}) (i32.const 3) (i32.const 64))) (start $start)"""
    )
    async with instance(world, component(BY_ADDRESS, code=start, exports=MARK)):
        pass
    assert world.host.seen == [(EVERY_BYTE[7:10],)]


# --- components that declare other types than the interface has ------------------------------------------------------

LIES = [
    Import("echo-u32", ("string",), "i32 i32", "u32", "i32"),
    Import("echo-u32", ("u64",), "i64", "u32", "i32"),
    Import("echo-u32", ("s32",), "i32", "u32", "i32"),
    Import("echo-u32", (), "", "u32", "i32"),
    Import("echo-u32", ("u32", "u32"), "i32 i32", "u32", "i32"),
    Import("echo-u32", ("u32",), "i32", "", ""),
    Import("echo-string", ("u32",), "i32", "string", "i32 i32"),
    Import("echo-string", ("(list u8)",), "i32 i32", "string", "i32 i32"),
    Import("echo-bytes", ("(list u16)",), "i32 i32", "(list u8)", "i32 i32"),
    Import("echo-bytes", ("u32",), "i32", "(list u8)", "i32 i32"),
    Import("echo-list", ("(list string)",), "i32 i32", "(list u32)", "i32 i32"),
    Import("echo-tuple", ("(tuple bool string)",), "i32 i32 i32", "(tuple bool string s64)", "i32 i32 i32 i64"),
    Import("echo-tuple", ("$point",), "i32 i32 i32", "(tuple bool string s64)", "i32 i32 i32 i64"),
    Import("echo-record", ("$colour",), "i32", "$point", "i32 i32 i32"),
    Import("echo-variant", ("$colour",), "i32", "$shape", "i32 i32 i32 i32"),
    Import("echo-enum", ("$shape",), "i32 i32 i32 i32", "$colour", "i32"),
    Import("echo-flags", ("$colour",), "i32", "$bits", "i32"),
    Import("echo-option", ("string",), "i32 i32", "(option string)", "i32 i32 i32"),
    Import("echo-option", ("(option u32)",), "i32 i32", "(option string)", "i32 i32 i32"),
    Import("echo-bare", ("(list (result string))",), "i32 i32", "(list (result))", "i32 i32"),
    Import("echo-results", ("(list (result))",), "i32 i32", "(list (result u32 (error string)))", "i32 i32"),
    Import("wait-plain", ("string",), "i32 i32", "u32", "i32"),
    Import("wait-plain", ("u32",), "i32", "", ""),
]
SAMPLES: dict[str, tuple[wit.Type, Any]] = {
    "string": ("string", "x"),
    "u32": ("u32", 1),
    "s32": ("s32", 1),
    "u64": ("u64", 1),
    "(list u8)": (("list", "u8"), b"x"),
    "(list u16)": (("list", "u16"), [1]),
    "(list string)": (("list", "string"), ["x"]),
    "(tuple bool string)": (("tuple", ("bool", "string")), (True, "x")),
    "$point": (type_of("echo-record"), (1, "x")),
    "$colour": (type_of("echo-enum"), "red"),
    "$shape": (type_of("echo-variant"), ("side", 1.0)),
    "(option u32)": (("option", "u32"), 1),
    "(list (result string))": (("list", ("result", "string", None)), [("ok", "x")]),
    "(list (result))": (("list", ("result", None, None)), [("ok", None)]),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.name} as {lie.params} -> {lie.result}")
async def test_an_import_declared_with_other_types_traps(world: World, lie: Import) -> None:
    async with instance(world, component(lie)) as fiber:
        with pytest.raises(GuestTrapError, match="other types than the interface has; build it against"):
            await call(
                world, fiber, lie.name, *(SAMPLES[text] for text in lie.params), result="u8" if lie.result else None
            )
    assert world.host.seen == []


ANSWERED_LIES = [
    (Import("echo-u32", ("u32",), "i32", "string", "i32 i32"), 1),
    (Import("echo-u32", ("u32",), "i32", "s32", "i32"), 1),
    (Import("echo-string", ("string",), "i32 i32", "u32", "i32"), "x"),
    (Import("echo-string", ("string",), "i32 i32", "(list u8)", "i32 i32"), "x"),
    (Import("echo-bytes", ("(list u8)",), "i32 i32", "string", "i32 i32"), b"x"),
    (Import("echo-record", ("$point",), "i32 i32 i32", "(tuple s32 string)", "i32 i32 i32"), (1, "x")),
    (Import("echo-variant", ("$shape",), "i32 i32 i32 i32", "$colour", "i32"), ("empty", None)),
    (Import("echo-enum", ("$colour",), "i32", "$bits", "i32"), "red"),
    (Import("echo-option", ("(option string)",), "i32 i32 i32", "(option u32)", "i32 i32"), "x"),
    (Import("fallible", ("u32",), "i32", "(result)", "i32"), 1),
    (Import("wait-plain", ("u32",), "i32", "(own $thing)", "i32"), 1),
]


@pytest.mark.parametrize("lie", ANSWERED_LIES, ids=lambda lie: f"{lie[0].name} -> {lie[0].result}")
async def test_a_result_declared_with_another_type_traps(world: World, lie: tuple[Import, Any]) -> None:
    declared, value = lie
    world.host.answer = lambda value: value
    type_ = INTERFACES[HOST].functions[declared.name].params[0][1]
    async with instance(world, component(declared)) as fiber:
        with pytest.raises(GuestTrapError, match=r"type mismatch|expected|not compatible"):
            await call(world, fiber, declared.name, (type_, value), result="u8")


@pytest.mark.parametrize(
    ("name", "text", "function", "value"),
    [
        ("point", '(record (field "label" string) (field "x" s32))', "echo-record", ("x", 1)),
        ("point", '(record (field "y" s32) (field "label" string))', "echo-record", (1, "x")),
        ("point", '(record (field "x" s32))', "echo-record", (1,)),
        ("colour", '(enum "red" "green" "pink")', "echo-enum", "pink"),
        ("bits", '(flags "a" "b" "z")', "echo-flags", frozenset({"z"})),
        ("shape", '(variant (case "empty") (case "cube" u32))', "echo-variant", ("cube", 1)),
        ("shape", '(variant (case "empty") (case "name"))', "echo-variant", ("name", None)),
        ("shape", '(variant (case "name" u32))', "echo-variant", ("name", 1)),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_named_type_declared_otherwise_traps(
    world: World, name: str, text: str, function: str, value: Any
) -> None:
    core = {'(variant (case "empty") (case "cube" u32))': "i32 i32", '(record (field "x" s32))': "i32"}
    flat = (
        core.get(text)
        or {
            "point": "i32 i32 i32",
            "colour": "i32",
            "bits": "i32",
            "shape": "i32 i32" if "u32" in text else "i32",
        }[name]
    )
    types: dict[str, wit.Type] = {
        '(record (field "label" string) (field "x" s32))': ("record", (("label", "string"), ("x", "s32"))),
        '(record (field "y" s32) (field "label" string))': ("record", (("y", "s32"), ("label", "string"))),
        '(record (field "x" s32))': ("record", (("x", "s32"),)),
        '(enum "red" "green" "pink")': ("enum", ("red", "green", "pink")),
        '(flags "a" "b" "z")': ("flags", ("a", "b", "z")),
        '(variant (case "empty") (case "cube" u32))': ("variant", (("empty", None), ("cube", "u32"))),
        '(variant (case "empty") (case "name"))': ("variant", (("empty", None), ("name", None))),
        '(variant (case "name" u32))': ("variant", (("name", "u32"),)),
    }
    lying = component(Import(function, (f"${name}",), flat, f"${name}", flat), named={name: text})
    async with instance(world, lying) as fiber:
        with pytest.raises(GuestTrapError, match="other types than the interface has"):
            await call(world, fiber, function, (types[text], value), result="u8")
    assert world.host.seen == []


def _handed(name: str, type_: str, result: str) -> bytes:
    """Return a component that makes a thing and hands it to *name*, which it declares with another handle's type."""
    return component(
        Import("make", (), "", "(own $thing)", "i32", echo=False),
        Import(name, (type_,), "i32", result, "i32" if result else "", echo=False),
        code=f'(func (export "go") (call ${name} (call $make)) {"drop" if result else ""})',
        exports=_lifted("go", (), ""),
    )


@pytest.mark.parametrize(
    "binary",
    [
        _handed("take", "(borrow $thing)", ""),
        _handed("look", "(own $thing)", "u32"),
        _handed("echo-u32", "(own $thing)", "u32"),
    ],
    ids=["a borrow for an own", "an own for a borrow", "an own for a number"],
)
async def test_a_handle_declared_as_something_else_traps(world: World, binary: bytes) -> None:
    world.host.answer = lambda *args: 1 if args else Thing()
    async with instance(world, binary) as fiber:
        with pytest.raises(GuestTrapError, match="other types than the interface has"):
            await call(world, fiber, "go")
    assert world.host.seen == [()]


STRANGER = f"""(component
  (import "test:values/other@1.0.0" (instance $other
    (export "stranger" (type $s (sub resource))) (export "make-other" (func (result (own $s))))))
  (alias export $other "stranger" (type $stranger))
  (import "{HOST}@1.0.0" (instance $host
    (alias outer 1 $stranger (type $s)) (export "look" (func (param "p" (borrow $s)) (result u32)))))
  (core func $make (canon lower (func $other "make-other")))
  (core func $look (canon lower (func $host "look")))
  (core module $Code
    (import "h" "make" (func $make (result i32)))
    (import "h" "look" (func $look (param i32) (result i32)))
    (func (export "go") (drop (call $look (call $make)))))
  (core instance $code (instantiate $Code
    (with "h" (instance (export "make" (func $make)) (export "look" (func $look))))))
  (func (export "go") (canon lift (core func $code "go"))))"""


async def test_a_handle_of_another_resource_traps(world: World) -> None:
    """The engine lets a component declare any of the host's resources; the function must not see it."""
    world.host.answer = lambda *args: 1 if args else Thing()
    async with instance(world, bytes(wasmtime.wat2wasm(STRANGER))) as fiber:
        with pytest.raises(GuestTrapError, match="other types than the interface has"):
            await call(world, fiber, "go")
    assert world.host.seen == [()]


# --- room for bytes --------------------------------------------------------------------------------------------------

# What the compile job adds, and the loader reads: the first core instance has the memory, and makes room.
ROOM_MARKS = f"""(instance $mark) (export "{MEMORY_EXPORT}1" (instance $mark))
  (instance $room) (export "{ROOM_EXPORT}ROOM-cabi-realloc1" (instance $room))"""
BYTES_TYPE = ("list", "u8")
ASKED_TYPE = ("tuple", ("u32",) * 5)
ENOUGH = "(drop (memory.grow (i32.const 32)))"
# Allocators that no second call may come to: each call gets a new place, and nothing is copied there.
BUMP = "(global.get $next) (global.set $next (i32.add (global.get $next) (local.get $size)))"
ONCE = f"(if (local.get $old) (then unreachable)) {BUMP}"
GROWS = """(i32.shl (memory.size) (i32.const 16))
  (drop (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $size) (i32.const 16)))))"""
YIELDS = f"(loop $l (local.set $old (i32.add (local.get $old) (i32.const 1))) {{}}) {BUMP}".format(
    "(br_if $l (i32.lt_u (local.get $old) (i32.const 1000)))"
)
ODD_SIZES = (0, 1, 2, 7, 255, 4097, 65537)


def room_guest(realloc: str, *, whole: bool = True, room: int = 1, start: str = "") -> bytes:
    """
    Return a component that gets bytes from the host and hands them out, and tells how its realloc was called.

    Args: *whole* says whether it is as the compile job makes it, or as its tools do.
    """
    type_ = f'(param "p0" u32) (result (result {"(tuple u32 u32)" if whole else "(list u8)"} (error string)))'
    number = room if whole and room > 1 else ""
    text = f"""(component
  (import "{ROOMS}@1.0.0" (instance $rooms
    (export "get{number}" (func {type_})) (export "wait-for{number}" (func {type_}))
    (export "tick" (func (result u32)))))
  (core func $tick (canon lower (func $rooms "tick")))
  (core module $Libc (import "h" "tick" (func $tick (result i32)))
    (memory (export "memory") 4) (global $next (mut i32) (i32.const 4099))
    (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
      (result i32)
      (i32.store (i32.const 16) (i32.add (i32.const 1) (i32.load (i32.const 16))))
      (i32.store (i32.const 20) (local.get $old)) (i32.store (i32.const 24) (local.get $old_size))
      (i32.store (i32.const 28) (local.get $align)) (i32.store (i32.const 32) (local.get $size))
      {realloc}))
  (core instance $libc (instantiate $Libc (with "h" (instance (export "tick" (func $tick))))))
  (core func $get (canon lower (func $rooms "get{number}")
    (memory (core memory $libc "memory")) (realloc (core func $libc "cabi_realloc"))))
  (core func $wait (canon lower (func $rooms "wait-for{number}")
    (memory (core memory $libc "memory")) (realloc (core func $libc "cabi_realloc"))))
  (core module $Code
    (import "h" "get" (func $get (param i32 i32))) (import "h" "wait-for" (func $wait (param i32 i32)))
    (import "libc" "memory" (memory 1))
    (func $bytes (result i32) (if (i32.load8_u (i32.const 64)) (then unreachable)) (i32.const 68))
    (func (export "get") (param i32) (result i32) (call $get (local.get 0) (i32.const 64)) (call $bytes))
    (func (export "wait-for") (param i32) (result i32) (call $wait (local.get 0) (i32.const 64)) (call $bytes))
    (func (export "failed") (param i32) (result i32) (call $get (local.get 0) (i32.const 64))
      (i32.load8_u (i32.const 64)))
    (func (export "asked") (result i32) (i32.const 16)) {start})
  (core instance $code (instantiate $Code
    (with "h" (instance (export "get" (func $get)) (export "wait-for" (func $wait)))) (with "libc" (instance $libc))))
  (func (export "get") (param "n" u32) (result (list u8))
    (canon lift (core func $code "get") (memory (core memory $libc "memory"))))
  (func (export "wait-for") (param "n" u32) (result (list u8))
    (canon lift (core func $code "wait-for") (memory (core memory $libc "memory"))))
  (func (export "failed") (param "n" u32) (result u32) (canon lift (core func $code "failed")))
  (func (export "asked") (result (tuple u32 u32 u32 u32 u32))
    (canon lift (core func $code "asked") (memory (core memory $libc "memory"))))
  {ROOM_MARKS.replace("ROOM", str(room)) if whole else ""})"""
    return bytes(wasmtime.wat2wasm(text))


async def _get(world: World, fiber: components.ComponentFiber, content: bytes, name: str = "get") -> Any:
    world.host.answer = lambda _n: content
    return await call(world, fiber, name, ("u32", 5), result=BYTES_TYPE)


async def _wait_for(world: World, fiber: components.ComponentFiber, content: Any) -> Any:
    later = Later(content)
    world.host.answer = lambda _n: later
    task = asyncio.ensure_future(call(world, fiber, "wait-for", ("u32", 5), result=BYTES_TYPE))
    await later.begun.wait()
    later.go.set()
    return await task


@pytest.mark.parametrize("realloc", [BUMP, ONCE, GROWS, YIELDS], ids=["bump", "once", "grows", "loops"])
@pytest.mark.parametrize("room", [1, 2])
async def test_returned_bytes_are_put_where_the_guest_makes_room(world: World, realloc: str, room: int) -> None:
    async with instance(world, room_guest(ENOUGH + realloc, room=room)) as fiber:
        for size in ODD_SIZES:
            content = (EVERY_BYTE * (size // 256 + 1))[:size]
            assert await _get(world, fiber, content) == content
            assert await _wait_for(world, fiber, content) == content
            assert await _get(world, fiber, content, "wait-for") == content
    assert len(fiber._handles) == 0


@pytest.mark.parametrize("realloc", [BUMP, GROWS], ids=["room", "grows"])
async def test_a_mebibyte_is_returned_whole(world: World, realloc: str) -> None:
    content = EVERY_BYTE * 4096
    async with instance(world, room_guest((ENOUGH if realloc is BUMP else "") + realloc)) as fiber:
        assert await _get(world, fiber, content) == content


async def test_the_guest_is_asked_for_room_as_the_engine_asks(world: World) -> None:
    asked: list[list[Any]] = []
    for whole in (False, True):
        async with instance(world, room_guest(BUMP, whole=whole)) as fiber:
            asked.append([])
            for content in (b"", b"x", EVERY_BYTE):
                assert await _get(world, fiber, content) == content
                asked[-1].append(await call(world, fiber, "asked", result=ASKED_TYPE))
    assert asked[0] == asked[1] == [(1, 0, 0, 1, 0), (2, 0, 0, 1, 1), (3, 0, 0, 1, 256)]


async def test_any_bytes_like_object_is_put_into_the_room(world: World) -> None:
    async with instance(world, room_guest(BUMP)) as fiber:
        for answer in (bytearray(EVERY_BYTE), memoryview(EVERY_BYTE)[3:]):
            assert await _get(world, fiber, answer) == bytes(answer)  # type: ignore[arg-type]


async def test_no_room_is_made_for_an_error(world: World) -> None:
    def refuse(_n: int) -> bytes:
        raise WitError("")

    async with instance(world, room_guest(BUMP)) as fiber:
        world.host.answer = refuse
        assert await call(world, fiber, "failed", ("u32", 5), result="u32") == 1
        # For the text of the error, by the engine: no byte of it.
        assert await call(world, fiber, "asked", result=ASKED_TYPE) == (1, 0, 0, 1, 0)


@pytest.mark.parametrize("name", ["get", "wait-for"])
@pytest.mark.parametrize("whole", [False, True], ids=["list", "whole"])
@pytest.mark.parametrize(
    ("realloc", "size", "why"),
    [
        ("unreachable", 5, "unreachable"),
        ("(i32.const -1)", 1, "beyond end of memory|beyond the end of its memory"),
        ("(i32.const -1)", 0, "beyond end of memory|beyond the end of its memory"),
        ("(i32.const 262143)", 2, "beyond end of memory|beyond the end of its memory"),
        ("(i32.div_u (local.get $size) (local.get $old))", 5, "divide by zero"),
        ("(call $tick)", 5, "cannot leave component instance|from its cabi_realloc"),
    ],
    ids=["trap", "nowhere", "nowhere-empty", "past-the-end", "division", "calls-the-host"],
)
async def test_a_guest_that_makes_no_room_traps(  # noqa: PLR0917 - what varies
    world: World, name: str, whole: bool, realloc: str, size: int, why: str
) -> None:
    async with instance(world, room_guest(realloc, whole=whole)) as fiber:
        with pytest.raises(GuestTrapError, match=why):
            await _get(world, fiber, bytes(size), name)
    async with instance(world, room_guest(BUMP)) as fiber:
        assert await _get(world, fiber, EVERY_BYTE) == EVERY_BYTE


async def test_room_up_to_the_end_of_the_memory_is_room(world: World) -> None:
    async with instance(world, room_guest("(i32.const 262141)")) as fiber:
        assert await _get(world, fiber, b"end") == b"end"


@pytest.mark.parametrize("name", ["get", "wait-for"])
async def test_a_guest_that_never_has_made_room_is_ended_by_its_cpu_limit(world: World, name: str) -> None:
    async with instance(world, room_guest("(loop $l (br $l)) unreachable"), cpu_limit_s=0.02) as fiber:
        with pytest.raises(CpuLimitError):
            await _get(world, fiber, EVERY_BYTE, name)
    assert fiber._handles.objects() == []


async def test_a_guest_may_yield_while_it_makes_room(world: World) -> None:
    paused = []

    async def pause() -> None:
        paused.append(await other_get())

    async def other_get() -> bytes:
        """Another guest gets its bytes while this one is half way."""
        async with instance(world, room_guest(BUMP)) as other:
            index = len(world.host.guests)
            got = await call(world, other, "get", ("u32", 7), result=BYTES_TYPE)
            assert world.host.guests[index] is other
            return bytes(got)

    def answer(n: int) -> bytes:
        if n == 7:
            return b"other"
        world.host.guests[-1].request_yield()
        return EVERY_BYTE

    world.host.answer = answer
    async with instance(world, room_guest(YIELDS), on_pause=pause) as fiber:
        assert await call(world, fiber, "get", ("u32", 5), result=BYTES_TYPE) == EVERY_BYTE
        assert await call(world, fiber, "asked", result=ASKED_TYPE) == (1, 0, 0, 1, 256)
    assert paused
    assert set(paused) == {b"other"}


async def test_a_guest_is_closed_while_it_makes_room(world: World) -> None:
    """What was to be put there is let go of with it."""
    paused = asyncio.Event()

    async def pause() -> None:
        paused.set()
        await asyncio.Event().wait()

    class Content(bytearray):
        pass

    content = Content(EVERY_BYTE)
    known = weakref.ref(content)
    answers = [content]
    del content

    def answer(_n: int) -> bytes:
        world.host.guests[-1].request_yield()
        return answers.pop()

    world.host.answer = answer
    async with instance(world, room_guest(YIELDS), on_pause=pause) as fiber:
        task = asyncio.ensure_future(call(world, fiber, "get", ("u32", 5), result=BYTES_TYPE))
        await paused.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gc.collect()
    assert known() is None


async def test_bytes_can_be_returned_before_the_component_is_whole(world: World) -> None:
    world.host.answer = lambda _n: EVERY_BYTE
    start = "(func $start (call $get (i32.const 5) (i32.const 64))) (start $start)"
    async with instance(world, room_guest(BUMP, start=start)) as fiber:
        assert await call(world, fiber, "asked", result=ASKED_TYPE) == (1, 0, 0, 1, 256)


async def test_an_answer_that_is_no_bytes_is_a_failure_of_the_host(world: World) -> None:
    async with instance(world, room_guest(BUMP)) as fiber:
        with pytest.raises(InternalError, match="a host function failed"):
            await _get(world, fiber, "text")  # type: ignore[arg-type]


async def test_a_pool_without_a_stack_for_it_refuses_the_request(world: World) -> None:
    async with instance(world, room_guest(BUMP)) as fiber:
        fiber.room_failed("maximum concurrent fiber limit of 84 reached")
        assert isinstance(fiber.failure, OverloadedError)


@pytest.mark.parametrize(("room", "name"), [(0, b"x"), (3, b"x"), (1, b"x" * 32)])
def test_a_room_that_there_is_not_is_refused(world: World, room: int, name: bytes) -> None:
    with pytest.raises(ValueError, match=r"room_is\(\)"):
        world.into.Handles(object(), 1).room_is(room, 1, name)


# --- memory ----------------------------------------------------------------------------------------------------------


def references() -> int:
    """Return how many references there are to what is never freed; always the same from Python 3.12 on."""
    return sum(map(sys.getrefcount, (None, True, False, NotImplemented, (), "", b"", 0, "ok", "err", "red")))


N_ROUNDS = 50
SMALLEST_ALLOCATION_BYTES = 32


def _call_and_leave_the_result(world: World, fiber: components.ComponentFiber) -> None:
    assert fiber._template is not None
    index = capi.component_get_export_index(fiber._template.pointer, None, b"echo-string", len(b"echo-string"))
    values_of = ((world.linker.node("string"), "x" * 100),)
    at = fiber._at
    future = world.into.begin_call(
        fiber._handles, fiber._context, at + capi.FRAME_INSTANCE, at + capi.FRAME_ERROR, index, values_of, True
    )
    capi.component_export_index_delete(index)
    while not world.calls.poll(fiber, future):  # its slice may have been taken by another thread of this machine
        world.ticker.wake()


async def _everything(world: World) -> None:
    """Make every kind of conversion once, also those that fail, with guests of their own."""
    world.host.answer = lambda value: value
    async with instance(world, ECHOES) as fiber:
        for case in CASES:
            type_ = type_of(f"echo-{case.name}")
            value = min(case.values, key=lambda value: len(str(value)))
            await call(world, fiber, f"echo-{case.name}", (type_, value), result=type_)
    for name, answer in (("records", [(1, "a"), (2, 3)]), ("variant", ("at", (3, 7))), ("flags", ["a", "z"])):
        world.host.answer = lambda _value, answer=answer: answer
        case = next(case for case in CASES if case.name == name)
        async with instance(world, ECHOES) as fiber:
            with contextlib.suppress(InternalError):
                await call(world, fiber, f"echo-{name}", (type_of(f"echo-{name}"), case.values[0]), result="u8")
    later = Later(1)
    async with instance(world, FALLIBLE) as fiber:
        await _waited(world, fiber, later)
        await _waited(world, fiber, Later(WitError(("name", f"of {id(later)}"))))
    answers = iter((Thing(), Thing(), Thing(), Thing(), 5, Thing(), None, None, Thing()))
    world.host.answer = lambda *_args: next(answers)
    async with instance(world, RESOURCES) as fiber:
        await call(world, fiber, "cycle", ("u32", 1))
        await call(world, fiber, "hold", ("u32", 2))
        await call(world, fiber, "look-at-one", result="u32")
        await call(world, fiber, "give-one")
        await call(world, fiber, "pass", (THING, Thing()), result=THING)
    async with instance(world, room_guest(BUMP)) as fiber:
        assert await _get(world, fiber, EVERY_BYTE) == EVERY_BYTE
        assert await _wait_for(world, fiber, EVERY_BYTE) == EVERY_BYTE
    for name in ("get", "wait-for"):
        async with instance(world, room_guest("unreachable")) as fiber:
            with contextlib.suppress(GuestTrapError):
                await _get(world, fiber, EVERY_BYTE, name)
    world.host.answer = lambda value: value
    async with instance(world, ECHOES) as fiber:
        _call_and_leave_the_result(world, fiber)
        _call_and_leave_the_result(world, fiber)
    world.host.seen.clear()
    world.host.guests.clear()


async def test_nothing_is_kept_of_calls_that_are_over(world: World) -> None:
    """Python's objects, and the engine's values: neither grows with the number of calls."""
    needs_mallinfo()
    for _ in range(60):
        await _everything(world)
    most = [N_ROUNDS, N_ROUNDS, N_ROUNDS * SMALLEST_ALLOCATION_BYTES]
    least = list(most)
    for _ in range(10):  # what others allocate meanwhile is not there each time
        if all(grown < limit for grown, limit in zip(least, most, strict=True)):
            break
        gc.collect()
        before = sys.getallocatedblocks(), references(), allocated_bytes()
        for _ in range(N_ROUNDS):
            await _everything(world)
        gc.collect()
        after = sys.getallocatedblocks(), references(), allocated_bytes()
        least = [min(known, now - then) for known, now, then in zip(least, after, before, strict=True)]
    assert least[0] < N_ROUNDS
    assert least[1] < N_ROUNDS
    assert least[2] < N_ROUNDS * SMALLEST_ALLOCATION_BYTES


# --- which one runs --------------------------------------------------------------------------------------------------

WHICH = "from faas.wasm import values; print(values.chosen().__name__)"


def which(**environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", WHICH], env=environment, capture_output=True, text=True, check=True, timeout=50
    )
    return ran.stdout.strip()


def test_values_by_ctypes_can_be_asked_for() -> None:
    assert which(FAAS_NATIVE_CALLS="0") == "faas.wasm.values"


def test_without_asking_the_compiled_values_are_used_where_there_are_any() -> None:
    pytest.importorskip("faas.wasm._values")
    assert which() == "faas.wasm._values"


def test_both_ways_to_convert_have_the_same_functions() -> None:
    compiled = pytest.importorskip("faas.wasm._values")
    names = {name for name in vars(compiled) if not name.startswith("_")} - {"open_library"}
    assert names <= set(vars(values))
