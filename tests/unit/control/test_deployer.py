"""A deploy is served by every worker or by none, and leaves nothing behind when it is refused."""

from __future__ import annotations

import asyncio

import pytest

from faas.control.deployer import REMEMBER_FAILURE_S
from faas.errors import (
    CompileFailedError,
    FunctionNotFoundError,
    ManifestError,
    RouteTakenError,
    StartFailedError,
    StateError,
    WorkerLostError,
)
from faas.wire.messages import ArtifactNeeded


def ignored(stage):
    """Take progress that the test does not look at."""


def names(table):
    return [(deployment.function, deployment.version) for deployment in table.deployments]


async def test_every_worker_prepares_before_any_is_told_to_serve(bench):
    stages = []
    deployment = await bench.deployer.deploy(bench.upload(), stages.append)
    assert deployment.version == 1
    assert stages == ["compile", "prepare", "activate"]
    kinds = [kind for kind, _ in bench.fleet.log]
    assert kinds == ["prepare", "prepare", "table", "table"]
    for worker in bench.fleet.workers:
        assert names(worker.tables[-1]) == [("hello", 1)]
        assert [(d.function, d.version) for d in worker.prepared] == [("hello", 1)]


async def test_commit_comes_after_prepare_and_before_activate(bench):
    seen = {}

    async def on_prepare(worker, deployment):
        seen["prepare"] = await bench.state.functions.active_deployments()

    async def on_table(worker, table):
        seen["table"] = await bench.state.functions.active_deployments()
        return True

    bench.fleet.on_prepare, bench.fleet.on_table = on_prepare, on_table
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    assert seen == {"prepare": (), "table": (deployment,)}


async def test_generations_only_grow(bench):
    await bench.deployer.deploy(bench.upload(), ignored)
    await bench.deployer.deploy(bench.upload(wasm=b"\0asm second"), ignored)
    assert [table.generation for table in bench.fleet.workers[0].tables] == [1, 2, 3]
    assert bench.supervisor.generation == 3


async def test_one_worker_that_refuses_leaves_the_old_version_and_no_files(bench):
    old = await bench.deployer.deploy(bench.upload(), ignored)
    stored = bench.stored()

    async def on_prepare(worker, deployment):
        return StartFailedError("it loops") if worker.index == 1 else None

    bench.fleet.on_prepare = on_prepare
    with pytest.raises(StartFailedError, match="it loops"):
        await bench.deployer.deploy(bench.upload(wasm=b"\0asm worse"), ignored)
    assert await bench.state.functions.active("hello") == old
    assert [names(table) for table in bench.fleet.workers[0].tables] == [[], [("hello", 1)]]
    assert bench.stored() == stored


async def test_worker_that_dies_while_it_prepares_does_not_count(bench):
    async def on_prepare(worker, deployment):
        if worker.index == 0 and worker.pid == 1000:
            worker.die()
            await asyncio.sleep(0)

    bench.fleet.on_prepare = on_prepare
    assert (await bench.deployer.deploy(bench.upload(), ignored)).version == 1
    async with asyncio.timeout(5):
        while [names(w.tables[-1]) for w in bench.fleet.workers[1:] if w.tables] != [[("hello", 1)]] * 2:
            await asyncio.sleep(0.001)


async def test_deploy_fails_when_every_worker_dies_on_it(bench):
    async def on_prepare(worker, deployment):
        worker.die()
        await asyncio.sleep(0)

    bench.fleet.on_prepare = on_prepare
    with pytest.raises(WorkerLostError):
        await bench.deployer.deploy(bench.upload(), ignored)
    assert await bench.state.functions.active_deployments() == ()
    assert bench.stored() == []


async def test_worker_that_hangs_while_it_prepares_is_killed(bench, monkeypatch):
    monkeypatch.setattr("faas.control.supervisor.ANSWER_TIMEOUT_S", -bench.config.precompile.start_timeout_s + 0.02)

    async def on_prepare(worker, deployment):
        if worker.pid == 1000:
            await asyncio.Event().wait()

    bench.fleet.on_prepare = on_prepare
    assert (await bench.deployer.deploy(bench.upload(), ignored)).version == 1
    assert ("killed", 0) in bench.fleet.log


async def test_worker_that_does_not_activate_in_time_is_killed(bench, monkeypatch):
    monkeypatch.setattr("faas.control.supervisor.ANSWER_TIMEOUT_S", 0.02)

    async def on_table(worker, table):
        return worker.pid != 1000

    bench.fleet.on_table = on_table
    await bench.deployer.deploy(bench.upload(), ignored)
    assert ("killed", 0) in bench.fleet.log


