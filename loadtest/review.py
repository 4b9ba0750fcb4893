"""``make bench-review``: one review's model calls side by side and one after another, on the resident model."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from urllib.request import urlopen

from faas.cli.client import AdminClient
from faas.testing.demo_review import SECRET, Running, deploy_agent, running_host
from faas.testing.github import FakeGitHub, GitHubServer, Repository, deliver, running_github
from loadtest.report import Finding, findings_table
from loadtest.report import console as new_console

N_FUNCTIONS = 64
PART_TOKENS = 500
SIDE_BY_SIDE = 4
LIMIT_S = 600.0
_TOKENS = re.compile(r'^faas_model_tokens_total\{model="default",kind="(\w+)"\} (\S+)$', re.MULTILINE)
_STEPS = re.compile(r'^faas_model_decode_steps_total\{model="default"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Review:
    """What one review took: seconds, tokens of the model by kind, and its steps."""

    parallel: int
    took_s: float
    tokens: dict[str, float]
    steps: float

    @property
    def per_s(self) -> float:
        """Generated tokens a second, over the whole review, its plan and its summary included."""
        return self.tokens["generated"] / self.took_s

    @property
    def per_step(self) -> float:
        """Generated tokens a step of the model: above 1 only where calls are decoded together."""
        return self.tokens["generated"] / self.steps


def main() -> int:
    """Return 0 when both promises hold, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.review", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    console = new_console()
    reviews: list[Review] = []
    with (
        tempfile.TemporaryDirectory(prefix="faas-bench-") as folder,
        running_github(FakeGitHub(token="token")) as server,
        running_host(Path(folder)) as host,
    ):
        path = asyncio.run(deploy_agent(host.access, server.url, token="token", secret=SECRET))
        repository = server.github.repository("octo/faas", {})
        console.print("the first review, which finds nothing in the prefix cache ...")
        first = asyncio.run(_review(server, repository, host, path, SIDE_BY_SIDE))
        for number in range(2 * args.rounds):
            parallel = (1, SIDE_BY_SIDE)[number % 2]
            console.print(f"review {number + 1} of {2 * args.rounds}: {parallel} at once ...")
            reviews.append(asyncio.run(_review(server, repository, host, path, parallel)))
    findings = _findings(first, reviews)
    console.print(findings_table("one review on the resident model", findings))
    return 0 if all(finding.holds for finding in findings) else 1


async def _review(server: GitHubServer, repository: Repository, host: Running, path: str, parallel: int) -> Review:
    values = {"PARALLEL": str(parallel), "CHUNK_TOKENS": str(PART_TOKENS)}
    async with AdminClient(host.access) as client:
        await client.tell("PATCH", "/api/functions/review-bot/config", {"values": values})
    pull = repository.open_pull("Add shapes", _diff())
    before, steps = _counters(host)
    began = time.perf_counter()
    event = server.github.pull_request_event(pull, "opened")
    answer = await deliver(host.public_url + path, "pull_request", event, secret=SECRET)
    status_url = json.loads(answer.body)["status_url"]
    while True:
        state = json.loads(_get(host.public_url + status_url))["state"]
        if state not in {"queued", "running", "retrying"}:
            break
        if time.perf_counter() - began > LIMIT_S:
            raise TimeoutError(f"the review is {state} after {LIMIT_S:g} s")
        await asyncio.sleep(0.1)
    took_s = time.perf_counter() - began
    if state != "succeeded" or len(pull.comments) != 1:
        raise RuntimeError(f"the review ended as {state} with {len(pull.comments)} comments")
    after, steps_after = _counters(host)
    return Review(parallel, took_s, {kind: n - before.get(kind, 0) for kind, n in after.items()}, steps_after - steps)


def _diff() -> str:
    """Return a change of one new file: a review of one needs no plan, so that its parts are most of the work."""
    lines = [f"+def area_{line}(width, height):\n+    return width * height / {line}" for line in range(N_FUNCTIONS)]
    return (
        "diff --git a/shapes.py b/shapes.py\nnew file mode 100644\n--- /dev/null\n+++ b/shapes.py\n"
        f"@@ -0,0 +1,{2 * len(lines)} @@\n" + "\n".join(lines) + "\n"
    )


def _counters(host: Running) -> tuple[dict[str, float], float]:
    """Return the model's tokens by kind, and its steps, so far."""
    time.sleep(1.5)  # counters come up once a second
    page = _get(f"{host.access.url}/metrics")
    return {kind: float(n) for kind, n in _TOKENS.findall(page)}, sum(map(float, _STEPS.findall(page)))


def _get(url: str) -> str:
    with urlopen(url) as response:
        text: str = response.read().decode()
        return text


def _findings(first: Review, reviews: list[Review]) -> list[Finding]:
    alone = [review for review in reviews if review.parallel == 1]
    together = [review for review in reviews if review.parallel > 1]
    ratio = fmean(review.per_s for review in together) / fmean(review.per_s for review in alone)
    batched = fmean(review.per_step for review in together) / fmean(review.per_step for review in alone)
    cached, prompt = first.tokens["cached"], first.tokens["prompt"]
    return [
        *(
            Finding(
                f"{review.parallel} at once",
                "review; generated tokens; tokens/s; tokens a step",
                f"{review.took_s:.1f} s; {review.tokens['generated']:.0f}; {review.per_s:.1f}; {review.per_step:.2f}",
            )
            for review in reviews
        ),
        Finding("overlap", f"tokens/s, {SIDE_BY_SIDE} at once beside one", f"{ratio:.2f} x", "> 1", ratio > 1),
        Finding("batches", f"tokens a step, {SIDE_BY_SIDE} at once beside one", f"{batched:.2f} x", "> 1", batched > 1),
        Finding(
            "prefix",
            "first review: prompt tokens shared between its calls",
            f"{cached:.0f} of {prompt:.0f}",
            "> 0",
            cached > 0,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
