"""What a component may be and import: everything else is refused with the name of it, and with the next step."""

from __future__ import annotations

import component_wat as wat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasm_bytes import FUNCTIONS, HEADER, leb, name, section

from faas.errors import (
    DeployError,
    InvalidModuleError,
    ManifestError,
    MemoryTooLargeError,
    UnknownImportsError,
    UnknownKindError,
)
from faas.invocation import Kind
from faas.manifest import Capabilities, Limits, Manifest, Warm
from faas.wasi.wit import EXPORTED, interfaces
from faas.wasm.engine import EngineProfile
from precompile.bytelists import RETURNED, TAKEN, pass_bytes_whole
from precompile.component import interface_key, is_component, read_component
from precompile.interfaces import validate_component
from precompile.validate import ModuleFacts

FUNCTION = Manifest(name="f")
PROFILE = EngineProfile()
HANDLERS = sorted(path for path in (FUNCTIONS / "http").glob("*.wasm") if path.stem != "program")
GRANTED = Manifest(name="f", capabilities=Capabilities(models=("m",), kv=("default",)))


def check(wasm: bytes, manifest: Manifest = FUNCTION) -> ModuleFacts:
    return validate_component(wasm, manifest, PROFILE)[0]


def imported(interface: str, *exports: str) -> str:
    return f'(import "{interface}" (instance {" ".join(exports)}))'


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.stem)
def test_handlers_of_every_release_are_of_the_kind_http(path) -> None:
    facts = check(path.read_bytes(), GRANTED if path.stem.startswith(("models", "kv")) else FUNCTION)

    assert facts.kind is Kind.HTTP
    assert facts.n_core_modules >= 1
    assert 0 < facts.core_bytes < path.stat().st_size


def test_the_facts_name_every_import_and_export() -> None:
    facts = check(wat.handler(wat.STREAMS, core="(memory 3) (table 7 funcref)"), Manifest(name="f", kind="http"))

    assert facts.imports == (
        "wasi:io/error@0.2.3",
        "wasi:io/streams@0.2.3 [method]input-stream.read",
        "wasi:io/streams@0.2.3 [method]output-stream.write",
        "wasi:http/types@0.2.7",
    )
    assert facts.exports == ("wasi:http/incoming-handler@0.2.7",)
    assert (facts.memory_min_bytes, facts.table_min_elements, facts.n_core_modules) == (3 * 65536, 7, 1)


@pytest.mark.parametrize("interface", sorted(set(interfaces()) - EXPORTED))
def test_every_interface_of_the_wit_texts_may_be_imported(interface: str) -> None:
    versioned = interface if "@" in interface else f"{interface}@0.2.99"

    assert versioned in check(wat.handler(imported(versioned)), GRANTED).imports


@pytest.mark.parametrize(
    ("interface", "hint"),
    [
        ("wasi:http/incoming-handler@0.2.0", "can't call another's handler"),
        ("wasi:http/types@0.3.0", "this host has WASI 0.2"),
        ("wasi:http/types@0.2.0-rc-2023-12-05", "a preview of WASI 0.2"),
        ("wasi:io/streams", "this host has WASI 0.2"),
        ("wasi:io/streams@0.1.0", "this host has WASI 0.2"),
        ("wasi:keyvalue/readwrite@0.1.0", r"wasi:keyvalue@0\.2\.0-draft2 and @0\.2\.0-draft"),
        ("fermyon:spin/llm@2.0.0", "nothing on this host offers them"),
        ("wasi:nn/tensor@0.2.0-rc-2024-06-25", "rebuild with one of them"),
        ("wasi:config/store@0.2.0-draft", r"wasi:config/store@0\.2\.0-rc\.1"),
    ],
)
def test_an_unknown_interface_is_named_with_its_version_and_what_to_do(interface: str, hint: str) -> None:
    with pytest.raises(UnknownImportsError, match=hint) as caught:
        check(wat.handler(imported(interface)))

    assert caught.value.facts["imports"] == [interface]
    assert interface in caught.value.message


