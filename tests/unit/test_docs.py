"""The documentation names everything a user can set, write down or meet."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from faas.config import config_keys
from faas.errors import leaves
from faas.manifest import Access, Async, Capabilities, Credential, Limits, Manifest, Schedule, Warm, Webhook

DOCS = Path(__file__).resolve().parents[2] / "docs"

MANIFEST_KEYS = [
    field.encode_name
    for struct in (Manifest, Limits, Warm, Capabilities, Credential, Access, Async, Schedule, Webhook)
    for field in msgspec.structs.fields(struct)
]


TABLES = ("", "limits.", "warm.", "capabilities.", "access.", "async.", "schedules.", "webhooks.")


def says(page: str, word: str) -> bool:
    return f"`{word}`" in (DOCS / page).read_text()


@pytest.mark.parametrize("key", config_keys())
def test_every_setting_is_documented(key: str) -> None:
    assert says("configuration.md", key)


@pytest.mark.parametrize("key", MANIFEST_KEYS)
def test_every_manifest_key_is_documented(key: str) -> None:
    page = (DOCS / "manifest.md").read_text()
    assert any(f"`{table}{key}`" in page for table in TABLES)


@pytest.mark.parametrize("code", [leaf.code for leaf in leaves()])
def test_every_error_code_is_documented(code: str) -> None:
    assert says("errors.md", code)
