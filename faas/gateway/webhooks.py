"""Webhooks: requests whose signature the host checks, and whose repetitions it drops, before any guest sees them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from faas.clock import Clock
from faas.errors import (
    DeliveryUnderWayError,
    FaasError,
    InternalError,
    SignatureInvalidError,
    WebhookSecretMissingError,
)
from faas.gateway.call import Call, LocalRedirect, RequestBody
from faas.gateway.jobs import JobGate, accepted, encoded
from faas.gateway.lane import Answer, Lane, ReadLane, Reply
from faas.gateway.live import X_FAAS_ALIAS
from faas.gateway.webhook_paths import plain
from faas.guest.ports import SecretsPort
from faas.log import event
from faas.manifest import Webhook, WebhookScheme
from faas.wire.peer import Peer

LEASE_SPARE_S: Final = 30.0
"""Beyond what a permit and the guest may take, until a delivery of which nobody says how it ended may come again."""
MAX_DELIVERY_CHARS: Final = 255
GITHUB: Final = Webhook(
    path="/",
    secret="-",
    header="x-hub-signature-256",
    prefix="sha256=",
    delivery_header="x-github-delivery",
)
"""What ``scheme = "github"`` stands for."""

_log = logging.getLogger(__name__)

Admit = Callable[[Call], Awaitable[Answer]]


def verify(hook: Webhook, secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """
    Return the signature that *body* is signed with.

    A header may hold several, between commas or spaces, as it does while a secret is changed.
    Args: *now* is the time in seconds since the epoch.
    Raises: SignatureInvalidError.
    Source: GitHub's "Validating webhook deliveries" for that scheme.
    """
    form, given, timestamp = signed_parts(hook, headers, now)
    before, _, after = form.signed.partition("{body}")
    signed = before.replace("{timestamp}", timestamp).encode("utf-8", "surrogateescape")
    signed += body + after.replace("{timestamp}", timestamp).encode("utf-8", "surrogateescape")
    wanted = hmac.new(secret.encode(), signed, getattr(hashlib, form.algorithm)).digest()
    for candidate in re.split(r"[,\s]+", given):
        if candidate.startswith(form.prefix) and hmac.compare_digest(
            _decoded(candidate[len(form.prefix) :], form.encoding), wanted
        ):
            return candidate
    raise SignatureInvalidError(
        f"the signature in {form.header} is not that of this body; check the secret, and that the body is sent as it "
        "was signed"
    )


def signed_parts(hook: Webhook, headers: Mapping[str, str], now: float) -> tuple[Webhook, str, str]:
    """
    Return how *hook* is signed, what its header says, and the time that is signed, '' if none is; needs no body.

    Raises: SignatureInvalidError.
    """
    form = GITHUB if hook.scheme is WebhookScheme.GITHUB else hook
    given = headers.get(form.header, "").strip()
    if not given:
        raise SignatureInvalidError(f"the request has no {form.header}; sign it with the secret of this webhook")
    return form, given, _timestamp(form, headers, now) if form.timestamp_header else ""


def _timestamp(form: Webhook, headers: Mapping[str, str], now: float) -> str:
    text = headers.get(form.timestamp_header, "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise SignatureInvalidError(f"the request has no {form.timestamp_header} in seconds since the epoch; send one")
    if abs(now - int(text)) > form.tolerance_s:
        raise SignatureInvalidError(
            f"{form.timestamp_header} is more than {form.tolerance_s:g} s from now; send it again, with a clock that "
            "is right"
        )
    return text


def _decoded(text: str, encoding: str) -> bytes:
    """Return a signature's bytes; what is none is no signature of anything."""
    try:
        if encoding == "hex":
            return bytes.fromhex(text) if text.isascii() and not re.search(r"\s", text) else b""
        return base64.b64decode(text.encode(), validate=True)
    except (ValueError, binascii.Error):
        return b""


def delivery_of(hook: Webhook, headers: Mapping[str, str], signature: str) -> str:
    """
    Return what tells a delivery from its repetitions: its id, or the signature where there is none.

    A signature with a timestamp is of one delivery; one without is of one body.
    """
    name = hook.delivery_header or (GITHUB.delivery_header if hook.scheme is WebhookScheme.GITHUB else "")
    id = headers.get(name, "").strip() if name else ""
    if not id or len(id) > MAX_DELIVERY_CHARS or not id.isprintable():
        return "signature:" + hashlib.sha256(signature.encode("utf-8", "surrogateescape")).hexdigest()
    return f"id:{id}"


