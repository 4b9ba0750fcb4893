"""The parent's side of a precompile job: start it, watch its limits, and put what it made into the store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from faas.artifacts.store import ArtifactStore, disk_watched, native_key
from faas.config import HostConfig, PrecompileConfig
from faas.errors import CompileFailedError, FaasError, InternalError
from faas.manifest import Manifest
from faas.problems import from_problem
from faas.wasm.engine import EngineProfile, fingerprint
from precompile.binary import shown
from precompile.job import Done, Failed, Job, Line, Report, Stage
from precompile.limits import cpu_limit_error, died_of_cpu, died_of_memory, memory_limit_error, wall_limit_error
from precompile.validate import WIZER_EXPORT, ModuleFacts

STAGES = ("validate", "preinit", "compile", "store")

_DOING = {"validate": "checking the module", "preinit": "initialising the snapshot", "compile": "compiling"}
_MAX_STDERR_BYTES = 64 * 1024
_MAX_LINE_BYTES = 32 * 1024 * 1024


class Precompiled(msgspec.Struct, frozen=True):
    """A module as the store holds it: what it is, its digest, and the key of its native code."""

    facts: ModuleFacts
    wasm_digest: str
    artifact_key: str
    wasm_bytes: int
    native_bytes: int
    reused: bool
    stage_ms: dict[str, float]


async def precompile(
    wasm: bytes,
    manifest: Manifest,
    config: HostConfig,
    store: ArtifactStore,
    *,
    on_progress: Callable[[str], None] | None = None,
) -> Precompiled:
    """
    Return *wasm* validated, compiled and stored; failure and cancellation leave nothing half-done behind.

    The bytes are never looked into by this process: all of that happens in a subprocess under the limits of
    ``config.precompile``. A module whose native code is already stored is validated only.
    Args: *on_progress* is called with each of ``STAGES`` as it begins (preinit only when there is one).
    Raises: DeployError of the kind that fits; its message is for the person who deploys. StateError: the disk is full.
    """
    with disk_watched():
        return await _precompile(wasm, manifest, config, store, on_progress)


async def _precompile(
    wasm: bytes,
    manifest: Manifest,
    config: HostConfig,
    store: ArtifactStore,
    on_progress: Callable[[str], None] | None,
) -> Precompiled:
    progress = on_progress or (lambda stage: None)
    profile = EngineProfile.from_config(config)
    digest = await asyncio.to_thread(lambda: hashlib.sha256(wasm).hexdigest())
    scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="job-", dir=store.scratch))
    try:
        wasm_path, native_path = scratch / "module.wasm", scratch / "module.cwasm"
        await asyncio.to_thread(wasm_path.write_bytes, wasm)
        job = Job(
            wasm_path=str(wasm_path),
            wasm_digest=digest,
            output_path=str(native_path),
            scratch=str(scratch),
            manifest=manifest,
            profile=profile,
            cpu_s=config.precompile.cpu_s,
            memory_bytes=config.precompile.memory_bytes,
            timeout_s=config.precompile.timeout_s,
            known_keys=await asyncio.to_thread(_known_keys, store, digest, manifest, profile),
        )
        report = await _run(job, config.precompile, progress)
        progress("store")
        native_bytes = await _store(store, report, wasm, native_path)
    finally:
        # Not awaited: a second cancellation must not leave it behind. A handful of files, so it is short.
        shutil.rmtree(scratch, ignore_errors=True)
    return Precompiled(
        facts=report.facts,
        wasm_digest=digest,
        artifact_key=report.artifact_key,
        wasm_bytes=len(wasm),
        native_bytes=native_bytes,
        reused=report.reused,
        stage_ms=report.stage_ms,
    )


async def recompile(
    wasm_digest: str,
    manifest: Manifest,
    config: HostConfig,
    store: ArtifactStore,
    *,
    on_progress: Callable[[str], None] | None = None,
) -> Precompiled:
    """
    Return the kept module compiled anew where its native code is missing, foreign or of another engine.

    Raises: ArtifactMissingError or ArtifactTamperedError when the kept module itself is unusable; DeployError.
    """
    path = await asyncio.to_thread(store.wasm_path, wasm_digest)
    wasm = await asyncio.to_thread(path.read_bytes)
    return await precompile(wasm, manifest, config, store, on_progress=on_progress)


def _known_keys(store: ArtifactStore, digest: str, manifest: Manifest, profile: EngineProfile) -> tuple[str, ...]:
    """Return the keys this module could get whose native code is stored and proved; only the job knows which it is."""
    mark = fingerprint(profile)
    keys = [native_key(digest, export, mark) for export in {"", WIZER_EXPORT, manifest.preinit}]
    return tuple(key for key in keys if store.has_native(key))


async def _store(store: ArtifactStore, report: Report, wasm: bytes, native_path: Path) -> int:
    """Store both in one step that a cancellation waits for, and return the size of the native code."""

    def put() -> int:
        # The module first: native code without it could not be made again.
        store.put_wasm(wasm)
        if not report.reused:
            store.put_native(report.artifact_key, native_path)
        return store.open_native(report.artifact_key).stat().st_size

    putting = asyncio.ensure_future(asyncio.to_thread(put))
    try:
        return await asyncio.shield(putting)
    except asyncio.CancelledError:
        await asyncio.wait([putting])
        raise


async def _run(job: Job, limits: PrecompileConfig, progress: Callable[[str], None]) -> Report:
    """Run *job* in a process group of its own, and return its report once the whole group is gone."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "precompile"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_MAX_LINE_BYTES,
        start_new_session=True,
        cwd=job.scratch,
        # Nothing of this process's environment: it may hold secrets, and the job reads foreign bytes.
        env={"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "LANG": "C.UTF-8", "TMPDIR": job.scratch},
    )
    stderr = asyncio.create_task(_read_stderr(process))
    stage = STAGES[0]
    try:
        async with asyncio.timeout(limits.timeout_s):
            await _send(process, job)
            last: Line | None = None
            async for last in _lines(process):
                if isinstance(last, Stage):
                    stage = last.name
                    progress(stage)
            returncode = await process.wait()
            last_words = await stderr
    except TimeoutError as exc:
        raise wall_limit_error(limits.timeout_s, _DOING[stage]) from exc
    finally:
        # The group, so that a snapshot in progress ends too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stderr.cancel()
        await process.wait()
    if isinstance(last, Done) and returncode == 0:
        return last.report
    if isinstance(last, Failed):
        raise from_problem(last.problem)
    raise _death(returncode, last_words, job, _DOING[stage])


