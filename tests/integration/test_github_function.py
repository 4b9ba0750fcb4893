"""functions/github on a real host, against the fake GitHub: pages, failures, limits, odd files, and who gets in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hosting import FUNCTIONS, Host, wasm

from faas.manifest import manifest_from_toml, manifest_to_builtins
from faas.testing.diffs import Link
from faas.testing.github import FakeGitHub, GitHubServer, pointed_at, running_github

TOKEN = "ghp_fake-token-that-nobody-may-see"
NAME = "it-github"
FILES = {
    "README.md": b"# Demo\nmarker one\n",
    "src/Ünïcode dir/日本 a+b&c%.txt": "grüße\n".encode(),
    "logo.png": b"\x89PNG\x00\xff",
    "big.txt": b"x" * 1_100_000,
    "private.txt": b"not for this token",
    "empty": b"",
    ".env": b"KEY=marker secret\n",
    "docs/config": Link(b"../.env"),
    "docs/all": Link(b"../src"),
}
REPO = "/repos/octo/demo"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any


class Rig:
    """The function, deployed on a host, its GitHub, and how an operator invokes it."""

    def __init__(self, host: Host, server: GitHubServer) -> None:
        self.host = host
        self.url = server.url
        self.github = server.github

    def settle(self, **config: str) -> None:
        """Set config values of the function."""
        reply = self.host.admin("PATCH", f"/api/functions/{NAME}/config", json.dumps({"values": config}).encode())
        assert reply.status < 300, reply.body

    def ask(self, target: str, method: str = "GET", document: Any = None, headers: Any = ()) -> Answer:
        body = b"" if document is None else json.dumps(document).encode()
        asked = {"method": method, "target": target, "headers": list(headers), "body": base64.b64encode(body).decode()}
        reply = self.host.admin("POST", f"/api/functions/{NAME}/invoke", json.dumps(asked).encode())
        assert reply.status == 200, reply.body
        got = reply.json()
        names = {name.lower(): value for name, value in got["headers"]}
        return Answer(got["status"], names, json.loads(base64.b64decode(got["body"])))


@pytest.fixture(scope="module")
def deployed(host: Host) -> Iterator[Rig]:
    with running_github(FakeGitHub(token=TOKEN)) as server:
        toml = (FUNCTIONS / "github" / "function.toml").read_text()
        raw = manifest_to_builtins(pointed_at(manifest_from_toml(toml), server.url))
        raw |= {"name": NAME, "routes": [f"/{NAME}", f"/{NAME}/*"]}
        host.deploy(NAME, wasm("github"), raw)
        secret = host.admin("PUT", f"/api/functions/{NAME}/secrets/GITHUB_TOKEN", json.dumps({"value": TOKEN}).encode())
        assert secret.status < 300, secret.body
        yield Rig(host, server)
        host.admin("DELETE", f"/api/functions/{NAME}")


@pytest.fixture
def rig(deployed: Rig) -> Iterator[Rig]:
    """The function with a GitHub on which nothing has happened yet."""
    deployed.github.heal()
    deployed.github.repositories.clear()
    deployed.github.requests.clear()
    deployed.github.repository("octo/demo", FILES)
    deployed.settle(GITHUB_API=deployed.url, GITHUB_TIMEOUT_MS="")
    yield deployed
    deployed.github.heal()


def contents(rig: Rig, path: str, ref: str = "main") -> Answer:
    return rig.ask(f"{REPO}/contents/{quote(path)}?ref={quote(ref, safe='')}")


def test_pull_request_is_reduced_to_what_callers_need(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull("Tïtle", {"new": b"x\n"}, body="b", user="ann", draft=True)
    assert rig.ask(f"{REPO}/pulls/{pull.number}").json == {
        "number": pull.number,
        "title": "Tïtle",
        "body": "b",
        "draft": True,
        "state": "open",
        "user": "ann",
        "changed_files": 1,
        "head": {"sha": pull.head_sha, "ref": pull.head_ref, "repo": "octo/demo"},
        "base": {"sha": pull.base_sha, "ref": "main"},
    }


def test_files_come_in_three_pages_with_their_patches(rig: Rig) -> None:
    files: dict[str, bytes | None] = {f"d/ä{i:03}.txt": b"line\n" for i in range(250)}
    pull = rig.github.repositories["octo/demo"].open_pull("Many", files)
    names, page, pages = [], 1, []
    while page:
        answer = rig.ask(f"{REPO}/pulls/{pull.number}/files?page={page}")
        assert answer.status == 200
        names += [file["filename"] for file in answer.json["files"]]
        assert {file["patch"] for file in answer.json["files"]} == {"@@ -0,0 +1 @@\n+line"}
        pages.append(page)
        page = answer.json["next"]
    assert (pages, names) == ([1, 2, 3], sorted(files))


def test_what_became_of_each_kind_of_file_is_told(rig: Rig) -> None:
    repository = rig.github.repositories["octo/demo"]
    pull = repository.open_pull(
        "All kinds", {"logo.png": b"\x00new", "empty": None, "README.md": None, "docs.md": FILES["README.md"]}
    )
    files = {file["filename"]: file for file in rig.ask(f"{REPO}/pulls/{pull.number}/files").json["files"]}
    assert {name: file["status"] for name, file in files.items()} == {
        "docs.md": "renamed",
        "empty": "removed",
        "logo.png": "modified",
    }
    assert files["docs.md"]["previous_filename"] == "README.md"
    assert "patch" not in files["logo.png"]


def test_comparison_has_what_a_push_changed(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull("Two", {"a": b"1\n"})
    first = pull.head_sha
    pull.push({"b": b"2\n"})
    answer = rig.ask(f"{REPO}/compare/{first}...{pull.head_sha}")
    assert [file["filename"] for file in answer.json["files"]] == ["b"]
    assert (answer.json["next"], answer.json["status"], answer.json["truncated"]) == (None, "ahead", False)
    pull.push({"c": b"3\n"}, force=True)
    assert rig.ask(f"{REPO}/compare/{first}...{pull.head_sha}").status == 404


def test_file_whose_path_is_beyond_ascii_is_read(rig: Rig) -> None:
    path = "src/Ünïcode dir/日本 a+b&c%.txt"
    assert contents(rig, path).json == {"text": "grüße\n", "size": 8}
    assert rig.github.requests[-1].path.endswith(path)


@pytest.mark.parametrize(("path", "size"), [("logo.png", 6), ("big.txt", 1_100_000), ("src", 0), ("docs/all", 6)])
def test_what_is_no_text_has_none(rig: Rig, path: str, size: int) -> None:
    assert contents(rig, path).json == {"text": None, "size": size}


def test_link_does_not_show_the_file_that_it_leads_to(rig: Rig) -> None:
    assert contents(rig, "docs/config").json == {"text": None, "size": 18}
    assert contents(rig, ".env").json == {"text": "KEY=marker secret\n", "size": 18}, "whoever may, asks for it by name"


def test_search_skips_links_and_files_with_a_private_key(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull(
        "K", {"README.md": b"marker one\n-----BEGIN RSA PRIVATE KEY-----\n", "src/a": Link(b"../.env")}
    )
    assert [item["path"] for item in rig.ask(f"{REPO}/search?q=marker").json["items"]] == [".env", "README.md"]
    found = rig.ask(f"{REPO}/search?q=marker&ref={pull.head_sha}").json
    assert [item["path"] for item in found["items"]] == [".env"]
    assert f"GET {REPO}/contents/README.md" in rig.github.lines(), "it was read, and has the words"


def test_empty_file_is_text(rig: Rig) -> None:
    assert contents(rig, "empty").json == {"text": "", "size": 0}


def test_missing_and_hidden_files_and_commits_are_404(rig: Rig) -> None:
    rig.github.repositories["octo/demo"].hidden.add("private.txt")
    for path, ref in (("nothing", "main"), ("private.txt", "main"), ("README.md", "feature/unknown")):
        answer = contents(rig, path, ref)
        assert (answer.status, answer.json["status"]) == (404, 404)
        assert answer.json["error"].startswith("GitHub: 404")


def test_comments_are_listed_posted_and_edited(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull("C", {"a": b"1\n"})
    for number in range(150):
        rig.github.comment(pull, "ann", f"comment {number}")
    path = f"{REPO}/issues/{pull.number}/comments"
    made = rig.ask(path, "POST", {"body": "größer\n<!-- mark -->"})
    assert made.status == 201
    first, second = rig.ask(path).json, rig.ask(f"{path}?page=2").json
    assert (len(first["comments"]), first["next"], len(second["comments"]), second["next"]) == (100, 2, 51, None)
    assert second["comments"][-1] == {"id": made.json["id"], "user": "review-bot", "body": "größer\n<!-- mark -->"}
    edited = rig.ask(f"{REPO}/issues/comments/{made.json['id']}", "PATCH", {"body": "two"})
    assert (edited.status, edited.json) == (200, {"id": made.json["id"]})
    assert pull.comments[-1].history == ["größer\n<!-- mark -->", "two"]


def test_own_comment_is_deleted_once_and_those_of_others_stay(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull("C", {"a": b"1\n"})
    theirs, mine = rig.github.comment(pull, "ann", "hers"), rig.github.comment(pull, "review-bot", "mine")
    rig.github.fail("DELETE", "*", 502)
    path = f"{REPO}/issues/comments"
    deleted = rig.ask(f"{path}/{mine.id}", "DELETE")
    assert (deleted.status, deleted.json) == (200, {})
    assert rig.ask(f"{path}/{mine.id}", "DELETE").status == 404
    assert rig.ask(f"{path}/{theirs.id}", "DELETE").status == 403
    assert pull.comments == [theirs]


def test_who_asks_and_what_they_may_do_is_told(rig: Rig) -> None:
    rig.github.repositories["octo/demo"].collaborators["mia"] = "maintain"
    assert rig.ask("/user").json == {"login": "review-bot"}
    assert rig.ask(f"{REPO}/collaborators/mia/permission").json == {"permission": "write", "role": "maintain"}
    bot = rig.ask(f"{REPO}/collaborators/dependabot%5Bbot%5D/permission")
    assert (bot.status, bot.json["permission"]) == (200, "read")


def test_search_finds_lines_at_a_commit_and_stays_in_its_repository(rig: Rig) -> None:
    rig.github.repository("octo/other", {"theirs.txt": b"marker one\n"})
    pull = rig.github.repositories["octo/demo"].open_pull("S", {"README.md": b"\n\nMarker one is here now\n"})
    found = rig.ask(f"{REPO}/search?q=marker+one&ref={pull.head_sha}").json
    assert found == {
        "items": [{"path": "README.md", "lines": [{"number": 3, "text": "Marker one is here now"}]}],
    }
    escape = quote('x" repo:octo/other "marker one')
    assert rig.ask(f"{REPO}/search?q={escape}").json == {"items": []}
    rig.github.fail("GET", "/search/code", 403, message="Resource not accessible by integration")
    unsupported = rig.ask(f"{REPO}/search?q=marker").json
    assert unsupported["items"] == []
    assert "not accessible" in unsupported["unsupported"]


def test_failure_of_github_is_tried_again_until_it_answers(rig: Rig) -> None:
    rig.github.fail("GET", "/user", 502)
    rig.github.hang_up("GET", "/user")
    assert rig.ask("/user").status == 200
    assert rig.github.lines() == ["GET /user"] * 3


def test_edit_is_tried_again_and_a_post_is_left_to_its_caller(rig: Rig) -> None:
    pull = rig.github.repositories["octo/demo"].open_pull("C", {"a": b"1\n"})
    path = f"{REPO}/issues/{pull.number}/comments"
    rig.github.hang_up("POST", path, after=True)
    refused = rig.ask(path, "POST", {"body": "one"})
    assert (refused.status, refused.json["status"], refused.json["uncertain"]) == (502, 502, True)
    (comment,) = pull.comments
    rig.github.fail("PATCH", "/repos/*", 500, after=True)
    assert rig.ask(f"{REPO}/issues/comments/{comment.id}", "PATCH", {"body": "two"}).status == 200
    assert comment.body == "two"
    assert len(rig.github.lines("POST")) == 1


def test_primary_limit_is_429_until_its_reset(rig: Rig) -> None:
    rig.github.limit(1, reset_after_s=1800)
    assert rig.ask("/user").status == 200
    refused = rig.ask("/user")
    assert (refused.status, refused.json["status"]) == (429, 429)
    assert 1700 < int(refused.headers["retry-after"]) <= 1800


def test_secondary_limit_is_429_with_its_retry_after(rig: Rig) -> None:
    rig.github.secondary_limit("GET", "/user", retry_after_s=42, times=1)
    rig.github.secondary_limit("GET", "/user", retry_after_s=None)
    assert [rig.ask("/user").headers["retry-after"] for _ in range(2)] == ["42", "60"]
    assert rig.github.lines() == ["GET /user"] * 2


def test_short_limit_is_waited_for(rig: Rig) -> None:
    rig.github.secondary_limit("GET", "/user", retry_after_s=1)
    assert rig.ask("/user").status == 200
    assert rig.github.lines() == ["GET /user"] * 2


def test_slow_answer_is_waited_for_only_so_long(rig: Rig) -> None:
    rig.settle(GITHUB_TIMEOUT_MS="100")
    gate = rig.github.hold("GET", "/user")
    assert rig.ask("/user").status == 200, "the second try is answered"
    gate.open()
    gate = rig.github.hold("GET", "/user", times=None)
    answer = rig.ask("/user")
    assert (answer.status, "in time" in answer.json["error"]) == (504, True)
    gate.open()
    # What was held is answered now, to nobody: before the next test counts requests.
    rig.github.until(lambda: len(rig.github.requests) == 2 + gate.n_held)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/user/repos"),
        ("GET", "/repos/octo/demo"),
        ("PUT", "/repos/octo/demo/pulls/1/merge"),
        ("DELETE", "/repos/octo/demo/issues/1/comments"),
        ("DELETE", "/repos/octo/demo"),
        ("POST", "/repos/octo/demo/issues/1/labels"),
        ("PUT", "/repos/octo/demo/contents/README.md"),
        ("GET", "/search/code?q=x"),
        ("GET", "/repos/octo/demo/pulls/..%2F..%2F..%2Fuser"),
        ("GET", "/repos/../user/pulls/1"),
        ("GET", "/https://example.org/"),
    ],
)
def test_what_is_not_in_the_table_never_leaves_the_host(rig: Rig, method: str, target: str) -> None:
    answer = rig.ask(target, method, {"body": "x"})
    assert (answer.status, answer.json["status"]) == (404, 404)
    assert rig.github.requests == []


def test_path_that_climbs_is_refused_unsent(rig: Rig) -> None:
    for path in ("..", "a/%2e%2e/%2e%2e/pulls", "a%2f..%2f.."):
        assert rig.ask(f"{REPO}/contents/{path}").status in (400, 404)
    assert rig.github.requests == []


def test_token_is_added_by_the_host_and_seen_by_nobody(rig: Rig) -> None:
    rig.github.fail("GET", "/user", 500)
    answer = rig.ask("/user", headers=[("authorization", "Bearer of-the-caller"), ("x-request-id", "its-token")])
    assert answer.status == 200
    assert {one.headers["authorization"] for one in rig.github.requests} == {f"Bearer {TOKEN}"}
    assert all("of-the-caller" not in str(one.headers) for one in rig.github.requests)
    failed = rig.ask("/repos/octo/unknown/pulls/1")
    host = rig.host
    lines = host.log_of(NAME, failed.headers["x-request-id"])
    assert any("/repos/octo/unknown/pulls/1: 404" in str(line) for line in lines)
    kept = b"".join(path.read_bytes() for path in (host.home / "logs").rglob("*") if path.is_file())
    assert b"/repos/octo/unknown/pulls/1: 404" in kept
    told = [host.stderr_path.read_text(), host.admin("GET", f"/api/functions/{NAME}").text, str(answer), str(failed)]
    assert TOKEN.encode() not in kept + "".join(told).encode()
    assert b"secret_get" not in wasm("github"), "the guest can't even ask for it"


def test_token_goes_nowhere_but_to_its_place(rig: Rig) -> None:
    rig.settle(GITHUB_API="https://api.github.com.example.org")
    refused = rig.ask("/user")
    assert (refused.status, "not granted" in refused.json["error"]) == (502, True)
    assert rig.github.requests == []


def test_nobody_from_outside_gets_in(rig: Rig) -> None:
    for path in (f"/{NAME}", f"/{NAME}/user", f"/{NAME}/repos/octo/demo/pulls/1"):
        reply = rig.host.get(path, {"Authorization": "Bearer guess"})
        assert (reply.status, reply.code) == (401, "invalid-invoke-key")
    assert rig.host.get("/user").status == 404
    assert rig.github.requests == []


def test_other_function_calls_it_in_memory_only_where_that_is_granted(rig: Rig) -> None:
    caller = (FUNCTIONS / "http" / "outbound.wasm").read_bytes()
    rig.host.deploy("it-github-caller", caller, {"capabilities": {"calls": [NAME]}})
    rig.host.deploy("it-github-stranger", caller, {"capabilities": {"calls": ["hello"]}})
    url = f"http://{NAME}.faas.internal/user"
    assert rig.host.get(f"/it-github-caller?{url}").json() == {"login": "review-bot"}
    assert rig.host.get(f"/it-github-stranger?{url}").status == 502
    assert rig.github.lines() == ["GET /user"]
