"""Which models are in memory: loaded at their first use, unloaded when idle and the budget is wanted for another."""

from __future__ import annotations

from collections import deque
from enum import Enum
from pathlib import Path

import msgspec

from faas.errors import FaasError, ModelNotFoundError, ModelOverBudgetError
from faas.modelserver.backends.base import Inspected, LoadedModel
from faas.modelserver.counters import Counters, FunctionCounters
from faas.modelserver.generation import Key
from faas.modelserver.scheduler import Scheduler
from faas.wire.models import Describe, Embed, Generate, ModelCard, Register, Tokenize, Unregister

ModelRequest = Generate | Embed | Tokenize | Describe | Register | Unregister


class Residence(Enum):
    """
    Where a model is.

    ABSENT ──wanted──▶ QUEUED ──fits the budget──▶ LOADING ──▶ RESIDENT ──evicted, idle──▶ ABSENT
                                                      └──refused──▶ ABSENT
    """

    ABSENT = "absent"
    QUEUED = "queued"
    LOADING = "loading"
    RESIDENT = "resident"


class Pending(msgspec.Struct):
    """A request that waits for its model."""

    key: Key
    request: ModelRequest
    arrived_at: float


class Shelf:
    """One registered model and where it is; lives as long as the server."""

    def __init__(self, name: str, path: Path, counters: Counters, digest: str) -> None:
        self.name = name
        self.path = path
        self.counters = counters
        self.digest = digest
        self.residence = Residence.ABSENT
        self.inspected: Inspected | None = None
        self.problem: FaasError | None = None
        self.model: LoadedModel | None = None
        self.scheduler: Scheduler | None = None
        self.pending: deque[Pending] = deque()
        self.used_at = 0.0

    @property
    def needs_bytes(self) -> int:
        """How much of the budget it takes."""
        return self.inspected.needs_bytes if self.inspected is not None else 0

    @property
    def is_evictable(self) -> bool:
        """Tell whether it could be unloaded now."""
        return self.residence is Residence.RESIDENT and self.scheduler is not None and self.scheduler.is_idle

    def card(self) -> ModelCard:
        """Return what is known of the model."""
        model, inspected = self.model, self.inspected
        if model is not None:
            return ModelCard(
                name=self.name,
                path=str(self.path),
                digest=self.digest,
                bytes=inspected.file_bytes if inspected is not None else 0,
                loaded=True,
                n_ctx=model.n_ctx,
                n_ctx_train=model.n_ctx_train,
                n_embd=model.n_embd,
                n_vocab=model.n_vocab,
                architecture=model.architecture,
                description=model.description,
                chat_template=model.chat_template,
                bos=model.bos,
                eos=model.eos,
                pooling=model.pooling,
            )
        if inspected is None:
            reason = self.problem.message if self.problem is not None else ""
            return ModelCard(
                name=self.name, path=str(self.path), digest=self.digest, bytes=0, loaded=False, description=reason
            )
        return ModelCard(
            name=self.name,
            path=str(self.path),
            digest=self.digest,
            bytes=inspected.file_bytes,
            loaded=False,
            n_ctx_train=inspected.n_ctx_train,
            n_embd=inspected.n_embd,
            architecture=inspected.architecture,
            chat_template=inspected.chat_template,
        )


class Residency:
    """Every registered model, and the memory budget they share. Thread: the owner's."""

    def __init__(self, models: dict[str, Path], digests: dict[str, str], budget_bytes: int) -> None:
        """Args: *budget_bytes* 0 means no limit."""
        self.functions = FunctionCounters()
        self.shelves = {
            name: Shelf(name, path, Counters(self.functions), digests.get(name, "")) for name, path in models.items()
        }
        self.retired: list[Shelf] = []
        self._budget_bytes = budget_bytes

    @property
    def all(self) -> list[Shelf]:
        """Every model that is offered, and those no longer offered whose requests still run."""
        return [*self.shelves.values(), *self.retired]

    def offer(self, name: str, path: Path, inspected: Inspected) -> Shelf:
        """Offer the model at *path* as *name*, in the place of what had that name."""
        self.withdraw(name)
        shelf = self.shelves[name] = Shelf(name, path, Counters(self.functions), "")
        shelf.inspected = inspected
        return shelf

    def withdraw(self, name: str) -> None:
        """Offer *name* no more; what uses it may end first."""
        shelf = self.shelves.pop(name, None)
        if shelf is not None:
            self.retired.append(shelf)

    def find(self, name: str) -> Shelf:
        """Return the model called *name*. Raises: ModelNotFoundError."""
        shelf = self.shelves.get(name)
        if shelf is None:
            raise ModelNotFoundError(f"no model is called {name!r}; `faas models` lists them", model=name)
        return shelf

    def victims_for(self, shelf: Shelf) -> list[Shelf] | None:
        """
        Return the idle models to unload so that *shelf* fits, least recently used first; None: not possible yet.

        Raises: ModelOverBudgetError if it would not fit even alone.
        """
        if not self._budget_bytes:
            return []
        if shelf.needs_bytes > self._budget_bytes:
            raise ModelOverBudgetError(
                f"{shelf.name} needs {shelf.needs_bytes} bytes, the budget is {self._budget_bytes}; raise the budget",
                needs_bytes=shelf.needs_bytes,
                budget_bytes=self._budget_bytes,
            )
        taken = [s for s in self.all if s.residence in (Residence.LOADING, Residence.RESIDENT)]
        excess = sum(s.needs_bytes for s in taken) + shelf.needs_bytes - self._budget_bytes
        victims: list[Shelf] = []
        for candidate in sorted((s for s in taken if s.is_evictable), key=lambda s: s.used_at):
            if excess <= 0:
                break
            victims.append(candidate)
            excess -= candidate.needs_bytes
        return victims if excess <= 0 else None
