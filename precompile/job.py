"""One precompile job, inside its own limited process: validate, preinit, compile; the parent stores what comes out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from wasmtime import Engine, Module, WasmtimeError
from wasmtime.component import Component, ComponentInstanceType, FuncType, OwnType, ResourceType

from faas.artifacts.store import disk_watched, native_key
from faas.errors import CompileFailedError, FaasError, InternalError, InvalidModuleError, UnknownKindError
from faas.manifest import Manifest
from faas.problems import to_problem
from faas.wasm.engine import EngineProfile, fingerprint, new_engine
from precompile.binary import shown
from precompile.bytelists import pass_bytes_whole
from precompile.component import interface_key, is_component
from precompile.growth import watch_growth
from precompile.interfaces import HANDLER, validate_component
from precompile.limits import limit_process, memory_limit_error
from precompile.preinit import preinit
from precompile.validate import ModuleFacts, validate


class Job(msgspec.Struct, frozen=True):
    """
    What the parent asks for; all paths are absolute.

    ``known_keys`` are keys of native code that is already stored and proved: a module that would get one of them is
    validated and not compiled.
    """

    wasm_path: str
    wasm_digest: str
    output_path: str
    scratch: str
    manifest: Manifest
    profile: EngineProfile
    cpu_s: int
    memory_bytes: int
    timeout_s: float
    known_keys: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """What the job found and made; ``reused``: the key was known and no code was written."""

    facts: ModuleFacts
    artifact_key: str
    reused: bool
    stage_ms: dict[str, float]


class Stage(msgspec.Struct, frozen=True, tag_field="type", tag="stage"):
    """A line of the job's output: this stage begins."""

    name: str


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """The last line of a job that succeeded."""

    report: Report


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="failed"):
    """The last line of a job that refused its module: a problem document."""

    problem: dict[str, object]


Line = Stage | Done | Failed


def main() -> int:
    """Read a job from stdin, do it, and write its lines to stdout; returns the exit status (0 also for a refusal)."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    limit_process(cpu_s=job.cpu_s, memory_bytes=job.memory_bytes)
    try:
        with disk_watched():
            line: Line = Done(run_job(job, lambda stage: _write(Stage(stage))))
    except FaasError as exc:
        line = Failed(to_problem(exc))
    except MemoryError:
        line = Failed(to_problem(memory_limit_error(job.memory_bytes)))
    _write(line)
    return 0


def run_job(job: Job, on_stage: Callable[[str], None]) -> Report:
    """
    Return what became of the module; native code is at ``job.output_path`` unless it was reused.

    Raises: DeployError of the fitting kind; what it wrote to ``job.scratch`` is for the caller to remove.
    """
    clock = _StageClock(on_stage)
    clock.begin("validate")
    wasm = Path(job.wasm_path).read_bytes()
    if is_component(wasm):
        return _run_component_job(job, wasm, clock)
    facts = validate(wasm, job.manifest, job.profile)
    key = native_key(job.wasm_digest, facts.preinit, fingerprint(job.profile))
    if key in job.known_keys:
        return Report(facts, key, reused=True, stage_ms=clock.end())
    # Before anything else reads the bodies: a broken module is reported as such, not as what failed over it.
    engine = new_engine(job.profile, pooling=False)
    _validate_bodies(engine, wasm)
    if facts.preinit:
        clock.begin("preinit")
        wasm = preinit(
            Path(job.wasm_path),
            facts.preinit,
            Path(job.scratch),
            memory_bytes=min(job.manifest.limits.memory_bytes, job.profile.max_memory_bytes),
            timeout_s=job.timeout_s,
            cpu_s=job.cpu_s,
            process_memory_bytes=job.memory_bytes,
        )
        # The snapshot's memory is as large as the initialisation left it.
        snapshot = msgspec.structs.replace(job.manifest, preinit="", kind=facts.kind.value)
        after = validate(wasm, snapshot, job.profile)
        facts = msgspec.structs.replace(
            facts,
            memory_min_bytes=after.memory_min_bytes,
            has_initialize=after.has_initialize,
            has_start=after.has_start,
        )
    clock.begin("compile")
    native = _compile(engine, watch_growth(wasm))
    output = Path(job.output_path)
    output.write_bytes(native)
    _try_load(output, job.profile)
    return Report(facts, key, reused=False, stage_ms=clock.end())


def _run_component_job(job: Job, wasm: bytes, clock: _StageClock) -> Report:
    facts, component = validate_component(wasm, job.manifest, job.profile)
    key = native_key(job.wasm_digest, facts.preinit, fingerprint(job.profile))
    if key in job.known_keys:
        return Report(facts, key, reused=True, stage_ms=clock.end())
    clock.begin("compile")
    engine = new_engine(job.profile, pooling=False)
    whole = pass_bytes_whole(wasm, component)
    try:
        compiled = _compile_component(engine, whole)
    except FaasError:
        if whole is wasm:
            raise
        # Parts that hand the changed functions on to each other don't fit any more: slower, and the same otherwise.
        compiled = _compile_component(engine, wasm)
    _check_handler(engine, compiled)
    output = Path(job.output_path)
    output.write_bytes(compiled.serialize())
    _try_load(output, job.profile, Component)
    return Report(facts, key, reused=False, stage_ms=clock.end())


def _compile_component(engine: Engine, wasm: bytes) -> Component:
    """Return the component *wasm*, compiled; the engine validates all of it."""
    try:
        return Component(engine, wasm)
    except WasmtimeError as exc:
        reason = _one_line(exc)
        if "at offset" in reason:
            raise InvalidModuleError(
                f"the component is not valid: {reason}; rebuild it without proposals that are off on this host"
            ) from exc
        raise CompileFailedError(
            f"the compiler refused the component: {reason}; build it with an optimising release profile or split its"
            " largest function"
        ) from exc


def _check_handler(engine: Engine, component: Component) -> None:
    """Refuse a handler that can't be called with a request and a place for the response, as ``wasi:http`` has them."""
    type_ = component.type
    resources = [
        part
        for name, item in type_.imports(engine).items()
        if interface_key(name) == "wasi:http/types" and isinstance(instance := item.ty, ComponentInstanceType)
        for part in instance.exports(engine).items()
    ]
    wanted = [
        [OwnType(found) for name, item in resources if name == resource and isinstance(found := item.ty, ResourceType)]
        for resource in ("incoming-request", "response-outparam")
    ]
    for name, item in type_.exports(engine).items():
        instance = item.ty
        if interface_key(name) != HANDLER or not isinstance(instance, ComponentInstanceType):
            continue
        handle = instance.exports(engine).get("handle")
        func = handle.ty if handle is not None else None
        if isinstance(func, FuncType) and func.result is None:
            params = [type_ for _, type_ in func.params]
            if len(params) == 2 and all(param in fits for param, fits in zip(params, wanted, strict=True)):
                return
    raise UnknownKindError(
        f"the component's {HANDLER} has no function `handle` that takes the incoming-request and the response-outparam"
        " of wasi:http/types; rebuild it for the world wasi:http/proxy"
    )


