"""Settings: where they come from, which one wins, and that a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faas.config import HostConfig, config_keys, default_home, load_config
from faas.errors import ConfigError

TEXTS = ["home", "host", "admin_host", "state", "secrets_key_file"]


def loaded(
    tmp_path: Path, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, file: str = ""
) -> HostConfig:
    if file:
        (tmp_path / "faas.toml").write_text(file)
    return load_config({"home": str(tmp_path), **(flags or {})}, environ or {})


def test_defaults_hold_when_nothing_is_said(tmp_path: Path) -> None:
    assert loaded(tmp_path) == HostConfig(home=str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "environ", "file", "port"),
    [
        ({"port": 1}, {"FAAS_PORT": "2"}, "port = 3", 1),
        ({"port": None}, {"FAAS_PORT": "2"}, "port = 3", 2),
        ({}, {}, "port = 3", 3),
        ({}, {}, "", 8080),
    ],
    ids=["flag", "environment", "file", "default"],
)
def test_flags_win_over_environment_over_file_over_default(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], file: str, port: int
) -> None:
    assert loaded(tmp_path, flags, environ, file).port == port


@pytest.mark.parametrize("key", [key for key in config_keys() if key not in TEXTS])
def test_every_setting_can_come_from_the_environment(tmp_path: Path, key: str) -> None:
    name = "FAAS_" + key.replace(".", "_").upper()
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        loaded(tmp_path, environ={name: "not-a-number"})


@pytest.mark.parametrize("key", TEXTS[1:])
def test_settings_that_take_any_text_come_from_the_environment_too(tmp_path: Path, key: str) -> None:
    assert getattr(loaded(tmp_path, environ={"FAAS_" + key.upper(): "any text"}), key) == "any text"


def test_a_nested_setting_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"pool.slots": 7}, {"FAAS_POOL_MAX_TABLE_ELEMENTS": "9"}, "[pool]\nslots = 3")
    assert (config.pool.slots, config.pool.max_table_elements) == (7, 9)
    assert config.pool.max_memory_bytes == HostConfig().pool.max_memory_bytes


@pytest.mark.parametrize(("file", "key"), [("prot = 1", "prot"), ("[pool]\nslotz = 1", "slotz")])
def test_an_unknown_setting_in_the_file_is_named(tmp_path: Path, file: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        loaded(tmp_path, file=file)


def test_a_foreign_environment_variable_is_none_of_ours(tmp_path: Path) -> None:
    assert loaded(tmp_path, environ={"FAAS_LOG": "x", "PORT": "1"}).port == 8080


@pytest.mark.parametrize(
    ("key", "value"), [("port", 65536), ("port", -1), ("tick_ms", 0), ("pool.slots", 0), ("workers", "many")]
)
def test_a_value_out_of_range_is_an_error_that_names_the_setting(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        loaded(tmp_path, {key: value})


def test_models_of_every_source_are_merged_by_name(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        {"models": {"a": "/flag"}},
        {"FAAS_MODELS": "a=/environ,b=/environ=1"},
        '[models]\na = "/file"\nb = "/file"\nc = "/file"',
    )
    assert config.models == {"a": "/flag", "b": "/environ=1", "c": "/file"}


def test_paths_of_models_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = loaded(tmp_path, environ={"FAAS_MODELS": "a=x.gguf,b=~/y.gguf"})
    assert config.models == {"a": str(tmp_path / "x.gguf"), "b": "/home/me/y.gguf"}


@pytest.mark.parametrize("models", ["a", "=x", "a=", "a b=/x", "../a=/x"])
def test_a_model_that_is_not_a_name_and_a_path_is_an_error(tmp_path: Path, models: str) -> None:
    with pytest.raises(ConfigError, match="models"):
        loaded(tmp_path, environ={"FAAS_MODELS": models})


def test_model_budget_is_half_of_the_memory_unless_it_is_said() -> None:
    assert HostConfig(model_budget_bytes=7).model_budget == 7
    assert 2**28 < HostConfig().model_budget < 2**50


def test_a_section_that_is_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pool"):
        loaded(tmp_path, {"pool.slots": 3}, file="pool = 3")


def test_a_file_that_is_not_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        loaded(tmp_path, file="port: 8080")


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config({"home": str(tmp_path)}, {}, file=tmp_path / "missing.toml")


def test_a_file_with_bytes_that_are_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match=r"faas\.toml"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("environ", "home"),
    [
        ({"FAAS_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/faas"),
        ({"HOME": "/c"}, "/c/.local/share/faas"),
    ],
)
def test_home_is_found_from_the_environment(environ: dict[str, str], home: str) -> None:
    assert default_home(environ) == Path(home)


def test_home_is_always_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config({"home": "here"}, {}).home_path == tmp_path / "here"


def test_a_newline_at_the_end_is_part_of_no_models_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models"):
        load_config({"home": str(tmp_path), "models": {"m\n": "/m.gguf"}}, {})
