"""Jobs, schedules and webhooks on a real host: nothing that was accepted is lost, whatever is killed."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hosting import Host, MakeHost, Reply, until, wasm

ASYNC = {"Prefer": "respond-async"}
SECRET = "webhook-secret"
ROOT = Path(__file__).parents[2]


def submit(host: Host, path: str, body: bytes = b"", **headers: str) -> str:
    """Queue a job and return its id."""
    reply = host.request("POST", path, body, {**ASYNC, **{k.replace("_", "-"): v for k, v in headers.items()}})
    assert reply.status == 202, reply.body
    assert reply.headers["Preference-Applied"] == "respond-async"
    job = str(reply.json()["job"])
    assert reply.headers["Location"] == f"/_faas/jobs/{job}"
    return job


def status(host: Host, job: str) -> dict[str, Any]:
    reply = host.get(f"/_faas/jobs/{job}")
    assert reply.status == 200, reply.body
    document: dict[str, Any] = reply.json()
    return document


def ended(host: Host, job: str) -> dict[str, Any]:
    """Return a job's status once it is finished."""
    until(lambda: status(host, job)["finished_at"], what=f"job {job} is finished")
    return status(host, job)


def test_request_becomes_a_job_and_its_result_stays(host: Host) -> None:
    name = host.serves("echo-stdin")
    job = submit(host, f"/{name}?x=1", b"the body")
    found = ended(host, job)
    assert (found["state"], found["target"], found["attempts"][0]["status"]) == ("succeeded", f"/{name}?x=1", 200)
    result = host.get(found["result_url"])
    assert (result.body, result.headers["X-Faas-Status"]) == (b"the body", "200")


def test_guest_sees_which_try_of_which_job_it_is(host: Host) -> None:
    name = host.serves("env")
    job = submit(host, f"/{name}", X_Faas_Attempt="7", X_Own="mine")
    seen = host.get(f"{ended(host, job)['result_url']}").text
    assert f"HTTP_X_FAAS_JOB={job}\n" in seen
    assert "HTTP_X_FAAS_ATTEMPT=1\n" in seen
    assert "HTTP_X_OWN=mine\n" in seen
    assert "HTTP_PREFER" not in seen


def test_preference_is_ignored_where_the_function_takes_no_jobs(host: Host) -> None:
    host.deploy("sync-only", wasm("echo-stdin"), {"async": {"enabled": False}})
    reply = host.request("POST", "/sync-only", b"now", ASYNC)
    assert (reply.status, reply.body) == (200, b"now")
    assert "Preference-Applied" not in reply.headers


def test_other_preferences_are_not_this_one(host: Host) -> None:
    name = host.serves("echo-stdin")
    assert host.request("POST", f"/{name}", b"now", {"Prefer": "wait=10, return=minimal"}).status == 200


def test_same_idempotency_key_is_the_same_job_and_another_request_a_conflict(host: Host) -> None:
    name = host.serves("echo-stdin")
    first = submit(host, f"/{name}", b"1", Idempotency_Key="key-1")
    again = host.request("POST", f"/{name}", b"1", {**ASYNC, "Idempotency-Key": "key-1"})
    assert (again.json()["job"], again.headers["X-Faas-Duplicate"]) == (first, "true")
    assert host.request("POST", f"/{name}", b"2", {**ASYNC, "Idempotency-Key": "key-1"}).code == "idempotency-conflict"


def test_poison_job_is_a_dead_letter_after_its_tries_and_can_be_redriven(host: Host) -> None:
    host.deploy("poison", wasm("exit"), {"routes": ["/poison"], "async": {"max_attempts": 3, "backoff_s": 0.01}})
    job = submit(host, "/poison?3")
    found = ended(host, job)
    assert (found["state"], len(found["attempts"])) == ("dead", 3)
    assert "guest-exit" in found["reason"]
    listed = host.admin("GET", "/api/jobs?function=poison&state=dead").json()["jobs"]
    assert [line["job"] for line in listed] == [job]

    host.deploy("poison", wasm("echo-stdin"), {"routes": ["/poison"]})
    assert host.admin("POST", "/api/functions/poison/jobs/redrive").json() == {"jobs": 1}
    found = ended(host, job)
    assert (found["state"], len(found["attempts"])) == ("succeeded", 4)
    assert host.admin("POST", f"/api/jobs/{job}/redrive").code == "job-finished"


