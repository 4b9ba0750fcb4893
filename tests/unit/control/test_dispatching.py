"""Jobs are run by the workers with the fewest, tried again as their function says, and those who asked are told."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from faas.control.jobs import (
    CallbackSender,
    Dispatcher,
    Fate,
    JobDesk,
    Ran,
    back_off_s,
    check_callback,
    fate_of,
    host_name,
    retry_after_s,
    signature,
)
from faas.control.supervisor import WorkerView
from faas.errors import BadRequestError, CallbackRefusedError, FunctionNotFoundError, InternalError, PeerGoneError
from faas.invocation import Kind
from faas.manifest import Async, manifest_from_builtins
from faas.outbound.client import Client
from faas.state.base import NewVersion
from faas.state.jobs import JobRequest, JobState
from faas.state.sqlite import SqliteDatabase
from faas.state.state import State

REQUEST = JobRequest("POST", "/f", (), b"body")


class OwnedClock:
    """Time that stands still until a test moves it."""

    def __init__(self):
        self.now_s = 1_000_000.0

    def monotonic(self):
        return self.now_s

    def time_ns(self):
        return int(self.now_s * 1e9)


def said(status=200, *, outcome="ok", code="", body=b"", headers=()):
    return Ran(status, tuple(headers), body, len(body), outcome, code, code and "what went wrong", 1)


class Workers:
    """Workers that answer what a test says, when it says so."""

    def __init__(self, n=2):
        self.states = ["serving"] * n
        self.asked = asyncio.Queue()

    def workers(self):
        return [WorkerView(index, 1, state, 0, 1) for index, state in enumerate(self.states)]

    async def ask(self, index, operation, /, **arguments):
        assert operation == "invoke"
        answer = asyncio.get_running_loop().create_future()
        await self.asked.put((index, arguments, answer))
        return await answer


@pytest.fixture
def clock():
    return OwnedClock()


@pytest.fixture
async def state(tmp_path, clock):
    database = await SqliteDatabase.open(tmp_path / "state.db", clock)
    yield State(database, database)
    await database.aclose()


@pytest.fixture
def desk(state):
    return JobDesk(state.jobs, state.functions, max_job_bytes=1024)


@pytest.fixture
def workers():
    return Workers()


@pytest.fixture
async def dispatcher(state, workers):
    dispatcher = Dispatcher(
        state.jobs, state.database, workers, holder="me", slots=8, jitter=lambda: 1.0, sleep=lambda _: asyncio.sleep(0)
    )
    yield dispatcher
    for _, _, answer in [workers.asked.get_nowait() for _ in range(workers.asked.qsize())]:
        answer.set_exception(PeerGoneError("the test is over"))
    await dispatcher.aclose()


async def deploy(state, name="f", **manifest):
    manifest = manifest_from_builtins({"name": name, **manifest})
    await state.functions.add_version_and_activate(NewVersion(manifest, Kind.COMMAND, "d", "k"))


async def settled(dispatcher):
    """Return when every run that was begun is noted."""
    while dispatcher.n_running:
        await asyncio.gather(*(task for _, task in dispatcher._running.values()))


async def run_once(dispatcher, workers, answer):
    """Have what is due run, and end with *answer*; return what the worker was asked."""
    await dispatcher.step()
    index, asked, future = await workers.asked.get()
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(msgspec.to_builtins(answer, builtin_types=(bytes,)))
    await settled(dispatcher)
    return index, asked


async def test_job_runs_with_its_request_and_its_answer_is_kept(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "canary", REQUEST, source="http")
    _, asked = await run_once(dispatcher, workers, said(201, body=b"done", headers=[("content-type", b"text/plain")]))
    assert (asked["function"], asked["qualifier"], asked["attempt"], asked["job"]) == ("f", "canary", 1, queued.id)
    assert asked["request"]["body"] == b"body"
    view = await desk.view(queued.id)
    assert (view.state, view.result.status, view.attempts[0].outcome) == (JobState.SUCCEEDED, 201, "ok")
    assert (await desk.result(queued.id)).body == b"done"


async def test_jobs_are_spread_over_workers_by_who_has_fewest(state, desk, dispatcher, workers):
    for name in "abcd":
        await deploy(state, name)
        await desk.submit(name, "", REQUEST, source="http")
    await dispatcher.step()
    asked = [await workers.asked.get() for _ in range(4)]
    assert sorted(index for index, _, _ in asked) == [0, 0, 1, 1]
    for _, _, answer in asked:
        answer.set_result(msgspec.to_builtins(said(), builtin_types=(bytes,)))
    await settled(dispatcher)


async def test_worker_that_does_not_serve_gets_none(state, desk, dispatcher, workers):
    await deploy(state)
    workers.states = ["starting", "serving"]
    await desk.submit("f", "", REQUEST, source="http")
    index, _ = await run_once(dispatcher, workers, said())
    assert index == 1


async def test_nothing_is_claimed_while_no_worker_serves(state, desk, dispatcher, workers):
    await deploy(state)
    workers.states = ["starting"]
    queued = await desk.submit("f", "", REQUEST, source="http")
    assert await dispatcher.step() > 0
    assert (await desk.view(queued.id)).state is JobState.QUEUED


async def test_failures_are_tried_again_with_growing_pauses_until_the_job_is_a_dead_letter(
    state, desk, dispatcher, workers, clock
):
    await deploy(state, **{"async": {"max_attempts": 3, "backoff_s": 10}})
    queued = await desk.submit("f", "", REQUEST, source="http")
    waits = []
    for number in (1, 2, 3):
        _, asked = await run_once(dispatcher, workers, said(502, outcome="failed", code="guest-trap"))
        assert asked["attempt"] == number
        view = await desk.view(queued.id)
        waits.append(view.next_at and round(view.next_at - clock.now_s))
        clock.now_s += waits[-1]
    assert waits == [10, 20, 0]
    assert view.state is JobState.DEAD
    assert [attempt.reason for attempt in view.attempts] == ["guest-trap: what went wrong"] * 3
    assert view.result.status == 502


async def test_step_says_when_to_look_again(state, desk, dispatcher, workers):
    await deploy(state, **{"async": {"backoff_s": 10}})
    await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, said(500))
    assert await dispatcher.step() == pytest.approx(10, abs=0.01)


async def test_retry_after_is_honoured_where_it_is_longer(state, desk, dispatcher, workers, clock):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, said(429, headers=[("Retry-After", b"77")]))
    assert (await desk.view(queued.id)).next_at == pytest.approx(clock.now_s + 77)


async def test_job_that_found_no_room_is_not_counted(state, desk, dispatcher, workers):
    await deploy(state, **{"async": {"max_attempts": 1}})
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, said(503, outcome="refused", code="overloaded"))
    view = await desk.view(queued.id)
    assert (view.state, view.attempts, view.reason) == (JobState.QUEUED, [], "overloaded: what went wrong")


async def test_refusal_by_the_worker_of_a_function_that_is_gone_waits_for_it(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, FunctionNotFoundError("no function 'f'"))
    assert (await desk.view(queued.id)).state is JobState.QUEUED


async def test_job_whose_worker_went_away_runs_again_and_is_not_counted(state, desk, dispatcher, workers):
    await deploy(state, **{"async": {"max_attempts": 1}})
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, PeerGoneError("it died"))
    _, asked = await run_once(dispatcher, workers, said())
    assert asked["attempt"] == 2
    view = await desk.view(queued.id)
    assert (view.state, [attempt.outcome for attempt in view.attempts]) == (JobState.SUCCEEDED, ["lost", "ok"])


async def test_cancelled_job_has_its_invocation_cancelled(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    await dispatcher.step()
    _, _, answer = await workers.asked.get()
    await desk.cancel(queued.id)
    await dispatcher.check()
    await asyncio.wait([answer])
    assert answer.cancelled()
    assert (await desk.view(queued.id)).state is JobState.CANCELLED


async def test_cancel_while_leases_are_being_renewed_is_heard(state, desk, dispatcher, workers):
    """The notice must not be lost on a check that asked the database just before."""
    await deploy(state)
    await dispatcher.start()
    first, second = [
        await desk.submit("f", "", JobRequest("POST", "/f", (), body), source="http") for body in (b"1", b"2")
    ]
    answers = {}
    for _ in range(2):
        _, asked, answer = await workers.asked.get()
        answers[asked["job"]] = answer
    renewed, go_on, renew = asyncio.Event(), asyncio.Event(), state.jobs.renew

    async def slow(*asked):
        kept = await renew(*asked)
        renewed.set()
        await go_on.wait()
        return kept

    state.jobs.renew = slow
    await desk.cancel(first.id)
    await renewed.wait()
    await desk.cancel(second.id)
    go_on.set()
    await asyncio.wait(answers.values())
    assert all(answer.cancelled() for answer in answers.values())


async def test_job_that_is_redriven_before_its_cancelled_run_is_over_is_not_forgotten(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    await dispatcher.step()
    _, _, first = await workers.asked.get()
    await desk.cancel(queued.id)
    await desk.redrive(queued.id)
    await dispatcher.step()
    _, asked, second = await workers.asked.get()
    assert asked["attempt"] == 2
    await dispatcher.check()
    await asyncio.wait([first])
    assert first.cancelled()
    assert dispatcher.n_running == 1
    second.set_result(msgspec.to_builtins(said(), builtin_types=(bytes,)))
    await settled(dispatcher)
    assert (await desk.view(queued.id)).state is JobState.SUCCEEDED


async def test_what_was_claimed_when_the_dispatcher_is_stopped_is_seen_through(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    stepping = asyncio.create_task(dispatcher.step())
    await asyncio.sleep(0)
    stepping.cancel()
    await asyncio.wait([stepping])
    assert stepping.cancelled()
    _, _, answer = await workers.asked.get()
    answer.set_result(msgspec.to_builtins(said(), builtin_types=(bytes,)))
    await settled(dispatcher)
    assert (await desk.view(queued.id)).state is JobState.SUCCEEDED


async def test_failure_of_the_host_itself_is_tried_again(state, desk, dispatcher, workers):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, InternalError("a part of the host failed"))
    assert (await desk.view(queued.id)).state is JobState.RETRYING


async def test_pauses_of_a_job_that_finds_no_room_grow_also_over_a_restart(state, desk, dispatcher, workers, clock):
    await deploy(state)
    queued = await desk.submit("f", "", REQUEST, source="http")
    waits = []
    for again in (dispatcher, Dispatcher(state.jobs, state.database, workers, holder="b", slots=1, jitter=lambda: 1.0)):
        await run_once(again, workers, said(503, outcome="refused", code="overloaded"))
        waits.append((await desk.view(queued.id)).next_at - clock.now_s)
        clock.now_s += waits[-1]
    assert waits == pytest.approx([0.1, 0.2])


async def test_nothing_is_kept_of_deliveries_that_were_told(desk):
    handlers = desk.handlers()
    asked = {"function": "f", "key": "d", "lease_s": 30.0}
    assert await handlers["deliveries.begin"](asked) == "new"
    repeated = asyncio.create_task(handlers["deliveries.begin"](asked))
    while not desk._waiting:
        await asyncio.sleep(0)
    await handlers["deliveries.end"]({**asked, "keep_s": 60.0, "served": True})
    assert await repeated == "done"
    assert await handlers["deliveries.begin"](asked) == "done"
    assert desk._waiting == {}


async def test_slots_are_not_exceeded(state, desk, workers):
    await deploy(state, "a")
    await deploy(state, "b")
    small = Dispatcher(state.jobs, state.database, workers, holder="me", slots=2)
    for name in ("a", "a", "b", "b"):
        await desk.submit(name, "", REQUEST, source="http")
    await small.step()
    assert small.n_running == 2
    assert await small.step() is None
    for _ in range(2):
        _, _, answer = await workers.asked.get()
        answer.set_result(msgspec.to_builtins(said(), builtin_types=(bytes,)))
    await settled(small)


async def test_running_dispatcher_takes_what_is_queued_without_being_asked(state, desk, dispatcher, workers):
    await deploy(state)
    await dispatcher.start()
    queued = await desk.submit("f", "", REQUEST, source="http")
    _, asked, answer = await workers.asked.get()
    assert asked["job"] == queued.id
    answer.set_result(msgspec.to_builtins(said(), builtin_types=(bytes,)))
    await settled(dispatcher)
    assert (await desk.view(queued.id)).state is JobState.SUCCEEDED


async def test_answer_over_the_limit_is_not_kept_but_counts(state, desk, dispatcher, workers):
    await deploy(state, **{"async": {"max_result_bytes": 3}})
    queued = await desk.submit("f", "", REQUEST, source="http")
    await run_once(dispatcher, workers, said(200, body=b"four"))
    view = await desk.view(queued.id)
    assert (view.state, view.result.kept, view.result.n_bytes) == (JobState.SUCCEEDED, False, 4)


@pytest.mark.parametrize(
    "options", [{"delay_s": -1}, {"max_attempts": 0}, {"max_attempts": 1000}, {"max_age_s": 1e12}, {"delay_s": 1e12}]
)
async def test_options_out_of_range_are_refused(state, desk, options):
    await deploy(state)
    with pytest.raises(BadRequestError):
        await desk.submit("f", "", REQUEST, source="function:g", **options)


async def test_function_without_jobs_and_requests_that_are_too_large_are_refused(state, desk):
    await deploy(state, **{"async": {"enabled": False}})
    await deploy(state, "g")
    with pytest.raises(BadRequestError, match="takes no jobs"):
        await desk.submit("f", "", REQUEST, source="http")
    with pytest.raises(BadRequestError, match="max_job_bytes"):
        await desk.submit("g", "", JobRequest("POST", "/g", (), b"x" * 1025), source="http")
    with pytest.raises(FunctionNotFoundError):
        await desk.submit("h", "", REQUEST, source="http")


async def test_headers_that_are_ours_are_not_taken_from_a_client(state, desk, dispatcher, workers):
    await deploy(state)
    headers = (("X-Faas-Attempt", b"9"), ("Prefer", b"respond-async"), ("X-Own", b"kept"))
    await desk.submit("f", "", JobRequest("POST", "/f", headers), source="http")
    _, asked = await run_once(dispatcher, workers, said())
    assert [name for name, _ in asked["request"]["headers"]] == ["X-Own"]


@pytest.mark.parametrize(
    ("ran", "fate"),
    [
        (said(200), Fate.DONE),
        (said(404), Fate.DONE),
        (said(429), Fate.RETRY),
        (said(500), Fate.RETRY),
        (said(502, outcome="failed", code="guest-trap"), Fate.RETRY),
        (said(504, outcome="limited", code="deadline-exceeded"), Fate.RETRY),
        (said(429, outcome="refused", code="concurrency-limit"), Fate.POSTPONE),
        (said(404, outcome="refused", code="alias-not-found"), Fate.POSTPONE),
        (said(404, outcome="refused", code="version-not-found"), Fate.FINAL),
        (said(413, outcome="refused", code="body-too-large"), Fate.FINAL),
        (said(499, outcome="cancelled", code="client-gone"), Fate.LOST),
    ],
)
def test_fate_follows_from_outcome_and_status(ran, fate):
    assert fate_of(ran) is fate


def test_back_off_grows_to_its_maximum_and_jitters_down_to_nothing():
    policy = Async(backoff_s=2, max_backoff_s=30)
    assert [back_off_s(policy, n, 1.0) for n in range(1, 7)] == [2, 4, 8, 16, 30, 30]
    assert back_off_s(policy, 5, 0.0) == 0
    assert back_off_s(policy, 100_000, 1.0) == 30


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"5", 5), (b"Thu, 01 Jan 1970 00:01:40 GMT", 90), (b"soon", 0), (b"", 0), (b"-4", 0)],
)
def test_retry_after_is_read_as_seconds_or_a_date(value, seconds):
    assert retry_after_s([("Retry-After", value)], 10.0) == seconds


def test_host_keeps_its_name(tmp_path):
    assert host_name(tmp_path) == host_name(tmp_path)
    (tmp_path / "other").mkdir()
    assert host_name(tmp_path / "other") != host_name(tmp_path)


# ---- callbacks ------------------------------------------------------------------------------------------------------


class Receiver:
    """Who wants word of jobs; answers with the statuses that a test gives it."""

    def __init__(self):
        self.statuses = []
        self.got = asyncio.Queue()

    async def take(self, request):
        await self.got.put((request.headers.copy(), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


@pytest.fixture
async def receiver():
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/done", receiver.take)
    async with TestServer(app) as server:
        receiver.origin = f"http://127.0.0.1:{server.port}"
        yield receiver


@pytest.fixture
async def sender(state, desk, clock):
    logged = []
    sender = CallbackSender(
        desk,
        state.jobs,
        state.functions,
        state.database,
        Client(),
        secret=lambda function, name: {"HOOK": "s3cret"}.get(name),
        log=lambda function, line: logged.append(line),
        now=lambda: clock.now_s,
        jitter=lambda: 1.0,
    )
    sender.logged = logged
    yield sender
    await sender.aclose()


async def told(sender):
    await sender.step()
    await asyncio.gather(*sender._sending)


@pytest.fixture
def finish_one(state, desk, dispatcher, workers, receiver):
    """Have a job with a callback succeed; returns its id."""
    return functools.partial(_finish_one, state, (desk, dispatcher, workers), receiver)


async def _finish_one(state, host, receiver, secret="HOOK"):
    desk, dispatcher, workers = host
    await deploy(
        state,
        **{
            "async": {"callback_secret": secret, "backoff_s": 5},
            "capabilities": {"outbound": [receiver.origin]},
        },
    )
    queued = await desk.submit("f", "", REQUEST, source="http", callback=f"{receiver.origin}/done")
    await run_once(dispatcher, workers, said())
    return queued.id


async def test_word_of_a_finished_job_is_signed(desk, finish_one, receiver, sender, clock):
    id = await finish_one()
    await told(sender)
    headers, body = await receiver.got.get()
    at, mac = (part.partition("=")[2] for part in headers["X-Faas-Signature"].split(","))
    wanted = hmac.new(b"s3cret", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert (int(at), mac) == (int(clock.now_s), wanted)
    assert signature("s3cret", body, int(at)) == headers["X-Faas-Signature"]
    document = msgspec.json.decode(body)
    assert (document["job"], document["state"], document["result"]["status"]) == (id, "succeeded", 200)
    assert (await desk.view(id)).callback.state == "delivered"


async def test_word_that_was_not_taken_is_sent_again(desk, finish_one, receiver, sender, clock):
    id = await finish_one()
    receiver.statuses = [500]
    await told(sender)
    view = (await desk.view(id)).callback
    assert (view.state, view.reason) == ("waiting", "it answered 500")
    clock.now_s += 5
    await told(sender)
    assert (await desk.view(id)).callback.state == "delivered"
    assert receiver.got.qsize() == 2


async def test_word_is_not_sent_where_the_function_may_not_go_any_more(state, desk, finish_one, receiver, sender):
    id = await finish_one()
    await deploy(state, capabilities={"outbound": []})
    await told(sender)
    assert receiver.got.empty()
    assert "capabilities" in (await desk.view(id)).callback.reason


async def test_word_is_never_sent_unsigned(desk, finish_one, receiver, sender):
    id = await finish_one(secret="UNSET")
    await told(sender)
    assert receiver.got.empty()
    assert "UNSET" in (await desk.view(id)).callback.reason


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/",
        "http://allowed.example/",
        "ftp://allowed.example/",
        "https://user@allowed.example/",
        "nonsense",
        "https://2130706433/",
        "https://allowed.example:8443/",
        "https://[allowed.example/",
        "https://allowed.example:port/",
    ],
)
def test_callback_where_the_function_may_not_go_is_refused_at_once(url):
    manifest = manifest_from_builtins(
        {
            "name": "f",
            "async": {"callback_secret": "HOOK"},
            "capabilities": {"outbound": ["https://allowed.example"]},
        }
    )
    check_callback(manifest, "https://allowed.example/done?x=1")
    with pytest.raises(CallbackRefusedError):
        check_callback(manifest, url)


def test_callback_of_a_function_that_names_no_secret_is_refused():
    manifest = manifest_from_builtins({"name": "f", "capabilities": {"outbound": ["https://allowed.example"]}})
    with pytest.raises(CallbackRefusedError, match="callback_secret"):
        check_callback(manifest, "https://allowed.example/")
