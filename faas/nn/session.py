"""
What WASI-NN's calls mean: the graphs and execution contexts of one invocation, over the model server's client.

A graph is a granted model under a handle, with the options that were set; an execution context is one prompt and the
outputs of its last computation. Handles count up from 0, graphs and contexts apart, and are never used again.
Nothing here touches guest memory (``faas.wasm.host.wasi_nn`` does), and nothing ever opens a path that a guest names.

Source: WasmEdge ``plugins/wasi_nn`` (GGML), whose observable behaviour this follows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final as Constant
from typing import Protocol

from faas.clock import Clock, SystemClock
from faas.errors import DeadlineExceededError, FaasError, ModelNotGrantedError, PromptTooLongError
from faas.nn.client import Generation, ModelService
from faas.nn.errno import NnErrno, NnError, to_nn_error
from faas.nn.options import CONTEXT_KEYS, Config, batch_size, context_size, parse_config, sampling_of
from faas.wire.models import Embed, Finish, Generate, Piece, Tokenize

METADATA_INDEX: Constant = 1
"""The input that is a configuration and the output that counts tokens; every other index is text."""
MAX_NAME_BYTES: Constant = 512
MAX_PROMPT_BYTES: Constant = 4 << 20
MAX_RETAINED_BYTES: Constant = 64 << 20  # prompts and tensors of an invocation; guests pay for one copy and hold many
MAX_HANDLES: Constant = 1024
MAX_LOG_LINES: Constant = 100
STREAM_CREDIT: Constant = 16  # tokens the model may run ahead of a guest that takes them one by one
PROMPT_RESERVE: Constant = 4  # llama.cpp hosts keep so many tokens of the context free of prompt

_GGUF_MAGIC: Constant = b"GGUF"
_PRELOAD: Constant = b"preload:"
_INLINE_IMAGE: Constant = b'<img src="data:image/'
_UNREAD: Constant = (Finish.EOG, Finish.CONTEXT_FULL)
"""How the token that ends a stream does it for which no call answers 0: it is counted, and the call answers the end."""
_OVER: Constant = frozenset({NnErrno.END_OF_SEQUENCE, NnErrno.CONTEXT_FULL, NnErrno.PROMPT_TOO_LONG})


class Sink(Protocol):
    """The guest's stdout."""

    def write(self, data: bytes) -> int:
        """Take *data* or a prefix of it, and return how many bytes that were."""


class Charge(Protocol):
    """Where one computation writes down what it spends; closed at its end, also when that comes early."""

    def prompt(self, n_tokens: int) -> None:
        """Spend the tokens of the prompt."""

    def generated(self, n_tokens: int) -> None:
        """Spend tokens as they come."""

    def close(self) -> None:
        """End it; safe to call more than once."""


class _Unmetered:
    """The charge where nobody counts."""

    def prompt(self, n_tokens: int) -> None:
        pass

    def generated(self, n_tokens: int) -> None:
        pass

    def close(self) -> None:
        pass


_UNMETERED: Constant = _Unmetered()


@dataclass(eq=False, slots=True)
class _Graph:
    name: str
    model: str
    n_ctx: int
    config: Config
    by_name: bool
    alive: bool = True


@dataclass(eq=False, slots=True)
class _Context:
    graph: _Graph
    config: Config
    prompt: bytes | None = None
    n_input: int | None = 0  # None: a prompt is set that nobody has counted yet
    n_output: int = 0
    output: bytearray = field(default_factory=bytearray)
    last_piece: bytes = b""
    stream: Generation | None = None
    charge: Charge = _UNMETERED  # the stream's
    n_charged: int = 0
    waiting: deque[tuple[bytes, Finish | None]] = field(default_factory=deque)
    """Tokens that arrived together with one handed out, each with why it ends the generation, if it does."""
    over: bool = False  # the stream has ended: more calls change nothing

    def clear_outputs(self) -> None:
        self.output.clear()
        self.last_piece = b""
        self.n_output = 0

    def append(self, piece: bytes) -> None:
        self.output += piece
        self.last_piece = piece
        self.n_output += 1


