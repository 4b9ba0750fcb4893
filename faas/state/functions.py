"""Functions, their immutable versions, the aliases that name them and how these share requests out."""

from __future__ import annotations

from typing import Protocol

import msgspec

from faas.errors import (
    AliasNotFoundError,
    BadRequestError,
    CanaryNotFoundError,
    CanaryRunningError,
    FunctionNotFoundError,
    VersionInUseError,
    VersionNotFoundError,
)
from faas.invocation import LIVE, Alias, Deployment, Kind
from faas.manifest import Manifest
from faas.routes import refuse_conflicts
from faas.state.base import Canary, CanaryPhase, CanaryPlan, NewVersion, References, Serving
from faas.state.database import Database, Row, Session
from faas.state.noting import note

CHANGED = "functions"
"""The topic of every change here."""
MAX_HISTORY = 100
"""How many of the versions that ``live`` named before a function keeps in mind."""
_LOCK = "faas functions"
_COLUMNS = "function, version, kind, wasm_digest, artifact_key, bundle_digest, manifest, created_at"
_VERSION = ", ".join(f"v.{column}" for column in _COLUMNS.split(", "))
_ALIAS = "function, alias, version, other, weight, sticky"
_CANARY = "function, alias, version, other, plan, phase, step, since, reason"


class Removal(Protocol):
    """Forgets what else belongs to a function that is removed; with *purge* also what is kept otherwise."""

    def __call__(self, session: Session, function: str, *, purge: bool, actor: str) -> None: ...