def _compile(engine: Engine, wasm: bytes) -> bytes:
    """Return the native code of *wasm*, for a pooling engine of the same profile."""
    try:
        return bytes(Module(engine, wasm).serialize())
    except WasmtimeError as exc:
        raise CompileFailedError(
            f"the compiler refused the module: {_one_line(exc)}; build it with an optimising release profile"
            " or split its largest function"
        ) from exc


def _validate_bodies(engine: Engine, wasm: bytes) -> None:
    try:
        Module.validate(engine, wasm)
    except WasmtimeError as exc:
        raise InvalidModuleError(
            f"the module is not valid: {_one_line(exc)}; rebuild it without proposals that are off on this host"
        ) from exc


def _try_load(native: Path, profile: EngineProfile, what: type[Module | Component] = Module) -> None:
    """Load the code once as a worker will, in a pool of one slot: what does not fit a slot must fail here."""
    engine = new_engine(msgspec.structs.replace(profile, slots=1), pooling=True)
    try:
        what.deserialize_file(engine, str(native))
    except WasmtimeError as exc:
        raise CompileFailedError(
            f"the compiled module does not fit this host's pool: {_one_line(exc)}; build it with fewer globals, tables"
            " or functions, or ask the operator to raise the pool settings"
        ) from exc


def _one_line(exc: WasmtimeError) -> str:
    """Return wasmtime's message without its outline form."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return shown(": ".join(line.rstrip(":") for line in lines if line and line != "Caused by:"), limit=500)


class _StageClock:
    """Announces stages and remembers how long each took, in ms."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self._on_stage = on_stage
        self._stage = ""
        self._since = 0.0
        self._ms: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        self.end()
        self._on_stage(stage)
        self._stage, self._since = stage, time.perf_counter()

    def end(self) -> dict[str, float]:
        if self._stage:
            self._ms[self._stage] = round((time.perf_counter() - self._since) * 1000, 3)
        return self._ms


def _write(line: Line) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError as exc:
        raise InternalError("the parent of this job went away") from exc