def test_running_job_is_cancelled_with_its_invocation(host: Host) -> None:
    name = host.serves("sleeper")
    job = submit(host, f"/{name}?20000")
    until(lambda: status(host, job)["state"] == "running", what="the job runs")
    assert host.request("DELETE", f"/_faas/jobs/{job}").json()["state"] == "cancelled"
    lines = host.log_of(name, f"{job}-1")
    assert lines[-1]["outcome"] == "cancelled"
    assert host.request("DELETE", f"/_faas/jobs/{job}").code == "job-finished"


def test_unknown_jobs_and_wrong_questions_are_refused(host: Host) -> None:
    assert host.get("/_faas/jobs/" + "0" * 32).code == "job-not-found"
    assert host.get("/_faas/jobs/").code == "job-not-found"
    assert host.get("/_faas/jobs/../../x").code == "job-not-found"
    assert host.request("POST", "/_faas/jobs/" + "0" * 32).code == "method-not-allowed"


def test_body_over_the_limit_is_refused_and_not_queued(make_host: MakeHost) -> None:
    host = make_host(max_job_bytes=1024).start()
    name = host.serves("echo-stdin")
    assert host.request("POST", f"/{name}", b"x" * 1025, ASYNC).code == "body-too-large"
    assert host.admin("GET", "/api/jobs").json() == {"jobs": []}


def test_function_with_invoke_keys_takes_jobs_of_those_who_have_one(host: Host) -> None:
    host.deploy("locked", wasm("env"), {"routes": ["/locked"], "access": {"invoke": "key"}})
    made = host.admin("POST", "/api/functions/locked/keys", json.dumps({"name": "k"}).encode()).json()
    assert host.request("POST", "/locked", b"", ASYNC).code == "invalid-invoke-key"
    job = submit(host, "/locked", X_Faas_Key=made["key"])
    assert made["key"] not in host.get(ended(host, job)["result_url"]).text


def test_guest_queues_a_job_for_another_function_once_by_its_key(host: Host) -> None:
    host.deploy("callee", wasm("env"), {"routes": ["/callee", "/x"]})
    program = (ROOT / "functions" / "services" / "services-c.wasm").read_bytes()
    granted = {"calls": ["callee"], "kv": ["default"], "secrets": ["KEY"], "outbound": ["https://a.test"]}
    host.deploy("asker", program, {"routes": ["/asker"], "capabilities": granted})
    reply = host.get("/asker")
    assert reply.status == 200, reply.body
    jobs = [line.removeprefix("job: ") for line in reply.text.splitlines() if line.startswith("job: ")]
    assert len(jobs) == 2
    assert len(set(jobs)) == 1
    found = ended(host, jobs[0])
    assert (found["source"], found["function"], found["target"]) == ("function:asker", "callee", "/x")
    assert f"HTTP_X_FAAS_JOB={jobs[0]}\n" in host.get(found["result_url"]).text


def test_jobs_of_a_removed_function_are_cancelled(host: Host) -> None:
    host.deploy("going", wasm("sleeper"), {"routes": ["/going"]})
    job = submit(host, "/going?20000")
    until(lambda: status(host, job)["state"] == "running", what="the job runs")
    assert host.admin("DELETE", "/api/functions/going").status == 204
    assert status(host, job)["state"] == "cancelled"


def test_every_accepted_job_is_finished_after_everything_was_killed(make_host: MakeHost) -> None:
    host = make_host(workers=2, async_concurrency=4).start()
    host.deploy("nap", wasm("sleeper"), {"routes": ["/nap"]})
    jobs = [submit(host, "/nap?200") for _ in range(12)]
    until(lambda: "running" in {status(host, job)["state"] for job in jobs}, what="some run")
    host.kill_all()
    host.start()
    assert {ended(host, job)["state"] for job in jobs} == {"succeeded"}
    host.stop()


def test_job_whose_worker_is_killed_runs_again(make_host: MakeHost) -> None:
    host = make_host(workers=1).start()
    host.deploy("nap", wasm("sleeper"), {"routes": ["/nap"], "async": {"max_attempts": 1}})
    job = submit(host, "/nap?300")
    until(lambda: status(host, job)["state"] == "running", what="the job runs")
    os.kill(host.worker_pids()[0], signal.SIGKILL)
    until(lambda: host.status()["workers"][0]["restarts"], what="the worker is replaced")

    def answered() -> bool:
        try:
            return bool(status(host, job)["finished_at"])
        except OSError:
            return False  # nobody listens while it is replaced

    until(answered, what="the job is finished")
    found = status(host, job)
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["lost", "ok"]


