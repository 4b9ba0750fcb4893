"""
A worker's HTTP client for its functions: who may reach what, which address a connection goes to, and for how long.

Every socket is made by ``_checked_socket``, which judges its address for the request that it is made for: names may
change their meaning at any time, and what is judged is what is connected to. Connections are kept for further requests
of the same function with the same allow-list, and never shared between functions: what one of them did to a
connection, or a server to it, reaches no other.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import ssl
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from faas.destinations import AllowList, parse_address
from faas.outbound.addresses import prohibition
from faas.outbound.body import Download, Upload
from faas.outbound.credentials import Added, Credentials
from faas.outbound.exchange import MAX_HEADERS_BYTES, Headers, Outgoing, Request, check, end_to_end
from faas.outbound.failures import Failure, OutboundError, from_client, from_lookup

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a name. Raises: OSError."""
LogLine = Callable[[bytes], None]
Sockets = weakref.WeakSet[socket.socket]

MAX_REQUESTS = 1024
MAX_REQUESTS_PER_FUNCTION = 256
"""In progress at once in one worker, until their bodies are read or closed."""
MAX_KEPT = 512
MAX_KEPT_PER_FUNCTION = 64
"""A function, or a worker, that holds more connections than this asks for new ones to be closed after a response."""
KEPT_S = 15.0
MAX_LOG_LINES = 20
"""Of one invocation; one more says that the rest is not logged."""
MAX_RESPONSE_HEADERS = 256
MAX_RESPONSE_LINE_BYTES = 16 * 1024
DNS_THREADS = 16
DNS_PER_FUNCTION = 4
MAX_SHARES = 4096
_SKIPPED_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add: a request has the headers that its guest gave it, and no others but Host and its framing."""
_WITHOUT_BODY = frozenset(("GET", "HEAD"))


class Client:
    """
    Sends the requests of all functions of a worker; lives as long as it, closed by ``aclose``.

    Thread: the loop's only.
    """

    def __init__(self, *, lookup: Lookup | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Args: *lookup* instead of the system's resolver; *tls* instead of the system's trusted certificates."""
        self._lookup = lookup
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._dns = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="faas-dns")
        self._shares: dict[tuple[str, tuple[str, ...]], Share] = {}
        self._ids = itertools.count(1)
        self.sockets: Sockets = weakref.WeakSet()
        self.n_running = 0

    def caller(
        self,
        function: str,
        entries: tuple[str, ...],
        *,
        deadline: float,
        log: LogLine,
        credentials: Credentials | None = None,
    ) -> Caller:
        """
        Return what one invocation of *function* sends its requests through, and closes when it ends.

        Args: *entries* are the manifest's ``capabilities.outbound``; *deadline* is on the loop's clock, in seconds;
        *log* gets a line for each request that fails; *credentials* are added to the requests that they are for.
        """
        return Caller(self, function, entries, deadline, log, credentials=credentials)

    async def aclose(self) -> None:
        """Close every connection; nothing can be sent afterwards. Safe to call more than once."""
        self._dns.shutdown(wait=False, cancel_futures=True)
        if self._session is not None:
            await self._session.close()

    def session(self) -> aiohttp.ClientSession:
        """Return the session, made at the first request."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # waiting would hide the limit: callers are told of theirs
                    resolver=_Resolver(),
                    use_dns_cache=False,
                    keepalive_timeout=KEPT_S,
                    socket_factory=_checked_socket,
                    ssl=True if self._tls is None else self._tls,
                ),
                request_class=_ClientRequest,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
                skip_auto_headers=_SKIPPED_HEADERS,
                auto_decompress=False,
                trust_env=False,
                read_bufsize=1,  # reading pauses at once, see Download
                max_line_size=MAX_RESPONSE_LINE_BYTES,
                max_field_size=MAX_RESPONSE_LINE_BYTES,
                max_headers=MAX_RESPONSE_HEADERS,
            )
        return self._session

    def share(self, function: str, entries: tuple[str, ...]) -> Share:
        """Return what the invocations of a function with this allow-list have together."""
        key = (function, entries)
        share = self._shares.get(key)
        if share is None:
            if len(self._shares) >= MAX_SHARES:
                self._shares = {
                    key: share for key, share in self._shares.items() if share.n_running or len(share.sockets)
                }
            share = self._shares[key] = Share(next(self._ids), AllowList(entries))
        return share

    async def addresses(self, host: str, share: Share) -> Sequence[str]:
        """
        Return the addresses of a name.

        Raises: OutboundError.
        """
        try:
            if self._lookup is not None:
                return await self._lookup(host)
            await share.lookups.acquire()
            # Nothing can cancel a look-up: it counts until it is over, whether or not somebody still waits for it.
            pending = asyncio.get_running_loop().run_in_executor(self._dns, _system_lookup, host)
            pending.add_done_callback(lambda done: _release(done, share.lookups))
            return await asyncio.shield(pending)
        except OSError as exc:
            raise from_lookup(exc, host) from exc


class Share:
    """What the invocations of one function with one allow-list share: connections and counts; kept by ``Client``."""

    __slots__ = ("allowed", "lookups", "n_running", "pool", "sockets")

    def __init__(self, pool: int, allowed: AllowList) -> None:
        self.pool = pool
        self.allowed = allowed
        self.n_running = 0
        self.sockets: Sockets = weakref.WeakSet()
        self.lookups = asyncio.Semaphore(DNS_PER_FUNCTION)


class Caller:
    """One invocation's way out; lives as long as it. Thread: the loop's only."""

    __slots__ = (
        "_client",
        "_credentials",
        "_entries",
        "_exchanges",
        "_function",
        "_log",
        "_n_log_lines",
        "closed",
        "deadline",
    )

    def __init__(
        self,
        client: Client,
        function: str,
        entries: tuple[str, ...],
        deadline: float,
        log: LogLine,
        *,
        credentials: Credentials | None = None,
    ) -> None:
        self._client = client
        self._function = function
        self._entries = entries
        self._credentials = credentials
        self.deadline = deadline
        self._log = log
        self._n_log_lines = 0
        self._exchanges: set[_Exchange] = set()
        self.closed = False

    async def send(self, request: Request) -> Response:
        """
        Send *request* and return its response once the head is there; its body may still be on its way out.

        Redirects are the caller's to follow. Cancelling ends the request.
        Raises: OutboundError; what ``request.body`` raised, if that broke it off.
        """
        origin = f"{request.scheme or 'https'}://{request.authority or ''}"
        try:
            try:
                outgoing = check(request)
                origin = outgoing.origin
                return await self._begin(request, outgoing)
            finally:
                if request.body is not None and not self._holds(request):
                    request.body.close()
        except OutboundError as exc:
            self.report(request.method, origin, exc)
            raise

    def close(self) -> None:
        """End whatever is still in progress. Safe to call more than once."""
        self.closed = True
        for exchange in list(self._exchanges):
            exchange.close()

    def report(self, method: str, origin: str, error: OutboundError) -> None:
        """Log why a request failed, one line for the function's log, without path and query: they may be secret."""
        self._n_log_lines += 1
        if self._n_log_lines > MAX_LOG_LINES + 1:
            return
        line = f"outbound: {method[:64]} {origin[:300]}: {error.failure.value}: {error.reason}"
        if self._n_log_lines > MAX_LOG_LINES:
            line = "outbound: further failures are not logged"
        printable = "".join(char if char.isprintable() else " " for char in line)
        self._log(printable.encode("utf-8", "replace"))

    def _holds(self, request: Request) -> bool:
        return any(exchange.request is request for exchange in self._exchanges)

    async def _begin(self, request: Request, outgoing: Outgoing) -> Response:
        client = self._client
        if self.closed:
            raise OutboundError(Failure.DENIED, "the invocation has ended")
        if not self._entries:
            raise OutboundError(
                Failure.DENIED,
                "the function may reach no other host; add it to [capabilities] outbound of function.toml",
            )
        share = client.share(self._function, self._entries)
        place = outgoing.scheme, outgoing.host, outgoing.port
        if not share.allowed.allows(*place):
            raise OutboundError(
                Failure.DENIED,
                "no entry of [capabilities] outbound in function.toml allows it; add it and deploy again",
            )
        added = () if self._credentials is None else self._credentials.added(*place)
        exchange = _Exchange(self, client, share, request, outgoing, added=added)
        if share.n_running >= MAX_REQUESTS_PER_FUNCTION or client.n_running >= MAX_REQUESTS:
            raise OutboundError(
                Failure.LIMIT_REACHED,
                f"{share.n_running} requests of the function, and {client.n_running} of this worker, are in progress; "
                "read responses to their end, or close them",
            )
        share.n_running += 1
        client.n_running += 1
        self._exchanges.add(exchange)
        try:
            return await exchange.run()
        except BaseException:
            exchange.close()
            raise

    def ended(self, exchange: _Exchange) -> None:
        """Forget *exchange*, which holds nothing any more."""
        if exchange in self._exchanges:
            self._exchanges.remove(exchange)
            exchange.share.n_running -= 1
            self._client.n_running -= 1