def test_all_that_is_unknown_is_in_one_message() -> None:
    parts = [imported("a:b/c@1.0.0"), imported("d:e/f@1.0.0"), imported("wasi:cli/stdin@0.3.0"), '(import "g" (func))']
    with pytest.raises(UnknownImportsError) as caught:
        check(wat.handler(*parts))

    assert caught.value.message == (
        "the component imports what this host does not offer:"
        " g (func) (only functions of interfaces are offered; import it as part of one);"
        " a:b/c@1.0.0, d:e/f@1.0.0 (nothing on this host offers them; remove the import or link in a definition);"
        " wasi:cli/stdin@0.3.0 (this host has WASI 0.2; rebuild for it)"
    )


def test_models_need_a_grant_and_outbound_requests_none() -> None:
    with pytest.raises(UnknownImportsError, match=r'models = \["NAME"\]'):
        check(wat.handler(imported("wasi:nn/errors@0.2.0-rc-2024-10-28")))
    check(wat.handler(imported("wasi:http/outgoing-handler@0.2.12")))


@pytest.mark.parametrize("draft", ["0.2.0-draft", "0.2.0-draft2"])
def test_stores_need_a_grant(draft: str) -> None:
    with pytest.raises(UnknownImportsError, match=r'kv = \["default"\]'):
        check(wat.handler(imported(f"wasi:keyvalue/store@{draft}")))
    check(wat.handler(imported(f"wasi:keyvalue/store@{draft}")), GRANTED)


def test_a_function_that_the_interface_lacks_is_refused() -> None:
    later = imported("wasi:cli/environment@0.2.30", '(export "get-weather" (func (result string)))')
    with pytest.raises(UnknownImportsError, match=r"environment@0\.2\.30 get-weather \(wasi:cli@0\.2\.12 has no such"):
        check(wat.handler(later))


@pytest.mark.parametrize(
    ("interface", "export"),
    [
        ("wasi:cli/environment@0.2.0", '(export "initial-cwd" (func (result string)))'),
        ("wasi:cli/environment@0.2.0", '(export "get-arguments" (func (param "x" u8) (result (list string))))'),
        ("wasi:random/random@0.2.0", '(export "get-random-bytes" (func (param "len" u32) (result (list u8))))'),
        ("wasi:random/random@0.2.0", '(export "get-random-bytes" (func (param "len" u64) (result string)))'),
        ("wasi:random/random@0.2.0", '(export "get-random-bytes" (func (param "size" u64) (result (list u8))))'),
        ("wasi:random/insecure-seed@0.2.0", '(export "insecure-seed" (func (result (tuple u64 u64 u64))))'),
        ("wasi:cli/exit@0.2.0", '(export "exit" (func (param "status" (result u8))))'),
        # A resource of its own where the interface uses another's.
        (
            "wasi:cli/stdin@0.2.0",
            '(export "input-stream" (type $r (sub resource))) (export "get-stdin" (func (result (own $r))))',
        ),
    ],
)
def test_a_function_of_another_type_is_refused(interface: str, export: str) -> None:
    with pytest.raises(UnknownImportsError, match=r"it has another type|nothing of that name"):
        check(wat.handler(imported(interface, export)))


def test_types_are_compared_through_aliases_and_names() -> None:
    clock = imported(
        "wasi:clocks/wall-clock@0.2.1",
        '(type $t (record (field "seconds" u64) (field "nanoseconds" u32)))'
        ' (export "datetime" (type $d (eq $t))) (export "now" (func (result $d)))',
    )
    assert "wasi:clocks/wall-clock@0.2.1 now" in check(wat.handler(clock)).imports
    with pytest.raises(UnknownImportsError, match="another type"):
        check(wat.handler(clock.replace("seconds", "minutes")))


