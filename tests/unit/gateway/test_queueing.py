"""How a worker's requests and guests come to be jobs."""

from __future__ import annotations

import msgspec
import pytest
from multidict import CIMultiDict

from faas.clock import SystemClock
from faas.control.jobs import JobDesk
from faas.errors import BadRequestError, FunctionNotFoundError, IdempotencyConflictError
from faas.gateway.jobs import GuestJobs, JobGate, encoded, prefers_async
from faas.guest.errno import Errno, to_guest_error
from faas.guest.ports import GuestRequest, JobOptions
from faas.invocation import Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import NewVersion
from faas.state.sqlite import SqliteDatabase
from faas.state.state import State
from faas.wire.framing import encode_frame
from faas.wire.messages import FromControl, FromWorker
from faas.wire.peer import Peer


@pytest.mark.parametrize(
    ("values", "asks"),
    [
        (["respond-async"], True),
        (["Respond-Async, wait=10"], True),
        (["wait=10", "return=minimal, respond-async"], True),
        (["respond-async; foo=bar"], True),
        (["respond-asynchronously"], False),
        (["return=respond-async"], False),
        ([""], False),
        ([], False),
    ],
)
def test_preference_is_found_among_others(values, asks):
    assert prefers_async(values) is asks


def test_header_values_are_kept_as_the_bytes_that_were_sent():
    headers = CIMultiDict({"X-Name": b"caf\xe9".decode("utf-8", "surrogateescape")})
    ((name, value),) = encoded(headers.items())
    assert (type(name), value) == (str, b"caf\xe9")


@pytest.fixture
async def state(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    state = State(database, database)
    for name, more in (("f", {}), ("sync", {"async": {"enabled": False}})):
        manifest = manifest_from_builtins({"name": name, **more})
        await state.functions.add_version_and_activate(NewVersion(manifest, Kind.COMMAND, "d", "k"))
    yield state
    await database.aclose()


@pytest.fixture
def guests(state):
    """What guests enqueue through, with the real desk at the other end of the wire's own bytes."""
    ends = {}

    def to_control(message):
        ends["control"].take(msgspec.msgpack.decode(encode_frame(message)[4:], type=FromWorker))

    def to_worker(message):
        ends["worker"].take(msgspec.msgpack.decode(encode_frame(message)[4:], type=FromControl))

    desk = JobDesk(state.jobs, state.functions, max_job_bytes=1024)
    ends["control"] = Peer(to_worker, desk.handlers())
    ends["worker"] = Peer(to_control, {})
    return GuestJobs(JobGate(ends["worker"], max_job_bytes=1024))


REQUEST = GuestRequest("PUT", "/f/x?y=1", (("X-Bytes", b"\xff"),), b"body")


async def test_guests_job_is_queued_with_its_options(guests, state):
    options = JobOptions(delay_s=60, max_attempts=9, max_age_s=100)
    id = await guests.enqueue("caller", "f", "canary", REQUEST, options)
    job, _ = await state.jobs.get(id)
    assert (job.source, job.qualifier, job.method, job.target) == ("function:caller", "canary", "PUT", "/f/x?y=1")
    assert (job.policy.max_attempts, job.policy.max_age_s) == (9, 100)
    assert job.due_at - job.created_at == pytest.approx(60)


async def test_guests_key_is_its_own(guests):
    options = JobOptions(idempotency_key="k")
    first = await guests.enqueue("caller", "f", "", REQUEST, options)
    assert await guests.enqueue("caller", "f", "", REQUEST, options) == first
    assert await guests.enqueue("another", "f", "", REQUEST, options) != first
    with pytest.raises(IdempotencyConflictError) as caught:
        await guests.enqueue("caller", "f", "", GuestRequest("GET", "/f"), options)
    assert to_guest_error(caught.value).errno is Errno.CONFLICT


@pytest.mark.parametrize(
    ("function", "body", "error"),
    [("sync", b"", BadRequestError), ("gone", b"", FunctionNotFoundError), ("f", b"x" * 2000, BadRequestError)],
)
async def test_what_can_not_be_queued_is_refused(guests, function, body, error):
    with pytest.raises(error) as caught:
        await guests.enqueue("caller", function, "", GuestRequest("POST", "", (), body), JobOptions())
    assert to_guest_error(caught.value) is not None
