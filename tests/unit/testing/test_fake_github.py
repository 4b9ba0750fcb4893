"""The fake GitHub answers as GitHub documents it, and does what a test has it do."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from faas.testing.diffs import Link
from faas.testing.github import (
    MAX_COMMENT_CHARS,
    FakeGitHub,
    GitHubServer,
    PullRequest,
    blob_sha,
    deliver,
    running_github,
    signature,
)

REPO = "/repos/octo/demo"
DIFF = """\
diff --git a/src/a.py b/src/a.py
--- a/src/a.py
+++ b/src/a.py
@@ -3,2 +3,3 @@ def f():
 x = 1
-y = 2
+y = 3
+z = 4
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[GitHubServer]:
    with running_github(FakeGitHub(token="t0ken", now=clock)) as running:
        yield running


@pytest.fixture
def pull(server: GitHubServer) -> PullRequest:
    repository = server.github.repository("octo/demo", {"README.md": b"# Demo\n"})
    return repository.open_pull("Change a", DIFF, body="Please", user="ann")


class Reply:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(server: GitHubServer, path: str, *, method: str = "GET", document: Any = None, **headers: str) -> Reply:
    sent = {"Authorization": "Bearer t0ken", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, json=document, headers=sent) as response,
    ):
        return Reply(response.status, response.headers, await response.read())


async def test_pull_request_is_made_of_a_diff(server: GitHubServer, pull: PullRequest) -> None:
    document = (await ask(server, f"{REPO}/pulls/1")).json
    assert (document["title"], document["user"]["login"], document["changed_files"]) == ("Change a", "ann", 1)
    assert document["head"]["sha"] == pull.head_sha != document["base"]["sha"]
    (file,) = (await ask(server, f"{REPO}/pulls/1/files")).json
    assert file["patch"] == DIFF.partition("+++ b/src/a.py\n")[2].rstrip("\n")
    assert (file["filename"], file["status"], file["additions"], file["deletions"]) == ("src/a.py", "modified", 2, 1)
    content = (await ask(server, f"{REPO}/contents/src/a.py?ref={pull.head_sha}")).json
    text = base64.b64decode(content["content"])
    assert text == b"\n\nx = 1\ny = 3\nz = 4\n"
    assert content["sha"] == file["sha"] == blob_sha(text)


async def test_same_calls_give_the_same_shas(server: GitHubServer, pull: PullRequest) -> None:
    again = FakeGitHub().repository("octo/demo", {"README.md": b"# Demo\n"}).open_pull("Another title", DIFF)
    assert (again.base_sha, again.head_sha) == (pull.base_sha, pull.head_sha)


async def test_lists_come_in_pages_that_link_to_each_other(server: GitHubServer) -> None:
    files: dict[str, bytes | None] = {f"f{i:03}": b"x\n" for i in range(250)}
    server.github.repository("octo/demo").open_pull("Many", files)
    pages = [await ask(server, f"{REPO}/pulls/1/files?per_page=100&page={page}") for page in (1, 2, 3, 4)]
    assert [len(page.json) for page in pages] == [100, 100, 50, 0]
    assert pages[0].headers["Link"] == (
        f'<{server.url}{REPO}/pulls/1/files?per_page=100&page=2>; rel="next", '
        f'<{server.url}{REPO}/pulls/1/files?per_page=100&page=3>; rel="last"'
    )
    assert 'rel="next"' not in pages[2].headers["Link"]
    assert len((await ask(server, f"{REPO}/pulls/1/files")).json) == 30
    assert len((await ask(server, f"{REPO}/pulls/1/files?per_page=1000")).json) == 100


