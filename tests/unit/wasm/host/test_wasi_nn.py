"""Promises of the WASI-NN host functions: right layouts, every errno, no guest value raises or writes elsewhere."""

from __future__ import annotations

import inspect
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas import errors
from faas.nn.client import Generation
from faas.nn.errno import NnErrno
from faas.nn.session import MAX_PROMPT_BYTES, NnContext
from faas.nn.signatures import SIGNATURES
from faas.problems import to_problem
from faas.testing.memory import BytesMemory
from faas.wasm.host import HostFunction
from faas.wasm.host.wasi_nn import FUNCTIONS, MAX_BUILDERS, ZERO_BUFFER_BYTES
from faas.wasm.memory import MemoryFaultError
from faas.wire.models import Embed, Final, Finish, Generate, ModelCard, Piece, ServerHello, Tokenize

MEMORY_BYTES = 1 << 16
OUT = 256  # where results go
TENSOR = 512
INPUT = 1024  # where inputs go
BUFFER = 8192
OUTSIDE = MEMORY_BYTES - 2
GGML, AUTODETECT = 6, 5
LAST_U32 = 2**32 - 1


class OneModel:
    """A model service with one model, which says "he", "llo" and the end, or fails."""

    hello = ServerHello(1, 1, "test", 8757, "c0ffee", ())

    def __init__(self) -> None:
        self.error: errors.FaasError | None = None
        self.pieces: tuple[bytes, ...] = (b"he", b"llo", b"</s>")
        self.finish = Finish.EOG
        self.prompts: list[bytes] = []

    def generate(self, request: Generate) -> Generation:
        self.prompts.append(request.prompt)
        generation = Generation(1, request.credit, lambda message: None)
        if self.error is not None:
            generation.finish(Final(1, Finish.FAILED, problem=to_problem(self.error)))
            return generation
        for n, piece in enumerate(self.pieces, 1):
            ends = self.finish if n == len(self.pieces) else None
            generation.arrive(Piece(1, (1,), (piece,), 2, 0, finish=ends))
        generation.finish(Final(1, self.finish, 2, 0, len(self.pieces)))
        return generation

    async def embed(self, request: Embed) -> Final:
        return Final(0, Finish.DONE, 2, vectors=((1.0,),))

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        return (1, 2)

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        if self.error is not None:
            raise self.error
        return (ModelCard(model, "/m.gguf", "d", 1, True, n_ctx=512),)


class NoMemory:
    """The memory of a guest that exports none."""

    def __getattr__(self, name: str) -> Any:
        def fault(*args: object) -> None:
            raise MemoryFaultError

        return fault


class FakeGuest:
    """An instance without an engine; its calls wait as a fiber would."""

    def __init__(self, *, nn: bool = True, size: int = MEMORY_BYTES, **options: Any) -> None:
        self.memory: Any = BytesMemory(size)
        self.models = OneModel()
        self.log: list[bytes] = []
        self.nn = NnContext(self.models, ("default",), "f", log_line=self.log.append, **options) if nn else None

    def call(self, name: str, *args: int) -> NnErrno:
        result = FUNCTIONS[name].call(self, *args)
        if inspect.isawaitable(result):
            assert FUNCTIONS[name].may_suspend
            result = finished(result)
        return NnErrno(result)

    def ok(self, name: str, *args: int) -> None:
        assert self.call(name, *args) == NnErrno.SUCCESS, self.log

    def put(self, content: bytes, at: int = INPUT) -> tuple[int, int]:
        self.memory.write(at, content)
        return at, len(content)

    def u32(self, at: int = OUT) -> int:
        return self.memory.read_u32(at)

    def tensor(
        self,
        content: bytes,
        *,
        kind: int = 3,
        dimensions: tuple[int, int] | None = None,
        padding: bytes = b"\x33\x30\x10",
    ) -> int:
        """Write a tensor of *content* and return where it is."""
        ptr, length = self.put(content)
        self.memory.write_u32(TENSOR + 64, 1)
        dims = dimensions or (TENSOR + 64, 1)
        self.memory.write(TENSOR, struct.pack("<IIB3sII", *dims, kind, padding, ptr, length))
        return TENSOR

    def builders(self, *contents: bytes) -> tuple[int, int]:
        at = INPUT
        for index, content in enumerate(contents):
            self.memory.write(TENSOR + 8 * index, struct.pack("<II", at, len(content)))
            self.memory.write(at, content)
            at += len(content)
        return TENSOR, len(contents)

    def opened(self, prompt: bytes | None = b"say it", config: bytes = b"{}") -> int:
        """Return a new context of the granted model."""
        at, length = self.put(b"default" + config)
        self.ok("load_by_name_with_config", at, 7, at + 7, length - 7, OUT)
        self.ok("init_execution_context", self.u32(), OUT)
        context = self.u32()
        if prompt is not None:
            self.ok("set_input", context, 0, self.tensor(prompt))
        return context

    def output(self, name: str, context: int, index: int, room: int = 1024) -> bytes:
        self.ok(name, context, index, BUFFER, room, OUT)
        return self.memory.read(BUFFER, self.u32())


