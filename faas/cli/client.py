"""The admin API as commands call it: finds the host, sends the token, maps every failure to one of our errors."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from faas.config import default_home, load_config
from faas.control.views import (
    DoneEvent,
    FailedEvent,
    HashingEvent,
    ModelAddedEvent,
    ModelView,
    ProgressEvent,
    base_url,
)
from faas.errors import FaasError, HostUnreachableError, InternalError, UnauthorizedError
from faas.manifest import Manifest, manifest_to_builtins
from faas.problems import CONTENT_TYPE, from_problem
from faas.tls import fingerprint, trusting

_PIECE_BYTES = 256 * 1024
_NDJSON = "application/x-ndjson"
_events: msgspec.json.Decoder[ProgressEvent | DoneEvent | FailedEvent] = msgspec.json.Decoder(
    ProgressEvent | DoneEvent | FailedEvent
)
_model_events: msgspec.json.Decoder[HashingEvent | ModelAddedEvent | FailedEvent] = msgspec.json.Decoder(
    HashingEvent | ModelAddedEvent | FailedEvent
)


class Access(msgspec.Struct, frozen=True):
    """Where the admin API is and what opens it."""

    url: str
    token: str
    ca_file: str = ""
    """Whose certificates are trusted, over TLS; '' means the system's."""
    fingerprint: bytes = b""
    """SHA-256 of the one certificate that is trusted instead, b'' for none: that of the host of this very machine."""

    def trust(self) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
        """
        Return what aiohttp takes as ``ssl``.

        Raises: ConfigError.
        """
        if self.fingerprint:
            return _Pinned(self.fingerprint)
        return trusting(self.ca_file) if self.ca_file else True


class _Pinned(aiohttp.Fingerprint):
    """As aiohttp's, which would wait for a proper end of TLS with somebody that it does not trust."""

    def check(self, transport: asyncio.Transport) -> None:
        """Hang up on who presents another certificate, and raise ServerFingerprintMismatch."""
        try:
            super().check(transport)
        except aiohttp.ServerFingerprintMismatch:
            asyncio.get_running_loop().call_soon(transport.abort)  # once aiohttp has closed it
            raise


def find_host(home: Path | None, admin_url: str | None, environ: Mapping[str, str]) -> Access:
    """
    Return how to reach the host: what was given, else what the running host wrote down, else the settings.

    Raises: ConfigError; UnauthorizedError if there is no token to be found.
    """
    folder = home if home is not None else default_home(environ)
    announced = _announced(folder)
    url = admin_url or environ.get("FAAS_ADMIN_URL") or announced.get("admin_url", "")
    if not url:
        config = load_config({"home": str(folder)}, environ)
        url = base_url(config.admin_host, config.admin_port, tls=bool(config.admin_tls_cert))
    url = url.rstrip("/")
    token = environ.get("FAAS_TOKEN", "")
    if not token:
        try:
            token = (folder / "token").read_text().strip()
        except OSError as exc:
            raise UnauthorizedError(
                f"no admin token in {folder / 'token'} ({exc.strerror}); is --home right and was 'faas serve' ever "
                "started there? FAAS_TOKEN gives a token too"
            ) from exc
    ca_file = environ.get("FAAS_CA_FILE", "")
    own = not ca_file and url == announced.get("admin_url") and announced.get("admin_cert", "")
    return Access(url=url, token=token, ca_file=ca_file, fingerprint=fingerprint(own) if own else b"")


def public_access(home: Path | None, url: str, environ: Mapping[str, str]) -> Access:
    """Return whom to trust at *url*, where functions are served: as ``find_host``, without a token."""
    announced = _announced(home if home is not None else default_home(environ))
    ca_file = environ.get("FAAS_CA_FILE", "")
    own = not ca_file and url == announced.get("public_url") and announced.get("public_cert", "")
    return Access(url=url, token="", ca_file=ca_file, fingerprint=fingerprint(own) if own else b"")


def _announced(home: Path) -> dict[str, str]:
    try:
        told = json.loads((home / "run" / "host.json").read_text())
    except (OSError, ValueError):
        return {}  # no host runs, or it is on another machine: the settings tell
    return {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}