class Response:
    """
    A response whose head is there; the receiver closes it, whether or not it read the body.

    ``body.read_nowait`` may be called from any thread, the rest on the loop.
    """

    __slots__ = ("_exchange", "body", "headers", "status")

    def __init__(self, exchange: _Exchange, status: int, headers: Headers, body: Download) -> None:
        self._exchange = exchange
        self.status = status
        self.headers = headers
        self.body = body

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else break it off. Safe to call again."""
        self._exchange.close()


class _Exchange:
    """One request from its check to the end of its response."""

    __slots__ = (
        "__weakref__",
        "_added",
        "_caller",
        "_client",
        "_discarding",
        "_download",
        "_outgoing",
        "_phase",
        "_prohibited",
        "_response",
        "_timer",
        "_upload",
        "request",
        "share",
    )

    def __init__(
        self,
        caller: Caller,
        client: Client,
        share: Share,
        request: Request,
        outgoing: Outgoing,
        *,
        added: Sequence[Added] = (),
    ) -> None:
        self._added = added
        self._caller = caller
        self._client = client
        self._outgoing = outgoing
        self._phase = Failure.CONNECT_TIMEOUT
        self._prohibited: OutboundError | None = None
        self._timer: asyncio.Timeout | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._download: Download | None = None
        self._upload: Upload | None = None
        self._discarding: asyncio.Task[None] | None = None
        self.share = share
        self.request = request

    async def run(self) -> Response:
        """
        Send the request.

        Raises: OutboundError, or what the request's body raised.
        """
        request = self.request
        token = _current.set(weakref.ref(self))
        try:
            async with asyncio.timeout_at(self._until(request.connect_timeout_s)) as self._timer:
                response = await self._send()
        except TimeoutError as exc:
            raise OutboundError(self._phase, "it took too long") from exc
        except OutboundError:
            raise
        except (aiohttp.ClientError, OSError) as exc:
            raise self._failed(from_client(exc)) from exc
        finally:
            self._timer = None
            _current.reset(token)
        self._response = response
        if response.status == 101:
            raise OutboundError(Failure.UPGRADE, "the server switched protocols, and nobody asked it to")
        headers = [(name.decode("latin-1"), value) for name, value in response.raw_headers]
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADERS_BYTES:
            raise OutboundError(
                Failure.RESPONSE_HEADERS_TOO_LARGE, f"over {MAX_HEADERS_BYTES} bytes", detail=MAX_HEADERS_BYTES
            )
        self._download = Download(response, self._until, request.between_bytes_timeout_s, self._body_failed)
        if self._upload is not None:
            self._upload.on_failure = self._download.fail
            if self._upload.failure is not None:
                raise self._upload.failure
        return Response(self, response.status, end_to_end(headers), self._download)

    async def _send(self) -> aiohttp.ClientResponse:
        outgoing, body = self._outgoing, self.request.body
        headers = list(outgoing.headers)
        if self._added:
            ours = {added.name for added in self._added}
            headers = [header for header in headers if header[0].lower() not in ours]
            headers += [(added.name, added.value) for added in self._added]
        if _crowded(self.share.sockets, MAX_KEPT_PER_FUNCTION) or _crowded(self._client.sockets, MAX_KEPT):
            headers.append(("Connection", "close"))
        if body is not None:
            if outgoing.content_length is not None:
                headers.append(("Content-Length", str(outgoing.content_length)))
            elif outgoing.method in _WITHOUT_BODY:
                # A guest that takes every request's body and writes nothing means none, and servers refuse a GET with
                # an empty chunk. Who means one says how long it is; hyper, and so wasmtime, does the same.
                self._discarding = asyncio.create_task(self._discard())
                body = None
        if body is not None:
            self._upload = Upload(body, outgoing.content_length)
        return await self._client.session().request(
            outgoing.method,
            URL(outgoing.url, encoded=True),
            headers=headers,
            data=self._upload,
            allow_redirects=False,
        )

    async def _discard(self) -> None:
        body = self.request.body
        assert body is not None
        try:
            if await body.next_chunk():
                self._caller.report(
                    self._outgoing.method,
                    self._outgoing.origin,
                    OutboundError(Failure.REQUEST_BODY_SIZE, "a body of this method is sent only with Content-Length"),
                )
                body.close()
        except Exception as exc:
            self._caller.report(
                self._outgoing.method,
                self._outgoing.origin,
                OutboundError(Failure.REQUEST_BODY_SIZE, f"the body was given up, and none was to be sent: {exc}"),
            )

    async def resolve(self, host: str) -> Sequence[str]:
        """
        Return the addresses of *host*; ``make_socket`` says which of them this request may go to.

        Raises: OutboundError.
        """
        self._phase = Failure.DNS_TIMEOUT
        addresses = await self._client.addresses(host, self.share)
        self._phase = Failure.CONNECT_TIMEOUT
        if not addresses:
            raise OutboundError(Failure.NO_ADDRESS, f"the host {host!r} has no address")
        return addresses

    def make_socket(self, family: int, kind: int, proto: int, text: str) -> socket.socket:
        """
        Return a socket that is about to be connected to an address; the one place where addresses are judged.

        Raises: OSError, if this request may not go there; ``_prohibited`` says why.
        """
        address = parse_address(text)
        if address is None:
            raise OSError(errno.EADDRNOTAVAIL, f"{text[:100]!r} is no address")
        found = prohibition(address)
        allowed = self.share.allowed
        scheme, host, port = self._outgoing.scheme, self._outgoing.host, self._outgoing.port
        if (
            found is not None
            and not allowed.names(scheme, str(address), port)
            and not (found.by_name and allowed.names(scheme, host, port))
        ):
            what = "host or address" if found.by_name else "address itself"
            self._prohibited = OutboundError(
                Failure.ADDRESS_PROHIBITED,
                f"{host} is {address} ({found.reason}), which needs an entry of [capabilities] outbound that names "
                f"the {what}",
            )
            raise PermissionError(errno.EACCES, self._prohibited.reason)
        made = socket.socket(family, kind, proto)
        self.share.sockets.add(made)
        self._client.sockets.add(made)
        return made

    def connected(self) -> None:
        """There is a connection: from here on the response's head is waited for."""
        self._prohibited = None
        self._phase = Failure.RESPONSE_TIMEOUT
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(self._until(self.request.first_byte_timeout_s))

    def close(self) -> None:
        """End what is still in progress. Safe to call more than once."""
        response, self._response = self._response, None
        if response is not None:
            connection = response.connection
            if connection is not None and connection.transport is not None:
                # Not a polite end: a server that does not read, or does not answer TLS's farewell, would keep it.
                connection.transport.abort()
            response.close()
        if self._download is not None:
            self._download.close()
        if self._discarding is not None:
            self._discarding.cancel()
        if self.request.body is not None:
            self.request.body.close()
        self._caller.ended(self)

    def _until(self, timeout_s: float | None) -> float:
        deadline = self._caller.deadline
        if timeout_s is None:
            return deadline
        return min(deadline, asyncio.get_running_loop().time() + timeout_s)

    def _failed(self, error: OutboundError) -> Exception:
        """Return what a failure was really about: what the guest did to its body, or an address found forbidden."""
        if self._upload is not None and self._upload.failure is not None:
            return self._upload.failure
        return error if self._prohibited is None else self._prohibited

    def _body_failed(self, error: OutboundError) -> None:
        self._caller.report(self._outgoing.method, self._outgoing.origin, error)


