"""Validation: what is refused, with every name and what to do about it; what a module is, when it is not."""

from __future__ import annotations

import pytest
from wasm_bytes import FUNCTIONS
from wasmtime import wat2wasm

from faas.errors import (
    InvalidModuleError,
    ManifestError,
    MemoryTooLargeError,
    PreinitError,
    UnknownImportsError,
    UnknownKindError,
)
from faas.invocation import Kind
from faas.manifest import Capabilities, Limits, Manifest, Warm, manifest_from_toml
from faas.wasi.signatures import SIGNATURES
from faas.wasm.engine import EngineProfile
from precompile.component import is_component
from precompile.interfaces import validate_component
from precompile.validate import ModuleFacts, validate

MIB = 1024 * 1024
MEMORY = '(memory (export "memory") 1)'
START = '(func (export "_start"))'
REACTOR = (
    '(func (export "faas_alloc") (param i32) (result i32) i32.const 0)'
    '(func (export "faas_handle") (param i32 i32) (result i64) i64.const 0)'
)
_WORDS = {"i": "i32", "I": "i64"}


def check(wat: str, manifest: Manifest | None = None, profile: EngineProfile | None = None) -> ModuleFacts:
    return validate(bytes(wat2wasm(f"(module {wat})")), manifest or Manifest(name="f"), profile or EngineProfile())


def test_an_exported_start_makes_a_command() -> None:
    facts = check(MEMORY + START)

    assert facts.kind is Kind.COMMAND
    assert facts.exports == ("memory", "_start")
    assert facts.memory_min_bytes == 65536
    assert not facts.preinit


def test_alloc_and_handle_make_a_reactor() -> None:
    facts = check(MEMORY + REACTOR + '(func (export "_initialize"))')

    assert facts.kind is Kind.REACTOR
    assert facts.has_initialize


def test_a_module_of_both_kinds_must_choose_in_the_manifest() -> None:
    with pytest.raises(UnknownKindError, match=r'kind = "command" or kind = "reactor"'):
        check(MEMORY + START + REACTOR)


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.REACTOR])
def test_the_manifest_decides_between_two_kinds(kind: Kind) -> None:
    assert check(MEMORY + START + REACTOR, Manifest(name="f", kind=kind.value)).kind is kind


def test_a_module_of_no_kind_is_told_what_to_export() -> None:
    with pytest.raises(UnknownKindError, match=r"export `_start` .* `faas_alloc` and `faas_handle`"):
        check(MEMORY)


def test_a_reactor_with_a_wrong_signature_is_told_the_right_one() -> None:
    with pytest.raises(UnknownKindError, match=r"faas_handle \(i32, i32\) -> i64"):
        check(
            MEMORY + '(func (export "faas_alloc") (param i32) (result i32) i32.const 0) (func (export "faas_handle"))',
            Manifest(name="f", kind="reactor"),
        )


def test_a_reactor_without_exported_memory_is_told_so() -> None:
    with pytest.raises(UnknownKindError, match="lacks memory"):
        check("(memory 1)" + REACTOR, Manifest(name="f", kind="reactor"))


def test_a_start_with_parameters_is_no_command() -> None:
    with pytest.raises(UnknownKindError, match=r"_start \(\) -> \(\)"):
        check('(func (export "_start") (param i32))')


def test_wasi_imports_need_an_exported_memory() -> None:
    with pytest.raises(UnknownKindError, match="export it as `memory`"):
        check('(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))' + START)


def test_the_kind_http_is_for_components() -> None:
    with pytest.raises(UnknownKindError, match=r"for components.* `wasm-tools component new`"):
        check(MEMORY + START, Manifest(name="f", kind="http"))


def test_every_wasi_preview_1_function_may_be_imported() -> None:
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func (param {" ".join(_WORDS[p] for p in params)})'
        f" (result {' '.join(_WORDS[r] for r in results)})))"
        for name, (params, results) in SIGNATURES.items()
    )
    assert len(check(imports + MEMORY + START).imports) == len(SIGNATURES)


def test_a_wasi_import_of_the_wrong_type_is_refused_by_name_with_the_right_type() -> None:
    with pytest.raises(UnknownImportsError, match=r"fd_write \(i32\) -> i32 .* \(i32, i32, i32, i32\) -> i32"):
        check('(import "wasi_snapshot_preview1" "fd_write" (func (param i32) (result i32)))' + MEMORY + START)


