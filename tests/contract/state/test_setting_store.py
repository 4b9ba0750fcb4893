"""What the store of config values and sealed secrets promises, on either database."""

from __future__ import annotations

import pytest

from faas.errors import SettingNotFoundError, SettingsTooLargeError
from faas.state.settings import MAX_FUNCTION_BYTES, SecretEntry, SettingStore, forget_function


@pytest.fixture
def settings(database):
    return SettingStore(database)


def sealed(name, content=b"\0\xff sealed", function="a", key_id="k1"):
    return SecretEntry(function, name, content, key_id)


async def audit(database):
    return await database.run(
        lambda session: session.execute("SELECT actor, action, function, detail FROM audit ORDER BY seq")
    )


async def test_config_values_are_set_one_by_one_and_unset_all_or_none(settings):
    await settings.set_config("a", {"B": "2", "A": "1"})
    await settings.set_config("a", {"A": "é\n"})
    await settings.set_config("b", {"A": "other"})
    assert [(v.function, v.name, v.value) for v in await settings.config()] == [
        ("a", "A", "é\n"),
        ("a", "B", "2"),
        ("b", "A", "other"),
    ]
    with pytest.raises(SettingNotFoundError, match="config list a"):
        await settings.unset_config("a", ["A", "C"])
    await settings.unset_config("a", ["A", "B", "A"])
    assert [(v.function, v.name) for v in await settings.config()] == [("b", "A")]


async def test_secrets_come_back_as_they_were_sealed(settings):
    kept = await settings.set_secret(sealed("S"))
    assert await settings.secrets() == (kept,)
    again = await settings.set_secret(sealed("S", b"anew", key_id="k2"))
    assert await settings.secrets() == (again,)
    assert (again.sealed, again.key_id) == (b"anew", "k2")
    await settings.unset_secret("a", "S")
    with pytest.raises(SettingNotFoundError, match="secrets list a"):
        await settings.unset_secret("a", "S")


async def test_resealing_keeps_names_and_times(settings):
    kept = await settings.set_secret(sealed("S"))
    await settings.reseal([sealed("S", b"anew", key_id="k2"), sealed("unset meanwhile")])
    assert await settings.secrets() == (SecretEntry("a", "S", b"anew", "k2", kept.set_at),)


async def test_audit_log_has_who_and_names_and_no_values(settings, database):
    await settings.set_config("a", {"MODE": "the value"}, actor="ann")
    await settings.unset_config("a", ["MODE"], actor="ann")
    await settings.set_secret(sealed("S", b"the sealed"), actor="bob")
    await settings.unset_secret("a", "S", actor="bob")
    assert await audit(database) == [
        ("ann", "config.set", "a", '{"names":["MODE"]}'),
        ("ann", "config.unset", "a", '{"names":["MODE"]}'),
        ("bob", "secret.set", "a", '{"name":"S"}'),
        ("bob", "secret.unset", "a", '{"name":"S"}'),
    ]


async def test_a_functions_settings_have_a_size_which_refuses_the_whole_change(settings):
    half = "x" * (MAX_FUNCTION_BYTES // 2)
    await settings.set_config("a", {"A": half})
    with pytest.raises(SettingsTooLargeError):
        await settings.set_config("a", {"B": "small", "C": half})
    with pytest.raises(SettingsTooLargeError):
        await settings.set_secret(sealed("S", half.encode()))
    await settings.set_config("b", {"A": half})
    assert [(v.function, v.name) for v in await settings.config()] == [("a", "A"), ("b", "A")]
    assert await settings.secrets() == ()


async def test_removed_function_leaves_no_settings(settings, database):
    await settings.set_config("a", {"A": "1"})
    await settings.set_secret(sealed("S"))
    await settings.set_config("b", {"A": "1"})
    await database.run(lambda session: forget_function(session, "a", purge=False, actor=""))
    assert [v.function for v in await settings.config()] == ["b"]
    assert await settings.secrets() == ()
