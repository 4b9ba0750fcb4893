"""The traffic commands read weights and plans as people write them, and say what is served."""

from __future__ import annotations

import asyncio
import sys

import pytest
import typer

from faas.cli.commands.canary import plan_of
from faas.cli.commands.traffic import shares_text, weights_of
from faas.state.base import CanaryPlan


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (("10,25,50,100", "30s", "5%", "", 50), CanaryPlan()),
        (
            ("5%, 100", "2m", "0.5%", "250", 10),
            CanaryPlan((5.0, 100.0), 120.0, 0.005, max_p99_ms=250.0, min_requests=10),
        ),
        (("100", "1h", "0.1", "1.5x", 1), CanaryPlan((100.0,), 3600.0, 0.1, max_p99_ratio=1.5, min_requests=1)),
        (("100", "250ms", "0", "20ms", 1), CanaryPlan((100.0,), 0.25, 0.0, max_p99_ms=20.0, min_requests=1)),
        (("100", "7", "1%", "", 1), CanaryPlan((100.0,), 7.0, 0.01, min_requests=1)),
    ],
)
def test_a_plan_is_what_its_options_say(options, plan):
    assert plan_of(*options) == plan


@pytest.mark.parametrize(
    "options",
    [("a", "30s", "5%", "", 1), ("1", "soon", "5%", "", 1), ("1", "1s", "-1", "", 1), ("1", "1s", "1", "x", 1)],
)
def test_options_that_say_no_plan_are_wrong_usage(options):
    with pytest.raises(typer.BadParameter):
        plan_of(*options)


def test_weights_are_percents_by_version():
    assert weights_of(["3=90", "4=10%"]) == {"3": 90.0, "4": 10.0}
    assert shares_text({"3": 90.0, "4": 10.5}) == "version 3 90 %, version 4 10.5 %"
    assert shares_text({"3": 100.0}) == "version 3"
    for text in ("3", "=3", "a=1", "3=x"):
        with pytest.raises(typer.BadParameter):
            weights_of([text])


@pytest.mark.parametrize(
    "arguments",
    [
        ("traffic", "f", "three=90"),
        ("alias", "set", "f", "beta"),
        ("alias", "set", "f", "beta=x"),
        ("canary", "start", "f"),
        ("canary", "start", "f", "2", "--steps", "all"),
        ("deploy", "x.wasm", "--alias", "a", "--no-traffic"),
        ("rollback", "f", "--to", "-1"),
    ],
)
def test_wrong_usage_of_traffic_is_exit_code_two(faas, arguments):
    assert faas(*arguments).code == 2


async def test_traffic_is_changed_shown_and_remembered(host, wasm):
    await host("deploy", wasm)
    assert "version 2 (command) is deployed" in (await host("deploy", wasm, "--alias", "beta")).out
    await host("deploy", wasm, "--no-traffic")
    shown = [line.split() for line in (await host("versions", "my-func")).out.splitlines()[1:]]
    assert [line[:2] for line in shown] == [["3", "command"], ["2", "beta"], ["1", "live"]]
    assert (await host("traffic", "my-func", "1=90", "3=10", "--sticky", "cookie")).out == (
        "live of my-func: version 1 90 %, version 3 10 %\n"
    )
    assert (await host("alias", "set", "my-func", "old=1")).out == "old of my-func: version 1\n"
    listed = (await host("alias", "list", "my-func", "--json")).json
    assert [(alias["alias"], alias["weights"]) for alias in listed] == [
        ("live", {"1": 90.0, "3": 10.0}),
        ("beta", {"2": 100.0}),
        ("old", {"1": 100.0}),
    ]
    assert "gets" in (await host("inspect", "my-func", "--version", "3")).out
    refused = await host("remove", "my-func", "--version", "3")
    assert (refused.code, "names version 3" in refused.err) == (1, True)
    assert (await host("rollback", "my-func")).out == "my-func version 1 is live\n"
    assert (await host("remove", "my-func", "--version", "3")).code == 0
    assert (await host("alias", "remove", "my-func", "old")).code == 0
    told = [line.split()[2:5] for line in (await host("audit", "my-func")).out.splitlines()[1:]]
    assert [what for _, what, _ in told] == [
        "remove-alias", "remove-version", "rollback", "alias", "traffic", "deploy", "deploy", "deploy",
    ]  # fmt: skip
    assert {who for who, _, _ in told} == {"home"}


async def test_a_canary_is_started_with_a_deploy_and_ended_by_hand(host, wasm):
    await host("deploy", wasm, "--canary")
    await host("deploy", wasm, "--canary", "--steps", "20,100", "--min-requests", "5", "--max-p99-ms", "2x")
    shown = (await host("canary", "status", "my-func")).out
    assert "20 % (step 1 of 2" in shown
    assert "0 requests of 5 needed" in shown
    assert "p99 2 times the old version's" in shown
    refused = await host("deploy", wasm)
    assert (refused.code, "faas canary abort my-func" in refused.err) == (1, True)
    assert "aborted by hand" in (await host("canary", "abort", "my-func")).out
    assert (await host("canary", "promote", "my-func")).code == 1
    await host("canary", "start", "my-func", "2", "--interval", "1m")
    assert (await host("canary", "promote", "my-func", "--json")).json["canary"]["phase"] == "promoted"
    assert (await host("traffic", "my-func")).out.splitlines()[1].split() == ["live", "version", "2", "-"]


async def test_an_alias_is_invoked_by_its_header(host, wasm):
    await host("deploy", wasm)
    await host("alias", "set", "my-func", "beta=1")
    ended = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from faas.cli import main; main()", "invoke", "my-func@beta"),
        stdout=asyncio.subprocess.PIPE,
    )  # its stdout is bytes, which the fixture does not keep
    assert await ended.communicate() == (b"\xff answer", None)
    assert host.requests[-1][2]["X-Faas-Alias"] == "beta"
    unknown = await host("invoke", "my-func@7")
    assert (unknown.code, "has no version 7" in unknown.err) == (1, True)
