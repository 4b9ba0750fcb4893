"""Promises of WASI-NN's meaning: handles, options, computing at once and token by token, outputs, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from scripted_models import HandClock, ScriptedModels

from faas import errors
from faas.nn.client import Generation
from faas.nn.errno import NnErrno, NnError, to_nn_error
from faas.nn.session import (
    MAX_HANDLES,
    MAX_LOG_LINES,
    MAX_PROMPT_BYTES,
    STREAM_CREDIT,
    NnContext,
    embedding_json,
)
from faas.wire.models import Cancel, Embed, Final, Finish, Generate, Piece, Tokenize


class Stdout:
    """A guest's stdout that takes at most three bytes at a time."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.events.append(data[:3])
        return len(data[:3])

    async def flush(self) -> None:
        self.events.append(b"|")


@pytest.fixture
def models() -> ScriptedModels:
    return ScriptedModels()


def make(models: ScriptedModels | None, **options: Any) -> NnContext:
    return NnContext(models, ("default", "other"), "f", **options)


async def opened(nn: NnContext, prompt: bytes | None = b"say it", config: dict[str, Any] | None = None) -> int:
    raw = json.dumps(config).encode() if config is not None else None
    graph = await nn.load_by_name(b"default", raw)
    context = nn.init_execution_context(graph)
    if prompt is not None:
        nn.set_prompt(context, prompt)
    return context


async def errno(awaitable: Any) -> NnErrno:
    with pytest.raises(NnError) as caught:
        await awaitable
    return caught.value.errno


def errno_now(call: Any, *args: Any) -> NnErrno:
    with pytest.raises(NnError) as caught:
        call(*args)
    return caught.value.errno


def metadata(nn: NnContext, context: int = 0) -> dict[str, Any]:
    return json.loads(nn.output(context, 1))


# Loading and handles


async def test_handles_count_up_and_are_never_used_again(models: ScriptedModels) -> None:
    nn = make(models)
    assert await nn.load_by_name(b"default") == 0
    assert await nn.load_by_name(b"other") == 1
    nn.unload(0)
    assert await nn.load_by_name(b"default") == 2
    assert [nn.init_execution_context(2), nn.init_execution_context(1)] == [0, 1]
    nn.finalize_execution_context(1)
    assert nn.init_execution_context(1) == 2


async def test_a_live_name_has_one_graph_and_its_second_configuration_is_ignored(models: ScriptedModels) -> None:
    nn = make(models)
    graph = await nn.load_by_name(b"default", b'{"n-predict": 1}')
    assert await nn.load_by_name(b"default", b"not even JSON") == graph
    assert models.requests == [("describe", "default", True)]


async def test_a_failed_load_uses_no_handle(models: ScriptedModels) -> None:
    nn = make(models)
    assert await errno(nn.load_by_name(b"default", b"{")) == NnErrno.INVALID_ENCODING
    assert await errno(nn.load_by_name(b"nope")) == NnErrno.NOT_FOUND
    assert await nn.load_by_name(b"default") == 0


async def test_a_model_that_is_not_granted_is_never_asked_for(models: ScriptedModels) -> None:
    nn = NnContext(models, (), "f")
    for name in (b"default", b"", b"\xff", b"x" * 10_000, b"/etc/passwd"):
        assert await errno(nn.load_by_name(name)) == NnErrno.NOT_FOUND
    assert models.requests == []


async def test_granted_names_can_stand_for_other_models(models: ScriptedModels) -> None:
    nn = NnContext(models, {"default": "smollm2"}, "f")
    nn.set_prompt(nn.init_execution_context(await nn.load_by_name(b"default")), b"p")
    await nn.compute(0)
    assert models.requests[0] == ("describe", "smollm2", True)
    assert models.requests[1].model == "smollm2"


