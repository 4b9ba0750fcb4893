"""Invoking one version of a function for the admin API, also one that no alias names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from faas.gateway.internal import Internal, InternalRequest
from faas.gateway.live import LiveTable
from faas.invocation import Deployment


class Visits:
    """A worker's answers to ``invoke-version``; lives as long as it."""

    def __init__(
        self,
        table: LiveTable,
        internal: Internal,
        applied: Callable[[tuple[Deployment, ...]], tuple[Deployment, ...]],
    ) -> None:
        """Args: *applied* gives deployments their functions' config values."""
        self._table = table
        self._internal = internal
        self._applied = applied

    async def invoke(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer what the version answers, all of it."""
        if asked["deployment"] is not None:
            self._table.visit(*self._applied((msgspec.convert(asked["deployment"], Deployment),)))
        reply = await self._internal.invoke(
            asked["function"],
            asked["qualifier"],
            InternalRequest(
                asked["method"], asked["target"], [(name, value) for name, value in asked["headers"]], asked["body"]
            ),
            caller="admin",
        )
        return {"version": reply.version, "status": reply.status, "headers": reply.headers, "body": reply.body}
