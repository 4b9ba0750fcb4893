"""
``make demo-review``: a host with the review bot and a resident model reviews a pull request on a fake GitHub.

Nothing of it leaves the machine. The pull request is a commit of this repository; the comment is printed as it grows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from faas.cli.client import Access, AdminClient, find_host
from faas.cli.package import load_package
from faas.errors import ConfigError, FaasError, HostUnreachableError
from faas.testing.diffs import DiffError, apply_diff, guess_old, parse_diff
from faas.testing.github import FakeGitHub, PullRequest, deliver, pointed_at, running_github

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "functions"
STORED = Path(__file__).with_suffix(".diff")
"""A commit of this repository as ``git show`` has it, for copies without its history."""
AGENT = ("github", "llm", "review-bot")
"""In this order: what is called is there before its caller."""
SECRET = "demo-webhook-secret"
_OVER = frozenset(("succeeded", "dead", "cancelled", "expired"))
_FAAS = "from faas.cli import main; main()"


class Running(NamedTuple):
    """A host that serves."""

    access: Access
    public_url: str


class Change(NamedTuple):
    """What the pull request is made of; *base* has the files that the diff changes, as far as they are known."""

    title: str
    diff: str
    base: Mapping[str, bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is 0 once there is exactly one comment, finished."""
    options = _parser().parse_args(arguments)
    try:
        change = change_of(options.commit, options.diff)
        with running_github(FakeGitHub(token="demo-token")) as server, _home(options.home) as home:
            print(f"fake GitHub   {server.url}\nhome          {home}", flush=True)
            with running_host(home, models=options.model, workers=options.workers) as host:
                print(f"host          {host.public_url}", flush=True)
                deploying = deploy_agent(
                    host.access, server.url, token="demo-token", secret=SECRET, functions=options.functions
                )
                path = asyncio.run(deploying)
                print(f"functions     {', '.join(AGENT)}", flush=True)
                repository = server.github.repository("octo/faas", change.base)
                pull = repository.open_pull(change.title, change.diff, body="From the history of this repository.")
                names = ", ".join(diff.path for diff in repository.changes(pull.base_sha, pull.head_sha))
                print(f"pull request  #{pull.number} {pull.title}: {names}", flush=True)
                return asyncio.run(_review(server.github, pull, host.public_url, path, options.timeout_s))
    except FaasError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo-review", description=__doc__)
    parser.add_argument("--commit", default="", help="a commit of this repository, instead of the stored one")
    parser.add_argument("--diff", type=Path, help="a file with a unified diff, instead of a commit")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH", help="as for faas serve")
    parser.add_argument("--functions", type=Path, default=FUNCTIONS, help="the folder with github, llm and review-bot")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--home", type=Path, help="the host's home, kept afterwards; a temporary one if left out")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="give up after so many seconds")
    return parser