def finished(awaitable: Any) -> Any:
    """Run what has nothing to wait for, without the cost of a loop."""
    try:
        awaitable.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("the call waits")


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


# The table


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_function_has_the_signature_of_the_specification(name: str) -> None:
    function = FUNCTIONS[name]
    assert isinstance(function, HostFunction)
    assert (function.params, function.results) == SIGNATURES[name]
    assert len(inspect.signature(function.call).parameters) == 1 + len(function.params)


def test_there_are_the_twelve_functions_and_no_other() -> None:
    assert set(FUNCTIONS) == set(SIGNATURES)
    assert len(FUNCTIONS) == 12


# A whole session


def test_a_prompt_is_answered_at_once(guest: FakeGuest) -> None:
    guest.ok("load_by_name", *guest.put(b"default"), OUT)
    assert guest.u32() == 0
    guest.ok("init_execution_context", 0, OUT)
    assert guest.u32() == 0
    guest.ok("set_input", 0, 0, guest.tensor("Grüß".encode()))
    assert guest.models.prompts == []
    guest.ok("compute", 0)
    assert guest.models.prompts == ["Grüß".encode()]
    assert guest.output("get_output", 0, 0) == b"hello</s>"
    assert json.loads(guest.output("get_output", 0, 1)) == {
        "input_tokens": 2,
        "output_tokens": 3,
        "llama_build_number": 8757,
        "llama_commit": "c0ffee",
        "context_tokens": 512,
    }
    guest.ok("unload", 0)
    guest.ok("finalize_execution_context", 0)


def test_a_prompt_is_answered_token_by_token(guest: FakeGuest) -> None:
    context = guest.opened()
    tokens = []
    while (errno := guest.call("compute_single", context)) == NnErrno.SUCCESS:
        tokens.append(guest.output("get_output_single", context, 0))
    assert (tokens, errno) == ([b"he", b"llo"], NnErrno.END_OF_SEQUENCE)
    assert json.loads(guest.output("get_output_single", context, 1))["output_tokens"] == 3
    guest.ok("fini_single", context)
    assert guest.output("get_output", context, 0) == b""


def test_calls_that_end_a_running_stream_wait_for_the_loop(guest: FakeGuest) -> None:
    context = guest.opened()
    guest.ok("compute_single", context)
    guest.ok("set_input", context, 0, guest.tensor(b"again"))
    guest.ok("compute_single", context)
    guest.ok("fini_single", context)
    guest.ok("compute_single", context)
    guest.ok("finalize_execution_context", context)
    assert guest.nn is not None
    assert not guest.nn.streams(context)


def test_a_prompt_that_was_not_computed_is_counted_when_its_metadata_are_read(guest: FakeGuest) -> None:
    context = guest.opened()
    assert json.loads(guest.output("get_output", context, 1))["input_tokens"] == 2


def test_load_takes_a_name_and_a_configuration_as_builders(guest: FakeGuest) -> None:
    for id, encoding in enumerate((GGML, AUTODETECT, 0x100 | GGML)):  # only its low byte is the encoding
        guest.ok("load", *guest.builders(b"default", b'{"n-predict": 1}'), encoding, 3, OUT)
        assert guest.u32() == id
    guest.ok("load", *guest.builders(b"default"), GGML, 0, OUT)


