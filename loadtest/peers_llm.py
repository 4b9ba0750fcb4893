"""llama.cpp's own HTTP server, from the package ``xllamacpp``, in a process of its own: ``with Peer(...) as peer``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtest.host import ROOT

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


class PeerFailedError(Exception):
    """The peer did not start or end; the message has the last lines of its log."""


class Peer:
    """
    One server process with one model; ``with`` starts it, and ends it whatever happens.

    It ends by itself when this process does: its stdin closes then.
    """

    def __init__(self, log_path: Path, model: Path, *, threads: int, slots: int, ctx_per_slot: int) -> None:
        self._log_path = log_path
        self._command = [*(sys.executable, "-m", "loadtest.peers_llm", str(model)), *("--threads", str(threads))]
        self._command += [*("--slots", str(slots)), *("--ctx-per-slot", str(ctx_per_slot))]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.settings: dict[str, Any] = {}
        """What it runs with, as it says itself."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The process, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def _start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT
            )
        assert self._process.stdout is not None
        # One line, written at once: it answers when it is there, and at its end there is an empty one.
        if not select.select([self._process.stdout], [], [], READY_TIMEOUT_S)[0]:
            raise PeerFailedError(f"llama.cpp's server was not ready in {READY_TIMEOUT_S:g} s:\n{self._last_words()}")
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailedError(f"llama.cpp's server ended:\n{self._last_words()}")
        said = json.loads(line)
        self.url, self.settings = said["url"], said["settings"]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _last_words(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-20:]) or "(it wrote nothing)"


def main() -> int:
    """Serve until stdin is closed; 1 if the package or the model can't be loaded."""
    args = _parser().parse_args()
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as exc:
        print(f"xllamacpp can't be loaded ({exc}); pip install 'faas[bench]'", file=sys.stderr)
        return 1
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.ctx_per_slot
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    server = xllamacpp.Server(params)
    said = {"url": str(server.listening_address), "settings": _settings(xllamacpp, params)}
    print(json.dumps(said), flush=True)
    sys.stdin.buffer.read()
    del server
    return 0


def _settings(xllamacpp: Any, params: Any) -> dict[str, Any]:
    """Return what *params* say of what matters for speed; all but threads, slots and context are its defaults."""
    return {
        "threads": params.cpuparams.n_threads,
        "slots": params.n_parallel,
        "n_ctx (all slots)": params.n_ctx,
        "n_batch": params.n_batch,
        "n_ubatch": params.n_ubatch,
        "flash attention": _named(params.flash_attn_type),
        "K cells": _named(params.cache_type_k),
        "V cells": _named(params.cache_type_v),
        "kv_unified": params.kv_unified,
        "extra buffers (repacked weights)": not params.no_extra_bufts,
        "continuous batching": params.cont_batching,
        "prompt cache": f"{params.cache_prompt}, {params.cache_ram_mib} MiB for prompts of slots given to others",
        "build": f"prebuilt wheel: {xllamacpp.get_system_info()}",
    }


def _named(member: Any) -> str:
    return str(member.name).rsplit("_TYPE_", 1)[-1].lower()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers_llm", description=__doc__)
    parser.add_argument("model", type=Path, metavar="FILE.gguf")
    parser.add_argument("--threads", type=int, required=True, metavar="N")
    parser.add_argument("--slots", type=int, required=True, metavar="N")
    parser.add_argument("--ctx-per-slot", type=int, required=True, metavar="N", help="tokens")
    return parser


if __name__ == "__main__":
    sys.exit(main())
