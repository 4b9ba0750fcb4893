"""Key-value stores, config values and secrets on the command line."""

from __future__ import annotations

import io
import json
import sys

import pytest


class Stdin(io.TextIOWrapper):
    """What is piped into a command, or typed at a terminal."""

    def __init__(self, content, *, terminal=False):
        super().__init__(io.BytesIO(content))
        self._terminal = terminal

    def isatty(self):
        return self._terminal


def error(ended):
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    return ended.err


# --- key-value stores ------------------------------------------------------------------------------------------------


async def test_values_are_set_read_listed_and_deleted(host):
    assert "no function keeps anything" in (await host("kv")).out
    assert (await host("kv", "set", "shop", "user/1", "hello")).code == 0
    assert (await host("kv", "set", "shop", "user/2", "", "--ttl", "60")).code == 0
    assert (await host("kv", "set", "shop", "../..", "dots & ?")).code == 0
    assert (await host("kv", "get", "shop", "user/1")).out == "hello"
    assert (await host("kv", "get", "shop", "../..")).out == "dots & ?"
    assert (await host("kv", "list", "shop")).out.splitlines() == ["../..", "user/1", "user/2"]
    assert (await host("kv", "list", "shop", "--prefix", "user/", "--json")).json == ["user/1", "user/2"]
    cut = await host("kv", "list", "shop", "--limit", "1")
    assert (cut.out, "there are more" in cut.err) == ("../..\n", True)
    assert [row.split()[:2] for row in (await host("kv", "stores")).out.splitlines()[1:]] == [["shop", "3"]]
    assert (await host("kv", "delete", "shop", "user/1")).code == 0
    assert "kv list shop" in error(await host("kv", "delete", "shop", "user/1"))
    assert "kv list shop" in error(await host("kv", "get", "shop", "user/1"))
    assert "2 keys" in (await host("kv", "drop", "shop", "--yes")).out
    assert (await host("kv", "--json")).json == []


async def test_all_keys_are_listed_however_many_pages_they_are(host):
    entries = [(f"{i:05}", b"") for i in range(2100)]
    await host.bench.state.kv.set_many("shop", entries, limit_bytes=1 << 20)
    assert (await host("kv", "list", "shop", "--limit", "5000", "--json")).json == [key for key, _ in entries]
    listed = await host("kv", "list", "shop", "--limit", "2100")
    assert (len(listed.out.splitlines()), listed.err) == (2100, "")


async def test_value_comes_from_a_file_or_stdin(host, tmp_path, monkeypatch):
    (tmp_path / "value").write_bytes(b"\0from a file\n")
    await host("kv", "set", "shop", "file", "--from-file", tmp_path / "value")
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xff piped\n"))
    await host("kv", "set", "shop", "pipe")
    kv = host.bench.state.kv
    assert (await kv.get("shop", "file")).value == b"\0from a file\n"
    assert (await kv.get("shop", "pipe")).value == b"\xff piped\n"
    assert "--from-file" in error(await host("kv", "set", "shop", "k", "--from-file", tmp_path / "none"))
    assert (await host("kv", "set", "shop", "k", "v", "--from-file", tmp_path / "value")).code == 2


async def test_drop_asks_first(host, monkeypatch):
    await host("kv", "set", "shop", "k", "v")
    monkeypatch.setattr(sys, "stdin", Stdin(b"n\n"))
    assert (await host("kv", "drop", "shop")).code == 1
    assert (await host("kv", "get", "shop", "k")).out == "v"


async def test_stores_are_granted_and_taken_back(host):
    assert "its own store only" in (await host("kv", "grants")).out
    granted = await host("kv", "grant", "shop", "report", "--read-only")
    assert granted.out == "report may read the store of shop\n"
    assert 'kv = ["shop"]' in granted.err
    assert (await host("kv", "grants")).out.splitlines()[1].split() == ["shop", "report", "read"]
    await host("kv", "grant", "shop", "report")
    assert (await host("kv", "grants", "--json")).json[0]["read_only"] is False
    assert (await host("kv", "revoke", "shop", "report")).code == 0
    assert "kv grants" in error(await host("kv", "revoke", "shop", "report"))
    assert "own store" in error(await host("kv", "grant", "shop", "shop"))


@pytest.mark.parametrize("name", ["Shop", "a/b", "", ".."])
async def test_name_that_no_function_can_have_is_an_error_line(host, name):
    for command in (("kv", "set", name, "k", "v"), ("config", "set", name, "A=1"), ("kv", "grant", "shop", name)):
        error(await host(*command))


