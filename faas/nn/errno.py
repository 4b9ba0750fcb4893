"""
The errnos of WASI-NN, and the one table from our errors to them.

Source: wasi-nn witx (0 to 8), WasmEdge's GGML backend (100 to 103).
"""

from __future__ import annotations

from enum import IntEnum

from faas import errors


class NnErrno(IntEnum):
    """What a WASI-NN call answers; 3 is in the witx for guests without memory, which trap here as on WasmEdge."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_ENCODING = 2
    MISSING_MEMORY = 3
    BUSY = 4
    RUNTIME_ERROR = 5
    UNSUPPORTED_OPERATION = 6
    TOO_LARGE = 7
    NOT_FOUND = 8
    END_OF_SEQUENCE = 100
    CONTEXT_FULL = 101
    PROMPT_TOO_LONG = 102
    MODEL_NOT_FOUND = 103


class NnError(Exception):
    """A WASI-NN call that answers *errno*; *reason* is one line for the function's log, empty if it is no failure."""

    def __init__(self, errno: NnErrno, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno
        self.reason = reason


# What is not here is no matter between a guest and its model: it ends the invocation (deadline, output limit, a bug).
_ERRNO: dict[type[errors.FaasError], NnErrno] = {
    errors.ModelsMissingError: NnErrno.UNSUPPORTED_OPERATION,
    errors.ModelNotFoundError: NnErrno.NOT_FOUND,
    errors.ModelNotGrantedError: NnErrno.NOT_FOUND,
    errors.ModelFileError: NnErrno.INVALID_ARGUMENT,
    errors.ModelOverBudgetError: NnErrno.INVALID_ARGUMENT,
    errors.ModelUnavailableError: NnErrno.BUSY,
    errors.OverloadedError: NnErrno.BUSY,
    errors.QuotaExceededError: NnErrno.BUSY,
    errors.PromptTooLongError: NnErrno.PROMPT_TOO_LONG,
    errors.PromptInvalidError: NnErrno.INVALID_ARGUMENT,
    errors.GrammarInvalidError: NnErrno.INVALID_ARGUMENT,
    errors.OptionsInvalidError: NnErrno.INVALID_ARGUMENT,
    errors.GenerationFailedError: NnErrno.RUNTIME_ERROR,
    errors.ProtocolError: NnErrno.RUNTIME_ERROR,
    errors.FrameTooLargeError: NnErrno.TOO_LARGE,
    errors.PeerGoneError: NnErrno.BUSY,
}


def to_nn_error(error: errors.FaasError) -> NnError | None:
    """
    Return what a guest is told of *error*; None if the guest is not to see it.

    BUSY is the retryable one: the model server is away, everything is taken, or a quota is used up for now.
    A model's file that is not there (``facts['missing']``) is 103; one that is there but can't be loaded is 1.
    """
    if isinstance(error, errors.ModelFileError) and error.facts.get("missing"):
        return NnError(NnErrno.MODEL_NOT_FOUND, error.message)
    errno = _ERRNO.get(type(error))
    return NnError(errno, error.message) if errno is not None else None
