"""Workers know the config values of what they serve, and those secrets that its manifests have a use for."""

from __future__ import annotations

import json
import logging

import pytest

from faas.clock import SystemClock
from faas.control.settings import MAX_VALUE_BYTES, SettingsKeeper
from faas.control.vault import open_vault
from faas.errors import BadRequestError, SecretsKeyError
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.state.settings import SettingStore, forget_function
from faas.state.sqlite import SqliteDatabase
from faas.wire.framing import encode_frame


class Fleet:
    def __init__(self):
        self.n_spread = 0

    async def spread_settings(self):
        self.n_spread += 1


@pytest.fixture
async def database(tmp_path):
    database = await SqliteDatabase.open(tmp_path / "state.db", SystemClock())
    yield database
    await database.aclose()


@pytest.fixture
async def keeper(database, tmp_path):
    keeper = SettingsKeeper(SettingStore(database), open_vault(tmp_path, ""))
    await keeper.load()
    return keeper


def serving(name="f", version=1, **manifest):
    return Deployment(name, version, Kind.HTTP, "w", "k", "", manifest_from_builtins({"name": name, **manifest}), 1.0)


EVERY_USE = {
    "routes": ["/hook"],
    "capabilities": {
        "secrets": ["READ"],
        "outbound": ["https://api.example"],
        "credentials": [{"host": "https://api.example", "secret": "CREDENTIAL"}],
    },
    "webhooks": [{"path": "/hook", "secret": "HOOK"}],
    "async": {"callback_secret": "CALLBACK"},
}


def names(told):
    return {(secret.function, secret.name) for secret in told.secrets}


async def test_worker_gets_secrets_that_a_manifest_it_serves_names_and_no_others(keeper):
    for name in ("READ", "CREDENTIAL", "HOOK", "CALLBACK", "UNUSED"):
        await keeper.set_secret("f", name, f"value of {name}", "ann")
    await keeper.set_secret("other", "READ", "x", "ann")
    told = keeper.of((serving(**EVERY_USE),))
    assert {(s.function, s.name, s.value) for s in told.secrets} == {
        ("f", name, f"value of {name}") for name in ("READ", "CREDENTIAL", "HOOK", "CALLBACK")
    }
    assert keeper.of((serving(),)).secrets == ()
    assert keeper.of(()).secrets == ()
    assert keeper.get("f", "UNUSED") == "value of UNUSED"  # control itself may use any
    assert keeper.get("f", "UNSET") is None


async def test_versions_that_are_served_side_by_side_have_the_secrets_of_both(keeper):
    for name in ("OLD", "NEW"):
        await keeper.set_secret("f", name, "x", "")
    told = keeper.of(
        (serving(capabilities={"secrets": ["OLD"]}), serving(version=2, capabilities={"secrets": ["NEW"]}))
    )
    assert names(told) == {("f", "OLD"), ("f", "NEW")}


async def test_config_values_come_for_what_is_served(keeper):
    await keeper.set_config("f", {"A": "1"}, "")
    await keeper.set_config("g", {"A": "2"}, "")
    assert keeper.of((serving(),)).config == {"f": {"A": "1"}}
    await keeper.unset_config("f", ["A"], "")
    assert keeper.of((serving(),)).config == {}


async def test_what_is_the_same_is_the_same_object_so_that_nobody_is_told_twice(keeper):
    await keeper.set_secret("f", "READ", "1", "")
    first = keeper.of((serving(**EVERY_USE),))
    assert keeper.of((serving(version=2, **EVERY_USE), serving("g"))) is first
    await keeper.set_secret("f", "READ", "2", "")
    assert keeper.of((serving(**EVERY_USE),)) is not first


