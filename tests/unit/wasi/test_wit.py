"""The WIT texts that are shipped, and the parser that reads them."""

from __future__ import annotations

import pytest

from faas.wasi.wit import EXPORTED, Function, WitError, interfaces, parse

_STREAM_ERROR = (
    "variant",
    (("last-operation-failed", ("own", "wasi:io/error#error")), ("closed", None)),
)


def test_every_interface_of_the_wasi_releases_and_of_both_nn_snapshots_is_there() -> None:
    packages: dict[str, set[str]] = {}
    for name in interfaces():
        package, _, interface = name.partition("/")
        packages.setdefault(package, set()).add(interface)
    nn = {f"{i}@0.2.0-rc-{d}" for i in ("tensor", "graph", "inference", "errors") for d in ("2024-08-19", "2024-10-28")}
    terminals = {f"terminal-{what}" for what in ("input", "output", "stdin", "stdout", "stderr")}
    assert packages == {
        "wasi:io": {"error", "poll", "streams"},
        "wasi:clocks": {"monotonic-clock", "wall-clock", "timezone"},
        "wasi:random": {"random", "insecure", "insecure-seed"},
        "wasi:cli": {"environment", "exit", "run", "stdin", "stdout", "stderr", *terminals},
        "wasi:filesystem": {"types", "preopens"},
        "wasi:sockets": {
            *("network", "instance-network", "ip-name-lookup"),
            *("tcp", "tcp-create-socket", "udp", "udp-create-socket"),
        },
        "wasi:http": {"types", "incoming-handler", "outgoing-handler"},
        "wasi:nn": nn,
        "wasi:config": {"store@0.2.0-rc.1"},
        "wasi:keyvalue": {
            f"{interface}@0.2.0-{draft}" for interface in ("store", "atomics", "batch") for draft in ("draft", "draft2")
        },
        "wasi:logging": {"logging@0.1.0-draft"},
    }
    assert set(interfaces()) >= EXPORTED


def test_released_interfaces_carry_no_version_in_their_names_and_all_know_it() -> None:
    assert interfaces()["wasi:io/streams"].version == "0.2.12"
    name = "wasi:nn/tensor@0.2.0-rc-2024-10-28"
    assert interfaces()[name].name == name
    assert interfaces()[name].version == "0.2.0-rc-2024-10-28"


def test_methods_have_self_and_types_from_other_packages() -> None:
    streams = interfaces()["wasi:io/streams"]
    assert streams.resources == ("input-stream", "output-stream")
    assert streams.functions["[method]output-stream.splice"] == Function(
        "[method]output-stream.splice",
        (
            ("self", ("borrow", "wasi:io/streams#output-stream")),
            ("src", ("borrow", "wasi:io/streams#input-stream")),
            ("len", "u64"),
        ),
        ("result", "u64", _STREAM_ERROR),
    )
    assert streams.functions["[method]input-stream.read"].result == ("result", ("list", "u8"), _STREAM_ERROR)


def test_constructors_and_statics_have_the_names_of_the_binary() -> None:
    http = interfaces()["wasi:http/types"].functions
    fields = ("own", "wasi:http/types#fields")
    assert http["[constructor]outgoing-response"].params == (("headers", fields),)
    assert http["[constructor]outgoing-response"].result == ("own", "wasi:http/types#outgoing-response")
    entries = ("list", ("tuple", ("string", ("list", "u8"))))
    assert http["[static]fields.from-list"].params == (("entries", entries),)
    assert http["[method]incoming-body.stream"].result == ("result", ("own", "wasi:io/streams#input-stream"), None)
    assert http["[method]outgoing-request.set-method"].result == ("result", None, None)
    assert http["[method]future-trailers.subscribe"].result == ("own", "wasi:io/poll#pollable")


def test_each_snapshot_of_nn_has_resources_of_its_own() -> None:
    old = interfaces()["wasi:nn/inference@0.2.0-rc-2024-08-19"].functions
    new = interfaces()["wasi:nn/inference@0.2.0-rc-2024-10-28"].functions
    assert set(old) == {
        "[method]graph-execution-context.set-input",
        "[method]graph-execution-context.compute",
        "[method]graph-execution-context.get-output",
    }
    named = ("list", ("tuple", ("string", ("own", "wasi:nn/tensor@0.2.0-rc-2024-10-28#tensor"))))
    error = ("own", "wasi:nn/errors@0.2.0-rc-2024-10-28#error")
    assert new["[method]graph-execution-context.compute"].params[1] == ("inputs", named)
    assert new["[method]graph-execution-context.compute"].result == ("result", named, error)


def test_gated_items_are_taken_in() -> None:
    assert "[method]response-outparam.send-informational" in interfaces()["wasi:http/types"].functions
    assert "network-error-code" in interfaces()["wasi:sockets/network"].functions
    assert "display" in interfaces()["wasi:clocks/timezone"].functions


def test_every_form_of_the_language_that_the_texts_use_is_read() -> None:
    parsed = parse(
        [
            """
            /* block */ package a:b@1.2.3; // line
            @since(version = 1.2.0)
            interface one {
              /// doc: with { braces
              use two.{thing as other, kind};
              use c:d/e@0.1.0-rc.2.{far};
              @unstable(feature = x-y) @deprecated(version = 1.0.0)
              type alias = list<option<far>>;
              flags bits { read, write, }
              resource plain;
              resource r {
                constructor(n: u8) -> result<r, kind>;
                make: static func() -> tuple<r, borrow<plain>>;
                %use: func(o: borrow<other>) -> result<_, string>;
              }
              %type: func(x: alias) -> bits;
            }
            world w { import one; export f: func(x: record-like) -> u8; include z { a as b } }
            interface two { resource thing; enum kind { a, b } }
            """,
            "package c:d@0.1.0-rc.2; interface e { record far { x: f32, y: char } }",
        ]
    )
    one = parsed["a:b/one"]
    far = ("record", (("x", "f32"), ("y", "char")))
    assert one.types == {"alias": ("list", ("option", far)), "bits": ("flags", ("read", "write"))}
    assert one.resources == ("plain", "r")
    own, kind = ("own", "a:b/one#r"), ("enum", ("a", "b"))
    this = ("self", ("borrow", "a:b/one#r"))
    assert one.functions == {
        "[constructor]r": Function("[constructor]r", (("n", "u8"),), ("result", own, kind)),
        "[static]r.make": Function("[static]r.make", (), ("tuple", (own, ("borrow", "a:b/one#plain")))),
        "[method]r.use": Function(
            "[method]r.use", (this, ("o", ("borrow", "a:b/two#thing"))), ("result", None, "string")
        ),
        "type": Function("type", (("x", one.types["alias"]),), one.types["bits"]),
    }
    assert set(parsed) == {"a:b/one", "a:b/two", "c:d/e@0.1.0-rc.2"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("package a:b; interface i { type a = b; type b = list<a>; }", "contains itself"),
        ("package a:b; interface i { type a = b; }", "there is no type b"),
        ("package a:b; interface i { use c:d/e.{x}; type y = x; }", "in none of the texts"),
        ("package a:b; interface i { type y = borrow<z>; type z = u8; }", "of resources only"),
        ("package a:b; interface i { f: func(x: u8 }", "expected"),
        ("package a:b; interface i {", "ends too early"),
        ("package a:b; thing", "neither an interface nor a world"),
        ("package a:b; interface i { type y = result<u8, u8, u8>; }", "two sides"),
        ("interface i {}", "'package' was expected"),
    ],
)
def test_a_text_that_is_wrong_is_refused(text: str, says: str) -> None:
    with pytest.raises(WitError, match=says):
        parse([text])