class FunctionStore:
    """
    Functions, versions, aliases and canaries. Every change is one transaction, with its entry in the audit log.

    Versions are numbered from 1 per function, and never change. A number is never given twice, not even after its
    function was removed. *actor* is who the audit log names.
    Raises: StateError from every operation when the database itself fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.removals: list[Removal] = []
        """They are part of the transaction: nothing of a function may fall to another one of its name."""

    # reading

    async def next_version(self, name: str) -> int:
        """Return the number that the next version of *name* will get, if nothing else is deployed meanwhile."""
        return await self._database.run(lambda session: _last_version(session, name) + 1)

    async def active_deployments(self) -> tuple[Deployment, ...]:
        """Return the version of each function that ``live`` names first, ordered by name."""
        return await self._database.run(_active_deployments)

    async def active(self, name: str) -> Deployment:
        """
        Return the version of *name* that ``live`` names first.

        Raises: FunctionNotFoundError.
        """
        return await self._database.run(lambda session: _active(session, name))

    async def versions(self, name: str) -> tuple[Deployment, ...]:
        """
        Return every version of *name*, newest first.

        Raises: FunctionNotFoundError.
        """
        return await self._database.run(lambda session: _versions(session, name))

    async def version(self, name: str, version: int) -> Deployment:
        """
        Return one version of *name*.

        Raises: FunctionNotFoundError, VersionNotFoundError.
        """
        return await self._database.run(lambda session: _version(session, name, version))

    async def aliases(self, name: str) -> tuple[Alias, ...]:
        """
        Return every alias of *name*, ``live`` first, then by name.

        Raises: FunctionNotFoundError.
        """

        def aliases(session: Session) -> tuple[Alias, ...]:
            _active(session, name)
            return _aliases(session, name)

        return await self._database.run(aliases)

    async def canary(self, name: str, alias: str = LIVE) -> Canary | None:
        """
        Return the last canary of an alias of *name*, None if there was none since the function was deployed.

        Raises: FunctionNotFoundError.
        """

        def canary(session: Session) -> Canary | None:
            _active(session, name)
            return next((canary for canary in _canaries(session, name) if canary.alias == alias), None)

        return await self._database.run(canary)

    async def serving(self) -> Serving:
        """Return what is to be served of all functions."""

        def serving(session: Session) -> Serving:
            session.lock(_LOCK)  # versions and aliases of one moment
            return _serving(session)

        return await self._database.run(serving)

    async def routes(self) -> dict[str, tuple[str, ...]]:
        """Return the routes of each function: those of every version that an alias names."""
        return await self._database.run(_routes)

    async def references(self) -> References:
        """Return what must stay in the artifact store."""
        return await self._database.run(_references)

    async def rollback_target(self, name: str, to: int = 0) -> Deployment:
        """
        Return what ``rollback`` with the same arguments goes back to.

        Raises: as it.
        """
        return await self._database.run(lambda session: _version(session, name, _target(session, name, to)[0]))

    # changing

    async def add_version_and_activate(self, new: NewVersion, *, actor: str = "") -> Deployment:
        """
        Number *new*, keep it and make it the one that ``live`` names, all or nothing.

        Raises: RouteTakenError if another function has one of its routes; CanaryRunningError.
        """
        return (await self.add_version(new, actor=actor))[0]

    async def add_version(
        self, new: NewVersion, *, alias: str = LIVE, canary: CanaryPlan | None = None, sticky: str = "", actor: str = ""
    ) -> tuple[Deployment, Serving]:
        """
        Number *new*, keep it and have *alias* name it, all or nothing; return it and what the function serves now.

        Args: an *alias* of "" means none. With a *canary* the version gets its first step of what ``live`` gets; the
        first version of a function gets all of it.
        Raises: RouteTakenError if another function has one of its routes; CanaryRunningError; BadRequestError if it
        is the first version, and to be served by another alias than ``live``.
        """

        def add(session: Session) -> tuple[Deployment, Serving]:
            deployment = _add(session, new)
            name = deployment.function
            first = _refuse_placement(session, name, alias)
            gradually = canary is not None and not first
            detail = {"version": deployment.version, "alias": "" if gradually else alias}
            if canary is not None and gradually:
                _note(session, actor, "deploy", name, detail)
                _start_canary(session, Alias(name, LIVE, deployment.version, sticky=sticky), canary, actor)
            else:
                if alias:
                    _point(session, Alias(name, alias, deployment.version))
                _note(session, actor, "deploy", name, detail)
            return deployment, _serving(session, name)

        return await self._database.run(add)

    async def check_placement(self, name: str, alias: str) -> None:
        """
        Raise what ``add_version`` would, because of who is to name the new version.

        Raises: CanaryRunningError, BadRequestError.
        """
        await self._database.run(lambda session: _refuse_placement(session, name, alias))

    async def remove_function(self, name: str, *, purge: bool = False, actor: str = "") -> tuple[Deployment, ...]:
        """
        Forget *name* with all that belongs to it, and its versions, which are returned; its highest number is kept.

        Args: *purge*: forget also what another function of that name would go on with.
        Raises: FunctionNotFoundError.
        """

        def remove(session: Session) -> tuple[Deployment, ...]:
            session.lock(_LOCK)
            active = _active(session, name)
            gone = _versions(session, name)
            for table in ("aliases", "canaries", "history", "versions"):
                session.execute(f"DELETE FROM {table} WHERE function = ?", name)
            _note(session, actor, "remove", name, {"version": active.version})
            for removal in self.removals:
                removal(session, name, purge=purge, actor=actor)
            return gone

        return await self._database.run(remove)

    async def remove_version(self, name: str, version: int, *, actor: str = "") -> None:
        """
        Forget one version of *name*.

        Raises: FunctionNotFoundError, VersionNotFoundError; VersionInUseError if an alias names it.
        """

        def remove(session: Session) -> None:
            session.lock(_LOCK)
            _version(session, name, version)
            for alias in _aliases(session, name):
                if version in alias.shares:
                    raise VersionInUseError(
                        f"the alias {alias.alias!r} of {name!r} names version {version}; have it name another one "
                        "first, or remove the alias",
                        alias=alias.alias,
                    )
            _forget(session, name, version)
            _note(session, actor, "remove-version", name, {"version": version})

        await self._database.run(remove)

    async def collect(self, keep: int, name: str = "") -> tuple[tuple[str, int], ...]:
        """
        Forget all versions that nothing names but the newest *keep*, of one function or of all; return which.

        Canaries and splits name versions through their alias.
        """

        def collect(session: Session) -> tuple[tuple[str, int], ...]:
            session.lock(_LOCK)
            rows = session.execute(
                "SELECT v.function, v.version FROM versions v WHERE NOT EXISTS (SELECT 1 FROM aliases a"
                " WHERE a.function = v.function AND (a.version = v.version OR a.other = v.version))"
                f" {'AND v.function = ? ' if name else ''}ORDER BY v.function, v.version DESC",
                *([name] if name else []),
            )
            unnamed: dict[str, list[int]] = {}
            for function, version in rows:
                unnamed.setdefault(function, []).append(version)
            gone: list[tuple[str, int]] = []
            for function, versions in unnamed.items():
                gone += [(function, version) for version in versions[keep:]]
            for function, version in gone:
                _forget(session, function, version)
            for function in dict.fromkeys(function for function, _ in gone):
                versions = [version for owner, version in gone if owner == function]
                _note(session, "", "collect", function, {"versions": versions, "keep_versions": keep})
            return tuple(gone)

        return await self._database.run(collect)

    async def set_alias(self, alias: Alias, *, actor: str = "") -> Serving:
        """
        Have an alias, made if it is not there, share its requests out as *alias* says; return what is served now.

        Raises: FunctionNotFoundError, VersionNotFoundError, RouteTakenError; CanaryRunningError if a canary does.
        """

        def change(session: Session) -> Serving:
            session.lock(_LOCK)
            name = alias.function
            for version in alias.shares:
                _refuse_taken(session, _version(session, name, version))
            _refuse_canary(session, name, alias.alias)
            before = _point(session, alias)
            detail: dict[str, object] = {"alias": alias.alias, "shares": _shown(alias.shares)}
            if alias.sticky:
                detail["sticky"] = alias.sticky
            if before is not None:
                detail["before"] = _shown(before.shares)
            _note(session, actor, "alias" if not alias.other else "traffic", name, detail)
            return _serving(session, name)

        return await self._database.run(change)

    async def remove_alias(self, name: str, alias: str, *, actor: str = "") -> Serving:
        """
        Forget an alias; its versions stay.

        Raises: FunctionNotFoundError, AliasNotFoundError; BadRequestError for ``live``; CanaryRunningError.
        """

        def remove(session: Session) -> Serving:
            session.lock(_LOCK)
            before = _alias(session, name, alias)
            if alias == LIVE:
                raise BadRequestError(f"routes serve {LIVE!r}, so it stays; 'faas remove {name}' removes the function")
            _refuse_canary(session, name, alias)
            for table in ("aliases", "canaries"):
                session.execute(f"DELETE FROM {table} WHERE function = ? AND alias = ?", name, alias)
            _note(session, actor, "remove-alias", name, {"alias": alias, "before": _shown(before.shares)})
            return _serving(session, name)

        return await self._database.run(remove)

    async def rollback(self, name: str, to: int = 0, *, expected: int, actor: str = "") -> Serving:
        """
        Have ``live`` name *to* alone; return what is served now. A canary of it ends.

        Args: *to* 0 means the version that it named, alone or mostly, before: while two share its requests that is
        the older way, else the one before the present one, after several rollbacks the one before that.
        *expected* is the ``rollback_target`` that the workers were prepared for.
        Raises: FunctionNotFoundError, RouteTakenError; VersionNotFoundError also if there was none before;
        BadRequestError if something else was changed meanwhile.
        """

        def rollback(session: Session) -> Serving:
            session.lock(_LOCK)
            before = _alias(session, name, LIVE)
            version, depth = _target(session, name, to)
            if version != expected:
                raise BadRequestError(f"the traffic of {name!r} was changed meanwhile; look at it, then try again")
            _refuse_taken(session, _version(session, name, version))
            running = _running(session, name, LIVE)
            if running is not None:
                _end(session, running, CanaryPhase.ROLLED_BACK, "rolled back by hand")
            _point(session, Alias(name, LIVE, version), remember=not depth)
            if depth:
                session.execute("DELETE FROM history WHERE function = ? AND depth >= ?", name, depth)
            _note(session, actor, "rollback", name, {"version": version, "before": _shown(before.shares)})
            return _serving(session, name)

        return await self._database.run(rollback)

    async def start_canary(
        self, name: str, version: int, plan: CanaryPlan, *, alias: str = LIVE, sticky: str = "", actor: str = ""
    ) -> Serving:
        """
        Send the plan's first step of *alias*' requests to *version*; return what is served now.

        Raises: FunctionNotFoundError, VersionNotFoundError, AliasNotFoundError, RouteTakenError; CanaryRunningError;
        BadRequestError if the alias names *version* already.
        """

        def start(session: Session) -> Serving:
            session.lock(_LOCK)
            _refuse_taken(session, _version(session, name, version))
            _start_canary(session, Alias(name, alias, version, sticky=sticky), plan, actor)
            return _serving(session, name)

        return await self._database.run(start)

    async def advance_canary(self, canary: Canary, *, actor: str = "") -> Serving:
        """
        Have *canary* go on to its next step; return what is served now.

        Raises: CanaryNotFoundError if it is not what it was any more.
        """

        def advance(session: Session) -> Serving:
            session.lock(_LOCK)
            _refuse_stale(session, canary)
            weight = canary.plan.steps[canary.step + 1]
            session.execute(
                "UPDATE canaries SET step = ?, since = ? WHERE function = ? AND alias = ?",
                canary.step + 1,
                session.now(),
                canary.function,
                canary.alias,
            )
            session.execute(
                "UPDATE aliases SET weight = ? WHERE function = ? AND alias = ?", weight, canary.function, canary.alias
            )
            detail = {"alias": canary.alias, "version": canary.other, "weight": weight}
            _note(session, actor, "canary-step", canary.function, detail)
            return _serving(session, canary.function)

        return await self._database.run(advance)

    async def end_canary(self, canary: Canary, phase: CanaryPhase, reason: str, *, actor: str = "") -> Serving:
        """
        Have *canary* end: its alias names the new version alone if it is promoted, else the old one.

        Args: *reason* is for people.
        Raises: CanaryNotFoundError if it is not what it was any more.
        """

        def end(session: Session) -> Serving:
            session.lock(_LOCK)
            _refuse_stale(session, canary)
            _end(session, canary, phase, reason)
            winner = canary.other if phase is CanaryPhase.PROMOTED else canary.version
            _point(session, Alias(canary.function, canary.alias, winner))
            detail = {"alias": canary.alias, "version": winner, "reason": reason}
            _note(session, actor, f"canary-{phase.value}", canary.function, detail)
            return _serving(session, canary.function)

        return await self._database.run(end)

    async def update_artifact_key(self, function: str, version: int, artifact_key: str) -> None:
        """Note that *version*'s native code is now kept under *artifact_key* (another engine, another key)."""

        def update(session: Session) -> None:
            session.execute(
                "UPDATE versions SET artifact_key = ? WHERE function = ? AND version = ?",
                artifact_key,
                function,
                version,
            )

        await self._database.run(update)


