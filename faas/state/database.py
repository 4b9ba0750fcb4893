"""What a store needs of a database: work in transactions, the time, locks, and word of what others changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
ANYTHING: Final = ""
"""The topic that listeners hear when some may have been missed: whatever they keep may be old."""
Row = tuple[Any, ...]


class Session(Protocol):
    """
    One transaction; valid while the work that it was given to runs, on that work's thread.

    SQL is in the common subset of SQLite and PostgreSQL, with ``?`` where an argument goes; arguments are None, str,
    int, float and bytes.
    """

    skip_locked: str
    """Ends a SELECT of rows that nobody else has, and that are ours until the end; '' where nobody else is."""

    def execute(self, sql: str, /, *arguments: Any) -> list[Row]:
        """Run one statement and return its rows, also those of ``RETURNING``."""

    def changed(self, sql: str, /, *arguments: Any) -> int:
        """Run one statement and return how many rows it inserted, updated or deleted."""

    def now(self) -> float:
        """Return seconds since the epoch: the same during the transaction, and of one clock for all hosts."""

    def lock(self, name: str) -> None:
        """Have every other transaction that asks for *name* wait until this one has ended."""

    def notify(self, topic: str) -> None:
        """Have every listener of every host hear of *topic*, once and only if this transaction commits."""


Work = Callable[[Session], T]
"""Synchronous, and free of effects elsewhere: it may be run again from the start where a transaction has to be."""


class Database(Protocol):
    """
    Where the stores of ``faas.state`` keep everything; lives as long as the host.

    What ``run`` has returned is durable: it survives a kill of every process and a power cut.
    """

    shared: bool
    """Whether other hosts may use it, too."""

    async def run(self, work: Work[T], *, together: str = "") -> T:
        """
        Run *work* in one transaction and return what it returned; what it raises undoes all of it.

        Cancelling does not stop what has begun.
        Args: *together* names what many are about to write to at once: their works may share a transaction, and so
        its sync of the disk, one after another. One that fails has only its own statements undone.
        Raises: StateError when the database itself fails; what *work* raised.
        """

    def listen(self, heard: Callable[[str], None]) -> None:
        """Call *heard* with each topic that a transaction of any host notified, on the event loop, soon afterwards."""

    async def aclose(self) -> None:
        """Finish what was begun, and disconnect."""