async def test_worker_that_starts_during_a_deploy_is_waited_for(bench):
    bench.fleet.may_be_ready.clear()
    bench.fleet.workers[0].die()
    async with asyncio.timeout(5):
        while len(bench.fleet.workers) < 3 or not bench.fleet.workers[2].tables:
            await asyncio.sleep(0.001)
    deploying = asyncio.create_task(bench.deployer.deploy(bench.upload(), ignored))
    async with asyncio.timeout(5):
        while ("table", 1) not in bench.fleet.log:
            await asyncio.sleep(0.001)
    assert not deploying.done()
    bench.fleet.may_be_ready.set()
    await deploying
    assert names(bench.fleet.workers[2].tables[-1]) == [("hello", 1)]


async def test_taken_route_is_refused_before_anything_is_compiled(bench):
    await bench.deployer.deploy(bench.upload("a", routes=["/x"]), ignored)
    stages = []
    with pytest.raises(RouteTakenError):
        await bench.deployer.deploy(bench.upload("b", routes=["/x"]), stages.append)
    assert stages == []


async def test_refused_compile_leaves_nothing(bench):
    bench.compiler.refuse = CompileFailedError("no")
    with pytest.raises(CompileFailedError):
        await bench.deployer.deploy(bench.upload(), ignored)
    assert bench.stored() == []


async def test_refused_bundle_leaves_nothing(bench, tmp_path):
    (tmp_path / "bundle").write_bytes(b"no archive at all")
    with pytest.raises(ManifestError):
        await bench.deployer.deploy(bench.upload(bundle=tmp_path / "bundle"), ignored)
    assert bench.stored() == []


async def test_refused_commit_leaves_the_old_version_and_no_files(bench, monkeypatch):
    async def refuse(new, **placement):
        raise StateError("disk full")

    monkeypatch.setattr(bench.state.functions, "add_version", refuse)
    with pytest.raises(StateError):
        await bench.deployer.deploy(bench.upload(), ignored)
    assert bench.stored() == []
    assert bench.supervisor.generation == 1


async def test_cancel_before_the_commit_leaves_nothing(bench):
    bench.compiler.may_go_on.clear()
    deploying = asyncio.create_task(bench.deployer.deploy(bench.upload(), ignored))
    await bench.compiler.entered.wait()
    deploying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deploying
    assert bench.stored() == []
    bench.compiler.may_go_on.set()
    assert (await bench.deployer.deploy(bench.upload(), ignored)).version == 1


async def test_cancel_after_the_commit_runs_to_the_end(bench):
    committed = asyncio.Event()
    go_on = asyncio.Event()

    async def on_table(worker, table):
        committed.set()
        await go_on.wait()
        return True

    bench.fleet.on_table = on_table
    deploying = asyncio.create_task(bench.deployer.deploy(bench.upload(), ignored))
    await committed.wait()
    deploying.cancel()
    await asyncio.sleep(0)
    assert not deploying.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await deploying
    assert (await bench.state.functions.active("hello")).version == 1
    assert all(worker.generation == 2 for worker in bench.supervisor.workers())


async def test_deploys_are_compiled_side_by_side_and_tried_one_at_a_time(bench):
    trying = asyncio.Event()
    go_on = asyncio.Event()

    async def on_prepare(worker, deployment):
        trying.set()
        await go_on.wait()

    bench.fleet.on_prepare = on_prepare
    bench.compiler.may_go_on.clear()
    deploys = []
    for name in "ab":
        bench.compiler.entered.clear()
        deploys.append(asyncio.create_task(bench.deployer.deploy(bench.upload(name), ignored)))
        await bench.compiler.entered.wait()
    bench.compiler.may_go_on.set()
    await trying.wait()
    assert {deployment.function for worker in bench.fleet.workers for deployment in worker.prepared} == {"a"}
    go_on.set()
    await asyncio.gather(*deploys)
    assert names(bench.fleet.workers[0].tables[-1]) == [("a", 1), ("b", 1)]


async def test_refused_deploy_removes_no_file_of_one_that_is_not_committed_yet(bench):
    compiled = asyncio.Event()
    go_on = asyncio.Event()

    async def on_prepare(worker, deployment):
        compiled.set()
        await go_on.wait()

    bench.fleet.on_prepare = on_prepare
    deploying = asyncio.create_task(bench.deployer.deploy(bench.upload("a"), ignored))
    await compiled.wait()
    stored = bench.stored()
    bench.compiler.refuse = CompileFailedError("no")
    with pytest.raises(CompileFailedError):
        await bench.deployer.deploy(bench.upload("b", wasm=b"\0asm bb"), ignored)
    assert bench.stored() == stored
    go_on.set()
    await deploying
    assert bench.stored() == stored


