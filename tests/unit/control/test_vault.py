"""Secrets are opened by the key that sealed them, for the function and name that they were sealed for."""

from __future__ import annotations

import base64

import msgspec
import pytest

from faas.control.vault import KEY_BYTES, open_vault
from faas.errors import SecretsKeyError


def test_sealed_secret_is_opened_again_also_after_a_restart(tmp_path):
    sealed = open_vault(tmp_path, "").seal("f", "TOKEN", "gehéim\n")
    assert "gehéim".encode() not in sealed.sealed
    assert open_vault(tmp_path, "").open(sealed) == "gehéim\n"


def test_key_is_made_once_for_its_owner_alone(tmp_path):
    open_vault(tmp_path, "")
    path = tmp_path / "secrets.key"
    content = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    open_vault(tmp_path, "")
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secrets.key"]


def test_same_secret_is_sealed_differently_each_time(tmp_path):
    vault = open_vault(tmp_path, "")
    assert vault.seal("f", "TOKEN", "x").sealed != vault.seal("f", "TOKEN", "x").sealed


@pytest.mark.parametrize("changed", [{"function": "g"}, {"name": "OTHER"}, {"sealed": b"x" * 40}, {"sealed": b""}])
def test_secret_is_of_no_use_anywhere_else(tmp_path, changed):
    vault = open_vault(tmp_path, "")
    sealed = msgspec.structs.replace(vault.seal("f", "TOKEN", "x"), **changed)
    with pytest.raises(SecretsKeyError, match="set it"):
        vault.open(sealed)


def test_another_key_is_told_by_its_file(tmp_path):
    sealed = open_vault(tmp_path, "").seal("f", "TOKEN", "geheim")
    (tmp_path / "secrets.key").unlink()
    vault = open_vault(tmp_path, "")
    assert not vault.opens(sealed)
    with pytest.raises(SecretsKeyError, match=r"another key than those in .*secrets\.key"):
        vault.open(sealed)


def test_new_key_seals_and_old_ones_open_until_they_are_taken_away(tmp_path):
    vault = open_vault(tmp_path, "")
    before = vault.seal("f", "TOKEN", "geheim")
    both = vault.with_new_key()
    assert open_vault(tmp_path, "").open(before) == "geheim"  # whatever happens next
    after = both.seal("f", "TOKEN", both.open(before))
    assert after.key_id != before.key_id
    one = both.without_old_keys()
    assert open_vault(tmp_path, "").open(after) == one.open(after) == "geheim"
    assert not open_vault(tmp_path, "").opens(before)


def test_named_key_file_is_the_one_that_is_used(tmp_path):
    path = tmp_path / "common.key"
    with pytest.raises(SecretsKeyError, match=r"common\.key.*urandom"):
        open_vault(tmp_path, str(path))
    path.write_bytes(base64.b64encode(b"k" * KEY_BYTES) + b"\n")
    sealed = open_vault(tmp_path, str(path)).seal("f", "TOKEN", "x")
    assert open_vault(tmp_path / "elsewhere", str(path)).open(sealed) == "x"
    assert not (tmp_path / "secrets.key").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"no base64 at all!", base64.b64encode(b"short")])
def test_file_without_a_key_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "secrets.key").write_bytes(content)
    with pytest.raises(SecretsKeyError, match=r"secrets\.key"):
        open_vault(tmp_path, "")
    assert (tmp_path / "secrets.key").read_bytes() == content


def test_nothing_shows_a_key(tmp_path):
    vault = open_vault(tmp_path, "")
    assert (tmp_path / "secrets.key").read_text().strip() not in repr(vault)
