"""What an operator is warned of when a host starts."""

from __future__ import annotations

import time

import pytest
from certificates import self_signed

from faas.config import HostConfig
from faas.control.exposure import is_loopback, warnings


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_is_nobodys_business(address):
    assert is_loopback(address)
    assert list(warnings(HostConfig(), address)) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1", "fe80::1%eth0"])
def test_an_admin_port_that_others_reach_without_tls_is_one_clear_warning(tmp_path, address):
    (said,) = warnings(HostConfig(), address)
    assert f"answers on {address} without TLS" in said
    assert "--admin-tls-cert" in said
    files = self_signed(tmp_path)
    assert list(warnings(HostConfig(admin_tls_cert=str(files.cert), admin_tls_key=str(files.key)), address)) == []


@pytest.mark.parametrize("prefix", ["", "admin_"])
def test_a_key_that_everybody_may_read_is_a_warning(tmp_path, prefix):
    files = self_signed(tmp_path)
    config = HostConfig(**{f"{prefix}tls_cert": str(files.cert), f"{prefix}tls_key": str(files.key)})
    files.key.chmod(0o640)  # a group for keys is usual
    assert list(warnings(config, "127.0.0.1")) == []
    files.key.chmod(0o644)
    (said,) = warnings(config, "127.0.0.1")
    assert said.startswith(f"{prefix}tls_key: everybody on this machine may read {files.key}")


def test_a_certificate_that_ended_or_soon_will_is_a_warning(tmp_path):
    files = self_signed(tmp_path, days=30)
    config = HostConfig(tls_cert=str(files.cert), tls_key=str(files.key))
    assert list(warnings(config, "127.0.0.1")) == []
    (soon,) = warnings(config, "127.0.0.1", now=time.time() + 25 * 86400)
    (late,) = warnings(config, "127.0.0.1", now=time.time() + 31 * 86400)
    assert " ends on " in soon
    assert " ended on " in late
