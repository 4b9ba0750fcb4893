"""Config values and secrets of functions over the admin API; secrets come in and never go out."""

from __future__ import annotations

import msgspec
from aiohttp import web

from faas.control.access import Role
from faas.control.endpoints.base import ACTOR, JSON, Endpoint, Query, json_body, json_response
from faas.control.endpoints.kv import name_of
from faas.control.settings import SettingsKeeper
from faas.errors import BadRequestError
from faas.manifest import SecretName


class ConfigView(msgspec.Struct, frozen=True):
    """One config value."""

    name: str
    value: str
    set_at: float


class ConfigList(msgspec.Struct, frozen=True):
    """The config values of a function, by name."""

    function: str
    values: list[ConfigView]


class SetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set config values; those that are not named stay."""

    values: dict[SecretName, str]


class SecretView(msgspec.Struct, frozen=True):
    """One secret, without its value; ``readable`` false: this host does not have the key that sealed it."""

    name: str
    set_at: float
    readable: bool


class SecretList(msgspec.Struct, frozen=True):
    """The secrets of a function, by name."""

    function: str
    secrets: list[SecretView]


class SetSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set a secret."""

    value: str

    def __repr__(self) -> str:
        return "SetSecret(value=…)"


class Rotated(msgspec.Struct, frozen=True):
    """How many secrets were sealed with the new key."""

    secrets: int


_BAD_REQUEST = "The request does not have the documented form, or a name or a value can't be one."
_TOO_LARGE = "Config values and secrets would take more than they may."

ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/functions/{name}/config",
        "config_values",
        "The config values of a function, which need not be deployed yet.",
        content={JSON: ConfigList},
    ),
    Endpoint(
        "PATCH",
        "/api/functions/{name}/config",
        "set_config",
        "Set config values of a function; the answer comes when every worker goes by them.",
        status=204,
        body=SetConfig,
        refusals={400: _BAD_REQUEST, 413: _TOO_LARGE},
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}/config",
        "unset_config",
        "Forget config values of a function, all that are named or none.",
        status=204,
        query=(Query("name", {"type": "array", "items": {"type": "string"}}, "Which; may be given several times."),),
        refusals={400: "No name is given.", 404: "One of them is not set."},
    ),
    Endpoint(
        "GET",
        "/api/functions/{name}/secrets",
        "secrets",
        "The names of a function's secrets; no answer of this API has a value.",
        content={JSON: SecretList},
    ),
    Endpoint(
        "PUT",
        "/api/functions/{name}/secrets/{secret}",
        "set_secret",
        "Set a secret of a function; the answer comes when every worker that needs it has it.",
        status=204,
        body=SetSecret,
        refusals={400: _BAD_REQUEST, 413: _TOO_LARGE},
    ),
    Endpoint(
        "DELETE",
        "/api/functions/{name}/secrets/{secret}",
        "unset_secret",
        "Forget a secret of a function; the answer comes when no worker has it.",
        status=204,
        refusals={404: "It is not set."},
    ),
    Endpoint(
        "POST",
        "/api/secrets/rotate-key",
        "rotate_secrets_key",
        "Seal all secrets with a new key and forget the one before.",
        content={JSON: Rotated},
        role=Role.ADMIN,
    ),
)


class SettingsEndpoints:
    """
    The handlers of ``ENDPOINTS``; lives as long as the host.

    Thread: the control loop only.
    """

    def __init__(self, settings: SettingsKeeper) -> None:
        self._settings = settings

    async def config_values(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/config"""
        function = name_of(request, "name")
        values = await self._settings.config(function)
        return json_response(ConfigList(function, [ConfigView(v.name, v.value, v.set_at) for v in values]))

    async def set_config(self, request: web.Request) -> web.StreamResponse:
        """PATCH /api/functions/{name}/config"""
        function = name_of(request, "name")
        wanted = await json_body(request, SetConfig)
        if wanted.values:
            await self._settings.set_config(function, wanted.values, request[ACTOR].name)
        return web.Response(status=204)

    async def unset_config(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}/config"""
        names = request.query.getall("name", [])
        if not names:
            raise BadRequestError("say which config values with ?name=NAME")
        await self._settings.unset_config(name_of(request, "name"), names, request[ACTOR].name)
        return web.Response(status=204)

    async def secrets(self, request: web.Request) -> web.StreamResponse:
        """GET /api/functions/{name}/secrets"""
        function = name_of(request, "name")
        found = await self._settings.secrets(function)
        return json_response(
            SecretList(function, [SecretView(entry.name, entry.set_at, readable) for entry, readable in found])
        )

    async def set_secret(self, request: web.Request) -> web.StreamResponse:
        """PUT /api/functions/{name}/secrets/{secret}"""
        function, name = name_of(request, "name"), request.match_info["secret"]
        try:
            msgspec.convert(name, SecretName)
        except msgspec.ValidationError as exc:
            raise BadRequestError(
                f"{name!r} can't be a secret's name: those have letters, digits and '_', and no digit first"
            ) from exc
        wanted = await json_body(request, SetSecret)
        await self._settings.set_secret(function, name, wanted.value, request[ACTOR].name)
        return web.Response(status=204)

    async def unset_secret(self, request: web.Request) -> web.StreamResponse:
        """DELETE /api/functions/{name}/secrets/{secret}"""
        await self._settings.unset_secret(name_of(request, "name"), request.match_info["secret"], request[ACTOR].name)
        return web.Response(status=204)

    async def rotate_secrets_key(self, request: web.Request) -> web.StreamResponse:
        """POST /api/secrets/rotate-key"""
        return json_response(Rotated(await self._settings.rotate_key(request[ACTOR].name)))
