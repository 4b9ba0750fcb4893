"""What versions, aliases, rollbacks and canaries promise, on either database."""

from __future__ import annotations

import asyncio

import pytest

from faas.errors import (
    AliasNotFoundError,
    BadRequestError,
    CanaryNotFoundError,
    CanaryRunningError,
    FunctionNotFoundError,
    RouteTakenError,
    VersionInUseError,
    VersionNotFoundError,
)
from faas.invocation import Alias, Kind
from faas.manifest import manifest_from_builtins
from faas.state.base import CanaryPhase, CanaryPlan, NewVersion
from faas.state.state import State

PLAN = CanaryPlan(steps=(10.0, 100.0))


@pytest.fixture
def state(database):
    return State(database, database)


@pytest.fixture
def functions(state):
    return state.functions


def new(name="f", **manifest):
    return NewVersion(manifest_from_builtins({"name": name, **manifest}), Kind.COMMAND, "aa", "bb")


async def deployed(functions, n, name="f"):
    """Deploy *n* versions, the last of which is live."""
    for _ in range(n):
        await functions.add_version(new(name))


async def live(functions, name="f"):
    return (await functions.aliases(name))[0]


async def actions(state, name="f"):
    return [(entry.action, entry.actor) for entry in reversed(await state.audit.entries(name))]


# aliases


async def test_an_alias_names_a_version_beside_live(functions):
    await deployed(functions, 2)
    serving = await functions.set_alias(Alias("f", "beta", 1))
    assert serving.aliases == (Alias("f", "live", 2), Alias("f", "beta", 1))
    assert [d.version for d in serving.deployments] == [1, 2]


async def test_a_version_can_be_added_for_another_alias_or_for_none(functions):
    await deployed(functions, 1)
    second, serving = await functions.add_version(new(), alias="beta")
    assert serving.aliases == (Alias("f", "live", 1), Alias("f", "beta", second.version))
    _, serving = await functions.add_version(new(), alias="")
    assert [d.version for d in serving.deployments] == [1, 2]


async def test_a_first_version_that_nobody_would_reach_is_refused_whole(functions):
    for alias in ("beta", ""):
        with pytest.raises(BadRequestError, match="no version that serves yet"):
            await functions.add_version(new(), alias=alias)
    assert await functions.next_version("f") == 1


async def test_unknown_versions_aliases_and_functions_are_told_apart(functions):
    await deployed(functions, 1)
    with pytest.raises(VersionNotFoundError):
        await functions.set_alias(Alias("f", "beta", 7))
    with pytest.raises(AliasNotFoundError):
        await functions.remove_alias("f", "beta")
    for asked in (functions.aliases("g"), functions.set_alias(Alias("g", "beta", 1)), functions.rollback_target("g")):
        with pytest.raises(FunctionNotFoundError):
            await asked


async def test_live_can_not_be_removed_and_others_can(functions):
    await deployed(functions, 1)
    await functions.set_alias(Alias("f", "beta", 1))
    assert (await functions.remove_alias("f", "beta")).aliases == (Alias("f", "live", 1),)
    with pytest.raises(BadRequestError):
        await functions.remove_alias("f", "live")


async def test_a_function_keeps_the_routes_of_every_version_that_an_alias_names(functions):
    await functions.add_version(new("f", routes=["/old"]))
    await functions.add_version(new("f", routes=["/new"]))
    await functions.set_alias(Alias("f", "beta", 1))
    assert set((await functions.routes())["f"]) == {"/old", "/new"}
    with pytest.raises(RouteTakenError):
        await functions.add_version(new("g", routes=["/old"]))
    await functions.remove_alias("f", "beta")
    await functions.add_version(new("g", routes=["/old"]))
    with pytest.raises(RouteTakenError):
        await functions.set_alias(Alias("f", "beta", 1))
    with pytest.raises(RouteTakenError):
        await functions.rollback("f", expected=1)
    assert await live(functions) == Alias("f", "live", 2)


