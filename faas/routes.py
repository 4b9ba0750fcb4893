"""
Routes: the pattern language of manifests, its conflicts, and a table that finds the most specific match.

A route is ``[METHOD[,METHOD] ]/path``; a segment is literal, ``{param}`` (one segment) or, at the end, ``*``
(the rest of the path, also none of it).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from faas.errors import ManifestError, MethodNotAllowedError, RouteNotFoundError, RouteTakenError

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
    def has_params(self) -> bool:
        """Whether a segment stands for any text."""
        return "{" in self.path  # no literal segment may hold one

    @property
    def shape(self) -> tuple[str, ...]:
        """The segments with every parameter name blotted out: two routes of one shape match the same paths."""
        if not self.has_params:
            return (*self.segments, "*") if self.trailing else self.segments
        shape = tuple("{}" if _PARAM.fullmatch(segment) else segment for segment in self.segments)
        return (*shape, "*") if self.trailing else shape

    def __str__(self) -> str:
        methods = ",".join(sorted(self.methods))
        return f"{methods} {self.path}" if methods else self.path


@functools.lru_cache(maxsize=16_384)  # every deploy looks at the routes of all functions again
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

    @property
    def in_use(self) -> bool:
        """Whether a route ends here or below."""
        return bool(self.literals or self.param or self.here or self.rest)


def _by_method(bucket: list[tuple[Route, T]]) -> dict[str, tuple[T, dict[str, str], Route]]:
    """Return who answers which method among routes of one path, those that list methods first; '' for the others."""
    found: dict[str, tuple[T, dict[str, str], Route]] = {}
    for route, target in bucket:
        match: tuple[T, dict[str, str], Route] = (target, {}, route)
        for method in route.methods:
            found[method] = match
        if "GET" in route.methods:
            found.setdefault("HEAD", match)
        if not route.methods:
            found.setdefault("", match)
    return found


class RouteTable(Generic[T]):
    """
    Routes and their targets; ``match`` finds the most specific one, ``add`` and ``remove`` cost what one route costs.

    Literal segments win over parameters, parameters over a trailing ``*``, from left to right; of two routes of one
    shape the one that lists the method wins over the one that takes all. Who answers GET answers HEAD.
    """

    def __init__(self, entries: Iterable[tuple[str, T]] = ()) -> None:
        self._root: _Node[T] = _Node()
        # The plain case is two dict look-ups: an exact path is always the most specific match there is.
        # Path → method → match; '' stands for every method that is not there.
        self._exact: dict[str, dict[str, tuple[T, dict[str, str], Route]]] = {}
        for text, target in entries:
            self.add(parse_route(text), target)

    def add(self, route: Route, target: T) -> None:
        """Have *target* answer on *route*; its conflicts are the caller's to refuse (``refuse_conflicts``)."""
        node = self._root
        for segment in route.segments:
            if segment.startswith("{"):
                if node.param is None:
                    node.param = _Node()
                node = node.param
            else:
                node = node.literals.setdefault(segment, _Node())
        bucket = node.rest if route.trailing else node.here
        bucket.append((route, target))
        if len(bucket) > 1:
            bucket.sort(key=lambda entry: not entry[0].methods)
        if not route.trailing and not route.has_params:
            self._exact[route.path] = _by_method(bucket)

    def remove(self, route: Route, target: T) -> None:
        """Undo ``add`` with the very same *target*; raises KeyError if nothing was added so."""
        way: list[tuple[_Node[T], str]] = []
        node = self._root
        for segment in route.segments:
            way.append((node, segment))
            child = node.param if segment.startswith("{") else node.literals.get(segment)
            if child is None:
                raise KeyError(str(route))
            node = child
        bucket = node.rest if route.trailing else node.here
        kept = [entry for entry in bucket if entry[1] is not target or entry[0] != route]
        if len(kept) == len(bucket):
            raise KeyError(str(route))
        bucket[:] = kept
        if not route.trailing and not route.has_params:
            if kept:
                self._exact[route.path] = _by_method(kept)
            else:
                del self._exact[route.path]
        for parent, segment in reversed(way):
            child = parent.param if segment.startswith("{") else parent.literals[segment]
            if child is None or child.in_use:
                return
            if segment.startswith("{"):
                parent.param = None
            else:
                del parent.literals[segment]

    def match(self, method: str, path: str) -> tuple[T, dict[str, str], Route]:
        """
        Return the target, the path parameters (percent-encoded as received) and the route for a request.

        Raises: RouteNotFoundError; MethodNotAllowedError if only other methods are served there.
        """
        by_method = self._exact.get(path)
        if by_method is not None:
            exact = by_method.get(method) or by_method.get("")
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
