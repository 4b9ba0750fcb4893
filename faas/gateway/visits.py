"""Invoking one version of a function for the admin API, also one that no alias names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from faas.gateway.internal import Internal, InternalRequest
from faas.gateway.live import LiveTable
from faas.gateway.settings import Secrets
from faas.invocation import Deployment


class Visits:
    """A worker's answers to ``invoke-version``; lives as long as it."""

    def __init__(
        self,
        table: LiveTable,
        internal: Internal,
        applied: Callable[[tuple[Deployment, ...]], tuple[Deployment, ...]],
        secrets: Secrets,
    ) -> None:
        """Args: *applied* gives deployments their functions' config values."""
        self._table = table
        self._internal = internal
        self._applied = applied
        self._secrets = secrets

    async def invoke(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer what the version answers, all of it."""
        if asked["deployment"] is not None:
            self._table.visit(*self._applied((msgspec.convert(asked["deployment"], Deployment),)))
        request = InternalRequest(
            asked["method"], asked["target"], [(name, value) for name, value in asked["headers"]], asked["body"]
        )
        with self._secrets.lent(asked["function"], asked["secrets"]):
            reply = await self._internal.invoke(asked["function"], asked["qualifier"], request, caller="admin")
        return {"version": reply.version, "status": reply.status, "headers": reply.headers, "body": reply.body}