async def test_every_change_is_in_the_audit_log_with_who_did_it_and_a_refused_one_is_not(state, functions):
    await functions.add_version(new(), actor="ann")
    await functions.add_version(new(), actor="bob")
    await functions.set_alias(Alias("f", "live", 2, 1, 10.0, "cookie"), actor="cyd")
    with pytest.raises(VersionNotFoundError):
        await functions.set_alias(Alias("f", "live", 9), actor="eve")
    await functions.rollback("f", 1, expected=1, actor="dan")
    assert await actions(state) == [("deploy", "ann"), ("deploy", "bob"), ("traffic", "cyd"), ("rollback", "dan")]
    newest, before = await state.audit.entries("f", limit=2)
    assert newest.detail == {"version": 1, "before": {"2": 90.0, "1": 10.0}}
    assert before.detail["shares"] == {"2": 90.0, "1": 10.0}
    assert before.detail["sticky"] == "cookie"
    assert newest.at >= before.at > 1.7e9
    assert await state.audit.entries("g") == ()


# versions


async def test_versions_that_nothing_names_are_collected_but_for_the_newest(functions):
    await deployed(functions, 6)
    await functions.set_alias(Alias("f", "old", 1))
    assert await functions.collect(2, "f") == (("f", 3), ("f", 2))
    assert [d.version for d in await functions.versions("f")] == [6, 5, 4, 1]
    assert await functions.collect(2) == ()


async def test_both_versions_of_a_split_are_neither_collected_nor_removed(functions):
    await deployed(functions, 4)
    await functions.set_alias(Alias("f", "live", 4, 1, 10.0))
    assert await functions.collect(0) == (("f", 3), ("f", 2))
    for version in (1, 4):
        with pytest.raises(VersionInUseError):
            await functions.remove_version("f", version)


async def test_a_version_that_no_alias_names_can_be_removed_once(functions):
    await deployed(functions, 2)
    await functions.remove_version("f", 1)
    with pytest.raises(VersionNotFoundError):
        await functions.remove_version("f", 1)
    with pytest.raises(VersionNotFoundError):
        await functions.rollback_target("f")


# rollbacks


async def test_rollbacks_go_back_one_by_one_and_never_forth(functions):
    await deployed(functions, 3)
    assert (await functions.rollback("f", expected=2)).aliases == (Alias("f", "live", 2),)
    assert (await functions.rollback("f", expected=1)).aliases == (Alias("f", "live", 1),)
    with pytest.raises(VersionNotFoundError, match="no other version"):
        await functions.rollback("f", expected=2)


async def test_what_is_deployed_after_a_rollback_goes_back_to_what_served_before(functions):
    await deployed(functions, 3)
    await functions.rollback("f", expected=2)
    await functions.add_version(new())
    assert (await functions.rollback_target("f")).version == 2


async def test_rollback_of_a_split_leaves_the_older_way_alone(functions):
    await deployed(functions, 2)
    await functions.set_alias(Alias("f", "live", 2, 1, 50.0, "cookie"))
    assert (await functions.rollback("f", expected=2)).aliases == (Alias("f", "live", 2),)
    assert (await functions.rollback("f", expected=1)).aliases == (Alias("f", "live", 1),)


async def test_rollback_to_a_version_forgets_what_came_after_it(functions):
    await deployed(functions, 4)
    await functions.rollback("f", 2, expected=2)
    assert (await functions.rollback_target("f")).version == 1
    await functions.rollback("f", 4, expected=4)  # it was not live before 2: as any other change
    assert (await functions.rollback_target("f")).version == 2
    with pytest.raises(BadRequestError, match="live already"):
        await functions.rollback_target("f", 4)


async def test_rollback_to_something_else_than_was_prepared_is_refused(functions):
    await deployed(functions, 3)
    with pytest.raises(BadRequestError, match="changed meanwhile"):
        await functions.rollback("f", expected=1)
    assert await live(functions) == Alias("f", "live", 3)