async def test_load_takes_a_granted_name_and_nothing_else(models: ScriptedModels) -> None:
    nn = make(models)
    assert await nn.load(b"default", b"{}") == 0
    assert await nn.load(b"default", None) == 1
    assert await nn.load_by_name(b"default") == 2
    models.requests.clear()
    assert await errno(nn.load(b"preload:/etc/passwd", None)) == NnErrno.UNSUPPORTED_OPERATION
    assert await errno(nn.load(b"GGUF\x03\0\0\0", None)) == NnErrno.UNSUPPORTED_OPERATION
    assert await errno(nn.load(b"/etc/passwd", None)) == NnErrno.NOT_FOUND
    assert models.requests == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.ModelNotFoundError("x"), NnErrno.NOT_FOUND),
        (errors.ModelFileError("x", missing=True), NnErrno.MODEL_NOT_FOUND),
        (errors.ModelFileError("x"), NnErrno.INVALID_ARGUMENT),
        (errors.ModelOverBudgetError("x"), NnErrno.INVALID_ARGUMENT),
        (errors.ModelUnavailableError("x"), NnErrno.BUSY),
        (errors.ModelsMissingError("x"), NnErrno.UNSUPPORTED_OPERATION),
    ],
)
async def test_what_a_load_fails_of_has_its_errno(
    models: ScriptedModels, error: errors.FaasError, expected: NnErrno
) -> None:
    models.error = error
    with pytest.raises(errors.FaasError) as caught:
        await make(models).load_by_name(b"default")
    told = to_nn_error(caught.value)
    assert told is not None
    assert told.errno == expected


async def test_a_host_without_models_finds_none() -> None:
    assert await errno(make(None).load_by_name(b"default")) == NnErrno.NOT_FOUND


async def test_a_server_that_does_not_know_the_model_finds_none(models: ScriptedModels) -> None:
    models.cards = ()
    assert await errno(make(models).load_by_name(b"default")) == NnErrno.NOT_FOUND


async def test_handles_that_do_not_exist_are_invalid_arguments(models: ScriptedModels) -> None:
    nn = make(models)
    assert errno_now(nn.unload, 0) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.init_execution_context, 0) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.set_prompt, 0, b"") == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.set_config, 0, b"{}") == NnErrno.INVALID_ARGUMENT
    assert await errno(nn.compute(0)) == NnErrno.INVALID_ARGUMENT
    assert await errno(nn.compute_single(0)) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.output, 0, 0) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.output_single, 0, 1) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.fini_single, 0) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.finalize_execution_context, 0) == NnErrno.INVALID_ARGUMENT


async def test_after_unload_a_context_keeps_its_outputs_and_computes_no_more(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute(context)
    nn.unload(0)
    assert errno_now(nn.unload, 0) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.init_execution_context, 0) == NnErrno.INVALID_ARGUMENT
    assert await errno(nn.compute(context)) == NnErrno.INVALID_ARGUMENT
    assert await errno(nn.compute_single(context)) == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.set_prompt, context, b"p") == NnErrno.INVALID_ARGUMENT
    assert errno_now(nn.set_config, context, b"{}") == NnErrno.INVALID_ARGUMENT
    assert nn.output(context, 0) == b"ab<|im_end|>"
    assert nn.output_single(context, 0) == b"<|im_end|>"
    nn.fini_single(context)
    nn.finalize_execution_context(context)
    assert errno_now(nn.finalize_execution_context, context) == NnErrno.INVALID_ARGUMENT


async def test_handles_are_limited(models: ScriptedModels) -> None:
    nn = make(models)
    graph = await nn.load_by_name(b"default")
    for _ in range(MAX_HANDLES):
        nn.init_execution_context(graph)
    assert errno_now(nn.init_execution_context, graph) == NnErrno.TOO_LARGE


# Options


async def test_a_context_has_its_own_copy_of_its_options_and_shares_the_others(models: ScriptedModels) -> None:
    nn = make(models)
    first = await opened(nn, config={"n-predict": 1, "temp": 0.5})
    second = nn.init_execution_context(0)
    nn.set_config(first, b'{"n-predict": 2, "temp": 0.25}')
    nn.set_prompt(second, b"p")
    await nn.compute(first)
    await nn.compute(second)
    first_request, second_request = models.requests[1:]
    assert (first_request.max_tokens, first_request.sampling.temperature) == (2, 0.25)
    assert (second_request.max_tokens, second_request.sampling.temperature) == (1, 0.25)