async def test_push_is_compared_with_what_was_there(server: GitHubServer, pull: PullRequest) -> None:
    first = pull.head_sha
    pull.push({"new.txt": b"no newline"})
    document = (await ask(server, f"{REPO}/compare/{first}...{pull.head_sha}")).json
    assert (document["status"], document["ahead_by"]) == ("ahead", 1)
    assert [file["filename"] for file in document["files"]] == ["new.txt"]
    assert document["files"][0]["patch"].endswith("+no newline\n\\ No newline at end of file")
    assert [file["filename"] for file in (await ask(server, f"{REPO}/pulls/1/files")).json] == ["new.txt", "src/a.py"]
    assert "files" not in (await ask(server, f"{REPO}/compare/{first}...{pull.head_sha}?page=2")).json
    same = (await ask(server, f"{REPO}/compare/{first}...{first}")).json
    assert (same["status"], same["files"]) == ("identical", [])


async def test_forced_push_leaves_nothing_of_the_commit_before(server: GitHubServer, pull: PullRequest) -> None:
    before = [pull.head_sha, pull.push({"more.txt": b"y\n"})]
    pull.push({"other.txt": b"x\n"}, force=True)
    for sha in before:
        assert (await ask(server, f"{REPO}/compare/{sha}...{pull.head_sha}")).status == 404
    assert [file["filename"] for file in (await ask(server, f"{REPO}/pulls/1/files")).json] == ["other.txt"]


async def test_forced_push_may_leave_the_commits_before(server: GitHubServer, pull: PullRequest) -> None:
    before = [pull.head_sha, pull.push({"more.txt": b"y\n"})]
    pull.push({"other.txt": b"x\n"}, force=True, keep=True)
    document = (await ask(server, f"{REPO}/compare/{before[1]}...{pull.head_sha}")).json
    assert (document["status"], document["ahead_by"], document["behind_by"]) == ("diverged", 1, 2)
    assert document["merge_base_commit"]["sha"] == pull.base_sha
    assert [file["filename"] for file in document["files"]] == ["other.txt"]


async def test_link_to_a_file_is_answered_as_that_file_under_its_own_sha(server: GitHubServer) -> None:
    files = {
        ".env": b"KEY=1\n",
        "docs/config": Link(b"../.env"),
        "docs/again": Link(b"config"),
        "gone": Link(b"nowhere"),
        "folder": Link(b"docs"),
        "out": Link(b"../../etc/passwd"),
        "round": Link(b"round"),
    }
    server.github.repository("octo/demo", files)
    for path, target in (("docs/config", "../.env"), ("docs/again", "config")):
        document = (await ask(server, f"{REPO}/contents/{path}")).json
        assert (document["type"], document["path"], document["size"]) == ("file", path, 6)
        assert base64.b64decode(document["content"]) == b"KEY=1\n"
        assert document["sha"] == blob_sha(target.encode()) != blob_sha(b"KEY=1\n")
        raw = await ask(server, f"{REPO}/contents/{path}", Accept="application/vnd.github.raw+json")
        assert raw.body == b"KEY=1\n"
    for path in ("gone", "folder", "out", "round"):
        document = (await ask(server, f"{REPO}/contents/{path}")).json
        target = files[path].decode()
        assert (document["type"], document["target"], document["size"]) == ("symlink", target, len(target))
        assert document["sha"] == blob_sha(target.encode())
        assert "content" not in document
    listed = (await ask(server, f"{REPO}/contents")).json
    assert {one["name"]: one["type"] for one in listed} == {
        ".env": "file", "docs": "dir", "folder": "symlink", "gone": "symlink", "out": "symlink", "round": "symlink",
    }  # fmt: skip


async def test_contents_are_files_folders_or_not_there(server: GitHubServer) -> None:
    files = {"a/ü.txt": b"\xc3\xa4\n", "a/b/c": b"", "big": b"x" * 1_100_000, "secret": b"s"}
    repository = server.github.repository("octo/demo", files)
    repository.hidden.add("secret")
    assert (await ask(server, f"{REPO}/contents/{quote('a/ü.txt')}")).json["size"] == 3
    raw = await ask(server, f"{REPO}/contents/{quote('a/ü.txt')}", Accept="application/vnd.github.raw+json")
    assert raw.body == b"\xc3\xa4\n"
    folder = await ask(server, f"{REPO}/contents/a", Accept="application/vnd.github.object+json")
    assert (folder.json["type"], [one["path"] for one in folder.json["entries"]]) == ("dir", ["a/b", "a/ü.txt"])
    assert len((await ask(server, f"{REPO}/contents")).json) == 2 + 1
    big = (await ask(server, f"{REPO}/contents/big")).json
    assert (big["encoding"], big["content"], big["size"]) == ("none", "", 1_100_000)
    for path in ("secret", "nothing", "big?ref=unknown-branch"):
        assert (await ask(server, f"{REPO}/contents/{path}")).status == 404


