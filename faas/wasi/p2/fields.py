"""``fields`` of ``wasi:http/types``: headers and trailers, in order and in their own spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from faas.errors import GuestTrapError
from faas.wasi.p2.outbound_types import HeaderList
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError

MAX_FIELDS: Final = 1000
MAX_FIELDS_BYTES: Final = 128 * 1024
"""Names and values together, of one ``fields``."""

FORBIDDEN: Final = frozenset(
    (
        "connection", "host", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
"""What a guest can neither set nor see, in lower case: the connection is the host's. The list is wasmtime's."""

# What most guests write: a look-up here saves a regular expression and a copy.
_COMMON: Final = frozenset(
    (
        "content-type", "Content-Type", "content-length", "Content-Length", "cache-control", "Cache-Control",
        "location", "Location", "accept", "Accept", "user-agent", "User-Agent", "server", "Server",
    )
)  # fmt: skip
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_bad_in_value = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search

_INVALID: Final = ("invalid-syntax", None)
_FORBIDDEN: Final = ("forbidden", None)
_IMMUTABLE: Final = ("immutable", None)


class Fields(Resource):
    """
    A header or trailer block: *entries* in order, names as they were given, compared without regard to case.

    An immutable one may share its list with others. It is no child of the message it came from: as in wasmtime, they
    may be dropped in any order.
    """

    __slots__ = ("entries", "mutable", "n_bytes")

    def __init__(self, entries: HeaderList, *, mutable: bool) -> None:
        # Not super().__init__: this is made for each request, and never has a parent.
        self.children = 0
        self.parent = None
        self.entries = entries
        self.mutable = mutable
        self.n_bytes = 0
        """Names and values together; counted only while mutable."""

    def grow(self, n_bytes: int, n_fields: int) -> None:
        """Count what is about to be added; raises GuestTrapError over the limits, since the WIT has no error for it."""
        n_bytes += self.n_bytes
        n_fields += len(self.entries)
        if n_bytes > MAX_FIELDS_BYTES or n_fields > MAX_FIELDS:
            raise GuestTrapError(
                f"the guest's headers came to {n_fields} fields of {n_bytes} bytes, more than {MAX_FIELDS} or "
                f"{MAX_FIELDS_BYTES} bytes; set fewer or shorter ones"
            )
        self.n_bytes = n_bytes

    def values(self, name: str) -> list[bytes]:
        """Return the values of *name* in order."""
        name = name.lower()
        return [value for key, value in self.entries if key.lower() == name]

    def remove(self, name: str) -> int | None:
        """Remove all values of *name*, and return where the first one was."""
        name = name.lower()
        first: int | None = None
        kept: HeaderList = []
        for index, entry in enumerate(self.entries):
            if entry[0].lower() != name:
                kept.append(entry)
                continue
            self.n_bytes -= len(entry[0]) + len(entry[1])
            if first is None:
                first = index
        if first is not None:
            self.entries = kept
        return first


def visible(entries: Iterable[tuple[str, bytes]]) -> HeaderList:
    """Return the headers that a guest may see: all but the forbidden ones, as wasmtime hides those."""
    return [entry for entry in entries if entry[0].lower() not in FORBIDDEN]


def content_length(entries: HeaderList) -> int | None:
    """Return what ``content-length`` says, None if there is none; raises ValueError if it makes no sense."""
    length: int | None = None
    for name, value in entries:
        if len(name) == 14 and name.lower() == "content-length":
            # int() takes signs, spaces and underscores too, which HTTP does not.
            if not value.isdigit() or len(value) > 19 or length not in (None, int(value)):
                raise ValueError(f"content-length: {value!r}")
            length = int(value)
    return length


def _n_bytes(entries: HeaderList) -> int:
    n_bytes = 0
    for name, value in entries:
        n_bytes += len(name) + len(value)
    return n_bytes


def _check_name(name: str) -> None:
    if name not in _COMMON:
        if not _is_token(name):
            raise WitError(_INVALID)
        if name.lower() in FORBIDDEN:
            raise WitError(_FORBIDDEN)


def _check_values(values: Iterable[bytes]) -> None:
    for value in values:
        if _bad_in_value(value):
            raise WitError(_INVALID)


def fields_new(_guest: Any) -> Fields:
    """Return new, empty, mutable fields."""
    return Fields([], mutable=True)


def fields_from_list(_guest: Any, entries: HeaderList) -> Fields:
    """
    Return new mutable fields of *entries*.

    Raises: WitError, a ``header-error``: ``invalid-syntax`` or ``forbidden``.
    """
    fields = Fields([], mutable=True)
    fields.grow(_n_bytes(entries), len(entries))
    for name, value in entries:
        _check_name(name)
        if _bad_in_value(value):
            raise WitError(_INVALID)
    fields.entries = entries
    return fields


def fields_get(_guest: Any, self: Fields, name: str) -> list[bytes]:
    """Return the values of *name* in order; none for a name that is no name."""
    return self.values(name)


def fields_has(_guest: Any, self: Fields, name: str) -> bool:
    """Return whether *name* has a value."""
    name = name.lower()
    return any(key.lower() == name for key, _ in self.entries)


def fields_set(_guest: Any, self: Fields, name: str, values: Sequence[bytes]) -> None:
    """
    Make *values* the only ones of *name*, where its first one was; no values delete it.

    Raises: WitError, a ``header-error``: syntax is checked first, then forbidden names, then mutability.
    """
    _check_name(name)
    _check_values(values)
    if not self.mutable:
        raise WitError(_IMMUTABLE)
    at = self.remove(name)
    self.grow(len(name) * len(values) + sum(map(len, values)), len(values))
    if at is None:
        at = len(self.entries)
    self.entries[at:at] = [(name, value) for value in values]


def fields_delete(_guest: Any, self: Fields, name: str) -> None:
    """Remove all values of *name*, if there are any; raises as ``set``."""
    _check_name(name)
    if not self.mutable:
        raise WitError(_IMMUTABLE)
    self.remove(name)


def fields_append(_guest: Any, self: Fields, name: str, value: bytes) -> None:
    """Add a value of *name* behind all fields; raises as ``set``."""
    _check_name(name)
    if _bad_in_value(value):
        raise WitError(_INVALID)
    if not self.mutable:
        raise WitError(_IMMUTABLE)
    self.grow(len(name) + len(value), 1)
    self.entries.append((name, value))


def fields_entries(_guest: Any, self: Fields) -> HeaderList:
    """Return all names, in the spelling they were given, and values, in order."""
    return self.entries


def fields_clone(_guest: Any, self: Fields) -> Fields:
    """Return a mutable copy."""
    clone = Fields([], mutable=True)
    clone.grow(_n_bytes(self.entries), len(self.entries))
    clone.entries = self.entries.copy()
    return clone


def take(fields: Fields) -> HeaderList:
    """Return what is in *fields*, which the guest gave away: nobody changes it any more."""
    fields.mutable = False
    return fields.entries


TYPES: Final[Mapping[str, ComponentFunction]] = {
    "[constructor]fields": ComponentFunction(fields_new),
    "[static]fields.from-list": ComponentFunction(fields_from_list),
    "[method]fields.get": ComponentFunction(fields_get),
    "[method]fields.has": ComponentFunction(fields_has),
    "[method]fields.set": ComponentFunction(fields_set),
    "[method]fields.delete": ComponentFunction(fields_delete),
    "[method]fields.append": ComponentFunction(fields_append),
    "[method]fields.entries": ComponentFunction(fields_entries),
    "[method]fields.clone": ComponentFunction(fields_clone),
}
