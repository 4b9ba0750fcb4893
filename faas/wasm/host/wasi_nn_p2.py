"""
WASI-NN of the component model: tensors, graphs and contexts as resources, over the invocation's NnContext.

Both published snapshots are here; they differ in how a context gets its inputs and gives its outputs.
The standard says nothing of language models, so names of inputs and outputs are this host's convention:

* input ``prompt`` (also ``input`` or ``0``): the prompt, UTF-8 text.
* input ``config`` (also ``metadata`` or ``1``): options as JSON, the same as of core modules.
* input ``stream``, content ignored: ``compute`` gives the next token only. In 2024-10-28 it goes with each call, the
  prompt with the first; in 2024-08-19 it holds for the context from then on.
* output ``output`` (also ``0``): all the text, or the next token's bytes, or the embedding as JSON. A stream that has
  ended has none.
* output ``metadata`` (also ``1``): the counts as JSON. In a stream of 2024-10-28 it comes at the end, alone.

Only the bytes of an input count, not its type and dimensions; outputs are ``U8`` of their length.
A text that ends because the context is full is an output like others in 2024-10-28, as an error would leave the guest
without it; in 2024-08-19 ``compute`` fails with ``too-large`` and the text can be read, as core modules have it.

Source: WebAssembly/wasi-nn, snapshots 2024-08-19 and 2024-10-28.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NoReturn, Protocol, TypeVar

from faas.errors import FaasError, GuestTrapError
from faas.nn.errno import NnErrno, NnError, to_nn_error
from faas.nn.session import METADATA_INDEX, NnContext
from faas.wasi.p2.poll import Waiting
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError

MAX_BUILDERS: Final = 64
MAX_DIMENSIONS: Final = 16

_PROMPT_INDEX: Final = 0
_PROMPT_NAMES: Final = frozenset({"prompt", "input", "0"})
_CONFIG_NAMES: Final = frozenset({"config", "metadata", "1"})
_STREAM_NAME: Final = "stream"
_OUTPUT: Final = "output"
_METADATA: Final = "metadata"
_OUTPUT_INDEX: Final = {_OUTPUT: _PROMPT_INDEX, "0": _PROMPT_INDEX, _METADATA: METADATA_INDEX, "1": METADATA_INDEX}
_ENCODINGS: Final = frozenset({"ggml", "autodetect"})
_END: Final = frozenset({NnErrno.END_OF_SEQUENCE, NnErrno.CONTEXT_FULL})

_CODES: Final = {
    NnErrno.INVALID_ARGUMENT: "invalid-argument",
    NnErrno.INVALID_ENCODING: "invalid-encoding",
    NnErrno.BUSY: "runtime-error",  # WIT has no code for "try again": the text begins with "busy: "
    NnErrno.RUNTIME_ERROR: "runtime-error",
    NnErrno.UNSUPPORTED_OPERATION: "unsupported-operation",
    NnErrno.TOO_LARGE: "too-large",
    NnErrno.NOT_FOUND: "not-found",
    NnErrno.CONTEXT_FULL: "too-large",
    NnErrno.PROMPT_TOO_LONG: "too-large",
    NnErrno.MODEL_NOT_FOUND: "not-found",
}

_T = TypeVar("_T")


class NnGuest(Protocol):
    """What these functions need of the instance that calls them."""

    @property
    def nn(self) -> NnContext | None:
        """The instance's WASI-NN state; None if its function has no models."""


class NnErrorResource(Resource):
    """Why a call failed: a code of WIT's, and text for people."""

    __slots__ = ("code", "data")

    def __init__(self, code: str, data: str) -> None:
        super().__init__()
        self.code = code
        self.data = data


