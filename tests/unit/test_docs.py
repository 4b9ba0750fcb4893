"""The documentation names everything a user can set, write down or meet."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from faas.config import config_keys
from faas.errors import leaves
from faas.manifest import Access, Async, Capabilities, Credential, Limits, Manifest, Schedule, Warm, Webhook

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("functions/*.md"), *ROOT.glob("loadtest/*.md")})

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


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return what links to headings of a page end with, as GitHub makes them."""
    headings = (heading.replace("`", "").lower() for heading in re.findall(r"(?m)^#+ (.*?) *$", prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_between_documents_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link
