"""The shapes of what is kept, and words that the stores share."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from faas.invocation import Alias, Deployment, Kind
from faas.manifest import Manifest


class NewVersion(msgspec.Struct, frozen=True):
    """A version about to be born: everything of a ``Deployment`` but its number and its time."""

    manifest: Manifest
    kind: Kind
    wasm_digest: str
    artifact_key: str
    bundle_digest: str = ""


class CanaryPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    How a canary goes: ``steps`` are percents, each of which lasts ``interval_s`` at least, and until the new version
    has answered ``min_requests`` since it began.

    ``max_error_rate`` is a part of 1; ``max_p99_ms`` and ``max_p99_ratio`` (of the old version's) 0 mean no limit.
    """

    steps: tuple[float, ...] = (10.0, 25.0, 50.0, 100.0)
    interval_s: float = 30.0
    max_error_rate: float = 0.05
    max_p99_ms: float = 0.0
    max_p99_ratio: float = 0.0
    min_requests: int = 50


class CanaryPhase(str, Enum):
    """Where in its life a canary is; all but the first are ends."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    ABORTED = "aborted"


class Canary(msgspec.Struct, frozen=True):
    """The last canary of an alias; ``since`` is when its step or its end began, ``reason`` says why it ended."""

    function: str
    alias: str
    version: int
    other: int
    plan: CanaryPlan
    phase: CanaryPhase
    step: int
    since: float
    reason: str = ""

    @property
    def runs(self) -> bool:
        """Whether it goes on."""
        return self.phase is CanaryPhase.RUNNING


class Serving(msgspec.Struct, frozen=True):
    """What is to be served: every version that an alias names, all aliases, and the canaries that run."""

    deployments: tuple[Deployment, ...] = ()
    aliases: tuple[Alias, ...] = ()
    canaries: tuple[Canary, ...] = ()


class AuditEntry(msgspec.Struct, frozen=True):
    """Who changed what, when; ``actor`` is the name of an admin token, or of the part of the host that did it."""

    seq: int
    at: float
    actor: str
    action: str
    function: str
    detail: dict[str, Any]


class References(msgspec.Struct, frozen=True):
    """Every stored file that some version still needs."""

    wasm_digests: frozenset[str]
    artifact_keys: frozenset[str]
    bundle_digests: frozenset[str]


class ModelEntry(msgspec.Struct, frozen=True):
    """A registered model: where its file is, and the SHA-256 (hex) of its content when it was added."""

    name: str
    path: str
    digest: str
    bytes: int
    added_at: float = 0.0


class KeyEntry(msgspec.Struct, frozen=True):
    """An API key as it is kept: SHA-256 (hex) of its text, never the text; ``tokens_per_minute`` 0 means no limit."""

    name: str
    sha256: str
    tokens_per_minute: int = 0
    added_at: float = 0.0


class FileMark(msgspec.Struct, frozen=True):
    """What tells cheaply that a file is still the one whose content was fingerprinted."""

    path: str
    bytes: int
    mtime_ns: int


class TokenEntry(msgspec.Struct, frozen=True):
    """A token of the admin API as it is kept: SHA-256 (hex) of its text, and what it may do."""

    name: str
    sha256: str
    role: str
    added_at: float = 0.0


class InvokeKeyEntry(msgspec.Struct, frozen=True):
    """A key that opens one function over HTTP; ``requests_per_minute`` 0 means no limit."""

    function: str
    name: str
    sha256: str
    requests_per_minute: int = 0
    added_at: float = 0.0