# ---- versions --------------------------------------------------------------------------------------------------------


def _add(session: Session, new: NewVersion) -> Deployment:
    session.lock(_LOCK)
    name = new.manifest.name
    deployment = Deployment(
        function=name,
        version=_last_version(session, name) + 1,
        kind=new.kind,
        wasm_digest=new.wasm_digest,
        artifact_key=new.artifact_key,
        bundle_digest=new.bundle_digest,
        manifest=new.manifest,
        created_at=session.now(),
    )
    _refuse_taken(session, deployment)
    session.execute(
        "INSERT INTO functions (name, last_version) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET last_version = excluded.last_version",
        name,
        deployment.version,
    )
    session.execute(f"INSERT INTO versions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *_to_row(deployment))
    return deployment


def _refuse_taken(session: Session, deployment: Deployment) -> None:
    refuse_conflicts(deployment.function, deployment.manifest.routes, _routes(session))


def _last_version(session: Session, name: str) -> int:
    rows = session.execute("SELECT last_version FROM functions WHERE name = ?", name)
    return int(rows[0][0]) if rows else 0


def _active_deployments(session: Session) -> tuple[Deployment, ...]:
    rows = session.execute(
        f"SELECT {_VERSION} FROM versions v JOIN aliases a ON a.function = v.function AND a.version = v.version"
        " WHERE a.alias = ? ORDER BY v.function",
        LIVE,
    )
    return tuple(map(_from_row, rows))


def _active(session: Session, name: str) -> Deployment:
    rows = session.execute(
        f"SELECT {_VERSION} FROM versions v JOIN aliases a ON a.function = v.function AND a.version = v.version"
        " WHERE a.alias = ? AND v.function = ?",
        LIVE,
        name,
    )
    if not rows:
        raise FunctionNotFoundError(f"no function {name!r} is deployed; 'faas list' shows those that are")
    return _from_row(rows[0])


def _versions(session: Session, name: str) -> tuple[Deployment, ...]:
    _active(session, name)
    rows = session.execute(f"SELECT {_COLUMNS} FROM versions WHERE function = ? ORDER BY version DESC", name)
    return tuple(map(_from_row, rows))


def _version(session: Session, name: str, version: int) -> Deployment:
    rows = session.execute(f"SELECT {_COLUMNS} FROM versions WHERE function = ? AND version = ?", name, version)
    if not rows:
        _active(session, name)
        raise VersionNotFoundError(f"{name!r} has no version {version}; 'faas versions {name}' shows those it has")
    return _from_row(rows[0])


def _forget(session: Session, name: str, version: int) -> None:
    for table in ("versions", "history"):
        session.execute(f"DELETE FROM {table} WHERE function = ? AND version = ?", name, version)


def _named(session: Session, name: str = "") -> tuple[Deployment, ...]:
    """Return every version that an alias names, of one function or of all, by name and number."""
    rows = session.execute(
        f"SELECT {_VERSION} FROM versions v WHERE EXISTS (SELECT 1 FROM aliases a WHERE a.function = v.function"
        " AND (a.version = v.version OR a.other = v.version))"
        f" {'AND v.function = ? ' if name else ''}ORDER BY v.function, v.version",
        *([name] if name else []),
    )
    return tuple(map(_from_row, rows))


def _serving(session: Session, name: str = "") -> Serving:
    canaries = tuple(canary for canary in _canaries(session, name) if canary.runs)
    return Serving(_named(session, name), _aliases(session, name), canaries)


def _routes(session: Session) -> dict[str, tuple[str, ...]]:
    routes: dict[str, dict[str, None]] = {}
    for deployment in _named(session):
        routes.setdefault(deployment.function, {}).update(dict.fromkeys(deployment.manifest.routes))
    return {function: tuple(texts) for function, texts in routes.items()}


def _references(session: Session) -> References:
    rows = session.execute("SELECT wasm_digest, artifact_key, bundle_digest FROM versions")
    return References(
        wasm_digests=frozenset(row[0] for row in rows),
        artifact_keys=frozenset(row[1] for row in rows),
        bundle_digests=frozenset(row[2] for row in rows if row[2]),
    )


# ---- aliases ---------------------------------------------------------------------------------------------------------


def _aliases(session: Session, name: str = "") -> tuple[Alias, ...]:
    rows = session.execute(
        f"SELECT {_ALIAS} FROM aliases {'WHERE function = ? ' if name else ''}ORDER BY function, alias <> ?, alias",
        *([name] if name else []),
        LIVE,
    )
    return tuple(Alias(*row) for row in rows)


def _find_alias(session: Session, name: str, alias: str) -> Alias | None:
    rows = session.execute(f"SELECT {_ALIAS} FROM aliases WHERE function = ? AND alias = ?", name, alias)
    return Alias(*rows[0]) if rows else None


def _refuse_placement(session: Session, name: str, alias: str) -> bool:
    """Return whether a new version of *name* is its first one; raise what stands in the way of *alias* naming it."""
    if _find_alias(session, name, LIVE) is None:
        if alias != LIVE:
            raise BadRequestError(
                f"{name!r} has no version that serves yet; deploy it once without --alias and --no-traffic"
            )
        return True
    if alias:
        _refuse_canary(session, name, alias)
    return False


def _alias(session: Session, name: str, alias: str) -> Alias:
    found = _find_alias(session, name, alias)
    if found is None:
        _active(session, name)
        raise AliasNotFoundError(f"{name!r} has no alias {alias!r}; 'faas alias list {name}' shows those it has")
    return found


def _point(session: Session, alias: Alias, *, remember: bool = True) -> Alias | None:
    """Write *alias* down and return what it was before; what ``live`` leaves behind is remembered for rollbacks."""
    before = _find_alias(session, alias.function, alias.alias)
    session.execute(
        f"INSERT INTO aliases ({_ALIAS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (function, alias) DO UPDATE SET"
        " version = excluded.version, other = excluded.other, weight = excluded.weight, sticky = excluded.sticky",
        *msgspec.structs.astuple(alias),
    )
    if remember and alias.alias == LIVE and before is not None and before.version != alias.version:
        rows = session.execute("SELECT max(depth) FROM history WHERE function = ?", alias.function)
        depth = (rows[0][0] or 0) + 1
        session.execute(
            "INSERT INTO history (function, depth, version) VALUES (?, ?, ?)", alias.function, depth, before.version
        )
        session.execute("DELETE FROM history WHERE function = ? AND depth <= ?", alias.function, depth - MAX_HISTORY)
    return before


def _target(session: Session, name: str, to: int) -> tuple[int, int]:
    """Return the version that a rollback goes back to, and from which depth on the history is over then (0: none)."""
    live = _alias(session, name, LIVE)
    if not to and live.other:
        return live.version, 0
    rows = session.execute(
        "SELECT version, depth FROM history WHERE function = ? AND version <> ? ORDER BY depth DESC", name, live.version
    )
    if not to:
        if not rows:
            raise VersionNotFoundError(
                f"no other version of {name!r} was live before {live.version}; 'faas rollback {name} --to V' goes to "
                "any version that 'faas versions' shows"
            )
        version, depth = rows[0]
        return version, depth
    _version(session, name, to)
    if to == live.version:
        if not live.other:
            raise BadRequestError(f"version {to} of {name!r} is live already, alone; choose another one")
        return to, 0
    return to, next((depth for version, depth in rows if version == to), 0)


# ---- canaries --------------------------------------------------------------------------------------------------------


def _canaries(session: Session, name: str = "") -> tuple[Canary, ...]:
    rows = session.execute(
        f"SELECT {_CANARY} FROM canaries {'WHERE function = ? ' if name else ''}ORDER BY function, alias",
        *([name] if name else []),
    )
    return tuple(
        Canary(
            function=function,
            alias=alias,
            version=version,
            other=other,
            plan=msgspec.json.decode(plan, type=CanaryPlan),
            phase=CanaryPhase(phase),
            step=step,
            since=since,
            reason=reason,
        )
        for function, alias, version, other, plan, phase, step, since, reason in rows
    )


def _running(session: Session, name: str, alias: str) -> Canary | None:
    return next((c for c in _canaries(session, name) if c.alias == alias and c.runs), None)


def _refuse_canary(session: Session, name: str, alias: str) -> None:
    running = _running(session, name, alias)
    if running is not None:
        raise CanaryRunningError(
            f"a canary of {name!r} tries version {running.other} on {alias!r}; 'faas canary promote' or 'faas canary "
            f"abort {name}' ends it",
            version=running.other,
        )


def _refuse_stale(session: Session, canary: Canary) -> None:
    if _running(session, canary.function, canary.alias) != canary:
        raise CanaryNotFoundError(
            f"the canary of {canary.function!r} that tried version {canary.other} has ended or gone on; "
            f"'faas canary status {canary.function}' shows what became of it"
        )


def _start_canary(session: Session, wanted: Alias, plan: CanaryPlan, actor: str) -> None:
    """Begin to send what *wanted*'s alias gets to its version, step by step."""
    name, alias, version = wanted.function, wanted.alias, wanted.version
    _refuse_canary(session, name, alias)
    before = _alias(session, name, alias)
    if before.version == version:
        raise BadRequestError(f"version {version} of {name!r} is what {alias!r} names already; choose another one")
    _point(session, Alias(name, alias, before.version, version, plan.steps[0], wanted.sticky))
    session.execute(
        f"INSERT INTO canaries ({_CANARY}) VALUES (?, ?, ?, ?, ?, ?, 0, ?, '') ON CONFLICT (function, alias) DO UPDATE"
        " SET version = excluded.version, other = excluded.other, plan = excluded.plan, phase = excluded.phase,"
        " step = excluded.step, since = excluded.since, reason = excluded.reason",
        name,
        alias,
        before.version,
        version,
        msgspec.json.encode(plan).decode(),
        CanaryPhase.RUNNING.value,
        session.now(),
    )
    detail = {"alias": alias, "version": version, "weight": plan.steps[0], "plan": msgspec.to_builtins(plan)}
    _note(session, actor, "canary-start", name, detail)


def _end(session: Session, canary: Canary, phase: CanaryPhase, reason: str) -> None:
    session.execute(
        "UPDATE canaries SET phase = ?, since = ?, reason = ? WHERE function = ? AND alias = ?",
        phase.value,
        session.now(),
        reason,
        canary.function,
        canary.alias,
    )


def _shown(shares: dict[int, float]) -> dict[str, float]:
    """Return *shares* with the keys that JSON has."""
    return {str(version): weight for version, weight in shares.items()}


def _note(session: Session, actor: str, action: str, function: str, detail: dict[str, object]) -> None:
    note(session, actor, action, function, **detail)
    session.notify(CHANGED)


def _to_row(deployment: Deployment) -> Row:
    return (
        deployment.function,
        deployment.version,
        deployment.kind.value,
        deployment.wasm_digest,
        deployment.artifact_key,
        deployment.bundle_digest,
        msgspec.json.encode(deployment.manifest).decode(),
        deployment.created_at,
    )


def _from_row(row: Row) -> Deployment:
    function, version, kind, wasm_digest, artifact_key, bundle_digest, manifest, created_at = row
    return Deployment(
        function=function,
        version=version,
        kind=Kind(kind),
        wasm_digest=wasm_digest,
        artifact_key=artifact_key,
        bundle_digest=bundle_digest,
        manifest=msgspec.json.decode(manifest, type=Manifest),
        created_at=created_at,
    )