class NnContext:
    """
    The WASI-NN state of one invocation; made with it, and closed with it (``close`` frees the model's slots).

    Raises (every method): NnError with the errno for the guest, and FaasError where ``to_nn_error`` has no answer for
    the guest (deadline, output limit).
    Thread: methods that wait run on the loop, the others wherever the guest does, one at a time.
    """

    def __init__(
        self,
        client: ModelService | None,
        granted: Mapping[str, str] | Collection[str],
        function: str,
        *,
        deadline: float = 0.0,
        stdout: Sink | None = None,
        flush: Callable[[], Awaitable[None]] | None = None,
        log_line: Callable[[bytes], None] | None = None,
        charge: Callable[[int], Charge] | None = None,
        not_granted: Callable[[str], FaasError] | None = None,
        clock: Clock | None = None,
        zero_buffer_compat: bool = True,
    ) -> None:
        """
        Args: *client* None: this host has no models. *granted* names the models the function may load, or maps the
        names it uses to the models'. *deadline* is on the monotonic clock, 0 means none. *stdout*, and *flush* that
        sends on what was written to it, are for ``stream-stdout``. *log_line* gets a line for each refused call.
        *charge* gets the bytes of a prompt before it is computed, and raises QuotaExceededError or lets it begin.
        *not_granted* returns why a model of that name may not be loaded, and what to do about it.
        *zero_buffer_compat*: see ``faas.wasm.host.wasi_nn``.
        """
        self._client = client
        self._granted = granted if isinstance(granted, Mapping) else {name: name for name in granted}
        self._function = function
        self._deadline = deadline
        self._stdout = stdout
        self._flush = flush
        self._log_line = log_line
        self._charge = charge
        self._not_granted = not_granted or _not_granted
        self._clock = clock or SystemClock()
        self.zero_buffer_compat = zero_buffer_compat
        self._graphs: dict[int, _Graph] = {}
        self._contexts: dict[int, _Context] = {}
        self._graph_ids = itertools.count()
        self._context_ids = itertools.count()
        self._retained_bytes = 0
        self._n_log_lines = 0

    def close(self) -> None:
        """End what is still being generated; on the loop. Safe to call more than once."""
        for context in self._contexts.values():
            self._close_stream(context)

    def report(self, call: str, error: NnError) -> None:
        """Log why *call* answered what it did, one line for the function's log; nothing if there is no reason."""
        if self._log_line is None or not error.reason or self._n_log_lines > MAX_LOG_LINES:
            return
        self._n_log_lines += 1
        if self._n_log_lines > MAX_LOG_LINES:
            self._log_line(b"wasi-nn: further errors are not logged")
            return
        line = f"wasi-nn: {call} answers {error.errno.value} ({error.errno.name.lower()}): {error.reason}"
        self._log_line(" ".join(line.split()).encode("utf-8", "replace"))

    # --- graphs -----------------------------------------------------------------------------------------------------

    async def load(self, name: bytes, config: bytes | None) -> int:
        """
        Return a new graph of the model whose name is the bytes of the builder.

        A guest has no other models to load than those it was granted: weights of its own are refused, and so are the
        ``preload:`` paths by which WasmEdge would open any file of the host.
        """
        if name.startswith((_GGUF_MAGIC, _PRELOAD)):
            what = "paths" if name.startswith(_PRELOAD) else "weights"
            raise NnError(
                NnErrno.UNSUPPORTED_OPERATION, f"{what} from a guest are not loaded; load a granted model by its name"
            )
        return await self._load(name, config, by_name=False)

    async def load_by_name(self, name: bytes, config: bytes | None = None) -> int:
        """Return the live graph of that name, whatever *config* says then, or else load it."""
        for id, graph in self._graphs.items():
            if graph.by_name and graph.name.encode() == name:
                return id
        return await self._load(name, config, by_name=True)

    async def load_apart(self, name: bytes, config: bytes | None = None) -> int:
        """Return a new graph of the model of that name, which no other handle shares."""
        return await self._load(name, config, by_name=False)

    async def _load(self, raw_name: bytes, config: bytes | None, *, by_name: bool) -> int:
        name = raw_name[:MAX_NAME_BYTES].decode("utf-8", "replace")
        if len(raw_name) > MAX_NAME_BYTES or name not in self._granted:
            refusal = self._not_granted(name[:64])
            raise to_nn_error(refusal) or refusal from refusal
        if len(self._graphs) >= MAX_HANDLES:
            raise NnError(NnErrno.TOO_LARGE, f"{MAX_HANDLES} graphs are loaded; unload some")
        options = parse_config(config) if config is not None else {}
        model = self._granted[name]
        cards = await self._service().describe(model, load=True)
        if not cards:
            raise NnError(NnErrno.NOT_FOUND, f"no model {model!r} is registered; see 'faas models'")
        id = next(self._graph_ids)
        self._graphs[id] = _Graph(name, model, cards[0].n_ctx, options, by_name)
        return id

    def unload(self, graph_id: int) -> None:
        """Make the handle invalid; contexts of the graph keep their outputs."""
        self._graph(graph_id).alive = False
        del self._graphs[graph_id]

    def init_execution_context(self, graph_id: int) -> int:
        """Return a new context, with a copy of the options that are a context's own."""
        graph = self._graph(graph_id)
        if len(self._contexts) >= MAX_HANDLES:
            raise NnError(NnErrno.TOO_LARGE, f"{MAX_HANDLES} execution contexts are open; finalize some")
        id = next(self._context_ids)
        self._contexts[id] = _Context(graph, {key: graph.config[key] for key in CONTEXT_KEYS & graph.config.keys()})
        return id

    def _graph(self, id: int) -> _Graph:
        try:
            return self._graphs[id]
        except KeyError:
            raise NnError(NnErrno.INVALID_ARGUMENT, f"there is no graph {id}") from None

    # --- inputs -----------------------------------------------------------------------------------------------------

    def set_config(self, context_id: int, raw: bytes) -> None:
        """Override options: a context's own for this context, the others for its graph."""
        context = self._usable(context_id)
        options = parse_config(raw)
        for key, value in options.items():
            (context if key in CONTEXT_KEYS else context.graph).config[key] = value

    def set_prompt(self, context_id: int, prompt: bytes) -> None:
        """Remember the prompt, UTF-8 text; previous outputs stay until the next computation."""
        context = self._usable(context_id)
        if len(prompt) > MAX_PROMPT_BYTES:
            raise NnError(NnErrno.TOO_LARGE, f"the prompt has {len(prompt)} bytes, more than {MAX_PROMPT_BYTES}")
        try:
            prompt.decode()
        except UnicodeDecodeError as exc:
            raise NnError(NnErrno.INVALID_ARGUMENT, f"the prompt is not UTF-8 (byte {exc.start})") from exc
        if _INLINE_IMAGE in prompt:
            raise NnError(NnErrno.INVALID_ARGUMENT, "the prompt has an image, and the model takes none")
        retained = self._retained_bytes + len(prompt) - len(context.prompt or b"")
        if retained > MAX_RETAINED_BYTES:
            raise NnError(NnErrno.TOO_LARGE, f"all prompts together have more than {MAX_RETAINED_BYTES} bytes")
        self._retained_bytes = retained
        context.prompt = prompt
        context.n_input = None
        context.over = False

    def streams(self, context_id: int) -> bool:
        """Return whether the context is in the middle of a stream, so that ``end_stream`` has something to do."""
        context = self._contexts.get(context_id)
        return context is not None and context.stream is not None

    async def end_stream(self, context_id: int) -> None:
        """Stop what a context generates one token at a time."""
        context = self._contexts.get(context_id)
        if context is not None:
            self._close_stream(context)

    # --- computing --------------------------------------------------------------------------------------------------

    async def compute(self, context_id: int) -> None:
        """Answer the whole prompt: text until its end, or the embedding if the graph is for that."""
        context, prompt = self._ready(context_id)
        self._close_stream(context)
        context.clear_outputs()
        context.over = False
        try:
            if context.graph.config.get("embedding"):
                await self._embed(context, prompt)
            else:
                await self._generate(context, prompt)
        except FaasError as exc:
            self._failed(context, exc)

    async def _generate(self, context: _Context, prompt: bytes) -> None:
        n_predict = context.config.get("n-predict", -1)
        if n_predict == 0:
            self._check_prompt(context, await self._counted(context))
            return
        prints = bool(context.config.get("stream-stdout")) and self._stdout is not None
        stream = self._start(
            context,
            prompt,
            max_tokens=n_predict if n_predict > 0 else -1,
            stop=context.config.get("reverse-prompt", ""),
            credit=STREAM_CREDIT if prints else 0,
        )
        try:
            async for piece in stream:
                self._check_deadline()
                self._arrived(context, piece)
                for token_piece in piece.pieces:
                    context.append(token_piece)
                if prints:
                    await self._print(b"".join(piece.pieces))
        finally:
            self._close_stream(context)
        finish = stream.final.finish if stream.final is not None else Finish.FAILED
        self._log_counts(context)
        if finish is Finish.CONTEXT_FULL:
            raise NnError(NnErrno.CONTEXT_FULL, "the context is full; what was generated so far is valid")
        self._check_finish(finish)

    async def _embed(self, context: _Context, prompt: bytes) -> None:
        graph = context.graph
        charge = self._begin(prompt)
        try:
            final = await self._service().embed(
                Embed(
                    0,
                    graph.model,
                    self._function,
                    (prompt,),
                    max_tokens_each=batch_size(graph.config),
                    deadline=self._deadline,
                )
            )
            charge.prompt(final.n_prompt_tokens)
        finally:
            charge.close()
        context.n_input = final.n_prompt_tokens
        context.output += embedding_json(final.vectors[0])
        self._log_counts(context)

    async def compute_single(self, context_id: int) -> None:
        """
        Generate one more token, the first one after the whole prompt; n-predict, reverse-prompt and stream-stdout
        have no say here.

        Raises: NnError END_OF_SEQUENCE at the end, and again for every further call; it costs nothing then.
        """
        context, prompt = self._ready(context_id)
        if context.graph.config.get("embedding"):
            raise NnError(NnErrno.UNSUPPORTED_OPERATION, "a graph for embeddings generates no tokens")
        if context.over:
            raise NnError(NnErrno.END_OF_SEQUENCE, "")
        going_on = False
        try:
            self._check_deadline()
            if context.stream is None:
                context.clear_outputs()
                self._start(context, prompt, max_tokens=-1, stop="", credit=STREAM_CREDIT)
            await self._next_token(context)
            going_on = True
        except NnError as error:
            context.over = error.errno in _OVER
            raise
        except FaasError as exc:
            context.over = isinstance(exc, PromptTooLongError)
            self._failed(context, exc)
        finally:
            if not going_on:
                self._close_stream(context)

    async def _next_token(self, context: _Context) -> None:
        assert context.stream is not None
        while not context.waiting:
            piece = await anext(context.stream, None)
            if piece is None:
                final = context.stream.final
                raise self._end_of(final.finish if final is not None else Finish.FAILED)
            self._arrived(context, piece)
            context.waiting.extend((token_piece, None) for token_piece in piece.pieces[:-1])
            context.waiting.extend((token_piece, piece.finish) for token_piece in piece.pieces[-1:])
        token_piece, finish = context.waiting.popleft()
        context.append(token_piece)
        if finish in _UNREAD:
            raise self._end_of(finish)

    def _end_of(self, finish: Finish) -> NnError:
        if finish is Finish.CONTEXT_FULL:
            return NnError(NnErrno.CONTEXT_FULL, "the context is full")
        self._check_finish(finish)
        return NnError(NnErrno.END_OF_SEQUENCE, "")

    def fini_single(self, context_id: int) -> None:
        """Clear outputs and counts after a stream; call ``end_stream`` before, on the loop."""
        context = self._context(context_id)
        context.clear_outputs()
        context.n_input = 0
        context.over = False

    def finalize_execution_context(self, context_id: int) -> None:
        """Make the handle invalid; call ``end_stream`` before, on the loop."""
        context = self._context(context_id)
        self._retained_bytes -= len(context.prompt or b"")
        del self._contexts[context_id]

    def discard_execution_context(self, context_id: int, loop: asyncio.AbstractEventLoop | None) -> None:
        """Make the handle invalid, from any thread; *loop*, where it computed if it did, ends what it streams."""
        context = self._context(context_id)
        self.finalize_execution_context(context_id)
        if context.stream is not None and loop is not None:
            loop.call_soon_threadsafe(self._close_stream, context)

    # --- outputs ----------------------------------------------------------------------------------------------------

    def must_count(self, context_id: int, index: int) -> bool:
        """Return whether ``count`` has to be awaited before that output can be read."""
        context = self._contexts.get(context_id)
        return index == METADATA_INDEX and context is not None and context.n_input is None

    async def count(self, context_id: int) -> None:
        """Count the tokens of a prompt that was set and not computed yet."""
        context = self._context(context_id)
        try:
            await self._counted(context)
        except FaasError as exc:
            self._failed(context, exc)

    def output(self, context_id: int, index: int) -> bytes:
        """Return the counts as JSON, or all the text there is: at the end, or so far; or the embedding as JSON."""
        context = self._context(context_id)
        return self._metadata(context) if index == METADATA_INDEX else bytes(context.output)

    def output_single(self, context_id: int, index: int) -> bytes:
        """Return the counts as JSON, or the bytes of the last token, which may be part of a character."""
        context = self._context(context_id)
        return self._metadata(context) if index == METADATA_INDEX else context.last_piece

    def _metadata(self, context: _Context) -> bytes:
        hello = self._client.hello if self._client is not None else None
        build, commit = (hello.build, hello.commit) if hello is not None else (0, "")
        return (
            f'{{"input_tokens": {context.n_input or 0}, "output_tokens": {context.n_output}, '
            f'"llama_build_number": {build}, "llama_commit": {json.dumps(commit)}, '
            f'"context_tokens": {self._context_size(context)}}}'
        ).encode()

    # --- tensors that are kept outside of the guest's memory ---------------------------------------------------------

    def hold(self, n_bytes: int) -> None:
        """Count *n_bytes* that the host keeps for the guest, beside its prompts, or raise TOO_LARGE."""
        if self._retained_bytes + n_bytes > MAX_RETAINED_BYTES:
            raise NnError(NnErrno.TOO_LARGE, f"tensors and prompts together pass {MAX_RETAINED_BYTES} bytes; drop some")
        self._retained_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        """Count *n_bytes* less."""
        self._retained_bytes -= n_bytes

    # --- shared steps -----------------------------------------------------------------------------------------------

    def _context(self, id: int) -> _Context:
        try:
            return self._contexts[id]
        except KeyError:
            raise NnError(NnErrno.INVALID_ARGUMENT, f"there is no execution context {id}") from None

    def _usable(self, id: int) -> _Context:
        context = self._context(id)
        if not context.graph.alive:
            raise NnError(NnErrno.INVALID_ARGUMENT, f"the graph of execution context {id} was unloaded")
        return context

    def _ready(self, id: int) -> tuple[_Context, bytes]:
        context = self._usable(id)
        if context.prompt is None:
            raise NnError(NnErrno.INVALID_ARGUMENT, "there is no prompt; call set_input with an index other than 1")
        return context, context.prompt

    def _service(self) -> ModelService:
        if self._client is None:
            raise NnError(NnErrno.NOT_FOUND, "this host runs without models")
        return self._client

    def _begin(self, prompt: bytes) -> Charge:
        self._check_deadline()
        return self._charge(len(prompt)) if self._charge is not None else _UNMETERED

    def _start(self, context: _Context, prompt: bytes, *, max_tokens: int, stop: str, credit: int) -> Generation:
        graph = context.graph
        size = self._context_size(context)
        request = Generate(
            0,
            graph.model,
            self._function,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling_of(graph.config),
            stop=(stop.encode(),) if stop else (),
            hide_stop=False,
            render_special=True,
            n_ctx=0 if size == graph.n_ctx else size,
            credit=credit,
            deadline=self._deadline,
        )
        charge = self._begin(prompt)
        try:
            context.stream = self._service().generate(request)
        except BaseException:
            charge.close()
            raise
        context.charge, context.n_charged = charge, 0
        return context.stream

    def _close_stream(self, context: _Context) -> None:
        stream, context.stream = context.stream, None
        context.waiting.clear()
        if stream is None:
            return
        stream.close()
        charge, context.charge = context.charge, _UNMETERED
        if context.n_charged == 0:
            charge.prompt(stream.n_prompt_tokens)
        n_generated = stream.final.n_generated_tokens if stream.final is not None else stream.n_tokens
        charge.generated(max(0, n_generated - context.n_charged))
        charge.close()

    def _arrived(self, context: _Context, piece: Piece) -> None:
        context.n_input = piece.n_prompt_tokens
        if context.n_charged == 0:
            context.charge.prompt(piece.n_prompt_tokens)
        context.charge.generated(len(piece.tokens))
        context.n_charged += len(piece.tokens)
        if context.n_output == 0:
            self._check_prompt(context, piece.n_prompt_tokens)

    async def _counted(self, context: _Context) -> int:
        if context.n_input is None:
            tokens = await self._service().tokenize(Tokenize(0, context.graph.model, context.prompt or b""))
            context.n_input = len(tokens)
        return context.n_input

    def _context_size(self, context: _Context) -> int:
        return context_size(context.graph.config, context.graph.n_ctx)

    def _check_prompt(self, context: _Context, n_tokens: int) -> None:
        size = self._context_size(context)
        if size and n_tokens > size - PROMPT_RESERVE:
            context.clear_outputs()
            raise NnError(
                NnErrno.PROMPT_TOO_LONG,
                f"the prompt has {n_tokens} tokens, and the context {size}, of which {PROMPT_RESERVE} are kept free",
            )

    def _check_deadline(self) -> None:
        if self._deadline and self._clock.monotonic() >= self._deadline:
            raise _past_deadline()

    def _check_finish(self, finish: Finish) -> None:
        if finish is Finish.DEADLINE:
            raise _past_deadline()
        if finish in (Finish.CANCELLED, Finish.FAILED):
            raise NnError(NnErrno.RUNTIME_ERROR, "the generation was cancelled")

    def _failed(self, context: _Context, error: FaasError) -> None:
        """Raise what the guest is told of *error*, or *error* itself."""
        told = to_nn_error(error)
        if told is None:
            raise error
        if told.errno is NnErrno.PROMPT_TOO_LONG:
            context.clear_outputs()
        raise told from error

    async def _print(self, text: bytes) -> None:
        assert self._stdout is not None
        while text:
            text = text[self._stdout.write(text) :]
        if self._flush is not None:
            await self._flush()

    def _log_counts(self, context: _Context) -> None:
        if self._log_line is not None and context.graph.config.get("enable-log"):
            line = (
                f"wasi-nn: model={context.graph.name} input_tokens={context.n_input} output_tokens={context.n_output}"
            )
            self._log_line(line.encode())


def embedding_json(vector: Collection[float]) -> bytes:
    """Return ``{"n_embedding": D, "embedding": [v0,v1,...]}`` with ten significant digits, as WasmEdge prints it."""
    values = ",".join(f"{value:.10g}" for value in vector)
    return f'{{"n_embedding": {len(vector)}, "embedding": [{values}]}}'.encode()


def _not_granted(name: str) -> FaasError:
    return ModelNotGrantedError(f"no model {name!r} is granted; name it in [capabilities] models of function.toml")


def _past_deadline() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the deadline passed while the guest waited for a model; ask for fewer tokens, or raise limits.timeout_s"
    )
