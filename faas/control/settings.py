"""Config values and secrets of functions: set here, sealed on disk, known to every worker that needs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol

from faas.control.deployer import see_through
from faas.control.vault import Vault
from faas.errors import BadRequestError, SecretsKeyError
from faas.invocation import Deployment
from faas.log import event
from faas.manifest import Manifest
from faas.state.settings import ConfigEntry, SecretEntry, SettingStore
from faas.wire.messages import FunctionSettings, SecretValue

MAX_VALUE_BYTES: Final = 64 * 1024
"""Of one config value or secret."""

_logger = logging.getLogger(__name__)


class Fleet(Protocol):
    """The workers, as far as settings look."""

    async def spread_settings(self) -> None:
        """Have every worker go by what ``FunctionSettings.of`` says now; never fails."""


class SettingsKeeper:
    """
    The config values and secrets of one host's functions; lives as long as it. Changes are serial, and survive
    whoever asked for them.

    In memory secrets are sealed, too; only what workers are told is open.
    Thread: the control loop only.
    """

    def __init__(self, store: SettingStore, vault: Vault, *, shared: bool = False, own_key: bool = True) -> None:
        """
        Know nothing before ``load``.

        Args: *shared*: other hosts have the same state; *own_key*: the key is of this host alone.
        """
        self._store = store
        self._vault = vault
        self._shared = shared
        self._own_key = own_key
        self._fleet: Fleet | None = None
        self._lock = asyncio.Lock()
        self._config: dict[str, dict[str, str]] = {}
        self._sealed: dict[tuple[str, str], SecretEntry] = {}
        self._changed = 0
        self._told: tuple[object, FunctionSettings] | None = None

    def serve(self, fleet: Fleet) -> None:
        """Tell *fleet* of changes from now on."""
        self._fleet = fleet

    async def load(self) -> None:
        """Go by what is kept now, and say in the log what can't be opened."""
        config: dict[str, dict[str, str]] = {}
        for value in await self._store.config():
            config.setdefault(value.function, {})[value.name] = value.value
        sealed = {(entry.function, entry.name): entry for entry in await self._store.secrets()}
        for entry in sealed.values():
            if not self._vault.opens(entry) and entry != self._sealed.get((entry.function, entry.name)):
                event(
                    _logger,
                    "secret.unreadable",
                    level=logging.ERROR,
                    function=entry.function,
                    secret=entry.name,
                    key_file=self._vault.path,
                    reason="it was sealed with another key; put that key into the file and restart, or set it again",
                )
        self._config, self._sealed = config, sealed
        self._changed += 1

    async def follow(self) -> None:
        """Go by what another host changed, on every worker."""
        async with self._lock:
            await self._spread()

    # ---- for workers ------------------------------------------------------------------------------------------------

    def of(self, deployments: Iterable[Deployment]) -> FunctionSettings:
        """Return what a worker that serves *deployments* has to know; the same object while that is the same."""
        config: dict[str, dict[str, str]] = {}
        wanted: dict[tuple[str, str], None] = {}
        for deployment in deployments:
            function = deployment.function
            if function in self._config:
                config[function] = self._config[function]
            for name in secrets_of(deployment.manifest):
                if (function, name) in self._sealed:
                    wanted[function, name] = None
        mark = (self._changed, tuple(config), tuple(wanted))
        if self._told is None or self._told[0] != mark:
            secrets = [
                SecretValue(function, name, value)
                for function, name in wanted
                if (value := self.get(function, name)) is not None
            ]
            self._told = mark, FunctionSettings(config, tuple(secrets))
        return self._told[1]

    def secrets_for(self, deployment: Deployment) -> dict[str, str]:
        """Return the secrets that one version has a use for, open, by name."""
        named = secrets_of(deployment.manifest)
        found = ((name, self.get(deployment.function, name)) for name in sorted(named))
        return {name: value for name, value in found if value is not None}

    def get(self, function: str, name: str) -> str | None:
        """
        Return a secret, open, for what control itself sends (a ``SecretsPort``).

        None if it is not set, or can't be opened: the log says so.
        """
        entry = self._sealed.get((function, name))
        if entry is None:
            return None
        try:
            return self._vault.open(entry)
        except SecretsKeyError as exc:
            event(_logger, "secret.unreadable", level=logging.ERROR, function=function, secret=name, reason=exc)
            return None

    # ---- for operators ----------------------------------------------------------------------------------------------

    async def config(self, function: str) -> tuple[ConfigEntry, ...]:
        """Return the config values of *function*, by name."""
        return tuple(entry for entry in await self._store.config() if entry.function == function)

    async def secrets(self, function: str) -> tuple[tuple[SecretEntry, bool], ...]:
        """Return the secrets of *function* by name, sealed, each with whether it can be opened."""
        entries = (entry for entry in await self._store.secrets() if entry.function == function)
        return tuple((entry, self._vault.opens(entry)) for entry in entries)

    async def set_config(self, function: str, values: Mapping[str, str], actor: str) -> None:
        """
        Set config values of *function*; every worker goes by them when this returns.

        Raises: BadRequestError, SettingsTooLargeError.
        """
        for name, value in values.items():
            _check_value(value, f"the config value {name!r}")
        async with self._lock:
            await see_through(self._do(self._store.set_config(function, values, actor)))
        event(_logger, "config.set", function=function, names=",".join(sorted(values)), actor=actor)

    async def unset_config(self, function: str, names: Iterable[str], actor: str) -> None:
        """
        Forget config values of *function*; no worker goes by them when this returns.

        Raises: SettingNotFoundError.
        """
        names = sorted(set(names))
        async with self._lock:
            await see_through(self._do(self._store.unset_config(function, names, actor)))
        event(_logger, "config.unset", function=function, names=",".join(names), actor=actor)

    async def set_secret(self, function: str, name: str, value: str, actor: str) -> None:
        """
        Set a secret of *function*; every worker that needs it has it when this returns.

        Raises: BadRequestError, SettingsTooLargeError, SecretsKeyError.
        """
        _check_value(value, f"the secret {name!r}")
        if self._shared and self._own_key:
            raise SecretsKeyError(
                "several hosts may share this state, and only this one has its key of the secrets; name a file with a"
                " common key by secrets_key_file on each of them"
            )
        async with self._lock:
            await see_through(self._do(self._store.set_secret(self._vault.seal(function, name, value), actor)))
        event(_logger, "secret.set", function=function, secret=name, actor=actor)

    async def unset_secret(self, function: str, name: str, actor: str) -> None:
        """
        Forget a secret of *function*; no worker has it when this returns.

        Raises: SettingNotFoundError.
        """
        async with self._lock:
            await see_through(self._do(self._store.unset_secret(function, name, actor)))
        event(_logger, "secret.unset", function=function, secret=name, actor=actor)

    async def forget_function(self, function: str, *, purge: bool = True, actor: str = "") -> None:
        """Have every worker go by what is left: the state has forgotten what was set for a removed function."""
        del function, purge, actor
        await self.follow()

    async def rotate_key(self, actor: str) -> int:
        """
        Seal everything with a new key, and forget the one before; return how many secrets that were.

        Raises: SecretsKeyError if a secret can't be opened, or the key's file is not this host's own to write.
        """
        if not self._own_key or self._shared:
            raise SecretsKeyError(
                "the key's file is named by secrets_key_file, so it is yours: put a new key on top of it on each host,"
                " restart them, set the secrets again, and then take the old key away"
            )
        async with self._lock:
            return await see_through(self._rotate(actor))

    async def _rotate(self, actor: str) -> int:
        opened = [(entry, self._vault.open(entry)) for entry in await self._store.secrets()]
        self._vault = await asyncio.to_thread(self._vault.with_new_key)
        await self._store.reseal(
            [self._vault.seal(entry.function, entry.name, value) for entry, value in opened], actor
        )
        self._vault = await asyncio.to_thread(self._vault.without_old_keys)
        await self._spread()
        event(_logger, "secrets.key_rotated", secrets=len(opened), actor=actor)
        return len(opened)

    async def _do(self, change: Coroutine[Any, Any, object]) -> None:
        await change
        await self._spread()

    async def _spread(self) -> None:
        await self.load()
        if self._fleet is not None:
            await self._fleet.spread_settings()


def secrets_of(manifest: Manifest) -> frozenset[str]:
    """Return the names of all secrets that *manifest* has a use for, whoever is to see them."""
    names = {*manifest.capabilities.secrets, *(entry.secret for entry in manifest.capabilities.credentials)}
    names.update(webhook.secret for webhook in manifest.webhooks)
    names.add(manifest.jobs.callback_secret)
    return frozenset(names - {""})


def _check_value(value: str, what: str) -> None:
    """Raises: BadRequestError; the value itself is in no message."""
    try:
        n_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise BadRequestError(f"{what} is not Unicode (half of a surrogate pair); set text") from None
    if "\0" in value:
        raise BadRequestError(f"{what} has a NUL in it; set text, or encode it as base64")
    if n_bytes > MAX_VALUE_BYTES:
        raise BadRequestError(f"{what} has {n_bytes} bytes and may have {MAX_VALUE_BYTES}; shorten it")