def test_schedule_runs_by_itself_and_by_hand(host: Host) -> None:
    host.deploy(
        "timed",
        wasm("env"),
        {"routes": ["/timed/*"], "schedules": [{"name": "tick", "cron": "* * * * * *", "path": "/timed/now"}]},
    )

    def listed() -> dict[str, Any]:
        (found,) = host.admin("GET", "/api/schedules?function=timed").json()["schedules"]
        return dict(found)

    until(lambda: listed()["last_state"] == "succeeded", what="it has run")
    assert len(listed()["next"]) == 5
    assert host.admin("POST", "/api/functions/timed/schedules/tick/pause").status == 204
    assert listed()["paused"]
    job = host.admin("POST", "/api/functions/timed/schedules/tick/run").json()["job"]
    found = ended(host, job)
    assert (found["source"], found["target"]) == ("schedule:tick", "/timed/now")
    assert "HTTP_X_FAAS_SCHEDULE=tick\n" in host.get(found["result_url"]).text
    assert host.admin("POST", "/api/functions/timed/schedules/tock/run").code == "schedule-not-found"


# ---- webhooks -------------------------------------------------------------------------------------------------------


def deliver(host: Host, path: str, body: bytes, delivery: str, secret: str = SECRET) -> Reply:
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return host.request("POST", path, body, {"X-Hub-Signature-256": f"sha256={mac}", "X-GitHub-Delivery": delivery})


@pytest.fixture(scope="module")
def hooked(host: Host) -> Host:
    hooks = [{"path": "/hooked/now", "secret": "HOOK"}, {"path": "/hooked/later", "secret": "HOOK", "async": True}]
    hooks.append({"path": "/hooked/unset", "secret": "UNSET"})
    host.deploy("hooked", wasm("echo-stdin"), {"routes": ["/hooked/*"], "webhooks": hooks})
    done = host.admin(
        "PUT",
        "/api/functions/hooked/secrets/HOOK",
        json.dumps({"value": SECRET}).encode(),
        {"Content-Type": "application/json"},
    )
    assert done.status < 300, done.body
    return host


def test_signed_delivery_reaches_the_guest_once(hooked: Host) -> None:
    first = deliver(hooked, "/hooked/now?a=b", b'{"n": 1}', "guid-1")
    assert (first.status, first.body) == (200, b'{"n": 1}')
    again = deliver(hooked, "/hooked/now", b'{"n": 1}', "guid-1")
    assert (again.status, again.headers["X-Faas-Duplicate"]) == (200, "true")
    assert "X-Faas-Function" not in again.headers
    assert deliver(hooked, "/hooked/now", b'{"n": 1}', "guid-2").body == b'{"n": 1}'


@pytest.mark.parametrize("path", ["/hooked/now", "/hooked/%6eow", "/hooked//now", "/hooked/./later", "/hooked/later"])
def test_forged_delivery_never_reaches_the_guest(hooked: Host, path: str) -> None:
    for reply in (
        deliver(hooked, path, b"forged", "guid-f", secret="guess"),
        hooked.request("POST", path, b"forged"),
        hooked.get(path),
    ):
        assert (reply.status, reply.code) == (401, "signature-invalid")
        assert "X-Faas-Function" not in reply.headers


def test_delivery_that_is_not_signed_is_refused_before_its_body(hooked: Host) -> None:
    client = http.client.HTTPConnection("127.0.0.1", hooked.port, timeout=10)
    client.putrequest("POST", "/hooked/now")
    client.putheader("Content-Length", "1000000")
    client.endheaders()
    assert client.getresponse().status == 401
    client.close()


def test_older_versions_and_versions_by_number_are_no_way_around_the_check(host: Host) -> None:
    name = "hooked-later"
    path = f"/{name}/now"
    for more in ({}, {"webhooks": [{"path": path, "secret": "HOOK"}]}):
        host.deploy(name, wasm("echo-stdin"), {"routes": [f"/{name}/*"], **more})
    assert host.admin("PUT", f"/api/functions/{name}/aliases/old", b'{"weights": {"1": 100}}').status == 200
    secret = json.dumps({"value": SECRET}).encode()
    assert host.admin("PUT", f"/api/functions/{name}/secrets/HOOK", secret).status < 300
    old = {"X-Faas-Alias": "old"}
    assert host.request("POST", f"/{name}/else", b"open", old).headers["X-Faas-Version"] == "1"
    for headers in ({}, old, {**old, **ASYNC}):
        assert host.request("POST", path, b"forged", headers).code == "signature-invalid"
    mac = hmac.new(SECRET.encode(), b"x", hashlib.sha256).hexdigest()
    signed = host.request("POST", path, b"x", {**old, "X-Hub-Signature-256": f"sha256={mac}"})
    assert (signed.status, signed.headers["X-Faas-Version"]) == (200, "1")
    for version in ("1", "2"):
        asked = {"qualifier": version, "method": "POST", "target": path, "headers": [], "body": ""}
        reply = host.admin("POST", f"/api/functions/{name}/invoke", json.dumps(asked).encode())
        assert reply.code == "call-denied", reply.body


