"""A whole gateway with several functions that may call each other: no processes, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import wasmtime
import wasmtime.component
from wires import Served

from faas.clock import SystemClock
from faas.config import HostConfig
from faas.gateway.admission import Admission
from faas.gateway.app import Gateway
from faas.gateway.code import Code, CodeKey, code_key
from faas.gateway.journal import Journal
from faas.gateway.lane import Answer, Lane
from faas.gateway.live import LiveTable
from faas.gateway.metering import Meter
from faas.gateway.models import ModelGate
from faas.gateway.outbound import Outbound
from faas.gateway.warm import WarmPools
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.wasm.components import ComponentTemplate
from faas.wasm.engine import EngineProfile, new_engine
from faas.wasm.runtime import Runtime
from faas.wasm.template import Template

FUNCTIONS = Path(__file__).resolve().parents[3] / "functions"
Templates = Callable[[str, Kind], Template | ComponentTemplate]


class Function(NamedTuple):
    """One deployed function: what it runs, and what its manifest says besides."""

    template: Template | ComponentTemplate
    kind: Kind
    manifest: Mapping[str, Any] = {}
    version: int = 1


class Host:
    """Its parts; ``one`` is a connection to it."""

    def __init__(self, gateway: Gateway, table: LiveTable, admission: Admission, journal: Journal, one: Served) -> None:
        self.gateway = gateway
        self.internal = gateway.internal
        self.table = table
        self.admission = admission
        self.one = one
        self._journal = journal
        self._entries: list[dict[str, Any]] = []

    def entries(self, function: str) -> list[dict[str, Any]]:
        """What is in a function's log."""
        lines = self._journal.take_lines()
        if lines is not None:
            for batch in lines.by_function.values():
                self._entries += [json.loads(line) for line in batch.splitlines()]
        return [entry for entry in self._entries if entry["function"] == function]

    def finished(self, function: str) -> list[dict[str, Any]]:
        """The events that ended its invocations."""
        return [entry for entry in self.entries(function) if entry.get("event") == "invocation.finished"]

    def counters(self, function: str) -> dict[str, float]:
        return self._journal.stats().functions[function]


class _Codes:
    """The code of all functions, always loaded."""

    on_drop: Any = None

    def __init__(self) -> None:
        self.by_key: dict[CodeKey, Code] = {}

    def try_acquire(self, key: CodeKey) -> Code:
        return self.by_key[key]

    def release(self, _code: Code) -> None: ...

    def keep_only(self, _keys: object) -> None: ...


class _Connection(Served):
    async def _serve(self, lane: Lane) -> Answer:
        self.inside.append(lane.inside)
        return await self._handler(lane)  # type: ignore[return-value]


@asynccontextmanager
async def host_of(
    runtime: Runtime, functions: Mapping[str, Function], *, config: HostConfig | None = None, permits: int = 8
) -> AsyncIterator[Host]:
    """A gateway that serves *functions*, by name; in the end no permit may be missing."""
    config = config or HostConfig(workers=1)
    codes = _Codes()
    deployments = []
    for index, (name, function) in enumerate(functions.items()):
        manifest = manifest_from_builtins({"name": name, **function.manifest})
        deployment = Deployment(name, function.version, function.kind, "0" * 64, f"{index:064x}", "", manifest)
        codes.by_key[code_key(deployment)] = Code(code_key(deployment), function.template, None, 1)  # type: ignore[arg-type]
        deployments.append(deployment)
    clock = SystemClock()
    admission = Admission(permits, max_queue=permits, queue_timeout_s=1)
    any_codes: Any = codes
    warm = WarmPools(
        runtime,
        any_codes,
        admission,
        clock,
        n_workers=1,
        at_once=1,
        budget_bytes=1 << 28,
        prepare_timeout_s=1,
        on_line=lambda *_: None,
    )
    table = LiveTable(runtime, any_codes, admission, warm, n_workers=1, start_timeout_s=1)
    table.replace(1, tuple(deployments))
    outbound = Outbound()
    journal = Journal(dict)
    gateway = Gateway(
        runtime,
        table,
        admission,
        journal=journal,
        models=ModelGate(None, Meter(clock), clock),
        openai=None,  # type: ignore[arg-type] - no test asks it
        clock=clock,
        server_port=80,
        warm=warm,
        outbound=outbound,
        config=config,
    )
    one = _Connection(gateway.serve, head_timeout_s=60)  # type: ignore[arg-type]
    await one.open()
    try:
        yield Host(gateway, table, admission, journal, one)
        await gateway.internal.aclose()
        assert admission.active == 0
        assert [level.admission.active for level in gateway.internal._levels] == [0] * (config.max_call_depth + 1)
    finally:
        await gateway.internal.aclose()
        task = one.connection._task_handler
        one.lose()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        runtime._delete_retired()
        await outbound.aclose()


@contextmanager
def loader(runtime: Runtime, config: HostConfig) -> Iterator[Templates]:
    """Make templates of files under ``functions/`` (``bad/cgi``), or of WAT; each is made once."""
    engine = new_engine(EngineProfile.from_config(config), pooling=False)
    made: dict[str, Template | ComponentTemplate] = {}

    def load(source: str, kind: Kind) -> Template | ComponentTemplate:
        if source in made:
            return made[source]
        wasm = bytes(wasmtime.wat2wasm(source)) if source.startswith("(") else _file(source).read_bytes()
        if kind is Kind.HTTP:
            component = wasmtime.component.Component(engine, wasm)
            made[source] = runtime.load_component(bytes(component.serialize()))
        else:
            made[source] = runtime.load(bytes(wasmtime.Module(engine, wasm).serialize()))
        return made[source]

    yield load
    for template in made.values():
        template.close()


def _file(name: str) -> Path:
    return FUNCTIONS / f"{name}.wasm"