def test_an_embedding_is_read_as_json(guest: FakeGuest) -> None:
    context = guest.opened(config=b'{"embedding": true}')
    guest.ok("compute", context)
    assert guest.output("get_output", context, 0) == b'{"n_embedding": 1, "embedding": [1]}'


# Struct layouts


@pytest.mark.parametrize("kind", range(6))
def test_a_tensors_type_is_one_byte_and_its_dimensions_do_not_count(guest: FakeGuest, kind: int) -> None:
    context = guest.opened(None)
    guest.ok("set_input", context, 0, guest.tensor(b"x" * 50, kind=kind, padding=b"\xff\xff\xff"))
    guest.ok("set_input", context, 0, guest.tensor(b"", kind=kind, dimensions=(0, 0)))


def test_a_tensor_has_its_fields_where_the_specification_puts_them(guest: FakeGuest) -> None:
    context = guest.opened(None)
    guest.put(b"the prompt", 5000)
    raw = bytearray(b"\xee" * 20)
    struct.pack_into("<II", raw, 0, 4000, 1)
    raw[8] = 3
    struct.pack_into("<II", raw, 12, 5000, 10)
    guest.memory.write(4097, bytes(raw))  # no alignment is asked for
    guest.ok("set_input", context, 0, 4097)
    guest.ok("compute", context)
    assert guest.models.prompts == [b"the prompt"]


def test_any_index_but_one_is_the_prompt(guest: FakeGuest) -> None:
    context = guest.opened(None)
    guest.ok("set_input", context, 7, guest.tensor(b"seven"))
    guest.ok("set_input", context, 1, guest.tensor(b'{"n-predict": 1}'))
    guest.ok("compute", context)
    assert guest.models.prompts == [b"seven"]
    assert guest.output("get_output", context, LAST_U32) == b"hello</s>"


# Buffers


def test_a_buffer_that_is_too_small_stays_as_it_is_and_the_size_is_told(guest: FakeGuest) -> None:
    context = guest.opened()
    guest.ok("compute", context)
    guest.put(b"~" * 20, BUFFER)
    assert guest.call("get_output", context, 0, BUFFER, 8, OUT) == NnErrno.TOO_LARGE
    assert guest.u32() == 9
    assert guest.memory.read(BUFFER, 20) == b"~" * 20
    assert guest.log == []
    assert guest.output("get_output", context, 0, 9) == b"hello</s>"


def test_a_buffer_of_length_zero_is_filled_as_llamaedge_expects(guest: FakeGuest) -> None:
    context = guest.opened()
    guest.ok("compute", context)
    guest.ok("get_output", context, 0, BUFFER, 0, OUT)
    assert guest.memory.read(BUFFER, guest.u32()) == b"hello</s>"


def test_a_buffer_of_length_zero_near_the_end_of_memory_is_too_small(guest: FakeGuest) -> None:
    context = guest.opened()
    guest.ok("compute", context)
    before = guest.memory.read(MEMORY_BYTES - 4, 4)
    assert guest.call("get_output", context, 0, MEMORY_BYTES - 4, 0, OUT) == NnErrno.TOO_LARGE
    assert guest.u32() == 9
    assert guest.memory.read(MEMORY_BYTES - 4, 4) == before


def test_a_buffer_of_length_zero_gets_no_more_than_llamaedge_reserves() -> None:
    guest = FakeGuest(size=1 << 20)
    guest.models.pieces = (b"x" * 300_000, b"</s>")
    context = guest.opened()
    guest.ok("compute", context)
    guest.ok("get_output", context, 0, BUFFER, 0, OUT)
    assert guest.u32() == ZERO_BUFFER_BYTES == 245_888
    assert guest.memory.read(BUFFER, 245_889) == b"x" * 245_888 + b"\0"


def test_a_buffer_of_length_zero_is_too_small_when_strict() -> None:
    guest = FakeGuest(zero_buffer_compat=False)
    context = guest.opened()
    guest.ok("compute", context)
    assert guest.call("get_output", context, 0, BUFFER, 0, OUT) == NnErrno.TOO_LARGE
    assert guest.u32() == 9
    guest.ok("get_output_single", guest.opened(None), 0, BUFFER, 0, OUT)
    assert guest.u32() == 0


