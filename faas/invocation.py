"""Words that the gateway, the engine and the control process share about deployments and invocations."""

from __future__ import annotations

from enum import Enum

import msgspec

from faas.manifest import Manifest


class Kind(str, Enum):
    """What contract a module or component fulfils; found at deploy from its imports and exports."""

    COMMAND = "command"
    REACTOR = "reactor"
    HTTP = "http"  # a component that exports wasi:http/incoming-handler


class Deployment(msgspec.Struct, frozen=True):
    """
    One version of one function as workers need it: names of stored artifacts and the manifest, never bytes.

    ``artifact_key`` names the native code, ``wasm_digest`` the kept module (SHA-256, hex), ``bundle_digest`` the
    archive of read-only files ('' for none).
    """

    function: str
    version: int
    kind: Kind
    wasm_digest: str
    artifact_key: str
    bundle_digest: str
    manifest: Manifest
    created_at: float = 0.0


class Outcome(str, Enum):
    """How an invocation ended; every invocation ends in exactly one."""

    OK = "ok"
    FAILED = "failed"  # the guest answered nothing usable: trap, exit code, malformed response
    LIMITED = "limited"  # a limit ended it: deadline, CPU, memory, output
    REFUSED = "refused"  # it never started: overload, body too large
    CANCELLED = "cancelled"  # the client went away
