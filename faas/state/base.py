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


class State(Protocol):
    """
    Functions and their immutable versions, numbered from 1 per function; models; API keys. Lives as long as the host.

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

    async def put_model(self, entry: ModelEntry) -> ModelEntry:
        """Keep *entry* in place of what has its name, and return it with its time."""

    async def remove_model(self, name: str) -> None:
        """
        Forget the model *name*; its file stays.

        Raises: ModelNotFoundError.
        """

    async def models(self) -> tuple[ModelEntry, ...]:
        """Return every registered model, ordered by name."""

    async def fingerprint(self, mark: FileMark) -> str:
        """Return the digest that was kept for just this file; '' if none was, or if it has changed since."""

    async def keep_fingerprint(self, mark: FileMark, digest: str) -> None:
        """Remember *digest* for as long as the file at that path stays as *mark* says."""

    async def add_key(self, entry: KeyEntry) -> KeyEntry:
        """
        Keep *entry*, and return it with its time.

        Raises: KeyTakenError if a key has that name.
        """

    async def remove_key(self, name: str) -> None:
        """
        Forget the key *name*.

        Raises: KeyNotFoundError if there is none.
        """

    async def keys(self) -> tuple[KeyEntry, ...]:
        """Return every API key, ordered by name."""

    async def aclose(self) -> None:
        """Finish what was begun and close the store."""
