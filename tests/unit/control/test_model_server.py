"""The model server is there when a model is, is replaced when it dies, and learns of changes while it runs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from faas.clock import SystemClock
from faas.config import HostConfig
from faas.control import modelserver
from faas.control.modelserver import ModelSupervisor, why_no_models
from faas.control.process import spawn_python
from faas.control.stats import ModelCounts
from faas.errors import ModelFileError
from faas.wire.models import ModelStats, Ping, Register, Unregister


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def new_server(run_dir):
    """A supervisor with fakes; closed by the test."""

    def make(fleet, **more):
        config = HostConfig(home=str(run_dir), model_budget_bytes=1000, model_ctx=512, model_backend="fake")

        async def sleep(pause_s):
            fleet.log.append(("slept", pause_s))
            await asyncio.sleep(0)

        return ModelSupervisor(config, run_dir=run_dir, clock=SystemClock(), spawn=fleet.spawn, sleep=sleep, **more)

    return make


@pytest.fixture
def fleet(bench):
    return bench.model_fleet


@pytest.fixture
async def server(new_server, fleet):
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    yield server
    await server.aclose()


def back_offs(fleet):
    return [pause for what, pause in fleet.log if what == "slept" and pause != modelserver.CONNECT_POLL_S]


async def test_no_process_runs_without_a_model(bench, fleet):
    await bench.model_server.settled(5)
    assert bench.model_server.view().state == "absent"
    assert "faas models add" in bench.model_server.view().reason or "no model" in bench.model_server.view().reason
    assert fleet.servers == []


async def test_process_gets_its_settings(server, fleet, run_dir):
    settings = fleet.servers[0].settings
    assert settings.pop("token") == server.access.token
    assert settings == {
        "socket": str(run_dir / "models.sock"),
        "models": {"a": "/a.gguf"},
        "digests": {},
        "budget_bytes": 1000,
        "threads": 0,
        "n_ctx": 512,
        "n_slots": 16,
        "saved_bytes": 256 * 1024 * 1024,
        "gpu_layers": -1,
        "backend": "fake",
    }


async def test_view_shows_the_process_that_serves(server, fleet):
    await fleet.servers[0].channel.send(ModelStats({"a": {"resident_bytes": 5}, "b": {"resident_bytes": 0}}, {}))
    await until(server.counts.gauges)
    view = server.view()
    assert (view.state, view.pid, view.restarts, view.reason) == ("serving", 2000, 0, "")
    assert (view.backend, view.models_loaded) == ("fake", 1)


async def test_missing_extra_is_a_reason_and_no_process(new_server, fleet):
    server = new_server(fleet, missing="no extra here")
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    assert (server.view().state, server.view().reason) == ("absent", "no extra here")
    await server.set_models({"a": "/a.gguf", "b": "/b.gguf"}, {})
    assert fleet.servers == []
    await server.aclose()


def test_extra_is_looked_for_without_being_imported(monkeypatch):
    monkeypatch.setattr(modelserver.importlib.util, "find_spec", lambda name: None)
    assert "faas[models]" in why_no_models(HostConfig())
    assert why_no_models(HostConfig(model_backend="fake")) == ""


async def test_first_model_starts_the_process_and_the_last_one_ends_it(new_server, fleet):
    server = new_server(fleet)
    server.start({}, {})
    await server.set_models({"a": "/a.gguf"}, {})
    assert server.view().state == "serving"
    await server.set_models({}, {})
    assert server.view().state == "absent"
    assert fleet.servers[0].exit_code.result() == 0
    assert server.restarts == 0
    await server.set_models({"b": "/b.gguf"}, {})
    assert fleet.servers[1].settings["models"] == {"b": "/b.gguf"}
    await server.aclose()


async def test_change_is_told_to_the_running_process(server, fleet):
    await server.set_models({"b": "/b.gguf", "c": "/c.gguf"}, {})
    heard = [message for message in fleet.servers[0].heard if isinstance(message, Register | Unregister)]
    assert [(type(message), message.name) for message in heard] == [(Unregister, "a"), (Register, "b"), (Register, "c")]
    assert fleet.servers[0].models == {"b": "/b.gguf", "c": "/c.gguf"}
    assert len(fleet.servers) == 1
    assert set(await server.cards()) == {"b", "c"}


async def test_model_that_moved_is_registered_again(server, fleet):
    await server.set_models({"a": "/elsewhere.gguf"}, {})
    assert fleet.servers[0].models == {"a": "/elsewhere.gguf"}
    assert len(fleet.servers) == 1


async def test_process_that_does_not_understand_is_replaced_by_one_with_the_new_set(server, fleet):
    fleet.learns = False
    await server.set_models({"a": "/a.gguf", "b": "/b.gguf"}, {})
    assert server.view().state == "serving"
    assert fleet.servers[1].settings["models"] == {"a": "/a.gguf", "b": "/b.gguf"}


async def test_process_that_does_not_answer_a_change_is_killed_and_replaced(server, fleet, monkeypatch):
    monkeypatch.setattr(modelserver, "ANSWER_TIMEOUT_S", 0.01)
    fleet.answers = False
    await server.set_models({"b": "/b.gguf"}, {})
    assert ("killed", 2000) in fleet.log
    assert fleet.servers[1].settings["models"] == {"b": "/b.gguf"}
    assert server.view().state == "serving"


async def test_change_while_the_process_starts_is_told_once_it_is_there(new_server, fleet):
    fleet.may_be_ready.clear()
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await until(lambda: fleet.servers)
    changing = asyncio.create_task(server.set_models({"a": "/a.gguf", "b": "/b.gguf"}, {}))
    await asyncio.sleep(0)
    fleet.may_be_ready.set()
    await changing
    assert fleet.servers[0].models == {"a": "/a.gguf", "b": "/b.gguf"}
    await server.aclose()


async def test_refused_model_is_noted_and_not_asked_for_again(server, fleet):
    fleet.refuse = ModelFileError("the library says no")
    await server.set_models({"a": "/a.gguf", "b": "/b.gguf"}, {})
    await server.set_models({"a": "/a.gguf", "b": "/b.gguf"}, {})
    assert server.refused == {"b": "the library says no"}
    assert sum(isinstance(message, Register) for message in fleet.servers[0].heard) == 1
    assert server.view().state == "serving"


async def test_dead_process_is_replaced_with_ever_longer_pauses(server, fleet):
    for n_servers in range(1, 5):
        fleet.servers[-1].die(-9)
        await until(lambda n=n_servers: len(fleet.servers) > n and server.view().state == "serving")
    assert back_offs(fleet) == [0.05, 0.1, 0.2, 0.4]
    assert server.restarts == 4


async def test_process_that_can_not_start_is_tried_again_and_says_why(new_server, fleet):
    fleet.die_at_start = True
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    assert server.view().state == "backing-off"
    assert "exited with code 1" in server.view().reason
    fleet.die_at_start = False
    await until(lambda: server.view().state == "serving")
    await server.aclose()


async def test_spawn_that_fails_is_a_reason(new_server, fleet):
    async def refuse(settings):
        raise PermissionError(13, "Permission denied")

    fleet.spawn = refuse
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    assert "can't be started: Permission denied" in server.view().reason
    await server.aclose()
    assert server.view().state == "stopped"


async def test_process_of_another_protocol_is_killed(new_server, fleet):
    fleet.protocol = 99
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    assert fleet.log.count(("killed", 2000)) == 1
    await server.aclose()


async def test_silent_process_is_pinged_and_killed_if_it_does_not_answer(new_server, fleet, monkeypatch):
    monkeypatch.setattr(modelserver, "QUIET_S", 0.001)
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    await until(lambda: sum(isinstance(message, Ping) for message in fleet.servers[0].heard) > 2)
    assert len(fleet.servers) == 1
    monkeypatch.setattr(modelserver, "ANSWER_TIMEOUT_S", 0.01)
    fleet.answers = False
    await until(lambda: ("killed", 2000) in fleet.log)
    fleet.answers = True
    await server.aclose()


async def test_process_that_does_not_end_by_itself_is_killed(new_server, fleet, monkeypatch):
    monkeypatch.setattr(modelserver, "EXIT_GRACE_S", 0.01)
    fleet.lingers = True
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    await server.aclose()
    assert fleet.log == [*fleet.log[:-1], ("killed", 2000)]


async def test_close_ends_the_process_gracefully(new_server, fleet, run_dir):
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await server.settled(5)
    await server.aclose()
    assert fleet.servers[0].exit_code.result() == 0
    assert server.view().state == "stopped"
    assert not (run_dir / "models.sock").exists()


async def test_close_while_the_process_starts_ends_it(new_server, fleet):
    fleet.may_be_ready.clear()
    server = new_server(fleet)
    server.start({"a": "/a.gguf"}, {})
    await until(lambda: fleet.servers)
    await server.aclose()
    assert server.view().state == "stopped"
    assert len(fleet.servers) == 1
    fleet.may_be_ready.set()


async def test_counters_survive_the_process_that_counted(server, fleet):
    numbers = {"loads": 1, "prompt_tokens": 7, "generated_tokens": 3, "active": 2, "resident_bytes": 10}
    await fleet.servers[0].channel.send(ModelStats({"a": numbers}, {}))
    await until(server.counts.totals)
    assert server.counts.gauges()["a"]["active"] == 2
    fleet.servers[0].die(-9)
    await until(lambda: len(fleet.servers) == 2 and server.view().state == "serving")
    assert server.counts.totals()["a"]["prompt_tokens"] == 7
    assert server.counts.gauges() == {}
    await fleet.servers[1].channel.send(ModelStats({"a": {"prompt_tokens": 1}}, {}))
    await until(lambda: server.counts.totals()["a"]["prompt_tokens"] == 8)


def test_counters_of_a_model_that_was_taken_away_are_kept_when_it_comes_back():
    counts = ModelCounts()
    counts.report(ModelStats({"a": {"requests": 5}, "b": {"requests": 1}}, {}))
    counts.report(ModelStats({"b": {"requests": 2}}, {}))
    counts.report(ModelStats({"a": {"requests": 1}, "b": {"requests": 2}}, {}))
    assert {name: numbers["requests"] for name, numbers in counts.totals().items()} == {"a": 6, "b": 2}


async def test_cards_are_the_last_ones_and_not_loaded_while_the_process_is_away(server, fleet):
    fleet.loaded = {"a"}
    assert (await server.cards())["a"].loaded
    fleet.may_be_ready.clear()
    fleet.servers[0].die(-9)
    await until(lambda: len(fleet.servers) == 2)
    card = (await server.cards())["a"]
    assert (card.loaded, card.architecture) == (False, "tiny")
    fleet.may_be_ready.set()


async def test_real_process_is_started_killed_replaced_and_ended(run_dir):
    script = str(Path(__file__).with_name("tiny_model_server.py"))
    server = ModelSupervisor(
        HostConfig(home=str(run_dir)),
        run_dir=run_dir,
        clock=SystemClock(),
        spawn=lambda settings: spawn_python((script,), settings),
    )
    server.start({"a": "/a.gguf"}, {})
    await server.settled(20)
    first = server.view()
    assert (first.state, first.backend) == ("serving", "tiny")
    assert first.rss_bytes > 1_000_000
    await until(lambda: server.counts.totals().get("a", {}).get("loads", 0) == 1)
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: server.restarts == 1 and server.view().state == "serving")
    await until(lambda: server.counts.totals().get("a", {}).get("loads", 0) == 2)
    second = server.view().pid
    assert second != first.pid
    await server.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
