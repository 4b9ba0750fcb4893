"""How many permits of each function every worker has: the host's side of what workers lend each other."""

from __future__ import annotations

from collections.abc import Iterable

from faas.invocation import Deployment
from faas.wire.messages import Share, Shares, first_share


class _Lent:
    """One function whose permits are not where they began; what workers have and what is free add up to the limit."""

    def __init__(self, name: str, limit: int, connected: list[bool]) -> None:
        n_workers = len(connected)
        self.name = name
        self.limit = limit
        self.free = 0
        self.has = [first_share(limit, name, worker, n_workers) for worker in range(n_workers)]
        self.wanted = [0] * n_workers
        self.since = [0] * n_workers
        self.asked = [0] * n_workers
        """What each worker knows that others want."""
        for worker, there in enumerate(connected):
            if not there:
                self.take_all(worker)

    def take_all(self, worker: int) -> None:
        self.free += self.has[worker]
        self.has[worker] = self.wanted[worker] = self.asked[worker] = 0


class ShareLedger:
    """
    Moves permits between workers: from those that don't use them to those that lack them. Lives as long as the host.

    Each method returns what the workers must be told, in this order, before anything else happens here.
    """

    def __init__(self, n_workers: int) -> None:
        """Begin with no worker connected."""
        self._connected = [False] * n_workers
        self._limits: dict[str, int] = {}
        self._lent: dict[str, _Lent] = {}
        self._n_wants = 0

    def serve(self, deployments: Iterable[Deployment]) -> None:
        """Go by the limits of *deployments*, before workers are told of them: where a limit changed, all begin anew."""
        self._limits = {d.function: d.manifest.limits.max_concurrency for d in deployments}
        self._lent = {name: lent for name, lent in self._lent.items() if self._limits.get(name) == lent.limit}

    def connect(self, worker: int) -> dict[str, int]:
        """Return what *worker*, which begins now, may run of functions whose permits were lent."""
        self._connected[worker] = True
        for lent in self._lent.values():
            begins_with = min(lent.free, first_share(lent.limit, lent.name, worker, len(self._connected)))
            lent.has[worker] += begins_with
            lent.free -= begins_with
        return {name: lent.has[worker] for name, lent in self._lent.items()}

    def retire(self, worker: int) -> dict[int, Shares]:
        """Take back all that *worker* had: its process is gone."""
        self._connected[worker] = False
        told: dict[int, dict[str, Share]] = {}
        for lent in self._lent.values():
            lent.take_all(worker)
            self._settle(lent, told)
        return {to: Shares(names) for to, names in told.items()}

    def report(self, worker: int, shares: Shares) -> dict[int, Shares]:
        """Take what *worker* gave back and know what it wants."""
        told: dict[int, dict[str, Share]] = {}
        for name, share in shares.names.items():
            if self._limits.get(name) != share.limit:
                continue  # it had not heard of the new limit
            lent = self._lent.get(name)
            if lent is None:
                lent = self._lent[name] = _Lent(name, share.limit, self._connected)
            n_given = min(share.n_given, lent.has[worker])
            lent.has[worker] -= n_given
            lent.free += n_given
            lent.asked[worker] = max(0, lent.asked[worker] - n_given)
            if share.n_wanted > 0 and not lent.wanted[worker]:
                self._queue(lent, worker)
            lent.wanted[worker] = share.n_wanted
            self._settle(lent, told)
        return {to: Shares(names) for to, names in told.items()}

    def _queue(self, lent: _Lent, worker: int) -> None:
        self._n_wants += 1
        lent.since[worker] = self._n_wants

    def _settle(self, lent: _Lent, told: dict[int, dict[str, Share]]) -> None:
        """Grant what is free, to those who have least first; ask for the rest."""
        workers = range(len(lent.has))
        granted = [0] * len(lent.has)
        while lent.free and (wanting := [worker for worker in workers if lent.wanted[worker]]):
            worker = min(wanting, key=lambda w: (lent.has[w], lent.since[w]))
            lent.free -= 1
            lent.has[worker] += 1
            lent.wanted[worker] -= 1
            granted[worker] += 1
            self._queue(lent, worker)
        n_wanted = sum(lent.wanted)
        for worker in workers:
            by_others = n_wanted - lent.wanted[worker]
            if granted[worker] or (lent.has[worker] and lent.asked[worker] != by_others):
                lent.asked[worker] = by_others
                before = told.setdefault(worker, {}).get(lent.name)
                n_before = before.n_given if before is not None else 0
                told[worker][lent.name] = Share(lent.limit, n_before + granted[worker], by_others)
