"""
One invocation's side of ``faas_v1``: open stores, requests under way, the last result, and what all of it may take.

A request is a task from its beginning, so that several are under way side by side while their guest waits for one, or
computes. ``close`` ends whatever is left, however the invocation ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from faas.errors import FaasError, InternalError
from faas.guest import requests
from faas.guest.errno import Errno, GuestError, to_guest_error
from faas.guest.ports import GuestResponse, KvPort, Ports
from faas.guest.signatures import lacking
from faas.log import exception
from faas.manifest import Capabilities

MAX_HANDLES: Final = 64
"""Open stores, and requests that are not closed, each."""
MAX_SENT_BYTES: Final = 64 * 1024 * 1024
"""Bodies of all requests that are not closed."""
MAX_NAME_BYTES: Final = 128
MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
MAX_CURSOR_BYTES: Final = 4096
MAX_KEYS: Final = 1000
"""Of one page."""
MAX_LOG_LINES: Final = 100
OWN_STORE: Final = "default"
MAX_TTL_MS: Final = 10 * 366 * 86_400_000
_PIECE_BYTES: Final = 256 * 1024
_FIRST_REQUEST: Final = 1 << 16
"""Handles of stores count up from 0, those of requests from here: neither is ever taken for the other."""

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_Send = Callable[[], Coroutine[Any, Any, GuestResponse]]


class GuestSession:
    """
    What one invocation has open; made when it begins, closed with it.

    Thread: coroutines and ``close`` on the loop, the rest also from where the guest runs; never two at once.
    """

    __slots__ = (
        "_capabilities", "_closed", "_function", "_log_line", "_n_lines", "_n_requests", "_n_sent_bytes", "_open_ports",
        "_ports", "_requests", "_result", "_stores",
    )  # fmt: skip

    def __init__(
        self,
        function: str,
        capabilities: Capabilities,
        open_ports: Callable[[], Ports],
        log_line: Callable[[bytes], None] | None = None,
    ) -> None:
        """Args: *open_ports* is called at the first use, wherever the guest runs; *log_line* gets reasons."""
        self._function = function
        self._capabilities = capabilities
        self._open_ports = open_ports
        self._log_line = log_line
        self._ports: Ports | None = None
        self._stores: list[str | None] = []
        self._requests: dict[int, _Begun] = {}
        self._n_requests = 0
        self._n_sent_bytes = 0
        self._n_lines = 0
        self._result = b""
        self._closed = False

    @property
    def ports(self) -> Ports:
        """What the host has, opened at the first use."""
        if self._ports is None:
            # A slice may still run while its invocation ends: nothing is opened for it that nobody would close.
            self._ports = _CLOSED if self._closed else self._open_ports()
        return self._ports

    def report(self, call: str, error: GuestError) -> None:
        """Log why *call* answered an errno, if there is anything to say."""
        if not error.reason or self._log_line is None or self._n_lines > MAX_LOG_LINES:
            return
        self._n_lines += 1
        line = f"faas_v1.{call}: {error.errno.name.lower().replace('_', ' ')}: {error.reason}"
        if self._n_lines > MAX_LOG_LINES:
            line = "faas_v1: further reasons are not logged"
        self._log_line("".join(char if char.isprintable() else " " for char in line).encode("utf-8", "replace"))

    # --- results ----------------------------------------------------------------------------------------------------

    def keep(self, result: bytes) -> int:
        """Make *result* the one that ``result`` reads; return its length."""
        self._result = result
        return len(result)

    def result(self, offset: int, length: int) -> bytes:
        """Return a part of the last result. Raises: GuestError if it does not reach that far."""
        if offset + length > len(self._result):
            raise GuestError(Errno.INVALID, f"bytes {offset} to {offset + length} of a result of {len(self._result)}")
        return self._result[offset : offset + length]

    # --- keys and values --------------------------------------------------------------------------------------------

    def kv_open(self, name: bytes) -> int:
        """Return a handle of a store that the manifest names. Raises: GuestError."""
        store = _text(name, MAX_NAME_BYTES, "store")
        if store not in self._capabilities.kv:
            raise GuestError(
                Errno.DENIED,
                f"the function is not granted the store {store!r}; add it to [capabilities] kv of function.toml",
            )
        if len(self._stores) >= MAX_HANDLES:
            raise GuestError(Errno.LIMIT, f"{MAX_HANDLES} stores were opened; keep their handles")
        self._stores.append(self._function if store == OWN_STORE else store)
        return len(self._stores) - 1

    async def kv_get(self, handle: int, key: bytes) -> int:
        """Keep the value and return its length. Raises: GuestError, also when there is none; FaasError."""
        kv, store, name = self._at(handle, key)
        value = await kv.get(self._function, store, name)
        if value is None:
            raise GuestError(Errno.NOT_FOUND)
        return self.keep(value)

    async def kv_set(self, handle: int, key: bytes, value: bytes, ttl_ms: int) -> None:
        """Store a value; *ttl_ms* 0 means for good. Raises: GuestError, FaasError."""
        kv, store, name = self._at(handle, key)
        await kv.set(self._function, store, name, value, ttl_s=_ttl_s(ttl_ms))

    async def kv_delete(self, handle: int, key: bytes) -> None:
        """Remove a key. Raises: GuestError, also when there is none; FaasError."""
        kv, store, name = self._at(handle, key)
        if not await kv.delete(self._function, store, name):
            raise GuestError(Errno.NOT_FOUND)

    async def kv_list(self, handle: int, prefix: bytes, cursor: bytes, limit: int) -> int:
        """Keep a page of keys and return its length. Raises: GuestError, FaasError."""
        kv, store = self._kv(), self._store(handle)
        if not 1 <= limit <= MAX_KEYS:
            raise GuestError(Errno.INVALID, f"a page has 1 to {MAX_KEYS} keys, not {limit}")
        page = await kv.list(
            self._function,
            store,
            _text(prefix, MAX_KEY_BYTES, "prefix", empty=True),
            cursor=_text(cursor, MAX_CURSOR_BYTES, "cursor", empty=True),
            limit=limit,
        )
        return self.keep(requests.encode_page(page))

    async def kv_increment(self, handle: int, key: bytes, delta: int) -> int:
        """Add *delta* and return the sum, both signed. Raises: GuestError, FaasError."""
        kv, store, name = self._at(handle, key)
        return await kv.increment(self._function, store, name, delta)

    async def kv_compare_and_set(
        self, handle: int, key: bytes, expected: bytes | None, value: bytes, ttl_ms: int
    ) -> None:
        """Store a value where *expected* is (None: nothing). Raises: GuestError (conflict), FaasError."""
        kv, store, name = self._at(handle, key)
        if not await kv.compare_and_set(self._function, store, name, expected, value, ttl_s=_ttl_s(ttl_ms)):
            raise GuestError(Errno.CONFLICT)

    def _kv(self) -> KvPort:
        return _there(self.ports.kv, "KV stores")

    def _store(self, handle: int) -> str:
        store = self._stores[handle] if handle < len(self._stores) else None
        if store is None:
            raise GuestError(Errno.BAD_HANDLE, f"{handle} is no open store")
        return store

    def _at(self, handle: int, key: bytes) -> tuple[KvPort, str, str]:
        return self._kv(), self._store(handle), _text(key, MAX_KEY_BYTES, "key")

    # --- settings ---------------------------------------------------------------------------------------------------

    def config_get(self, name: bytes) -> int:
        """Keep a config value of the function and return its length. Raises: GuestError."""
        found = _there(self.ports.config, "config values").get(
            self._function, _text(name, MAX_NAME_BYTES, "config value")
        )
        if found is None:
            raise GuestError(Errno.NOT_FOUND)
        return self.keep(found.encode())

    def secret_get(self, name: bytes) -> int:
        """Keep a granted secret and return its length. Raises: GuestError."""
        text = _text(name, MAX_NAME_BYTES, "secret")
        if text not in self._capabilities.secrets:
            raise GuestError(
                Errno.DENIED,
                f"the function is not granted the secret {text!r}; add it to [capabilities] secrets of function.toml",
            )
        found = _there(self.ports.secrets, "secrets").get(self._function, text)
        if found is None:
            raise GuestError(
                Errno.NOT_FOUND, f"the secret {text!r} is not set; say `faas secrets set {self._function} {text}`"
            )
        return self.keep(found.encode())

    # --- requests ---------------------------------------------------------------------------------------------------

    async def http_begin(self, encoded: bytes) -> int:
        """Begin an HTTP request and return its handle. Raises: GuestError."""
        request = requests.http_request(requests.decode(encoded))
        if lacking("http_begin", self._capabilities):
            raise GuestError(
                Errno.DENIED, "the function may reach no other host; add it to [capabilities] outbound of function.toml"
            )
        port = _there(self.ports.http, "outbound HTTP")
        return self._begin(lambda: port.send(request), len(encoded))

    async def call_begin(self, encoded: bytes) -> int:
        """Begin a call of another function and return its handle. Raises: GuestError."""
        sent = requests.decode(encoded)
        request = requests.call_request(sent)
        self._check_call(sent.function)
        port = _there(self.ports.calls, "calls of functions")
        return self._begin(lambda: port.begin(sent.function, sent.qualifier, request), len(encoded))

    async def job_enqueue(self, encoded: bytes) -> int:
        """Enqueue a job, keep its id and return the id's length. Raises: GuestError, FaasError."""
        sent = requests.decode(encoded)
        request = requests.call_request(sent)
        self._check_call(sent.function)
        port = _there(self.ports.jobs, "jobs")
        job = await port.enqueue(self._function, sent.function, sent.qualifier, request, requests.job_options(sent))
        return self.keep(job.encode())

    def _check_call(self, function: str) -> None:
        if function not in self._capabilities.calls:
            raise GuestError(
                Errno.DENIED,
                f"the function may not call {function!r}; add it to [capabilities] calls of function.toml",
            )

    def _begin(self, send: _Send, n_bytes: int) -> int:
        if self._closed:
            raise GuestError(Errno.UNAVAILABLE, "the invocation has ended")
        if len(self._requests) >= MAX_HANDLES:
            raise GuestError(Errno.LIMIT, f"{MAX_HANDLES} requests are open; close some")
        if self._n_sent_bytes + n_bytes > MAX_SENT_BYTES:
            raise GuestError(Errno.LIMIT, f"the requests that are open are over {MAX_SENT_BYTES} bytes; close some")
        handle = _FIRST_REQUEST + self._n_requests
        self._n_requests += 1
        self._n_sent_bytes += n_bytes
        self._requests[handle] = _Begun(send, n_bytes)
        return handle

    async def response_head(self, handle: int) -> int:
        """Wait for a response's head, keep it and return its length. Raises: GuestError, FaasError."""
        begun = self._request(handle)
        return self.keep(requests.encode_head(await begun.head()))

    def read_nowait(self, handle: int, n: int) -> bytes | None:
        """
        Return bytes of a response's body, b"" at its end, None if there are none yet.

        Raises: GuestError, FaasError.
        """
        if n == 0:
            raise GuestError(Errno.INVALID, "a buffer of no bytes can't tell a piece from the end")
        return self._request(handle).read_nowait(n)

    async def read(self, handle: int, n: int) -> bytes:
        """Return bytes of a response's body once there are some, b"" at its end. Raises: GuestError, FaasError."""
        begun = self._request(handle)
        while True:
            piece = begun.read_nowait(n)
            if piece is not None:
                return piece
            await begun.wait()

    def ready(self, handles: Sequence[int]) -> int | None:
        """Return the index of the first handle that need not be waited for. Raises: GuestError."""
        if not 1 <= len(handles) <= MAX_HANDLES:
            raise GuestError(Errno.INVALID, f"{len(handles)} handles are not between 1 and {MAX_HANDLES}")
        begun = [self._request(handle) for handle in handles]
        return next((index for index, request in enumerate(begun) if request.is_ready), None)

    async def wait_any(self, handles: Sequence[int], timeout_s: float | None) -> int:
        """Return the index of the first handle that is ready, waiting for one. Raises: GuestError (timeout)."""
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while True:
            index = self.ready(handles)
            if index is not None:
                return index
            left_s = None if until is None else max(0.0, until - loop.time())
            waits = {self._request(handle).waiting() for handle in handles}
            done, _ = await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise GuestError(Errno.TIMEOUT)

    def is_store(self, handle: int) -> bool:
        """Whether *handle* is of a store, open or not; those need no loop to be closed."""
        return handle < _FIRST_REQUEST

    def close_store(self, handle: int) -> None:
        """Forget an open store. Raises: GuestError."""
        self._store(handle)
        self._stores[handle] = None

    async def close_request(self, handle: int) -> None:
        """End a request, whatever of it is left. Raises: GuestError."""
        begun = self._request(handle)
        del self._requests[handle]
        self._n_sent_bytes -= begun.n_bytes
        begun.close()

    def _request(self, handle: int) -> _Begun:
        begun = self._requests.get(handle)
        if begun is None:
            raise GuestError(Errno.BAD_HANDLE, f"{handle} is no open request")
        return begun

    def close(self) -> None:
        """End everything; on the loop. Safe to call more than once."""
        self._closed = True
        if self._ports is None:
            return  # nothing was ever asked for
        begun, self._requests = self._requests, {}
        for request in begun.values():
            request.close()
        self._result = b""
        for port in (self._ports.http, self._ports.calls):
            if port is not None:
                port.close()
        self._ports = _CLOSED


