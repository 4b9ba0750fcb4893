"""
A fake GitHub for tests and demonstrations: the REST parts that a review bot uses, in GitHub's own shapes.

``FakeGitHub`` holds repositories, pull requests made of unified diffs, comments, and what shall go wrong;
``running_github`` serves it from a thread of its own, so that tests need no loop. It keeps every request, checks the
token, and counts rate limits. Nothing in it is random: the same calls give the same SHAs and ids.

    with running_github(FakeGitHub(token="t")) as server:
        repository = server.github.repository("octo/demo")
        pull = repository.open_pull("Add a file", {"a.txt": b"hello\\n"})
        payload = server.github.pull_request_event(pull, "opened")
        asyncio.run(deliver(hook_url, "pull_request", payload, secret="s"))
        server.github.until(lambda: pull.comments)

Source: docs.github.com/rest (pulls, issues, repos, search, collaborators, "Rate limits", "Using pagination"),
docs.github.com/webhooks.
"""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import hmac
import json
import math
import posixpath
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from faas.manifest import Manifest
from faas.testing.diffs import FileDiff, Link, apply_diff, diff_trees, guess_old, parse_diff

Change = str | Mapping[str, bytes | None]
"""A unified diff, or new contents by path, ``Link`` for a symbolic link, None for a file that goes."""

MAX_COMMENT_CHARS = 65_536
MAX_PULL_FILES = 3000
MAX_COMPARED_FILES = 300
MAX_CONTENT_BYTES = 1024 * 1024
MAX_SEARCHES = 10
"""Of code, in a minute."""
_SEARCH_WINDOW_S = 60
_MAX_LINKS = 40
_PUBLIC = ("https://api.github.com", "api.github.com")
_SEARCH_PATH = "/search/code"
_LEGACY_ROLES = {"maintain": "write", "triage": "read"}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(Exception):
    """What GitHub answers instead of a document."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"message": message, **more, "documentation_url": "https://docs.github.com/rest"}


@dataclass
class Comment:
    """A comment of an issue or pull request; ``history`` has all texts that it ever had, the current one last."""

    id: int
    user: str
    history: list[str]

    @property
    def body(self) -> str:
        """Its text."""
        return self.history[-1]


@dataclass(frozen=True)
class Commit:
    """A commit: all files, and what it changed of its parent's."""

    sha: str
    parent: str
    tree: Mapping[str, bytes]
    changes: tuple[FileDiff, ...]


@dataclass
class PullRequest:
    """A pull request; ``push`` adds commits to it."""

    repository: Repository
    number: int
    title: str
    body: str | None
    user: str
    draft: bool
    base_sha: str
    head_sha: str
    head_ref: str
    state: str = "open"
    locked: bool = False
    """Nobody may comment on it."""
    comments: list[Comment] = field(default_factory=list)
    before_push: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
    """Its document and its files as they were before its last push."""

    def push(self, change: Change, *, force: bool = False, keep: bool = False) -> str:
        """
        Put one more commit on it and return its SHA.

        Args: *force* has it replace all that was there, as after a rebase; the commits before are gone, or with *keep*
        still there, as on GitHub until they are collected.
        Raises: DiffError.
        """
        repository = self.repository
        parent = repository.commits[self.base_sha if force else self.head_sha]
        self.before_push = repository.github.documents(self)
        if force and not keep:
            for sha in repository.ancestors(self.head_sha):
                if sha == self.base_sha:
                    break
                repository.forget(sha)
        self.head_sha = repository.commit(change, parent=parent.sha).sha
        repository.branches[self.head_ref] = self.head_sha
        repository.github.notify()
        return self.head_sha


