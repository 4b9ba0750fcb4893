"""Turns of the guest threads: of those that want one, the guest that has computed least so far comes first."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

AGING = 0.005
"""What waiting is worth: a guest that waits for a second goes before one that comes now and has used 5 ms less."""


HEAD_START_S = 0.005
"""How much less a waiting guest has to have used than the one that runs, to end that one's turn early."""


class Turns:
    """
    A pool of threads for guests that were not done in their first slice; lives until ``close``.

    Which guests will take long is not known, only which ones have: least attained service first lets a guest that needs
    a few milliseconds pass any number of endless ones, which go round among themselves.
    Thread: any.
    """

    def __init__(self, n_threads: int) -> None:
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="faas-guest")
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Future[bool], Callable[[float], bool]]] = []

    def submit(self, cpu_ns: int, run: Callable[[float], bool]) -> Future[bool]:
        """
        Have *run* called on one of the threads, for a guest that has used *cpu_ns*.

        It gets the guest's rank, for ``should_end``.

        A future that is cancelled before it runs never does.
        """
        rank = cpu_ns / 1e9 + AGING * time.monotonic()
        future: Future[bool] = Future()
        with self._lock:
            heapq.heappush(self._waiting, (rank, next(self._numbers), future, run))
        self._threads.submit(self._run_first)
        return future

    def should_end(self, rank: float, cpu_s: float) -> bool:
        """Return whether somebody waits who comes well before a guest of this *rank* that has used *cpu_s* since."""
        waiting = self._waiting
        try:
            return waiting[0][0] + HEAD_START_S < rank + cpu_s
        except IndexError:
            return False

    def close(self) -> None:
        """Wait for the turns under way; the others don't begin."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run_first(self) -> None:
        with self._lock:
            rank, _, future, run = heapq.heappop(self._waiting)
        if not future.set_running_or_notify_cancel():
            return
        try:
            done = run(rank)
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(done)