async def test_comments_are_made_listed_and_edited_by_their_owner(server: GitHubServer, pull: PullRequest) -> None:
    theirs = server.github.comment(pull, "ann", "/review")
    made = await ask(server, f"{REPO}/issues/1/comments", method="POST", document={"body": "one"})
    assert (made.status, made.json["user"]["login"]) == (201, "review-bot")
    path = f"{REPO}/issues/comments/{made.json['id']}"
    assert (await ask(server, path, method="PATCH", document={"body": "two"})).json["body"] == "two"
    listed = (await ask(server, f"{REPO}/issues/1/comments")).json
    assert [one["body"] for one in listed] == ["/review", "two"]
    assert pull.comments[1].history == ["one", "two"]
    refused = await ask(server, f"{REPO}/issues/comments/{theirs.id}", method="PATCH", document={"body": "x"})
    assert refused.status == 403
    for text in ("", "x" * (MAX_COMMENT_CHARS + 1)):
        assert (await ask(server, path, method="PATCH", document={"body": text})).status == 422
    assert (await ask(server, f"{REPO}/issues/comments/1", method="PATCH", document={"body": "x"})).status == 404


async def test_comment_is_deleted_by_its_owner_alone(server: GitHubServer, pull: PullRequest) -> None:
    theirs, mine = server.github.comment(pull, "ann", "hers"), server.github.comment(pull, "review-bot", "mine")
    paths = [f"{REPO}/issues/comments/{comment.id}" for comment in (theirs, mine, mine)]
    replies = [await ask(server, path, method="DELETE") for path in paths]
    assert [(reply.status, reply.body) for reply in replies[1:2]] == [(204, b"")]
    assert [reply.status for reply in replies] == [403, 204, 404]
    assert pull.comments == [theirs]


async def test_pull_request_that_is_locked_takes_no_comment(server: GitHubServer, pull: PullRequest) -> None:
    pull.locked = True
    assert (await ask(server, f"{REPO}/pulls/1")).json["locked"] is True
    refused = await ask(server, f"{REPO}/issues/1/comments", method="POST", document={"body": "x"})
    assert (refused.status, "locked" in refused.json["message"]) == (403, True)
    assert pull.comments == []


async def test_permissions_are_those_of_the_legacy_roles(server: GitHubServer) -> None:
    repository = server.github.repository("octo/demo", private=True)
    repository.collaborators |= {"mia": "maintain", "tom": "triage"}
    for login, permission, role in (
        ("octo", "admin", "admin"),
        ("mia", "write", "maintain"),
        ("tom", "read", "triage"),
        ("eve", "none", "none"),
    ):
        document = (await ask(server, f"{REPO}/collaborators/{login}/permission")).json
        assert (document["permission"], document["role_name"]) == (permission, role)


async def test_search_finds_phrases_in_one_repository(server: GitHubServer) -> None:
    server.github.repository("octo/demo", {"a": b"one Two three\n", "b": b"two one\n"})
    server.github.repository("octo/other", {"c": b"one two\n"})
    words = quote('"one two" repo:octo/demo')
    found = (await ask(server, f"/search/code?q={words}")).json
    assert [item["path"] for item in found["items"]] == ["a"]
    assert found["items"][0]["repository"]["full_name"] == "octo/demo"
    assert (await ask(server, "/search/code?q=x")).status == 422


