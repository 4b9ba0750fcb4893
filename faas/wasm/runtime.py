"""The runtime of one serving process: engine, linker with every host function, epoch ticker, threads for guests."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from faas.config import HostConfig
from faas.errors import ArtifactTamperedError, UnknownImportsError
from faas.wasi.context import WasiContext
from faas.wasm import calls, capi, components, values
from faas.wasm.components import ComponentFiber, ComponentLinker, ComponentTemplate
from faas.wasm.engine import EngineProfile, engine_pointer, new_engine
from faas.wasm.fiber import Fiber, async_trampoline, first_line
from faas.wasm.host import HostFunction, faas, p2, wasi, wasi_nn
from faas.wasm.template import Template
from faas.wasm.turns import Turns

MAX_RETIRED = 2
"""Stores that may wait for the end of a turn of the loop; the more there are, the later the last reply goes out."""


class Runtime:
    """
    One process's wasmtime: makes templates from stored native code, and fibers from templates.

    Lives as long as its process serves; ``close`` after the last fiber is closed.
    """

    def __init__(
        self,
        config: HostConfig,
        imports: Mapping[str, Mapping[str, HostFunction]] | None = None,
        into: ModuleType | None = None,
    ) -> None:
        """
        Args: *imports* maps import modules to their functions; by default everything this host offers. *into* has the
        calls into the engine, by default ``calls.chosen``.
        """
        self._calls = calls.chosen() if into is None else into
        self._profile = EngineProfile.from_config(config)
        self._engine_owner: Any = new_engine(self._profile, pooling=True)
        self.engine = engine_pointer(self._engine_owner)
        self._keep: list[Any] = []
        self._linker: int = capi.linker_new(self.engine)
        self._table_limit = config.pool.max_table_elements
        self.alive = 0
        self._slots = config.pool.slots
        self._retired: list[Callable[[], None]] = []
        self._turns = Turns(config.n_guest_threads)
        self._ticker = self._calls.Ticker(self.engine, config.tick_ms / 1000)
        self._values = values.chosen()
        self._component_linker: ComponentLinker | None = None  # made when a component is loaded
        self._linking = threading.Lock()
        for module, functions in (imports if imports is not None else HOST_IMPORTS).items():
            for name, function in functions.items():
                self._define(module.encode(), name.encode(), function)

    def _define(self, module: bytes, name: bytes, function: HostFunction) -> None:
        type_ = capi.functype(function.params, function.results)
        define: Any
        callback: Any
        env: int | None = None
        if function.may_suspend:
            callback, keep = async_trampoline(function.call, function.params, self._calls.current)
            define = capi.linker_define_async_func
        else:
            callback, env, keep = self._calls.host_callback(function.call, function.params)
            define = capi.linker_define_func_unchecked
        self._keep.append((callback, keep))
        error = define(self._linker, module, len(module), name, len(name), type_, callback, env, None)
        capi.functype_delete(type_)
        if error:
            raise AssertionError(capi.take_error(error))  # two host functions of one name: a bug of ours

    def load(self, native: bytes | Path) -> Template:
        """
        Load and link native code whose integrity the caller has checked (``ArtifactStore.sealed_native``).

        Bytes are copied. A file is mapped and must never change while the template lives.
        Thread: any.
        Raises: ArtifactTamperedError if the engine refuses the code, UnknownImportsError.
        """
        module = ctypes.c_void_p()
        if isinstance(native, bytes):
            error = capi.module_deserialize(self.engine, native, len(native), module)
        else:
            error = capi.module_deserialize_file(self.engine, os.fsencode(native), module)
        if error:
            raise ArtifactTamperedError(
                f"the engine refused the stored artifact: {first_line(capi.take_error(error))}; "
                "it will be compiled again"
            )
        pre = ctypes.c_void_p()
        error = capi.linker_instantiate_pre(self._linker, module.value, pre)
        if error:
            capi.module_delete(module.value)
            raise UnknownImportsError(f"the module can't be linked: {first_line(capi.take_error(error))}")
        return Template(pre.value or 0, module.value or 0)

    def fiber(
        self,
        wasi_context: WasiContext,
        *,
        memory_limit_bytes: int,
        cpu_limit_s: float,
        on_pause: Any = None,
    ) -> Fiber:
        """Return a new fiber with an empty store; the caller closes it."""
        self.alive += 1
        return Fiber(
            self.engine,
            self._calls,
            self._turns,
            self._ticker.wake,
            wasi_context,
            memory_limit_bytes=memory_limit_bytes,
            table_limit_elements=self._table_limit,
            cpu_limit_s=cpu_limit_s,
            on_pause=on_pause,
            on_closed=self._fiber_closed,
            retire=self._retire,
        )

    def load_component(self, native: bytes | Path) -> ComponentTemplate:
        """
        Load native code of a component, as ``load`` does that of a module.

        Thread: any.
        Raises: ArtifactTamperedError.
        """
        with self._linking:
            if self._component_linker is None:
                self._component_linker = ComponentLinker(self.engine, p2.FUNCTIONS, self._values)
        return components.load(self.engine, native, self._component_linker)

    def component_fiber(
        self,
        wasi_context: WasiContext,
        *,
        memory_limit_bytes: int,
        cpu_limit_s: float,
        on_pause: Any = None,
    ) -> ComponentFiber:
        """Return a new fiber for a component, with an empty store; the caller closes it."""
        self.alive += 1
        return ComponentFiber(
            self.engine,
            self._calls,
            self._values,
            self._turns,
            self._ticker.wake,
            wasi_context,
            memory_limit_bytes=memory_limit_bytes,
            table_limit_elements=self._table_limit,
            cpu_limit_s=cpu_limit_s,
            on_pause=on_pause,
            on_closed=self._fiber_closed,
            retire=self._retire,
        )

    def _fiber_closed(self) -> None:
        self.alive -= 1

    def _retire(self, delete: Callable[[], None]) -> None:
        # A slot that admission has given on already: only while more than half of them are free.
        if len(self._retired) >= MAX_RETIRED or 2 * self.alive > self._slots:
            delete()
            return
        if not self._retired:
            asyncio.get_running_loop().call_soon(self._delete_retired)
        self._retired.append(delete)

    def _delete_retired(self) -> None:
        retired, self._retired = self._retired, []
        for delete in retired:
            delete()

    def close(self) -> None:
        """Stop the ticker and the guest threads; templates must be closed before."""
        self._delete_retired()
        self._turns.close()
        self._ticker.stop()
        capi.linker_delete(self._linker)
        if self._component_linker is not None:
            self._component_linker.close()
        self._engine_owner.close()


HOST_IMPORTS: dict[str, Mapping[str, HostFunction]] = {
    "wasi_snapshot_preview1": wasi.FUNCTIONS,
    "wasi_ephemeral_nn": wasi_nn.FUNCTIONS,
    "faas_v1": faas.FUNCTIONS,
}
"""Everything a guest can import, by module; what each function may use of it is the manifest's to say."""