async def test_every_change_is_spread_and_is_there_after_a_restart(keeper, database, tmp_path):
    fleet = Fleet()
    keeper.serve(fleet)
    await keeper.set_config("f", {"A": "1", "B": "2"}, "")
    await keeper.unset_config("f", ["B"], "")
    await keeper.set_secret("f", "READ", "x", "")
    await keeper.set_secret("f", "GONE", "x", "")
    await keeper.unset_secret("f", "GONE", "")
    assert fleet.n_spread == 5
    again = SettingsKeeper(SettingStore(database), open_vault(tmp_path, ""))
    await again.load()
    told = again.of((serving(**EVERY_USE),))
    assert (told.config, names(told)) == ({"f": {"A": "1"}}, {("f", "READ")})
    await database.run(lambda session: forget_function(session, "f", purge=False, actor=""))
    await keeper.forget_function("f", purge=False)
    assert fleet.n_spread == 6
    assert keeper.of((serving(**EVERY_USE),)) == again.of(())


async def test_lost_key_costs_the_secrets_and_nothing_else(keeper, database, tmp_path, caplog):
    await keeper.set_secret("f", "READ", "geheim", "")
    await keeper.set_config("f", {"A": "1"}, "")
    (tmp_path / "secrets.key").unlink()
    again = SettingsKeeper(SettingStore(database), open_vault(tmp_path, ""))
    with caplog.at_level(logging.ERROR):
        await again.load()
    assert "secrets.key" in caplog.text
    assert "function=f secret=READ" in caplog.text
    told = again.of((serving(**EVERY_USE),))
    assert (told.config, told.secrets) == ({"f": {"A": "1"}}, ())
    assert [readable for _, readable in await again.secrets("f")] == [False]
    await again.set_secret("f", "READ", "set again", "")
    assert [readable for _, readable in await again.secrets("f")] == [True]
    assert again.get("f", "READ") == "set again"


async def test_rotated_key_opens_everything_and_the_old_one_nothing(keeper, tmp_path):
    await keeper.set_secret("f", "READ", "1", "")
    await keeper.set_secret("g", "READ", "2", "")
    before = (tmp_path / "secrets.key").read_text()
    sealed_before = [entry for entry, _ in await keeper.secrets("f")]
    assert await keeper.rotate_key("ann") == 2
    assert (tmp_path / "secrets.key").read_text().strip() not in before
    assert len((tmp_path / "secrets.key").read_text().split()) == 1
    assert [entry for entry, _ in await keeper.secrets("f")] != sealed_before
    assert (keeper.get("f", "READ"), keeper.get("g", "READ")) == ("1", "2")
    with pytest.raises(SecretsKeyError):
        open_vault(tmp_path, "").open(sealed_before[0])


async def test_host_that_shares_its_state_wants_a_key_that_is_shared(database, tmp_path):
    keeper = SettingsKeeper(SettingStore(database), open_vault(tmp_path, ""), shared=True, own_key=True)
    with pytest.raises(SecretsKeyError, match="secrets_key_file"):
        await keeper.set_secret("f", "READ", "x", "")
    await keeper.set_config("f", {"A": "1"}, "")
    common = SettingsKeeper(SettingStore(database), open_vault(tmp_path, ""), shared=True, own_key=False)
    await common.set_secret("f", "READ", "x", "")
    with pytest.raises(SecretsKeyError, match="secrets_key_file"):
        await common.rotate_key("")


@pytest.mark.parametrize("value", ["nul\0", "x" * (MAX_VALUE_BYTES + 1), "\ud800"])
async def test_value_that_can_not_be_one_is_refused_without_showing_it(keeper, value):
    for setting in (keeper.set_config("f", {"A": value}, ""), keeper.set_secret("f", "A", value, "")):
        with pytest.raises(BadRequestError) as caught:
            await setting
        assert value not in caught.value.message
    assert keeper.of((serving(**EVERY_USE),)) == keeper.of(())


async def test_nothing_but_the_wire_shows_a_secret(keeper, caplog):
    with caplog.at_level(logging.DEBUG):
        await keeper.set_secret("f", "READ", "geheim", "ann")
        await keeper.set_config("f", {"A": "config value"}, "ann")
        told = keeper.of((serving(**EVERY_USE),))
    assert b"geheim" in encode_frame(told)
    for shown in (repr(told), str(told.secrets), caplog.text, json.dumps(repr(await keeper.secrets("f")))):
        assert "geheim" not in shown
    assert "config value" not in caplog.text
