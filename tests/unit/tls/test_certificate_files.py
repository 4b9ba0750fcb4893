"""Certificates from files: what is wrong with them is said at once, new ones are presented, bad ones are not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from pathlib import Path

import pytest
from certificates import Certificate, self_signed

from faas.config import load_config
from faas.errors import ConfigError
from faas.tls import LOOK_S, ServerCertificate, both_or_neither, fingerprint, trusting


def served(files: Certificate) -> ServerCertificate:
    return ServerCertificate(str(files.cert), str(files.key), setting="tls_cert")


def der(files: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files.cert.read_text())


def presented(server: ServerCertificate, *, name: str | None = None, version: ssl.TLSVersion | None = None) -> bytes:
    """Return the certificate that a client sees, after a handshake in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(down, up, server_hostname=name)
    other = server.context.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert(binary_form=True) or b""


def refused(cert: Path | str, key: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        ServerCertificate(str(cert), str(key), setting="tls_cert")
    return caught.value.message


# --- at the start ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    assert "tls_cert: can't read /nowhere/x.crt: No such file" in refused("/nowhere/x.crt", files.key)
    assert "tls_key: can't read /nowhere/x.key: No such file" in refused(files.cert, "/nowhere/x.key")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    files.key.chmod(0)
    assert f"tls_key: can't read {files.key}: Permission denied" in refused(files.cert, files.key)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    assert f"{other.key} is not the key of the certificate in {one.cert}" in refused(one.cert, other.key)


def test_files_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    assert "no PEM certificate" in refused(files.key, files.cert)


def test_a_key_file_without_a_key_is_refused(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    assert "no PEM private key" in refused(files.cert, files.cert)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    files = self_signed(tmp_path, passphrase=b"x")
    assert f"{files.key} is encrypted" in refused(files.cert, files.key)


def test_a_certificate_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    files.cert.write_text(files.cert.read_text()[:200])
    assert "can't be used" in refused(files.cert, files.key)


def test_a_file_in_der_is_refused(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    files.cert.write_bytes(der(files))
    assert "is no PEM file" in refused(files.cert, files.key)


@pytest.mark.parametrize(("there", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
@pytest.mark.parametrize("prefix", ["", "admin_"])
def test_one_of_two_files_is_an_error_that_names_the_other(
    tmp_path: Path, prefix: str, there: str, missing: str
) -> None:
    with pytest.raises(ConfigError, match=f"{prefix}{there} is set and {prefix}{missing} is not"):
        load_config({"home": str(tmp_path), prefix + there: "x.pem"}, {})


def test_without_files_there_is_no_tls() -> None:
    assert not both_or_neither("", "", setting="tls_cert")
    assert both_or_neither("a", "b", setting="tls_cert")


def test_relative_paths_begin_where_the_host_was_started(tmp_path: Path) -> None:
    config = load_config({"home": str(tmp_path), "tls_cert": "a.crt", "tls_key": "~/a.key"}, {"HOME": "/root"})
    assert config.tls_cert == str(Path.cwd() / "a.crt")
    assert Path(config.tls_key).is_absolute()
    assert "~" not in config.tls_key


# --- handshakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(tmp_path: Path, version: ssl.TLSVersion) -> None:
    files = self_signed(tmp_path)
    assert presented(served(files), version=version) == der(files)


def test_nothing_older_is_spoken(tmp_path: Path) -> None:
    assert served(self_signed(tmp_path)).context.minimum_version == ssl.TLSVersion.TLSv1_2


# --- new files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "localhost"])
@pytest.mark.parametrize("before", ["ec", "rsa"])
def test_new_files_are_presented_also_with_a_key_of_another_type(tmp_path: Path, before: str, name: str | None) -> None:
    server = served(self_signed(tmp_path, type_of_key=before))
    assert not server.refresh()
    new = self_signed(tmp_path, type_of_key="ec" if before == "rsa" else "rsa")
    assert server.refresh()
    assert presented(server, name=name) == der(new)
    assert not server.refresh()


def test_files_that_do_not_fit_are_told_once_and_the_old_ones_stay(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    old = der(files)
    server = served(files)
    other = self_signed(tmp_path / "other")
    other.cert.replace(files.cert)
    with pytest.raises(ConfigError, match="is not the key"):
        server.refresh()
    assert not server.refresh()
    assert presented(server) == old
    other.key.replace(files.key)  # now both are the new ones
    assert server.refresh()
    assert presented(server) == der(files) != old


def test_a_file_that_is_gone_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    server = served(files)
    files.key.rename(tmp_path / "aside")
    with pytest.raises(ConfigError, match="No such file"):
        server.refresh()
    (tmp_path / "aside").rename(files.key)
    assert server.refresh()
    assert presented(server) == der(files)


async def test_the_files_are_looked_at_every_other_second(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    server = served(files)
    pauses: list[float] = []
    told: list[ConfigError | None] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            self_signed(tmp_path)
        if len(pauses) == 3:
            files.key.unlink()
        if len(pauses) == 5:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await server.watch(told.append, sleep)
    assert pauses == [LOOK_S] * 5
    assert told[0] is None
    assert isinstance(told[1], ConfigError)
    assert len(told) == 2


# --- clients ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_first_certificate(tmp_path: Path) -> None:
    one, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    both = tmp_path / "chain.crt"
    both.write_text("text before\n" + one.cert.read_text() + other.cert.read_text())
    assert fingerprint(str(both)) == hashlib.sha256(der(one)).digest()
    assert fingerprint(str(tmp_path / "gone")) == b""
    assert fingerprint(str(one.key)) == b""


def test_a_ca_file_is_all_that_is_trusted(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    assert trusting(str(files.cert)).get_ca_certs(binary_form=True) == [der(files)]


def test_a_ca_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for path, why in (("/nowhere/ca", "No such file"), (str(tmp_path / "empty"), "no PEM certificates")):
        with pytest.raises(ConfigError, match=why):
            trusting(path)
