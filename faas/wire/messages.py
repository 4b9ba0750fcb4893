"""
What the control process and a gateway worker say to each other.

One conversation: the worker connects and sends ``Hello``; control answers ``Table`` and ``Spent``; the worker binds
its port and sends ``Ready``. From then on control sends ``Prepare`` (load a version and try it; answered by
``Prepared``) and ``Table`` (serve exactly this; answered by ``Activated``). A worker that finds an artifact missing or
tampered sends ``ArtifactNeeded`` and waits for ``ArtifactReady``. ``Lines`` and ``Stats`` flow up unasked. ``Drain``
ends it.

``Spent`` flows both ways, as tokens with a limit per minute are spent: up as a worker's own spending, down as that of
all others. The first one down is the state of every limit, relative to full buckets, so that a worker that starts, or
starts again, begins where the others are. Each later one goes to every worker but the one whose spending it is.

``Models``, ``Keys`` and ``InvokeKeys`` have no answer of their own: they come right after the first ``Spent``, and a
change of them comes before a ``Table`` with a new generation (the deployments may be the same), whose ``Activated``
says that the worker goes by them too. What they held when the worker was started is in its settings already.

``FunctionSettings`` comes right after the first ``Spent``, before the worker serves anything, and again before each
``Table`` for which a worker has to know other config values or secrets: that ``Activated`` stands for them, too.

``Shares`` flows both ways too. A function's limit of concurrency is the host's, and each worker begins with
``first_share`` of it. Up: permits that are wanted, and permits that are given back; down: permits that are granted,
and how many other workers want. A worker gives up a permit before it says so, and takes one after it is told, so the
workers never have more than there are. A worker that starts later is told in its first ``Table`` what it begins with
where that is something else.

``Ask``, ``Answer`` and ``Cancel`` flow both ways once a worker has its first table (``faas.wire.peer``): a worker asks
for what is kept for its functions, control has workers run jobs.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from faas.invocation import Alias, Deployment
from faas.wire.peer import Answer, Ask, Cancel

PROTOCOL_VERSION = 4


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Worker → control, first message. Control closes the connection on another ``protocol``."""

    protocol: int
    worker: int
    pid: int
    token: str
    """The secret that control gave this very worker, so that nobody else on the machine can pose as one."""


class Table(msgspec.Struct, frozen=True, tag="table"):
    """
    Control → worker: serve exactly these deployments; ``generation`` only ever grows.

    ``aliases`` has those that say more than that the only version of a function is ``live``: other names, and splits.
    ``shares``, only in a worker's first one: what it may run of functions whose permits were lent before.
    """

    generation: int
    deployments: tuple[Deployment, ...]
    shares: dict[str, int] = {}
    aliases: tuple[Alias, ...] = ()


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker → control: listening, and serving ``generation``."""

    generation: int


class Activated(msgspec.Struct, frozen=True, tag="activated"):
    """Worker → control: every request from now on is served by ``generation``."""

    generation: int


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Control → worker: load this version and make a trial instance; serve nothing of it yet."""

    id: int
    deployment: Deployment


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """Worker → control: the answer to ``Prepare`` *id*; ``problem`` None means it can be served."""

    id: int
    problem: dict[str, Any] | None = None


class ArtifactNeeded(msgspec.Struct, frozen=True, tag="artifact_needed"):
    """Worker → control: the native code of this deployment is missing or not what was stored; make it again."""

    id: int
    deployment: Deployment


class ArtifactReady(msgspec.Struct, frozen=True, tag="artifact_ready"):
    """Control → worker: the answer to ``ArtifactNeeded`` *id*."""

    id: int
    problem: dict[str, Any] | None = None


class Lines(msgspec.Struct, frozen=True, tag="lines"):
    """Worker → control: finished log lines (JSON, newline-terminated) of each function, in order."""

    by_function: dict[str, bytes]


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """
    Worker → control, about once a second: cumulative counters since the worker began.

    ``functions`` maps a function to {"invocations": n, "<outcome>": n, "duration_ms": sum, "start_ms": sum,
    "cpu_ms": sum} and, where it used models, {"prompt_tokens": n, "generated_tokens": n, "model_requests": n}; these
    three also come per API key, under ``key:NAME``. An invoke key has {"requests": n, "rate_limited": n}, under
    ``invoke:FUNCTION:NAME``. While an alias sends requests to two versions, each of them comes under
    ``FUNCTION@VERSION`` too, with the requests by latency, under ``latency:N`` (``faas.wire.latency``); what is not
    split any more is left out. ``gauges`` has host-wide numbers of this worker (``active``,
    ``queued``, ``modules``, ``instances``, ``openai_active``).
    """

    functions: dict[str, dict[str, float]]
    gauges: dict[str, float]


