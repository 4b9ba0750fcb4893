"""Admin tokens and invoke keys of functions, over the admin API."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from faas.config import ModelName
from faas.control.access import InvokeKeys, Role, Tokens
from faas.control.endpoints.base import JSON, Endpoint, Query, json_body, json_response
from faas.control.stats import Counts
from faas.state.base import InvokeKeyEntry
from faas.state.state import State


class TokenView(msgspec.Struct, frozen=True):
    """One admin token, without its text."""

    name: str
    role: Role
    added_at: float


class TokenList(msgspec.Struct, frozen=True):
    """Every admin token but the one in the home, ordered by name."""

    tokens: list[TokenView]


class AddToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make an admin token."""

    name: ModelName
    role: Role


class NewToken(msgspec.Struct, frozen=True):
    """An admin token with its text, which is shown this once."""

    name: str
    token: str
    role: Role
    added_at: float


class InvokeKeyView(msgspec.Struct, frozen=True):
    """One invoke key, without its text; ``counters`` are since the host started."""

    function: str
    name: str
    requests_per_minute: int
    added_at: float
    counters: dict[str, float]


class InvokeKeyList(msgspec.Struct, frozen=True):
    """Invoke keys, ordered by function and name."""

    keys: list[InvokeKeyView]


class AddInvokeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make an invoke key of a function; ``requests_per_minute`` 0 means no limit."""

    name: ModelName
    requests_per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0


class NewInvokeKey(msgspec.Struct, frozen=True):
    """An invoke key with its text, which is shown this once."""

    function: str
    name: str
    key: str
    requests_per_minute: int
    added_at: float


_BAD_REQUEST = "The request does not have the documented form."

ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/tokens",
        "tokens",
        "Every admin token but the one in the home, by name; their texts are kept nowhere.",
        content={JSON: TokenList},
        role=Role.ADMIN,
    ),
    Endpoint(
        "POST",
        "/api/tokens",
        "add_token",
        "Make an admin token.",
        status=201,
        content={JSON: NewToken},
        body=AddToken,
        refusals={400: _BAD_REQUEST, 409: "The name is taken."},
        role=Role.ADMIN,
    ),
    Endpoint(
        "DELETE",
        "/api/tokens/{name}",
        "remove_token",
        "Remove an admin token; it opens nothing when the answer comes, and log followers with it are cut off.",
        status=204,
        refusals={404: "No such token."},
        role=Role.ADMIN,
    ),
    Endpoint(
        "GET",
        "/api/invoke-keys",
        "invoke_keys",
        "Invoke keys of functions and what they were used for; their texts are kept nowhere.",
        content={JSON: InvokeKeyList},
        query=(Query("function", {"type": "string"}, "Only those of this function."),),
    ),
    Endpoint(
        "POST",
        "/api/functions/{name}/keys",
        "add_invoke_key",
        "Make an invoke key of a function; the answer comes when every worker takes it.",
        status=201,
        content={JSON: NewInvokeKey},
        body=AddInvokeKey,
        refusals={400: _BAD_REQUEST, 404: "No such function.", 409: "The name is taken."},
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}/keys/{key}",
        "remove_invoke_key",
        "Remove an invoke key of a function; the answer comes when no worker takes it.",
        status=204,
        refusals={404: "No such key."},
    ),
)


class AccessEndpoints:
    """
    The handlers of ``ENDPOINTS``; lives as long as the host.

    Thread: the control loop only.
    """

    def __init__(self, tokens: Tokens, keys: InvokeKeys, state: State, counts: Counts) -> None:
        self._tokens = tokens
        self._keys = keys
        self._state = state
        self._counts = counts

    async def tokens(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/tokens"""
        entries = await self._tokens.entries()
        return json_response(TokenList([TokenView(e.name, Role(e.role), e.added_at) for e in entries]))

    async def add_token(self, request: web.Request) -> web.StreamResponse:
        """POST /api/tokens"""
        wanted = await json_body(request, AddToken)
        entry, text = await self._tokens.add(wanted.name, wanted.role)
        return _shown_once(NewToken(entry.name, text, Role(entry.role), entry.added_at))

    async def remove_token(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/tokens/{name}"""
        await self._tokens.remove(request.match_info["name"])
        return web.Response(status=204)

    async def invoke_keys(self, request: web.Request) -> web.StreamResponse:
        """GET /api/invoke-keys"""
        totals = self._counts.invoke_key_totals()

        def view(entry: InvokeKeyEntry) -> InvokeKeyView:
            return InvokeKeyView(
                function=entry.function,
                name=entry.name,
                requests_per_minute=entry.requests_per_minute,
                added_at=entry.added_at,
                counters=totals.get((entry.function, entry.name), {}),
            )

        return json_response(
            InvokeKeyList([view(entry) for entry in await self._keys.entries(request.query.get("function"))])
        )

    async def add_invoke_key(self, request: web.Request) -> web.StreamResponse:
        """POST /api/functions/{name}/keys"""
        function = request.match_info["name"]
        wanted = await json_body(request, AddInvokeKey)
        await self._state.functions.active(function)
        entry, text = await self._keys.add(function, wanted.name, wanted.requests_per_minute)
        return _shown_once(NewInvokeKey(function, entry.name, text, entry.requests_per_minute, entry.added_at))

    async def remove_invoke_key(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}/keys/{key}"""
        await self._keys.remove(request.match_info["name"], request.match_info["key"])
        return web.Response(status=204)


def _shown_once(document: msgspec.Struct) -> web.Response:
    response = json_response(document, status=201)
    response.headers["Cache-Control"] = "no-store"
    return response
