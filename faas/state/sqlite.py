"""State in one SQLite file: write-ahead log, full sync, one thread that does all the work."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from faas.clock import Clock
from faas.errors import StateError
from faas.state.database import Row, T, Work
from faas.state.schema import MIGRATIONS

MAX_GROUP = 256
"""Transactions that share one sync of the disk."""


class _Pending(NamedTuple):
    work: Work[Any]
    done: Future[Any]


class SqliteSession:
    """``faas.state.database.Session`` on the one connection."""

    skip_locked = ""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        """Args: *now* is the time of the transaction."""
        self._connection = connection
        self._now = now
        self.topics: list[str] = []

    def execute(self, sql: str, /, *arguments: Any) -> list[Row]:
        """Run one statement and return its rows."""
        return self._connection.execute(sql, arguments).fetchall()

    def changed(self, sql: str, /, *arguments: Any) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, arguments).rowcount

    def now(self) -> float:
        """Return the host's time."""
        return self._now

    def lock(self, name: str) -> None:
        """Do nothing: transactions come one after another."""

    def notify(self, topic: str) -> None:
        """Remember *topic* until the commit."""
        if topic not in self.topics:
            self.topics.append(topic)


class SqliteDatabase:
    """
    ``faas.state.database.Database`` in a SQLite file; lives from ``open`` to ``aclose``.

    Transactions that wait for the thread at the same time are committed together, each on its own savepoint: a sync
    takes milliseconds, and they share it.
    Thread: every statement runs on one private thread, so the loop never waits for a disk.
    """

    shared = False

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, clock: Clock) -> None:
        """Use ``open``."""
        self._connection = connection
        self._thread = thread
        self._clock = clock
        self._pending: deque[_Pending] = deque()
        self._lock = threading.Lock()
        self._heard: list[Callable[[str], None]] = []

    @classmethod
    async def open(cls, path: Path, clock: Clock) -> SqliteDatabase:
        """
        Open the file at *path*, made if it is not there, and bring its schema up to date.

        Raises: StateError if it is not a state database or was written by a newer release.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faas-state")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except sqlite3.Error as exc:
            thread.shutdown()
            raise StateError(
                f"can't open {path}: {exc}; restore it from a copy, or move it away to begin anew"
            ) from exc
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, clock)

    def listen(self, heard: Callable[[str], None]) -> None:
        """Call *heard* with the topics of this process: nobody else changes the file."""
        self._heard.append(heard)

    async def aclose(self) -> None:
        """Finish what was begun and close the file. Safe to call more than once."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        except RuntimeError:
            return  # closed already
        self._thread.shutdown()

    async def run(self, work: Work[T], *, together: str = "") -> T:  # here all works go together
        """As ``Database.run``."""
        done: Future[tuple[T, list[str]]] = Future()
        done.set_running_or_notify_cancel()  # who asked may go away, the work goes on
        with self._lock:
            self._pending.append(_Pending(work, done))
        try:
            self._thread.submit(self._transact)
        except RuntimeError as exc:
            raise StateError("the state database is closed: the host stops") from exc
        ended = asyncio.wrap_future(done)
        ended.add_done_callback(self._tell)
        result, _ = await asyncio.shield(ended)  # listeners hear of the commit even if who asked is gone
        return result

    def _tell(self, ended: asyncio.Future[tuple[Any, list[str]]]) -> None:
        if ended.cancelled() or ended.exception() is not None:
            return
        for topic in ended.result()[1]:
            for heard in self._heard:
                heard(topic)

    def _transact(self) -> None:
        """Do what waits, in one transaction; the calls behind this one find nothing left."""
        with self._lock:
            group = [self._pending.popleft() for _ in range(min(len(self._pending), MAX_GROUP))]
        if not group:
            return
        db = self._connection
        ended: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                for work, done in group:
                    session = SqliteSession(db, self._clock.time_ns() / 1e9)
                    try:
                        ended.append((done, (self._saved(work, session), session.topics), None))
                    except sqlite3.OperationalError:
                        raise  # the disk is full, or such: nobody's work alone
                    except Exception as exc:
                        if not db.in_transaction:
                            raise  # undone as a whole by SQLite itself: there is no memory, or the file is damaged
                        ended.append((done, None, _said(exc)))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except BaseException as exc:
            for _, done in group:
                done.set_exception(_said(exc))
            return
        for done, result, error in ended:
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

    def _saved(self, work: Work[T], session: SqliteSession) -> T:
        """Run *work* so that only its own statements are undone when it fails."""
        db = self._connection
        db.execute("SAVEPOINT one")
        try:
            result = work(session)
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
            raise
        db.execute("RELEASE one")
        return result


def _said(exc: BaseException) -> BaseException:
    """The gate: what SQLite and the decoders say, in our words."""
    if isinstance(exc, sqlite3.Error):
        return StateError(f"the state database refused: {exc}; is the disk full or the file damaged?")
    if isinstance(exc, msgspec.ValidationError):
        return StateError(f"the state database holds what this release can't read: {exc}")
    return exc


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread is off only because the thread is named, not found: one executor thread ever uses it.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute("PRAGMA foreign_keys = ON")
        (at,) = db.execute("PRAGMA user_version").fetchone()
        if at > len(MIGRATIONS):
            raise StateError(
                f"{path} has schema {at}, this release knows up to {len(MIGRATIONS)}; use the newer release again",
                schema=at,
            )
        for number, script in enumerate(MIGRATIONS[at:], start=at + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db