_current: ContextVar[weakref.ref[_Exchange]] = ContextVar("faas_outbound_exchange")
"""
Whose request aiohttp is at: its hooks get no argument of ours, but run in the request's task or one that it made.

Weak, since a connection keeps the context that it was made in for as long as it lives.
"""


def _exchange() -> _Exchange:
    exchange = _current.get()()
    if exchange is None:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the request has ended")
    return exchange


class _ClientRequest(aiohttp.ClientRequest):
    """A request that shares connections with its function only, and says when it has one."""

    @property
    def connection_key(self) -> Any:
        """The pool's key. No request has a proxy, so the part of it that is free."""
        return super().connection_key._replace(proxy_headers_hash=_exchange().share.pool)

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """Begin to send on *conn*."""
        _exchange().connected()
        return await super().send(conn)


class _Resolver(AbstractResolver):
    """Names to addresses, for the current request."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Raises: OutboundError."""
        addresses = await _exchange().resolve(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _checked_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, proto, _, address = info
    return _exchange().make_socket(family, kind, proto, address[0])


def _crowded(sockets: Sockets, most: int) -> bool:
    return len(sockets) >= most and sum(sock.fileno() >= 0 for sock in sockets) >= most


def _system_lookup(host: str) -> list[str]:
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _release(done: asyncio.Future[list[str]], lookups: asyncio.Semaphore) -> None:
    lookups.release()
    if not done.cancelled():
        done.exception()  # nobody may be left to ask