# Every errno


def test_a_range_outside_of_the_memory_is_an_invalid_argument_and_nothing_is_written(guest: FakeGuest) -> None:
    context = guest.opened()
    name = guest.put(b"default")
    tensor = guest.tensor(b"x")
    builders = guest.builders(b"default")
    calls = [
        ("load", OUTSIDE, 1, GGML, 0, OUT),
        ("load", *builders, GGML, 0, OUTSIDE),
        ("load", TENSOR, LAST_U32, GGML, 0, OUT),
        ("load_by_name", OUTSIDE, 7, OUT),
        ("load_by_name", *name, OUTSIDE),
        ("load_by_name", LAST_U32, LAST_U32, OUT),
        ("load_by_name_with_config", *name, OUTSIDE, 7, OUT),
        ("load_by_name_with_config", OUTSIDE, 7, *name, OUT),
        ("load_by_name_with_config", *name, INPUT, 0, OUTSIDE),
        ("init_execution_context", 0, OUTSIDE),
        ("set_input", context, 0, OUTSIDE),
        ("set_input", context, 0, LAST_U32),
        ("get_output", context, 0, OUTSIDE, 100, OUT),
        ("get_output", context, 0, BUFFER, 100, OUTSIDE),
        ("get_output", context, 1, BUFFER, LAST_U32, OUT),
        ("get_output_single", context, 0, OUTSIDE, 100, OUT),
        ("get_output_single", context, 1, BUFFER, 100, OUTSIDE),
    ]
    assert tensor
    for name_, *args in calls:
        before = bytes(guest.memory.data)
        assert guest.call(name_, *args) == NnErrno.INVALID_ARGUMENT, (name_, args)
        assert bytes(guest.memory.data) == before, (name_, args)
    assert b"a range is not inside the guest's memory" in guest.log[-1]


@pytest.mark.parametrize("field", [0, 4, 12, 16])
def test_a_tensor_with_a_range_outside_of_the_memory_is_an_invalid_argument(guest: FakeGuest, field: int) -> None:
    context = guest.opened(None)
    tensor = guest.tensor(b"x")
    guest.memory.write_u32(tensor + field, LAST_U32 - 3)
    assert guest.call("set_input", context, 0, tensor) == NnErrno.INVALID_ARGUMENT


def test_a_builder_with_a_range_outside_of_the_memory_is_an_invalid_argument(guest: FakeGuest) -> None:
    for field in (0, 4, 8, 12):
        builders = guest.builders(b"default", b"{}")
        guest.memory.write_u32(TENSOR + field, LAST_U32 - 3)
        assert guest.call("load", *builders, GGML, 0, OUT) == NnErrno.INVALID_ARGUMENT


def test_empty_ranges_may_end_where_the_memory_does(guest: FakeGuest) -> None:
    context = guest.opened(None)
    guest.ok("get_output", context, 0, MEMORY_BYTES, 0, OUT)
    assert guest.call("get_output", context, 0, MEMORY_BYTES + 1, 0, OUT) == NnErrno.INVALID_ARGUMENT
    assert guest.call("load_by_name", MEMORY_BYTES, 0, OUT) == NnErrno.NOT_FOUND
    guest.ok("unload", 0)
    assert guest.call("load_by_name_with_config", *guest.put(b"default"), 0, 0, OUT) == NnErrno.INVALID_ENCODING


@pytest.mark.parametrize("encoding", [0, 1, 2, 3, 4, 7, 8, 14, 15, 255])
def test_load_with_another_encoding_is_an_invalid_encoding(guest: FakeGuest, encoding: int) -> None:
    assert guest.call("load", *guest.builders(b"default"), encoding, 0, OUT) == NnErrno.INVALID_ENCODING


@pytest.mark.parametrize("n_builders", [0, MAX_BUILDERS + 1])
def test_load_with_no_builder_or_too_many_is_an_invalid_argument(guest: FakeGuest, n_builders: int) -> None:
    assert guest.call("load", TENSOR, n_builders, GGML, 0, OUT) == NnErrno.INVALID_ARGUMENT


