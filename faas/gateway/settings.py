"""The worker's config values and secrets, as control told it last; in memory only, and in nobody's repr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from faas.invocation import Deployment
from faas.wire.messages import FunctionSettings

_NONE: Mapping[str, str] = {}


class ConfigValues:
    """A ``ConfigPort``, and what merges config values into manifests. Thread: any."""

    def __init__(self) -> None:
        self._values: Mapping[str, Mapping[str, str]] = {}

    def replace(self, values: Mapping[str, Mapping[str, str]]) -> None:
        """Go by *values*, by function and name, from now on."""
        self._values = values

    def get(self, function: str, name: str) -> str | None:
        """Return a config value, None if it is not set."""
        return self._values.get(function, _NONE).get(name)

    def applied(self, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
        """Return *deployments* with the config values of their functions over the ``env`` of their manifests."""
        values = self._values
        if not values:
            return deployments
        return tuple(
            _with_env(deployment, values[deployment.function]) if deployment.function in values else deployment
            for deployment in deployments
        )


class Secrets:
    """A ``SecretsPort``: those secrets that the manifests which are served have a use for. Thread: any may ask."""

    def __init__(self) -> None:
        self._values: Mapping[tuple[str, str], str] = {}
        self._lent: tuple[tuple[str, Mapping[str, str]], ...] = ()

    def replace(self, settings: FunctionSettings) -> None:
        """Know exactly the secrets of *settings* from now on."""
        self._values = {(secret.function, secret.name): secret.value for secret in settings.secrets}

    @contextmanager
    def lent(self, function: str, secrets: Mapping[str, str]) -> Iterator[None]:
        """Know *secrets* of *function*, too, for one invocation of a version that is not served. Thread: the loop."""
        loan = (function, secrets)
        self._lent = (*self._lent, loan)
        try:
            yield
        finally:
            self._lent = tuple(other for other in self._lent if other is not loan)

    def get(self, function: str, name: str) -> str | None:
        """Return a secret, None if it is not set or of no use to what is served."""
        found = self._values.get((function, name))
        if found is None:
            for lent_to, secrets in self._lent:
                if lent_to == function and name in secrets:
                    return secrets[name]
        return found


def _with_env(deployment: Deployment, values: Mapping[str, str]) -> Deployment:
    manifest = deployment.manifest
    replaced = msgspec.structs.replace(manifest, env={**manifest.env, **values})
    return msgspec.structs.replace(deployment, manifest=replaced)
