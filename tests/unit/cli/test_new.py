"""A new function builds with the command that was printed and is deployable as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from faas.cli.package import load_package
from faas.manifest import manifest_from_toml

TEMPLATES = [(lang, kind) for lang in ("c", "rust") for kind in ("command", "reactor")]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(("lang", "kind"), TEMPLATES)
def test_new_makes_a_folder_whose_manifest_is_valid(faas, folder, lang, kind):
    ended = faas("new", "my-fn", "--lang", lang, "--kind", kind)
    assert ended.code == 0
    assert "make -C my-fn" in ended.out
    assert "faas deploy my-fn" in ended.out
    manifest = manifest_from_toml((folder / "my-fn" / "function.toml").read_text())
    assert (manifest.name, manifest.module) == ("my-fn", "my-fn.wasm")
    texts = [path.read_text() for path in (folder / "my-fn").rglob("*") if path.is_file()]
    assert not any("@NAME@" in text or "@CRATE@" in text or "@PYTHON@" in text for text in texts)
    assert (folder / "my-fn" / ".gitignore").exists()


def test_new_c_function_builds_and_is_deployable(faas, folder):
    if shutil.which("make") is None:
        pytest.skip("no make")
    pytest.importorskip("ziglang")
    faas("new", "my-fn")
    built = subprocess.run(["make", "-C", "my-fn"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert load_package(folder / "my-fn").manifest.name == "my-fn"


def test_new_refuses_an_existing_folder(faas, folder):
    (folder / "my-fn").mkdir()
    ended = faas("new", "my-fn")
    assert ended.code == 1
    assert "exists already" in ended.err
    assert list((folder / "my-fn").iterdir()) == []


@pytest.mark.parametrize("name", ["My", "a/b", "..", "a b", ""])
def test_new_refuses_a_name_that_can_not_be_deployed(faas, folder, name):
    assert faas("new", name).code == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("c-reactor/faas.h", "c/faas.h"),
        ("rust-reactor/faas/lib.rs", "rust/faas/src/lib.rs"),
        ("rust-reactor/faas/msgpack.rs", "rust/faas/src/msgpack.rs"),
        ("rust-reactor/faas/nn.rs", "rust/faas/src/nn.rs"),
        ("rust-reactor/faas/v1.rs", "rust/faas/src/v1.rs"),
        ("c-command/faas_v1.h", "c/faas_v1.h"),
        ("c-reactor/faas_v1.h", "c/faas_v1.h"),
        ("rust-reactor/faas/json.rs", "rust/faas/src/json.rs"),
    ],
)
def test_sdk_in_the_templates_is_the_sdk(copy, original):
    assert (ROOT / "faas/cli/templates" / copy).read_bytes() == (ROOT / "functions/sdk" / original).read_bytes()
