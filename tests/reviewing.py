"""The review bot's three functions on a real host, between a fake GitHub and a model, for tests."""

from __future__ import annotations

import asyncio
import json
import tomllib
from typing import Any

from hosting import FUNCTIONS, TIMEOUT_S, Host, until, wasm

from faas.manifest import manifest_from_toml, manifest_to_builtins
from faas.testing.github import Delivered, GitHubServer, PullRequest, deliver, pointed_at

TOKEN = "ghp_only-the-host-knows-it"
SECRET = "webhook-secret"
BASE = {"src/a.py": b"x = 1\n", "old.py": b"a = 1\nb = 2\n", "gone.py": b"x\n", "logo.png": b"\x89PNG\x00"}
CHANGES: dict[str, bytes | None] = {
    "src/a.py": b"x = 1\ny = BUG",  # and no newline at its end
    "gr\u00fc\u00dfe/\u65e5\u672c.py": b"fine = 1\n",
    "gone.py": None,
    "logo.png": b"\x89PNG\x00\x01",
}


class Rig:
    """
    The three functions on a host, between a GitHub and a model.

    Args: *endpoint* is the URL of an OpenAI-compatible server; the host's resident model is asked without one.
    *patience_s* is how long a job may take.
    """

    def __init__(self, host: Host, server: GitHubServer, endpoint: str = "", *, patience_s: float = TIMEOUT_S) -> None:
        self.host = host
        self.github = server.github
        self.url = server.url
        self.endpoint = endpoint
        self.patience_s = patience_s

    def deploy(self) -> None:
        github = manifest_from_toml((FUNCTIONS / "github" / "function.toml").read_text())
        self.host.deploy("github", wasm("github"), manifest_to_builtins(pointed_at(github, self.url)))
        llm = tomllib.loads((FUNCTIONS / "llm" / "function.toml").read_text())
        if self.endpoint:
            llm["capabilities"] |= {
                "outbound": [self.endpoint],
                "credentials": [{"host": self.endpoint, "secret": "LLM_KEY"}],
            }
            self._admin("PUT", "llm/secrets/LLM_KEY", {"value": "sk"})
            self.settle("llm", LLM_URL=f"{self.endpoint}/v1", LLM_REMOTE_MODEL="scripted")
        self.host.deploy("llm", wasm("llm"), llm)
        bot = tomllib.loads((FUNCTIONS / "review-bot" / "function.toml").read_text())
        bot["async"] |= {"backoff_s": 0.05}
        self.host.deploy("review-bot", wasm("review-bot"), bot)
        self._admin("PUT", "github/secrets/GITHUB_TOKEN", {"value": TOKEN})
        self._admin("PUT", "review-bot/secrets/WEBHOOK_SECRET", {"value": SECRET})
        self.settle("github", GITHUB_API=self.url)

    def settle(self, function: str, **values: str) -> None:
        self._admin("PATCH", f"{function}/config", {"values": values})

    def _admin(self, method: str, path: str, document: Any) -> None:
        reply = self.host.admin(method, f"/api/functions/{path}", json.dumps(document).encode())
        assert reply.status < 300, reply.body

    def send(self, event: str, payload: dict[str, Any], **options: Any) -> Delivered:
        url = f"http://127.0.0.1:{self.host.port}/review-bot/github"
        return asyncio.run(deliver(url, event, payload, secret=SECRET, **options))

    def job(self, event: str, payload: dict[str, Any], **options: Any) -> str:
        """Deliver, and return the job's id."""
        delivered = self.send(event, payload, **options)
        assert delivered.status == 202, delivered.body
        return str(json.loads(delivered.body)["job"])

    def ended(self, job: str) -> dict[str, Any]:
        """Return what the bot answers once the job is finished."""
        until(lambda: self._status(job)["finished_at"], timeout_s=self.patience_s, what=f"job {job} is finished")
        status = self._status(job)
        assert status["state"] == "succeeded", status
        answer: dict[str, Any] = self.host.get(f"/_faas/jobs/{job}/result").json()
        return answer

    def _status(self, job: str) -> dict[str, Any]:
        status: dict[str, Any] = self.host.get(f"/_faas/jobs/{job}").json()
        return status

    def open(self, name: str, files: dict[str, bytes | None]) -> PullRequest:
        """Open a pull request on a repository of its own."""
        repository = self.github.repository(f"octo/{name}", BASE)
        return repository.open_pull("Change things", files, user="ann")

    def review(self, pull: PullRequest, action: str = "opened") -> dict[str, Any]:
        return self.ended(self.job("pull_request", self.github.pull_request_event(pull, action)))

    def comment_on(self, pull: PullRequest, user: str, body: str) -> dict[str, Any]:
        comment = self.github.comment(pull, user, body)
        return self.ended(self.job("issue_comment", self.github.issue_comment_event(pull, comment)))


def own_comment(pull: PullRequest) -> str:
    """Return the bot's comment, of which there is exactly one."""
    (body,) = [comment.body for comment in pull.comments if comment.user == "review-bot"]
    return body
