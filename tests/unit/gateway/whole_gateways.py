"""A whole gateway with one function at ``/f`` behind a connection of ``wires``: no processes, no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from wires import Served

from faas.clock import SystemClock
from faas.gateway.admission import Admission
from faas.gateway.app import Gateway
from faas.gateway.code import Code, code_key
from faas.gateway.invoke_keys import InvokeKeyRing
from faas.gateway.journal import Journal
from faas.gateway.lane import Answer, Lane
from faas.gateway.live import LiveTable
from faas.gateway.metering import Meter
from faas.gateway.models import ModelGate
from faas.gateway.outbound import Outbound
from faas.gateway.services import ServiceGate
from faas.gateway.warm import WarmPools
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.wasm.runtime import Runtime
from faas.wasm.template import Template


class _Codes:
    """The one function's code, always loaded."""

    on_drop: Any = None

    def __init__(self, code: Code) -> None:
        self._code = code

    def try_acquire(self, _key: object) -> Code:
        return self._code

    def release(self, _code: Code) -> None: ...

    def keep_only(self, _keys: object) -> None: ...


class _Gateway(Served):
    async def _serve(self, lane: Lane) -> Answer:
        self.inside.append(lane.inside)
        return await self._handler(lane)  # type: ignore[return-value]


@asynccontextmanager
async def whole_gateway(
    runtime: Runtime,
    template: Template,
    kind: Kind,
    *,
    permits: int = 8,
    manifest: dict[str, Any] | None = None,
    services: ServiceGate | None = None,
    outbound: Outbound | None = None,
    journal: Journal | None = None,
    invoke_keys: InvokeKeyRing | None = None,
    **limits: float,
) -> AsyncIterator[Served]:
    """A connection to a gateway whose function is *template*; in the end no permit may be missing."""
    manifest = manifest_from_builtins({"name": "f", "routes": ["/f"], "limits": limits, **(manifest or {})})
    deployment = Deployment("f", 1, kind, "0" * 64, "0" * 64, "", manifest)
    codes: Any = _Codes(Code(code_key(deployment), template, None, 1))
    clock = SystemClock()
    admission = Admission(permits, max_queue=permits, queue_timeout_s=1)
    warm = WarmPools(
        runtime,
        codes,
        admission,
        clock,
        n_workers=1,
        at_once=1,
        budget_bytes=1 << 28,
        prepare_timeout_s=1,
        on_line=lambda *_: None,
    )
    table = LiveTable(runtime, codes, admission, warm, n_workers=1, start_timeout_s=1)
    table.replace(1, (deployment,))
    outbound = Outbound() if outbound is None else outbound
    whole = Gateway(
        runtime,
        table,
        admission,
        journal=Journal(dict) if journal is None else journal,
        models=ModelGate(None, Meter(clock), clock),
        openai=None,  # type: ignore[arg-type] - no test asks it
        clock=clock,
        server_port=80,
        warm=warm,
        invoke_keys=invoke_keys,
        outbound=outbound,
        services=services,
    )
    one = _Gateway(whole.serve)  # type: ignore[arg-type]
    await one.open()
    try:
        yield one
        assert admission.active == 0
    finally:
        task = one.connection._task_handler
        one.lose()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        warm.close()
        runtime._delete_retired()
        await outbound.aclose()