async def _send(process: Process, job: Job) -> None:
    assert process.stdin is not None
    # A job that died while it started closes its pipe; its exit status says more.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(msgspec.json.encode(job))
        await process.stdin.drain()
    process.stdin.close()


async def _lines(process: Process) -> AsyncIterator[Line]:
    assert process.stdout is not None
    async for raw in process.stdout:
        try:
            yield msgspec.json.decode(raw, type=Line)
        except msgspec.MsgspecError as exc:
            raise InternalError("a precompile job wrote a line that is not of its protocol; see the log") from exc


async def _read_stderr(process: Process) -> bytes:
    """Return the first part of what the job wrote to stderr; the rest is read too, so that it never blocks there."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(_MAX_STDERR_BYTES):
        kept = (kept + chunk)[:_MAX_STDERR_BYTES]
    return kept


def _death(returncode: int, stderr: bytes, job: Job, doing: str) -> FaasError:
    """Return the error for a job that ended without a last word."""
    if died_of_cpu(returncode):
        return cpu_limit_error(job.cpu_s, doing)
    if died_of_memory(returncode, stderr):
        return memory_limit_error(job.memory_bytes, doing)
    if returncode < 0:
        return CompileFailedError(
            f"the compiler died of {signal.Signals(-returncode).name}; the host is unharmed: build the module"
            " differently, or report it with the module",
            signal=signal.Signals(-returncode).name,
        )
    return InternalError(
        f"a precompile job ended with status {returncode} and no result; its last words were:"
        f" {_last_line(stderr) or '(none)'}"
    )


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return shown(lines[-1], limit=300) if lines else ""
