"""State in PostgreSQL, which several hosts may share: a few connections, each with its thread, and one that listens."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql as pgsql
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import DeadlockDetected, SerializationFailure

from faas.errors import StateError
from faas.log import event, exception
from faas.state.database import ANYTHING, Row, Session, T, Work
from faas.state.schema import MIGRATIONS, for_postgresql

CHANNEL: Final = "faas"
CONNECTIONS: Final = 8
MAX_TRIES: Final = 10
"""Of a transaction that stood in another one's way."""
MAX_GROUP: Final = 64
"""Works that share a transaction; other hosts that want the same wait so long."""
CONNECT_TIMEOUT_S: Final = 5
STALL_S: Final = 30
"""A transaction of a host that was stopped or cut off may keep its locks for so long."""
LISTEN_AGAIN_S: Final = 1.0
_SETTINGS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    # A server that went away without a word is noticed, by the listener too, which never says anything.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Unless the URL has others."""
_MIGRATING: Final = "faas schema"

_logger = logging.getLogger(__name__)


class PostgresSession:
    """``faas.state.database.Session`` on one connection."""

    skip_locked = " FOR UPDATE SKIP LOCKED"

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection
        self._now: float | None = None
        self._locked: set[str] = set()

    def execute(self, sql: str, /, *arguments: Any) -> list[Row]:
        """Run one statement and return its rows."""
        cursor = self._connection.execute(_translated(sql), arguments)
        return [] if cursor.description is None else cursor.fetchall()

    def changed(self, sql: str, /, *arguments: Any) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(_translated(sql), arguments).rowcount

    def now(self) -> float:
        """Return the database's time, which all hosts go by."""
        if self._now is None:
            self._now = float(self.execute("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])
        return self._now

    def lock(self, name: str) -> None:
        """Wait for an advisory lock, held until the transaction ends."""
        if name not in self._locked:
            self.execute("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", name)
            self._locked.add(name)

    def notify(self, topic: str) -> None:
        """Notify with the commit."""
        self.execute("SELECT pg_notify(?, ?)", CHANNEL, topic)


class _Waiting(NamedTuple):
    work: Work[Any]
    done: asyncio.Future[Any]


class PostgresDatabase:
    """
    ``faas.state.database.Database`` in PostgreSQL 13 or later; lives from ``open`` to ``aclose``.

    Transactions are READ COMMITTED: work that reads before it writes, or twice, takes ``Session.lock`` first.
    Works that go together are one transaction as long as all of them succeed; where one fails, each is its own. They
    take one thread for all of one name, so that they never keep others from theirs.
    Thread: each of a few threads has a connection of its own, made when it is first needed and again when it is lost.
    """

    shared = True

    def __init__(self, url: str) -> None:
        """Use ``open``."""
        self._url = url
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS, thread_name_prefix="faas-state")
        self._own = threading.local()
        self._open: set[psycopg.Connection[Row]] = set()
        self._heard: list[Callable[[str], None]] = []
        self._listening: asyncio.Task[None] | None = None
        self._listens = asyncio.Event()
        self._together: dict[str, deque[_Waiting]] = {}
        self._groups: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str) -> PostgresDatabase:
        """
        Connect to *url* (``postgresql://…``) and bring the schema up to date; listens when this returns.

        Raises: StateError if nobody answers there, or a newer release wrote it.
        """
        database = cls(url)
        try:
            await asyncio.get_running_loop().run_in_executor(database._threads, database._begin)
            database._listening = asyncio.create_task(database._listen())
            listens = asyncio.create_task(database._listens.wait())
            await asyncio.wait((listens, database._listening), return_when=asyncio.FIRST_COMPLETED)
            listens.cancel()
            if database._listening.done():
                database._listening.result()
        except BaseException:
            await database.aclose()
            raise
        return database

    def listen(self, heard: Callable[[str], None]) -> None:
        """Call *heard* with topics, ours included; with ``ANYTHING`` after the connection was lost for a while."""
        self._heard.append(heard)

    async def aclose(self) -> None:
        """Finish what was begun and disconnect. Safe to call more than once."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.gather(*self._groups)
        for connection in tuple(self._open):
            connection.close()
        self._open.clear()

    async def run(self, work: Work[T], *, together: str = "") -> T:
        """As ``Database.run``."""
        if not together:
            return await self._in_thread(functools.partial(self._transact, work))
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._together.get(together)
        if waiting is not None:
            waiting.append(_Waiting(work, done))
        else:
            self._together[together] = deque((_Waiting(work, done),))
            task = asyncio.create_task(self._run_together(together))
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)
        return await done

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, call)
        except RuntimeError as exc:
            raise StateError("the state database is closed: the host stops") from exc

    async def _run_together(self, name: str) -> None:
        """Run what waits under *name*, group by group, until nothing does."""
        waiting = self._together[name]
        while waiting:
            taken = [waiting.popleft() for _ in range(min(len(waiting), MAX_GROUP))]
            group = [one for one in taken if not one.done.done()]  # the others' askers are gone
            if not group:
                continue
            works = [one.work for one in group]
            try:
                ended = await self._in_thread(functools.partial(self._transact_together, works))
            except Exception as exc:
                ended = [(None, exc)] * len(group)
            for (_, done), (value, error) in zip(group, ended, strict=True):
                if done.done():
                    continue  # who asked is gone
                if error is None:
                    done.set_result(value)
                else:
                    done.set_exception(error)
        del self._together[name]

    def _transact_together(self, works: list[Work[Any]]) -> list[tuple[Any, Exception | None]]:
        """Run *works* in one transaction; if one of them fails, each in its own. What comes of each is its alone."""
        refused = False

        def all_of(session: Session) -> list[tuple[Any, Exception | None]]:
            nonlocal refused
            try:
                return [(work(session), None) for work in works]
            except psycopg.OperationalError:
                raise  # nobody's work alone
            except Exception:
                refused = True
                raise

        try:
            return self._transact(all_of)
        except Exception as exc:
            if not refused:
                return [(None, exc)] * len(works)
            if len(works) == 1:
                return [(None, exc)]
        return [self._ended(work) for work in works]

    def _ended(self, work: Work[Any]) -> tuple[Any, Exception | None]:
        try:
            return self._transact(work), None
        except Exception as exc:
            return None, exc

    def _transact(self, work: Work[T]) -> T:
        """Run *work* until it is through; one of ``_threads``."""
        tries = 0
        while True:
            tries += 1
            connection: psycopg.Connection[Row] | None = None
            committing = False
            try:
                connection = self._connection()
                with connection.transaction():
                    result = work(PostgresSession(connection))
                    committing = True
                return result
            except (SerializationFailure, DeadlockDetected) as exc:
                if tries == MAX_TRIES:
                    raise _refused(exc) from exc
            except psycopg.Error as exc:
                lost = connection is None or connection.closed
                if connection is not None and lost:
                    self._forget(connection)
                # A commit that nobody answered may have happened: doing it again could do it twice.
                if not lost or committing or connection is None or tries == MAX_TRIES:
                    raise _refused(exc) from exc
            except msgspec.ValidationError as exc:
                raise StateError(f"the state database holds what this release can't read: {exc}") from exc

    def _settings(self, name: str) -> dict[str, Any]:
        """Return how to connect; *name* is what the server calls the connection."""
        return {**_SETTINGS, **conninfo_to_dict(self._url), "application_name": name}

    def _connection(self) -> psycopg.Connection[Row]:
        connection: psycopg.Connection[Row] | None = getattr(self._own, "connection", None)
        if connection is None or connection.closed:
            connection = psycopg.connect(autocommit=True, **self._settings("faas"))
            self._own.connection = connection
            self._open.add(connection)
            connection.execute(pgsql.SQL("SET idle_in_transaction_session_timeout = {}").format(STALL_S * 1000))
        return connection

    def _forget(self, connection: psycopg.Connection[Row]) -> None:
        self._open.discard(connection)
        self._own.connection = None
        connection.close()

    def _begin(self) -> None:
        """Connect for the first time, and make or update the tables."""
        try:
            connection = self._connection()
        except psycopg.Error as exc:
            raise StateError(
                f"can't reach PostgreSQL: {_first_line(exc)}; check --state, and that the server runs"
            ) from exc
        try:
            with connection.transaction():
                session = PostgresSession(connection)
                ((encoding,),) = session.execute("SHOW server_encoding")
                if encoding != "UTF8":
                    raise StateError(
                        f"the database has the encoding {encoding}; make one with 'createdb -E UTF8 -T template0'"
                    )
                session.lock(_MIGRATING)
                session.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
                rows = session.execute("SELECT version FROM schema_version")
                at = int(rows[0][0]) if rows else 0
                if at > len(MIGRATIONS):
                    raise StateError(
                        f"the database has schema {at}, this release knows up to {len(MIGRATIONS)}; use the newer "
                        "release again",
                        schema=at,
                    )
                for script in MIGRATIONS[at:]:
                    connection.execute(pgsql.SQL(for_postgresql(script)))
                session.execute("DELETE FROM schema_version")
                session.execute("INSERT INTO schema_version (version) VALUES (?)", len(MIGRATIONS))
        except psycopg.Error as exc:
            raise _refused(exc) from exc

    async def _listen(self) -> None:
        """Hear of what any host changed, for as long as the database is open."""
        missed = False
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(autocommit=True, **self._settings("faas listener"))
                async with connection:
                    await connection.execute(pgsql.SQL("LISTEN {}").format(pgsql.Identifier(CHANNEL)))
                    self._listens.set()
                    if missed:
                        self._tell(ANYTHING)
                    async for notice in connection.notifies():
                        self._tell(notice.payload)
            except psycopg.Error as exc:
                event(_logger, "state.listener_lost", level=logging.WARNING, reason=_first_line(exc))
            missed = True
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _tell(self, topic: str) -> None:
        for heard in self._heard:
            try:
                heard(topic)
            except Exception as exc:  # the others, and what is notified next, are heard all the same
                exception(_logger, "state.listener_failed", exc, topic=topic)


@functools.lru_cache(maxsize=1024)
def _translated(sql: str) -> Any:
    """Return *sql* with psycopg's placeholders; no statement of ours has a ``?`` or ``%`` that is none."""
    return sql.replace("%", "%%").replace("?", "%s")


def _refused(exc: psycopg.Error) -> StateError:
    return StateError(f"the state database refused: {_first_line(exc)}; the server's log says more")


def _first_line(exc: psycopg.Error) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
