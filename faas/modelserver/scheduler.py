"""
Continuous batching for one model: ``step`` admits, fills a batch, decodes it, samples and emits.

Sequences join and leave between steps. In a batch the running generations come first, one token each; what is left
goes to prompts, in chunks, so that a long prompt never stops the others. Prompts and slots are dealt out by function:
the one that was served least so far comes first. A prompt whose beginning some sequence holds shares its cells; one
whose beginning is being computed for another waits for that, so that a burst of equal prompts costs one.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Sequence

from faas.clock import Clock
from faas.errors import (
    FaasError,
    GenerationFailedError,
    OptionsInvalidError,
    PromptInvalidError,
    PromptTooLongError,
)
from faas.log import event
from faas.modelserver.backends.base import DEAD_END, Decoded, LoadedModel
from faas.modelserver.counters import Counters
from faas.modelserver.generation import Generation, Key, Phase
from faas.modelserver.prefix import (
    MIN_TOKENS_WORTH_KEEPING,
    TOKEN_TYPE,
    Holding,
    PrefixCache,
    SavedPrefixes,
    longer_beginning,
)
from faas.modelserver.sampling import MAX_PROBS, check_sampling
from faas.modelserver.stops import Token
from faas.problems import to_problem
from faas.wire.models import Embed, Final, Finish, Piece

Emit = Callable[[Hashable, Piece | Final], None]

CROWDED_PART, CROWDED_CELLS, KEPT_PART = 0.125, 512, 0.5
"""
With so much of the cells filled (the smaller one), a quiet moment is used to free them; at most the kept part stays, if
it is shared. With so many idle ones beside running generations, and more than theirs, those of the latter are moved.
Every idle cell costs each row of each step about 0.3 µs with the demo model.
"""

_log = logging.getLogger(__name__)


class EmbedJob:
    """One ``Embed`` and what of it is done; lives until its ``Final``."""

    def __init__(self, key: Key, request: Embed, inputs: list[list[int]], arrived_at: float) -> None:
        self.key = key
        self.request = request
        self.inputs = inputs
        self.vectors: list[tuple[float, ...]] = []
        self.cancelled = False
        self.arrived_at = arrived_at
        self.started_at = 0.0


class Scheduler:
    """
    The requests of one loaded model; lives as long as the model is loaded.

    Every request that was taken by ``submit`` or ``submit_embed`` ends in exactly one ``Final`` through *emit*.
    Thread: the owner's.
    """

    def __init__(
        self,
        model: LoadedModel,
        n_slots: int,
        counters: Counters,
        clock: Clock,
        emit: Emit,
        *,
        saved_bytes: int = 0,
    ) -> None:
        """Args: *saved_bytes* is how much memory may hold the cells of ended sequences."""
        self._model = model
        self._n_slots = n_slots
        self._counters = counters
        self._clock = clock
        self._emit = emit
        self._cache = PrefixCache(model.n_seqs)
        self._saved = SavedPrefixes(saved_bytes if model.can_trim() else 0)
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._embeds: deque[EmbedJob] = deque()
        self._held_back: set[Hashable] = set()
        self._served: dict[str, float] = {}
        self._batch: list[Generation] = []
        self._prefilled: list[tuple[Generation, int]] = []
        self._can_share = model.can_trim()
        self._is_tight = False  # cells ran out: nobody joins before somebody has left
        self._unmovable_at = -CROWDED_CELLS  # so many cells were filled when the live ones could not be copied

    # what the owner thread asks

    @property
    def is_idle(self) -> bool:
        """Tell whether there is no request at all."""
        return not (self._waiting or self._running or self._embeds)

    @property
    def has_work(self) -> bool:
        """Tell whether ``step`` would get anything done now."""
        return bool(self._embeds) or any(self._is_ready(g) for g in self._running) or self._can_admit()

    @property
    def next_deadline(self) -> float:
        """Return the earliest deadline of any request, 0 if none has one."""
        deadlines = [g.request.deadline for g in (*self._running, *self._waiting) if g.request.deadline]
        return min(deadlines, default=0.0)

    def gauges(self) -> dict[str, float]:
        """Return the numbers that go up and down."""
        return {
            "active": len(self._running),
            "waiting": len(self._waiting),
            "cells_used": self._cache.cells_used,
            "saved_bytes": self._saved.n_bytes,
            "resident_bytes": self._model.resident_bytes,
        }

    # requests

    def submit(self, generation: Generation) -> None:
        """Take a generation; what is wrong with it shows in its ``Final``."""
        try:
            self._check(generation)
        except FaasError as exc:
            self._fail(generation, exc)
            return
        self._counters.took_prompt(generation.request.function, generation.n_prompt)
        if generation.request.max_tokens == 0:
            self._end(generation, Finish.LENGTH)
            return
        self._enter(generation.request.function)
        self._waiting.append(generation)

    def submit_embed(self, key: Key, request: Embed) -> EmbedJob | None:
        """Take an embedding request."""
        now = self._clock.monotonic()
        try:
            job = EmbedJob(key, request, self._embed_inputs(request), now)
        except FaasError as exc:
            self._emit(key.connection, Final(request.id, Finish.FAILED, problem=to_problem(exc)))
            return None
        self._counters.took_prompt(request.function, sum(map(len, job.inputs)))
        self._embeds.append(job)
        return job

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of *text*. Raises: PromptInvalidError if it is not UTF-8."""
        _check_utf8(text)
        return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def hold_back(self, connection: Hashable, *, yes: bool) -> None:
        """Stop (or go on) decoding for a connection whose peer does not read."""
        (self._held_back.add if yes else self._held_back.discard)(connection)

    def fail_all(self, error: FaasError) -> None:
        """End every request with *error*."""
        for generation in (*self._running, *self._waiting):
            self._fail(generation, error)
        for job in self._embeds:
            self._emit(job.key.connection, Final(job.request.id, Finish.FAILED, problem=to_problem(error)))
        self._running, self._waiting = [], deque()
        self._embeds.clear()

    def close(self) -> None:
        """Free the model; there must be no request left."""
        self._model.close()

    # one step

    def step(self) -> None:
        """Get every ready sequence one token further, or some prompts a chunk; returns at once if there is nothing."""
        self._admit()
        if self._fill() and self._decode():
            self._sample()
        self._embed()
        if self._running:
            self._compact()
        else:
            self._tidy()

    def _admit(self) -> None:
        """End what is cancelled or late; give slots to those that wait, least served function first."""
        self._reap()
        while self._can_admit():
            generation = self._next_waiting()
            if generation is None:
                break
            self._waiting.remove(generation)
            try:
                if generation.sampler is None:  # a preempted one goes on with its own
                    generation.sampler = self._model.new_sampler(generation.request.sampling)
                    generation.sampler.accept_prompt(generation.context)
            except FaasError as exc:
                self._fail(generation, exc)
                continue
            self._place(generation)

    def _fill(self) -> bool:
        """Fill the batch: one token for each running generation, then prompts as far as the budget goes."""
        model = self._model
        model.begin_batch()
        self._batch, self._prefilled = [], []
        prompts = []
        for generation in self._running:
            if not self._is_ready(generation):
                continue
            if generation.phase is Phase.PREFILL:
                prompts.append(generation)
            elif len(self._batch) < model.n_batch:
                assert generation.holding is not None
                generation.row = model.add_token(generation.context[-1], generation.n_past, generation.holding.sequence)
                self._batch.append(generation)
        n_free = model.n_batch - len(self._batch)
        budget = min(n_free, model.prefill_budget) if self._batch else n_free
        self._fill_prompts(prompts, budget)
        return bool(self._batch or self._prefilled)

    def _decode(self) -> bool:
        """Run the batch; where cells are short make room and leave the rest to the next step."""
        outcome = self._model.decode()
        self._counters.add("decode_steps", 1)
        if outcome is Decoded.OK:
            return True
        if outcome is Decoded.FAILED:
            error = GenerationFailedError("the model library failed to decode; try again")
            for generation in {id(g): g for g in (*self._batch, *(g for g, _ in self._prefilled))}.values():
                self._fail(generation, error)
            self._running = [g for g in self._running if g.phase is not Phase.ENDED]
        else:
            self._make_room()
        return False

    def _sample(self) -> None:
        """Note what has cells now, sample every row with an output, and emit."""
        for generation in self._batch:
            holding = generation.holding
            assert holding is not None
            self._cache.fill(holding, generation.context[generation.n_past : generation.n_past + 1])
            generation.n_past += 1
        outputs = list(self._batch)
        for generation, n in self._prefilled:
            holding = generation.holding
            assert holding is not None
            self._cache.fill(holding, generation.context[generation.n_past : generation.n_past + n])
            generation.n_past += n
            if generation.n_past == len(generation.context):
                generation.phase = Phase.DECODE
                outputs.append(generation)
        if not outputs:
            return
        tokens = self._model.sample([g.row for g in outputs], [g.sampler for g in outputs if g.sampler is not None])
        now = self._clock.monotonic()
        for generation, token in zip(outputs, tokens, strict=True):
            self._advance(generation, token, now)
        self._counters.add("generated_tokens", len(outputs))
        self._running = [g for g in self._running if g.phase is not Phase.ENDED]

    def _advance(self, generation: Generation, token: int, now: float) -> None:
        """Emit *token* and decide whether the generation goes on."""
        if token == DEAD_END:
            self._fail(generation, GenerationFailedError("the grammar admits no further token; change the grammar"))
            return
        model, request = self._model, generation.request
        if not generation.n_generated:
            generation.first_token_at = now
        generation.n_generated += 1
        generation.credit -= 1
        generation.context.append(token)
        self._charge(request.function, 1)
        self._counters.generated(request.function)
        is_end = token in model.eog
        piece = model.piece(token, special=request.render_special)
        probs: tuple[tuple[int, bytes, float], ...] = ()
        if request.n_probs:
            found = model.alternatives(generation.row, token, min(request.n_probs, MAX_PROBS))
            probs = tuple((t, model.piece(t, special=True), logprob) for t, logprob in found)
        released, stopped = generation.stops.feed(Token(token, piece, probs))
        finish = None
        if stopped:
            finish = Finish.STOP
        elif is_end:
            finish = Finish.EOG
        elif generation.n_generated == request.max_tokens:
            finish = Finish.LENGTH
        elif len(generation.context) > generation.limit:
            finish = Finish.CONTEXT_FULL
        if finish is not None:
            self._end(generation, finish, last=(*released, *generation.stops.flush()))
        elif released:
            self._emit(generation.key.connection, generation.piece_of(released))

    # admission

    def _check(self, generation: Generation) -> None:
        """Tokenise the prompt and check everything that can be checked without the library's samplers."""
        request, model = generation.request, self._model
        if not model.can_generate:
            raise OptionsInvalidError("this model only makes embeddings; use another for text", option="model")
        if not 0 <= request.n_probs <= MAX_PROBS:
            raise OptionsInvalidError(
                f"n_probs is {request.n_probs}, it must lie in [0, {MAX_PROBS}]", option="n_probs"
            )
        check_sampling(request.sampling, model.n_vocab)
        tokens = self._tokens(request.prompt, add_special=request.add_special, parse_special=request.parse_special)
        generation.limit = min(request.n_ctx, model.n_ctx) if request.n_ctx > 0 else model.n_ctx
        generation.context = array(TOKEN_TYPE, tokens)
        generation.n_prompt = len(tokens)
        if len(tokens) > generation.limit:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens, the context {generation.limit}; shorten the prompt",
                n_prompt_tokens=len(tokens),
                n_ctx=generation.limit,
            )

    def _tokens(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = self.tokenize(text, add_special=add_special, parse_special=parse_special)
        if not tokens:
            if self._model.bos_token < 0:
                raise PromptInvalidError("the prompt is empty; give at least one character")
            tokens = [self._model.bos_token]
        return tokens

    def _can_admit(self) -> bool:
        n_active = sum(self._is_ready(g) for g in self._running)
        if not self._waiting or (self._is_tight and self._running):
            return False
        return n_active < self._n_slots and self._cache.has_room

    def _is_ready(self, generation: Generation) -> bool:
        return not generation.is_out_of_credit and generation.key.connection not in self._held_back

    def _next_waiting(self) -> Generation | None:
        """Return who gets the next slot: the least served function with the fewest slots, its oldest request."""
        n_running: dict[str, int] = {}
        for generation in self._running:
            n_running[generation.request.function] = n_running.get(generation.request.function, 0) + 1
        in_turn = sorted(
            self._waiting,
            key=lambda g: (
                n_running.get(g.request.function, 0),
                self._served.get(g.request.function, 0.0),
                g.arrived_at,
            ),
        )
        prompts = [g for g in self._running if self._can_share and self._is_computing(g)]
        return next((g for g in in_turn if not self._comes_cheaper_soon(g, prompts)), None)

    def _comes_cheaper_soon(self, generation: Generation, prompts: list[Generation]) -> bool:
        """
        Tell whether one of *prompts*, being computed right now, will leave cells that *generation* can share.

        A yes holds until that one has computed them or stops, so hundreds that wait cost a step next to nothing.
        """
        if not prompts:
            return False
        if generation.waits_for is not None:
            other, n_worth_it = generation.waits_for
            if other.n_past <= n_worth_it and self._is_computing(other):
                return True
            generation.waits_for = None
        n_common, other = 0, prompts[0]
        for prompt in prompts:
            n = longer_beginning(generation.context, prompt.context, n_common)
            if n > n_common:
                n_common, other = n, prompt
        n_worth_it = n_common - MIN_TOKENS_WORTH_KEEPING
        if n_worth_it < 0 or self._cache.match(generation.context)[1] > n_worth_it:
            return False
        generation.waits_for = (other, n_worth_it)
        return True

    def _is_computing(self, generation: Generation) -> bool:
        return generation.phase is Phase.PREFILL and self._is_ready(generation)

    def _enter(self, function: str) -> None:
        """Let a function that had nothing to do begin where the others are: being quiet saves up no lead."""
        present = {g.request.function for g in (*self._running, *self._waiting)}
        if not present:
            self._served.clear()
        if function not in present:
            least = min((self._served.get(other, 0.0) for other in present), default=0.0)
            self._served[function] = max(self._served.get(function, 0.0), least)

    def _charge(self, function: str, n_tokens: int) -> None:
        self._served[function] = self._served.get(function, 0.0) + n_tokens

    def _place(self, generation: Generation) -> None:
        """Give *generation* a sequence, sharing the longest prefix that is held."""
        source, n_shared = (None, 0)
        if self._can_share:
            source, n_shared = self._cache.match(generation.context)
            n_shared = min(n_shared, len(generation.context) - 1)  # the last one must be decoded for its output
        if not self._cache.has_free:
            coldest = self._cache.coldest(sparing=source if n_shared else None) or self._cache.coldest()
            assert coldest is not None
            if coldest is source:
                source, n_shared = None, 0
            self._save([coldest])
            self._cache.forget(coldest)
            self._evict(coldest.sequence)
        holding = self._cache.open()
        n_restored = self._restore(generation, holding, n_shared)
        if n_restored:
            n_shared = n_restored
        elif source is not None and n_shared > 0:
            self._model.share(source.sequence, holding.sequence, n_shared)
            self._cache.adopt(holding, source, n_shared)
        generation.holding = holding
        generation.waits_for = None
        generation.n_past = n_shared
        generation.phase = Phase.PREFILL
        if not generation.admitted_at:
            generation.admitted_at = self._clock.monotonic()
            generation.n_cached = min(n_shared, generation.n_prompt)
            self._counters.add("cached_tokens", generation.n_cached)
        self._running.append(generation)

    def _restore(self, generation: Generation, holding: Holding, n_shared: int) -> int:
        """Copy a saved prefix into *holding* if it is longer than *n_shared*; return its length, 0 if there is none."""
        if not self._saved:
            return 0
        state, tokens, n = self._saved.match(generation.context)
        n = min(n, len(generation.context) - 1)
        if state is None or n < n_shared + MIN_TOKENS_WORTH_KEEPING:
            return 0
        if not self._model.restore(holding.sequence, state):
            return 0
        self._cache.fill(holding, tokens)
        self._model.trim(holding.sequence, n)
        self._cache.cut(holding, n)
        return n

    def _fill_prompts(self, prompts: list[Generation], budget: int) -> None:
        """Deal *budget* rows out: the least served function first, each at most its part while others wait."""
        prompts.sort(key=lambda g: (self._served.get(g.request.function, 0.0), g.arrived_at))
        n_functions = len({g.request.function for g in prompts})
        while prompts and budget > 0:
            part = max(1, budget // max(1, n_functions))
            generation = prompts.pop(0)
            n_functions = len({g.request.function for g in prompts})
            n = min(part, len(generation.context) - generation.n_past)
            self._add_chunk(generation, n)
            budget -= n

    def _add_chunk(self, generation: Generation, n: int) -> None:
        holding = generation.holding
        assert holding is not None
        start = generation.n_past
        is_last = start + n == len(generation.context)
        generation.row = self._model.add_prompt(
            generation.context[start : start + n], start, holding.sequence, output=is_last
        )
        self._prefilled.append((generation, n))
        self._charge(generation.request.function, n)

    # leaving

    def _reap(self) -> None:
        """End what was cancelled or is past its deadline."""
        now = self._clock.monotonic()
        gone = [g for g in (*self._running, *self._waiting) if g.cancelled or 0 < g.request.deadline <= now]
        for generation in gone:
            self._end(generation, Finish.CANCELLED if generation.cancelled else Finish.DEADLINE)
        if gone:
            self._running = [g for g in self._running if g.phase is not Phase.ENDED]
            self._waiting = deque(g for g in self._waiting if g.phase is not Phase.ENDED)

    def _end(
        self,
        generation: Generation,
        finish: Finish,
        problem: dict[str, object] | None = None,
        *,
        last: Sequence[Token] = (),
    ) -> None:
        """
        Send the one ``Final``, what was held back before it, and leave the cells behind for sharing.

        Args: *last* are tokens on their way, the last of which ends the generation.
        """
        if last:
            self._emit(generation.key.connection, generation.piece_of(last, finish))
        elif held := generation.stops.flush():
            self._emit(generation.key.connection, generation.piece_of(held))
        self._emit(generation.key.connection, generation.final(finish, self._clock.monotonic(), problem))
        generation.phase = Phase.ENDED
        self._is_tight = False
        if generation.sampler is not None:
            generation.sampler.close()
            generation.sampler = None
        if generation.holding is not None:
            if finish is Finish.FAILED:
                generation.holding.tokens = array(TOKEN_TYPE)
            if self._cache.retire(generation.holding):
                self._evict(generation.holding.sequence)
            generation.holding = None

    def _fail(self, generation: Generation, error: FaasError) -> None:
        event(
            _log,
            "generation.failed",
            model=generation.request.model,
            function=generation.request.function,
            code=error.code,
            reason=error.message,
        )
        self._end(generation, Finish.FAILED, to_problem(error))

    def _evict(self, sequence: int) -> None:
        self._model.trim(sequence, 0)

    def _tidy(self) -> None:
        """With nobody running: free most cells, so that the next ones find theirs in order and pass over few."""
        filled, n_free = self._cache.filled, self._cache.n_free
        if filled <= self._crowded_cells and n_free >= self._n_slots:
            return
        gone = self._cache.tidy(KEPT_PART * self._model.n_cells)
        self._save(gone)
        for holding in gone:
            self._evict(holding.sequence)

    def _compact(self) -> None:
        """
        With somebody always running: once most cells are idle, take all out, and put back those in use.

        They come back in the order of their tokens, a stretch for each generation from the bottom up, so that it goes
        on in that order; what they shared they then have each. So a shared cell counts here once for each of them, and
        the idle ones must be more than that: fewer than half of the cells are in use afterwards, fewer than before, and
        there is no next time before as many have been filled. The copy, which lives for this moment, is no larger than
        the memory for saved prefixes may be.
        """
        cache, model, crowded = self._cache, self._model, self._crowded_cells
        n_live = sum(len(g.holding.tokens) for g in self._running if g.holding is not None)
        if not self._can_share or cache.cells_used - n_live <= max(crowded, n_live):
            return
        if 0 <= cache.filled - self._unmovable_at < crowded:
            return
        moving = {g.holding.sequence: g for g in self._running if g.holding is not None and g.holding.tokens}
        states = self._copies(list(moving))
        if states is None:
            self._unmovable_at = cache.filled
            return
        gone = cache.idle
        for holding in gone:
            cache.forget(holding)
        self._save(gone)  # once all are forgotten: what two of them share would else be saved for neither
        for sequence in (*(holding.sequence for holding in gone), *moving):
            self._evict(sequence)
        for holding in cache.restack():
            state = states.get(holding.sequence)
            if state is not None and not model.restore(holding.sequence, state):
                self._preempt(moving[holding.sequence])
        event(_log, "cells.compacted", level=logging.DEBUG, n_live=n_live, n_idle=len(gone))

    def _copies(self, sequences: list[int]) -> dict[int, memoryview] | None:
        """Return a copy of the cells of each; None if one can't be had, or they are too large together."""
        sizes = [self._model.saved_size(sequence) for sequence in sequences]
        if not all(sizes) or sum(sizes) > self._saved.max_bytes:
            return None
        copies = {sequence: self._model.save(sequence) for sequence in sequences}
        return copies if all(map(len, copies.values())) else None

    @property
    def _crowded_cells(self) -> float:
        return min(CROWDED_CELLS, CROWDED_PART * self._model.n_cells)

    def _save(self, holdings: list[Holding]) -> None:
        """
        Copy what is worth it to ordinary memory; the cells must still be there.

        The longest are chosen, as many as fit together, and put last, so that they stay longest.
        """
        chosen: list[tuple[Holding, int]] = []
        room = self._saved.max_bytes
        for holding in sorted(holdings, key=lambda h: len(h.tokens), reverse=True):
            n_held = self._cache.match(holding.tokens, but=holding)[1]
            for other, _ in chosen:
                n_held = longer_beginning(holding.tokens, other.tokens, n_held)
            if not self._saved.adds(holding.tokens, n_held):
                continue
            n_bytes = self._model.saved_size(holding.sequence)
            if 0 < n_bytes <= room:
                chosen.append((holding, n_bytes))
                room -= n_bytes
        for holding, n_bytes in reversed(chosen):
            self._saved.make_room(holding.tokens, n_bytes)
            self._saved.put(holding.tokens, self._model.save(holding.sequence))

    def _make_room(self) -> None:
        """Free cells: half of them, as far as idle sequences go, else the youngest generation starts again later."""
        coldest = self._cache.coldest()
        if coldest is not None:
            while coldest is not None:
                self._save([coldest])
                self._cache.forget(coldest)
                self._evict(coldest.sequence)
                coldest = self._cache.coldest() if self._cache.cells_used > KEPT_PART * self._model.n_cells else None
            return
        youngest = max(self._running, key=lambda g: (not self._is_ready(g), g.admitted_at))
        if len(self._running) == 1:
            self._end(youngest, Finish.CONTEXT_FULL)
            self._running = []
            return
        self._preempt(youngest)

    def _preempt(self, generation: Generation) -> None:
        """Take the cells of *generation*; what they held is computed again once it has its next slot."""
        holding = generation.holding
        assert holding is not None
        event(_log, "generation.preempted", function=generation.request.function, n_tokens=len(generation.context))
        self._running.remove(generation)
        self._evict(holding.sequence)
        self._cache.forget(holding)
        generation.holding, generation.n_past, generation.phase = None, 0, Phase.WAITING
        self._waiting.appendleft(generation)
        self._is_tight = True

    # embeddings

    def _embed_inputs(self, request: Embed) -> list[list[int]]:
        inputs = []
        limit = self._model.n_embed_tokens
        if request.max_tokens_each > 0:
            limit = min(limit, request.max_tokens_each)
        for text in request.inputs:
            tokens = self._tokens(text, add_special=True, parse_special=True)
            if len(tokens) > limit:
                raise PromptTooLongError(
                    f"an input has {len(tokens)} tokens, the model takes {limit}; split it", n_prompt_tokens=len(tokens)
                )
            inputs.append(tokens)
        return inputs

    def _embed(self) -> None:
        """Do one batch of one embedding request; the others go on after the next decode."""
        if not self._embeds:
            return
        job = self._embeds.popleft()
        now = self._clock.monotonic()
        job.started_at = job.started_at or now
        finish = Finish.CANCELLED if job.cancelled else Finish.DEADLINE if 0 < job.request.deadline <= now else None
        problem = None
        if finish is None and len(job.vectors) < len(job.inputs):
            try:
                job.vectors += [tuple(vector) for vector in self._model.embed(self._next_inputs(job))]
            except FaasError as exc:
                finish, problem = Finish.FAILED, to_problem(exc)
            self._charge(job.request.function, 1)
        if finish is None and len(job.vectors) < len(job.inputs):
            self._embeds.append(job)
            return
        done = finish or Finish.DONE
        self._emit(
            job.key.connection,
            Final(
                job.request.id,
                done,
                n_prompt_tokens=sum(map(len, job.inputs)),
                queued_ms=(job.started_at - job.arrived_at) * 1000,
                prompt_ms=(self._clock.monotonic() - job.started_at) * 1000,
                problem=problem,
                vectors=tuple(job.vectors) if done is Finish.DONE else (),
            ),
        )

    def _next_inputs(self, job: EmbedJob) -> list[list[int]]:
        """Return as many of the next inputs as fit into one batch that does not hold up others for long."""
        rest = job.inputs[len(job.vectors) :]
        chosen, n_tokens = [rest[0]], len(rest[0])
        for tokens in rest[1 : self._model.n_embed_batch]:
            n_tokens += len(tokens)
            if n_tokens > min(self._model.n_embed_tokens, self._model.n_batch):
                break
            chosen.append(tokens)
        return chosen


def _check_utf8(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        raise PromptInvalidError(f"the text is not UTF-8 (byte {exc.start}); encode it") from exc
