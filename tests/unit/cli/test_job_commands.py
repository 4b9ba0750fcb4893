"""``faas jobs``, ``faas schedules`` and ``faas invoke --async``, against the real admin API."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from faas.manifest import Async
from faas.state.jobs import Attempt, JobRequest, JobResult, NewJob

REQUEST = JobRequest("POST", "/hello?x=1", (), b"body")


@pytest.fixture
def jobs(host):
    return host.bench.state.jobs


@pytest.fixture
async def dead(host, jobs):
    """A dead letter of the function hello."""
    queued = await jobs.add(NewJob("hello", "", "http", REQUEST, Async(max_attempts=1)))
    (run,) = (await jobs.claim("me", 1, {}, 60.0)).jobs
    failed = Attempt(1, 0.0, version=3, outcome="failed", status=502, reason="guest-trap: \x1b[31mboom")
    await jobs.retry("me", run.job, failed, delay_s=0, result=JobResult(502))
    return queued.id


async def test_jobs_are_listed_by_function_and_state(host, jobs, dead):
    waiting = (await jobs.add(NewJob("other", "", "schedule:tick", REQUEST, Async()))).id
    out = (await host("jobs", "list")).out
    assert dead in out
    assert waiting in out
    assert [job["job"] for job in (await host("jobs", "list", "hello", "--json")).json] == [dead]
    assert [job["job"] for job in (await host("jobs", "list", "--state", "queued", "--json")).json] == [waiting]
    assert (await host("jobs", "list", "nobody")).out == "no jobs\n"
    assert (await host("jobs", "list", "--state", "lost")).code == 2


async def test_show_says_everything_and_moves_nobodys_cursor(host, dead):
    out = (await host("jobs", "show", dead)).out
    assert all(text in out for text in ("POST /hello?x=1", "dead: guest-trap", "502", "OUTCOME"))
    assert "\x1b" not in out
    assert (await host("jobs", "show", dead, "--json")).json["state"] == "dead"
    assert "no such job" in (await host("jobs", "show", "0" * 32)).err


async def test_dead_letters_are_redriven_alone_or_together(host, dead):
    assert "queued again" in (await host("jobs", "redrive", dead)).out
    assert "will be tried by itself" in (await host("jobs", "redrive", dead)).err
    assert "0 jobs of hello" in (await host("jobs", "redrive", "--all", "hello")).out
    assert (await host("jobs", "redrive")).code == 2
    assert (await host("jobs", "redrive", dead, "--all", "hello")).code == 2


async def test_cancel_ends_a_job_once(host, dead):
    await host("jobs", "redrive", dead)
    assert "cancelled" in (await host("jobs", "cancel", dead)).out
    assert "nothing to cancel" in (await host("jobs", "cancel", dead)).err


async def test_purge_forgets_what_is_finished(host, jobs, dead):
    await jobs.add(NewJob("hello", "", "http", REQUEST, Async()))
    assert (await host("jobs", "purge", "hello", "--state", "succeeded")).out == "0 jobs are forgotten\n"
    assert (await host("jobs", "purge", "hello")).out == "1 jobs are forgotten\n"
    assert [job.function for job in await jobs.list()] == ["hello"]


async def test_schedules_are_listed_paused_resumed_and_run(host, jobs):
    assert (await host("schedules", "list")).out == "no schedules\n"
    schedule = {"name": "tick", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    off = {**schedule, "name": "off", "enabled": False}
    await host.bench.deployer.deploy(host.bench.upload(schedules=[schedule, off]), lambda _: None)
    found = (await host("schedules", "list", "hello", "--json")).json
    assert [len(one["next"]) for one in found] == [5, 0]
    assert "Europe/Berlin" in (await host("schedules")).out
    await host("schedules", "pause", "hello", "tick")
    assert "paused" in (await host("schedules", "list")).out
    await host("schedules", "resume", "hello", "tick")
    id = (await host("schedules", "run", "hello", "tick")).out.strip()
    assert (await jobs.get(id))[0].source == "schedule:tick"
    refused = await host("schedules", "run", "hello", "off")
    assert (refused.code, "no schedule 'off'" in refused.err) == (1, True)


async def test_invoke_async_asks_for_a_job(host):
    await host.bench.deployer.deploy(host.bench.upload(), lambda _: None)
    await host(
        "invoke", "hello", "--async", "--idempotency-key", "k1", "--callback", "https://example.org/", "-X", "HEAD"
    )
    ((method, path, headers, _),) = host.requests
    assert (method, path) == ("HEAD", "/hello")
    assert (headers["Prefer"], headers["Idempotency-Key"]) == ("respond-async", "k1")
    assert headers["X-Faas-Callback"] == "https://example.org/"
    assert (await host("invoke", "hello", "--idempotency-key", "k1")).code == 2
    refused = await host("invoke", "hello@1", "--async")
    assert (refused.code, "give it an alias" in refused.err) == (1, True)


async def test_admin_api_refuses_states_that_are_none(host):
    async with ClientSession(headers={"Authorization": "Bearer the-token"}) as client:
        for query in ("state=gone", "limit=many", "limit=100000"):
            async with client.get(host.admin.make_url(f"/api/jobs?{query}")) as reply:
                assert reply.status == 400