def test_every_unknown_import_is_named_with_what_would_help() -> None:
    with pytest.raises(UnknownImportsError) as caught:
        check(
            """
            (import "env" "malloc" (func)) (import "env" "free" (func)) (import "env" "memory" (memory 1))
            (import "wasi_ephemeral_nn" "load" (func))
            (import "wasi_unstable" "fd_write" (func))
            (import "wasi_snapshot_preview1" "fd_teleport" (func))
            (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
            (import "acme" "rocket" (func))
            """
            + START
        )
    message = caught.value.message
    for name in (
        *("env.malloc", "env.free", "env.memory (memory)", "wasi_ephemeral_nn.load", "wasi_unstable.fd_write"),
        *("wasi_snapshot_preview1.fd_teleport", "acme.rocket"),
    ):
        assert name in message
    for hint in ("link in", 'models = ["NAME"]', "old WASI snapshot", "nothing on this host offers"):
        assert hint in message
    assert "proc_exit" not in message
    assert "\n" not in message
    assert len(caught.value.facts["imports"]) == 7


def test_names_from_a_module_can_not_break_out_of_the_line() -> None:
    with pytest.raises(UnknownImportsError) as caught:
        check(r'(import "env" "a\0a\1b[31mred" (func))' + START)
    assert r"env.a\n\x1b[31mred" in caught.value.message
    assert caught.value.message.isprintable()


def test_a_million_unknown_imports_make_a_message_of_bounded_length() -> None:
    with pytest.raises(UnknownImportsError, match="; and 2000 more") as caught:
        check("".join(f'(import "env" "f{n}" (func))' for n in range(3000)) + START)
    assert len(caught.value.facts["imports"]) == 1000


def test_a_memory_over_the_manifest_limit_names_that_limit() -> None:
    with pytest.raises(MemoryTooLargeError, match=r"limits\.memory_bytes \(1 MiB\)") as caught:
        check('(memory (export "memory") 17)' + START, Manifest(name="f", limits=Limits(memory_bytes=MIB)))
    assert caught.value.facts["limit"] == "limits.memory_bytes"


def test_a_memory_over_the_pool_slot_names_that_setting() -> None:
    with pytest.raises(MemoryTooLargeError, match=r"pool\.max_memory_bytes \(1 MiB\)"):
        check('(memory (export "memory") 17)' + START, profile=EngineProfile(max_memory_bytes=MIB))


def test_a_memory_of_exactly_the_limit_is_let_in() -> None:
    facts = check('(memory (export "memory") 16)' + START, Manifest(name="f", limits=Limits(memory_bytes=MIB)))
    assert facts.memory_min_bytes == MIB


def test_a_table_over_the_pool_slot_names_that_setting() -> None:
    with pytest.raises(MemoryTooLargeError, match=r"pool\.max_table_elements \(100\)"):
        check("(table 101 funcref)" + START, profile=EngineProfile(max_table_elements=100))


@pytest.mark.parametrize(
    ("wat", "why"),
    [("(memory i64 1)", "64-bit"), ("(memory 1 2 shared)", "shared"), ("(memory 1) (memory 1)", "2 memories")],
)
def test_memories_this_host_does_not_run_are_refused(wat: str, why: str) -> None:
    with pytest.raises(InvalidModuleError, match=why):
        check(wat + START)


def test_a_wizer_export_is_found_without_being_named() -> None:
    assert check(START + '(func (export "wizer-initialize"))').preinit == "wizer-initialize"


def test_the_manifest_names_another_snapshot_export() -> None:
    assert check(START + '(func (export "warm"))', Manifest(name="f", preinit="warm")).preinit == "warm"


@pytest.mark.parametrize(("wat", "why"), [("", "is not exported"), ('(func (export "warm") (param i32))', "is .i32")])
def test_a_snapshot_export_that_can_not_be_called_is_refused(wat: str, why: str) -> None:
    with pytest.raises(PreinitError, match=why):
        check(START + wat, Manifest(name="f", preinit="warm"))