def test_load_for_an_unknown_target_is_an_invalid_argument(guest: FakeGuest) -> None:
    assert guest.call("load", *guest.builders(b"default"), GGML, 4, OUT) == NnErrno.INVALID_ARGUMENT


@pytest.mark.parametrize("builder", [b"preload:/etc/passwd", b"GGUF\3\0\0\0", b"preload:default"])
def test_load_of_a_path_or_of_weights_is_an_unsupported_operation(guest: FakeGuest, builder: bytes) -> None:
    assert guest.call("load", *guest.builders(builder), GGML, 0, OUT) == NnErrno.UNSUPPORTED_OPERATION


@pytest.mark.parametrize("kind", [6, 255])
def test_an_unknown_tensor_type_is_an_invalid_argument(guest: FakeGuest, kind: int) -> None:
    assert guest.call("set_input", guest.opened(), 0, guest.tensor(b"x", kind=kind)) == NnErrno.INVALID_ARGUMENT


def test_a_configuration_that_is_not_json_is_an_invalid_encoding(guest: FakeGuest) -> None:
    assert guest.call("set_input", guest.opened(), 1, guest.tensor(b"{")) == NnErrno.INVALID_ENCODING
    assert guest.call("load", *guest.builders(b"default", b"{"), GGML, 0, OUT) == NnErrno.INVALID_ENCODING


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.GrammarInvalidError("x"), NnErrno.INVALID_ARGUMENT),
        (errors.ModelUnavailableError("x"), NnErrno.BUSY),
        (errors.GenerationFailedError("x"), NnErrno.RUNTIME_ERROR),
        (errors.ModelsMissingError("x"), NnErrno.UNSUPPORTED_OPERATION),
        (errors.ModelNotFoundError("x"), NnErrno.NOT_FOUND),
        (errors.PromptTooLongError("x"), NnErrno.PROMPT_TOO_LONG),
        (errors.ModelFileError("x", missing=True), NnErrno.MODEL_NOT_FOUND),
    ],
)
def test_what_the_model_fails_of_is_answered_and_logged(
    guest: FakeGuest, error: errors.FaasError, expected: NnErrno
) -> None:
    context = guest.opened()
    guest.models.error = error
    assert guest.call("compute", context) == expected
    assert guest.log[-1] == f"wasi-nn: compute answers {expected.value} ({expected.name.lower()}): x".encode()
    guest.ok("unload", 0)
    assert guest.call("load_by_name", *guest.put(b"default"), OUT) == expected


def test_a_full_context_is_answered_so(guest: FakeGuest) -> None:
    guest.models.finish = Finish.CONTEXT_FULL
    assert guest.call("compute", guest.opened()) == NnErrno.CONTEXT_FULL


def test_a_prompt_over_the_limit_is_too_large() -> None:
    guest = FakeGuest(size=MAX_PROMPT_BYTES + 8192)
    context = guest.opened(None)
    tensor = guest.tensor(b"x" * (MAX_PROMPT_BYTES + 1))
    assert guest.call("set_input", context, 0, tensor) == NnErrno.TOO_LARGE


def test_unknown_handles_are_invalid_arguments(guest: FakeGuest) -> None:
    tensor = guest.tensor(b"x")
    for name, *args in (
        ("init_execution_context", 0, OUT),
        ("set_input", 0, 0, tensor),
        ("set_input", 0, 1, tensor),
        ("compute", 0),
        ("get_output", 0, 0, BUFFER, 10, OUT),
        ("compute_single", 0),
        ("get_output_single", 0, 1, BUFFER, 10, OUT),
        ("fini_single", LAST_U32),
        ("unload", 0),
        ("finalize_execution_context", 0),
    ):
        assert guest.call(name, *args) == NnErrno.INVALID_ARGUMENT, name


