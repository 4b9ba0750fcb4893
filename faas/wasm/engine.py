"""The engine profile: one place decides the wasmtime settings that the compile job and every worker share."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec
from wasmtime import Config, Engine
from wasmtime import _bindings as ffi

from faas.config import HostConfig
from faas.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB

# Bump when a setting below changes in a way that the fingerprint's own fields don't show, and when precompile makes
# other modules or components of the same bytes.
_PROFILE_REVISION = 5
GROW_FAILED_EXPORT = b"faas:grow-failed"
"""The global that a compiled module sets when it was refused memory (``precompile/growth.py`` adds it)."""
BYTES_EXPORTS = "faas:bytes/"
"""How the names begin that a compiled component exports for this host to see (``precompile/bytelists.py``)."""
MEMORY_EXPORT = BYTES_EXPORTS + "memory"
"""
The beginning of the name exported where functions take bytes as address and length.

The number that follows says which of the core instances has the memory: in a fresh store the engine counts them from
1, in the order in which they are made.
"""
ROOM_EXPORT = BYTES_EXPORTS + "room"
"""
The beginning of the names exported where ``BYTES_RETURNED`` functions return bytes as address and size.

The number of a room follows, from 1, then how the function is called that makes room in the guest's memory (one of
``ROOM_MAKERS``, with hyphens), then the number of the core instance that exports it: ``room1-cabi-realloc5``.
"""
ROOM_MAKERS = ("cabi_realloc", "cabi_import_realloc")
"""What toolchains call the guest's functions that make room."""
MAX_ROOMS = 2
"""How many different ones a component may have: those linked of libraries (Python) have one beside libc's."""
BYTES_RETURNED = frozenset(
    {
        ("wasi:io/streams", "[method]input-stream.read"),
        ("wasi:io/streams", "[method]input-stream.blocking-read"),
    }
)
"""
Functions whose result's ok side is a ``list<u8>`` that may be returned as address and size: all of them or none.

Bytes for another room than the first are returned by functions of other names (``room_function``).
"""
_CPUINFO = Path("/proc/cpuinfo")
# A limit only, not a reservation: the instance struct grows with functions and globals, and is allocated to size.
_MAX_CORE_INSTANCE_BYTES = 16 * MIB
# 2: the module's own table, and the externref table that wasm-bindgen and friends add.
_TABLES_PER_MODULE = 2
TABLES_PER_COMPONENT = 4
"""Tables of all core modules of a component: toolchains make one of their own, and one for calls to imports."""
CORE_INSTANCES_PER_COMPONENT = 64
"""Core modules instantiated for one component; one made of a dynamically linked program (Python) has some 20."""
# As above: a limit only.
_MAX_COMPONENT_INSTANCE_BYTES = 4 * MIB
_TABLE_ELEMENT_BYTES = 8
# Beside a stack for each guest: the calls that make room for returned bytes run on one of their own, nearly always for
# less than a microsecond. Each is two of the process's mappings, of which it may have some 65,000.
_MAX_STACKS_FOR_ROOM = 64


def room_function(name: str, room: int) -> str:
    """Return what a ``BYTES_RETURNED`` function is called for components that want its bytes in this room."""
    return name if room == 1 else f"{name}{room}"


class EngineProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Every engine setting in plain numbers; it travels to the compile job as JSON and lives as long as the process.

    The first group sizes the pool and may differ between compiler and worker; the second is compiled into the code.
    A fiber's stack holds the guest's stack and, above it, our Python callbacks: the difference between
    ``async_stack_bytes`` and ``max_wasm_stack_bytes`` is what those may use.
    """

    slots: int = 1000
    max_memory_bytes: int = 1024 * MIB
    max_table_elements: int = 100_000
    keep_resident_bytes: int = 64 * KIB
    table_keep_resident_bytes: int = 16 * KIB
    max_unused_warm_slots: int = 256
    async_stack_bytes: int = 2 * MIB
    max_wasm_stack_bytes: int = 512 * KIB

    # 4 GiB reserved and guarded: any 32-bit address is either the guest's or faults, so no bounds checks are emitted.
    memory_reservation_bytes: int = 4096 * MIB
    memory_guard_bytes: int = 32 * MIB
    memory_init_cow: bool = True
    nan_canonicalization: bool = False

    @classmethod
    def from_config(cls, config: HostConfig) -> EngineProfile:
        """Return the profile of a host with these settings."""
        pool = config.pool
        return cls(
            slots=pool.slots,
            max_memory_bytes=pool.max_memory_bytes,
            max_table_elements=pool.max_table_elements,
            keep_resident_bytes=pool.keep_resident_bytes,
        )

    @property
    def address_space_bytes(self) -> int:
        """What a pooling engine reserves; reserved is not used, but it must fit the 47-bit address space."""
        tables = TABLES_PER_COMPONENT * self.max_table_elements * _TABLE_ELEMENT_BYTES
        memories = self.memory_reservation_bytes + self.memory_guard_bytes
        return self.slots * (memories + tables) + self.stacks * self.async_stack_bytes

    @property
    def stacks(self) -> int:
        """Return how many stacks of guests there are in the pool."""
        return self.slots + min(self.slots, _MAX_STACKS_FOR_ROOM)


def new_engine(profile: EngineProfile, *, pooling: bool) -> Engine:
    """
    Return a new ``wasmtime.Engine``; it lives until the last reference goes, ``engine_pointer`` gives the raw pointer.

    Args: *pooling* True for workers: instances sit in reserved slots. False for the compile job: nothing is reserved,
    and the code it makes loads in a pooling engine of the same profile.
    Raises: ConfigError when the pool does not fit into the address space.
    """
    if pooling:
        _check_address_space(profile)
    config = _new_config(profile)
    if pooling:
        _set_pooling(config, profile)
    return Engine(config)


def engine_pointer(engine: Engine) -> int:
    """Return the ``wasm_engine_t*`` of *engine* as a plain int, for the raw C API; *engine* still owns it."""
    pointer = ctypes.cast(engine.ptr(), ctypes.c_void_p).value
    if pointer is None:
        raise ConfigError("wasmtime made no engine; check its installation: pip install --force-reinstall wasmtime")
    return pointer


def fingerprint(profile: EngineProfile) -> str:
    """
    Return a hash of all that decides whether native code loads and runs here; hex, stable between processes.

    It covers the wasmtime version, the compile-relevant settings, the machine and its CPU features; pool sizes are
    not part of it, so that resizing the pool does not recompile.
    """
    facts = {
        "revision": _PROFILE_REVISION,
        "wasmtime": version("wasmtime"),
        "machine": [platform.system(), platform.machine()],
        "cpu": cpu_features(),
        "reservation": profile.memory_reservation_bytes,
        "guard": profile.memory_guard_bytes,
        "cow": profile.memory_init_cow,
        "nan": profile.nan_canonicalization,
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def cpu_features(cpuinfo: Path = _CPUINFO) -> list[str]:
    """Return the sorted CPU feature names of the first processor; empty where the system has no such file."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        key, _, features = line.partition(":")
        if key.strip() in {"flags", "Features"}:  # x86 | arm64
            return sorted(set(features.split()))
    return []


