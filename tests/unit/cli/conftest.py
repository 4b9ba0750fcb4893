"""Commands run in this process, against an admin API that is the real one with fake workers behind it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from faas.cli import main
from faas.control.api import AdminApi

TOKEN = "the-token"


def _control_bench():
    """The control tests' bench, by its file: test folders are no packages."""
    path = Path(__file__).parent.parent / "control" / "conftest.py"
    spec = importlib.util.spec_from_file_location("control_bench", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_bench = _control_bench()
run_dir = _bench.run_dir
gguf = _bench.gguf


class Ended:
    """What a command left: its exit code and what it printed."""

    def __init__(self, code, out, err):
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def faas(capsys, monkeypatch, tmp_path):
    """Run one command; nothing of the user's own settings is seen."""
    for name in ("FAAS_ADMIN_URL", "FAAS_CA_FILE", "FAAS_TOKEN", "FAAS_PORT", "FAAS_ADMIN_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FAAS_HOME", str(tmp_path / "home"))

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exc:
            code = exc.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ended(code, out, err)

    return run


class Host:
    """A host that answers: the admin API, and functions that echo."""

    def __init__(self, bench, admin, public, faas):
        self.bench = bench
        self.admin = admin
        self.public = public
        self._faas = faas
        self.requests = []

    async def __call__(self, *arguments):
        """Run a command against this host, beside its loop."""
        return await asyncio.to_thread(self._faas, *arguments)


@pytest.fixture
async def host(tmp_path, run_dir, faas, monkeypatch):
    bench = _bench.Bench(tmp_path, run_dir)
    await bench.start()
    (tmp_path / "tmp").mkdir()
    requests = []

    async def function(request):
        requests.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        return web.Response(body=b"\xff answer", status=int(request.query.get("status", 200)))

    public_app = web.Application()
    public_app.router.add_route("*", "/{path:.*}", function)
    public = TestServer(public_app)
    await public.start_server()
    api = AdminApi(
        config=bench.config,
        tokens=bench.tokens(TOKEN),
        on_removed=(
            bench.invoke_keys.forget_function,
            bench.kv.forget_function,
            bench.settings.forget_function,
        ),
        public_url=str(public.make_url("")).rstrip("/"),
        admin_url="",
        state=bench.state,
        deployer=bench.deployer,
        supervisor=bench.supervisor,
        models=bench.models,
        model_server=bench.model_server,
        keys=bench.keys,
        logs=bench.logs,
        counts=bench.counts,
        clock=bench.clock,
        upload_dir=tmp_path / "tmp",
        groups=bench.groups(TOKEN),
    )
    admin = TestServer(api.app())
    await admin.start_server()
    monkeypatch.setenv("FAAS_ADMIN_URL", str(admin.make_url("")))
    monkeypatch.setenv("FAAS_TOKEN", TOKEN)
    host = Host(bench, admin, public, faas)
    host.requests = requests
    yield host
    await admin.close()
    await public.close()
    await bench.stop()


@pytest.fixture
def wasm(tmp_path):
    path = tmp_path / "My_Func.wasm"
    path.write_bytes(b"\0asm\1\0\0\0")
    return path