class AdminClient:
    """One conversation with the admin API; lives inside ``async with``."""

    def __init__(self, access: Access) -> None:
        """Connect with the first call."""
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._access.trust()),
            headers={"Authorization": f"Bearer {self._access.token}"},
            # A deploy takes as long as it takes, a log is followed for ever: only reaching the host has a limit.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=1 << 22,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """Return the JSON document at *path*."""
        async with self._send("GET", path, params=params) as response:
            return json.loads(await response.read())

    async def send(self, method: str, path: str, document: Any) -> Any:
        """Send *document* as JSON and return the JSON document that answers it."""
        async with self._send(method, path, json=document) as response:
            return json.loads(await response.read())

    async def get_bytes(self, path: str, params: Mapping[str, str]) -> bytes:
        """Return what is at *path*, whatever it is."""
        async with self._send("GET", path, params=dict(params)) as response:
            return await response.read()

    async def put_bytes(self, path: str, params: Mapping[str, str], content: bytes) -> None:
        """Put *content* at *path*."""
        async with self._send("PUT", path, params=dict(params), data=content):
            return

    async def tell(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        params: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Send *document* as JSON, if there is one, to what answers without a document."""
        async with self._send(method, path, json=document, params=params):
            return

    async def delete(self, path: str) -> None:
        """Delete what is at *path*."""
        async with self._send("DELETE", path):
            return

    async def lines(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Yield each line of an NDJSON answer as it comes."""
        async with self._send("GET", path, params=dict(params)) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
            if rest:
                yield rest

    async def deploy(
        self,
        manifest: Manifest,
        module: Path,
        bundle: bytes,
        *,
        on_sent: Callable[[int], None],
        on_stage: Callable[[str], None],
        placement: Mapping[str, str] | None = None,
    ) -> DoneEvent:
        """
        Deploy, and return the last event once every worker serves.

        Args: *on_sent* hears of each piece of the module that went out, in bytes; *on_stage* of each stage;
        *placement* says who gets the new version, as the endpoint's query parameters.
        Raises: what the host refused with; HostUnreachableError if it went away.
        """
        with aiohttp.MultipartWriter("form-data") as body:
            _add(body, "manifest", json.dumps(manifest_to_builtins(manifest)).encode(), "application/json")
            if bundle:
                _add(body, "bundle", bundle, "application/x-tar")
            _add(body, "module", _pieces(module, on_sent), "application/wasm")
            path = f"/api/functions/{manifest.name}"
            accept = {"Accept": _NDJSON}
            async with self._send("PUT", path, data=body, headers=accept, params=dict(placement or {})) as response:
                async for line in response.content:
                    told = _events.decode(line)
                    if isinstance(told, ProgressEvent):
                        on_stage(told.stage)
                    elif isinstance(told, FailedEvent):
                        raise from_problem(told.problem)
                    else:
                        return told
        raise HostUnreachableError("the host went away in the middle of the deploy; 'faas list' shows what is served")

    async def add_model(self, name: str, path: str, *, on_hashed: Callable[[int], None]) -> ModelView:
        """
        Register the model file *path* of the host's machine as *name*, and return it once it can be used.

        Args: *on_hashed* hears how many bytes of the file are hashed so far.
        Raises: what the host refused with; HostUnreachableError if it went away.
        """
        async with self._send(
            "PUT", f"/api/models/{name}", json={"path": path}, headers={"Accept": _NDJSON}
        ) as response:
            async for line in response.content:
                told = _model_events.decode(line)
                if isinstance(told, HashingEvent):
                    on_hashed(told.done_bytes)
                elif isinstance(told, FailedEvent):
                    raise from_problem(told.problem)
                else:
                    return told.model
        raise HostUnreachableError("the host went away in the middle of it; 'faas models list' shows what it has")

    @asynccontextmanager
    async def _send(self, method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The gate: every failure of the transport and every problem document becomes one of our errors."""
        if self._session is None:
            raise InternalError("the admin client is used outside of 'async with'")
        try:
            async with self._session.request(method, self._access.url + path, **more) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                yield response
        except aiohttp.InvalidURL as exc:
            raise HostUnreachableError(f"{self._access.url!r} is no URL; check --admin-url") from exc
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch) as exc:
            raise HostUnreachableError(why_no_tls(self._access, exc)) from exc
        except aiohttp.ClientConnectorError as exc:
            raise HostUnreachableError(
                f"no host answers on {self._access.url}; start one with 'faas serve', or check --admin-url and --home"
            ) from exc
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            raise HostUnreachableError(
                f"the host on {self._access.url} hung up ({type(exc).__name__}); its log says why"
                + ("" if self._access.url.startswith("https:") else ", or it wants https://")
            ) from exc
        except (ValueError, msgspec.MsgspecError) as exc:
            raise HostUnreachableError(
                f"what answers on {self._access.url} is no host of ours; check --admin-url"
            ) from exc


def why_no_tls(access: Access, exc: Exception) -> str:
    """Return what a failed handshake comes to for whoever runs a command."""
    if isinstance(exc, aiohttp.ServerFingerprintMismatch):
        return (
            f"{access.url} does not present the certificate that its host.json names; if that was replaced just now, "
            "try again"
        )
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return (
            f"the certificate of {access.url} is not trusted ({exc.certificate_error}); give the one that vouches for "
            "it with --ca-file or FAAS_CA_FILE"
        )
    return f"no TLS with {access.url}: {exc}; is it https:// there?"


async def _refusal(response: aiohttp.ClientResponse) -> FaasError:
    if response.content_type == CONTENT_TYPE:
        problem = json.loads(await response.read())
        if isinstance(problem, dict):
            return from_problem(problem)
    return HostUnreachableError(f"{response.url} answers {response.status} and is no host of ours; check --admin-url")


def _add(body: aiohttp.MultipartWriter, name: str, content: bytes | AsyncIterator[bytes], media: str) -> None:
    part = body.append(content, {"Content-Type": media})
    part.set_content_disposition("form-data", name=name, filename=name)


async def _pieces(path: Path, on_sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
            on_sent(len(piece))


def environ() -> Mapping[str, str]:
    """Return the process's environment: commands are composition roots, they may read it."""
    return os.environ