async def test_a_refused_configuration_changes_nothing(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    assert errno_now(nn.set_config, context, b'{"temp": 0.1, "n-predict": true}') == NnErrno.INVALID_ARGUMENT
    await nn.compute(context)
    assert models.requests[-1].sampling.temperature == 0.8


async def test_a_request_says_what_the_options_mean(models: ScriptedModels) -> None:
    nn = make(models, deadline=1e12)
    context = await opened(nn, config={"ctx-size": 100, "reverse-prompt": "Ü:", "n-predict": -7, "seed": 3})
    await nn.compute(context)
    request = models.requests[-1]
    assert isinstance(request, Generate)
    assert (request.function, request.prompt, request.max_tokens) == ("f", b"say it", -1)
    assert (request.stop, request.hide_stop, request.render_special) == (("Ü:".encode(),), False, True)
    assert (request.add_special, request.parse_special) == (True, True)
    assert (request.n_ctx, request.credit, request.deadline, request.sampling.seed) == (256, 0, 1e12, 3)


async def test_the_whole_context_is_asked_for_as_what_the_model_has(models: ScriptedModels) -> None:
    nn = make(models)
    await nn.compute(await opened(nn, config={"ctx-size": 4096}))
    assert models.requests[-1].n_ctx == 0


# Prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (b"\xff\xfe", NnErrno.INVALID_ARGUMENT),
        (b'what is <img src="data:image/png;base64,AAAA">', NnErrno.INVALID_ARGUMENT),
        (b"x" * (MAX_PROMPT_BYTES + 1), NnErrno.TOO_LARGE),
    ],
)
async def test_a_prompt_that_cannot_be_taken_has_its_errno(
    models: ScriptedModels, prompt: bytes, expected: NnErrno
) -> None:
    nn = make(models)
    assert errno_now(nn.set_prompt, await opened(nn, None), prompt) == expected


async def test_prompts_together_are_limited_and_finalize_gives_room_back(models: ScriptedModels) -> None:
    nn = make(models)
    graph = await nn.load_by_name(b"default")
    prompt = b"x" * MAX_PROMPT_BYTES
    contexts = [nn.init_execution_context(graph) for _ in range(17)]
    for context in contexts[:16]:
        nn.set_prompt(context, prompt)
    nn.set_prompt(contexts[0], prompt)
    assert errno_now(nn.set_prompt, contexts[16], prompt) == NnErrno.TOO_LARGE
    nn.finalize_execution_context(contexts[0])
    nn.set_prompt(contexts[16], prompt)


