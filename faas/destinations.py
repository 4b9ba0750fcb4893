"""
Destinations: what a manifest's ``capabilities.outbound`` lets a function reach, and whether a URL is among it.

An entry is ``[scheme://]host[:port]``; the host is a name, an address, ``*.`` and a domain (every name below it), or
``*``. Without a scheme it means http and https, without a port the scheme's own; ``*`` alone means everything.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from faas.errors import ManifestError

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_NAME_CHARS = 253

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_AUTHORITY = re.compile(r"(\[[^\[\]/@]*\]|[^\[\]/@:]*)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_\-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Destination(NamedTuple):
    """One parsed entry; ``host`` is ``""`` for every host, and ``.example.org`` for all names below that domain."""

    scheme: str
    host: str
    port: int | None
    any_port: bool = False

    @property
    def literal(self) -> bool:
        """Whether it names one host, by its name or address."""
        return bool(self.host) and not self.host.startswith(".")

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Whether a request to that place is allowed; *host* is as ``parse_host`` returns it."""
        if self.scheme and scheme != self.scheme:
            return False
        if not self.any_port and port != (DEFAULT_PORTS.get(scheme) if self.port is None else self.port):
            return False
        if not self.host or host == self.host:
            return True
        return self.host.startswith(".") and host.endswith(self.host)


class AllowList:
    """What one version of a function may reach; lives as long as somebody holds it."""

    __slots__ = ("_destinations",)

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises: ManifestError, naming the entry that is wrong."""
        self._destinations = tuple(parse_destination(entry) for entry in entries)

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Whether any entry covers that place."""
        return any(entry.covers(scheme, host, port) for entry in self._destinations)

    def names(self, scheme: str, host: str, port: int) -> bool:
        """Whether an entry names that very host, without a wildcard."""
        return any(entry.literal and entry.covers(scheme, host, port) for entry in self._destinations)


@functools.lru_cache(maxsize=4096)
def parse_destination(text: str) -> Destination:
    """
    Return the entry that *text* writes down.

    Raises: ManifestError, naming the entry and the part that is wrong.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "", scheme
    scheme = scheme.lower()
    if separator and scheme not in DEFAULT_PORTS:
        raise _wrong(text, f"the scheme {scheme!r} is neither http nor https")
    if text.strip() == "*":
        return Destination("", "", None, any_port=True)
    wildcard = rest.startswith("*.")
    try:
        if rest == "*" or rest.startswith("*:"):
            host, port = "", split_authority("any" + rest[1:])[1]
        else:
            host, port = split_authority(rest[2:] if wildcard else rest)
            host = parse_host(host)
            if wildcard and parse_address(host) is not None:
                raise ValueError(f"{host} is an address, and has no names below it")
    except ValueError as exc:
        raise _wrong(text, str(exc)) from exc
    return Destination(scheme, f".{host}" if wildcard else host, port)


def split_authority(authority: str) -> tuple[str, int | None]:
    """
    Return host and port of ``host[:port]``, the host as it is written.

    Raises: ValueError with what is wrong, also for user names and paths.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match[1]:
        raise ValueError(f"{authority[:100]!r} is not host[:port]")
    port = None if match[2] is None else int(match[2])
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"the port {port} is not between 1 and 65535")
    return match[1], port


@functools.lru_cache(maxsize=1024)  # each request asks
def parse_host(text: str) -> str:
    """
    Return a name in lower case without its last dot, or an address in its canonical form without brackets.

    Only dotted quads are IPv4 addresses: what else resolvers take for one (``127.1``, ``0x7f.1``, ``2130706433``) is
    refused, since checks and connections might understand it differently.
    Raises: ValueError with what is wrong.
    """
    if text.startswith("["):
        try:
            if "%" in text:
                raise ValueError("a zone")
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as exc:
            raise ValueError(f"{text[:100]!r} is not an IPv6 address") from exc
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as exc:
            raise ValueError(f"{text[:100]!r} is not an IPv4 address of four decimal numbers") from exc
    if len(name) > MAX_NAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text[:100]!r} is not a host name (letters beyond ASCII are written as xn--…)")
    return name


def parse_address(host: str) -> Address | None:
    """Return the address that *host* is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _wrong(text: str, reason: str) -> ManifestError:
    return ManifestError(
        f"capabilities.outbound: {text[:200]!r}: {reason}; write [scheme://]host[:port], such as 'api.example.org', "
        "'*.example.org', 'http://127.0.0.1:9000' or '[::1]:8080'"
    )
