"""
Components: the linkers with every WIT interface of this host, templates of components, and their fibers.

Below wasmtime-py's own component calls, which look every type up again at every call: here types are prepared once,
from the WIT texts, and values go through ``_values.c`` (``values.py`` has the same without a C compiler).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from faas.errors import ArtifactTamperedError, FaasError, GuestTrapError
from faas.wasi import wit
from faas.wasi.p2.keyvalue import Granted
from faas.wasi.p2.resources import ComponentFunction, WitError
from faas.wasm import calls, capi
from faas.wasm.engine import (
    BYTES_RETURNED,
    CORE_INSTANCES_PER_COMPONENT,
    MAX_ROOMS,
    MEMORY_EXPORT,
    ROOM_EXPORT,
    ROOM_MAKERS,
    room_function,
)
from faas.wasm.fiber import QUICK_NS, Fiber, first_line, trapped
from faas.wasm.template import Template

MAX_HANDLES: Final = 10_000
"""How many handles one guest may hold at once; each stands for an object of ours."""


class ComponentLinker:
    """
    Every interface of this host, ready for components to be linked with; lives as long as its runtime.

    Args: *functions* maps WIT interfaces (``faas.wasi.wit``) to what is implemented of them.
    """

    def __init__(self, engine: int, functions: Mapping[str, Mapping[str, ComponentFunction]], into: ModuleType) -> None:
        self._values = into
        self.pointer: int = capi.component_linker_new(engine)
        self._keep: list[Any] = []
        self._ids: dict[str, int] = {}
        self._drop, _, keep = into.destructor()
        self._keep.append(keep)
        known = wit.interfaces()
        for name, interface in known.items():
            for resource in interface.resources:
                self._ids[f"{name}#{resource}"] = len(self._ids) + 1
        root = capi.component_linker_root(self.pointer)
        for name, interface in known.items():
            if name not in wit.EXPORTED:
                self._add(root, interface, functions.get(name, {}))
        capi.component_linker_instance_delete(root)
        self.request = self.node(("own", "wasi:http/types#incoming-request"))
        self.outparam = self.node(("own", "wasi:http/types#response-outparam"))

    def _add(self, root: int, interface: wit.Interface, functions: Mapping[str, ComponentFunction]) -> None:
        name = interface.name if "@" in interface.name else f"{interface.name}@{interface.version}"
        at = ctypes.c_void_p()
        _check(capi.component_linker_add_instance(root, name.encode(), len(name.encode()), at))
        for key in self._resources_of(interface):
            resource = key.rpartition("#")[2].encode()
            type_ = capi.component_resource_type_new_host(self._ids[key])
            _check(capi.component_linker_add_resource(at.value, resource, len(resource), type_, self._drop, None, None))
            capi.component_resource_type_delete(type_)
        for function_name, function in functions.items():
            declared = interface.functions[function_name]
            params = tuple(self.node(type_) for _, type_ in declared.params)
            result = None if declared.result is None else self.node(declared.result)
            rooms = range(1, MAX_ROOMS + 1) if (interface.name, function_name) in BYTES_RETURNED else (0,)
            for room in rooms:
                # Room is made by a call into the guest, which may run on for longer than its slice.
                may_suspend = function.may_suspend or room > 0
                callback, env, keep = self._values.host_function(function.call, params, result, may_suspend, room)
                self._keep.append(keep)
                add = capi.component_linker_add_func_async if may_suspend else capi.component_linker_add_func
                encoded = room_function(function_name, room or 1).encode()
                _check(add(at.value, encoded, len(encoded), callback, env, None))
        capi.component_linker_instance_delete(at.value)

    def _resources_of(self, interface: wit.Interface) -> set[str]:
        """Return the resources that the interface defines, and those that its functions use."""
        keys = {f"{interface.name}#{resource}" for resource in interface.resources}

        def visit(type_: Any) -> None:
            if isinstance(type_, tuple):
                if len(type_) == 2 and type_[0] in ("own", "borrow") and isinstance(type_[1], str):
                    keys.add(type_[1])
                else:
                    for part in type_:
                        visit(part)

        for function in interface.functions.values():
            visit(function.params)
            visit(function.result)
        return keys

    def node(self, type_: wit.Type) -> Any:
        """Return *type_*, prepared for converting values."""
        return self._values.node(type_, self._ids)

    def close(self) -> None:
        """Free it; its templates must be closed before."""
        capi.component_linker_delete(self.pointer)


class ComponentTemplate(Template):
    """A loaded component, ready to be instantiated any number of times; lives until ``close``."""

    __slots__ = ("_component", "handle", "linker", "memory", "rooms", "run")

    def __init__(self, component: int, linker: ComponentLinker) -> None:
        super().__init__(0, 0)
        self.has_initialize = False
        self._component = component
        self.linker = linker
        numbers = range(1, CORE_INSTANCES_PER_COMPONENT + 1)
        self.memory = next((number for number in numbers if self._is_marked(f"{MEMORY_EXPORT}{number}")), 0)
        """Which of its core instances has the memory that functions pass bytes of by address; 0: none do."""
        self.rooms = tuple(
            (room, number, maker.encode())
            for room in range(1, MAX_ROOMS + 1 if self.memory else 1)
            for maker in ROOM_MAKERS
            for number in numbers
            if self._is_marked(f"{ROOM_EXPORT}{room}-{maker.replace('_', '-')}{number}")
        )
        """Which functions of its core instances make room for bytes that are returned: room, instance and name."""
        self.handle = self._export("wasi:http/incoming-handler", b"handle")
        """The index of ``wasi:http/incoming-handler#handle``, 0 if there is none."""
        self.run = self._export("wasi:cli/run", b"run")

    @property
    def pointer(self) -> int:
        """The ``wasmtime_component_t``."""
        return self._component

    def _export(self, interface: str, function: bytes) -> int:
        # The engine matches names by semantic version: any 0.2 finds any other.
        name = f"{interface}@{wit.interfaces()[interface].version}".encode()
        outer = capi.component_get_export_index(self._component, None, name, len(name))
        if not outer:
            return 0
        found: int | None = capi.component_get_export_index(self._component, outer, function, len(function))
        capi.component_export_index_delete(outer)
        return found or 0

    def _is_marked(self, name: str) -> bool:
        encoded = name.encode()
        index = capi.component_get_export_index(self._component, None, encoded, len(encoded))
        if index:
            capi.component_export_index_delete(index)
        return bool(index)

    def close(self) -> None:
        """Free the code; instances that are alive keep what they use."""
        if self._component:
            for index in (self.handle, self.run):
                if index:
                    capi.component_export_index_delete(index)
            capi.component_delete(self._component)
            self._component = 0

    def __del__(self) -> None:
        self.close()


