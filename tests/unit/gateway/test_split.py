"""Splits give each version its part, keep clients on their side, and cost others nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.clock import SystemClock
from faas.errors import (
    AliasNotFoundError,
    FunctionNotFoundError,
    MethodNotAllowedError,
    RouteNotFoundError,
    VersionNotFoundError,
)
from faas.gateway.admission import Admission
from faas.gateway.live import MAX_VISITORS, LiveTable
from faas.gateway.split import Choice, common_path
from faas.gateway.warm import WarmPools
from faas.invocation import Alias, Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.routes import parse_route


def split(weight: float = 10.0, sticky: str = "", name: str = "f") -> Alias:
    return Alias(name, "live", 1, 2, weight, sticky)


class Codes:
    """A code cache of which only what is to stay matters."""

    on_drop: Any = None
    kept: frozenset[Any] = frozenset()

    async def acquire(self, _deployment: Deployment) -> None:
        return

    def release(self, _code: None) -> None:
        return

    def keep_only(self, keys: set[Any]) -> None:
        self.kept = frozenset(keys)


def deployment(version: int, name: str = "f", **manifest: Any) -> Deployment:
    key = f"{name}{version}".ljust(64, "0")
    return Deployment(name, version, Kind.COMMAND, key, key, "", manifest_from_builtins({"name": name, **manifest}))


class Worker:
    """A live table and what it changes."""

    def __init__(self) -> None:
        self.codes: Any = Codes()
        self.admission = Admission(8, max_queue=8, queue_timeout_s=1)
        runtime: Any = None  # nothing is run
        warm = WarmPools(
            runtime,
            self.codes,
            self.admission,
            SystemClock(),
            n_workers=1,
            at_once=1,
            budget_bytes=1,
            prepare_timeout_s=1,
            on_line=lambda *_: None,
        )
        self.table = LiveTable(runtime, self.codes, self.admission, warm, n_workers=1, start_timeout_s=1)

    def serve(self, *deployments: Deployment, aliases: tuple[Alias, ...] = ()) -> None:
        self.table.replace(self.table.generation + 1, deployments, aliases)

    async def prepare(self, prepared: Deployment) -> None:
        """Prepare a version, without the trial instance."""

        async def try_nothing(*_: Any) -> None:
            return

        self.table._try = try_nothing  # type: ignore[method-assign]
        await self.table.prepare(prepared)

    def version(self, path: str = "/f", **headers: str) -> int:
        """Return which version answers GET *path*."""
        lower = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.table.match("GET", path, lower)[0].version


@pytest.fixture
def worker() -> Worker:
    return Worker()


# the choice


@pytest.mark.parametrize("weight", [0.5, 1.0, 10.0, 50.0, 99.0])
@pytest.mark.parametrize("every", [1, 2, 7])
def test_shares_are_exact_also_among_every_other_request(weight: float, every: int) -> None:
    choice = Choice(split(weight))
    picked = [choice.pick({})[0] for _ in range(2000 * every)][::every]
    assert abs(100 * sum(picked) / len(picked) - weight) <= 0.3


def test_ten_percent_of_few_requests_is_one_in_ten() -> None:
    choice = Choice(split(10.0))
    assert all(1 <= sum(choice.pick({})[0] for _ in range(20)) <= 3 for _ in range(100))


@given(client=st.text(min_size=1), weights=st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_a_known_client_never_goes_back_while_the_weight_grows(client: str, weights: list[float]) -> None:
    sides = [Choice(split(weight, "header:X-User")).pick({"x-user": client})[0] for weight in sorted(weights)]
    assert sides == sorted(sides)


def test_clients_known_by_a_header_share_out_by_weight_and_others_take_turns() -> None:
    choice = Choice(split(20.0, "header:X-User"))
    known = [choice.pick({"x-user": f"user {n}"})[0] for n in range(3000)]
    assert abs(sum(known) / 3000 - 0.2) < 0.03
    assert 390 <= sum(choice.pick({})[0] for _ in range(2000)) <= 410


def test_another_pair_of_versions_is_tried_by_other_clients_first() -> None:
    first, second = Choice(split()), Choice(Alias("f", "live", 2, 3, 10.0, "header:x"))
    assert any(first.point_of(f"{n}") != second.point_of(f"{n}") for n in range(3))


def test_a_cookie_is_set_once_and_decides_from_then_on() -> None:
    choice = Choice(split(50.0, "cookie"), [parse_route("/f/*")])
    sides = set()
    for _ in range(40):
        is_other, cookie = choice.pick({})
        value, _, rest = cookie.partition(";")
        assert rest == " Path=/f; HttpOnly; SameSite=Lax"
        for jar in (value, f"a=b; {value}", f"{value}; c=d"):
            assert choice.pick({"cookie": jar}) == (is_other, "")
        sides.add(is_other)
    assert sides == {True, False}


def test_a_cookie_of_another_function_or_alias_does_not_count() -> None:
    cookie = Choice(split(50.0, "cookie", "g")).pick({})[1].partition(";")[0]
    assert Choice(split(50.0, "cookie")).pick({"cookie": cookie})[1]
    beta = Alias("f", "beta", 1, 2, 50.0, "cookie")
    assert Choice(beta).pick({"cookie": Choice(split(50.0, "cookie")).pick({})[1].partition(";")[0]})[1]


@pytest.mark.parametrize(
    ("routes", "path"),
    [
        (["/f"], "/f"),
        (["/f", "/f/*"], "/f"),
        (["GET /api/v1/users/{id}", "/api/v1/teams"], "/api/v1"),
        (["/{all}"], "/"),
        (["/a", "/b"], "/"),
        (["/a;b/c"], "/a"),
        ([], "/"),
    ],
)
def test_the_cookie_is_for_the_path_that_all_routes_are_below(routes: list[str], path: str) -> None:
    assert common_path(map(parse_route, routes)) == path


# the live table


def test_a_function_without_aliases_serves_its_only_version_by_itself(worker: Worker) -> None:
    worker.serve(deployment(3))
    served, _, _ = worker.table.match("GET", "/f")
    assert (served.version, served.split) == (3, None)
    assert worker.table.split_versions() == frozenset()


def test_live_names_its_version_also_where_a_higher_one_is_there(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(2), aliases=(Alias("f", "live", 1), Alias("f", "beta", 2)))
    assert (worker.version(), worker.version(x_faas_alias="beta"), worker.version(x_faas_alias="live")) == (1, 2, 1)


def test_an_unknown_alias_is_not_found_and_a_version_number_is_no_alias(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(9, "g"), aliases=(Alias("g", "live", 9), Alias("g", "beta", 9)))
    for alias in ("nope", "1", "", "beta"):
        with pytest.raises(AliasNotFoundError):
            worker.version(x_faas_alias=alias)
    with pytest.raises(RouteNotFoundError):
        worker.version("/h", x_faas_alias="nope")


def test_an_alias_answers_on_the_routes_of_its_own_version(worker: Worker) -> None:
    old, new = deployment(1, routes=["/f", "/old/{a}"]), deployment(2, routes=["/f", "POST /new", "/old/{b}"])
    worker.serve(old, new, aliases=(Alias("f", "live", 1), Alias("f", "beta", 2)))
    assert worker.table.match("POST", "/new", {"x-faas-alias": "beta"})[0].version == 2
    assert worker.table.match("GET", "/old/x", {"x-faas-alias": "beta"})[1] == {"b": "x"}
    with pytest.raises(RouteNotFoundError):
        worker.table.match("POST", "/new")
    worker.serve(old, new, aliases=(Alias("f", "live", 2), Alias("f", "beta", 1)))
    with pytest.raises(RouteNotFoundError):
        worker.table.match("POST", "/new", {"x-faas-alias": "beta"})


def test_a_split_shares_out_common_routes_and_leaves_each_version_its_own(worker: Worker) -> None:
    old, new = deployment(1, routes=["/f", "/old"]), deployment(2, routes=["/f", "/new/{id}"])
    worker.serve(old, new, aliases=(split(25.0),))
    counted = Counter(worker.version() for _ in range(400))
    assert 98 <= counted[2] <= 102
    assert {worker.version("/old") for _ in range(50)} == {1}
    assert {worker.version("/new/x") for _ in range(50)} == {2}
    assert worker.table.match("GET", "/new/x", {})[1] == {"id": "x"}
    with pytest.raises(RouteNotFoundError):
        worker.version("/other")
    assert worker.table.split_versions() == {("f", 1), ("f", 2)}


def test_a_method_that_only_one_version_answers_goes_there(worker: Worker) -> None:
    worker.serve(deployment(1, routes=["GET /f"]), deployment(2, routes=["GET,POST /f"]), aliases=(split(50.0),))
    assert {worker.table.match("POST", "/f", {})[0].version for _ in range(20)} == {2}
    assert {worker.version() for _ in range(20)} == {1, 2}
    with pytest.raises(MethodNotAllowedError):
        worker.table.match("PUT", "/f", {})


def test_only_the_reply_that_needs_it_sets_a_cookie(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(2), aliases=(split(50.0, "cookie"),))
    served, _, _ = worker.table.match("GET", "/f", {})
    cookie = served.headers["Set-Cookie"].partition(";")[0]
    again, _, _ = worker.table.match("GET", "/f", {"cookie": cookie})
    assert again.version == served.version
    assert "Set-Cookie" not in again.headers
    assert served.permits is again.permits


def test_both_versions_share_the_permits_of_the_one_that_gets_more(worker: Worker) -> None:
    small, large = (deployment(n, limits={"max_concurrency": n}) for n in (1, 2))
    for weight, limit in ((10.0, 1), (50.0, 1), (51.0, 2), (100.0, 2)):
        worker.serve(small, large, aliases=(split(weight),))
        found = {worker.table.resolve("f", version).permits for version in ("1", "2")}
        assert [permits.limit for permits in found] == [limit]


def test_a_changed_weight_touches_neither_versions_nor_what_was_prepared(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(2), aliases=(split(10.0),))
    before = worker.table.resolve("f", "2")
    worker.table._prepared["g", 1] = type(before)(deployment(1, "g"))
    worker.serve(deployment(1), deployment(2), aliases=(split(90.0),))
    assert worker.table.resolve("f", "2") is before
    assert ("g", 1) in worker.table._prepared
    worker.serve(deployment(1), deployment(2), deployment(1, "h"), aliases=(split(90.0),))
    assert worker.table._prepared == {}


def test_the_end_of_a_split_leaves_nothing_of_the_other_version(worker: Worker) -> None:
    worker.serve(deployment(1, routes=["/f"]), deployment(2, routes=["/f", "/new"]), aliases=(split(),))
    worker.serve(deployment(1, routes=["/f"]))
    assert {worker.version() for _ in range(20)} == {1}
    with pytest.raises(RouteNotFoundError):
        worker.version("/new")
    with pytest.raises(VersionNotFoundError):
        worker.table.resolve("f", "2")
    assert len(worker.codes.kept) == 1
    worker.serve()
    with pytest.raises(FunctionNotFoundError):
        worker.table.resolve("f", "")


def test_resolve_goes_by_alias_and_number(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(2), aliases=(split(25.0), Alias("f", "beta", 2)))
    assert 98 <= sum(worker.table.resolve("f", "").version == 2 for _ in range(400)) <= 102
    assert worker.table.resolve("f", "beta").version == 2
    assert worker.table.resolve("f", "1").version == 1
    for unknown, error in (("nope", AliasNotFoundError), ("7", VersionNotFoundError), ("²", AliasNotFoundError)):
        with pytest.raises(error):
            worker.table.resolve("f", unknown)


def test_versions_that_visit_are_at_hand_until_others_took_their_place(worker: Worker) -> None:
    worker.serve(deployment(100))
    for version in range(1, MAX_VISITORS + 2):
        worker.table.visit(deployment(version))
    assert worker.table.resolve("f", str(MAX_VISITORS + 1)).permits is worker.table.resolve("f", "").permits
    with pytest.raises(VersionNotFoundError):
        worker.table.resolve("f", "1")
    worker.table.visit(deployment(100))
    assert worker.table.resolve("f", "2").version == 2  # who is served already is no visitor
    with pytest.raises(FunctionNotFoundError):
        worker.table.visit(deployment(1, "g"))
    assert worker.version() == 100


def test_a_visitor_goes_by_what_is_set_for_its_function_now(worker: Worker) -> None:
    worker.serve(deployment(2))
    worker.table.visit(deployment(1))
    worker.table.visit(deployment(1, env={"MODE": "set"}))
    assert worker.table.resolve("f", "1").deployment.manifest.env == {"MODE": "set"}


async def test_what_is_served_is_what_was_told_and_not_what_was_prepared_under_its_number(worker: Worker) -> None:
    worker.serve(deployment(1))
    await worker.prepare(deployment(2, limits={"timeout_s": 5}))  # another host was first to give the number away
    worker.serve(deployment(2, limits={"timeout_s": 9}))
    assert worker.table.resolve("f", "").deployment.manifest.limits.timeout_s == 9


async def test_the_end_of_a_canary_leaves_what_a_deploy_has_prepared(worker: Worker) -> None:
    worker.serve(deployment(1), deployment(2), aliases=(split(25.0),))
    await worker.prepare(deployment(3))
    worker.serve(deployment(1))
    assert len(worker.codes.kept) == 2
