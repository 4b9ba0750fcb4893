"""Promises of wasi:nn for components: both snapshots complete, errors as WIT has them, nothing kept uncounted."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from faas import errors
from faas.nn.client import Generation
from faas.nn.session import MAX_HANDLES, MAX_RETAINED_BYTES, NnContext
from faas.problems import to_problem
from faas.wasi import wit
from faas.wasi.p2.resources import WitError
from faas.wasm.host.wasi_nn_p2 import FUNCTIONS, MAX_BUILDERS, MAX_DIMENSIONS, ExecutionContext, Graph, Tensor
from faas.wire.models import Cancel, Embed, Final, Finish, Generate, ModelCard, Piece, ServerHello, Tokenize

NEW, OLD = "0.2.0-rc-2024-10-28", "0.2.0-rc-2024-08-19"
COMPUTE = "[method]graph-execution-context.compute"
SET_INPUT = "[method]graph-execution-context.set-input"
GET_OUTPUT = "[method]graph-execution-context.get-output"


class OneModel:
    """A model service with one model, which says "he", "llo" and the end, or fails."""

    hello = ServerHello(1, 1, "test", 8757, "c0ffee", ())

    def __init__(self) -> None:
        self.error: errors.FaasError | None = None
        self.pieces: tuple[bytes, ...] = (b"he", b"llo", b"</s>")
        self.finish = Finish.EOG
        self.requests: list[Generate] = []
        self.sent: list[Any] = []
        self.described: list[str] = []
        self.endless = False

    def generate(self, request: Generate) -> Generation:
        self.requests.append(request)
        generation = Generation(1, request.credit, self.sent.append)
        if self.error is not None:
            generation.finish(Final(1, Finish.FAILED, problem=to_problem(self.error)))
            return generation
        for n, piece in enumerate(self.pieces, 1):
            ends = self.finish if n == len(self.pieces) and not self.endless else None
            generation.arrive(Piece(1, (1,), (piece,), 2, 0, finish=ends))
        if not self.endless:
            generation.finish(Final(1, self.finish, 2, 0, len(self.pieces)))
        return generation

    async def embed(self, request: Embed) -> Final:
        return Final(0, Finish.DONE, 2, vectors=((1.0,),))

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        return (1, 2)

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        self.described.append(model)
        if self.error is not None:
            raise self.error
        return (ModelCard(model, "/m.gguf", "d", 1, True, n_ctx=512),)


class FakeGuest:
    """An instance without an engine; what may suspend is awaited as a fiber would, and nothing else may."""

    def __init__(self, *, nn: bool = True, version: str = NEW, granted: tuple[str, ...] = ("default", "GGUF")) -> None:
        self.models = OneModel()
        self.log: list[bytes] = []
        self.nn = NnContext(self.models, granted, "f", log_line=self.log.append) if nn else None
        self.version = version

    async def call(self, interface: str, name: str, *args: Any) -> Any:
        function = FUNCTIONS[f"wasi:nn/{interface}@{self.version}"][name]
        result = function.call(self, *args)
        if isinstance(result, Awaitable):
            assert function.may_suspend
            return await result
        return result

    async def refused(self, interface: str, name: str, *args: Any) -> tuple[str, str]:
        """Return the code and the text of the error that a call answers."""
        with pytest.raises(WitError) as caught:
            await self.call(interface, name, *args)
        error = caught.value.value
        return await self.call("errors", "[method]error.code", error), await self.call(
            "errors", "[method]error.data", error
        )

    async def tensor(self, content: bytes = b"", ty: str = "U8", dimensions: tuple[int, ...] = (1,)) -> Tensor:
        return await self.call("tensor", "[constructor]tensor", list(dimensions), ty, content)

    async def graph(self) -> Graph:
        return await self.call("graph", "load-by-name", "default")

    async def context(self) -> ExecutionContext:
        return await self.call("graph", "[method]graph.init-execution-context", await self.graph())

    async def compute(self, context: ExecutionContext, **inputs: bytes) -> dict[str, bytes]:
        """Call 2024-10-28's compute and return the outputs' contents."""
        tensors = [(name, await self.tensor(content)) for name, content in inputs.items()]
        outputs = await self.call("inference", COMPUTE, context, tensors)
        contents = {name: tensor.data for name, tensor in outputs}
        for _, tensor in outputs:
            tensor.drop()
        return contents

    async def set_input(self, context: ExecutionContext, name: str, content: bytes) -> None:
        await self.call("inference", SET_INPUT, context, name, await self.tensor(content))

    async def output(self, context: ExecutionContext, name: str = "output") -> bytes:
        tensor = await self.call("inference", GET_OUTPUT, context, name)
        tensor.drop()
        return tensor.data

    def held_bytes(self) -> int:
        """Return what the host keeps for this guest."""
        assert self.nn is not None
        return self.nn._retained_bytes


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


@pytest.fixture
def old() -> FakeGuest:
    return FakeGuest(version=OLD)


# The table


def test_the_registry_has_every_function_of_both_snapshots_and_no_other() -> None:
    wanted = {name: set(each.functions) for name, each in wit.interfaces().items() if name.startswith("wasi:nn/")}
    assert {name: set(functions) for name, functions in FUNCTIONS.items()} == wanted


def test_a_function_takes_the_guest_and_the_parameters_of_its_wit() -> None:
    for interface, functions in FUNCTIONS.items():
        for name, function in functions.items():
            parameters = wit.interfaces()[interface].functions[name].params
            assert len(inspect.signature(function.call).parameters) == 1 + len(parameters), (interface, name)


# Tensors


async def test_a_tensor_gives_back_what_it_was_made_of(guest: FakeGuest) -> None:
    tensor = await guest.tensor(b"\x00\xff", "FP16", (1, 2, 3))
    assert await guest.call("tensor", "[method]tensor.dimensions", tensor) == [1, 2, 3]
    assert await guest.call("tensor", "[method]tensor.ty", tensor) == "FP16"
    assert await guest.call("tensor", "[method]tensor.data", tensor) == b"\x00\xff"


async def test_tensors_that_the_host_keeps_are_bounded_together(guest: FakeGuest) -> None:
    large = await guest.tensor(bytes(MAX_RETAINED_BYTES))
    with pytest.raises(errors.GuestTrapError, match="drop some"):
        await guest.tensor(b"x")
    large.drop()
    assert guest.held_bytes() == 0
    await guest.tensor(b"x")


async def test_a_tensor_of_many_dimensions_traps(guest: FakeGuest) -> None:
    await guest.tensor(b"", dimensions=(1,) * MAX_DIMENSIONS)
    with pytest.raises(errors.GuestTrapError, match="dimensions"):
        await guest.tensor(b"", dimensions=(1,) * (MAX_DIMENSIONS + 1))


async def test_without_models_a_tensor_traps_and_a_load_answers_not_found() -> None:
    guest = FakeGuest(nn=False)
    with pytest.raises(errors.GuestTrapError, match="models"):
        await guest.tensor(b"")
    code, text = await guest.refused("graph", "load-by-name", "default")
    assert (code, "capabilities" in text) == ("not-found", True)


# Graphs


@pytest.mark.parametrize("version", [NEW, OLD])
async def test_a_granted_model_is_loaded_by_either_call(version: str) -> None:
    guest = FakeGuest(version=version)
    await guest.call("graph", "load-by-name", "default")
    await guest.call("graph", "load", [b"default"], "ggml", "cpu")
    await guest.call("graph", "load", [b"default", b'{"n-predict": 1}'], "autodetect", "gpu")
    assert guest.models.described == ["default"] * 3


async def test_a_model_whose_name_looks_like_weights_is_still_found_by_name(guest: FakeGuest) -> None:
    await guest.call("graph", "load-by-name", "GGUF")
    assert (await guest.refused("graph", "load", [b"GGUF\x03..."], "ggml", "cpu"))[0] == "unsupported-operation"


@pytest.mark.parametrize(
    ("builders", "encoding", "code"),
    [
        ([], "ggml", "invalid-argument"),
        ([b"default"] * (MAX_BUILDERS + 1), "ggml", "invalid-argument"),
        ([b"default"], "onnx", "invalid-encoding"),
        ([b"default"], "openvino", "invalid-encoding"),
        ([b"nobody"], "ggml", "not-found"),
        ([b"preload:/etc/passwd"], "ggml", "unsupported-operation"),
        ([b"default", b"{"], "ggml", "invalid-encoding"),
        ([b"default", b'{"n-predict": "x"}'], "ggml", "invalid-argument"),
    ],
)
async def test_load_refuses(guest: FakeGuest, builders: list[bytes], encoding: str, code: str) -> None:
    assert (await guest.refused("graph", "load", builders, encoding, "cpu"))[0] == code
    assert guest.models.described == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.ModelUnavailableError("it is away"), "runtime-error", "busy: it is away"),
        (errors.QuotaExceededError("used up"), "runtime-error", "busy: used up"),
        (errors.ModelNotFoundError("no such"), "not-found", "no such"),
        (errors.ModelFileError("gone", missing=True), "not-found", "gone"),
        (errors.ModelFileError("broken"), "invalid-argument", "broken"),
        (errors.GenerationFailedError("decode"), "runtime-error", "decode"),
    ],
)
async def test_the_hosts_errors_become_codes_with_their_text_and_are_logged(
    guest: FakeGuest, error: errors.FaasError, code: str, text: str
) -> None:
    guest.models.error = error
    assert await guest.refused("graph", "load-by-name", "default") == (code, text)
    assert len(guest.log) == 1
    assert error.message.encode() in guest.log[0]


async def test_an_error_that_is_not_the_guests_to_see_ends_the_invocation(guest: FakeGuest) -> None:
    guest.models.error = errors.DeadlineExceededError("too late")
    with pytest.raises(errors.DeadlineExceededError):
        await guest.graph()


async def test_contexts_work_on_when_their_graph_is_dropped(guest: FakeGuest) -> None:
    graph = await guest.graph()
    contexts = [await guest.call("graph", "[method]graph.init-execution-context", graph) for _ in range(2)]
    graph.drop()
    assert (await guest.compute(contexts[0], prompt=b"say it"))["output"] == b"hello</s>"
    contexts[0].drop()
    assert (await guest.compute(contexts[1], prompt=b"say it"))["output"] == b"hello</s>"
    contexts[1].drop()
    assert guest.nn is not None
    assert not guest.nn._graphs
    assert not guest.nn._contexts


async def test_graphs_of_one_name_do_not_share_their_options(guest: FakeGuest) -> None:
    first, second = await guest.context(), await guest.context()
    await guest.compute(first, config=b'{"temp": 0.0}', prompt=b"a")
    await guest.compute(second, prompt=b"a")
    assert guest.models.requests[0].sampling != guest.models.requests[1].sampling


async def test_contexts_are_bounded(guest: FakeGuest) -> None:
    graph = await guest.graph()
    contexts = [await guest.call("graph", "[method]graph.init-execution-context", graph) for _ in range(MAX_HANDLES)]
    assert (await guest.refused("graph", "[method]graph.init-execution-context", graph))[0] == "too-large"
    contexts[0].drop()
    await guest.call("graph", "[method]graph.init-execution-context", graph)


# Computing, 2024-10-28


@pytest.mark.parametrize("name", ["prompt", "input", "0"])
async def test_a_prompt_is_answered_with_text_and_counts(guest: FakeGuest, name: str) -> None:
    context = await guest.context()
    outputs = await guest.call("inference", COMPUTE, context, [(name, await guest.tensor("Grüß".encode()))])
    assert guest.models.requests[0].prompt == "Grüß".encode()
    (text_name, text), (counts_name, counts) = outputs
    assert (text_name, text.data, text.ty, text.dimensions) == ("output", b"hello</s>", "U8", (9,))
    assert counts_name == "metadata"
    assert json.loads(counts.data) == {
        "input_tokens": 2,
        "output_tokens": 3,
        "llama_build_number": 8757,
        "llama_commit": "c0ffee",
        "context_tokens": 512,
    }


async def test_inputs_are_the_hosts_from_the_call_on(guest: FakeGuest) -> None:
    context = await guest.context()
    tensor = await guest.tensor(b"prompt")
    waiting = FUNCTIONS[f"wasi:nn/inference@{NEW}"][COMPUTE].call(guest, context, [("prompt", tensor)])
    assert guest.held_bytes() == 0
    assert guest.models.requests == []  # nothing begins before it is awaited: the guest may end here
    assert inspect.isawaitable(waiting)
    assert not inspect.iscoroutine(waiting)


async def test_a_configuration_counts_whatever_its_place(guest: FakeGuest) -> None:
    context = await guest.context()
    for name in ("config", "metadata", "1"):
        await guest.compute(context, prompt=b"a", **{name: b'{"n-predict": 2}'})
    assert [request.max_tokens for request in guest.models.requests] == [2, 2, 2]


async def test_an_embedding_is_an_output(guest: FakeGuest) -> None:
    context = await guest.context()
    outputs = await guest.compute(context, config=b'{"embedding": true}', prompt=b"a")
    assert json.loads(outputs["output"]) == {"n_embedding": 1, "embedding": [1.0]}


async def test_a_prompt_stays_for_the_next_computation(guest: FakeGuest) -> None:
    context = await guest.context()
    await guest.compute(context, prompt=b"a")
    await guest.compute(context)
    assert [request.prompt for request in guest.models.requests] == [b"a", b"a"]


async def test_compute_refuses_what_it_does_not_know(guest: FakeGuest) -> None:
    context = await guest.context()
    code, text = await guest.refused("inference", COMPUTE, context, [("tokens", await guest.tensor(b"x"))])
    assert (code, "'tokens'" in text) == ("invalid-argument", True)
    assert (await guest.refused("inference", COMPUTE, context, []))[0] == "invalid-argument"  # no prompt yet
    bad = [("prompt", await guest.tensor(b"\xff"))]
    assert (await guest.refused("inference", COMPUTE, context, bad))[0] == "invalid-argument"
    assert guest.held_bytes() == 0


async def test_a_text_that_fills_the_context_is_an_output_and_a_line_in_the_log(guest: FakeGuest) -> None:
    guest.models.finish = Finish.CONTEXT_FULL
    context = await guest.context()
    assert (await guest.compute(context, prompt=b"a"))["output"] == b"hello</s>"
    assert [b"context is full" in line for line in guest.log] == [True]


async def test_outputs_that_find_no_room_are_refused_and_not_kept(guest: FakeGuest) -> None:
    context = await guest.context()
    ballast = await guest.tensor(bytes(MAX_RETAINED_BYTES - 10))  # one byte is the prompt, nine the text
    code, _ = await guest.refused("inference", COMPUTE, context, [("prompt", await guest.tensor(b"a"))])
    assert code == "too-large"
    assert guest.held_bytes() == len(ballast.data) + 1


async def test_a_stream_gives_a_token_for_each_call_and_then_only_the_counts(guest: FakeGuest) -> None:
    context = await guest.context()
    assert await guest.compute(context, prompt=b"a", stream=b"") == {"output": b"he"}
    assert await guest.compute(context, stream=b"") == {"output": b"llo"}
    last = await guest.compute(context, stream=b"")
    assert list(last) == ["metadata"]
    assert json.loads(last["metadata"])["output_tokens"] == 3
    assert list(await guest.compute(context, stream=b"")) == ["metadata"]
    assert len(guest.models.requests) == 1
    assert guest.log == []


async def test_a_stream_that_fills_the_context_ends_with_a_line_in_the_log(guest: FakeGuest) -> None:
    guest.models.finish, guest.models.pieces = Finish.CONTEXT_FULL, (b"he", b"llo")
    context = await guest.context()
    assert await guest.compute(context, prompt=b"a", stream=b"") == {"output": b"he"}
    assert list(await guest.compute(context, stream=b"")) == ["metadata"]
    assert [b"context is full" in line for line in guest.log] == [True]


async def test_a_new_prompt_begins_a_new_stream(guest: FakeGuest) -> None:
    guest.models.endless = True
    context = await guest.context()
    await guest.compute(context, prompt=b"a", stream=b"")
    await guest.compute(context, prompt=b"b", stream=b"")
    assert guest.models.sent == [Cancel(1)]
    assert [request.prompt for request in guest.models.requests] == [b"a", b"b"]


async def test_a_context_is_used_again_after_a_stream(guest: FakeGuest) -> None:
    context = await guest.context()
    inputs: dict[str, bytes] = {"prompt": b"a"}
    while "metadata" not in await guest.compute(context, stream=b"", **inputs):
        inputs = {}
    assert await guest.compute(context, prompt=b"b", stream=b"") == {"output": b"he"}
    whole = await guest.compute(context)
    assert (whole["output"], len(whole)) == (b"hello</s>", 2)


async def test_a_failed_stream_is_an_error(guest: FakeGuest) -> None:
    context = await guest.context()
    guest.models.error = errors.GenerationFailedError("decode failed")
    inputs = [("prompt", await guest.tensor(b"a")), ("stream", await guest.tensor())]
    assert await guest.refused("inference", COMPUTE, context, inputs) == ("runtime-error", "decode failed")


async def test_dropping_a_context_in_any_thread_ends_its_stream(guest: FakeGuest) -> None:
    guest.models.endless = True
    context = await guest.context()
    await guest.compute(context, prompt=b"a", stream=b"")
    await asyncio.to_thread(context.drop)
    await asyncio.sleep(0)
    assert guest.models.sent == [Cancel(1)]
    assert guest.held_bytes() == 0


async def test_resources_may_outlive_the_session(guest: FakeGuest) -> None:
    guest.models.endless = True
    context = await guest.context()
    await guest.compute(context, prompt=b"a", stream=b"")
    assert guest.nn is not None
    guest.nn.close()
    context.drop()
    context.graph.drop()
    assert guest.models.sent == [Cancel(1)]


# Computing, 2024-08-19


async def test_the_older_snapshot_sets_computes_and_gets(old: FakeGuest) -> None:
    context = await old.context()
    await old.set_input(context, "config", b'{"n-predict": 7}')
    await old.set_input(context, "prompt", b"a")
    assert json.loads(await old.output(context, "metadata"))["input_tokens"] == 2  # counted when asked for
    assert await old.call("inference", COMPUTE, context) is None
    assert await old.output(context) == await old.output(context, "0") == b"hello</s>"
    assert json.loads(await old.output(context, "1"))["output_tokens"] == 3
    assert old.models.requests[0].max_tokens == 7


async def test_the_older_snapshot_keeps_the_text_of_a_full_context(old: FakeGuest) -> None:
    old.models.finish = Finish.CONTEXT_FULL
    context = await old.context()
    await old.set_input(context, "prompt", b"a")
    assert (await old.refused("inference", COMPUTE, context))[0] == "too-large"
    assert await old.output(context) == b"hello</s>"


async def test_the_older_snapshot_streams_until_there_is_no_output(old: FakeGuest) -> None:
    context = await old.context()
    await old.set_input(context, "stream", b"")
    await old.set_input(context, "prompt", b"a")
    tokens = []
    for _ in range(2):
        await old.call("inference", COMPUTE, context)
        tokens.append(await old.output(context))
    assert tokens == [b"he", b"llo"]
    await old.call("inference", COMPUTE, context)
    assert (await old.refused("inference", GET_OUTPUT, context, "output"))[0] == "not-found"
    assert json.loads(await old.output(context, "metadata"))["output_tokens"] == 3
    assert old.log == []


async def test_the_older_snapshot_begins_anew_with_a_new_prompt(old: FakeGuest) -> None:
    old.models.endless = True
    context = await old.context()
    await old.set_input(context, "stream", b"")
    await old.set_input(context, "prompt", b"a")
    await old.call("inference", COMPUTE, context)
    await old.set_input(context, "prompt", b"b")
    assert old.models.sent == [Cancel(1)]
    await old.call("inference", COMPUTE, context)
    assert [request.prompt for request in old.models.requests] == [b"a", b"b"]


async def test_the_older_snapshot_refuses_names_it_does_not_know(old: FakeGuest) -> None:
    context = await old.context()
    assert (await old.refused("inference", SET_INPUT, context, "x", await old.tensor(b"")))[0] == "invalid-argument"
    assert (await old.refused("inference", GET_OUTPUT, context, "x"))[0] == "not-found"
    assert (await old.refused("inference", COMPUTE, context))[0] == "invalid-argument"
    assert old.held_bytes() == 0
