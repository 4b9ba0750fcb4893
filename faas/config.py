"""
Settings: flags, then ``FAAS_*``, then ``faas.toml``, then defaults; read once in each process's composition root.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from faas.errors import ConfigError
from faas.machine import memory_bytes
from faas.tls import both_or_neither

MIB = 1024 * 1024
Port = Annotated[int, Meta(ge=0, le=65535)]
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}\Z", description="name of a model or a key")]

_FILES = ("tls_cert", "tls_key", "admin_tls_cert", "admin_tls_key")
SPARE_SLOTS = 2
"""Pool slots beyond the guest threads' that admission leaves free."""


class PoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size of each worker's instance pool; address space is reserved for all of it, memory is not."""

    slots: Annotated[int, Meta(ge=1, le=20_000, description="instances alive at once, per worker")] = 1000
    max_memory_bytes: Annotated[int, Meta(ge=65536, le=4096 * MIB)] = 1024 * MIB
    max_table_elements: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    keep_resident_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024


class PrecompileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one precompile job may use."""

    timeout_s: Annotated[float, Meta(gt=0)] = 120.0
    cpu_s: Annotated[int, Meta(gt=0)] = 120
    memory_bytes: Annotated[int, Meta(ge=64 * MIB)] = 2048 * MIB
    jobs: Annotated[int, Meta(ge=0, le=256, description="0: one per processor")] = 0
    """How many jobs run at once; deploys beyond them wait."""
    start_timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """Wall time for the trial instance that each worker makes before a deploy is acknowledged."""


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `faas serve` can be told. `docs/configuration.md` explains each key; a test keeps it so."""

    home: str = ""
    host: str = "127.0.0.1"
    port: Port = 8080
    admin_port: Port = 8081
    workers: Annotated[int, Meta(ge=0, le=1024, description="0: one per processor")] = 0
    drain_timeout_s: Annotated[float, Meta(ge=0)] = 20.0
    admin_host: str = "127.0.0.1"
    tls_cert: str = ""
    tls_key: str = ""
    """PEM files for the public port; both or neither."""
    admin_tls_cert: str = ""
    admin_tls_key: str = ""
    state: str = ""
    """``postgresql://…`` for state that several hosts share; empty: SQLite in the home."""
    secrets_key_file: str = ""
    """Empty: ``secrets.key`` in the home, made at the first start. Hosts that share state share this file's content."""
    keep_versions: Annotated[int, Meta(ge=1, le=10_000)] = 10
    """Versions of a function that are kept beyond those which an alias names."""
    kv_max_value_bytes: Annotated[int, Meta(ge=1, le=16 * MIB)] = 1 * MIB
    kv_max_store_bytes: Annotated[int, Meta(ge=1)] = 256 * MIB
    """Keys and values of one store together."""
    async_concurrency: Annotated[int, Meta(ge=1, le=10_000, description="jobs that run at once on this host")] = 32
    max_job_bytes: Annotated[int, Meta(ge=1024, le=16 * MIB, description="body of a job's request")] = 4 * MIB
    max_call_depth: Annotated[int, Meta(ge=1, le=64)] = 8
    """How deep functions may call functions."""
    call_slots: Annotated[int, Meta(ge=1, le=5000, description="per worker, beside pool.slots")] = 256
    """Instances that calls of depth 1 may have at once; each further depth has half as many, but no fewer than 8."""
    max_upload_bytes: Annotated[int, Meta(ge=1024)] = 256 * MIB
    tick_ms: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Epoch tick: the length of a guest's time slice is one to two of these."""
    guest_threads: Annotated[int, Meta(ge=0, le=256, description="0: one per processor")] = 0
    """Threads per worker that run guests beyond their first slice."""
    code_budget_bytes: Annotated[int, Meta(ge=0)] = 128 * MIB
    """What loaded native code and bundles may take in each worker; the least recently used are unloaded beyond it."""
    queue_timeout_s: Annotated[float, Meta(ge=0)] = 5.0
    max_queue: Annotated[int, Meta(ge=0)] = 1000
    log_rotate_bytes: Annotated[int, Meta(ge=4096)] = 16 * MIB
    header_timeout_s: Annotated[float, Meta(gt=0)] = 15.0
    """How long a client may take to send a request's head."""
    body_timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    """How long a client may send nothing of a body that is waited for."""
    body_min_bytes_per_s: Annotated[int, Meta(ge=0, description="0: no minimum")] = 500
    """How fast a body has to come on average, once it was waited for longer than ``body_timeout_s`` in all."""
    send_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long a client may take nothing of what waits to be sent to it."""
    keepalive_timeout_s: Annotated[float, Meta(gt=0)] = 75.0
    keepalive_requests: Annotated[int, Meta(ge=0, description="0: no limit")] = 10_000
    """Requests on one connection; the last one's reply says that it is closed."""
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000, description="per worker")] = 4096
    """Clients' connections open at once; never more than the limit on open files allows."""
    models: dict[ModelName, str] = {}
    """Name → path of a GGUF file, for this run, on top of the registered ones; paths are absolute."""
    model_budget_bytes: Annotated[int, Meta(ge=0, description="0: half of the memory this process may use")] = 0
    model_threads: Annotated[int, Meta(ge=0, le=1024, description="0: one per processor")] = 0
    model_ctx: Annotated[int, Meta(ge=256, le=1_048_576, description="tokens of one sequence")] = 4096
    model_slots: Annotated[int, Meta(ge=1, le=256, description="sequences that one model decodes at once")] = 16
    model_saved_bytes: Annotated[int, Meta(ge=0)] = 256 * MIB
    """Memory per model for the prefixes of ended prompts, besides its KV cells."""
    model_gpu_layers: Annotated[int, Meta(ge=-1, description="-1: all, where there is an accelerator")] = -1
    model_backend: Literal["llama", "fake"] = "llama"
    model_demo: bool = True
    openai_open_to_all: bool = False
    """Without any API key the OpenAI-compatible endpoints answer to this machine only; true: to everybody."""
    pool: PoolConfig = PoolConfig()
    precompile: PrecompileConfig = PrecompileConfig()

    @property
    def home_path(self) -> Path:
        """The folder that holds everything that must survive."""
        return Path(self.home)

    @property
    def n_workers(self) -> int:
        """How many worker processes to run."""
        return self.workers or os.cpu_count() or 1

    @property
    def n_guest_threads(self) -> int:
        """How many threads of a worker run guests beyond their first slice."""
        return self.guest_threads or os.cpu_count() or 1

    @property
    def admission_slots(self) -> int:
        """How many instances one worker lets run at once: a cancelled guest's pool slot comes back a slice late."""
        return max(1, self.pool.slots - self.n_guest_threads - SPARE_SLOTS)

    @property
    def level_slots(self) -> tuple[int, ...]:
        """
        How many instances of each worker are for what is invoked in memory: jobs first, then calls by their depth.

        All of them come on top of ``pool.slots``: no HTTP request, and no call of another depth, takes any.
        """
        calls = (max(min(8, self.call_slots), self.call_slots >> depth) for depth in range(self.max_call_depth))
        return (self.async_concurrency, *calls)

    @property
    def with_whole_pool(self) -> HostConfig:
        """These settings with a pool for all that a worker runs, what is invoked in memory included."""
        pool = msgspec.structs.replace(self.pool, slots=self.pool.slots + sum(self.level_slots))
        return msgspec.structs.replace(self, pool=pool)

    @property
    def max_reserved_slots(self) -> int:
        """How many slots of one worker all functions together may reserve: half of them, the rest is for who comes."""
        return self.admission_slots // 2

    @property
    def model_budget(self) -> int:
        """How many bytes the weights of loaded models may take together."""
        return self.model_budget_bytes or memory_bytes() // 2


