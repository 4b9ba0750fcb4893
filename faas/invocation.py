"""Words that the gateway, the engine and the control process share about deployments and invocations."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

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


STICKY_COOKIE: Final = "cookie"
STICKY_HEADER: Final = "header:"


class Alias(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    A name for one version of a function, or for two of which ``other`` gets ``weight`` percent of the requests.

    ``other`` 0: none. ``sticky`` says what keeps a client on its side: "", ``STICKY_COOKIE`` (the host sets one), or
    ``STICKY_HEADER`` and a name.
    """

    function: str
    alias: str
    version: int
    other: int = 0
    weight: float = 0.0
    sticky: str = ""

    @property
    def leading(self) -> int:
        """The version that most requests go to: its limits are the function's."""
        return self.other if self.weight > 50 else self.version

    @property
    def shares(self) -> dict[int, float]:
        """The percent of the requests that each version gets."""
        return {self.version: 100.0 - self.weight, self.other: self.weight} if self.other else {self.version: 100.0}


LIVE: Final = "live"
"""The alias that a function's routes serve; every function that is deployed has it."""


def leading(deployments: Iterable[Deployment], aliases: Iterable[Alias]) -> dict[str, Deployment]:
    """
    Return, by function, the deployment that its limits and permits go by: that which most requests go to.

    A function without an entry for ``live`` serves its highest version.
    """
    wanted = {alias.function: alias.leading for alias in aliases if alias.alias == LIVE}
    found: dict[str, Deployment] = {}
    for deployment in deployments:
        name = deployment.function
        if name in wanted:
            if deployment.version == wanted[name]:
                found[name] = deployment
        elif name not in found or found[name].version < deployment.version:
            found[name] = deployment
    return found


class Outcome(str, Enum):
    """How an invocation ended; every invocation ends in exactly one."""

    OK = "ok"
    FAILED = "failed"  # the guest answered nothing usable: trap, exit code, malformed response
    LIMITED = "limited"  # a limit ended it: deadline, CPU, memory, output
    REFUSED = "refused"  # it never started: overload, body too large
    CANCELLED = "cancelled"  # the client went away