async def test_the_tokens_of_a_prompt_are_counted_when_asked_for(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    assert nn.must_count(context, 1)
    assert not nn.must_count(context, 0)
    await nn.count(context)
    assert models.requests[-1] == Tokenize(0, "default", b"say it")
    assert not nn.must_count(context, 1)
    assert metadata(nn)["input_tokens"] == 3


async def test_counting_while_the_server_is_away_is_busy(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    models.error = errors.ModelUnavailableError("away")
    assert await errno(nn.count(context)) == NnErrno.BUSY


# compute


async def test_compute_keeps_the_text_with_its_end_token_and_counts_both(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute(context)
    assert nn.output(context, 0) == nn.output(context, 7) == b"ab<|im_end|>"
    assert nn.output(context, 1) == (
        b'{"input_tokens": 3, "output_tokens": 3, "llama_build_number": 8757, "llama_commit": "c0ffee", '
        b'"context_tokens": 512}'
    )


async def test_metadata_before_any_input_are_zeros(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, None)
    assert not nn.must_count(context, 1)
    assert metadata(nn)["input_tokens"] == metadata(nn)["output_tokens"] == 0
    assert nn.output(context, 0) == nn.output_single(context, 0) == b""


async def test_metadata_are_json_while_the_server_is_away(models: ScriptedModels) -> None:
    models.hello = None
    nn = make(models)
    await opened(nn, None)
    assert metadata(nn)["llama_build_number"] == 0
    assert metadata(nn)["llama_commit"] == ""


async def test_compute_without_a_prompt_is_an_invalid_argument(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, None)
    assert await errno(nn.compute(context)) == NnErrno.INVALID_ARGUMENT
    assert await errno(nn.compute_single(context)) == NnErrno.INVALID_ARGUMENT


async def test_computing_again_starts_from_the_prompt(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute(context)
    nn.set_prompt(context, b"another")
    assert nn.output(context, 0) == b"ab<|im_end|>"
    models.pieces = [b"c"]
    await nn.compute(context)
    assert nn.output(context, 0) == b"c"


async def test_n_predict_ends_well(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, config={"n-predict": 2})
    await nn.compute(context)
    assert nn.output(context, 0) == b"ab"


async def test_n_predict_zero_generates_nothing_but_checks_the_prompt(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, config={"n-predict": 0, "ctx-size": 1})
    await nn.compute(context)
    assert metadata(nn) | {"llama_build_number": 0, "llama_commit": ""} == {
        "input_tokens": 3, "output_tokens": 0, "llama_build_number": 0, "llama_commit": "", "context_tokens": 256,
    }  # fmt: skip
    nn.set_prompt(context, b"w " * 300)
    assert await errno(nn.compute(context)) == NnErrno.PROMPT_TOO_LONG


async def test_a_full_context_answers_so_and_keeps_the_text(models: ScriptedModels) -> None:
    models.finish = Finish.CONTEXT_FULL
    nn = make(models)
    context = await opened(nn)
    assert await errno(nn.compute(context)) == NnErrno.CONTEXT_FULL
    assert nn.output(context, 0) == b"ab<|im_end|>"


@pytest.mark.parametrize(("n_words", "fits"), [(251, True), (252, False)])
async def test_a_prompt_leaves_four_tokens_of_the_context_free(
    models: ScriptedModels, n_words: int, fits: bool
) -> None:
    nn = make(models)
    context = await opened(nn, b"w " * n_words, {"ctx-size": 200})
    if fits:
        await nn.compute(context)
    else:
        assert await errno(nn.compute(context)) == NnErrno.PROMPT_TOO_LONG
        assert nn.output(context, 0) == b""


async def test_a_prompt_that_the_server_finds_too_long_is_too_long(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute(context)
    models.failure = errors.PromptTooLongError("x")
    assert await errno(nn.compute(context)) == NnErrno.PROMPT_TOO_LONG
    assert nn.output(context, 0) == b""


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (errors.GrammarInvalidError("x"), NnErrno.INVALID_ARGUMENT),
        (errors.OptionsInvalidError("x"), NnErrno.INVALID_ARGUMENT),
        (errors.GenerationFailedError("x"), NnErrno.RUNTIME_ERROR),
        (errors.ModelUnavailableError("x"), NnErrno.BUSY),
        (errors.QuotaExceededError("x"), NnErrno.BUSY),
        (errors.OverloadedError("x"), NnErrno.BUSY),
        (errors.ModelNotFoundError("x"), NnErrno.NOT_FOUND),
    ],
)
async def test_a_failed_generation_has_its_errno(
    models: ScriptedModels, failure: errors.FaasError, expected: NnErrno
) -> None:
    nn = make(models)
    context = await opened(nn)
    models.failure = failure
    assert await errno(nn.compute(context)) == expected
    assert await errno(nn.compute_single(context)) == expected
    models.failure = None
    await nn.compute(context)


async def test_a_cancelled_generation_is_a_runtime_error(models: ScriptedModels) -> None:
    models.finish = Finish.CANCELLED
    nn = make(models)
    context = await opened(nn)
    assert await errno(nn.compute(context)) == NnErrno.RUNTIME_ERROR


async def test_the_deadline_ends_the_invocation_and_not_only_the_call(models: ScriptedModels) -> None:
    models.finish = Finish.DEADLINE
    nn = make(models)
    context = await opened(nn)
    with pytest.raises(errors.DeadlineExceededError):
        await nn.compute(context)


async def test_the_deadline_is_looked_at_between_tokens(models: ScriptedModels) -> None:
    clock = HandClock()
    nn = make(models, deadline=150.0, clock=clock)
    context = await opened(nn)
    await nn.compute_single(context)
    clock.now = 151.0
    with pytest.raises(errors.DeadlineExceededError):
        await nn.compute_single(context)
    assert models.running[0].ended
    n_requests = len(models.requests)
    with pytest.raises(errors.DeadlineExceededError):
        await nn.compute(context)
    assert len(models.requests) == n_requests


async def test_stdout_gets_each_piece_whole_and_flushed(models: ScriptedModels) -> None:
    stdout = Stdout()
    models.pieces = [b"ab", b"cdef", b"<e>"]
    nn = make(models, stdout=stdout, flush=stdout.flush)
    await nn.compute(await opened(nn, config={"stream-stdout": True}))
    assert stdout.events == [b"ab", b"|", b"cde", b"f", b"|", b"<e>", b"|"]
    assert models.requests[-1].credit == STREAM_CREDIT


async def test_stdout_stays_empty_unless_asked_for(models: ScriptedModels) -> None:
    stdout = Stdout()
    nn = make(models, stdout=stdout)
    context = await opened(nn)
    await nn.compute(context)
    nn.set_config(context, b'{"stream-stdout": true}')
    await nn.compute_single(context)
    assert stdout.events == []


# Embeddings


async def test_an_embedding_graph_answers_the_vector_as_json(models: ScriptedModels) -> None:
    nn = make(models, deadline=1e12)
    context = await opened(nn, config={"embedding": True, "batch-size": 9})
    await nn.compute(context)
    assert models.requests[-1] == Embed(0, "default", "f", (b"say it",), max_tokens_each=9, deadline=1e12)
    assert nn.output(context, 0) == b'{"n_embedding": 3, "embedding": [0.6,-0.8,1e-05]}'
    assert metadata(nn)["input_tokens"] == 3
    assert metadata(nn)["output_tokens"] == 0


async def test_an_embedding_graph_generates_no_tokens(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, config={"embedding": True})
    assert await errno(nn.compute_single(context)) == NnErrno.UNSUPPORTED_OPERATION


def test_embeddings_have_ten_significant_digits() -> None:
    assert embedding_json((1 / 3, 1.0)) == b'{"n_embedding": 2, "embedding": [0.3333333333,1]}'


# Streams


async def test_a_stream_gives_a_token_a_call_and_then_its_end_again_and_again(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, config={"n-predict": 1, "reverse-prompt": "a"})
    taken = []
    for _ in range(2):
        await nn.compute_single(context)
        taken.append(nn.output_single(context, 0))
    assert taken == [b"a", b"b"]
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE
    assert metadata(nn)["output_tokens"] == 3
    assert nn.output(context, 0) == b"ab<|im_end|>"
    n_requests = len(models.requests)
    with pytest.raises(NnError) as again:
        await nn.compute_single(context)
    assert (again.value.errno, again.value.reason) == (NnErrno.END_OF_SEQUENCE, "")
    assert len(models.requests) == n_requests
    assert (models.requests[-1].max_tokens, models.requests[-1].stop) == (-1, ())
    assert models.requests[-1].credit == STREAM_CREDIT


@pytest.mark.parametrize("batch", [1, 2, 5])
async def test_a_stream_is_the_same_however_tokens_arrive(models: ScriptedModels, batch: int) -> None:
    models.pieces = [b"a", b"<x>", b"\xf0\x9f", b"\x98\x80", b"</s>"]
    models.batch = batch
    nn = make(models)
    context = await opened(nn)
    taken = []
    for _ in range(4):
        await nn.compute_single(context)
        taken.append(nn.output_single(context, 0))
    assert taken == models.pieces[:4]
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE


async def test_a_plain_token_is_answered_before_the_next_one_exists(models: ScriptedModels) -> None:
    models.by_hand = True
    nn = make(models)
    context = await opened(nn)
    call = asyncio.create_task(nn.compute_single(context))
    await asyncio.sleep(0)
    models.running[0].arrive(Piece(1, (5,), (b"plain",), 3, 0))
    await call
    assert nn.output_single(context, 0) == b"plain"
    nn.close()


@pytest.mark.parametrize("piece", [b"<tool_call>", b"[EOS]", b""])
async def test_a_token_that_looks_like_an_end_is_answered_before_the_next_one_exists(
    models: ScriptedModels, piece: bytes
) -> None:
    models.by_hand = True
    nn = make(models)
    context = await opened(nn)
    call = asyncio.create_task(nn.compute_single(context))
    await asyncio.sleep(0)
    stream = models.running[0]
    stream.arrive(Piece(1, (5,), (piece,), 3, 0))
    await call
    assert nn.output_single(context, 0) == piece
    stream.finish(Final(1, Finish.LENGTH))
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE


@pytest.mark.parametrize(
    ("finish", "expected"),
    [(Finish.EOG, NnErrno.END_OF_SEQUENCE), (Finish.CONTEXT_FULL, NnErrno.CONTEXT_FULL)],
)
async def test_a_token_that_ends_the_stream_is_counted_and_answered_as_its_end_whatever_it_looks_like(
    models: ScriptedModels, finish: Finish, expected: NnErrno
) -> None:
    models.by_hand = True
    nn = make(models)
    context = await opened(nn)
    call = asyncio.create_task(nn.compute_single(context))
    await asyncio.sleep(0)
    models.running[0].arrive(Piece(1, (5, 6), (b"a", b"plain"), 3, 0, finish=finish))
    await call
    assert nn.output_single(context, 0) == b"a"
    assert await errno(nn.compute_single(context)) == expected
    assert metadata(nn)["output_tokens"] == 2
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE


async def test_a_context_that_fills_up_after_a_token_was_given_out_ends_the_next_call(models: ScriptedModels) -> None:
    models.by_hand = True
    nn = make(models)
    context = await opened(nn)
    call = asyncio.create_task(nn.compute_single(context))
    await asyncio.sleep(0)
    models.running[0].arrive(Piece(1, (5,), (b"a",), 3, 0))
    await call
    models.running[0].finish(Final(1, Finish.CONTEXT_FULL))
    assert await errno(nn.compute_single(context)) == NnErrno.CONTEXT_FULL
    assert metadata(nn)["output_tokens"] == 1


async def test_a_special_token_that_ends_nothing_is_given_out(models: ScriptedModels) -> None:
    models.pieces, models.finish = [b"<x>"], Finish.LENGTH
    nn = make(models)
    context = await opened(nn)
    await nn.compute_single(context)
    assert nn.output_single(context, 0) == b"<x>"
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE


async def test_a_stream_in_a_full_context_ends_with_a_token_counted_and_unread() -> None:
    models = ScriptedModels([b"a", b"b", b"c"], Finish.CONTEXT_FULL, n_ctx=6)
    nn = make(models)
    context = await opened(nn, b"one")
    await nn.compute_single(context)
    await nn.compute_single(context)
    assert await errno(nn.compute_single(context)) == NnErrno.CONTEXT_FULL
    assert metadata(nn)["output_tokens"] == 3
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE


async def test_a_stream_of_a_prompt_that_is_too_long_ends_at_once(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn, b"w " * 600)
    assert await errno(nn.compute_single(context)) == NnErrno.PROMPT_TOO_LONG
    assert await errno(nn.compute_single(context)) == NnErrno.END_OF_SEQUENCE
    nn.set_prompt(context, b"short")
    await nn.compute_single(context)


async def test_fini_single_clears_outputs_and_starts_anew(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute_single(context)
    assert nn.streams(context)
    await nn.end_stream(context)
    nn.fini_single(context)
    assert not nn.streams(context)
    assert metadata(nn)["input_tokens"] == metadata(nn)["output_tokens"] == 0
    assert nn.output(context, 0) == nn.output_single(context, 0) == b""
    await nn.compute_single(context)
    assert nn.output(context, 0) == b"a"


async def test_compute_ends_a_stream(models: ScriptedModels) -> None:
    nn = make(models)
    context = await opened(nn)
    await nn.compute_single(context)
    await nn.compute(context)
    assert models.running[0].ended
    assert nn.output(context, 0) == b"ab<|im_end|>"
    await nn.compute_single(context)
    assert nn.output(context, 0) == b"a"


async def test_a_cancelled_call_frees_the_slot(models: ScriptedModels) -> None:
    models.by_hand = True
    nn = make(models)
    context = await opened(nn)
    for call in (nn.compute(context), nn.compute_single(context)):
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert models.sent == [Cancel(generation.id) for generation in models.running]
    assert not nn.streams(context)


async def test_closing_ends_what_still_runs(models: ScriptedModels) -> None:
    models.by_hand = True
    nn = make(models)
    graph = await nn.load_by_name(b"default")
    for _ in range(2):
        context = nn.init_execution_context(graph)
        nn.set_prompt(context, b"p")
        task = asyncio.create_task(nn.compute_single(context))
        await asyncio.sleep(0)
        models.running[-1].arrive(Piece(1, (1,), (b"t",), 2, 0))
        await task
    nn.close()
    nn.close()
    assert [type(message) for message in models.sent] == [Cancel, Cancel]


# Metering, quotas, the log


class Charges:
    """A meter that writes down what was spent, a list for each computation."""

    def __init__(self) -> None:
        self.begun: list[list[Any]] = []

    def begin(self, n_prompt_bytes: int) -> Charges:
        self.begun.append([n_prompt_bytes])
        return self

    def prompt(self, n_tokens: int) -> None:
        self.begun[-1].append(("prompt", n_tokens))

    def generated(self, n_tokens: int) -> None:
        self.begun[-1].append(n_tokens)

    def close(self) -> None:
        self.begun[-1].append("closed")


async def test_tokens_are_charged_as_they_come_and_the_rest_at_the_end(models: ScriptedModels) -> None:
    charges = Charges()
    nn = make(models, charge=charges.begin)
    context = await opened(nn)
    await nn.compute(context)
    await nn.compute_single(context)  # two more have arrived that nobody will take
    nn.close()
    nn.close()
    nn.set_config(context, b'{"embedding": true}')
    await nn.compute(context)
    assert charges.begun == [
        [6, ("prompt", 3), 1, 1, 1, 0, "closed"],
        [6, ("prompt", 3), 1, 2, "closed"],
        [6, ("prompt", 3), "closed"],
    ]


async def test_a_charge_is_closed_whatever_goes_wrong(models: ScriptedModels) -> None:
    charges = Charges()
    nn = make(models, charge=charges.begin)
    context = await opened(nn)
    models.failure = errors.GenerationFailedError("x")
    assert await errno(nn.compute(context)) == NnErrno.RUNTIME_ERROR
    models.error = errors.ModelUnavailableError("x")
    assert await errno(nn.compute(context)) == NnErrno.BUSY
    nn.set_config(context, b'{"embedding": true}')
    assert await errno(nn.compute(context)) == NnErrno.BUSY
    assert charges.begun == [[6, ("prompt", 3), 0, "closed"], [6, "closed"], [6, "closed"]]


async def test_a_quota_is_asked_before_the_model_is(models: ScriptedModels) -> None:
    def charge(n_prompt_bytes: int) -> Any:
        raise errors.QuotaExceededError("no tokens left this minute")

    nn = make(models, charge=charge)
    context = await opened(nn)
    models.requests.clear()
    assert await errno(nn.compute(context)) == NnErrno.BUSY
    assert await errno(nn.compute_single(context)) == NnErrno.BUSY
    nn.set_config(context, b'{"embedding": true}')
    assert await errno(nn.compute(context)) == NnErrno.BUSY
    assert models.requests == []


def test_reasons_are_logged_a_line_each_and_not_without_end(models: ScriptedModels) -> None:
    lines: list[bytes] = []
    nn = make(models, log_line=lines.append)
    nn.report("compute", NnError(NnErrno.END_OF_SEQUENCE, ""))
    for _ in range(2 * MAX_LOG_LINES):
        nn.report("load", NnError(NnErrno.NOT_FOUND, "two\nlines \udc80"))
    assert lines[0] == b"wasi-nn: load answers 8 (not_found): two lines ?"
    assert len(lines) == MAX_LOG_LINES + 1
    assert lines[-1] == b"wasi-nn: further errors are not logged"


async def test_enable_log_logs_the_counts_and_nothing_of_the_text(models: ScriptedModels) -> None:
    lines: list[bytes] = []
    nn = make(models, log_line=lines.append)
    await nn.compute(await opened(nn, config={"enable-log": True}))
    assert lines == [b"wasi-nn: model=default input_tokens=3 output_tokens=3"]


def test_every_model_and_wire_error_has_an_errno_and_no_invocation_error_has() -> None:
    for leaf in errors.leaves():
        if leaf is errors.InvalidApiKeyError:
            continue  # clients of the OpenAI endpoints have keys, guests have none
        told = to_nn_error(leaf("x"))
        expected = issubclass(leaf, (errors.ModelError, errors.WireError, errors.OverloadedError))
        assert (told is not None) == expected, leaf


def test_a_generation_without_credit_sends_none() -> None:
    async def run() -> None:
        sent: list[Any] = []
        generation = Generation(1, 0, sent.append)
        generation.arrive(Piece(1, (1, 2), (b"a", b"b"), 1, 0))
        await anext(generation)
        assert sent == []

    asyncio.run(run())
