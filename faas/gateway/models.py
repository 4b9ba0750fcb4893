"""Where invocations meet models: a WASI-NN context per invocation, metered and held to the function's quota."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from faas.clock import Clock
from faas.errors import FaasError, ModelNotFoundError, ModelNotGrantedError
from faas.gateway.call import Call
from faas.gateway.metering import Meter
from faas.nn.client import Generation, ModelService
from faas.nn.session import NnContext, Sink
from faas.wire.models import Embed, Final, Generate, ModelCard, ServerHello, Tokenize


class KnownModels:
    """
    The model server's client, asked only for models that exist: without any there is no server to be away.

    Lives as long as its worker; ``names`` is set whenever the control process says so.
    """

    def __init__(self, client: ModelService) -> None:
        self._client = client
        self.names: frozenset[str] = frozenset()

    @property
    def hello(self) -> ServerHello | None:
        """The server's greeting, None while it is away."""
        return self._client.hello

    def generate(self, request: Generate) -> Generation:
        """Begin a generation. Raises: ModelNotFoundError, ModelUnavailableError."""
        self._check(request.model)
        return self._client.generate(request)

    async def embed(self, request: Embed) -> Final:
        """Return embeddings. Raises: ModelError."""
        self._check(request.model)
        return await self._client.embed(request)

    async def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        """Return tokens. Raises: ModelError."""
        self._check(request.model)
        return await self._client.tokenize(request)

    async def describe(self, model: str = "", *, load: bool = False) -> tuple[ModelCard, ...]:
        """Return the card of *model*, of all without one. Raises: ModelError."""
        if not model and not self.names:
            return ()
        if model:
            self._check(model)
        return await self._client.describe(model, load=load)

    def _check(self, model: str) -> None:
        if model not in self.names:
            raise ModelNotFoundError(
                f"this host has no model {model!r}; 'faas models list' shows those it has", model=model
            )


class ModelGate:
    """Gives functions the models their manifests name; lives as long as its worker."""

    def __init__(self, client: KnownModels | None, meter: Meter, clock: Clock) -> None:
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
            not_granted=self._not_granted,
            clock=self._clock,
        )

    def _not_granted(self, model: str) -> FaasError:
        """Return why a function gets no *model* that its manifest does not name; its log is where this is read."""
        if self._client is not None and model in self._client.names:
            return ModelNotGrantedError(
                f"this host has the model {model!r}, but the function is not granted it; add it to [capabilities] "
                "models of function.toml and deploy again"
            )
        return ModelNotFoundError(
            f"the function is granted no model {model!r}, and this host has none of that name; 'faas models list' "
            "shows those it has"
        )
