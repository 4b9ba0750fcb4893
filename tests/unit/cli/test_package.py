"""What a deploy sends is what the folder and the command line say, or an error that names the part."""

from __future__ import annotations

import pytest

from faas.cli.package import example_path, load_package, name_of
from faas.errors import ManifestError, NotWasmError
from faas.routes import parse_route


@pytest.fixture
def folder(tmp_path, wasm):
    folder = tmp_path / "fn"
    folder.mkdir()
    wasm.rename(folder / "m.wasm")
    (folder / "function.toml").write_text('name = "fn"\n[env]\nA = "1"\nB = "2"\n[capabilities]\nmodels = ["m1"]\n')
    return folder


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My_Func.wasm", "my-func"),
        ("a..b.wasm", "a-b"),
        ("-x-.wasm", "x"),
        ("ünï.wasm", "n"),
        ("x" * 80 + ".wasm", "x" * 63),
    ],
)
def test_name_is_the_stem_made_a_dns_label(tmp_path, file, name):
    assert name_of(tmp_path / file) == name


def test_name_that_can_not_be_made_is_asked_for(tmp_path):
    with pytest.raises(ManifestError, match="--name"):
        name_of(tmp_path / "___.wasm")


def test_wasm_alone_does_not_take_the_function_toml_beside_it(folder):
    package = load_package(folder / "m.wasm")
    assert package.manifest.name == "m"
    assert package.manifest.env == {}


def test_only_module_of_a_folder_is_found(folder):
    assert load_package(folder).module == folder / "m.wasm"


def test_two_modules_need_a_name(folder):
    (folder / "n.wasm").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"2 \.wasm files"):
        load_package(folder)


def test_command_line_wins(folder):
    manifest = load_package(folder, routes=["/r"], env={"B": "3", "C": "4"}, models=["m2", "m1"]).manifest
    assert manifest.routes == ("/r",)
    assert manifest.env == {"A": "1", "B": "3", "C": "4"}
    assert manifest.capabilities.models == ("m1", "m2")


def test_route_that_followed_the_name_still_does(folder):
    assert load_package(folder, name="other").manifest.routes == ("/other",)


def test_routes_of_function_toml_stay_when_the_name_changes(folder):
    (folder / "function.toml").write_text('name = "fn"\nroutes = ["/a", "/b"]\n')
    assert load_package(folder, name="other").manifest.routes == ("/a", "/b")


def test_wrong_route_on_the_command_line_is_refused(folder):
    with pytest.raises(ManifestError, match="must begin with '/'"):
        load_package(folder, routes=["x"])


@pytest.mark.parametrize("toml", [None, "name = ", 'name = "x"\nsurprise = 1\n'])
def test_function_toml_that_can_not_be_read_is_named(folder, toml):
    (folder / "function.toml").unlink()
    if toml is not None:
        (folder / "function.toml").write_text(toml)
    with pytest.raises(ManifestError, match=r"function\.toml"):
        load_package(folder)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.wasm"):
        load_package(tmp_path / "nowhere.wasm")


def test_file_that_is_no_module_is_refused_with_its_path(wasm):
    wasm.write_bytes(b"#!/bin/sh")
    with pytest.raises(NotWasmError, match="My_Func"):
        load_package(wasm)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("/a", ("GET", "/a")),
        ("/a/*", ("GET", "/a")),
        ("/*", ("GET", "/")),
        ("POST,PUT /a/{id}/b", ("POST", "/a/1/b")),
        ("GET,POST /", ("GET", "/")),
    ],
)
def test_example_is_a_request_that_the_route_answers(route, expected):
    assert parse_route(route)
    assert example_path(route) == expected