@contextlib.contextmanager
def _home(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="faas-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


# --- the pull request -------------------------------------------------------------------------------------------------


def change_of(commit: str, file: Path | None) -> Change:
    """
    Return what a commit of this repository, or a file with a diff, changes; the stored one without either.

    Raises: ConfigError.
    """
    if commit:
        with _refused(commit, "name another --commit, or leave it out for the stored one"):
            title, _, diff = _git("show", "--format=%s", commit, "--").decode().partition("\n")
            before = [one.before for one in parse_diff(diff) if one.status != "added"]
            base = {path: _git("show", f"{commit}^:{path}") for path in before}
            return _fitting(Change(title, diff, base))
    path = file or STORED
    with _refused(str(path), "--diff takes a unified diff in UTF-8, as `git diff` writes it"):
        text = path.read_bytes().decode()
        return _fitting(Change(path.stem if text.startswith("diff ") else text.partition("\n")[0], text, {}))


@contextlib.contextmanager
def _refused(source: str, advice: str) -> Iterator[None]:
    """Say of what can't be a pull request what to give instead."""
    try:
        yield
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{source} changes text that is not UTF-8; {advice}") from exc
    except (OSError, DiffError) as exc:
        raise ConfigError(f"can't take {source}: {exc}; {advice}") from exc


def _fitting(change: Change) -> Change:
    """Return *change*, which can be applied. Raises: DiffError, UnicodeDecodeError."""
    diffs = parse_diff(change.diff)
    if not diffs:
        raise DiffError("it has no changed file as git shows it, as merges have none")
    guessed = {diff.before: guess_old(diff) for diff in diffs if diff.status != "added"}
    apply_diff(diffs, {**guessed, **change.base})
    return change


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        said = (
            exc.stderr.decode(errors="replace").strip() if isinstance(exc, subprocess.CalledProcessError) else str(exc)
        )
        raise ConfigError(f"git {' '.join(arguments)} failed: {said}; leave --commit out for the stored one") from exc


# --- the host ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_host(home: Path, *, models: Sequence[str] = (), workers: int = 1) -> Iterator[Running]:
    """
    Run ``faas serve`` on free ports until the block is left, then drain it; its log is ``home/serve.log``.

    Raises: HostUnreachableError if it does not come up, or has no model.
    """
    command = [sys.executable, "-c", _FAAS, "serve", "--home", str(home), "--port", "0", "--admin-port", "0"]
    command += ["--workers", str(workers), *(f"--model={model}" for model in models)]
    with (home / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise HostUnreachableError(f"the host did not start: {_tail(home / 'serve.log')}")
        announced = msgspec.json.decode((home / "run" / "host.json").read_bytes(), type=dict[str, Any])
        running = Running(find_host(home, None, {}), str(announced["public_url"]))
        asyncio.run(_want_model(running.access))
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


async def _want_model(access: Access) -> None:
    async with AdminClient(access) as client:
        models = (await client.get("/api/models"))["models"]
    if not any(model["name"] == "default" for model in models):
        raise HostUnreachableError(
            "the host has no model 'default': say `make models`, or give --model default=FILE.gguf"
        )


async def deploy_agent(
    access: Access,
    github_url: str,
    *,
    token: str,
    secret: str,
    config: Mapping[str, Mapping[str, str]] | None = None,
    functions: Path = FUNCTIONS,
) -> str:
    """
    Deploy ``github``, ``llm`` and ``review-bot`` for the GitHub at *github_url*; return the webhook's path.

    Args: *config* has further config values by function.
    Raises: what the host refuses with; ManifestError if a function is not built.
    """
    values = {"github": {"GITHUB_API": github_url}, **(config or {})}
    async with AdminClient(access) as client:
        for function, settings in values.items():
            await client.tell("PATCH", f"/api/functions/{function}/config", {"values": dict(settings)})
        await client.tell("PUT", "/api/functions/github/secrets/GITHUB_TOKEN", {"value": token})
        await client.tell("PUT", "/api/functions/review-bot/secrets/WEBHOOK_SECRET", {"value": secret})
        path = ""
        for name in AGENT:
            package = load_package(functions / name)
            manifest = pointed_at(package.manifest, github_url)
            await client.deploy(
                manifest, package.module, package.bundle, on_sent=lambda _: None, on_stage=lambda _: None
            )
            path = manifest.webhooks[0].path if manifest.webhooks else path
    return path


# --- the review -------------------------------------------------------------------------------------------------------


async def _review(github: FakeGitHub, pull: PullRequest, public_url: str, path: str, timeout_s: float) -> int:
    begun = time.monotonic()
    answer = await deliver(public_url + path, "pull_request", github.pull_request_event(pull, "opened"), secret=SECRET)
    if answer.status != 202:
        raise HostUnreachableError(f"the webhook was answered {answer.status}: {answer.body.decode(errors='replace')}")
    job = msgspec.json.decode(answer.body, type=dict[str, str])
    print(f"webhook       202, job {job['job']}", flush=True)
    watching = asyncio.create_task(_watch(pull, begun))
    try:
        async with asyncio.timeout(timeout_s):
            state = await _finished(public_url + job["status_url"])
    except TimeoutError:
        state = f"still under way after {timeout_s:g} s"
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    own = [comment for comment in pull.comments if comment.user == github.login]
    for comment in own:
        print(f"\n{'=' * 30} the comment {'=' * 30}\n{comment.body}\n{'=' * 73}")
    edits = sum(len(comment.history) - 1 for comment in own)
    print(
        f"the job has {state}; {len(own)} comment{'s' * (len(own) != 1)}, edited {edits} times, "
        f"{time.monotonic() - begun:.1f} s, {len(github.requests)} requests to GitHub",
        flush=True,
    )
    return 0 if state == "succeeded" and len(own) == 1 else 1


async def _finished(url: str) -> str:
    """Return the state that a job ends in."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                state = str((await response.json()).get("state", ""))
            if state in _OVER:
                return state
            await asyncio.sleep(0.25)


async def _watch(pull: PullRequest, begun: float) -> None:
    """Print what is new in each version of each comment."""
    shown: dict[int, int] = {}
    while True:
        for comment in list(pull.comments):
            for version in range(shown.get(comment.id, 0), len(comment.history)):
                before = comment.history[version - 1] if version else ""
                print(f"\n--- comment {comment.id}, version {version + 1}, after {time.monotonic() - begun:.1f} s")
                print("\n".join(news(before, comment.history[version])), flush=True)
            shown[comment.id] = len(comment.history)
        await asyncio.sleep(0.1)


def news(before: str, after: str) -> list[str]:
    """Return the lines of *after* that *before* has not, in their order."""
    old, new = before.splitlines(), after.splitlines()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [line for tag, _, _, start, end in matcher.get_opcodes() if tag != "equal" for line in new[start:end]]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the host would outlive us
    sys.exit(main())