class Tensor(Resource):
    """Some bytes with a type and dimensions that nobody checks; counted against what an invocation may keep."""

    __slots__ = ("_nn", "data", "dimensions", "ty")

    def __init__(self, nn: NnContext, dimensions: Sequence[int], ty: str, data: bytes) -> None:
        """Raises: NnError TOO_LARGE."""
        super().__init__()
        nn.hold(len(data))
        self._nn = nn
        self.dimensions = dimensions
        self.ty = ty
        self.data = data

    def drop(self) -> None:
        """Forget the bytes."""
        super().drop()
        self._nn.release(len(self.data))


class Graph(Resource):
    """A granted model under a handle; its contexts go on when the guest drops it."""

    __slots__ = ("_dropped", "_n_contexts", "_nn", "id")

    def __init__(self, nn: NnContext, id: int) -> None:
        super().__init__()
        self._nn = nn
        self.id = id
        self._n_contexts = 0
        self._dropped = False

    def opened(self) -> None:
        """Count one context more."""
        self._n_contexts += 1

    def closed(self) -> None:
        """Count one context less."""
        self._n_contexts -= 1
        self._unload_unused()

    def drop(self) -> None:
        """Unload it once its last context is gone too."""
        super().drop()
        self._dropped = True
        self._unload_unused()

    def _unload_unused(self) -> None:
        # Unloading at once would end the contexts: Rust guests drop a graph right after they made one.
        if self._dropped and not self._n_contexts:
            self._nn.unload(self.id)


class ExecutionContext(Resource):
    """One prompt and what was computed of it."""

    __slots__ = ("ended", "graph", "id", "loop", "nn", "streams")

    def __init__(self, nn: NnContext, graph: Graph) -> None:
        """Raises: NnError TOO_LARGE."""
        super().__init__()
        self.nn = nn
        self.graph = graph
        self.id = nn.init_execution_context(graph.id)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.streams = False
        """Whether ``compute`` gives one token at a time."""
        self.ended = False
        """Whether the last computation found the end of the stream, and no token."""
        graph.opened()

    def drop(self) -> None:
        """End what it generates, which frees the model's slot, and forget its prompt."""
        super().drop()
        self.nn.discard_execution_context(self.id, self.loop)
        self.graph.closed()


def _refuse(guest: NnGuest, call: str, error: NnError | FaasError) -> NoReturn:
    """
    Raise what the guest is told of *error*, which is logged.

    Raises: WitError with a NnErrorResource, or *error* itself if it is not the guest's to see.
    """
    told = error if isinstance(error, NnError) else to_nn_error(error)
    if told is None:
        raise error
    if guest.nn is not None:
        guest.nn.report(call, told)
    text = f"busy: {told.reason}" if told.errno is NnErrno.BUSY else told.reason
    raise WitError(NnErrorResource(_CODES.get(told.errno, "unknown"), text)) from error


