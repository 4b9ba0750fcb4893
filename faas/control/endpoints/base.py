"""What the tables and handlers of all endpoints share: how one is described, JSON in and JSON out."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from faas.control.access import Actor, Role
from faas.errors import BadRequestError

JSON = "application/json"
NDJSON = "application/x-ndjson"
TOML = "application/toml"

T = TypeVar("T", bound=msgspec.Struct)

ACTOR = web.RequestKey("actor", Actor)
"""Who sent the request: ``request[ACTOR].name`` is what audit logs keep; not there for public endpoints."""


class Query(msgspec.Struct, frozen=True):
    """One query parameter."""

    name: str
    schema: dict[str, Any]
    text: str


class Endpoint(msgspec.Struct, frozen=True):
    """One method on one path; ``operation`` names the method, of ``AdminApi`` or its group, that answers."""

    method: str
    path: str
    operation: str
    summary: str
    status: int = 200
    content: dict[str, Any] = {}
    """Media type → the struct that it carries (None: free form)."""
    query: tuple[Query, ...] = ()
    public: bool = False
    """True: answers without a token."""
    upload: bool = False
    events: tuple[type[msgspec.Struct], ...] = ()
    """What it answers line by line instead, to a caller that accepts NDJSON."""
    body: type[msgspec.Struct] | None = None
    """The struct that the request's JSON carries."""
    raw_body: str = ""
    """The media type of a request that is no JSON."""
    refusals: dict[int, str] = {}
    role: Role | None = None
    """The least that a token's role must be; None: ``read`` to GET, ``deploy`` for every other method."""

    @property
    def needed_role(self) -> Role:
        """The least that a token's role must be."""
        return self.role or (Role.READ if self.method == "GET" else Role.DEPLOY)


def json_response(document: Any, status: int = 200) -> web.Response:
    """Return *document*, a struct or what JSON carries, as the answer."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type=JSON)


async def json_body(request: web.Request, kind: type[T]) -> T:
    """Return the JSON body as a *kind*; raises BadRequestError."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except web.HTTPRequestEntityTooLarge as exc:
        raise BadRequestError("the body is far larger than the document that is wanted") from exc
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise BadRequestError(
            f"the body is not the JSON that is wanted: {exc}; /api/openapi.json has its schema"
        ) from exc


def int_of(request: web.Request, key: str, default: int, maximum: int) -> int:
    """Return the query parameter *key*; raises BadRequestError if it is no number from 0 to *maximum*."""
    text = request.query.get(key, str(default))
    if not (text.isascii() and text.isdigit() and int(text) <= maximum):
        raise BadRequestError(f"{key}={text!r} is not a number from 0 to {maximum}")
    return int(text)
