"""Workers are replaced when they die, believed only when they prove who they are, and drained at the end."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from faas.control.supervisor import MAX_FAILED_STARTS, WorkerState
from faas.errors import PeerGoneError, WorkerLostError
from faas.wire.framing import Channel
from faas.wire.messages import PROTOCOL_VERSION, ApiKey, FromControl, Hello, Lines, Models, Spending, Spent, Stats


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def states(bench):
    return [worker.state for worker in bench.supervisor.workers()]


async def test_start_returns_when_every_worker_serves(bench):
    assert states(bench) == ["serving", "serving"]
    assert [worker.index for worker in bench.fleet.workers] == [0, 1]
    assert all(worker.generation == 1 for worker in bench.supervisor.workers())


async def test_worker_gets_its_settings_and_a_token_of_its_own(bench):
    first, second = (worker.settings for worker in bench.fleet.workers)
    assert first["public_port"] == 8080
    assert first["config"]["home"] == bench.config.home
    assert first["token"] != second["token"]


async def test_worker_is_not_told_how_to_reach_the_state(bench):
    bench.supervisor._config = msgspec.structs.replace(bench.config, state="postgresql://faas:geheim@db/faas")
    bench.fleet.workers[0].die()
    await until(lambda: len(bench.fleet.workers) == 3)
    assert "geheim" not in str(bench.fleet.workers[2].settings)


async def test_worker_is_told_how_to_reach_the_models(bench, run_dir):
    settings = bench.fleet.workers[0].settings
    assert settings["models_socket"] == str(run_dir / "models.sock")
    assert settings["models_token"] == bench.model_server.access.token
    assert (settings["models"], settings["models_missing"], settings["keys"]) == ([], "", [])


async def test_every_worker_goes_by_new_models_and_keys_when_the_call_returns(bench):
    await bench.supervisor.set_models(Models(("a",)))
    await bench.supervisor.set_keys((ApiKey("k", "h", 1),))
    assert [(worker.models.names, worker.keys.keys[0].name) for worker in bench.fleet.workers] == [(("a",), "k")] * 2
    assert all(worker.generation == 3 for worker in bench.supervisor.workers())


async def test_worker_that_starts_later_has_models_and_keys_from_the_start(bench):
    await bench.supervisor.set_models(Models(("a",)))
    await bench.supervisor.set_keys((ApiKey("k", "h", 1),))
    bench.fleet.workers[0].die()
    await until(lambda: len(bench.fleet.workers) == 3 and states(bench) == ["serving", "serving"])
    late = bench.fleet.workers[2]
    assert (late.settings["models"], late.settings["keys"][0]["name"]) == (["a"], "k")
    await until(lambda: late.keys is not None)
    assert late.models.names == ("a",)


async def test_dead_worker_is_replaced(bench):
    bench.fleet.workers[0].die()
    await until(lambda: len(bench.fleet.workers) == 3 and states(bench) == ["serving", "serving"])
    assert bench.fleet.workers[2].index == 0
    assert [worker.restarts for worker in bench.supervisor.workers()] == [1, 0]


async def test_pauses_double_while_a_worker_keeps_dying(bench):
    for _ in range(4):
        n_workers = len(bench.fleet.workers)
        next(worker for worker in reversed(bench.fleet.workers) if worker.index == 0).die()
        await until(lambda n=n_workers: len(bench.fleet.workers) > n and states(bench) == ["serving", "serving"])
    assert bench.pauses == [0.05, 0.1, 0.2, 0.4]


async def test_start_gives_up_when_a_worker_never_serves(new_bench):
    bench = new_bench(n_workers=1)
    bench.fleet.die_at_start = True
    with pytest.raises(WorkerLostError, match="died"):
        await bench.start()
    await bench.stop()
    assert len(bench.fleet.workers) >= MAX_FAILED_STARTS


async def test_worker_with_a_wrong_token_is_hung_up_on(new_bench):
    bench = new_bench(n_workers=1)
    bench.fleet.token = "guessed"
    with pytest.raises(WorkerLostError):
        await bench.start()
    await bench.stop()
    assert all(not worker.tables for worker in bench.fleet.workers)


async def test_worker_of_another_protocol_is_hung_up_on(new_bench):
    bench = new_bench(n_workers=1)
    bench.fleet.protocol = PROTOCOL_VERSION + 1
    with pytest.raises(WorkerLostError):
        await bench.start()
    await bench.stop()


async def test_second_connection_of_a_worker_is_hung_up_on(bench):
    settings = bench.fleet.workers[0].settings
    reader, writer = await asyncio.open_unix_connection(settings["socket"])
    channel = Channel(reader, writer, FromControl)
    await channel.send(Hello(PROTOCOL_VERSION, 0, 1, settings["token"]))
    with pytest.raises(PeerGoneError):
        await channel.receive()
    await channel.aclose()
    assert states(bench) == ["serving", "serving"]


async def test_garbage_on_the_socket_harms_nobody(bench):
    reader, writer = await asyncio.open_unix_connection(bench.fleet.workers[0].settings["socket"])
    writer.write(b"\x05\x00\x00\x00hello")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert states(bench) == ["serving", "serving"]


async def test_counters_survive_the_worker_that_counted(bench):
    for worker in bench.fleet.workers:
        await worker.send(Stats({"hello": {"invocations": 2, "ok": 2}}, {"active": 1}))
    await until(lambda: bench.counts.totals().get("hello", {}).get("invocations") == 4)
    bench.fleet.workers[0].die()
    await until(lambda: len(bench.fleet.workers) == 3 and states(bench) == ["serving", "serving"])
    assert bench.counts.totals()["hello"] == {"invocations": 4, "ok": 4}
    await bench.fleet.workers[2].send(Stats({"hello": {"invocations": 1, "ok": 1}}, {}))
    await until(lambda: bench.counts.totals()["hello"]["invocations"] == 5)
    assert set(bench.counts.gauges()) == {0, 1}


async def test_lines_reach_the_log_files(bench):
    await bench.fleet.workers[0].send(Lines({"hello": b'{"text":"hi"}\n'}))
    await until(lambda: bench.logs.known("hello"))
    assert await bench.logs.snapshot("hello").last_lines(1) == [b'{"text":"hi"}\n']


async def test_drain_lets_workers_exit_by_themselves(new_bench):
    bench = new_bench()
    await bench.start()
    await bench.stop()
    assert states(bench) == [WorkerState.STOPPED.value] * 2
    assert [worker.exit_code.result() for worker in bench.fleet.workers] == [0, 0]
    assert ("killed", 0) not in bench.fleet.log


async def test_drain_kills_workers_that_do_not_exit_in_time(new_bench, monkeypatch):
    monkeypatch.setattr("faas.control.supervisor.DRAIN_GRACE_S", 0.0)
    bench = new_bench()
    await bench.start()
    bench.fleet.ignores_drain = True
    await bench.stop()
    assert [worker.exit_code.result() for worker in bench.fleet.workers] == [-9, -9]


async def test_drain_ends_a_worker_that_is_still_starting(new_bench):
    bench = new_bench(n_workers=1)
    bench.fleet.may_be_ready.clear()
    starting = asyncio.create_task(bench.start())
    await bench.fleet.spawned.wait()
    await until(lambda: bench.fleet.workers[0].tables)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    bench.fleet.may_be_ready.set()
    await bench.stop()
    assert len(bench.fleet.workers) == 1


async def test_worker_that_lives_and_never_serves_is_killed_and_start_gives_up(new_bench, monkeypatch):
    monkeypatch.setattr("faas.control.supervisor.READY_TIMEOUT_S", 0.01)
    bench = new_bench(n_workers=1)
    bench.fleet.may_be_ready.clear()
    with pytest.raises(WorkerLostError, match="died"):
        await bench.start()
    bench.fleet.may_be_ready.set()
    await bench.stop()
    assert bench.fleet.log.count(("killed", 0)) >= MAX_FAILED_STARTS


async def test_worker_is_replaced_even_when_what_hears_of_its_death_fails(new_bench, monkeypatch):
    bench = new_bench(n_workers=1)
    await bench.start()

    def fail(index):
        monkeypatch.setattr(bench.supervisor, "_on_gone", bench.counts.retire)
        raise ZeroDivisionError

    monkeypatch.setattr(bench.supervisor, "_on_gone", fail)
    bench.fleet.workers[0].die()
    await until(lambda: len(bench.fleet.workers) == 2 and states(bench) == ["serving"])
    assert bench.pauses == [0.05]
    await bench.stop()


async def test_worker_that_can_not_be_spawned_for_an_unknown_reason_is_tried_again(new_bench, monkeypatch):
    bench = new_bench(n_workers=1)
    spawn = bench.fleet.spawn
    failures = [ZeroDivisionError(), RuntimeError()]

    async def fail_first(settings):
        if failures:
            raise failures.pop()
        return await spawn(settings)

    monkeypatch.setattr(bench.supervisor, "_spawn", fail_first)
    await bench.start()
    assert states(bench) == ["serving"]
    assert bench.pauses == [0.05, 0.1]
    await bench.stop()


async def test_worker_hears_what_the_others_spent_and_not_what_it_did_itself(bench):
    first, second = bench.fleet.workers
    await first.send(Spent({"f": Spending(5, 60, 2)}))
    await until(lambda: second.spent[1:])
    await second.send(Spent({"f": Spending(7, 60)}))
    await until(lambda: first.spent[1:])
    assert first.spent == [{}, {"f": Spending(7, 60)}]
    assert second.spent == [{}, {"f": Spending(5, 60)}]


async def test_worker_that_starts_later_is_told_first_what_is_spent(bench):
    first, second = bench.fleet.workers
    await first.send(Spent({"f": Spending(50, 60, 20), "g": Spending(1_000_000, 600)}))
    await until(lambda: second.spent[1:])
    first.die()
    await until(lambda: len(bench.fleet.workers) == 3 and states(bench) == ["serving", "serving"])
    late = bench.fleet.workers[2]
    await until(lambda: late.spent)
    # Up to a second may have passed, in which "f" earned a token and "g" ten.
    assert 28 <= late.spent[0]["f"].n_tokens <= 30
    assert 999_900 <= late.spent[0]["g"].n_tokens <= 1_000_000
    assert second.spent[2] == {"f": Spending(-20, 60)}


async def test_what_was_spent_while_a_worker_is_slow_to_read_is_added_up_for_it(bench, monkeypatch):
    first, second = bench.fleet.workers
    gate, entered, sent = asyncio.Event(), asyncio.Event(), []
    send = Channel.send

    async def slow(channel, message):
        if isinstance(message, Spent) and channel in bench.supervisor._channels:
            sent.append(message.names)
            entered.set()
            await gate.wait()
        await send(channel, message)

    monkeypatch.setattr(Channel, "send", slow)
    await first.send(Spent({"f": Spending(1, 60)}))
    await entered.wait()
    for n_tokens in (2, 3, 4):
        await first.send(Spent({"f": Spending(n_tokens, 60)}))
    await first.send(Stats({"f": {"invocations": 1}}, {}))
    await until(bench.counts.totals)
    gate.set()
    await until(lambda: len(second.spent) == 3)
    assert sent == [{"f": Spending(1, 60)}, {"f": Spending(9, 60)}]