def test_what_an_interface_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownImportsError, match=r"poll@0\.2\.0 socket .* has nothing of that name"):
        check(wat.handler(imported("wasi:io/poll@0.2.0", '(export "socket" (type (sub resource)))')))
    with pytest.raises(UnknownImportsError, match=r"poll@0\.2\.0 more .* has nothing of that name"):
        check(wat.handler(imported("wasi:io/poll@0.2.0", '(export "more" (instance))')))


def test_a_program_is_told_that_it_is_one() -> None:
    with pytest.raises(UnknownKindError, match=r"exports wasi:cli/run .* `faas run`"):
        check((FUNCTIONS / "http" / "program.wasm").read_bytes())


@pytest.mark.parametrize(
    ("wasm", "why"),
    [
        (wat.component(), "exports no wasi:http/incoming-handler"),
        (wat.handler(version="0.3.0"), r"another WASI than 0\.2"),
        (wat.handler(version="0.2.0-rc-2023-12-05"), r"another WASI than 0\.2"),
        (wat.component('(instance $i) (export "wasi:http/handler@0.3.0" (instance $i))'), r"another WASI than 0\.2"),
    ],
    ids=["nothing", "later", "preview", "handler"],
)
def test_a_component_without_the_handler_is_told_what_to_export(wasm: bytes, why: str) -> None:
    with pytest.raises(UnknownKindError, match=why):
        check(wasm)


