"""
Credentials: secrets that the host adds to a function's requests for one host, so that no guest holds them.

A value is looked up for each request, goes into that request's head and nowhere else: not into the response, not into
errors or log lines, and not into the repr of anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from faas.destinations import Destination, parse_destination
from faas.manifest import Credential
from faas.outbound.exchange import valid_value
from faas.outbound.failures import Failure, OutboundError

SecretLookup = Callable[[str, str], str | None]
"""Returns the secret of a function, by (function, name); None if it is not set."""


@dataclass(frozen=True, slots=True)
class Added:
    """A header that the host adds; it takes the place of all that the guest has sent under that name."""

    name: str
    value: str = field(repr=False)


class Credentials:
    """What one version of a function has its host add; lives as long as somebody holds it."""

    __slots__ = ("_entries", "_function", "_secret")

    def __init__(self, function: str, entries: Iterable[Credential], secret: SecretLookup) -> None:
        """Raises: ManifestError, naming the entry that is wrong."""
        self._function = function
        self._entries = tuple((place(entry), entry) for entry in entries)
        self._secret = secret

    def added(self, scheme: str, host: str, port: int) -> Sequence[Added]:
        """
        Return the headers to add to a request for that very place.

        Raises: OutboundError if a secret is not set, or can't be sent.
        """
        return [
            Added(entry.header.lower(), self._value(entry))
            for destination, entry in self._entries
            if destination.covers(scheme, host, port)
        ]

    def _value(self, entry: Credential) -> str:
        secret = self._secret(self._function, entry.secret)
        if secret is None:
            raise OutboundError(
                Failure.DENIED,
                f"the secret {entry.secret!r}, which [[capabilities.credentials]] adds to this request, is not set; "
                f"say `faas secrets set {self._function} {entry.secret}`",
            )
        value = entry.format.replace("{}", secret)
        if not valid_value(value):
            raise OutboundError(
                Failure.DENIED,
                f"the secret {entry.secret!r} has control characters, such as a line break at its end, and can't be "
                f"sent as a header; set it again with `faas secrets set {self._function} {entry.secret}`",
            )
        return value


def place(entry: Credential) -> Destination:
    """
    Return where *entry* applies; without a scheme that is https alone, since a secret is not for everybody on the way.

    Raises: ManifestError.
    """
    destination = parse_destination(entry.host)
    return destination if destination.scheme else destination._replace(scheme="https")
