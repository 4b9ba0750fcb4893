"""
Routes: the pattern language of manifests, its conflicts, and a table that finds the most specific match.

A route is ``[METHOD[,METHOD] ]/path``; a segment is literal, ``{param}`` (one segment) or, at the end, ``*``
(the rest of the path, also none of it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from faas.errors import ManifestError, MethodNotAllowedError, RouteNotFoundError, RouteTakenError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
RESERVED_PREFIXES = ("/_faas", "/v1")

_METHOD = re.compile(r"[A-Z]+")
_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9\-._~!$&'()+,;=:@%]*")

T = TypeVar("T")


class Route(msgspec.Struct, frozen=True):
    """One parsed route; ``methods`` empty means every method."""

    path: str
    segments: tuple[str, ...]
    methods: frozenset[str] = frozenset()
    trailing: bool = False

    @property
    def shape(self) -> tuple[str, ...]:
        """The segments with every parameter name blotted out: two routes of one shape match the same paths."""
        shape = tuple("{}" if _PARAM.fullmatch(segment) else segment for segment in self.segments)
        return (*shape, "*") if self.trailing else shape

    def __str__(self) -> str:
        methods = ",".join(sorted(self.methods))
        return f"{methods} {self.path}" if methods else self.path


def parse_route(text: str) -> Route:
    """
    Return the route that *text* writes down.

    Raises: ManifestError, naming the part that is wrong.
    """
    method_part, _, path = text.strip().rpartition(" ")
    methods = frozenset(part.strip() for part in method_part.split(",")) if method_part else frozenset()
    for method in methods:
        if not _METHOD.fullmatch(method):
            raise ManifestError(f"route {text!r}: {method!r} is no HTTP method; write e.g. 'GET,POST /path'")
    if not path.startswith("/"):
        raise ManifestError(f"route {text!r} must begin with '/'; write e.g. '/{path}'")
    if path in RESERVED_PREFIXES or path.startswith(tuple(prefix + "/" for prefix in RESERVED_PREFIXES)):
        raise ManifestError(
            f"route {text!r} is under a path the host keeps for itself ({', '.join(RESERVED_PREFIXES)})"
        )
    segments = path[1:].split("/")
    trailing = segments[-1] == "*"
    if trailing:
        segments = segments[:-1]
    names: set[str] = set()
    for segment in segments:
        param = _PARAM.fullmatch(segment)
        if param:
            if param[1] in names:
                raise ManifestError(f"route {text!r} names the parameter {param[1]!r} twice; rename one")
            names.add(param[1])
        elif "*" in segment:
            raise ManifestError(f"route {text!r}: '*' may only be the last segment")
        elif not _LITERAL.fullmatch(segment):
            raise ManifestError(f"route {text!r}: segment {segment!r} is neither a literal path segment nor {{param}}")
    return Route(path=path, segments=tuple(segments), methods=methods, trailing=trailing)


def refuse_conflicts(name: str, wanted: Iterable[str], taken: Mapping[str, Iterable[str]]) -> None:
    """
    Raise RouteTakenError if a route of *wanted* matches exactly what a route of another function matches.

    Args: *taken* maps the names of deployed functions to their routes; *name*'s own entry is ignored.
    Two routes of one shape conflict when a method is in both; a route that lists none takes them all.
    """
    claims: dict[tuple[str, ...], list[tuple[str, Route]]] = {}
    for owner, routes in taken.items():
        if owner != name:
            for text in routes:
                route = parse_route(text)
                claims.setdefault(route.shape, []).append((owner, route))
    for text in wanted:
        route = parse_route(text)
        for owner, other in claims.get(route.shape, []):
            # One function may list methods apart and take the rest by another route; two functions may not.
            same = owner == name and route.methods != other.methods
            if not same and (not route.methods or not other.methods or route.methods & other.methods):
                raise RouteTakenError(
                    f"route {text!r} is already taken by function {owner!r} ({other}); "
                    f"choose another route, or remove it first: faas remove {owner}",
                    route=text,
                    owner=owner,
                )
        claims.setdefault(route.shape, []).append((name, route))


class _Node(Generic[T]):
    """One level of the tree: literal children before the parameter before the rest."""

    __slots__ = ("here", "literals", "param", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.param: _Node[T] | None = None
        self.here: list[tuple[Route, T]] = []
        self.rest: list[tuple[Route, T]] = []


class RouteTable(Generic[T]):
    """
    A frozen set of routes; ``match`` finds the most specific one.

    Literal segments win over parameters, parameters over a trailing ``*``, from left to right; of two routes of one
    shape the one that lists the method wins over the one that takes all. Who answers GET answers HEAD.
    """

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._root: _Node[T] = _Node()
        self._exact: dict[tuple[str, str], tuple[T, dict[str, str], Route]] = {}
        parsed = [(parse_route(text), target) for text, target in entries]
        # Routes that list methods first: theirs are set before a route that takes all fills what is left.
        for route, target in sorted(parsed, key=lambda entry: not entry[0].methods):
            self._add(route, target)

    def _add(self, route: Route, target: T) -> None:
        node = self._root
        for segment in route.segments:
            if _PARAM.fullmatch(segment):
                if node.param is None:
                    node.param = _Node()
                node = node.param
            else:
                node = node.literals.setdefault(segment, _Node())
        bucket = node.rest if route.trailing else node.here
        bucket.append((route, target))
        bucket.sort(key=lambda entry: not entry[0].methods)
        if not route.trailing and not any(_PARAM.fullmatch(segment) for segment in route.segments):
            # The plain case is one dict look-up: an exact path is always the most specific match there is.
            for method in route.methods:
                self._exact[method, route.path] = (target, {}, route)
            if "GET" in route.methods:
                self._exact.setdefault(("HEAD", route.path), (target, {}, route))
            if not route.methods:
                for method in METHODS:
                    self._exact.setdefault((method, route.path), (target, {}, route))

    def match(self, method: str, path: str) -> tuple[T, dict[str, str], Route]:
        """
        Return the target, the path parameters (percent-encoded as received) and the route for a request.

        Raises: RouteNotFoundError; MethodNotAllowedError if only other methods are served there.
        """
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        allowed: set[str] = set()
        found = self._walk(self._root, path[1:].split("/"), 0, method, allowed)
        if found is not None:
            route, target = found
            segments = path[1:].split("/")
            params = {segment[1:-1]: segments[i] for i, segment in enumerate(route.segments) if segment.startswith("{")}
            return target, params, route
        if allowed:
            raise MethodNotAllowedError(
                f"{path} answers {', '.join(sorted(allowed))}, not {method}", allow=sorted(allowed)
            )
        raise RouteNotFoundError(f"no function answers on {path}; 'faas list' shows the routes that are served")

    def _walk(
        self, node: _Node[T], segments: list[str], depth: int, method: str, allowed: set[str]
    ) -> tuple[Route, T] | None:
        if depth == len(segments):
            found = self._pick(node.here, method, allowed)
            return found if found is not None else self._pick(node.rest, method, allowed)
        child = node.literals.get(segments[depth])
        if child is not None:
            found = self._walk(child, segments, depth + 1, method, allowed)
            if found is not None:
                return found
        if node.param is not None and segments[depth]:
            found = self._walk(node.param, segments, depth + 1, method, allowed)
            if found is not None:
                return found
        return self._pick(node.rest, method, allowed)

    @staticmethod
    def _pick(bucket: list[tuple[Route, T]], method: str, allowed: set[str]) -> tuple[Route, T] | None:
        for route, target in bucket:
            if not route.methods or method in route.methods or (method == "HEAD" and "GET" in route.methods):
                return route, target
            allowed |= route.methods
        return None