async def test_files_of_a_deploy_refused_beside_another_go_when_that_one_ends(bench, tmp_path):
    compiled = asyncio.Event()
    go_on = asyncio.Event()

    async def on_prepare(worker, deployment):
        if deployment.function == "b":
            return StartFailedError("b does not start")
        compiled.set()
        await go_on.wait()

    bench.fleet.on_prepare = on_prepare
    deploying = asyncio.create_task(bench.deployer.deploy(bench.upload("a"), ignored))
    await compiled.wait()
    stored = bench.stored()
    refused = asyncio.create_task(bench.deployer.deploy(bench.upload("b", wasm=b"\0asm bb"), ignored))
    go_on.set()
    await deploying
    with pytest.raises(StartFailedError):
        await refused
    assert bench.stored() == stored


async def test_deploy_given_up_while_it_waits_for_its_turn_leaves_nothing(bench):
    trying = asyncio.Event()
    go_on = asyncio.Event()

    async def on_prepare(worker, deployment):
        trying.set()
        await go_on.wait()

    bench.fleet.on_prepare = on_prepare
    first = asyncio.create_task(bench.deployer.deploy(bench.upload("a"), ignored))
    await trying.wait()
    stored = bench.stored()
    bench.compiler.entered.clear()
    second = asyncio.create_task(bench.deployer.deploy(bench.upload("b", wasm=b"\0asm bb"), ignored))
    await bench.compiler.entered.wait()
    async with asyncio.timeout(5):
        while bench.stored() == stored:
            await asyncio.sleep(0.001)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await first
    assert bench.stored() == stored


