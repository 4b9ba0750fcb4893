"""Tokens, invoke keys and trust in https:// on the command line."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from certificates import self_signed

# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_token_is_made_listed_and_removed(host, monkeypatch):
    assert "no token but the one in the home" in (await host("tokens")).out
    made = await host("tokens", "add", "ci", "--role", "read")
    assert made.out.startswith("faas-admin-")
    assert "not shown again" in made.err
    assert [line.split()[:2] for line in (await host("tokens", "list")).out.splitlines()] == [
        ["NAME", "ROLE"],
        ["ci", "read"],
    ]
    listed = (await host("tokens", "list", "--json")).json
    assert [(token["name"], token["role"]) for token in listed] == [("ci", "read")]
    assert made.out.strip() not in json.dumps(listed)
    assert (await host("tokens", "remove", "ci")).out == "ci is removed\n"
    again = await host("tokens", "remove", "ci")
    assert (again.code, again.err) == (1, "error: there is no token 'ci'; 'faas tokens list' shows those that are\n")


async def test_a_role_that_is_too_low_is_one_line_that_names_the_one_that_is_needed(host, monkeypatch):
    made = await host("tokens", "add", "ci", "--role", "read", "--json")
    assert made.json["role"] == "read"
    monkeypatch.setenv("FAAS_TOKEN", made.json["token"])
    assert (await host("list")).code == 0
    for command, role in ((("remove", "hello"), "deploy"), (("tokens", "list"), "admin")):
        refused = await host(*command)
        assert refused.code == 1
        assert f"has the role read, and this wants {role}" in refused.err
        assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("options", [(), ("--role", "root")])
async def test_a_token_without_a_role_of_ours_is_used_wrongly(host, options):
    assert (await host("tokens", "add", "ci", *options)).code == 2


# --- invoke keys -----------------------------------------------------------------------------------------------------


async def test_a_key_of_a_function_is_made_listed_and_removed(host, wasm):
    await host("deploy", wasm, "--name", "hello")
    assert "no key of that function" in (await host("keys", "list", "--function", "hello")).out
    made = await host("keys", "add", "bot", "--function", "hello", "--requests-per-minute", "60")
    assert made.out.startswith("faas-fn-")
    await host("keys", "add", "free", "-f", "hello")
    lines = (await host("keys", "list", "--function", "hello")).out.splitlines()
    assert lines[0].split() == ["NAME", "ADDED", "REQUESTS/MIN", "REQUESTS", "OVER", "THE", "LIMIT"]
    assert lines[1].split()[0] == "bot"
    assert lines[1].split()[-3:] == ["60", "0", "0"]
    assert lines[2].split()[-4:] == ["no", "limit", "0", "0"]
    assert (await host("keys", "list", "--json")).json == []  # of /v1/ there is none
    listed = (await host("keys", "list", "--function", "hello", "--json")).json
    assert [(key["name"], key["requests_per_minute"]) for key in listed] == [("bot", 60), ("free", 0)]
    assert (await host("keys", "remove", "bot", "--function", "hello")).out == "bot of hello is removed\n"
    assert "has no key 'bot'" in (await host("keys", "remove", "bot", "--function", "hello")).err


@pytest.mark.parametrize(
    "options",
    [("--requests-per-minute", "5"), ("--function", "f", "--tokens-per-minute", "5"), ("--requests-per-minute", "-1")],
)
async def test_limits_belong_to_their_kind_of_key(host, options):
    assert (await host("keys", "add", "bot", *options)).code == 2


# --- https -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def secure(tmp_path, monkeypatch, faas):
    """A command line, an admin API with a certificate of its own making, and a home that it may be announced in."""
    monkeypatch.setenv("FAAS_CA_FILE", "")  # set by --ca-file, and put back
    files = self_signed(tmp_path, "admin")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def tokens(_request):
        return web.json_response({"tokens": []})

    app = web.Application()
    app.router.add_get("/api/tokens", tokens)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    monkeypatch.setenv("FAAS_TOKEN", "t")
    home = tmp_path / "home"

    class Secure:
        url = str(server.make_url("")).rstrip("/")
        cert = files.cert

        async def __call__(self, *arguments):
            return await asyncio.to_thread(faas, *arguments)

        def announce(self, cert):
            (home / "run").mkdir(parents=True, exist_ok=True)
            (home / "run" / "host.json").write_text(json.dumps({"admin_url": self.url, "admin_cert": str(cert)}))

    yield Secure()
    await server.close()


async def test_the_host_of_this_machine_is_known_by_its_certificate_file(secure):
    secure.announce(secure.cert)
    assert (await secure("tokens")).code == 0
    assert (await secure("tokens", "--admin-url", secure.url + "/")).code == 0


async def test_another_certificate_than_the_announced_one_is_refused(secure, tmp_path):
    secure.announce(self_signed(tmp_path, "other").cert)
    ended = await secure("tokens")
    assert ended.code == 1
    assert "does not present the certificate that its host.json names" in ended.err


async def test_without_the_file_only_who_is_trusted_is_spoken_to(secure):
    secure.announce("/nowhere/admin.crt")
    ended = await secure("tokens")
    assert ended.code == 1
    assert "is not trusted" in ended.err
    assert "--ca-file" in ended.err


async def test_a_ca_file_is_trusted_by_option_and_by_environment(secure, monkeypatch):
    assert (await secure("tokens", "--admin-url", secure.url)).code == 1
    assert (await secure("--ca-file", secure.cert, "tokens", "--admin-url", secure.url)).code == 0
    monkeypatch.setenv("FAAS_CA_FILE", str(secure.cert))
    assert (await secure("tokens", "--admin-url", secure.url)).code == 0


async def test_a_ca_file_that_can_not_be_read_is_named(secure):
    ended = await secure("--ca-file", "/nowhere/ca.pem", "tokens", "--admin-url", secure.url)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "can't use /nowhere/ca.pem as CA file: No such file" in ended.err


async def test_the_wrong_scheme_is_guessed(secure, host):
    ended = await secure("tokens", "--admin-url", secure.url.replace("https:", "http:"))
    assert ended.code == 1
    assert "https://" in ended.err
    ended = await secure("tokens", "--admin-url", str(host.admin.make_url("")).replace("http:", "https:"))
    assert ended.code == 1
    assert "is it https:// there?" in ended.err
