"""Routes: what a pattern may look like, which one wins, and which two can't live together."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from faas.errors import ManifestError, MethodNotAllowedError, RouteNotFoundError, RouteTakenError
from faas.routes import RouteTable, parse_route, refuse_conflicts

literals = st.text("abcxyz019-._~", min_size=1, max_size=4)
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE"])
segments = literals | st.sampled_from(["{one}", "{two}", "{three}"])


@st.composite
def routes(draw: st.DrawFn) -> str:
    parts = draw(st.lists(segments, min_size=1, max_size=4, unique=True))
    tail = draw(st.sampled_from(["", "/*"]))
    listed = draw(st.lists(methods, max_size=2, unique=True))
    return (",".join(listed) + " " if listed else "") + "/" + "/".join(parts) + tail


# --- the pattern language --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "get /x",
        "GET,,POST /x",
        "GET POST /x",
        "/a/*/b",
        "/a*",
        "/{a}/{a}",
        "/{1a}",
        "/{a}b",
        "/{",
        "/a b",
        "/ä",
        "/_faas",
        "/_faas/health",
        "/v1/chat",
        "/a?b",
        "/a#b",
    ],
)
def test_a_malformed_route_is_refused_with_what_is_wrong(text: str) -> None:
    with pytest.raises(ManifestError, match="route"):
        parse_route(text)


def test_a_path_that_only_begins_like_a_reserved_one_is_fine() -> None:
    assert parse_route("/v1x").segments == ("v1x",)


@given(st.text(max_size=60))
def test_any_text_is_a_route_or_a_manifest_error(text: str) -> None:
    with contextlib.suppress(ManifestError):
        parse_route(text)


@given(routes())
def test_a_route_written_out_is_the_same_route(text: str) -> None:
    route = parse_route(text)
    assert parse_route(str(route)) == route


# --- matching --------------------------------------------------------------------------------------------------------


@given(literals, literals)
def test_exact_beats_parameter_beats_star(first: str, second: str) -> None:
    table = RouteTable([("/*", "star"), ("/{a}/{b}", "param"), (f"/{first}/{second}", "exact")])
    assert table.match("GET", f"/{first}/{second}")[0] == "exact"
    assert table.match("GET", f"/{first}/{second}!")[0] == "param"
    assert table.match("GET", f"/{first}/{second}/more")[0] == "star"


@given(st.permutations(["/*", "/a/*", "/a/{b}", "/a/b", "/{x}/b"]))
def test_the_order_of_deploys_does_not_matter(order: list[str]) -> None:
    table = RouteTable((route, route) for route in order)
    found = [table.match("GET", path)[0] for path in ("/a/b", "/a/c", "/c/b", "/a", "/a/b/c", "/q")]
    assert found == ["/a/b", "/a/{b}", "/{x}/b", "/a/*", "/a/*", "/*"]


def test_a_dead_end_below_a_literal_goes_back_to_the_parameter() -> None:
    table = RouteTable([("/a/b/c", 1), ("/{x}/b/d", 2)])
    assert table.match("GET", "/a/b/d") == (2, {"x": "a"}, parse_route("/{x}/b/d"))


def test_parameters_are_given_as_received() -> None:
    assert RouteTable([("/{a}/x/{b}", 1)]).match("GET", "/1%2F2/x/%20")[1] == {"a": "1%2F2", "b": "%20"}


def test_a_parameter_takes_no_empty_segment() -> None:
    with pytest.raises(RouteNotFoundError):
        RouteTable([("/a/{b}", 1)]).match("GET", "/a/")


def test_a_star_takes_also_nothing() -> None:
    table = RouteTable([("/a/*", 1)])
    assert [table.match("GET", path)[0] for path in ("/a", "/a/", "/a/b/c")] == [1, 1, 1]


def test_the_root_is_a_path_like_others() -> None:
    assert RouteTable([("/", 1)]).match("GET", "/")[0] == 1


def test_a_trailing_slash_is_another_path() -> None:
    with pytest.raises(RouteNotFoundError):
        RouteTable([("/a", 1)]).match("GET", "/a/")


@pytest.mark.parametrize("order", [1, -1])
def test_a_route_that_lists_the_method_beats_one_that_takes_all(order: int) -> None:
    table = RouteTable([("/a", "any"), ("GET /a", "get")][::order])
    assert table.match("GET", "/a")[0] == "get"
    assert table.match("POST", "/a")[0] == "any"


def test_a_method_of_ones_own_making_is_served_by_a_route_that_takes_all() -> None:
    assert RouteTable([("/a", 1)]).match("BREW", "/a")[0] == 1


def test_a_wrong_method_is_told_with_all_that_would_do() -> None:
    table = RouteTable([("GET,PUT /a", 1), ("POST /a", 2), ("DELETE /{x}", 3)])
    with pytest.raises(MethodNotAllowedError) as raised:
        table.match("PATCH", "/a")
    assert raised.value.facts["allow"] == ["DELETE", "GET", "POST", "PUT"]


@given(st.lists(routes(), max_size=6), methods, st.lists(literals, min_size=1, max_size=5))
def test_a_match_is_always_a_route_that_fits(texts: list[str], method: str, parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    fitting = [text for text in texts if _fits(text, method, parts)]
    try:
        found = RouteTable((text, text) for text in texts).match(method, path)[0]
    except (RouteNotFoundError, MethodNotAllowedError):
        assert not fitting
    else:
        assert found in fitting


def _fits(text: str, method: str, parts: list[str]) -> bool:
    route = parse_route(text)
    if route.methods and method not in route.methods:
        return False
    if len(parts) < len(route.segments) or (len(parts) > len(route.segments) and not route.trailing):
        return False
    return all(want.startswith("{") or want == part for want, part in zip(route.segments, parts, strict=False))


# --- conflicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ("/a", "/a"),
        ("/a/{x}", "/a/{y}"),
        ("/a/*", "/a/*"),
        ("GET /a", "GET,POST /a"),
        ("GET /a", "GET /a"),
        ("GET /a", "/a"),
        ("/a", "GET /a"),
    ],
)
def test_two_functions_cannot_have_the_same_route(wanted: str, taken: str) -> None:
    with pytest.raises(RouteTakenError, match="'other'") as raised:
        refuse_conflicts("mine", [wanted], {"other": [taken]})
    assert raised.value.facts["owner"] == "other"


@pytest.mark.parametrize(("wanted", "taken"), [("/a", "/a/*"), ("/a/{x}", "/a/b"), ("GET /a", "POST /a"), ("/a", "/A")])
def test_routes_that_one_can_tell_apart_live_together(wanted: str, taken: str) -> None:
    refuse_conflicts("mine", [wanted], {"other": [taken]})


def test_a_function_may_keep_its_own_routes() -> None:
    refuse_conflicts("mine", ["/a", "/b"], {"mine": ["/a"], "other": ["/c"]})


def test_a_function_may_list_a_method_apart_from_the_rest() -> None:
    refuse_conflicts("mine", ["GET /a", "/a"], {})


def test_a_function_cannot_name_one_route_twice() -> None:
    with pytest.raises(RouteTakenError):
        refuse_conflicts("mine", ["/a/{x}", "/a/{y}"], {})


@given(routes(), routes())
def test_conflicts_are_mutual(one: str, two: str) -> None:
    def refused(wanted: str, taken: str) -> bool:
        try:
            refuse_conflicts("mine", [wanted], {"other": [taken]})
        except RouteTakenError:
            return True
        return False

    assert refused(one, two) == refused(two, one)


@given(routes(), routes(), st.lists(literals, min_size=1, max_size=5), methods)
def test_routes_without_conflict_give_an_answer_that_is_not_a_matter_of_order(
    one: str, two: str, parts: list[str], method: str
) -> None:
    try:
        refuse_conflicts("mine", [one], {"other": [two]})
    except RouteTakenError:
        assume(False)
    path = "/" + "/".join(parts)

    def winner(*entries: str) -> str:
        try:
            return RouteTable((text, text) for text in entries).match(method, path)[0]
        except (RouteNotFoundError, MethodNotAllowedError):
            return ""

    assert winner(one, two) == winner(two, one)


@given(st.lists(routes(), max_size=8), st.data())
def test_a_table_that_changed_answers_like_one_that_was_made_so(texts: list[str], data: st.DataObject) -> None:
    kept: list[str] = []
    for text in texts:
        try:
            refuse_conflicts("mine", [text], {"other": kept})
        except RouteTakenError:
            continue
        kept.append(text)
    table = RouteTable((text, text) for text in kept)
    gone = data.draw(st.sets(st.sampled_from(kept))) if kept else set()
    for text in sorted(gone):
        table.remove(parse_route(text), text)
    fresh = RouteTable((text, text) for text in kept if text not in gone)

    def answer(table: RouteTable[str], method: str, path: str) -> object:
        try:
            return table.match(method, path)
        except (RouteNotFoundError, MethodNotAllowedError) as exc:
            return exc.code, exc.facts

    for method in ("GET", "HEAD", "POST", "PURGE"):
        for path in (*(parse_route(text).path for text in kept), "/", "/a/b/c"):
            assert answer(table, method, path) == answer(fresh, method, path)


def test_removing_every_route_leaves_an_empty_table() -> None:
    texts = ["/a", "GET /a/{x}/b", "/a/{x}/*", "/*", "/a/c/d"]
    table = RouteTable((text, text) for text in texts)
    for text in texts:
        table.remove(parse_route(text), text)
    assert not table._root.in_use
    assert not table._exact


@pytest.mark.parametrize("text", ["/b", "/a/b", "GET /a", "/a/{x}", "/a/*"])
def test_a_route_that_is_not_there_cannot_be_removed(text: str) -> None:
    table = RouteTable([("/a", "a")])
    with pytest.raises(KeyError):
        table.remove(parse_route(text), "a")
    assert table.match("GET", "/a")[0] == "a"
