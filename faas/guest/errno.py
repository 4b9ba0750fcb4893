"""The errnos of ``faas_v1``, and the one table from our errors to them. The numbers never change."""

from __future__ import annotations

from enum import IntEnum

from faas import errors


class Errno(IntEnum):
    """What a call of ``faas_v1`` answers."""

    SUCCESS = 0
    FAULT = 1  # a range is not inside the memory
    INVALID = 2  # an argument has not the documented form
    BAD_HANDLE = 3
    DENIED = 4  # not granted, by the manifest or by the other side
    NOT_FOUND = 5
    CONFLICT = 6  # another value is there than was expected
    TOO_LARGE = 7
    LIMIT = 8  # handles, requests, a store's size, the depth of calls
    UNAVAILABLE = 9  # not right now: the same call may succeed a little later
    TIMEOUT = 10
    FAILED = 11  # the other side failed: no connection, no valid answer, a callee that trapped


class GuestError(Exception):
    """A call that answers *errno*; *reason* is one line for the function's log, empty if it is no failure."""

    def __init__(self, errno: Errno, reason: str = "") -> None:
        super().__init__(reason)
        self.errno = errno
        self.reason = reason


# By code, as errors come over the wire. What is not here, and not below one
# of the classes behind it, is FAILED: a new error must not end the invocations that meet it.
_BY_CODE: dict[str, Errno] = {
    "bad-request": Errno.INVALID,
    "malformed-request": Errno.INVALID,
    "head-too-large": Errno.TOO_LARGE,
    "body-too-large": Errno.TOO_LARGE,
    "target-too-long": Errno.TOO_LARGE,
    "function-not-found": Errno.NOT_FOUND,
    "route-not-found": Errno.NOT_FOUND,
    "method-not-allowed": Errno.NOT_FOUND,
    "version-not-found": Errno.NOT_FOUND,
    "alias-not-found": Errno.NOT_FOUND,
    "kv-denied": Errno.DENIED,
    "kv-key-invalid": Errno.INVALID,
    "kv-conflict": Errno.CONFLICT,
    "kv-too-large": Errno.TOO_LARGE,
    "kv-full": Errno.LIMIT,
    "kv-not-found": Errno.NOT_FOUND,
    "setting-not-found": Errno.NOT_FOUND,
    "idempotency-conflict": Errno.CONFLICT,
    "call-denied": Errno.DENIED,
    "call-depth": Errno.LIMIT,
    "forbidden": Errno.DENIED,
    "deadline-exceeded": Errno.TIMEOUT,
    "request-timeout": Errno.TIMEOUT,
    "quota-exceeded": Errno.UNAVAILABLE,
    "model-unavailable": Errno.UNAVAILABLE,
    "worker-lost": Errno.UNAVAILABLE,
    "state-failed": Errno.UNAVAILABLE,
    "wire-peer-gone": Errno.UNAVAILABLE,
    "wire-frame-too-large": Errno.TOO_LARGE,
    "wire-protocol": Errno.FAILED,
    "output-limit": Errno.TOO_LARGE,
}
_BY_CLASS: tuple[tuple[type[errors.FaasError], Errno], ...] = (
    (errors.BusyError, Errno.UNAVAILABLE),
    (errors.InvocationError, Errno.FAILED),
)


def to_guest_error(error: errors.FaasError) -> GuestError:
    """Return what a guest is told of *error*, which a port raised."""
    errno = _BY_CODE.get(error.code)
    if errno is None:
        errno = next((errno for cls, errno in _BY_CLASS if isinstance(error, cls)), None)
    if errno is None:
        return GuestError(Errno.FAILED, f"{error.code}: {error.message}")
    return GuestError(errno, error.message)
