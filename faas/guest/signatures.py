"""The core-wasm signatures of ``faas_v1``, and what a manifest has to grant for each; docs/abi.md is the contract."""

from __future__ import annotations

from typing import Final

from faas.manifest import Capabilities

MODULE: Final = "faas_v1"

# name -> (parameters, results); i = i32, I = i64.
SIGNATURES: Final[dict[str, tuple[str, str]]] = {
    "result_read": ("iii", "i"),
    "kv_open": ("iii", "i"),
    "kv_get": ("iiii", "i"),
    "kv_set": ("iiiiiI", "i"),
    "kv_delete": ("iii", "i"),
    "kv_list": ("iiiiiii", "i"),
    "kv_increment": ("iiiIi", "i"),
    "kv_compare_and_set": ("iiiiiiiiI", "i"),
    "config_get": ("iii", "i"),
    "secret_get": ("iii", "i"),
    "http_begin": ("iii", "i"),
    "call_begin": ("iii", "i"),
    "job_enqueue": ("iii", "i"),
    "response_head": ("ii", "i"),
    "response_read": ("iiii", "i"),
    "wait_any": ("iiIi", "i"),
    "close": ("i", "i"),
}

# The first word of a name says which capability it takes; what is not here takes none.
_CAPABILITIES: Final[dict[str, str]] = {
    "kv": "kv",
    "secret": "secrets",
    "http": "outbound",
    "call": "calls",
    "job": "calls",
}
_EXAMPLES: Final[dict[str, str]] = {
    "kv": 'kv = ["default"]',
    "secrets": 'secrets = ["NAME"]',
    "outbound": 'outbound = ["api.example.org"]',
    "calls": 'calls = ["FUNCTION"]',
}


def lacking(name: str, capabilities: Capabilities) -> str:
    """Return what to write under ``[capabilities]`` before the import *name* is granted; "" if it is."""
    capability = _CAPABILITIES.get(name.partition("_")[0])
    if capability is None or getattr(capabilities, capability):
        return ""
    if capability == "outbound" and capabilities.calls:
        return ""  # functions have names of hosts too
    return _EXAMPLES[capability]
