"""What invocations of core modules may ask of their host beyond WASI: a ``faas_v1`` session for each of them."""

from __future__ import annotations

from collections.abc import Callable

from faas.gateway.call import Call
from faas.gateway.calls import FunctionCalls
from faas.gateway.outbound import FunctionOutbound, GuestOutbound, Outbound
from faas.guest.ports import ConfigPort, JobsPort, KvPort, Ports, SecretsPort
from faas.guest.session import GuestSession
from faas.wasi.p2 import keyvalue


class ServiceGate:
    """
    A worker's services for its guests; lives as long as it.

    The worker sets what it has; what stays None answers "unavailable".
    """

    __slots__ = ("_outbound", "calls", "config", "jobs", "kv", "stores")

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self.kv: KvPort | None = None
        self.stores: keyvalue.Port | None = None
        """The same, as components ask for it."""
        self.config: ConfigPort | None = None
        self.jobs: JobsPort | None = None
        self.calls: Callable[[Call, float], FunctionCalls] | None = None
        """Makes an invocation's way to other functions, from its call and its deadline on the loop's clock."""

    @property
    def secrets(self) -> SecretsPort | None:
        """The secrets of functions, for guests and for credentials."""
        return self._outbound.secrets

    @secrets.setter
    def secrets(self, secrets: SecretsPort | None) -> None:
        self._outbound.secrets = secrets

    def session(self, call: Call, deadline: float) -> GuestSession:
        """
        Return what one invocation asks, which it closes.

        Args: *deadline* is on the loop's clock, in seconds.
        """
        return GuestSession(
            call.served.name,
            call.served.deployment.manifest.capabilities,
            lambda: self._open(call, deadline),
            call.log_line,
        )

    def granted(self, call: Call) -> keyvalue.Granted | None:
        """Return what a component may use of stores and secrets; None if that is nothing."""
        capabilities = call.served.deployment.manifest.capabilities
        if not capabilities.kv and not capabilities.secrets:
            return None
        secrets = self.secrets
        return keyvalue.Granted(
            call.served.name,
            capabilities.kv,
            capabilities.secrets,
            self.stores,
            _no_secret if secrets is None else secrets.get,
        )

    def way_out(self, call: Call, deadline: float) -> tuple[FunctionOutbound, FunctionCalls | None]:
        """Return what an invocation sends HTTP requests through, and what it calls functions through, if it may."""
        deployment = call.served.deployment
        calls: FunctionCalls | None = None
        if deployment.manifest.capabilities.calls and self.calls is not None:
            calls = self.calls(call, deadline)
        return self._outbound.for_function(deployment, call.log_line, deadline=deadline, calls=calls), calls

    def _open(self, call: Call, deadline: float) -> Ports:
        capabilities = call.served.deployment.manifest.capabilities
        http: GuestOutbound | None = None
        calls: FunctionCalls | None = None
        if capabilities.outbound or capabilities.calls:
            outbound, calls = self.way_out(call, deadline)
            http = GuestOutbound(outbound)
        return Ports(kv=self.kv, config=self.config, secrets=self.secrets, http=http, calls=calls, jobs=self.jobs)


def _no_secret(_function: str, _name: str) -> str | None:
    return None
