"""The admin API as commands call it: finds the host, sends the token, maps every failure to one of our errors."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from faas.config import default_home, load_config
from faas.control.views import DoneEvent, FailedEvent, HashingEvent, ModelAddedEvent, ModelView, ProgressEvent
from faas.errors import FaasError, HostUnreachableError, InternalError, UnauthorizedError
from faas.manifest import Manifest, manifest_to_builtins
from faas.problems import CONTENT_TYPE, from_problem

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


def find_host(home: Path | None, admin_url: str | None, environ: Mapping[str, str]) -> Access:
    """
    Return how to reach the host: what was given, else what the running host wrote down, else the settings.

    Raises: ConfigError; UnauthorizedError if there is no token to be found.
    """
    folder = home if home is not None else default_home(environ)
    url = admin_url or environ.get("FAAS_ADMIN_URL") or _announced_url(folder)
    if not url:
        url = f"http://127.0.0.1:{load_config({'home': str(folder)}, environ).admin_port}"
    token = environ.get("FAAS_TOKEN", "")
    if not token:
        try:
            token = (folder / "token").read_text().strip()
        except OSError as exc:
            raise UnauthorizedError(
                f"no admin token in {folder / 'token'} ({exc.strerror}); is --home right and was 'faas serve' ever "
                "started there? FAAS_TOKEN gives a token too"
            ) from exc
    return Access(url=url.rstrip("/"), token=token)


def _announced_url(home: Path) -> str:
    try:
        return str(json.loads((home / "run" / "host.json").read_text())["admin_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # no host runs, or it is on another machine: the settings tell


class AdminClient:
    """One conversation with the admin API; lives inside ``async with``."""

    def __init__(self, access: Access) -> None:
        """Connect with the first call."""
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
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

    async def get(self, path: str) -> Any:
        """Return the JSON document at *path*."""
        async with self._send("GET", path) as response:
            return json.loads(await response.read())

    async def send(self, method: str, path: str, document: Any) -> Any:
        """Send *document* as JSON and return the JSON document that answers it."""
        async with self._send(method, path, json=document) as response:
            return json.loads(await response.read())

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
    ) -> DoneEvent:
        """
        Deploy, and return the last event once every worker serves.

        Args: *on_sent* hears of each piece of the module that went out, in bytes; *on_stage* of each stage.
        Raises: what the host refused with; HostUnreachableError if it went away.
        """
        with aiohttp.MultipartWriter("form-data") as body:
            _add(body, "manifest", json.dumps(manifest_to_builtins(manifest)).encode(), "application/json")
            if bundle:
                _add(body, "bundle", bundle, "application/x-tar")
            _add(body, "module", _pieces(module, on_sent), "application/wasm")
            path = f"/api/functions/{manifest.name}"
            async with self._send("PUT", path, data=body, headers={"Accept": _NDJSON}) as response:
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
        except aiohttp.ClientConnectorError as exc:
            raise HostUnreachableError(
                f"no host answers on {self._access.url}; start one with 'faas serve', or check --admin-url and --home"
            ) from exc
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            raise HostUnreachableError(
                f"the host on {self._access.url} hung up ({type(exc).__name__}); its log says why"
            ) from exc
        except (ValueError, msgspec.MsgspecError) as exc:
            raise HostUnreachableError(
                f"what answers on {self._access.url} is no host of ours; check --admin-url"
            ) from exc


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
