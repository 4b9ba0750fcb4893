"""Jobs and schedules over the admin API."""

from __future__ import annotations

import msgspec
from aiohttp import web

from faas.control.endpoints.base import JSON, Endpoint, Query, int_of, json_response
from faas.control.jobs import JobDesk, JobLine, JobView, line_of
from faas.control.schedules import Scheduler, ScheduleView
from faas.errors import BadRequestError
from faas.state.jobs import MAX_LISTED, JobState, JobStore


class JobList(msgspec.Struct, frozen=True):
    """Jobs, the newest first."""

    jobs: list[JobLine]


class JobsChanged(msgspec.Struct, frozen=True):
    """How many jobs that was done with."""

    jobs: int


class ScheduleList(msgspec.Struct, frozen=True):
    """Schedules, ordered by function, then as its manifest has them."""

    schedules: list[ScheduleView]


class JobQueued(msgspec.Struct, frozen=True):
    """A job that was queued."""

    job: str


_FUNCTION = Query("function", {"type": "string"}, "Only those of this function.")
_STATE = Query(
    "state",
    {"type": "string", "enum": [state.value for state in JobState]},
    "Only those in this state; may be given more than once.",
)
_NO_JOB = "No such job, or it was kept long enough."
_NO_SCHEDULE = "No such schedule that is enabled."

ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/jobs",
        "jobs",
        "Jobs, the newest first.",
        content={JSON: JobList},
        query=(
            _FUNCTION,
            _STATE,
            Query(
                "limit", {"type": "integer", "minimum": 0, "maximum": MAX_LISTED, "default": 100}, "At most so many."
            ),
        ),
        refusals={400: "A parameter is out of its range."},
    ),
    Endpoint(
        "DELETE",
        "/api/jobs",
        "purge_jobs",
        "Forget finished jobs, those in one of the states or all; others stay.",
        content={JSON: JobsChanged},
        query=(_FUNCTION, _STATE),
        refusals={400: "A parameter is out of its range."},
    ),
    Endpoint(
        "GET",
        "/api/jobs/{id}",
        "job",
        "One job: where it is, its runs, and what came of it.",
        content={JSON: JobView},
        refusals={404: _NO_JOB},
    ),
    Endpoint(
        "POST",
        "/api/jobs/{id}/cancel",
        "cancel_job",
        "End a job: it does not run any more; if it does just now, its invocation is ended.",
        content={JSON: JobView},
        refusals={404: _NO_JOB, 409: "It is finished."},
    ),
    Endpoint(
        "POST",
        "/api/jobs/{id}/redrive",
        "redrive_job",
        "Queue a job that is dead, expired or cancelled again, with all its tries.",
        content={JSON: JobView},
        refusals={404: _NO_JOB, 409: "It has succeeded, or is not finished."},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/jobs/redrive",
        "redrive_jobs",
        "Queue all dead letters of a function again.",
        content={JSON: JobsChanged},
    ),
    Endpoint(
        "GET",
        "/api/schedules",
        "schedules",
        "Schedules of the versions that serve, with their next runs and what became of the last one.",
        content={JSON: ScheduleList},
        query=(_FUNCTION,),
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/schedules/{schedule}/pause",
        "pause_schedule",
        "Keep a schedule from running until it is resumed.",
        status=204,
        refusals={404: _NO_SCHEDULE},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/schedules/{schedule}/resume",
        "resume_schedule",
        "Have a paused schedule run again; the times meanwhile are left out.",
        status=204,
        refusals={404: _NO_SCHEDULE},
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/schedules/{schedule}/run",
        "run_schedule",
        "Queue a job of a schedule at once, whatever else it does.",
        status=202,
        content={JSON: JobQueued},
        refusals={404: _NO_SCHEDULE},
    ),
)


class JobEndpoints:
    """The handlers of ``ENDPOINTS``; lives as long as the host. Thread: the control loop only."""

    def __init__(self, desk: JobDesk, store: JobStore, scheduler: Scheduler) -> None:
        self._desk = desk
        self._store = store
        self._scheduler = scheduler

    async def jobs(self, request: web.Request) -> web.StreamResponse:
        """GET /api/jobs"""
        limit = int_of(request, "limit", 100, MAX_LISTED)
        found = await self._store.list(request.query.get("function", ""), _states(request), limit)
        return json_response(JobList([line_of(job) for job in found]))

    async def purge_jobs(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/jobs"""
        return json_response(JobsChanged(await self._desk.purge(request.query.get("function", ""), _states(request))))

    async def job(self, request: web.Request) -> web.StreamResponse:
        """GET /api/jobs/{id}"""
        return json_response(await self._desk.view(request.match_info["id"]))

    async def cancel_job(self, request: web.Request) -> web.StreamResponse:
        """POST /api/jobs/{id}/cancel"""
        return json_response(await self._desk.cancel(request.match_info["id"]))

    async def redrive_job(self, request: web.Request) -> web.StreamResponse:
        """POST /api/jobs/{id}/redrive"""
        return json_response(await self._desk.redrive(request.match_info["id"]))

    async def redrive_jobs(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/jobs/redrive"""
        return json_response(JobsChanged(await self._desk.redrive_all(request.match_info["name"])))

    async def schedules(self, request: web.Request) -> web.StreamResponse:
        """GET /api/schedules"""
        return json_response(ScheduleList(await self._scheduler.views(request.query.get("function", ""))))

    async def pause_schedule(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/schedules/{schedule}/pause"""
        return await self._pause(request, paused=True)

    async def resume_schedule(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/schedules/{schedule}/resume"""
        return await self._pause(request, paused=False)

    async def _pause(self, request: web.Request, *, paused: bool) -> web.Response:
        await self._scheduler.pause(request.match_info["name"], request.match_info["schedule"], paused=paused)
        return web.Response(status=204)

    async def run_schedule(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/schedules/{schedule}/run"""
        queued = await self._scheduler.run_now(request.match_info["name"], request.match_info["schedule"])
        return json_response(JobQueued(queued.id), status=202)


def _states(request: web.Request) -> list[JobState]:
    """Return the states in the query; raises BadRequestError."""
    try:
        return [JobState(text) for text in request.query.getall("state", [])]
    except ValueError as exc:
        known = ", ".join(state.value for state in JobState)
        raise BadRequestError(f"{exc}; a job's state is one of {known}") from exc
