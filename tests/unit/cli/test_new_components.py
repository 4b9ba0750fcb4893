"""New functions in Python and JavaScript: what the folder has, and that it builds where the tools are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faas.cli.commands.new import KINDS, Language, TemplateKind
from faas.cli.package import load_package
from faas.manifest import manifest_from_toml

ROOT = Path(__file__).parents[3]
COMPONENT = b"\0asm\x0d\0\x01\0"
VERSIONS = {"python": "0.2.12", "js": "0.2.10"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("lang", VERSIONS)
@pytest.mark.parametrize("options", [(), ("--kind", "http")])
def test_new_makes_a_component_of_these_languages(faas, folder, lang, options):
    ended = faas("new", "my-fn", "--lang", lang, *options)
    assert ended.code == 0
    assert f"(http, {lang})" in ended.out
    assert "make -C my-fn" in ended.out
    assert "faas deploy my-fn" in ended.out
    manifest = manifest_from_toml((folder / "my-fn" / "function.toml").read_text())
    assert (manifest.name, manifest.module) == ("my-fn", "my-fn.wasm")
    made = [path for path in (folder / "my-fn").rglob("*") if path.is_file()]
    app = "app.py" if lang == "python" else "app.js"
    assert {".gitignore", "Makefile", "world.wit", app} <= {path.name for path in made}
    assert not any(path.suffix == ".in" for path in made)
    assert not any(re.search("@[A-Z]+@", path.read_text()) for path in made)


@pytest.mark.parametrize(("lang", "version"), VERSIONS.items())
def test_new_components_ask_for_one_version_of_wasi_in_all_their_texts(faas, folder, lang, version):
    faas("new", "my-fn", "--lang", lang)
    texts = "".join(path.read_text() for path in (folder / "my-fn" / "wit").rglob("*.wit"))
    assert set(re.findall(r"@(\d+\.\d+\.\d+)(?!-)\b", texts)) == {version}
    assert "package wasi:nn@0.2.0-rc-2024-10-28;" in texts  # release candidates keep theirs
    # What is referred to is there.
    packages = set(re.findall(r"^package (wasi:[a-z]+)@", texts, re.MULTILINE))
    assert set(re.findall(r"(wasi:[a-z]+)/", texts)) <= packages


@pytest.mark.parametrize(("lang", "kind"), [(x, y) for x in Language for y in TemplateKind if y not in KINDS[x]])
def test_new_refuses_a_kind_that_the_language_has_no_template_for(faas, folder, lang, kind):
    ended = faas("new", "my-fn", "--lang", lang.value, "--kind", kind.value)
    assert ended.code == 1
    assert all(f"--kind {one.value}" in ended.err for one in KINDS[lang])
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["faas.py", "faas_nn.py"])
def test_sdk_in_the_python_template_is_the_sdk(name):
    copy = ROOT / "faas/cli/templates/python-http/src" / f"{name}.in"
    assert copy.read_bytes() == (ROOT / "functions/sdk/python" / name).read_bytes()


def test_js_template_pins_what_the_sample_was_built_with():
    copy = ROOT / "faas/cli/templates/js-http/package.json"
    assert copy.read_bytes() == (ROOT / "functions/html-template/package.json").read_bytes()


def _build(*arguments: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    built = subprocess.run(["make", "-C", "my-fn", *arguments], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def _is_deployable(folder: Path) -> None:
    package = load_package(folder / "my-fn")
    assert package.manifest.name == "my-fn"
    assert (folder / "my-fn" / "my-fn.wasm").read_bytes()[:8] == COMPONENT


@pytest.mark.timeout(120)
def test_new_python_function_builds_and_is_deployable(faas, folder):
    tool = Path(sys.executable).with_name("componentize-py")
    found = str(tool) if tool.exists() else shutil.which("componentize-py")
    if found is None:
        pytest.skip("componentize-py is not installed: pip install componentize-py")
    faas("new", "my-fn", "--lang", "python")
    _build(f"COMPONENTIZE={found}")
    _is_deployable(folder)


@pytest.mark.timeout(120)
def test_new_js_function_builds_and_is_deployable(faas, folder):
    installed = ROOT / "functions/html-template/node_modules"
    if not installed.exists() or shutil.which("npm") is None:
        pytest.skip("componentize-js is not installed: make -C functions js (needs Node.js and npm)")
    faas("new", "my-fn", "--lang", "js")
    # npm would take half a minute to install the very same packages.
    (folder / "my-fn" / "node_modules").symlink_to(installed)
    _build("--old-file=node_modules/.installed")
    _is_deployable(folder)
