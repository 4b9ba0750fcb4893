"""``make bench-traffic``: splits, rollbacks and canaries under load, by what each reply says of its version."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from loadtest.host import FUNCTIONS, Host
from loadtest.openloop import ends, head
from loadtest.report import Finding, findings_table, percentile
from loadtest.report import console as new_console

HELLO = FUNCTIONS / "hello-c" / "hello-c.wasm"
CGI = FUNCTIONS / "bad" / "cgi.wasm"
"""Answers with the status that its query asks for; ``HELLO`` does not look at it."""

N_WORKERS = 2
N_CONNECTIONS = 64
SPLIT = 10.0
SPLIT_S = 5.0
N_ROLLBACKS = 10
ROLLBACK_MS = 100.0
N_CLIENTS = 1000
CANARY_PER_S = 50.0
FAILS_EVERY = 5
CANARY_S = 10.0
_READ_BYTES = 65536


@dataclass(frozen=True)
class Seen:
    """One reply: when its request was begun (Unix time), its status, and who answered."""

    began: float
    status: int
    version: int
    taken_s: float


@dataclass
class Replies:
    """What came of many requests."""

    seen: list[Seen] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def n_failed(self) -> int:
        """How many were not answered with a status below 400."""
        return sum(self.errors.values()) + sum(reply.status >= 400 for reply in self.seen)

    def by_version(self) -> Counter[int]:
        """Return how many each version answered."""
        return Counter(reply.version for reply in self.seen)


def main() -> int:
    """Return 0 when every promise holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.traffic", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run just this one")
    args = parser.parse_args()
    console = new_console()
    findings: list[Finding] = []
    with (
        tempfile.TemporaryDirectory(prefix="faas-bench-") as folder,
        Host(Path(folder) / "home", workers=N_WORKERS) as host,
    ):
        for name, benchmark in BENCHMARKS.items():
            if args.only in {None, name}:
                console.print(f"{name} ...")
                findings += uvloop.run(benchmark(host))
    console.print(
        findings_table(f"traffic between two versions, {N_WORKERS} workers, {N_CONNECTIONS} connections", findings)
    )
    return 0 if all(finding.holds for finding in findings) else 1


async def split(host: Host) -> list[Finding]:
    """A split of 90 to 10, also by a client's header."""
    old, new = _two_versions(host, "split", HELLO)
    await _weights(host, "split", {old: 100 - SPLIT, new: SPLIT})
    replies = await _load(host, "/split", SPLIT_S)
    counted = replies.by_version()
    part = 100 * counted[new] / max(1, len(replies.seen))
    ids = [f"client-{n}" for n in range(N_CLIENTS)]
    sides: dict[float, dict[str, set[int]]] = {}
    for weight in (SPLIT, 50.0):
        await _weights(host, "split", {old: 100 - weight, new: weight}, sticky="header:X-Client")
        sides[weight] = await _sides(host, "/split", ids)
    first, later = sides[SPLIT], sides[50.0]
    n_torn = sum(len(versions) > 1 for found in sides.values() for versions in found.values())
    n_back = sum(first[id] == {new} and later[id] != {new} for id in ids)
    on_new = 100 * sum(versions == {new} for versions in first.values()) / N_CLIENTS
    return [
        Finding("split", f"replies in {SPLIT_S:g} s", f"{len(replies.seen)}"),
        Finding("split", f"to the new version at {SPLIT:g} %", f"{part:.2f} %", "10 ± 2 %", abs(part - SPLIT) <= 2),
        Finding("split", "failed requests", str(replies.n_failed), "0", replies.n_failed == 0),
        Finding(
            "sticky", f"of {N_CLIENTS} clients on the new version", f"{on_new:.1f} %", "10 ± 3 %", abs(on_new - 10) <= 3
        ),
        Finding("sticky", "clients that two versions answered", str(n_torn), "0", n_torn == 0),
        Finding("sticky", "that left the new one while its weight grew to 50 %", str(n_back), "0", n_back == 0),
    ]