def _now(guest: NnGuest, call: str, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except NnError as error:
        _refuse(guest, call, error)


def _later(guest: NnGuest, call: str, work: Callable[[], Awaitable[_T]]) -> Awaitable[_T]:
    async def run() -> _T:
        try:
            return await work()
        except (NnError, FaasError) as error:
            _refuse(guest, call, error)

    return Waiting(run)


# Tensors and errors


def new_tensor(guest: NnGuest, dimensions: list[int], ty: str, data: bytes) -> Tensor:
    """Return a tensor; WIT leaves no room for an error, so one that is too large traps."""
    if guest.nn is None:
        raise GuestTrapError("the function has no models; name one in [capabilities] models and deploy it again")
    if len(dimensions) > MAX_DIMENSIONS:
        raise GuestTrapError(f"a tensor has {len(dimensions)} dimensions; use at most {MAX_DIMENSIONS}")
    try:
        return Tensor(guest.nn, tuple(dimensions), ty, data)
    except NnError as error:
        raise GuestTrapError(error.reason) from error


def tensor_dimensions(guest: NnGuest, self: Tensor) -> list[int]:
    """Return the dimensions."""
    return list(self.dimensions)


def tensor_type(guest: NnGuest, self: Tensor) -> str:
    """Return the type."""
    return self.ty


def tensor_data(guest: NnGuest, self: Tensor) -> bytes:
    """Return the content."""
    return self.data


def error_code(guest: NnGuest, self: NnErrorResource) -> str:
    """Return the code."""
    return self.code


def error_data(guest: NnGuest, self: NnErrorResource) -> str:
    """Return the reason."""
    return self.data


# Graphs


def load(guest: NnGuest, builders: list[bytes], encoding: str, target: str) -> Awaitable[Graph]:
    """Load the granted model that the first builder names; the second one is its configuration."""

    async def work() -> Graph:
        if not 0 < len(builders) <= MAX_BUILDERS:
            raise NnError(NnErrno.INVALID_ARGUMENT, f"{len(builders)} builders are not between 1 and {MAX_BUILDERS}")
        if encoding not in _ENCODINGS:
            raise NnError(NnErrno.INVALID_ENCODING, f"encoding {encoding} is not offered, only ggml and autodetect")
        nn = _nn(guest)
        return Graph(nn, await nn.load(builders[0], builders[1] if len(builders) > 1 else None))

    return _later(guest, "load", work)


def load_by_name(guest: NnGuest, name: str) -> Awaitable[Graph]:
    """Load a granted model; each call gives a graph of its own, with options of its own."""

    async def work() -> Graph:
        nn = _nn(guest)
        return Graph(nn, await nn.load_apart(name.encode()))

    return _later(guest, "load_by_name", work)


def _nn(guest: NnGuest) -> NnContext:
    if guest.nn is None:
        raise NnError(NnErrno.NOT_FOUND, "the function has no models; name one in [capabilities] models")
    return guest.nn


def init_execution_context(guest: NnGuest, self: Graph) -> ExecutionContext:
    """Return a new context of a graph."""
    return _now(guest, "init_execution_context", lambda: ExecutionContext(_nn(guest), self))


# Computing: what both snapshots share


def _taken(tensor: Tensor) -> bytes:
    """Return the content of a tensor that the guest gave away."""
    tensor.drop()
    return tensor.data


def _set_input(context: ExecutionContext, name: str, content: bytes) -> None:
    """Give a context one input; a stream has ended before a new prompt."""
    if name in _PROMPT_NAMES:
        context.nn.set_prompt(context.id, content)
    elif name in _CONFIG_NAMES:
        context.nn.set_config(context.id, content)
    elif name == _STREAM_NAME:
        context.streams = True
    else:
        raise NnError(
            NnErrno.INVALID_ARGUMENT, f"there is no input {name[:64]!r}; inputs are 'prompt', 'config' and 'stream'"
        )


async def _compute(guest: NnGuest, context: ExecutionContext) -> None:
    """Compute all, or one token; a stream's end is no error."""
    context.loop = asyncio.get_running_loop()
    context.ended = False
    if not context.streams:
        await context.nn.compute(context.id)
        return
    try:
        await context.nn.compute_single(context.id)
    except NnError as error:
        if error.errno not in _END:
            raise
        if error.reason:
            context.nn.report("compute", error)
        context.ended = True


def _output(context: ExecutionContext, index: int) -> Tensor:
    read = context.nn.output_single if context.streams else context.nn.output
    content = read(context.id, index)
    return Tensor(context.nn, (len(content),), "U8", content)


# 2024-10-28: inputs and outputs go with compute


def compute_named(
    guest: NnGuest, self: ExecutionContext, inputs: list[tuple[str, Tensor]]
) -> Awaitable[list[tuple[str, Tensor]]]:
    """Set inputs, compute, and return the outputs; only this guest waits."""
    contents = [(name, _taken(tensor)) for name, tensor in inputs]

    async def work() -> list[tuple[str, Tensor]]:
        self.streams = False
        if any(name in _PROMPT_NAMES for name, _ in contents):
            await self.nn.end_stream(self.id)
        for name, content in contents:
            _set_input(self, name, content)
        try:
            await _compute(guest, self)
        except NnError as error:
            if error.errno is not NnErrno.CONTEXT_FULL:
                raise
            self.nn.report("compute", error)
        return _outputs(self)

    return _later(guest, "compute", work)


def _outputs(context: ExecutionContext) -> list[tuple[str, Tensor]]:
    if context.streams:
        names: tuple[str, ...] = (_METADATA,) if context.ended else (_OUTPUT,)
    else:
        names = (_OUTPUT, _METADATA)
    outputs: list[tuple[str, Tensor]] = []
    try:
        for name in names:
            outputs.append((name, _output(context, _OUTPUT_INDEX[name])))
    except NnError:
        for _, tensor in outputs:
            tensor.drop()
        raise
    return outputs


# 2024-08-19: inputs and outputs have calls of their own


def set_input(guest: NnGuest, self: ExecutionContext, name: str, tensor: Tensor) -> Awaitable[None] | None:
    """Give a context one input."""
    content = _taken(tensor)
    if not self.nn.streams(self.id) or name not in _PROMPT_NAMES:
        return _now(guest, "set_input", partial(_set_input, self, name, content))

    async def work() -> None:
        await self.nn.end_stream(self.id)
        _set_input(self, name, content)

    return _later(guest, "set_input", work)


def compute(guest: NnGuest, self: ExecutionContext) -> Awaitable[None]:
    """Compute what the inputs ask for; only this guest waits."""
    return _later(guest, "compute", partial(_compute, guest, self))


def get_output(guest: NnGuest, self: ExecutionContext, name: str) -> Tensor | Awaitable[Tensor]:
    """Return an output as a new tensor; the counts may need the prompt to be counted first."""
    index = _OUTPUT_INDEX.get(name)

    def read() -> Tensor:
        if index is None:
            raise NnError(NnErrno.NOT_FOUND, f"there is no output {name[:64]!r}; outputs are 'output' and 'metadata'")
        if index == _PROMPT_INDEX and self.ended:
            raise NnError(NnErrno.NOT_FOUND, "")  # no line in the log: this is how guests learn of the end
        return _output(self, index)

    if index is None or not self.nn.must_count(self.id, index):
        return _now(guest, "get_output", read)

    async def work() -> Tensor:
        await self.nn.count(self.id)
        return read()

    return _later(guest, "get_output", work)


def _interfaces(version: str, inference: dict[str, ComponentFunction]) -> dict[str, dict[str, ComponentFunction]]:
    return {
        f"wasi:nn/tensor@{version}": {
            "[constructor]tensor": ComponentFunction(new_tensor),
            "[method]tensor.dimensions": ComponentFunction(tensor_dimensions),
            "[method]tensor.ty": ComponentFunction(tensor_type),
            "[method]tensor.data": ComponentFunction(tensor_data),
        },
        f"wasi:nn/errors@{version}": {
            "[method]error.code": ComponentFunction(error_code),
            "[method]error.data": ComponentFunction(error_data),
        },
        f"wasi:nn/graph@{version}": {
            "load": ComponentFunction(load, may_suspend=True),
            "load-by-name": ComponentFunction(load_by_name, may_suspend=True),
            "[method]graph.init-execution-context": ComponentFunction(init_execution_context),
        },
        f"wasi:nn/inference@{version}": inference,
    }


FUNCTIONS: Final = {
    **_interfaces(
        "0.2.0-rc-2024-10-28",
        {"[method]graph-execution-context.compute": ComponentFunction(compute_named, may_suspend=True)},
    ),
    **_interfaces(
        "0.2.0-rc-2024-08-19",
        {
            "[method]graph-execution-context.set-input": ComponentFunction(set_input, may_suspend=True),
            "[method]graph-execution-context.compute": ComponentFunction(compute, may_suspend=True),
            "[method]graph-execution-context.get-output": ComponentFunction(get_output, may_suspend=True),
        },
    ),
}