@pytest.mark.parametrize("kind", ["command", "reactor"])
def test_a_component_is_of_no_kind_of_core_modules(kind: str) -> None:
    with pytest.raises(UnknownKindError, match="leave `kind` out"):
        check(wat.handler(), Manifest(name="f", kind=kind))


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (Manifest(name="f", preinit="wizer-initialize"), "preinit .* leave it out"),
        (Manifest(name="f", warm=Warm(max=2)), r"warm\.max is 2, .* leave \[warm\] out"),
    ],
)
def test_settings_of_core_modules_are_refused(manifest: Manifest, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        check(wat.handler(), manifest)


def test_exports_under_the_names_of_this_host_are_refused() -> None:
    with pytest.raises(InvalidModuleError, match=r"'faas:bytes/memory7'.* rename it"):
        check(wat.handler('(instance $i) (export "faas:bytes/memory7" (instance $i))'))


@pytest.mark.parametrize(
    ("core", "limits", "why"),
    [
        ("(memory 4096)", Limits(), r"component's memory starts at 256 MiB, over its limits\.memory_bytes"),
        ("(memory 20000)", Limits(memory_bytes=1 << 31), r"over this host's pool\.max_memory_bytes"),
        ("(table 100001 funcref)", Limits(), r"component's table starts at 100001"),
        ("(table 1 funcref)" * 5, Limits(), "has 5 tables in its core modules, and a slot holds 4"),
    ],
)
def test_sizes_beyond_a_slot_are_refused(core: str, limits: Limits, why: str) -> None:
    with pytest.raises(MemoryTooLargeError, match=why):
        check(wat.handler(core=core), Manifest(name="f", limits=limits))


def test_memories_of_nested_components_count() -> None:
    nested = "(component (component (core module (memory 1))))"
    with pytest.raises(MemoryTooLargeError, match="has 2 memories in its core modules, and a slot holds 1"):
        check(wat.handler(nested, core="(memory 1)"))


def test_a_shared_memory_is_refused() -> None:
    with pytest.raises(InvalidModuleError, match="the component has a shared memory"):
        check(wat.handler(core="(memory 1 2 shared)"))


def test_asynchronous_components_are_told_to_build_for_wasi_0_2() -> None:
    wasm = wat.component() + section(8, leb(1) + b"\x1f\x00")
    with pytest.raises(InvalidModuleError, match=r"WASI 0\.3.* build for WASI 0\.2"):
        check(wasm)


def test_interfaces_are_compatible_within_their_release_only() -> None:
    assert interface_key("wasi:io/streams@0.2.0") == interface_key("wasi:io/streams@0.2.99") == "wasi:io/streams"
    assert interface_key("wasi:io/streams") == "wasi:io/streams@"
    for other in ("wasi:io/streams@0.20.1", "wasi:io/streams@1.2.0", "wasi:io/streams@0.2.0-rc.1"):
        assert interface_key(other) == other


@pytest.mark.parametrize(("interface", "function"), sorted(TAKEN))
def test_the_bytes_that_may_be_passed_by_address_are_last_in_the_wit(interface: str, function: str) -> None:
    assert interfaces()[interface].functions[function].params[-1][1] == ("list", "u8")


@pytest.mark.parametrize(("interface", "function"), sorted(RETURNED))
def test_the_bytes_that_may_be_returned_as_text_are_all_of_a_result_in_the_wit(interface: str, function: str) -> None:
    result = interfaces()[interface].functions[function].result
    assert result is not None
    assert (result[0], result[1]) == ("result", ("list", "u8"))


def test_modules_and_components_are_told_apart_by_their_layer() -> None:
    assert is_component(wat.component())
    assert not is_component(HEADER)
    assert not is_component(b"\0asm")


@pytest.mark.parametrize("cut", range(0, len(wat.COPY), 97))
def test_a_component_that_is_cut_off_is_refused(cut: int) -> None:
    wasm = wat.COPY[:cut]
    if is_component(wasm):
        with pytest.raises(DeployError):
            check(wasm)


HOSTILE = [
    pytest.param(section(7, leb(1) + b"\x42" * 3000), id="nested-types"),
    pytest.param(section(7, leb(1_000_000) + b"\x7f"), id="many-types"),
    pytest.param(section(7, leb(1) + b"\x42\x01\x02\x03\x02\xff\xff\xff\xff\x0f\x00"), id="outer-alias-far-out"),
    pytest.param(section(7, leb(1) + b"\x70\x05"), id="type-that-is-not-there"),
    pytest.param(section(7, leb(1) + b"\x6a\x01"), id="cut-type"),
    pytest.param(section(8, leb(1) + b"\x01\x00\x09\x00"), id="lowered-function-that-is-not-there"),
    pytest.param(section(2, leb(1) + b"\x00\x09\x00"), id="module-that-is-not-there"),
    pytest.param(section(6, leb(1) + b"\x03\x00\x09" + name("x")), id="alias-of-no-instance"),
    pytest.param(section(10, leb(1) + b"\x00" + name("a:b/c") + b"\x05\x09"), id="instance-of-no-type"),
    pytest.param(section(10, leb(1) + b"\x02" + name("a:b/c") + b"\x05\x09"), id="name-with-attributes"),
    pytest.param(section(11, leb(1) + b"\x00" + name("x") + b"\x03\x09\x00"), id="export-of-no-type"),
    pytest.param(section(1, b"\0asm\x01\0\0\0\x05\x01\xff"), id="broken-module"),
    pytest.param(section(1, b"\0asm\x0d\0\x01\0"), id="component-for-a-module"),
    pytest.param(section(4, b"\0asm\x01\0\0\0"), id="module-for-a-component"),
    pytest.param(b"\x07\xff\xff\xff\xff\x0f", id="section-beyond-the-end"),
]


@pytest.mark.parametrize("part", HOSTILE)
def test_what_is_no_component_is_one_error(part: bytes) -> None:
    with pytest.raises(DeployError):
        check(wat.component() + part)


@given(st.data())
def test_a_changed_component_is_read_or_refused(data: st.DataObject) -> None:
    wasm = bytearray(wat.COPY)
    for _ in range(data.draw(st.integers(1, 4))):
        wasm[data.draw(st.integers(0, len(wasm) - 1))] = data.draw(st.integers(0, 255))
    try:
        component = read_component(bytes(wasm))
        validate_component(bytes(wasm), FUNCTION, PROFILE)
    except DeployError:
        return
    read_component(pass_bytes_whole(bytes(wasm), component))
