"""The samples in Python and JavaScript on a real host; skipped where they have not been built."""

from __future__ import annotations

import json

import pytest
from hosting import FUNCTIONS, Host

# Compiling one takes some 10 s of two processors.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def sample(host: Host) -> object:
    """``sample(name)`` has the sample deployed by its own function.toml, and returns its path."""
    deployed: set[str] = set()

    def deploy(name: str) -> str:
        module = FUNCTIONS / name / f"{name}.wasm"
        if not module.exists():
            pytest.skip(f"{name} is not built: make -C functions components")
        if name not in deployed:
            host.deploy(name, module.read_bytes(), (FUNCTIONS / name / "function.toml").read_text())
            deployed.add(name)
        return f"/{name}"

    return deploy


def post(host: Host, path: str, value: object) -> tuple[int, str]:
    reply = host.request("POST", path, json.dumps(value, ensure_ascii=False).encode())
    return reply.status, reply.text


def test_a_python_function_answers(host: Host, sample) -> None:
    path = sample("json-schema")
    assert host.get(path).json() == {"schemas": ["order"]}
    order = {"id": "AB-123456", "customer": {"name": "A"}, "items": [{"sku": "a", "quantity": 1, "price": 0.1}]}
    assert post(host, f"{path}/order", order) == (200, '{"valid": true, "errors": []}\n')


def test_a_python_function_reads_bytes_of_every_value(host: Host, sample) -> None:
    path = sample("json-schema")
    schema = {"const": "".join(map(chr, range(32, 0x300)))}
    status, text = post(host, path, {"schema": schema, "instance": schema["const"]})
    assert (status, json.loads(text)["valid"]) == (200, True)


def test_what_a_python_function_raises_is_a_400_where_it_is_the_clients(host: Host, sample) -> None:
    reply = host.request("POST", sample("json-schema"), b"[" * 100_000)
    assert (reply.status, "nested too deep" in reply.text) == (400, True)


def test_a_js_function_answers(host: Host, sample) -> None:
    path = sample("html-template")
    status, text = post(host, path, {"template": "<p>{{a}}</p>", "data": {"a": "<ü€😀>"}})
    assert (status, text) == (200, "<p>&lt;ü€😀&gt;</p>")


def test_a_js_function_streams_what_is_large(host: Host, sample) -> None:
    template = {"template": "{{#each a}}{{this}},{{/each}}", "data": {"a": list(range(50_000))}}
    status, text = post(host, sample("html-template"), template)
    assert (status, text) == (200, "".join(f"{number}," for number in range(50_000)))
