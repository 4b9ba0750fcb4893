"""What any state store promises; the control process knows only this."""

from __future__ import annotations

from typing import Protocol

import msgspec

from faas.invocation import Deployment, Kind
from faas.manifest import Manifest


class NewVersion(msgspec.Struct, frozen=True):
    """A version about to be born: everything of a ``Deployment`` but its number and its time."""

    manifest: Manifest
    kind: Kind
    wasm_digest: str
    artifact_key: str
    bundle_digest: str = ""


class References(msgspec.Struct, frozen=True):
    """Every stored file that some version still needs."""

    wasm_digests: frozenset[str]
    artifact_keys: frozenset[str]
    bundle_digests: frozenset[str]


class State(Protocol):
    """
    Functions and their immutable versions, numbered from 1 per function; lives as long as the host.

    What an operation has returned is on the disk: it survives a kill and a power cut.
    A version number is never given twice, not even after its function was removed.
    Raises: StateError from every operation when the store itself fails.
    """

    async def next_version(self, name: str) -> int:
        """Return the number that the next version of *name* will get, if nothing else is deployed meanwhile."""

    async def add_version_and_activate(self, new: NewVersion) -> Deployment:
        """
        Number *new*, keep it and make it the one that serves, all or nothing.

        Raises: RouteTakenError if another active function has one of its routes.
        """

    async def remove_function(self, name: str) -> tuple[Deployment, ...]:
        """
        Forget *name* and its versions, which are returned; its highest number is kept.

        Raises: FunctionNotFoundError.
        """

    async def active_deployments(self) -> tuple[Deployment, ...]:
        """Return the serving version of each function, ordered by name."""

    async def active(self, name: str) -> Deployment:
        """
        Return the serving version of *name*.

        Raises: FunctionNotFoundError.
        """

    async def versions(self, name: str) -> tuple[Deployment, ...]:
        """
        Return every version of *name*, newest first.

        Raises: FunctionNotFoundError.
        """

    async def routes(self) -> dict[str, tuple[str, ...]]:
        """Return the routes of each active function."""

    async def references(self) -> References:
        """Return what must stay in the artifact store."""

    async def update_artifact_key(self, function: str, version: int, artifact_key: str) -> None:
        """Note that *version*'s native code is now kept under *artifact_key* (another engine, another key)."""

    async def aclose(self) -> None:
        """Finish what was begun and close the store."""