async def test_route_that_was_taken_while_a_module_compiled_is_refused_at_the_commit(bench):
    bench.compiler.may_go_on.clear()
    deploys = []
    for name in "ab":
        bench.compiler.entered.clear()
        deploys.append(asyncio.create_task(bench.deployer.deploy(bench.upload(name, routes=["/x"]), ignored)))
        await bench.compiler.entered.wait()
    bench.compiler.may_go_on.set()
    answers = await asyncio.gather(*deploys, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Deployment", "RouteTakenError"]
    assert names(bench.fleet.workers[0].tables[-1]) == [("a", 1)]


async def test_remove_takes_the_function_from_every_worker_and_its_files_from_the_disk(bench):
    await bench.deployer.deploy(bench.upload("a"), ignored)
    await bench.deployer.deploy(bench.upload("b", wasm=b"\0asm other one"), ignored)
    await bench.deployer.remove("b")
    assert all(names(worker.tables[-1]) == [("a", 1)] for worker in bench.fleet.workers)
    await bench.deployer.remove("a")
    assert bench.stored() == []
    with pytest.raises(FunctionNotFoundError):
        await bench.deployer.remove("a")


async def test_versions_of_two_functions_with_one_module_share_its_file(bench):
    await bench.deployer.deploy(bench.upload("a"), ignored)
    await bench.deployer.deploy(bench.upload("b"), ignored)
    stored = bench.stored()
    await bench.deployer.remove("a")
    assert bench.stored() == stored


async def test_missing_artifact_is_made_again_once_for_all_who_need_it(bench):
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    bench.store.open_native(deployment.artifact_key).unlink()
    bench.compiler.may_go_on.clear()
    for worker in bench.fleet.workers:
        await worker.send(ArtifactNeeded(7, deployment))
    bench.compiler.may_go_on.set()
    async with asyncio.timeout(5):
        while not all(7 in worker.answers for worker in bench.fleet.workers):
            await bench.fleet.answered.wait()
            bench.fleet.answered.clear()
    assert [worker.answers[7] for worker in bench.fleet.workers] == [None, None]
    assert bench.store.has_native(deployment.artifact_key)


async def test_artifact_that_cannot_be_made_again_is_answered_with_the_problem(bench):
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    bench.compiler.refuse = CompileFailedError("not any more")
    await bench.fleet.workers[0].send(ArtifactNeeded(1, deployment))
    async with asyncio.timeout(5):
        await bench.fleet.answered.wait()
    assert bench.fleet.workers[0].answers[1]["code"] == "compile-failed"


async def test_restart_serves_what_was_deployed(new_bench):
    first = new_bench()
    await first.start()
    deployment = await first.deployer.deploy(first.upload(), ignored)
    await first.stop()
    second = new_bench()
    await second.start()
    assert second.fleet.workers[0].tables[0].deployments == (deployment,)
    assert second.compiler.recompiled == []
    await second.stop()


async def test_restart_compiles_what_is_not_of_this_engine(new_bench):
    first = new_bench()
    await first.start()
    await first.deployer.deploy(first.upload(), ignored)
    await first.stop()
    second = new_bench()
    second.compiler.current = False
    second.compiler.key = lambda wasm: "f" * 64
    await second.start()
    assert second.compiler.recompiled == ["hello"]
    assert (await second.state.functions.active("hello")).artifact_key == "f" * 64
    assert second.fleet.workers[0].tables[0].deployments[0].artifact_key == "f" * 64
    assert [name for name in second.stored() if name.endswith(".cwasm")] == ["f" * 64 + ".cwasm"]
    await second.stop()


async def test_restart_serves_the_others_when_one_can_not_be_compiled(new_bench):
    first = new_bench()
    await first.start()
    await first.deployer.deploy(first.upload("a", wasm=b"\0asm a"), ignored)
    lost = await first.deployer.deploy(first.upload("b", wasm=b"\0asm bb"), ignored)
    first.store.open_native(lost.artifact_key).unlink()
    first.store.wasm_path(lost.wasm_digest).unlink()
    await first.stop()
    second = new_bench()
    await second.start()
    assert second.compiler.recompiled == ["b"]
    assert names(second.fleet.workers[0].tables[0]) == [("a", 1), ("b", 1)]
    await second.stop()


async def test_restart_sweeps_what_a_killed_host_left(new_bench):
    first = new_bench()
    first.store.put_wasm(b"\0asm never committed")
    await first.start()
    assert first.stored() == []
    await first.stop()


class ManualClock:
    """Time that stands still until a test moves it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def time_ns(self):
        return 0


async def test_remake_that_failed_is_answered_for_a_while_without_another_job(bench, monkeypatch):
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    clock = ManualClock()
    monkeypatch.setattr(bench.deployer, "_clock", clock)
    bench.store.open_native(deployment.artifact_key).unlink()
    bench.compiler.refuse = CompileFailedError("not today")
    for _ in range(5):
        with pytest.raises(CompileFailedError, match="not today"):
            await bench.deployer.remake(deployment)
    assert bench.compiler.recompiled == ["hello"]

    bench.compiler.refuse = None
    clock.now += REMEMBER_FAILURE_S
    await bench.deployer.remake(deployment)
    assert bench.compiler.recompiled == ["hello", "hello"]
    assert bench.store.has_native(deployment.artifact_key)


async def test_deploy_of_the_same_module_forgets_that_its_remake_failed(bench, monkeypatch):
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    monkeypatch.setattr(bench.deployer, "_clock", ManualClock())
    bench.compiler.refuse = CompileFailedError("not today")
    with pytest.raises(CompileFailedError):
        await bench.deployer.remake(deployment)
    bench.compiler.refuse = None
    await bench.deployer.deploy(bench.upload(), ignored)
    await bench.deployer.remake(deployment)


async def test_deploy_that_makes_the_table_too_large_for_a_message_is_refused_before_it_compiles(bench, monkeypatch):
    await bench.deployer.deploy(bench.upload("a", env={"A": "x" * 4000}), ignored)
    monkeypatch.setattr("faas.control.deployer.MAX_TABLE_BYTES", 6000)
    stages = []
    with pytest.raises(ManifestError, match="all 2 would take more than 6000 bytes"):
        await bench.deployer.deploy(bench.upload("b", env={"A": "x" * 4000}), stages.append)
    assert stages == []
    # In the place of the old one there is room.
    assert (await bench.deployer.deploy(bench.upload("a", env={"A": "y" * 4000}), ignored)).version == 2
    assert (await bench.deployer.deploy(bench.upload("b"), ignored)).version == 1


async def test_sweep_while_an_artifact_is_made_again_harms_neither(bench):
    deployment = await bench.deployer.deploy(bench.upload(), ignored)
    await bench.deployer.deploy(bench.upload("other", wasm=b"\0asm other one"), ignored)
    bench.store.open_native(deployment.artifact_key).unlink()
    await asyncio.gather(bench.deployer.remake(deployment), bench.deployer.remove("other"))
    assert bench.store.has_native(deployment.artifact_key)


async def test_functions_may_not_reserve_more_instances_than_there_are_to_reserve(bench):
    def reserving(name, n):
        return bench.upload(name, wasm=b"\0asm " + name.encode(), limits={"reserved_concurrency": n})

    # Two workers, of each 50 slots may be reserved.
    await bench.deployer.deploy(reserving("one", 60), ignored)
    with pytest.raises(ManifestError, match=r"other functions have 30; lower it to 40, or raise pool\.slots"):
        await bench.deployer.deploy(reserving("two", 50), ignored)
    await bench.deployer.deploy(reserving("one", 100), ignored)


async def test_each_worker_keeps_its_part_of_a_reservation_rounded_up_and_that_is_what_counts(bench):
    def reserving(name, n):
        return bench.upload(name, wasm=b"\0asm " + name.encode(), limits={"reserved_concurrency": n})

    await bench.deployer.deploy(reserving("large", 96), ignored)
    for name in ("one", "two"):
        await bench.deployer.deploy(reserving(name, 1), ignored)
    with pytest.raises(ManifestError, match="takes 1 slots of each worker"):
        await bench.deployer.deploy(reserving("three", 1), ignored)  # 99 instances in all, but 51 slots of each