class Repository:
    """One repository; made by ``FakeGitHub.repository``."""

    def __init__(self, github: FakeGitHub, full_name: str, files: Mapping[str, bytes], *, private: bool) -> None:
        self.github = github
        self.full_name = full_name
        self.private = private
        self.default_branch = "main"
        self.collaborators: dict[str, str] = {full_name.partition("/")[0]: "admin"}
        """Roles: admin, maintain, write, triage, read."""
        self.hidden: set[str] = set()
        """Paths that answer 404, as what a token may not read."""
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.pulls: dict[int, PullRequest] = {}
        self._n_commits = 0
        self.branches[self.default_branch] = self._add("", dict(files), ()).sha

    def commit(self, change: Change, *, parent: str) -> Commit:
        """Make a commit on top of *parent* that no branch names yet. Raises: DiffError."""
        old = self.commits[parent].tree
        if isinstance(change, str):
            changes = parse_diff(change)
            return self._add(parent, apply_diff(changes, old), changes)
        kept = {path: content for path, content in old.items() if path not in change}
        new = kept | {path: content for path, content in change.items() if content is not None}
        return self._add(parent, new, diff_trees(old, new))

    def _add(self, parent: str, tree: Mapping[str, bytes], changes: Sequence[FileDiff]) -> Commit:
        blobs = sorted((path, blob_sha(content)) for path, content in tree.items())
        self._n_commits += 1  # the same change made again is another commit
        sha = hashlib.sha1(json.dumps([self.full_name, parent, blobs, self._n_commits]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, tree, tuple(changes))
        return self.commits[sha]

    def forget(self, sha: str) -> None:
        """Have a commit gone, as one that a force-push left behind."""
        self.commits.pop(sha, None)

    def open_pull(
        self,
        title: str,
        change: Change,
        *,
        body: str | None = None,
        user: str = "author",
        draft: bool = False,
        head_ref: str = "",
    ) -> PullRequest:
        """
        Open a pull request to the default branch.

        Files that a diff changes and the branch has not are put there first, as far as the diff knows them; between
        its hunks they are empty lines.
        Raises: DiffError.
        """
        base = self.branches[self.default_branch]
        if isinstance(change, str):
            known = self.commits[base].tree
            unknown = {
                diff.before: guess_old(diff)
                for diff in parse_diff(change)
                if diff.status != "added" and diff.before not in known
            }
            if unknown:
                base = self.branches[self.default_branch] = self.commit(unknown, parent=base).sha
        number = self.github.next_number()
        head_ref = head_ref or f"topic-{number}"
        head = self.branches[head_ref] = self.commit(change, parent=base).sha
        pull = PullRequest(self, number, title, body, user, draft, base, head, head_ref)
        self.pulls[number] = pull
        self.github.notify()
        return pull

    def resolve(self, ref: str) -> Commit:
        """Return what a SHA (from its first 7 characters on), a branch or ``refs/…`` names. Raises: RefusedError."""
        name = ref.removeprefix("refs/").removeprefix("heads/")
        match = re.fullmatch(r"pull/(\d+)/head", name)
        if match and int(match[1]) in self.pulls:
            name = self.pulls[int(match[1])].head_sha
        sha = self.branches.get(name, name)
        found = [commit for key, commit in self.commits.items() if len(sha) >= 7 and key.startswith(sha)]
        if len(found) != 1:
            raise RefusedError(404, f"No commit found for the ref {ref}")
        return found[0]

    def ancestors(self, sha: str) -> list[str]:
        """Return *sha*, its parent, and so on."""
        line = []
        while sha in self.commits:
            line.append(sha)
            sha = self.commits[sha].parent
        return line

    def changes(self, base: str, head: str) -> tuple[FileDiff, ...]:
        """Return what leads from *base* to *head*; of one commit, exactly as it was given."""
        commit = self.commits[head]
        if commit.parent == base:
            return commit.changes
        return tuple(diff_trees(self.commits[base].tree, commit.tree))


@dataclass(frozen=True)
class Recorded:
    """A request as it came, and the status that it got; 0 for a connection that was broken off."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def line(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"


class Gate:
    """Holds answers until it is opened. Thread: any."""

    def __init__(self) -> None:
        self._open = False
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.n_held = 0
        """How many requests have come to it."""

    async def wait(self) -> None:
        """Return once it is open."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._open:
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future

    def open(self) -> None:
        """Let all answers go, those to come too."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            loop.call_soon_threadsafe(_let_go, future)


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass
class _Fault:
    method: str
    path: str
    skip: int
    times: int | None
    status: int = 0
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0
    gate: Gate | None = None
    after: bool = False
    hang_up: bool = False
    lasting_s: float = 0
    """How long it goes on once it has begun; its *times* do not count then."""
    until_s: float = 0


@dataclass
class _Bucket:
    """A rate limit of its own, beside that of everything else."""

    left: int = 0
    reset_s: float = 0


@dataclass
class _Lag:
    pull: PullRequest
    times: int
    missing: bool
    files: bool


class FakeGitHub:
    """
    Everything that one GitHub knows.

    Thread: any; ``application`` is served by one loop. *now* is in seconds since the epoch.
    """

    def __init__(
        self, *, token: str = "fake-token", login: str = "review-bot", now: Callable[[], float] = time.time
    ) -> None:
        self.token = token
        self.login = login
        """Whose token it is."""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Recorded] = []
        self.max_patch_bytes = 1_000_000
        """A longer patch is left out of lists of files."""
        self.max_searches = MAX_SEARCHES
        """How many searches of code there may be in a minute, beside the limit of everything else."""
        self._now = now
        self._faults: list[_Fault] = []
        self._changed = threading.Condition()
        self._numbers = 0
        self._ids = 1000
        self._limit = 5000
        self._remaining = 5000
        self._reset_s = 0.0
        self._limit_status = 403
        self._searches = _Bucket()
        self._lags: list[_Lag] = []

    # --- what there is ----------------------------------------------------------------------------------------------

    def repository(
        self, full_name: str, files: Mapping[str, bytes] | None = None, *, private: bool = False
    ) -> Repository:
        """Make a repository, ``OWNER/NAME``, with *files* on its branch main."""
        made = self.repositories[full_name] = Repository(self, full_name, files or {}, private=private)
        return made

    def comment(self, pull: PullRequest, user: str, body: str) -> Comment:
        """Have somebody comment on a pull request."""
        self._ids += 1
        made = Comment(self._ids, user, [body])
        pull.comments.append(made)
        self.notify()
        return made

    def next_number(self) -> int:
        """Return the number of the next pull request."""
        self._numbers += 1
        return self._numbers

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def fail(
        self,
        method: str,
        path: str,
        status: int = 500,
        *,
        message: str = "Server Error",
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
        skip: int = 0,
        after: bool = False,
    ) -> None:
        """
        Answer *status* to the next *times* requests (None: all) of a *method* (``*``: any) and a *path* with ``*``.

        Args: the first *skip* of them are answered properly; with *after* the request is carried out all the same, so
        that its caller can't know.
        """
        self._faults.append(_Fault(method, path, skip, times, status, message, headers or {}, after=after))

    def hang_up(self, method: str, path: str, *, times: int | None = 1, skip: int = 0, after: bool = False) -> None:
        """Break the connection off instead of an answer; arguments as for ``fail``."""
        self._faults.append(_Fault(method, path, skip, times, after=after, hang_up=True))

    def slow(self, method: str, path: str, delay_s: float, *, times: int | None = 1, skip: int = 0) -> None:
        """Answer properly, after *delay_s* seconds; arguments as for ``fail``."""
        self._faults.append(_Fault(method, path, skip, times, delay_s=delay_s))

    def hold(self, method: str, path: str, *, times: int | None = 1, skip: int = 0) -> Gate:
        """Answer properly once the gate is opened; arguments as for ``fail``."""
        gate = Gate()
        self._faults.append(_Fault(method, path, skip, times, gate=gate))
        return gate

    def limit(self, remaining: int, *, reset_after_s: float = 3600, status: int = 403) -> None:
        """Answer *remaining* more requests, then the primary rate limit until *reset_after_s* from now is over."""
        self._remaining = remaining
        self._reset_s = self._now() + reset_after_s
        self._limit_status = status

    def secondary_limit(
        self,
        method: str,
        path: str,
        *,
        retry_after_s: int | None = 60,
        status: int = 403,
        times: int | None = None,
        skip: int = 0,
    ) -> None:
        """
        Answer the secondary rate limit from the next request on until *retry_after_s* is over, or just *times* times.

        Without *retry_after_s* only its message tells, and nothing but *times* or ``heal`` ends it; else as for
        ``fail``.
        """
        message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
        fault = _Fault(method, path, skip, times, status, message)
        if retry_after_s is not None:
            fault.headers = {"Retry-After": str(retry_after_s)}
            fault.lasting_s = retry_after_s if times is None else 0
        self._faults.append(fault)

    def lag(self, pull: PullRequest, times: int = 1, *, missing: bool = False, files: bool = False) -> None:
        """
        Answer the next *times* GETs of a pull request as it was before its last push, like a replica that is behind.

        Args: *missing*, or a pull request that nobody has pushed to, is a 404; *files* has its list of files lag
        instead.
        """
        self._lags.append(_Lag(pull, times, missing, files))

    def heal(self) -> None:
        """Forget all that was to go wrong; what is held goes on."""
        faults, self._faults = self._faults, []
        for fault in faults:
            if fault.gate is not None:
                fault.gate.open()
        self._remaining = self._limit
        self._searches = _Bucket()
        self._lags.clear()

    def _fault_of(self, method: str, path: str) -> _Fault | None:
        for fault in self._faults:
            if fault.method not in ("*", method) or not fnmatch.fnmatchcase(path, fault.path) or fault.times == 0:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.lasting_s:
                fault.until_s = fault.until_s or self._now() + fault.lasting_s
                left_s = fault.until_s - self._now()
                if left_s <= 0:
                    fault.times = 0
                    continue
                fault.headers = {**fault.headers, "Retry-After": str(math.ceil(left_s))}
            elif fault.times is not None:
                fault.times -= 1
            return fault
        return None

    # --- what happened ----------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Have ``until`` look again."""
        with self._changed:
            self._changed.notify_all()

    def until(self, probe: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "") -> None:
        """
        Return when *probe*, asked after each request and each change, says something true.

        Raises: TimeoutError.
        """
        with self._changed:
            if not self._changed.wait_for(probe, timeout_s):
                raise TimeoutError(f"not within {timeout_s:g} s: {what or probe}")

    def lines(self, method: str = "*", path: str = "*") -> list[str]:
        """Return method and path of the requests that came so far."""
        return [
            one.line
            for one in list(self.requests)
            if method in ("*", one.method) and fnmatch.fnmatchcase(one.path, path)
        ]

    # --- webhooks ---------------------------------------------------------------------------------------------------

    def pull_request_event(self, pull: PullRequest, action: str, **more: Any) -> dict[str, Any]:
        """Return the payload of ``pull_request``: opened, synchronize, ready_for_review, reopened, closed, ..."""
        return {
            "action": action,
            "number": pull.number,
            "pull_request": self._pull(pull),
            "repository": self._repository(pull.repository),
            "sender": _user(pull.user),
            **more,
        }

    def issue_comment_event(self, pull: PullRequest, comment: Comment, action: str = "created") -> dict[str, Any]:
        """Return the payload of ``issue_comment`` for a comment on a pull request."""
        url = f"https://api.github.com/repos/{pull.repository.full_name}/pulls/{pull.number}"
        return {
            "action": action,
            "issue": {
                "number": pull.number,
                "title": pull.title,
                "state": pull.state,
                "draft": pull.draft,
                "user": _user(pull.user),
                "body": pull.body,
                "comments": len(pull.comments),
                "pull_request": {"url": url, "html_url": url},
            },
            "comment": self._comment(pull, comment),
            "repository": self._repository(pull.repository),
            "sender": _user(comment.user),
        }

    # --- the server -------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """Return it as an application of aiohttp; one that is asked for again shares all there is."""
        app = web.Application(middlewares=[self._gate], client_max_size=4 * 1024 * 1024)
        repo = "/repos/{owner}/{repo}"
        for method, path, handler in (
            ("GET", "/user", self._get_user),
            ("GET", repo, self._get_repository),
            ("GET", repo + "/pulls/{number}", self._get_pull),
            ("GET", repo + "/pulls/{number}/files", self._get_files),
            ("GET", repo + "/compare/{refs:.+}", self._get_comparison),
            ("GET", repo + "/contents", self._get_contents),
            ("GET", repo + "/contents/{path:.*}", self._get_contents),
            ("GET", repo + "/issues/{number}/comments", self._get_comments),
            ("POST", repo + "/issues/{number}/comments", self._post_comment),
            ("GET", repo + "/issues/comments/{id}", self._get_comment),
            ("PATCH", repo + "/issues/comments/{id}", self._patch_comment),
            ("DELETE", repo + "/issues/comments/{id}", self._delete_comment),
            ("GET", repo + "/collaborators/{login}/permission", self._get_permission),
            ("GET", _SEARCH_PATH, self._search),
        ):
            app.router.add_route(method, path, handler)
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Everything that is the same for all requests: what goes wrong, tokens, limits, headers, the record."""
        body = await request.read()
        fault = self._fault_of(request.method, request.path)
        response: web.StreamResponse | None = None
        if fault is not None:
            if fault.gate is not None:
                fault.gate.n_held += 1
                self.notify()
                await fault.gate.wait()
            await asyncio.sleep(fault.delay_s)
        wrong = fault is not None and (fault.status > 0 or fault.hang_up)
        try:
            if not wrong or (fault is not None and fault.after):
                self._admit(request)
                response = await handler(request)
            if fault is not None and fault.status:
                raise RefusedError(fault.status, fault.message)
        except RefusedError as exc:
            response = web.json_response(exc.document, status=exc.status)
        except web.HTTPException:
            response = web.json_response(RefusedError(404, "Not Found").document, status=404)
        hang_up = response is None or (fault is not None and fault.hang_up)
        self.requests.append(
            Recorded(
                request.method,
                request.path,
                request.query_string,
                CIMultiDict(request.headers),
                body,
                0 if hang_up or response is None else response.status,
            )
        )
        self.notify()
        if hang_up or response is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()  # goes nowhere
        response.headers["X-GitHub-Media-Type"] = "github.v3; format=json"
        resource, limit, left, reset_s = "core", self._limit, self._remaining, self._reset_s
        if request.path == _SEARCH_PATH:
            resource, limit = "code_search", self.max_searches
            left, reset_s = self._searches.left, self._searches.reset_s
        response.headers["X-RateLimit-Resource"] = resource
        response.headers["X-RateLimit-Limit"] = str(limit)
        response.headers["X-RateLimit-Remaining"] = str(max(left, 0))
        response.headers["X-RateLimit-Reset"] = str(int(reset_s or self._now() + 3600))
        if fault is not None:
            response.headers.update(fault.headers)
        return response

    def _admit(self, request: web.Request) -> None:
        if not request.headers.get("User-Agent"):
            raise RefusedError(403, "Request forbidden by administrative rules: it has no User-Agent header.")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not token:
            raise RefusedError(401, "Requires authentication")
        if scheme.lower() not in ("bearer", "token") or not hmac.compare_digest(token.encode(), self.token.encode()):
            raise RefusedError(401, "Bad credentials")
        exceeded = f"API rate limit exceeded for user ID {_user_id(self.login)}."
        if request.path == _SEARCH_PATH:
            if self._now() >= self._searches.reset_s:
                self._searches = _Bucket(self.max_searches, int(self._now()) + _SEARCH_WINDOW_S)
            if self._searches.left <= 0:
                raise RefusedError(403, exceeded)
            self._searches.left -= 1
            return
        if self._reset_s and self._now() >= self._reset_s:
            self._remaining, self._reset_s = self._limit, 0.0
        if self._remaining <= 0:
            raise RefusedError(self._limit_status, exceeded)
        self._remaining -= 1

    def _repository_of(self, request: web.Request) -> Repository:
        full_name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        found = next((one for name, one in self.repositories.items() if name.lower() == full_name.lower()), None)
        if found is None:
            raise RefusedError(404, "Not Found")
        return found

    def _pull_of(self, request: web.Request) -> PullRequest:
        number = request.match_info["number"]
        pull = self._repository_of(request).pulls.get(int(number)) if number.isdigit() else None
        if pull is None:
            raise RefusedError(404, "Not Found")
        return pull

    async def _get_user(self, _request: web.Request) -> web.Response:
        return web.json_response(_user(self.login))

    async def _get_repository(self, request: web.Request) -> web.Response:
        return web.json_response(self._repository(self._repository_of(request)))

    def _seen(self, pull: PullRequest, *, files: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the documents of a pull request as the replica has them that is asked this time."""
        for lag in self._lags:
            if lag.pull is pull and lag.files == files and lag.times > 0:
                lag.times -= 1
                if lag.missing or pull.before_push is None:
                    raise RefusedError(404, "Not Found")
                return pull.before_push
        return self.documents(pull)

    async def _get_pull(self, request: web.Request) -> web.Response:
        return web.json_response(self._seen(self._pull_of(request), files=False)[0])

    async def _get_files(self, request: web.Request) -> web.Response:
        return _paged(request, self._seen(self._pull_of(request), files=True)[1])

    async def _get_comparison(self, request: web.Request) -> web.Response:
        repository = self._repository_of(request)
        base_name, dots, head_name = request.match_info["refs"].partition("...")
        if not dots:
            raise RefusedError(404, "Not Found")
        base, head = repository.resolve(base_name), repository.resolve(head_name)
        theirs, ours = repository.ancestors(base.sha), repository.ancestors(head.sha)
        meeting = next((sha for sha in ours if sha in theirs), None)
        if meeting is None:
            raise RefusedError(404, f"No common ancestor between {base_name} and {head_name}.")
        ahead, behind = ours.index(meeting), theirs.index(meeting)
        commits = [{"sha": sha, "parents": [{"sha": repository.commits[sha].parent}]} for sha in reversed(ours[:ahead])]
        page, per_page = _page_of(request)
        document: dict[str, Any] = {
            "status": {(True, True): "diverged", (True, False): "ahead", (False, True): "behind"}.get(
                (ahead > 0, behind > 0), "identical"
            ),
            "ahead_by": ahead,
            "behind_by": behind,
            "total_commits": ahead,
            "base_commit": {"sha": base.sha},
            "merge_base_commit": {"sha": meeting},
            "commits": commits[(page - 1) * per_page : page * per_page],
        }
        if page == 1:
            document["files"] = [
                self._file(repository, diff, meeting, head.sha)
                for diff in repository.changes(meeting, head.sha)[:MAX_COMPARED_FILES]
            ]
        return web.json_response(document, headers=_links(request, page, per_page, len(commits)))

    async def _get_contents(self, request: web.Request) -> web.Response:
        repository = self._repository_of(request)
        path = request.match_info.get("path", "").strip("/")
        commit = repository.resolve(request.query.get("ref") or repository.default_branch)
        accept = request.headers.get("Accept", "")
        if path in commit.tree and path not in repository.hidden:
            own = commit.tree[path]
            content = _followed(commit.tree, path)
            if content is None:
                return web.json_response(self._entry(repository, path, own) | {"target": own.decode()})
            if "raw" in accept:
                return web.Response(body=content, content_type="application/vnd.github.raw+json")
            return web.json_response(self._content(repository, path, own, content))
        inside = sorted(
            {name[len(path) + 1 if path else 0 :].split("/")[0] for name in commit.tree if _under(name, path)}
        )
        if not inside:
            raise RefusedError(404, "Not Found")
        entries = []
        for name in inside:
            at = f"{path}/{name}".lstrip("/")
            if at in commit.tree:
                entries.append(self._entry(repository, at, commit.tree[at]))
            else:
                entries.append({"type": "dir", "name": name, "path": at, "size": 0})
        if "object" in accept:
            return web.json_response({"type": "dir", "path": path, "size": 0, "entries": entries})
        return web.json_response(entries)

    async def _get_comments(self, request: web.Request) -> web.Response:
        pull = self._pull_of(request)
        return _paged(request, [self._comment(pull, comment) for comment in pull.comments])

    async def _post_comment(self, request: web.Request) -> web.Response:
        pull = self._pull_of(request)
        if pull.locked:
            raise RefusedError(403, "Unable to create comment because issue is locked.")
        made = self.comment(pull, self.login, await _comment_text(request))
        document = self._comment(pull, made)
        return web.json_response(document, status=201, headers={"Location": document["url"]})

    def _comment_of(self, request: web.Request) -> tuple[PullRequest, Comment]:
        for pull in self._repository_of(request).pulls.values():
            for comment in pull.comments:
                if str(comment.id) == request.match_info["id"]:
                    return pull, comment
        raise RefusedError(404, "Not Found")

    async def _get_comment(self, request: web.Request) -> web.Response:
        return web.json_response(self._comment(*self._comment_of(request)))

    async def _patch_comment(self, request: web.Request) -> web.Response:
        pull, comment = self._comment_of(request)
        text = await _comment_text(request)
        if comment.user != self.login:
            raise RefusedError(403, "Must have admin rights to Repository.")
        comment.history.append(text)
        return web.json_response(self._comment(pull, comment))

    async def _delete_comment(self, request: web.Request) -> web.Response:
        pull, comment = self._comment_of(request)
        if comment.user != self.login:
            raise RefusedError(403, "Must have admin rights to Repository.")
        pull.comments.remove(comment)
        return web.Response(status=204)

    async def _get_permission(self, request: web.Request) -> web.Response:
        repository, login = self._repository_of(request), request.match_info["login"]
        role = repository.collaborators.get(login, "none" if repository.private else "read")
        permission = _LEGACY_ROLES.get(role, role)
        return web.json_response({"permission": permission, "role_name": role, "user": _user(login)})

    async def _search(self, request: web.Request) -> web.Response:
        query = request.query.get("q", "")
        phrases = re.findall(r'"([^"]*)"', query)
        qualifiers = re.sub(r'"[^"]*"', " ", query).split()
        names = [word[5:] for word in qualifiers if word.startswith("repo:")]
        words = [word for word in qualifiers if ":" not in word] + [phrase for phrase in phrases if phrase.strip()]
        if not words or not names:
            raise RefusedError(
                422, "Validation Failed", errors=[{"resource": "Search", "field": "q", "code": "missing"}]
            )
        items = []
        for repository in self.repositories.values():
            if repository.full_name.lower() not in (name.lower() for name in names):
                continue
            for path, content in sorted(repository.resolve(repository.default_branch).tree.items()):
                text = content.decode("utf-8", "replace").lower()
                if path not in repository.hidden and all(word.lower() in text for word in words):
                    items.append(
                        {
                            "name": path.rpartition("/")[2],
                            "path": path,
                            "sha": blob_sha(content),
                            "repository": self._repository(repository),
                            "score": 1.0,
                        }
                    )
        page, per_page = _page_of(request)
        return web.json_response(
            {
                "total_count": len(items),
                "incomplete_results": False,
                "items": items[(page - 1) * per_page : page * per_page],
            },
            headers=_links(request, page, per_page, len(items)),
        )

    # --- documents --------------------------------------------------------------------------------------------------

    def _repository(self, repository: Repository) -> dict[str, Any]:
        owner, _, name = repository.full_name.partition("/")
        return {
            "id": _user_id(repository.full_name),
            "name": name,
            "full_name": repository.full_name,
            "private": repository.private,
            "owner": _user(owner),
            "default_branch": repository.default_branch,
            "html_url": f"https://github.com/{repository.full_name}",
        }

    def documents(self, pull: PullRequest) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the document of a pull request as it is now, and those of its files."""
        repository = pull.repository
        changes = repository.changes(pull.base_sha, pull.head_sha)[:MAX_PULL_FILES]
        return self._pull(pull), [self._file(repository, diff, pull.base_sha, pull.head_sha) for diff in changes]

    def _pull(self, pull: PullRequest) -> dict[str, Any]:
        repository = pull.repository
        owner = repository.full_name.partition("/")[0]
        changes = repository.changes(pull.base_sha, pull.head_sha)
        sides = (("head", pull.head_ref, pull.head_sha), ("base", repository.default_branch, pull.base_sha))
        return {
            "id": 10_000 + pull.number,
            "number": pull.number,
            "state": pull.state,
            "locked": pull.locked,
            "title": pull.title,
            "body": pull.body,
            "user": _user(pull.user),
            "draft": pull.draft,
            "merged": False,
            "labels": [],
            "html_url": f"https://github.com/{repository.full_name}/pull/{pull.number}",
            **{
                side: {
                    "label": f"{owner}:{ref}",
                    "ref": ref,
                    "sha": sha,
                    "user": _user(owner),
                    "repo": self._repository(repository),
                }
                for side, ref, sha in sides
            },
            "comments": len(pull.comments),
            "commits": repository.ancestors(pull.head_sha).index(pull.base_sha),
            "additions": sum(diff.additions for diff in changes),
            "deletions": sum(diff.deletions for diff in changes),
            "changed_files": len(changes),
        }

    def _file(self, repository: Repository, diff: FileDiff, base: str, head: str) -> dict[str, Any]:
        tree = repository.commits[base if diff.status == "removed" else head].tree
        url = f"https://github.com/{repository.full_name}/blob/{head}/{quote(diff.path)}"
        document: dict[str, Any] = {
            "sha": blob_sha(tree[diff.path]),
            "filename": diff.path,
            "status": diff.status,
            "additions": diff.additions,
            "deletions": diff.deletions,
            "changes": diff.additions + diff.deletions,
            "blob_url": url,
            "raw_url": url.replace("/blob/", "/raw/"),
        }
        if diff.old_path:
            document["previous_filename"] = diff.old_path
        if diff.hunks and len(diff.patch.encode()) <= self.max_patch_bytes:
            document["patch"] = diff.patch
        return document

    def _entry(self, repository: Repository, path: str, own: bytes) -> dict[str, Any]:
        return {
            "type": "symlink" if isinstance(own, Link) else "file",
            "name": path.rpartition("/")[2],
            "path": path,
            "sha": blob_sha(own),
            "size": len(own),
            "html_url": f"https://github.com/{repository.full_name}/blob/HEAD/{quote(path)}",
        }

    def _content(self, repository: Repository, path: str, own: bytes, content: bytes) -> dict[str, Any]:
        """A link to a file is answered as that file, with the link's path and SHA, as GitHub does."""
        document = {**self._entry(repository, path, own), "type": "file", "size": len(content)}
        if len(content) > MAX_CONTENT_BYTES:
            return {**document, "encoding": "none", "content": ""}
        return {**document, "encoding": "base64", "content": base64.encodebytes(content).decode()}

    def _comment(self, pull: PullRequest, comment: Comment) -> dict[str, Any]:
        url = f"https://api.github.com/repos/{pull.repository.full_name}/issues"
        return {
            "id": comment.id,
            "url": f"{url}/comments/{comment.id}",
            "issue_url": f"{url}/{pull.number}",
            "body": comment.body,
            "user": _user(comment.user),
            "author_association": "NONE",
        }


def blob_sha(content: bytes) -> str:
    """Return the SHA by which git knows a file of that content."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


def _followed(tree: Mapping[str, bytes], path: str) -> bytes | None:
    """Return the content of the file at *path*, links followed; None where they lead to no file of the tree."""
    for _ in range(_MAX_LINKS):
        content = tree.get(path)
        if not isinstance(content, Link):
            return content
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), content.decode()))
    return None


def _under(name: str, folder: str) -> bool:
    return not folder or name.startswith(folder + "/")


def _user_id(name: str) -> int:
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:3], "big")


def _user(login: str) -> dict[str, Any]:
    return {"login": login, "id": _user_id(login), "type": "Bot" if login.endswith("[bot]") else "User"}


async def _comment_text(request: web.Request) -> str:
    try:
        document = json.loads(await request.read())
    except ValueError:
        raise RefusedError(400, "Problems parsing JSON") from None
    text = document.get("body") if isinstance(document, dict) else None
    if not isinstance(text, str) or not text.strip():
        errors = [{"resource": "IssueComment", "code": "missing_field", "field": "body"}]
        raise RefusedError(422, "Validation Failed", errors=errors)
    if len(text) > MAX_COMMENT_CHARS:
        message = f"Body is too long (maximum is {MAX_COMMENT_CHARS} characters)"
        errors = [{"resource": "IssueComment", "code": "unprocessable", "field": "data", "message": message}]
        raise RefusedError(422, "Validation Failed", errors=errors)
    return text


def _page_of(request: web.Request) -> tuple[int, int]:
    def number(name: str, default: int) -> int:
        text = request.query.get(name, "")
        return max(1, int(text)) if text.isdigit() else default

    return number("page", 1), min(number("per_page", 30), 100)


def _links(request: web.Request, page: int, per_page: int, total: int) -> dict[str, str]:
    last = max(1, -(-total // per_page))
    wanted: dict[str, int] = {}
    if page > 1:
        wanted |= {"prev": min(page - 1, last), "first": 1}
    if page < last:
        wanted |= {"next": page + 1, "last": last}
    links = [f'<{request.url.update_query(page=number)}>; rel="{rel}"' for rel, number in wanted.items()]
    return {"Link": ", ".join(links)} if links else {}


def _paged(request: web.Request, documents: Sequence[Any]) -> web.Response:
    page, per_page = _page_of(request)
    part = documents[(page - 1) * per_page : page * per_page]
    return web.json_response(part, headers=_links(request, page, per_page, len(documents)))


# --- serving and delivering -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GitHubServer:
    """A fake GitHub that answers at ``url``, ``http://127.0.0.1:PORT``."""

    github: FakeGitHub
    url: str


@contextmanager
def running_github(github: FakeGitHub | None = None, *, port: int = 0) -> Iterator[GitHubServer]:
    """Serve a fake GitHub on loopback, from a thread of its own, until the block is left; *port* 0 is any."""
    served = github or FakeGitHub()
    ready: list[int] = []
    failures: list[BaseException] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(served.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            ready.append(runner.addresses[0][1])
            started.set()
            await ending.wait()
        finally:
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as exc:  # a thread has nobody to raise it to
            failures.append(exc)
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=run, name="fake-github", daemon=True)
    thread.start()
    started.wait()
    if failures:
        raise failures[0]
    try:
        yield GitHubServer(served, f"http://127.0.0.1:{ready[0]}")
    finally:
        served.heal()
        loop.call_soon_threadsafe(ending.set)
        thread.join()


def pointed_at(manifest: Manifest, url: str) -> Manifest:
    """Return *manifest* with *url* wherever it may reach, or sends a credential to, the public API."""
    capabilities = manifest.capabilities
    return msgspec.structs.replace(
        manifest,
        capabilities=msgspec.structs.replace(
            capabilities,
            outbound=tuple(url if entry in _PUBLIC else entry for entry in capabilities.outbound),
            credentials=tuple(
                msgspec.structs.replace(one, host=url) if one.host in _PUBLIC else one
                for one in capabilities.credentials
            ),
        ),
    )


@dataclass(frozen=True)
class Delivered:
    """What a webhook's receiver answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def signature(body: bytes, secret: str) -> str:
    """Return the ``X-Hub-Signature-256`` of a delivery."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def deliver(
    url: str,
    event: str,
    payload: Mapping[str, Any],
    *,
    secret: str,
    delivery: str = "",
    forged: bool = False,
) -> Delivered:
    """
    Send a webhook as GitHub does, and return its receiver's answer.

    Args: *delivery* is the id of the delivery, by default one that the payload gives; *forged* signs it with another
    secret.
    """
    body = json.dumps(payload).encode()
    digest = hashlib.sha256(event.encode() + body).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/fake",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}",
        "X-Hub-Signature-256": signature(body, secret + "!" if forged else secret),
    }
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return Delivered(response.status, CIMultiDict(response.headers), await response.read())