async def test_only_its_token_opens_it(server: GitHubServer) -> None:
    assert (await ask(server, "/user")).json["login"] == "review-bot"
    assert (await ask(server, "/user", Authorization="token t0ken")).status == 200
    for value in ("Bearer other", "Basic t0ken", ""):
        assert (await ask(server, "/user", Authorization=value)).status == 401
    assert (await ask(server, "/user", User_Agent="")).status == 403
    assert (await ask(server, "/nothing")).json["message"] == "Not Found"


async def test_primary_limit_counts_down_and_is_over_at_its_reset(server: GitHubServer, clock: Clock) -> None:
    server.github.limit(1, reset_after_s=30)
    allowed, refused = await ask(server, "/user"), await ask(server, "/user")
    assert (allowed.status, allowed.headers["X-RateLimit-Remaining"]) == (200, "0")
    assert (refused.status, refused.headers["X-RateLimit-Remaining"]) == (403, "0")
    assert int(refused.headers["X-RateLimit-Reset"]) == int(clock.now_s) + 30
    assert "rate limit exceeded" in refused.json["message"]
    clock.now_s += 30
    assert (await ask(server, "/user")).status == 200


async def test_secondary_limit_lasts_until_it_is_over(server: GitHubServer, clock: Clock) -> None:
    server.github.repository("octo/demo")
    server.github.secondary_limit("GET", "/user", retry_after_s=7)
    clock.now_s += 100  # it begins with the first request that it meets
    seen = []
    for _ in range(4):
        reply = await ask(server, "/user")
        seen.append((reply.status, reply.headers.get("Retry-After")))
        assert (await ask(server, REPO)).status == 200, "nothing else is limited"
        clock.now_s += 2.5
    assert seen == [(403, "7"), (403, "5"), (403, "2"), (200, None)]
    assert (await ask(server, "/user")).status == 200


async def test_secondary_limit_of_so_many_requests_says_so(server: GitHubServer) -> None:
    server.github.secondary_limit("GET", "/user", retry_after_s=7, times=1)
    server.github.secondary_limit("GET", "/user", retry_after_s=None, status=429, times=1)
    first, second, third = [await ask(server, "/user") for _ in range(3)]
    assert (first.status, first.headers["Retry-After"]) == (403, "7")
    assert (second.status, "Retry-After" in second.headers) == (429, False)
    assert "secondary rate limit" in second.json["message"]
    assert third.status == 200


async def test_search_has_a_limit_of_its_own(server: GitHubServer, clock: Clock) -> None:
    server.github.repository("octo/demo")
    server.github.max_searches = 2
    path = f"/search/code?q={quote('x repo:octo/demo')}"
    replies = [await ask(server, path) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 403]
    assert [reply.headers["X-RateLimit-Remaining"] for reply in replies] == ["1", "0", "0"]
    assert int(replies[2].headers["X-RateLimit-Reset"]) == int(clock.now_s) + 60
    assert replies[2].headers["X-RateLimit-Resource"] == "code_search"
    assert "rate limit exceeded" in replies[2].json["message"]
    other = await ask(server, "/user")
    assert (other.status, other.headers["X-RateLimit-Remaining"]) == (200, "4999")
    clock.now_s += 60
    assert (await ask(server, path)).status == 200
    assert FakeGitHub().max_searches == 10


async def test_replica_that_is_behind_has_what_was_before_the_push(server: GitHubServer, pull: PullRequest) -> None:
    first = pull.head_sha
    pull.push({"new.txt": b"x\n"}, force=True)
    server.github.lag(pull, 2)
    server.github.lag(pull, files=True)
    shas = [(await ask(server, f"{REPO}/pulls/1")).json["head"]["sha"] for _ in range(3)]
    assert shas == [first, first, pull.head_sha]
    names = [[file["filename"] for file in (await ask(server, f"{REPO}/pulls/1/files")).json] for _ in range(2)]
    assert names == [["src/a.py"], ["new.txt"]]