def test_a_function_without_models_finds_none_and_can_do_nothing() -> None:
    guest = FakeGuest(nn=False)
    tensor = guest.tensor(b"x")
    assert guest.call("load_by_name", *guest.put(b"default"), OUT) == NnErrno.NOT_FOUND
    assert guest.call("load_by_name_with_config", *guest.put(b"default"), INPUT, 0, OUT) == NnErrno.NOT_FOUND
    assert guest.call("load", *guest.builders(b"default"), GGML, 0, OUT) == NnErrno.NOT_FOUND
    for name, *args in (
        ("init_execution_context", 0, OUT),
        ("set_input", 0, 0, tensor),
        ("compute", 0),
        ("get_output", 0, 0, BUFFER, 10, OUT),
        ("compute_single", 0),
        ("get_output_single", 0, 0, BUFFER, 10, OUT),
        ("fini_single", 0),
        ("unload", 0),
        ("finalize_execution_context", 0),
    ):
        assert guest.call(name, *args) == NnErrno.UNSUPPORTED_OPERATION, name


# What is not the guest's to see


def test_a_guest_without_memory_traps(guest: FakeGuest) -> None:
    guest.memory = NoMemory()
    with pytest.raises(errors.GuestTrapError, match="memory"):
        guest.call("load_by_name", 0, 0, 0)


def test_the_deadline_goes_through(guest: FakeGuest) -> None:
    guest.models.finish = Finish.DEADLINE
    context = guest.opened()
    with pytest.raises(errors.DeadlineExceededError):
        guest.call("compute", context)


def test_a_call_that_is_never_awaited_does_nothing(guest: FakeGuest) -> None:
    context = guest.opened()
    FUNCTIONS["compute"].call(guest, context).close()
    FUNCTIONS["load"].call(guest, *guest.builders(b"default"), GGML, 0, OUT).close()
    assert guest.models.prompts == []


# No value of a guest raises, or writes where it was not told to

_NUMBER = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 6, 8, 20, OUT, TENSOR, INPUT, BUFFER, MEMORY_BYTES - 4, MEMORY_BYTES, 2**31]),
    st.integers(0, 40),
    st.integers(LAST_U32 - 20, LAST_U32),
    st.integers(0, MEMORY_BYTES),
    st.integers(0, LAST_U32),
)
_CALLS = st.sampled_from(sorted(SIGNATURES)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*(_NUMBER for _ in SIGNATURES[name][0])))
)
_OUT_AT = {"load": 4, "load_by_name": 2, "load_by_name_with_config": 4, "init_execution_context": 1}


def may_write(name: str, args: tuple[int, ...], errno: NnErrno) -> list[tuple[int, int]]:
    """Return the ranges that a call may have changed."""
    if name in _OUT_AT and errno == NnErrno.SUCCESS:
        return [(args[_OUT_AT[name]], 4)]
    if name.startswith("get_output"):
        _context, _index, buffer, room, n_written = args
        if errno == NnErrno.TOO_LARGE:
            return [(n_written, 4)]
        if errno == NnErrno.SUCCESS:
            return [(buffer, room or ZERO_BUFFER_BYTES), (n_written, 4)]
    return []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(_CALLS, min_size=1, max_size=6),
    st.binary(max_size=64),
    st.sampled_from([b"{}", b'{"embedding": true}', b'{"n-predict": 1, "ctx-size": 1}']),
)
def test_garbage_is_answered_with_an_errno_and_written_nowhere_else(
    calls: list[tuple[str, tuple[int, ...]]], content: bytes, config: bytes
) -> None:
    guest = FakeGuest()
    guest.opened(config=config)
    guest.put(b"default")
    guest.put(content, 0)
    guest.put(content, MEMORY_BYTES - 64)
    guest.tensor(content or b"default")
    for name, args in calls:
        before = bytearray(guest.memory.data)
        errno = guest.call(name, *args)
        for at, length in may_write(name, args, errno):
            end = min(at + length, MEMORY_BYTES)
            before[at:end] = guest.memory.data[at:end]
        assert guest.memory.data == before, (name, args, errno)
        assert len(guest.memory.data) == MEMORY_BYTES


@pytest.mark.parametrize("name", sorted(SIGNATURES))
@pytest.mark.parametrize("value", [0, 1, OUTSIDE, MEMORY_BYTES, 2**31, LAST_U32])
def test_the_same_value_everywhere_is_answered_with_an_errno(name: str, value: int) -> None:
    assert FakeGuest().call(name, *([value] * len(SIGNATURES[name][0]))) in NnErrno