def load(engine: int, native: bytes | Path, linker: ComponentLinker) -> ComponentTemplate:
    """
    Load native code of a component, as ``Runtime.load`` does for modules.

    Raises: ArtifactTamperedError.
    """
    component = ctypes.c_void_p()
    if isinstance(native, bytes):
        error = capi.component_deserialize(engine, native, len(native), component)
    else:
        error = capi.component_deserialize_file(engine, os.fsencode(native), component)
    if error:
        raise ArtifactTamperedError(
            f"the engine refused the stored artifact: {first_line(capi.take_error(error))}; it will be compiled again"
        )
    return ComponentTemplate(component.value or 0, linker)


class ComponentFiber(Fiber):
    """
    One invocation of a component: a Fiber whose guest is made of core instances that nobody sees.

    Host functions get it as ``guest``: ``wasi``, ``http``, ``nn``, ``granted``, ``request_yield``.
    """

    __slots__ = ("_answer", "_declared", "_handles", "_values", "granted", "http")

    def __init__(self, engine: int, into: ModuleType, values: ModuleType, *args: Any, **limits: Any) -> None:
        """Args: *values* has the conversions: ``values``, or the same in C; the rest as for ``Fiber``."""
        super().__init__(engine, into, *args, **limits)
        self.http: Any = None
        self.granted: Granted | None = None
        self._values = values
        self._handles = values.Handles(self, MAX_HANDLES)
        self._handles.bind(self._context)
        self._answer: Any = None
        self._declared: WitError | None = None
        capi.store_limiter(
            self._store,
            limits["memory_limit_bytes"],
            limits["table_limit_elements"],
            CORE_INSTANCES_PER_COMPONENT,
            -1,
            -1,
        )

    # --- what host functions use ------------------------------------------------------------------------------------

    def store_number(self) -> int:
        """Return the number that the engine's handles of this store begin with."""
        return capi.store_number(self._context)

    def suspend(self, awaitable: Awaitable[Any]) -> None:
        """Await what a host function answered, on the loop, before the guest goes on."""
        self._wait = _Settling(self, awaitable)

    def settled(self) -> Any:
        """Return what a host function's awaitable came to, or raise it; NotImplemented while it isn't done."""
        if not self._wait_done:
            return NotImplemented
        self._wait_done = False
        answer, declared = self._answer, self._declared
        self._answer = self._declared = None
        if declared is not None:
            raise declared
        return answer

    def room_failed(self, message: str) -> None:
        """Fail: the guest could not make room for bytes that a host function returned; *message* is the engine's."""
        if self.failure is None:  # a host function of ours may have failed in there, and says more
            self.failure = trapped(message, None)

    # --- what the gateway uses --------------------------------------------------------------------------------------

    async def instantiate(self, template: Any, *, background: bool = False) -> None:
        """As ``Fiber.instantiate``, for a component."""
        self._template = template
        self._wake_ticker()
        self._must_yield = False
        at = self._at
        if template.memory:
            self._handles.memory_is(0, template.memory)
            for room in template.rooms:
                self._handles.room_is(*room)
        future = capi.component_linker_instantiate_async(
            template.linker.pointer, self._context, template.pointer, at + capi.FRAME_INSTANCE, at + capi.FRAME_ERROR
        )
        await self._ended(self._first_slice(future, now=not background))
        self._instantiated = True
        if template.memory:
            self._handles.memory_is(self._frame.instance[0], template.memory)

    async def call_export(
        self, index: int, name: bytes, args: tuple[tuple[Any, Any], ...] = (), result: Any = None
    ) -> Any:
        """
        Call the exported function of this *index* with (node, value) pairs; return its result, of node *result*.

        Raises: as ``Fiber.call``.
        """
        slow = self._template.slow if self._template is not None else {}
        background = bool(slow) and slow.get(name, 0.0) > time.monotonic()
        self._wake_ticker()
        self._must_yield = False
        at = self._at
        future = self._values.begin_call(
            self._handles,
            self._context,
            at + capi.FRAME_INSTANCE,
            at + capi.FRAME_ERROR,
            index,
            args,
            result is not None,
        )
        if future is None:
            raise GuestTrapError(f"the component does not export the function {name.decode()!r}; export it, redeploy")
        await self._ended(self._first_slice(future, now=not background), None if background else name)
        if slow and self.cpu_ns < QUICK_NS:
            slow.pop(name, None)
        if result is None:
            return None
        return self._values.take_result(self._handles, self._context, result)

    async def _ended(self, began: tuple[int, int, int], name: bytes | None = None) -> None:
        try:
            await self._ran(began, name)
        except _WaitFailedError as exc:
            raise exc.failure from None

    def held(self) -> list[Any]:
        """Return the resources whose handles the guest has not dropped."""
        objects: list[Any] = self._handles.objects() if len(self._handles) else []
        return objects

    def _first_slice(self, future: int, *, now: bool) -> tuple[int, int, int]:
        if not now:
            return calls.PENDING, 0, future
        began = time.perf_counter_ns()
        done = self._calls.poll(self, future)
        took_ns = time.perf_counter_ns() - began
        if not done:
            return calls.PENDING, took_ns, future
        return (calls.FAILED if self._frame.error else calls.DONE), took_ns, 0

    def memory_size(self) -> int:
        """Return 0: what a component's memories are is nobody else's to see."""
        return 0

    def ran_out_of_memory(self) -> bool:
        """Return False: a component does not tell."""
        return False


class _WaitFailedError(Exception):
    """What a guest waited for failed with an error that ends it: it is not resumed, whatever it waited in."""

    def __init__(self, failure: FaasError) -> None:
        super().__init__()
        self.failure = failure


class _Settling:
    """Awaits a host function's awaitable and keeps what it comes to; may be dropped before it has begun."""

    __slots__ = ("_awaitable", "_fiber")

    def __init__(self, fiber: ComponentFiber, awaitable: Awaitable[Any]) -> None:
        self._fiber = fiber
        self._awaitable = awaitable

    def __await__(self) -> Any:
        return self._settle().__await__()

    async def _settle(self) -> int:
        try:
            self._fiber._answer = await self._awaitable
        except WitError as error:
            self._fiber._declared = error
        except FaasError as error:
            raise _WaitFailedError(error) from None
        return 0


def _check(error: int | None) -> None:
    if error:
        raise AssertionError(capi.take_error(error))  # two definitions of one name: a bug of ours