class WebhookGate:
    """Serves a worker's webhooks; lives as long as it. Thread: the loop's only."""

    def __init__(
        self,
        peer: Peer,
        jobs: JobGate,
        clock: Clock,
        secrets: Callable[[], SecretsPort | None],
        *,
        queue_timeout_s: float,
    ) -> None:
        """
        Args: *peer* is the control process, which remembers deliveries; *secrets* returns where secrets are;
        *queue_timeout_s* is how long a request may wait for a permit, where its function does not say.
        """
        self._peer = peer
        self._jobs = jobs
        self._clock = clock
        self._secrets = secrets
        self._queue_timeout_s = queue_timeout_s
        self._ending: set[asyncio.Task[None]] = set()

    async def serve(self, call: Call, hook: Webhook, admit: Admit) -> Answer:
        """
        Answer a request to *hook*: by *admit*, which runs the function, as a job, or without either.

        Raises: SignatureInvalidError, WebhookSecretMissingError, DeliveryUnderWayError, BodyTooLargeError; as *admit*.
        """
        lane, served = call.lane, call.served
        if not isinstance(lane, Lane):
            raise InternalError("a webhook was reached in memory")
        secret = self._secret(served.name, hook.secret)  # before the body is read: without it nothing is accepted
        request = await lane.leave()
        try:
            # First what needs no body: who does not even try to sign does not get to send one.
            signed_parts(hook, request.headers, self._clock.time_ns() / 1e9)
            if hook.run_async:
                body = await self._jobs.read(lane, served)
            else:
                body = await RequestBody(request, served.deployment.manifest.limits.max_body_bytes).read_all()
            signature = verify(hook, secret, request.headers, body, self._clock.time_ns() / 1e9)
        except SignatureInvalidError as exc:
            event(
                _log,
                "webhook.refused",
                level=logging.WARNING,
                function=served.name,
                path=hook.path,
                remote=request.remote,
                request_id=call.request_id,
                reason=exc.message,
            )
            raise
        key = f"webhook:{plain(hook.path)}:{delivery_of(hook, request.headers, signature)}"
        if hook.run_async:
            return await self._queue(call, hook, key, body)
        return await self._run(call, hook, key, ReadLane(request, body), admit)

    def _secret(self, function: str, name: str) -> str:
        port = self._secrets()
        secret = None if port is None else port.get(function, name)
        if not secret:
            event(_log, "webhook.secret_missing", level=logging.ERROR, function=function, secret=name)
            raise WebhookSecretMissingError(
                f"the secret {name!r} that this webhook is checked with is not set, so nothing is accepted; say "
                f"`faas secrets set {function} {name}`"
            )
        return secret

    async def _queue(self, call: Call, hook: Webhook, key: str, body: bytes) -> Reply:
        target = call.raw_path + (f"?{call.query}" if call.query else "")
        request = call.request
        queued = await self._jobs.queue(
            call.served.name,
            request.headers.get(X_FAAS_ALIAS, ""),
            {
                "method": call.method,
                "target": target,
                "headers": encoded(request.headers.items()),
                "body": body,
                "remote": request.remote or "",
            },
            source="webhook",
            key=key,
            key_keep_s=hook.dedup_s,
        )
        return accepted(queued, call.request_id)

    async def _run(self, call: Call, hook: Webhook, key: str, lane: ReadLane, admit: Admit) -> Answer:
        function = call.served.name
        limits = call.served.deployment.manifest.limits
        queue_timeout_s = self._queue_timeout_s if limits.queue_timeout_s is None else limits.queue_timeout_s
        lease_s = queue_timeout_s + limits.timeout_s + LEASE_SPARE_S
        known = await self._peer.ask("deliveries.begin", function=function, key=key, lease_s=lease_s)
        if known == "done":
            own = {"Content-Type": "application/json", "X-Request-Id": call.request_id, "X-Faas-Duplicate": "true"}
            return Reply(200, b'{"duplicate": true}', own)
        if known != "new":
            raise DeliveryUnderWayError("this very delivery is being served just now; send it again later")
        call.lane = lane
        served = False
        try:
            answer = await admit(call)
            served = answer.status < 500 and answer.status != 429
            return answer
        except LocalRedirect:
            served = True
            raise
        finally:
            # In a task of its own: this one may be cancelled, because the client went away.
            task = asyncio.create_task(self._end(function, key, hook.dedup_s, served=served))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, function: str, key: str, keep_s: float, *, served: bool) -> None:
        asked: dict[str, Any] = {"function": function, "key": key, "keep_s": keep_s, "served": served}
        try:
            await self._peer.ask("deliveries.end", **asked)
        except FaasError as exc:
            event(_log, "webhook.not_noted", level=logging.WARNING, function=function, reason=exc.message)
