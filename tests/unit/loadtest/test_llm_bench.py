"""The pure parts of ``make bench-llm``: prompts, reading event streams, counting, summing up."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtest.llm import (
    OURS,
    THEIRS,
    Client,
    Reply,
    RequestFailedError,
    Tally,
    Visit,
    prompts,
    requests_per_caller,
    summarise,
    unlike,
)

USAGE = {"prompt_tokens": 50, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def data(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n"


def text(content: str) -> bytes:
    return data({"choices": [{"index": 0, "text": content}]})


def reply(n_prompt: int = 50, n_generated: int = 3) -> Reply:
    return Reply(0.1, 0.3, n_prompt, 0, n_generated)


def visit(server: str, callers: int, took_s: float, *, n_tokens: int = 100) -> Visit:
    return Visit(server, callers, took_s, (reply(n_generated=n_tokens),))


# prompts


def test_prompts_are_the_same_for_the_same_seed_and_others_for_another():
    first, again, other = (list(itertools.islice(prompts(seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_a_thousand_prompts_are_distinct_and_in_the_chat_format():
    made = list(itertools.islice(prompts(1), 1000))
    assert len(set(made)) == len(made)
    assert all(one.startswith("<|im_start|>user\n") and one.endswith("<|im_start|>assistant\n") for one in made)


def test_prompts_next_to_each_other_rarely_begin_with_the_same_word():
    words = [one.split("\n")[1].split(",")[0] for one in itertools.islice(prompts(1), 400)]
    assert len(set(words)) > 50
    assert sum(a == b for a, b in itertools.pairwise(words)) < 20


@pytest.mark.parametrize(("callers", "n"), [(1, 6), (2, 3), (4, 1), (8, 1), (16, 1)])
def test_few_callers_make_more_requests_each(callers: int, n: int):
    assert requests_per_caller(callers) == n


# one stream


def test_tally_takes_times_of_the_first_and_last_text_only():
    tally = Tally(sent_at=10.0)
    for at, line in [
        (10.1, data({"choices": [{"index": 0, "text": ""}]})),
        (10.5, text("a")),
        (10.6, b"\n"),
        (10.7, text("b")),
        (10.8, text("c")),
        (10.9, data({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})),
        (11.0, data({"choices": [], "usage": USAGE})),
        (11.1, b"data: [DONE]\n"),
    ]:
        tally.feed(line, at)
    made = tally.reply()
    assert (made.n_prompt, made.n_cached, made.n_generated) == (50, 4, 3)
    assert made.ttft_ms == pytest.approx(500)
    assert made.tpot_ms == pytest.approx(150)


def test_tally_takes_the_usage_that_rides_on_the_last_choice():
    tally = Tally(sent_at=0.0)
    tally.feed(text("a"), 1.0)
    tally.feed(data({"choices": [{"index": 0, "text": ""}], "usage": USAGE}), 2.0)
    tally.feed(b"data: [DONE]\n", 2.0)
    assert tally.reply().n_generated == 3


def test_tally_keeps_the_usage_when_later_events_have_none():
    tally = Tally(sent_at=0.0)
    tally.feed(data({"choices": [{"index": 0, "text": "a"}], "usage": USAGE}), 1.0)
    tally.feed(data({"choices": [], "usage": None}), 2.0)
    assert tally.usage == USAGE


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        ([text("a"), data({"choices": [], "usage": USAGE})], r"without \[DONE\]$"),
        ([text("a"), b"data: [DONE]\n"], "without usage$"),
        ([data({"choices": [], "usage": USAGE}), b"data: [DONE]\n"], "without text$"),
        ([], r"without \[DONE\] and usage and text$"),
    ],
)
def test_a_stream_that_breaks_off_is_a_failed_request(lines: list[bytes], missing: str):
    tally = Tally(sent_at=0.0)
    for line in lines:
        tally.feed(line, 1.0)
    with pytest.raises(RequestFailedError, match=missing):
        tally.reply()


@pytest.mark.parametrize("line", [data({"error": {"message": "overloaded"}}), b"<html>overloaded\n"])
def test_an_error_on_the_stream_is_a_failed_request(line: bytes):
    with pytest.raises(RequestFailedError, match="overloaded"):
        Tally(sent_at=0.0).feed(line, 1.0)


def test_comments_on_the_stream_are_passed_over():
    tally = Tally(sent_at=0.0)
    tally.feed(b": ping\n", 1.0)
    assert tally == Tally(sent_at=0.0)


def test_one_token_has_no_time_per_further_token():
    assert math.isnan(reply(n_generated=1).tpot_ms)


# both together


def test_counts_that_differ_are_named_by_request():
    ours, theirs = [reply(), reply(n_prompt=51)], [reply(), reply()]
    assert unlike(ours, ours) == []
    assert unlike(ours, theirs) == [f"request 1: {OURS} counts 51 + 3 tokens, {THEIRS} 50 + 3"]


def test_summary_takes_medians_and_the_ratios_of_neighbouring_visits():
    visits = []
    # The machine gets slower and slower: the ratio of neighbours stays what it is.
    for slower in (1.0, 2.0, 4.0):
        visits += [visit(OURS, 4, slower), visit(THEIRS, 4, slower * 1.25)]
    (row,) = summarise(visits)
    assert (row.ours_tokens_per_s, row.theirs_tokens_per_s) == (50.0, 40.0)
    assert (row.ratio, row.ratio_min, row.ratio_max) == (1.25, 1.25, 1.25)
    assert row.meets_goal


def test_summary_has_a_row_for_each_number_of_callers_in_order():
    visits = [visit(server, callers, 1.0) for callers in (16, 1, 8) for server in (OURS, THEIRS)]
    assert [row.callers for row in summarise(visits)] == [1, 8, 16]


def test_goal_is_missed_when_ours_is_slower():
    (row,) = summarise([visit(OURS, 1, 1.01), visit(THEIRS, 1, 1.0)])
    assert not row.meets_goal


# the client, at a server that speaks as both do

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connect = Callable[[Answer], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Serve completions by a function and return a client of it; all is closed at the end."""
    opened: list[tuple[TestServer, Client]] = []

    async def one(answer: Answer) -> Client:
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        server = TestServer(app)
        await server.start_server()
        client = Client(OURS, str(server.make_url("/")))
        opened.append((server, client))
        return client

    yield one
    for server, client in opened:
        await client.__aexit__()
        await server.close()