def default_home(environ: Mapping[str, str]) -> Path:
    """Return ``$FAAS_HOME``, else ``$XDG_DATA_HOME/faas``, else ``~/.local/share/faas``."""
    if environ.get("FAAS_HOME"):
        return Path(environ["FAAS_HOME"]).expanduser().absolute()
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local" / "share")
    return Path(base) / "faas"


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str], *, file: Path | None = None) -> HostConfig:
    """
    Return the host's settings.

    ``models`` of all sources are merged by name; the variable is ``NAME=PATH,NAME=PATH``.

    Args: *flags* holds what was given on the command line (None: not given); nested keys as ``pool.slots``.
    *file* is a ``faas.toml``; without one ``$HOME_OF_HOST/faas.toml`` is read if it exists.
    Raises: ConfigError with the key that is unknown or wrong.
    """
    merged: dict[str, Any] = {}
    home = flags.get("home") or default_home(environ)
    path = file if file is not None else Path(home) / "faas.toml"
    if file is not None or path.exists():
        try:
            merged = tomllib.loads(path.read_text())
        except OSError as exc:
            raise ConfigError(f"can't read {path}: {exc.strerror}; check --config") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path} is not TOML: {exc}") from exc
    for key in _keys(HostConfig):
        value = environ.get("FAAS_" + key.replace(".", "_").upper())
        if value is not None:
            _put(merged, key, _named_paths(value) if key == "models" else value)
    for key, given in flags.items():
        if given is not None:
            _put(merged, key, given)
    merged["home"] = str(Path(home).expanduser().absolute())
    if isinstance(merged.get("models"), dict):
        merged["models"] = {
            name: str(Path(given).expanduser().absolute()) if isinstance(given, str) and given else given
            for name, given in merged["models"].items()
        }
    for key in _FILES:
        if isinstance(merged.get(key), str) and merged[key]:
            merged[key] = str(Path(merged[key]).expanduser().absolute())
    try:
        config = msgspec.convert(merged, HostConfig, strict=False)
    except msgspec.ValidationError as exc:
        said = str(exc).replace("Object contains unknown field", "unknown setting").replace("$.", "")
        raise ConfigError(f"{said}; see docs/configuration.md for the settings") from exc
    both_or_neither(config.tls_cert, config.tls_key, setting="tls_cert")
    both_or_neither(config.admin_tls_cert, config.admin_tls_key, setting="admin_tls_cert")
    return config


def config_keys() -> list[str]:
    """Return every setting's dotted name."""
    return _keys(HostConfig)


def _keys(cls: type[msgspec.Struct], prefix: str = "") -> list[str]:
    names: list[str] = []
    for field in msgspec.structs.fields(cls):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            names += _keys(field.type, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def _named_paths(text: str) -> dict[str, str]:
    """Return the mapping that ``NAME=PATH,NAME=PATH`` writes down."""
    found: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        name, mark, path = item.partition("=")
        if not mark or not name.strip() or not path:
            raise ConfigError(f"models: {item!r} is not NAME=PATH; see docs/configuration.md for the settings")
        found[name.strip()] = path
    return found


def _put(target: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{parent} is a table of settings, not {target!r}; see docs/configuration.md")
    there = target.get(last)
    target[last] = {**there, **value} if isinstance(there, dict) and isinstance(value, dict) else value