class Spending(msgspec.Struct, frozen=True):
    """
    What was taken from one token bucket since the last message; negative if more was given back.

    The bucket of an invoke key holds requests: what is said of tokens here is of requests there.

    ``n_held`` is not a change: so many tokens does the worker now hold for prompts that are not counted yet. They are
    part of what it took, and nobody's if it dies. Control sends 0.
    """

    n_tokens: int
    tokens_per_minute: int
    """The limit as the sender knows it, over 0: the receiver may not have met the name yet."""
    n_held: int = 0


class Spent(msgspec.Struct, frozen=True, tag="spent"):
    """Both ways: what was taken from token buckets, by the names that ``Stats`` uses; only those that changed."""

    names: dict[str, Spending]


def first_share(limit: int, function: str, worker: int, n_workers: int) -> int:
    """Return how many of *limit* permits *worker* begins with; over all workers these add up to *limit*."""
    least, remainder = divmod(limit, n_workers)
    # What can't be divided begins at different workers for different functions.
    return least + ((worker + zlib.crc32(function.encode())) % n_workers < remainder)


class Share(msgspec.Struct, frozen=True):
    """
    Permits of one function on their way, and how many more are wanted: here (up), or by all other workers (down).

    ``limit`` is the function's on the whole host as the sender knows it: what is about another one is void.
    """

    limit: int
    n_given: int
    n_wanted: int


class Shares(msgspec.Struct, frozen=True, tag="shares"):
    """Both ways: permits given back or granted, and permits wanted, by function; only those where that changed."""

    names: dict[str, Share]


class ApiKey(msgspec.Struct, frozen=True):
    """One key for the OpenAI-compatible endpoints: SHA-256 (hex) of its text, and its quota; 0 means no limit."""

    name: str
    sha256: str
    tokens_per_minute: int = 0


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    """Control → worker: exactly these keys open the OpenAI-compatible endpoints; without any, this machine may."""

    keys: tuple[ApiKey, ...]


class InvokeKey(msgspec.Struct, frozen=True):
    """One key of one function: SHA-256 (hex) of its text, and its requests per minute; 0 means no limit."""

    function: str
    name: str
    sha256: str
    requests_per_minute: int = 0


class InvokeKeys(msgspec.Struct, frozen=True, tag="invoke_keys"):
    """Control → worker: exactly these keys invoke functions; without one, those that ask for a key are closed."""

    keys: tuple[InvokeKey, ...]


class SecretValue(msgspec.Struct, frozen=True):
    """One secret of one function, open: it is held in memory, and nothing shows it by accident."""

    function: str
    name: str
    value: str

    def __repr__(self) -> str:
        return f"SecretValue(function={self.function!r}, name={self.name!r}, value=…)"


class FunctionSettings(msgspec.Struct, frozen=True, tag="function_settings"):
    """
    Control → worker: config values by function and name, and the secrets that the manifests it serves have a use for.

    Right after the first ``Spent``, before anything is served; then before each ``Table`` for which it is different.
    """

    config: dict[str, dict[str, str]]
    secrets: tuple[SecretValue, ...]

    def __repr__(self) -> str:
        return f"FunctionSettings(config of {len(self.config)} functions, {len(self.secrets)} secrets)"


class Models(msgspec.Struct, frozen=True, tag="models"):
    """
    Control → worker: exactly these models exist on this host.

    ``missing`` is not empty when there are none because this host can't run any (``models-missing``): the reason.
    """

    names: tuple[str, ...]
    missing: str = ""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Control → worker: stop accepting, finish what is in flight within ``timeout_s``, exit 0."""

    timeout_s: float


FromWorker = (
    Hello | Ready | Activated | Prepared | ArtifactNeeded | Lines | Stats | Spent | Shares | Ask | Answer | Cancel
)
FromControl = (
    Table
    | FunctionSettings
    | Prepare
    | ArtifactReady
    | Models
    | Keys
    | InvokeKeys
    | Spent
    | Shares
    | Drain
    | Ask
    | Answer
    | Cancel
)