async def stream(request: web.Request, n_tokens: int) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(text("a") * n_tokens)
    usage = {"prompt_tokens": 5, "completion_tokens": n_tokens}
    await response.write(data({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


async def test_each_caller_sends_its_share_one_after_the_other(connect: Connect):
    together = asyncio.Barrier(2)
    prompts_seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompts_seen.append(body["prompt"])
        async with together:  # two requests at a time, or nothing goes on
            return await stream(request, body["max_tokens"])

    client = await connect(answer)
    made = await client.visit(2, ["a1", "a2", "b1", "b2"], 3)
    assert {*prompts_seen[:2]} == {"a1", "b1"}
    assert {*prompts_seen[2:]} == {"a2", "b2"}
    assert [one.n_generated for one in made.replies] == [3, 3, 3, 3]
    assert made.tokens_per_s == pytest.approx(12 / made.took_s)


async def test_a_refused_request_fails_the_visit_with_what_the_server_said(connect: Connect):
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "come back later"}}, status=503)

    client = await connect(answer)
    with pytest.raises(RequestFailedError, match=r"faas answered 503: .*come back later.*of 2 callers failed"):
        await client.visit(2, ["a", "b"], 3)


async def test_an_answer_with_fewer_tokens_than_asked_for_fails_the_visit(connect: Connect):
    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream(request, 2)

    client = await connect(answer)
    with pytest.raises(RequestFailedError, match="generated 2 tokens, asked for 3"):
        await client.visit(1, ["a"], 3)


async def test_a_connection_that_breaks_off_fails_the_visit(connect: Connect):
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(text("a"))
        assert request.transport is not None
        request.transport.close()
        return response

    client = await connect(answer)
    with pytest.raises(RequestFailedError, match="faas: Client"):
        await client.visit(1, ["a"], 3)