async def test_replica_that_is_behind_knows_no_new_pull_request(server: GitHubServer, pull: PullRequest) -> None:
    server.github.lag(pull)
    assert [(await ask(server, f"{REPO}/pulls/1")).status for _ in range(2)] == [404, 200]
    pull.push({"new.txt": b"x\n"})
    server.github.lag(pull, missing=True)
    assert [(await ask(server, f"{REPO}/pulls/1")).status for _ in range(2)] == [404, 200]
    server.github.lag(pull, missing=True)
    server.github.heal()
    assert (await ask(server, f"{REPO}/pulls/1")).status == 200


async def test_failure_comes_as_often_as_asked_for_before_or_after_the_deed(
    server: GitHubServer, pull: PullRequest
) -> None:
    server.github.fail("POST", "/repos/*/comments", 502, skip=1)
    server.github.fail("POST", "/repos/*/comments", 500, after=True)
    path = f"{REPO}/issues/1/comments"
    statuses = [(await ask(server, path, method="POST", document={"body": str(number)})).status for number in range(4)]
    assert sorted(statuses) == [201, 201, 500, 502]
    assert [comment.body for comment in pull.comments] == ["0", "2", "3"]


async def test_connection_breaks_off_where_asked_for(server: GitHubServer, pull: PullRequest) -> None:
    server.github.hang_up("POST", "/repos/*", after=True)
    with pytest.raises(aiohttp.ClientError):
        await ask(server, f"{REPO}/issues/1/comments", method="POST", document={"body": "x"})
    assert [comment.body for comment in pull.comments] == ["x"]
    assert server.github.requests[-1].status == 0


async def test_held_answer_waits_for_its_gate(server: GitHubServer) -> None:
    gate = server.github.hold("GET", "/user")
    waiting = asyncio.create_task(ask(server, "/user"))
    await asyncio.to_thread(server.github.until, lambda: gate.n_held == 1)
    assert not waiting.done()
    assert (await ask(server, "/user")).status == 200
    gate.open()
    assert (await waiting).status == 200


def test_wait_that_nothing_ends_is_an_error() -> None:
    with pytest.raises(TimeoutError, match="the comment"):
        FakeGitHub().until(lambda: False, timeout_s=0.01, what="the comment")


async def test_every_request_is_kept(server: GitHubServer) -> None:
    await ask(server, f"{REPO}/pulls/9?page=2", X_Mine="yes")
    (kept,) = server.github.requests
    assert (kept.line, kept.query, kept.status, kept.headers["x-mine"]) == (f"GET {REPO}/pulls/9", "page=2", 404, "yes")
    assert server.github.lines("GET", "/repos/*/pulls/*") == [kept.line]
    assert server.github.lines("POST") == []


async def test_webhook_is_delivered_with_its_signature(server: GitHubServer, pull: PullRequest) -> None:
    got: list[tuple[Any, bytes]] = []

    async def receive(request: web.Request) -> web.Response:
        got.append((request.headers, await request.read()))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        comment = server.github.comment(pull, "ann", "/review")
        for payload, event in (
            (server.github.pull_request_event(pull, "opened"), "pull_request"),
            (server.github.issue_comment_event(pull, comment), "issue_comment"),
        ):
            assert (await deliver(url, event, payload, secret="s")).status == 202
            await deliver(url, event, payload, secret="s", delivery="again", forged=True)
    finally:
        await runner.cleanup()
    (headers, body), (forged, _) = got[0], got[1]
    assert headers["X-Hub-Signature-256"] == signature(body, "s") != forged["X-Hub-Signature-256"]
    assert (headers["X-GitHub-Event"], forged["X-GitHub-Delivery"]) == ("pull_request", "again")
    assert headers["X-GitHub-Delivery"] != got[2][0]["X-GitHub-Delivery"]
    document = json.loads(got[2][1])
    assert (document["comment"]["body"], document["issue"]["number"]) == ("/review", 1)
    assert "pull_request" in document["issue"]