def _new_config(profile: EngineProfile) -> Config:
    """Return the settings that compiler and workers share."""
    config = Config()
    raw = config.ptr()
    config.epoch_interruption = True
    config.parallel_compilation = True
    # Off: each would need meaning in the host (shared memory, 64-bit pointers, collected heaps, tasks inside of guests)
    # that it does not have.
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_stack_switching = False
    ffi.wasmtime_config_wasm_component_model_set(raw, True)
    ffi.wasmtime_config_wasm_component_model_async_set(raw, False)
    # With it, wasmtime 50 traps a call that lends two handles ("BUG: deferred host scope has no call context").
    ffi.wasmtime_config_concurrency_support_set(raw, False)
    ffi.wasmtime_config_wasm_gc_set(raw, False)
    ffi.wasmtime_config_wasm_function_references_set(raw, False)
    ffi.wasmtime_config_wasm_exceptions_set(raw, False)
    ffi.wasmtime_config_wasm_custom_page_sizes_set(raw, False)
    ffi.wasmtime_config_cranelift_nan_canonicalization_set(raw, profile.nan_canonicalization)
    ffi.wasmtime_config_memory_reservation_set(raw, profile.memory_reservation_bytes)
    ffi.wasmtime_config_memory_guard_size_set(raw, profile.memory_guard_bytes)
    # Tables for foreign unwinders, a twelfth of the code: wasmtime itself walks guests by their frame pointers.
    ffi.wasmtime_config_native_unwind_info_set(raw, False)
    # A memory that never moves lets the host read its base pointer once per instance.
    ffi.wasmtime_config_memory_may_move_set(raw, False)
    ffi.wasmtime_config_memory_init_cow_set(raw, profile.memory_init_cow)
    # The order matters: an engine whose wasm stack is larger than its async stack is refused.
    ffi.wasmtime_config_async_stack_size_set(raw, profile.async_stack_bytes)
    ffi.wasmtime_config_max_wasm_stack_set(raw, profile.max_wasm_stack_bytes)
    return config


def _set_pooling(config: Config, profile: EngineProfile) -> None:
    """Give *config* the pooling allocator: a slot holds an instance of a module, or of a component and its modules."""
    settings = {
        "total_component_instances": profile.slots,
        "max_component_instance_size": _MAX_COMPONENT_INSTANCE_BYTES,
        "max_core_instances_per_component": CORE_INSTANCES_PER_COMPONENT,
        "max_memories_per_component": 1,
        "max_tables_per_component": TABLES_PER_COMPONENT,
        # Numbers only: what instances take beside memories, tables and stacks is allocated as they are made.
        "total_core_instances": profile.slots * CORE_INSTANCES_PER_COMPONENT,
        "total_memories": profile.slots,
        "total_tables": profile.slots * TABLES_PER_COMPONENT,
        "total_stacks": profile.stacks,
        "max_memories_per_module": 1,
        "max_tables_per_module": _TABLES_PER_MODULE,
        "max_memory_size": profile.max_memory_bytes,
        "table_elements": profile.max_table_elements,
        "max_core_instance_size": _MAX_CORE_INSTANCE_BYTES,
        "max_unused_warm_slots": min(profile.slots, profile.max_unused_warm_slots),
        "linear_memory_keep_resident": profile.keep_resident_bytes,
        "table_keep_resident": profile.table_keep_resident_bytes,
        # Stacks are not zeroed between guests (wasm can't read below its own frames), so none need be kept.
        "async_stack_keep_resident": 0,
    }
    pool = ffi.wasmtime_pooling_allocation_config_new()
    try:
        for name, number in settings.items():
            getattr(ffi, f"wasmtime_pooling_allocation_config_{name}_set")(pool, number)
        ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    finally:
        ffi.wasmtime_pooling_allocation_config_delete(pool)


def _check_address_space(profile: EngineProfile) -> None:
    """Reserve and release the pool's address space once: the C API aborts the process where this raises."""
    needed = profile.address_space_bytes
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        mmap.mmap(-1, needed, flags=flags, prot=0).close()
    except (OSError, OverflowError, ValueError) as exc:
        raise ConfigError(
            f"a pool of {profile.slots} slots needs {needed / 2**40:.2f} TiB of address space and this process can't"
            " have it; lower pool.slots (FAAS_POOL_SLOTS) or raise `ulimit -v`",
            setting="pool.slots",
        ) from exc
