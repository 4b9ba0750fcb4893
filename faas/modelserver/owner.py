"""
The owner thread: the only one that touches loaded models.

Requests come in as calls from the event loop's thread and go through one queue; what comes out is handed to the loop
once per step. Loading runs in a thread of its own, so that the other models go on.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

import msgspec

from faas.clock import Clock
from faas.errors import FaasError, InternalError, ModelUnavailableError
from faas.log import event, exception
from faas.modelserver.backends.base import Backend, Inspected, LoadedModel, LoadOptions
from faas.modelserver.generation import Generation, Key
from faas.modelserver.gguf import digest_of
from faas.modelserver.residency import ModelRequest, Pending, Residence, Residency, Shelf
from faas.modelserver.scheduler import EmbedJob, Scheduler
from faas.problems import to_problem
from faas.wire.models import (
    Cancel,
    Describe,
    Embed,
    Final,
    Finish,
    Generate,
    ModelCard,
    ModelStats,
    More,
    Piece,
    Register,
    Tokenize,
    Unregister,
)

Outgoing = tuple[Hashable, Piece | Final]
Deliver = Callable[[list[Outgoing]], None]

_log = logging.getLogger(__name__)


class Owner:
    """
    Every model and every request on it; lives from ``start`` until ``stop``.

    Each request ends in exactly one ``Final``, given to *deliver* with its connection; after ``drop`` a connection gets
    nothing any more. *deliver* is called in the owner thread and must only hand over.
    Thread: the public methods may be called from any.
    """

    def __init__(
        self, backend: Backend, options: LoadOptions, residency: Residency, clock: Clock, deliver: Deliver
    ) -> None:
        self._backend = backend
        self._options = options
        self._residency = residency
        self._clock = clock
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outgoing: list[Outgoing] = []
        self._open: dict[Key, Generation | EmbedJob | Pending] = {}
        self._held_back: set[Hashable] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model-owner", daemon=True)

    # any thread

    def start(self) -> None:
        """Look at every model file, then start the thread."""
        for shelf in self._residency.all:
            self._inspect(shelf)
        self._thread.start()

    def stop(self) -> None:
        """End every request, free every model, and return when the thread has ended."""
        self._inbox.put(self._stop)
        self._thread.join()

    def submit(self, connection: Hashable, request: ModelRequest) -> None:
        """Take a request; its id must not be in use on *connection*."""
        self._inbox.put(partial(self._take, connection, request, self._clock.monotonic()))

    def cancel(self, connection: Hashable, message: Cancel) -> None:
        """End a request soon; unknown ones are ignored."""
        self._inbox.put(partial(self._cancel, Key(connection, message.id)))

    def more(self, connection: Hashable, message: More) -> None:
        """Let a generation run further ahead."""
        self._inbox.put(partial(self._more, Key(connection, message.id), message.n))

    def hold_back(self, connection: Hashable, *, yes: bool) -> None:
        """Stop (or go on) decoding for a connection whose peer does not read."""
        self._inbox.put(partial(self._hold_back, connection, yes))

    def drop(self, connection: Hashable) -> None:
        """Cancel every request of a connection that is gone."""
        self._inbox.put(partial(self._drop, connection))

    def stats(self, receive: Callable[[ModelStats], None]) -> None:
        """Call *receive* (in the owner thread) with the counters."""
        self._inbox.put(lambda: receive(self._stats()))

    def cards(self) -> tuple[ModelCard, ...]:
        """Return every model's card."""
        return tuple(shelf.card() for shelf in list(self._residency.shelves.values()))

    # the thread

    def _run(self) -> None:
        while not self._stopping:
            self._listen()
            for shelf in self._residency.all:
                if shelf.scheduler is not None and not shelf.scheduler.is_idle:
                    self._step(shelf, shelf.scheduler)
            self._sweep()
            self._start_loads()
            self._hand_over()
        self._hand_over()

    def _listen(self) -> None:
        """Do what was asked; wait for it only if no model has work."""
        timeout_s = self._patience_s()
        try:
            command = self._inbox.get(block=timeout_s != 0, timeout=timeout_s or None)
            while True:
                command()
                command = self._inbox.get_nowait()
        except queue.Empty:
            pass  # that was all, or something falls due
        now = self._clock.monotonic()
        for shelf in self._residency.all:
            for pending in [p for p in shelf.pending if 0 < _deadline_of(p.request) <= now]:
                self._give_up(shelf, pending, Finish.DEADLINE)

    def _patience_s(self) -> float | None:
        """Return how long to wait for commands: 0 if there is work, None if nothing ever falls due."""
        deadlines = []
        for shelf in self._residency.all:
            if shelf.scheduler is not None:
                if shelf.scheduler.has_work:
                    return 0
                deadlines.append(shelf.scheduler.next_deadline)
            deadlines += [_deadline_of(pending.request) for pending in shelf.pending]
        due = min((deadline for deadline in deadlines if deadline), default=0.0)
        return max(0.0005, due - self._clock.monotonic()) if due else None

    def _step(self, shelf: Shelf, scheduler: Scheduler) -> None:
        shelf.used_at = self._clock.monotonic()
        try:
            scheduler.step()
        except Exception as exc:
            exception(_log, "model.broken", exc, model=shelf.name)
            scheduler.fail_all(InternalError("the model server failed; the log has the reason"))
            self._unload(shelf)

    def _hand_over(self) -> None:
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, []
            self._deliver(outgoing)

    def _emit(self, connection: Hashable, message: Piece | Final) -> None:
        if isinstance(message, Final):
            self._open.pop(Key(connection, message.id), None)
        self._outgoing.append((connection, message))

    def _refuse(self, key: Key, error: FaasError) -> None:
        self._emit(key.connection, Final(key.id, Finish.FAILED, problem=to_problem(error)))

    # commands

    def _take(self, connection: Hashable, request: ModelRequest, arrived_at: float) -> None:
        key = Key(connection, request.id)
        pending = Pending(key, request, arrived_at)
        self._open[key] = pending
        if isinstance(request, Describe) and (not request.model or not request.load):
            self._describe(key, request)
            return
        if isinstance(request, Register):
            threading.Thread(target=self._look_at, args=(key, request), name="model-inspect", daemon=True).start()
            return
        if isinstance(request, Unregister):
            self._residency.withdraw(request.name)
            self._emit(connection, Final(request.id, Finish.DONE))
            return
        try:
            shelf = self._residency.find(request.model)
        except FaasError as exc:
            self._refuse(key, exc)
            return
        if shelf.scheduler is not None:
            self._start(shelf, shelf.scheduler, pending)
            return
        shelf.pending.append(pending)
        if shelf.residence is Residence.ABSENT:
            shelf.residence = Residence.QUEUED

    def _start(self, shelf: Shelf, scheduler: Scheduler, pending: Pending) -> None:
        """Do a request whose model is resident."""
        key, request = pending.key, pending.request
        shelf.used_at = self._clock.monotonic()
        if isinstance(request, Generate):
            generation = Generation(key, request, pending.arrived_at)
            self._open[key] = generation
            scheduler.submit(generation)
        elif isinstance(request, Embed):
            job = scheduler.submit_embed(key, request)
            if job is not None:
                self._open[key] = job
        elif isinstance(request, Tokenize):
            try:
                tokens = scheduler.tokenize(
                    request.text, add_special=request.add_special, parse_special=request.parse_special
                )
            except FaasError as exc:
                self._refuse(key, exc)
                return
            self._emit(key.connection, Final(request.id, Finish.DONE, tokens=tuple(tokens)))
        else:
            self._emit(key.connection, Final(request.id, Finish.DONE, cards=(shelf.card(),)))

    def _describe(self, key: Key, request: Describe) -> None:
        try:
            cards = (self._residency.find(request.model).card(),) if request.model else self.cards()
        except FaasError as exc:
            self._refuse(key, exc)
            return
        self._emit(key.connection, Final(request.id, Finish.DONE, cards=cards))

    def _cancel(self, key: Key) -> None:
        target = self._open.get(key)
        if isinstance(target, Pending):
            for shelf in self._residency.all:
                if target in shelf.pending:
                    self._give_up(shelf, target, Finish.CANCELLED)
        elif target is not None:
            target.cancelled = True

    def _give_up(self, shelf: Shelf, pending: Pending, finish: Finish) -> None:
        shelf.pending.remove(pending)
        self._emit(pending.key.connection, Final(pending.key.id, finish))

    def _more(self, key: Key, n: int) -> None:
        target = self._open.get(key)
        if isinstance(target, Generation):
            target.credit += n
        elif isinstance(target, Pending) and isinstance(target.request, Generate) and target.request.credit > 0:
            target.request = msgspec.structs.replace(target.request, credit=target.request.credit + n)

    def _hold_back(self, connection: Hashable, yes: bool) -> None:
        (self._held_back.add if yes else self._held_back.discard)(connection)
        for shelf in self._residency.all:
            if shelf.scheduler is not None:
                shelf.scheduler.hold_back(connection, yes=yes)

    def _drop(self, connection: Hashable) -> None:
        for key in [key for key in self._open if key.connection == connection]:
            self._cancel(key)
        self._hold_back(connection, False)

    def _stats(self) -> ModelStats:
        models = {}
        for name, shelf in self._residency.shelves.items():
            gauges = shelf.scheduler.gauges() if shelf.scheduler is not None else {}
            absent = dict.fromkeys(("active", "waiting", "cells_used", "saved_bytes", "resident_bytes"), 0.0)
            models[name] = {**shelf.counters.totals, **absent, **gauges}
            models[name]["waiting"] += len(shelf.pending)
        functions = {name: dict(row) for name, row in self._residency.functions.by_function.items()}
        return ModelStats(models, functions)

    def _stop(self) -> None:
        self._stopping = True
        error = ModelUnavailableError("the model server is shutting down; try again")
        for shelf in self._residency.all:
            if shelf.scheduler is not None:
                shelf.scheduler.fail_all(error)
                self._unload(shelf)
            while shelf.pending:
                self._refuse(shelf.pending.popleft().key, error)

    # registering

    def _look_at(self, key: Key, request: Register) -> None:
        """Thread: its own; the result goes through the queue like any command."""
        result: Inspected | FaasError
        try:
            result = self._backend.inspect(Path(request.path), self._options)
        except FaasError as exc:
            result = exc
        self._inbox.put(partial(self._register, key, request, result))

    def _register(self, key: Key, request: Register, result: Inspected | FaasError) -> None:
        if isinstance(result, FaasError):
            self._refuse(key, result)
            return
        shelf = self._residency.offer(request.name, Path(request.path), result)
        event(_log, "model.registered", model=request.name)
        self._emit(key.connection, Final(request.id, Finish.DONE, cards=(shelf.card(),)))

    def _sweep(self) -> None:
        """Let models go that are offered no more and that nobody uses any more."""
        for shelf in list(self._residency.retired):
            if shelf.is_evictable:
                self._unload(shelf)
            if shelf.residence is Residence.ABSENT and not shelf.pending:
                self._residency.retired.remove(shelf)

    # loading

    def _inspect(self, shelf: Shelf) -> None:
        shelf.problem = None
        try:
            shelf.inspected = self._backend.inspect(shelf.path, self._options)
        except FaasError as exc:
            shelf.inspected, shelf.problem = None, exc
            event(_log, "model.refused", level=logging.WARNING, model=shelf.name, code=exc.code, reason=exc.message)

    def _start_loads(self) -> None:
        """Load what is wanted and fits; unload idle models for it."""
        for shelf in self._residency.all:
            if shelf.residence is not Residence.QUEUED:
                continue
            if not shelf.pending:
                shelf.residence = Residence.ABSENT  # all who wanted it are gone
                continue
            if shelf.inspected is None:
                self._inspect(shelf)  # the file may have been repaired meanwhile
            try:
                if shelf.problem is not None:
                    raise shelf.problem
                victims = self._residency.victims_for(shelf)
            except FaasError as exc:
                self._loaded(shelf, exc)
                continue
            if victims is None:
                continue
            for victim in victims:
                self._unload(victim)
            shelf.residence = Residence.LOADING
            threading.Thread(target=self._load, args=(shelf, shelf.path), name="model-loader", daemon=True).start()

    def _load(self, shelf: Shelf, path: Path) -> None:
        """Thread: its own; the result goes through the queue like any command."""
        result: tuple[LoadedModel, Inspected, str] | FaasError
        try:
            inspected = self._backend.inspect(path, self._options)
            digest = shelf.digest or digest_of(path)
            result = (self._backend.load(path, self._options), inspected, digest)
        except FaasError as exc:
            result = exc
        except Exception as exc:
            exception(_log, "model.load_failed", exc, model=shelf.name)
            result = InternalError("the model server failed to load the model; the log has the reason")
        self._inbox.put(partial(self._loaded, shelf, result))

    def _loaded(self, shelf: Shelf, result: tuple[LoadedModel, Inspected, str] | FaasError) -> None:
        if isinstance(result, FaasError):
            event(
                _log, "model.refused", level=logging.WARNING, model=shelf.name, code=result.code, reason=result.message
            )
            shelf.residence = Residence.ABSENT
            while shelf.pending:
                self._refuse(shelf.pending.popleft().key, result)
            return
        model, shelf.inspected, shelf.digest = result
        if self._stopping:
            model.close()
            return
        shelf.model = model
        shelf.counters.add("loads", 1)
        shelf.residence = Residence.RESIDENT
        scheduler = Scheduler(
            model,
            self._options.n_slots,
            shelf.counters,
            self._clock,
            self._emit,
            saved_bytes=self._options.saved_bytes,
        )
        for connection in self._held_back:
            scheduler.hold_back(connection, yes=True)
        shelf.scheduler = scheduler
        event(_log, "model.loaded", model=shelf.name, resident_bytes=model.resident_bytes, n_cells=model.n_cells)
        while shelf.pending:
            self._start(shelf, scheduler, shelf.pending.popleft())

    def _unload(self, shelf: Shelf) -> None:
        event(_log, "model.unloaded", model=shelf.name)
        if shelf.scheduler is not None:
            shelf.scheduler.close()
        shelf.scheduler = shelf.model = None
        shelf.residence = Residence.QUEUED if shelf.pending else Residence.ABSENT


def _deadline_of(request: ModelRequest) -> float:
    return request.deadline if isinstance(request, (Generate, Embed)) else 0.0