@pytest.mark.parametrize(
    "path",
    sorted(path for path in FUNCTIONS.glob("[!b]*/*.wasm") if (path.parent / "function.toml").exists()),
    ids=lambda path: path.stem,
)
def test_every_sample_function_is_of_a_kind(path) -> None:
    manifest = manifest_from_toml((path.parent / "function.toml").read_text())
    wasm = path.read_bytes()
    (validate_component if is_component(wasm) else validate)(wasm, manifest, EngineProfile())


def test_the_imports_of_models_need_a_grant_and_the_right_signature() -> None:
    wat = '(import "wasi_ephemeral_nn" "compute" (func (param %s) (result i32))) (memory (export "memory") 1)' + START
    check(wat % "i32", Manifest(name="f", capabilities=Capabilities(models=("m",))))
    with pytest.raises(UnknownImportsError, match=r"models = "):
        check(wat % "i32")
    with pytest.raises(UnknownImportsError, match=r"signature"):
        check(wat % "i64", Manifest(name="f", capabilities=Capabilities(models=("m",))))


@pytest.mark.parametrize(
    ("name", "signature", "grant", "said"),
    [
        ("kv_open", "i32 i32 i32", Capabilities(kv=("default",)), r'kv = \["default"\]'),
        ("secret_get", "i32 i32 i32", Capabilities(secrets=("A",)), r'secrets = \["NAME"\]'),
        ("http_begin", "i32 i32 i32", Capabilities(outbound=("a.test",)), r'outbound = \["api.example.org"\]'),
        ("call_begin", "i32 i32 i32", Capabilities(calls=("g",)), r'calls = \["FUNCTION"\]'),
        ("job_enqueue", "i32 i32 i32", Capabilities(calls=("g",)), r'calls = \["FUNCTION"\]'),
    ],
)
def test_an_import_of_faas_v1_needs_its_capability(name: str, signature: str, grant: Capabilities, said: str) -> None:
    wat = f'(import "faas_v1" "{name}" (func (param {signature}) (result i32)))' + MEMORY + START
    check(wat, Manifest(name="f", capabilities=grant))
    with pytest.raises(UnknownImportsError, match=rf"faas_v1\.{name} \(grant it with `{said}`"):
        check(wat)
    with pytest.raises(UnknownImportsError, match="signature is wrong"):
        check(wat.replace("(result i32)", ""), Manifest(name="f", capabilities=grant))


def test_config_needs_no_capability_and_an_unknown_name_of_faas_v1_is_refused() -> None:
    config = '(import "faas_v1" "config_get" (func (param i32 i32 i32) (result i32)))'
    check(config + MEMORY + START)
    with pytest.raises(UnknownImportsError, match=r"faas_v1\.kv_teleport .*docs/abi.md"):
        check(config.replace("config_get", "kv_teleport") + MEMORY + START)


@pytest.mark.parametrize(
    ("wat", "found"),
    [
        ('(func (export "_initialize") (param i32))', r"\(i32\) -> \(\)"),
        ('(func (export "_initialize") (result i32) i32.const 0)', r"\(\) -> i32"),
        ('(global (export "_initialize") i32 (i32.const 0))', "a global"),
    ],
)
def test_an_initialize_that_can_not_be_called_is_refused_with_the_type_it_needs(wat: str, found: str) -> None:
    with pytest.raises(UnknownKindError, match=rf"_initialize as {found}, .* \(\) -> \(\)"):
        check(MEMORY + REACTOR + wat)


@pytest.mark.parametrize("name", ["faas:grow-failed", "faas:grow-failed2"])
def test_an_export_that_could_forge_what_the_host_adds_is_refused(name: str) -> None:
    with pytest.raises(InvalidModuleError, match=r"faas:grow-failed.* rename it"):
        check(MEMORY + START + f'(global (export "{name}") (mut i32) (i32.const 1))')


@pytest.mark.parametrize("wat", ['(func (export "memory"))', '(table (export "memory") 1 funcref)'])
def test_an_export_called_memory_that_is_none_is_refused(wat: str) -> None:
    with pytest.raises(UnknownKindError, match="as `memory`"):
        check(wat + START)


def test_a_command_can_not_be_reused_and_a_reactor_can() -> None:
    manifest = Manifest(name="f", warm=Warm(max=1, reuse=2))

    assert check(MEMORY + REACTOR, manifest).kind is Kind.REACTOR
    with pytest.raises(ManifestError, match=r"leave warm\.reuse out, or build a reactor"):
        check(MEMORY + START, manifest)
