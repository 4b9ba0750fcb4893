"""
The core-wasm signatures of ``wasi_ephemeral_nn``: the witx's six calls, and WasmEdge's six beyond them.

Source: wasi-nn witx; WasmEdge ``plugins/wasi_nn``; the crate ``wasmedge-wasi-nn`` 0.8.
"""

from __future__ import annotations

from typing import Final

MODULE: Final = "wasi_ephemeral_nn"

# name -> (parameters, results); i = i32.
SIGNATURES: Final[dict[str, tuple[str, str]]] = {
    "load": ("iiiii", "i"),
    "load_by_name": ("iii", "i"),
    "load_by_name_with_config": ("iiiii", "i"),
    "init_execution_context": ("ii", "i"),
    "set_input": ("iii", "i"),
    "compute": ("i", "i"),
    "get_output": ("iiiii", "i"),
    "compute_single": ("i", "i"),
    "get_output_single": ("iiiii", "i"),
    "fini_single": ("i", "i"),
    "unload": ("i", "i"),
    "finalize_execution_context": ("i", "i"),
}
