"""A worker goes by the config values and secrets that control told it last, and shows neither."""

from __future__ import annotations

from faas.gateway.live import Served
from faas.gateway.settings import ConfigValues, Secrets
from faas.invocation import Deployment, Kind
from faas.manifest import manifest_from_builtins
from faas.wire.messages import FunctionSettings, SecretValue


def serving(name="f", **env):
    return Deployment(name, 1, Kind.COMMAND, "w", "k", "", manifest_from_builtins({"name": name, "env": env}), 1.0)


def test_config_values_are_over_the_manifests_env():
    values = ConfigValues()
    values.replace({"f": {"MODE": "set", "NEW": "1"}})
    f, g = values.applied((serving(MODE="manifest", KEPT="x"), serving("g", MODE="manifest")))
    assert f.manifest.env == {"MODE": "set", "KEPT": "x", "NEW": "1"}
    assert g == serving("g", MODE="manifest")
    assert values.get("f", "MODE") == "set"
    assert values.get("f", "KEPT") is None
    assert values.get("g", "MODE") is None


def test_without_config_values_deployments_are_what_they_were():
    deployments = (serving(MODE="manifest"),)
    assert ConfigValues().applied(deployments) is deployments


def test_version_whose_config_values_changed_is_served_anew():
    values = ConfigValues()
    served = Served(serving(MODE="manifest"))
    assert served.is_of(serving(MODE="manifest"))
    values.replace({"f": {"MODE": "set"}})
    assert not served.is_of(values.applied((serving(MODE="manifest"),))[0])


def test_secrets_are_those_that_were_told_last():
    secrets = Secrets()
    secrets.replace(FunctionSettings({}, (SecretValue("f", "A", "1"), SecretValue("f", "B", "2"))))
    secrets.replace(FunctionSettings({}, (SecretValue("f", "A", "3"), SecretValue("g", "B", "4"))))
    assert [secrets.get(*of) for of in (("f", "A"), ("f", "B"), ("g", "B"), ("g", "A"))] == ["3", None, "4", None]


def test_nothing_shows_a_secret():
    told = FunctionSettings({"f": {"A": "1"}}, (SecretValue("f", "TOKEN", "geheim"),))
    secrets = Secrets()
    secrets.replace(told)
    for shown in (repr(told), str(told), repr(told.secrets), repr(secrets), repr(secrets.get)):
        assert "geheim" not in shown
    assert "TOKEN" in repr(told.secrets)


def test_a_secret_that_is_lent_is_known_for_so_long_and_to_that_function():
    secrets = Secrets()
    secrets.replace(FunctionSettings({}, (SecretValue("f", "A", "told"),)))
    with secrets.lent("f", {"A": "lent", "B": "lent"}), secrets.lent("g", {"A": "other"}):
        assert [secrets.get(*of) for of in (("f", "A"), ("f", "B"), ("g", "A"), ("g", "B"))] == [
            "told", "lent", "other", None,
        ]  # fmt: skip
        assert "lent" not in repr(secrets)
    assert secrets.get("f", "B") is None