async def rollback(host: Host) -> list[Finding]:
    """Rollbacks under load; the host says when each was committed, by the clock that this process reads too."""
    old, new = _two_versions(host, "back", HELLO)
    late_ms: list[float] = []
    took_ms: list[float] = []
    n_after = n_failed = n_requests = 0
    for _ in range(N_ROLLBACKS):
        loading = asyncio.ensure_future(_load(host, "/back", 1.0))
        await asyncio.sleep(0.5)
        began = time.perf_counter()
        done = await _admin(host, "POST", "/api/functions/back/rollback", {})
        took_ms.append((time.perf_counter() - began) * 1000)
        returned = time.time()
        replies = await loading
        if done["version"] != old:
            raise AssertionError(done)
        begun = [reply.began for reply in replies.seen if reply.version == new]
        late_ms.append(max(0.0, (max(begun, default=0.0) - done["committed_at"]) * 1000))
        n_after += sum(at > returned for at in begun)
        n_failed += replies.n_failed
        n_requests += len(replies.seen)
        await _weights(host, "back", {new: 100})
    return [
        Finding("rollback", f"requests beside {N_ROLLBACKS} rollbacks", str(n_requests)),
        Finding(
            "rollback",
            "last request to the rolled-back version, begun after the commit; worst",
            f"{max(late_ms):.1f} ms",
            f"≤ {ROLLBACK_MS:g} ms",
            max(late_ms) <= ROLLBACK_MS,
        ),
        Finding("rollback", "… median", f"{percentile(late_ms, 50):.1f} ms"),
        Finding("rollback", "begun after the command had returned", str(n_after), "0", n_after == 0),
        Finding("rollback", "failed requests", str(n_failed), "0", n_failed == 0),
        Finding(
            "rollback", "the command took, median / worst", f"{percentile(took_ms, 50):.0f} / {max(took_ms):.0f} ms"
        ),
    ]


async def canary(host: Host) -> list[Finding]:
    """A canary whose new version fails 20 %, and one that fails none, at a steady rate."""
    old, new = _two_versions(host, "bird", HELLO, CGI)
    await _weights(host, "bird", {old: 100})
    seconds = CANARY_S + 3
    steady = asyncio.ensure_future(_steady(host, "/bird", seconds))
    await asyncio.sleep(1.0)
    await _admin(host, "POST", "/api/functions/bird/canary", {"version": new})
    started = time.time()
    replies = await steady
    to_new = [reply for reply in replies.seen if reply.version == new]
    back_s = max((reply.began for reply in to_new), default=started) - started
    ended = (await _admin(host, "GET", "/api/functions/bird/canary"))["canary"]
    rolled_back = ended["phase"] == "rolled-back"
    by_old = [reply for reply in replies.seen if reply.version == old]
    old_failed = sum(reply.status >= 400 for reply in by_old)
    findings = [
        Finding(
            "canary",
            f"20 % fail, {CANARY_PER_S:g} requests/s, the default plan: ended as",
            ended["phase"],
            "rolled-back",
            rolled_back,
        ),
        Finding("canary", "its reason", ended["reason"]),
        Finding(
            "canary",
            "last request to it, after the start",
            f"{back_s:.1f} s",
            f"≤ {CANARY_S:g} s",
            bool(to_new) and back_s <= CANARY_S,
        ),
        Finding("canary", "requests it got; of them failed", f"{len(to_new)}; {sum(r.status >= 400 for r in to_new)}"),
        Finding("canary", "failed requests of the old version", str(old_failed), "0", old_failed == 0 < len(by_old)),
    ]
    good = host.deploy({"name": "bird", "routes": ["/bird"]}, HELLO)
    await _weights(host, "bird", {old: 100})
    steady = asyncio.ensure_future(_steady(host, "/bird", 11.0))
    plan = {"steps": [10, 50, 100], "interval_s": 2, "min_requests": 5}
    await _admin(host, "POST", "/api/functions/bird/canary", {"version": good, "plan": plan})
    replies = await steady
    ended = (await _admin(host, "GET", "/api/functions/bird/canary"))["canary"]
    findings += [
        Finding(
            "good canary",
            "steps 10, 50, 100 of 2 s: ended as",
            ended["phase"],
            "promoted",
            ended["phase"] == "promoted",
        ),
        Finding("good canary", "failed requests", str(replies.n_failed), "0", replies.n_failed == 0),
    ]
    return findings


