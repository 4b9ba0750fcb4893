"""The load test's scenarios: their users exist, and what came of a run is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.run import found_problems, main
from loadtest.scenarios import FLEET, PRIMES, SCENARIOS, Finding

LOADTEST = Path(__file__).resolve().parents[3] / "loadtest"


def row(name: str, requests: int = 1) -> dict[str, str]:
    return {"function": name, "requests": str(requests)}


@pytest.mark.parametrize("users_file", sorted({scenario.users_file for scenario in SCENARIOS.values()}))
def test_locust_finds_the_users_of_every_scenario_and_no_others(users_file: str):
    # In its own process: importing locust changes the standard library of this one.
    listed = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOADTEST / users_file), "--list"],
        cwd=LOADTEST.parent,
        env={"PYTHONPATH": str(LOADTEST.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {
        name for scenario in SCENARIOS.values() if scenario.users_file == users_file for name in scenario.user_classes
    }
    assert {line.strip() for line in listed.stdout.splitlines()[1:] if line.strip()} == wanted


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_sample_that_a_scenario_deploys_is_there(name: str):
    folders = [LOADTEST.parent / "functions" / sample for sample in SCENARIOS[name].deploy]
    assert all((folder / "function.toml").is_file() for folder in folders)


@pytest.mark.parametrize("limit", PRIMES)
def test_the_known_numbers_of_primes_are_right(limit: int):
    composite = bytearray(limit)
    for n in range(2, int(limit**0.5) + 1):
        if not composite[n]:
            composite[n * n :: n] = b"\1" * len(composite[n * n :: n])
    assert composite[2:].count(0) == PRIMES[limit]


def test_no_two_functions_of_the_fleet_have_the_same_code():
    modules = {FLEET.module(index) for index in range(0, FLEET.n_functions, 50)}
    assert len(modules) == FLEET.n_functions / 50


def test_a_run_in_which_all_was_answered_has_no_problem():
    assert found_problems(["a", "b"], [row("a"), row("b"), row("b: refused")], [], Finding("all cold")) == []


def test_a_failed_request_a_row_that_is_missing_and_a_bad_finding_are_problems():
    failures = [{"Occurrences": "3", "Name": "a", "Error": "502"}]
    found = found_problems(["a", "b", "c"], [row("a"), row("b", 0)], failures, Finding("1 of 9 were cold", ok=False))
    assert found == [
        "3 × a: 502",
        "'b' has no request; was the load too short?",
        "'c' has no request; was the load too short?",
        "1 of 9 were cold",
    ]


def test_a_scenario_with_a_model_says_what_to_install_before_it_starts_a_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["run", "--scenario", "chat", "--out", str(out)])
    assert main() == 1
    assert "run 'make models' first" in capsys.readouterr().err
    assert not out.exists()