async def test_key_that_can_not_be_one_is_an_error_line(host):
    assert "1 to 512 bytes" in error(await host("kv", "set", "shop", "", "v"))
    assert "1 to 512 bytes" in error(await host("kv", "get", "shop", "x" * 513))


# --- config values ---------------------------------------------------------------------------------------------------


async def test_config_values_are_set_listed_and_unset(host):
    assert "no config values" in (await host("config", "list", "shop")).out
    assert (await host("config", "set", "shop", "MODE=dark", "URL=http://x/?a=b")).out == "MODE, URL of shop are set\n"
    rows = [row.split()[:2] for row in (await host("config", "list", "shop")).out.splitlines()]
    assert rows == [["NAME", "VALUE"], ["MODE", "dark"], ["URL", "http://x/?a=b"]]
    assert (await host("config", "unset", "shop", "MODE")).out == "MODE of shop is unset\n"
    assert "config list shop" in error(await host("config", "unset", "shop", "MODE", "URL"))
    assert [value["name"] for value in (await host("config", "list", "shop", "--json")).json] == ["URL"]


@pytest.mark.parametrize(("pair", "code"), [("MODE", 2), ("=x", 2), ("1A=x", 1), ("A-B=x", 1)])
async def test_config_value_needs_a_name_that_a_variable_can_have(host, pair, code):
    assert (await host("config", "set", "shop", pair)).code == code
    assert (await host("config", "list", "shop", "--json")).json == []


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_secret_is_set_and_never_shown(host, monkeypatch):
    assert "no secrets" in (await host("secrets", "list", "shop")).out
    monkeypatch.setattr(sys, "stdin", Stdin(b"geheim\r\nnot this line\n"))
    done = await host("secrets", "set", "shop", "TOKEN")
    assert (done.out, done.err) == ("TOKEN of shop is set\n", "")
    assert host.bench.settings.get("shop", "TOKEN") == "geheim"
    for command in (("list", "shop"), ("list", "shop", "--json")):
        listed = await host("secrets", *command)
        assert "TOKEN" in listed.out
        assert "geheim" not in listed.out
    assert "1 secrets" in (await host("secrets", "rotate-key")).out
    assert host.bench.settings.get("shop", "TOKEN") == "geheim"
    assert (await host("secrets", "unset", "shop", "TOKEN")).out == "TOKEN of shop is unset\n"
    assert "secrets list shop" in error(await host("secrets", "unset", "shop", "TOKEN"))


async def test_secret_comes_from_a_file_as_a_whole(host, tmp_path, monkeypatch):
    (tmp_path / "cert.pem").write_text("line 1\nline 2\n")
    await host("secrets", "set", "shop", "CERT", "--from-file", tmp_path / "cert.pem")
    assert host.bench.settings.get("shop", "CERT") == "line 1\nline 2\n"
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\nb\n"))
    await host("secrets", "set", "shop", "CERT", "--from-file", "-")
    assert host.bench.settings.get("shop", "CERT") == "a\nb\n"


@pytest.mark.parametrize(("content", "why"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe\n", "not UTF-8")])
async def test_what_is_no_secret_is_an_error_line(host, monkeypatch, content, why):
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert why in error(await host("secrets", "set", "shop", "TOKEN"))


async def test_secret_is_no_argument(host, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"geheim\n"))
    assert (await host("secrets", "set", "shop", "TOKEN", "geheim")).code == 2
    assert (await host("secrets", "set", "shop", "TOKEN=geheim")).code == 1


async def test_secret_that_the_key_does_not_open_is_told(host):
    await host.bench.state.settings.set_secret(host.bench.settings._vault.seal("shop", "OLD", "x"))
    (host.bench.home / "secrets.key").unlink()
    await host.bench.settings.rotate_key("")
    await host.bench.state.database.run(lambda session: session.execute("UPDATE secrets SET key_id = 'lost'"))
    assert "sealed with another key" in (await host("secrets", "list", "shop")).out
    assert json.dumps((await host("secrets", "list", "shop", "--json")).json).count("false") == 1


async def test_removed_function_keeps_its_store_unless_it_is_purged(host, wasm):
    for purge in ((), ("--purge",)):
        await host("deploy", wasm, "--name", "shop")
        await host("kv", "set", "shop", "k", "v")
        await host("config", "set", "shop", "A=1")
        assert (await host("remove", "shop", *purge)).code == 0
        assert (await host("config", "list", "shop", "--json")).json == []
        assert len((await host("kv", "stores", "--json")).json) == (0 if purge else 1)