_CLOSED: Final = Ports()


class _Begun:
    """A request under way: the task that sends it, then its response, of whose body one piece is ahead."""

    __slots__ = ("_closed", "_error", "_head_taken", "_piece", "_response", "_sending", "_waiter", "n_bytes")

    def __init__(self, send: _Send, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._closed = False
        self._error: Exception | None = None
        self._response: GuestResponse | None = None
        self._head_taken = False
        self._piece: bytes | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._sending = asyncio.create_task(self._send(send))

    async def _send(self, send: _Send) -> None:
        try:
            response = await send()
        except asyncio.CancelledError:
            self._error = GuestError(Errno.UNAVAILABLE, "the request was ended")
            raise
        except (GuestError, FaasError) as exc:
            self._error = exc
        except Exception as exc:
            self._error = _bug(exc)
        else:
            self._response = response
            if self._closed:
                response.close()

    @property
    def is_ready(self) -> bool:
        """Whether the guest's next question would be answered at once; after the head it asks for the body."""
        if self._error is not None:
            return True
        if self._response is None:
            return False
        return not self._head_taken or self._peek()

    def _peek(self) -> bool:
        if self._piece is None:
            assert self._response is not None
            try:
                self._piece = self._response.body.read_nowait(_PIECE_BYTES)
            except (GuestError, FaasError) as exc:
                self._error = exc
                return True
        return self._piece is not None

    async def head(self) -> GuestResponse:
        """Return the response once its head is there. Raises: GuestError, FaasError."""
        while self._response is None and self._error is None:
            await self.wait()
        if self._response is None:
            assert self._error is not None
            raise self._error.with_traceback(None)
        self._head_taken = True
        return self._response

    def read_nowait(self, n: int) -> bytes | None:
        """Return up to *n* bytes of the body, None if there are none yet. Raises: GuestError, FaasError."""
        if self._error is not None and not self._piece:
            raise self._error.with_traceback(None)
        if self._response is None:
            return None
        self._head_taken = True
        if not self._peek():
            return None
        if self._piece is None:
            assert self._error is not None
            raise self._error.with_traceback(None)
        piece = self._piece
        if piece:  # the end stays the end
            self._piece = piece[n:] or None
        return piece[:n]

    def waiting(self) -> asyncio.Task[None]:
        """Return the task that ends when the request may be ready; it outlives whoever waits for it."""
        if self._response is None:
            return self._sending
        if self._waiter is None or self._waiter.done():
            self._waiter = asyncio.create_task(self._wait_readable(self._response))
        return self._waiter

    async def wait(self) -> None:
        """Return when the request may be ready."""
        await asyncio.wait([self.waiting()])

    async def _wait_readable(self, response: GuestResponse) -> None:
        try:
            await response.body.wait_readable()
        except (GuestError, FaasError) as exc:
            self._error = exc
        except Exception as exc:
            self._error = _bug(exc)

    def close(self) -> None:
        """End it; on the loop. Safe to call more than once."""
        self._closed = True
        self._piece = None
        self._sending.cancel()
        if self._waiter is not None:
            self._waiter.cancel()
        if self._response is not None:
            self._response.close()


def _there(port: _T | None, what: str) -> _T:
    if port is None:
        raise GuestError(Errno.UNAVAILABLE, f"{what} are not there (yet, or on this host)")
    return port


def _text(raw: bytes, most: int, what: str, *, empty: bool = False) -> str:
    if len(raw) > most:
        raise GuestError(Errno.TOO_LARGE, f"a {what} is over {most} bytes")
    if not raw and not empty:
        raise GuestError(Errno.INVALID, f"a {what} is empty")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise GuestError(Errno.INVALID, f"a {what} is not UTF-8") from exc


def _ttl_s(ttl_ms: int) -> float | None:
    if ttl_ms > MAX_TTL_MS:
        raise GuestError(Errno.INVALID, f"a time to live is over {MAX_TTL_MS} ms")
    return ttl_ms / 1000 if ttl_ms else None


def told(error: GuestError | FaasError) -> GuestError:
    """Return what the guest is told of *error*."""
    return error if isinstance(error, GuestError) else to_guest_error(error)


def _bug(error: Exception) -> InternalError:
    """Return what becomes of an error that no port may raise: its text is for the host's log, and for nobody else."""
    exception(_logger, "guest.port_failed", error)
    return InternalError("the host failed at this; its log has the reason")