async def test_collected_versions_are_no_rollback_targets(functions):
    await deployed(functions, 3)
    await functions.collect(1)
    assert (await functions.rollback_target("f")).version == 2
    await functions.rollback("f", expected=2)
    with pytest.raises(VersionNotFoundError):
        await functions.rollback_target("f")


# canaries


async def test_a_canary_goes_by_its_steps_and_survives_a_restart(open_database):
    database = await open_database()
    functions = State(database, database).functions
    await deployed(functions, 1)
    _, serving = await functions.add_version(new(), canary=PLAN, sticky="cookie")
    assert serving.aliases == (Alias("f", "live", 1, 2, 10.0, "cookie"),)
    (canary,) = serving.canaries
    assert (canary.version, canary.other, canary.step, canary.plan) == (1, 2, 0, PLAN)
    await database.aclose()
    database = await open_database()
    functions = State(database, database).functions
    assert (await functions.serving()).canaries == (canary,)
    serving = await functions.advance_canary(canary)
    assert serving.aliases == (Alias("f", "live", 1, 2, 100.0, "cookie"),)
    assert serving.canaries[0].step == 1
    await database.aclose()


@pytest.mark.parametrize(
    ("phase", "winner"), [(CanaryPhase.PROMOTED, 2), (CanaryPhase.ROLLED_BACK, 1), (CanaryPhase.ABORTED, 1)]
)
async def test_a_canary_that_ended_leaves_one_version(functions, phase, winner):
    await deployed(functions, 1)
    _, serving = await functions.add_version(new(), canary=PLAN)
    serving = await functions.end_canary(serving.canaries[0], phase, "because")
    assert (serving.aliases, serving.canaries) == ((Alias("f", "live", winner),), ())
    ended = await functions.canary("f")
    assert (ended.phase, ended.reason) == (phase, "because")
    if winner == 2:
        assert (await functions.rollback_target("f")).version == 1


async def test_the_first_version_of_a_function_needs_no_canary(functions):
    _, serving = await functions.add_version(new(), canary=PLAN)
    assert (serving.aliases, serving.canaries) == ((Alias("f", "live", 1),), ())


async def test_nothing_else_changes_the_traffic_of_a_running_canary_but_a_rollback_which_ends_it(functions):
    await deployed(functions, 2)
    await functions.start_canary("f", 1, PLAN)
    for change in (
        functions.add_version(new()),
        functions.set_alias(Alias("f", "live", 1)),
        functions.start_canary("f", 1, PLAN),
        functions.check_placement("f", "live"),
    ):
        with pytest.raises(CanaryRunningError):
            await change
    await functions.add_version(new(), alias="beta")
    assert (await functions.rollback("f", expected=2)).canaries == ()
    assert (await functions.canary("f")).phase is CanaryPhase.ROLLED_BACK
    assert await live(functions) == Alias("f", "live", 2)


async def test_a_canary_is_changed_once_by_who_comes_first(functions):
    await deployed(functions, 2)
    (canary,) = (await functions.start_canary("f", 1, PLAN)).canaries
    results = await asyncio.gather(
        functions.advance_canary(canary),
        functions.end_canary(canary, CanaryPhase.ROLLED_BACK, "late"),
        functions.end_canary(canary, CanaryPhase.ABORTED, "later"),
        return_exceptions=True,
    )
    assert sum(isinstance(result, CanaryNotFoundError) for result in results) == 2


async def test_a_canary_of_what_is_live_already_is_refused(functions):
    await deployed(functions, 1)
    with pytest.raises(BadRequestError):
        await functions.start_canary("f", 1, PLAN)


async def test_a_removed_function_leaves_no_alias_canary_or_history(functions):
    await deployed(functions, 3)
    await functions.start_canary("f", 1, PLAN)
    await functions.remove_function("f")
    await functions.add_version(new())
    serving = await functions.serving()
    assert (serving.aliases, serving.canaries) == ((Alias("f", "live", 4),), ())
    assert await functions.canary("f") is None
    with pytest.raises(VersionNotFoundError):
        await functions.rollback_target("f")
