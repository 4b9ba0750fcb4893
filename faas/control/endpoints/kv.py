"""Key-value stores over the admin API: what they hold, and who may use which."""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from faas.control.access import Role
from faas.control.endpoints.base import ACTOR, JSON, Endpoint, Query, int_of, json_body, json_response
from faas.control.kv import KvService
from faas.errors import BadRequestError, KvNotFoundError, KvTooLargeError
from faas.manifest import Name
from faas.state.kv import MAX_PAGE_KEYS, Grant

OCTETS = "application/octet-stream"


class StoreView(msgspec.Struct, frozen=True):
    """One store; ``bytes`` are of keys and values, those that expired a moment ago included."""

    store: str
    keys: int
    bytes: int


class StoreList(msgspec.Struct, frozen=True):
    """Every store that holds something, by name."""

    stores: list[StoreView]


class KeyList(msgspec.Struct, frozen=True):
    """A page of keys in the order of their bytes; ``cursor`` "" says that it was the last one."""

    keys: list[str]
    cursor: str


class GrantView(msgspec.Struct, frozen=True):
    """A function that may use another one's store."""

    store: str
    function: str
    read_only: bool
    added_at: float


class GrantList(msgspec.Struct, frozen=True):
    """Every grant, by store and function."""

    grants: list[GrantView]


class AddGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let a function use the store."""

    function: Name
    read_only: bool = False


class Dropped(msgspec.Struct, frozen=True):
    """How many keys a store held that was dropped."""

    keys: int


_KEY = Query("key", {"type": "string"}, "The key; 1 to 512 bytes of UTF-8 without a NUL.")
_BAD_REQUEST = "The request does not have the documented form."
_BAD_KEY = {400: "The key can't be one."}
_NO_KEY = {**_BAD_KEY, 404: "Nothing is under that key."}

ENDPOINTS = (
    Endpoint("GET", "/api/kv", "kv_stores", "Every store that holds something.", content={JSON: StoreList}),
    Endpoint(
        "DELETE",
        "/api/kv/{store}",
        "drop_kv_store",
        "Remove all that a store holds; its grants stay.",
        content={JSON: Dropped},
    ),
    Endpoint(
        "GET",
        "/api/kv/{store}/keys",
        "kv_keys",
        "Keys of a store, in the order of their bytes.",
        content={JSON: KeyList},
        query=(
            Query("prefix", {"type": "string"}, "Only keys that begin so."),
            Query("cursor", {"type": "string"}, "That of the page before."),
            Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_KEYS, "default": 100}, "Keys."),
        ),
        refusals=_BAD_KEY,
        role=Role.DEPLOY,
    ),
    Endpoint(
        "GET",
        "/api/kv/{store}/value",
        "kv_value",
        "The bytes under a key; X-Faas-Expires-At has the Unix time at which they go.",
        content={OCTETS: None},
        query=(_KEY,),
        refusals=_NO_KEY,
        role=Role.DEPLOY,
    ),
    Endpoint(
        "PUT",
        "/api/kv/{store}/value",
        "set_kv_value",
        "Keep the request's body under a key.",
        status=204,
        query=(
            _KEY,
            Query(
                "ttl_s", {"type": "number", "exclusiveMinimum": 0}, "How long it is kept, in seconds; else for good."
            ),
        ),
        refusals={
            **_BAD_KEY,
            413: "The value is over the host's limit.",
            507: "The store would be over the host's limit.",
        },
        raw_body=OCTETS,
    ),
    Endpoint(
        "DELETE",
        "/api/kv/{store}/value",
        "delete_kv_value",
        "Remove a key.",
        status=204,
        query=(_KEY,),
        refusals=_NO_KEY,
    ),
    Endpoint(
        "GET", "/api/kv-grants", "kv_grants", "Which functions may use others' stores.", content={JSON: GrantList}
    ),
    Endpoint(
        "POST",
        "/api/kv/{store}/grants",
        "grant_kv",
        "Let a function use the store, or change how it may; it may when the answer comes.",
        status=201,
        content={JSON: GrantView},
        body=AddGrant,
        refusals={400: _BAD_REQUEST},
    ),
    Endpoint(
        "DELETE",
        "/api/kv/{store}/grants/{function}",
        "revoke_kv",
        "Let a function use the store no longer; it may not when the answer comes.",
        status=204,
        refusals={404: "No such grant."},
    ),
)


class KvEndpoints:
    """
    The handlers of ``ENDPOINTS``; lives as long as the host.

    Thread: the control loop only.
    """

    def __init__(self, kv: KvService, *, max_value_bytes: int) -> None:
        self._kv = kv
        self._max_value_bytes = max_value_bytes

    async def kv_stores(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/kv"""
        return json_response(StoreList([StoreView(*store) for store in await self._kv.stores()]))

    async def drop_kv_store(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/kv/{store}"""
        return json_response(Dropped(await self._kv.drop(name_of(request, "store"), request[ACTOR].name)))

    async def kv_keys(self, request: web.Request) -> web.StreamResponse:
        """GET /api/kv/{store}/keys"""
        page = await self._kv.keys(
            name_of(request, "store"),
            request.query.get("prefix", ""),
            request.query.get("cursor", ""),
            int_of(request, "limit", 100, MAX_PAGE_KEYS),
        )
        return json_response(KeyList(list(page.keys), page.cursor))

    async def kv_value(self, request: web.Request) -> web.StreamResponse:
        """GET /api/kv/{store}/value"""
        store, key = name_of(request, "store"), request.query.get("key", "")
        entry = await self._kv.get(store, key)
        if entry is None:
            raise _nothing(store, key)
        response = web.Response(body=entry.value, content_type=OCTETS)
        response.headers["Cache-Control"] = "no-store"
        if entry.expires_at is not None:
            response.headers["X-Faas-Expires-At"] = f"{entry.expires_at:.3f}"
        return response

    async def set_kv_value(self, request: web.Request) -> web.StreamResponse:
        """PUT /api/kv/{store}/value"""
        store, key = name_of(request, "store"), request.query.get("key", "")
        await self._kv.set(store, key, await self._body(request), _ttl_of(request))
        return web.Response(status=204)

    async def delete_kv_value(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/kv/{store}/value"""
        store, key = name_of(request, "store"), request.query.get("key", "")
        if not await self._kv.delete(store, key):
            raise _nothing(store, key)
        return web.Response(status=204)

    async def kv_grants(self, _request: web.Request) -> web.StreamResponse:
        """GET /api/kv-grants"""
        return json_response(GrantList([_view(grant) for grant in await self._kv.grants()]))

    async def grant_kv(self, request: web.Request) -> web.StreamResponse:
        """POST /api/kv/{store}/grants"""
        wanted = await json_body(request, AddGrant)
        grant = await self._kv.grant(
            name_of(request, "store"), wanted.function, read_only=wanted.read_only, actor=request[ACTOR].name
        )
        return json_response(_view(grant), status=201)

    async def revoke_kv(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/kv/{store}/grants/{function}"""
        await self._kv.revoke(name_of(request, "store"), request.match_info["function"], request[ACTOR].name)
        return web.Response(status=204)

    async def _body(self, request: web.Request) -> bytes:
        """Return the body; aiohttp's own limit is for documents."""
        read = bytearray()
        async for piece in request.content.iter_any():
            read += piece
            if len(read) > self._max_value_bytes:
                raise KvTooLargeError(
                    f"a value of more than {self._max_value_bytes} bytes; split it over several keys, or raise"
                    " kv_max_value_bytes of the host",
                    limit_bytes=self._max_value_bytes,
                )
        return bytes(read)


def name_of(request: web.Request, part: str) -> str:
    """Return the function's name in the path; raises BadRequestError if none can have it."""
    text = request.match_info[part]
    try:
        return msgspec.convert(text, Name)
    except msgspec.ValidationError as exc:
        raise BadRequestError(
            f"{text!r} can't be a function's name: those have 1 to 63 lower-case letters, digits and '-'"
        ) from exc


def _ttl_of(request: web.Request) -> float | None:
    text = request.query.get("ttl_s")
    if text is None:
        return None
    try:
        ttl_s = float(text)
    except ValueError:
        ttl_s = math.nan
    if not math.isfinite(ttl_s):
        raise BadRequestError(f"ttl_s={text!r} is no number of seconds")
    return ttl_s


def _nothing(store: str, key: str) -> KvNotFoundError:
    return KvNotFoundError(f"the store {store!r} has nothing under {key!r}; 'faas kv list {store}' shows its keys")


def _view(grant: Grant) -> GrantView:
    return GrantView(grant.store, grant.function, grant.read_only, grant.added_at)
