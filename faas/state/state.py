"""Everything that a host keeps: one store for each kind of thing, on one database or another."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from faas.clock import Clock
from faas.errors import ConfigError
from faas.state import access, kv, settings
from faas.state.access import AccessStore
from faas.state.audit import AuditStore
from faas.state.blobs import BlobStore
from faas.state.database import Database
from faas.state.functions import FunctionStore
from faas.state.jobs import JobStore
from faas.state.kv import KvStore
from faas.state.models import ModelStore
from faas.state.postgresql import PostgresDatabase
from faas.state.schedules import ScheduleStore
from faas.state.settings import SettingStore
from faas.state.sqlite import SqliteDatabase

SCHEMES: Final = ("postgresql://", "postgres://")


class State:
    """The stores; lives as long as the host, closed by ``aclose``."""

    def __init__(self, database: Database, local: Database) -> None:
        """
        Args: *database* has what hosts may share, *local* what belongs to this machine; they may be the same one.
        """
        self.database = database
        self._local = local
        self.functions = FunctionStore(database)
        self.access = AccessStore(database)
        self.audit = AuditStore(database)
        self.kv = KvStore(database)
        self.settings = SettingStore(database)
        self.blobs = BlobStore(database)
        self.jobs = JobStore(database)
        self.schedules = ScheduleStore(database)
        self.models = ModelStore(local)
        self.functions.removals += (access.forget_function, kv.forget_function, settings.forget_function)

    @property
    def shared(self) -> bool:
        """Whether other hosts may change it, too."""
        return self.database.shared

    async def aclose(self) -> None:
        """Finish what was begun, and close the databases."""
        await self.database.aclose()
        if self._local is not self.database:
            await self._local.aclose()


async def open_state(url: str, path: Path, clock: Clock) -> State:
    """
    Open the state at *url*; without one that in the SQLite file at *path*, where this machine's own is in any case.

    Raises: ConfigError for a URL of another database, StateError.
    """
    if url and not url.startswith(SCHEMES):
        raise ConfigError("state: only postgresql://… is known besides the SQLite file in the home; check --state")
    local = await SqliteDatabase.open(path, clock)
    if not url:
        return State(local, local)
    try:
        return State(await PostgresDatabase.open(url), local)
    except BaseException:
        await local.aclose()
        raise