def test_no_function_can_redirect_to_a_webhook(hooked: Host) -> None:
    name = hooked.serves("cgi")
    assert hooked.get(f"/{name}?location=/hooked/now").code == "signature-invalid"


def test_nothing_is_accepted_while_the_secret_is_missing(hooked: Host) -> None:
    assert deliver(hooked, "/hooked/unset", b"x", "guid-u", secret="").code == "webhook-secret-missing"


def test_other_paths_of_the_function_are_not_webhooks(hooked: Host) -> None:
    assert hooked.request("POST", "/hooked/else", b"open").body == b"open"


def test_async_delivery_is_one_job_however_often_it_comes(hooked: Host) -> None:
    first = deliver(hooked, "/hooked/later", b"job", "guid-j")
    again = deliver(hooked, "/hooked/later", b"job", "guid-j")
    assert (first.status, again.status) == (202, 202)
    assert (again.json()["job"], again.headers["X-Faas-Duplicate"]) == (first.json()["job"], "true")
    found = ended(hooked, first.json()["job"])
    assert (found["source"], found["state"], found["target"]) == ("webhook", "succeeded", "/hooked/later")
    assert hooked.get(found["result_url"]).body == b"job"


def test_job_of_a_delivery_has_its_headers_and_none_that_only_the_host_sets(host: Host) -> None:
    hook = {"path": "/delivered", "secret": "HOOK", "async": True}
    host.deploy("delivered", wasm("env"), {"routes": ["POST /delivered"], "webhooks": [hook]})
    assert (
        host.admin("PUT", "/api/functions/delivered/secrets/HOOK", json.dumps({"value": SECRET}).encode()).status < 300
    )
    body = b'{"action": "opened"}'
    mac = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    event = {"X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "guid-h", "Content-Type": "application/json"}
    forged = {"X-Faas-Schedule": "nightly", "X-Faas-Attempt": "7", "X-Faas-Job": "mine"}
    reply = host.request("POST", "/delivered", body, {**event, **forged, "X-Hub-Signature-256": f"sha256={mac}"})
    job = reply.json()["job"]
    assert (reply.status, reply.headers["Location"]) == (202, f"/_faas/jobs/{job}")
    seen = host.get(ended(host, job)["result_url"]).text.splitlines()
    for line in (
        "HTTP_X_GITHUB_EVENT=pull_request",
        "HTTP_X_GITHUB_DELIVERY=guid-h",
        "CONTENT_TYPE=application/json",
        f"CONTENT_LENGTH={len(body)}",
        f"HTTP_X_FAAS_JOB={job}",
        "HTTP_X_FAAS_ATTEMPT=1",
    ):
        assert line in seen
    assert not [line for line in seen if "SCHEDULE" in line or line.endswith(("=7", "=mine"))]


def test_delivery_whose_guest_failed_may_come_again_and_a_served_one_not_even_after_kill_9(make_host: MakeHost) -> None:
    host = make_host(workers=2).start()
    manifest = {"routes": ["/hook"], "webhooks": [{"path": "/hook", "secret": "HOOK"}]}
    host.deploy("hook", wasm("exit"), manifest)
    host.admin("PUT", "/api/functions/hook/secrets/HOOK", json.dumps({"value": SECRET}).encode())
    assert deliver(host, "/hook?3", b"x", "guid").status == 502
    host.deploy("hook", wasm("echo-stdin"), manifest)
    assert deliver(host, "/hook", b"x", "guid").body == b"x"
    assert deliver(host, "/hook", b"x", "guid").headers["X-Faas-Duplicate"] == "true"
    host.kill_all()
    host.start()
    assert deliver(host, "/hook", b"x", "guid").headers["X-Faas-Duplicate"] == "true"
    host.stop()
