"""Where invocations meet models: a WASI-NN context per invocation, metered and held to the function's quota."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from faas.clock import Clock
from faas.gateway.call import Call
from faas.gateway.metering import Meter
from faas.nn.client import ModelService
from faas.nn.session import NnContext, Sink


class ModelGate:
    """Gives functions the models their manifests name; lives as long as its worker."""

    def __init__(self, client: ModelService | None, meter: Meter, clock: Clock) -> None:
        """Args: *client* None: this host has no model server; every load answers not found."""
        self._client = client
        self._meter = meter
        self._clock = clock

    def context(
        self,
        call: Call,
        *,
        timeout_s: float,
        stdout: Sink | None = None,
        flush: Callable[[], Awaitable[None]] | None = None,
    ) -> NnContext | None:
        """
        Return the WASI-NN state for one invocation, which closes it; None for a function without models.

        Args: *stdout* and *flush* take what the host prints for the guest (``stream-stdout``).
        """
        manifest = call.served.deployment.manifest
        if not manifest.capabilities.models:
            return None
        function = call.served.name
        limit = manifest.limits.tokens_per_minute
        return NnContext(
            self._client,
            manifest.capabilities.models,
            function,
            deadline=self._clock.monotonic() + timeout_s,
            stdout=stdout,
            flush=flush,
            log_line=call.log_line,
            charge=lambda n_prompt_bytes: self._meter.begin(
                function, tokens_per_minute=limit, n_prompt_bytes=n_prompt_bytes
            ),
            clock=self._clock,
        )
