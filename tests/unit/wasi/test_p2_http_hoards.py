"""A guest may make any number of responses and requests: what it writes to them stays bounded all the same."""

from __future__ import annotations

from typing import Any

import pytest

from faas.errors import GuestTrapError, OutputLimitError
from faas.wasi.p2 import http, io
from faas.wasi.p2.http import HttpContext
from faas.wasi.p2.http_outgoing import MAX_REQUEST_BODIES, ResponseOutparam
from faas.wasi.p2.outbound_types import ResponseHead
from faas.wasi.streams import CollectingOutput, OutputStream

FUNCTIONS = {**http.FUNCTIONS["wasi:http/types"], **io.FUNCTIONS["wasi:io/streams"]}


class Context(HttpContext):
    """Takes 100 bytes of output."""

    def __init__(self) -> None:
        super().__init__(100)
        self.sink = CollectingOutput()

    def on_response(self, head: ResponseHead) -> OutputStream:
        return self.sink


class Guest:
    """An instance without an engine."""

    def __init__(self) -> None:
        self.http = Context()

    def call(self, name: str, *args: Any) -> Any:
        return FUNCTIONS[name].call(self, *args)

    def message(self, kind: str) -> Any:
        return self.call(f"[constructor]{kind}", self.call("[constructor]fields"))

    def written(self, n_bytes: int) -> Any:
        """Return a response that is not set, with *n_bytes* of a body."""
        response = self.message("outgoing-response")
        stream = self.call("[method]outgoing-body.write", self.call("[method]outgoing-response.body", response))
        self.call("[method]output-stream.write", stream, bytes(n_bytes))
        return response


def test_unset_responses_share_the_limit_of_the_output() -> None:
    guest = Guest()
    guest.written(60)
    with pytest.raises(OutputLimitError, match=r"call response-outparam\.set"):
        guest.written(60)


def test_a_dropped_response_gives_back_what_it_kept() -> None:
    guest = Guest()
    guest.written(60).drop()
    guest.written(60)
    assert guest.http.kept_bytes == 60


def test_a_response_that_is_set_keeps_nothing() -> None:
    guest = Guest()
    guest.call("[static]response-outparam.set", ResponseOutparam(), ("ok", guest.written(60)))
    assert guest.http.sink.getvalue() == bytes(60)
    assert guest.http.kept_bytes == 0


def test_open_bodies_of_requests_are_counted() -> None:
    guest = Guest()
    requests = [guest.message("outgoing-request") for _ in range(MAX_REQUEST_BODIES + 1)]
    for request in requests[:-1]:
        guest.call("[method]outgoing-request.body", request)
    with pytest.raises(GuestTrapError, match="send or drop those requests"):
        guest.call("[method]outgoing-request.body", requests[-1])
    requests[0].drop()
    guest.call("[method]outgoing-request.body", requests[-1])