def _two_versions(host: Host, name: str, old: Path, new: Path | None = None) -> tuple[int, int]:
    manifest = {"name": name, "routes": [f"/{name}"]}
    return host.deploy(manifest, old), host.deploy(manifest, new or old)


async def _weights(host: Host, name: str, weights: dict[int, float], *, sticky: str = "") -> None:
    document = {"weights": {str(version): weight for version, weight in weights.items()}, "sticky": sticky}
    await _admin(host, "PUT", f"/api/functions/{name}/aliases/live", document)


async def _admin(host: Host, method: str, path: str, document: Any = None) -> Any:
    body = b"" if document is None else json.dumps(document).encode()
    return json.loads(await asyncio.to_thread(host.admin, method, path, body, {"Content-Type": "application/json"}))


async def _load(host: Host, path: str, seconds: float) -> Replies:
    """Let every connection ask one request after the other."""
    replies = Replies()
    until = time.perf_counter() + seconds

    async def caller() -> None:
        async with _Connection(host) as connection:
            while time.perf_counter() < until:
                await connection.ask(path, replies)

    await asyncio.gather(*(caller() for _ in range(N_CONNECTIONS)))
    return replies


async def _steady(host: Host, path: str, seconds: float) -> Replies:
    """Ask ``CANARY_PER_S`` times a second; every ``FAILS_EVERY``th request would fail in ``CGI``."""
    replies = Replies()
    began = time.perf_counter()
    async with _Connection(host) as one, _Connection(host) as other:
        for n in range(int(seconds * CANARY_PER_S)):
            await asyncio.sleep(max(0.0, n / CANARY_PER_S - (time.perf_counter() - began)))
            query = "?status=500" if n % FAILS_EVERY == 0 else ""
            await (one if n % 2 else other).ask(path + query, replies)
    return replies


async def _sides(host: Host, path: str, ids: list[str]) -> dict[str, set[int]]:
    """Return which versions answered each client, which asks four times on changing connections."""
    found: dict[str, set[int]] = {id: set() for id in ids}
    connections = [await _Connection(host).__aenter__() for _ in range(8)]
    try:
        for turn in range(4):
            for n, id in enumerate(ids):
                replies = Replies()
                await connections[(n + 3 * turn) % 8].ask(path, replies, f"X-Client: {id}\r\n")
                found[id] |= set(replies.by_version())
    finally:
        for connection in connections:
            await connection.__aexit__()
    return found


class _Connection:
    """One kept connection to the host's public port; connected again after an error."""

    def __init__(self, host: Host) -> None:
        parts = urlsplit(host.public_url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> _Connection:
        self._streams = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def ask(self, path: str, replies: Replies, headers: str = "") -> None:
        """Send one request, and note what came of it."""
        began, clock = time.time(), time.perf_counter()
        received = b""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._address[0]}\r\n{headers}\r\n".encode())
            while True:
                chunk = await reader.read(_READ_BYTES)
                if not chunk:
                    raise ConnectionResetError
                received += chunk
                status, fields, end = head(received)
                if ends(received, fields, end):
                    break
        except OSError as exc:
            replies.errors[type(exc).__name__] += 1
            if self._streams is not None:
                self._streams[1].close()
                self._streams = None
            return
        version = int(fields.get("x-faas-version", "0"))
        replies.seen.append(Seen(began, status, version, time.perf_counter() - clock))


BENCHMARKS = {"split": split, "rollback": rollback, "canary": canary}


if __name__ == "__main__":
    sys.exit(main())
