"""Several hosts on one database: each follows what the others change, and has the files of what they deploy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from faas.artifacts.store import ArtifactStore
from faas.errors import ArtifactMissingError, FaasError
from faas.invocation import Deployment
from faas.log import event, exception
from faas.state.database import ANYTHING
from faas.state.state import State

RETRY_S = 2.0
"""Until a change that could not be followed is looked at again."""

_logger = logging.getLogger(__name__)


class Follower:
    """
    Has parts of this host look again at what other hosts may have changed; lives as long as the host.

    Each topic has one look under way at most; what is heard meanwhile is one more look. Thread: the loop.
    """

    def __init__(
        self,
        refreshers: Mapping[str, Callable[[], Awaitable[object]]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Args: *refreshers* by topic; each goes by what the state says now, and may be called when nothing changed."""
        self._refreshers = refreshers
        self._sleep = sleep
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    def heard(self, topic: str) -> None:
        """Have whoever keeps something of *topic* look at the state again, soon."""
        for known in self._refreshers if topic == ANYTHING else (topic,):
            if known not in self._refreshers:
                continue
            if known in self._running:
                self._again.add(known)
            else:
                self._running[known] = asyncio.create_task(self._look(known), name=f"follow-{known}")

    async def aclose(self) -> None:
        """Stop looking. Safe to call more than once."""
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _look(self, topic: str) -> None:
        try:
            while True:
                self._again.discard(topic)
                try:
                    await self._refreshers[topic]()
                except FaasError as exc:
                    event(
                        _logger, "follow.failed", level=logging.WARNING, topic=topic, code=exc.code, reason=exc.message
                    )
                    self._again.add(topic)
                    await self._sleep(RETRY_S)
                except Exception as exc:
                    exception(_logger, "follow.failed", exc, topic=topic)
                if topic not in self._again:
                    return
        finally:
            self._running.pop(topic, None)


class SharedFiles:
    """
    Modules and bundles on their way between this host's artifact store and the shared state.

    Where the state is this host's alone it does nothing: the artifact store has them.
    """

    def __init__(self, state: State, store: ArtifactStore) -> None:
        self._state = state
        self._store = store
        self._here: set[str] = set()  # looking is hashing, so once

    async def publish(self, wasm_digest: str, bundle_digest: str) -> None:
        """
        Put what a version needs where every host finds it; to be done before the version is.

        Raises: ArtifactError, StateError.
        """
        if not self._state.shared:
            return
        for find, digest in ((self._store.wasm_path, wasm_digest), (self._store.bundle_path, bundle_digest)):
            if digest:
                path = await asyncio.to_thread(find, digest)
                await self._state.blobs.put(digest, await asyncio.to_thread(path.read_bytes))

    async def fetch(self, deployment: Deployment) -> None:
        """
        Have here what *deployment* needs, whichever host it was deployed on.

        Raises: ArtifactError if no host has put it there, StateError.
        """
        if not self._state.shared:
            return
        for find, put, digest in (
            (self._store.wasm_path, self._store.put_wasm, deployment.wasm_digest),
            (self._store.bundle_path, self._store.put_bundle, deployment.bundle_digest),
        ):
            if not digest or digest in self._here:
                continue
            try:
                await asyncio.to_thread(find, digest)
            except ArtifactMissingError:
                await asyncio.to_thread(put, await self._state.blobs.get(digest))
            self._here.add(digest)

    async def sweep(self) -> None:
        """Remove from the shared state what no version of any host names any more."""
        if self._state.shared:
            references = await self._state.functions.references()
            named = references.wasm_digests | references.bundle_digests
            await self._state.blobs.sweep(named)
            self._here &= named
