# SPDX-License-Identifier: Apache-2.0
"""
The host's language models in Python, over wasi:nn. The world has to import it,

    import wasi:nn/graph@0.2.0-rc-2024-10-28;

and a model has to be granted: in function.toml, `[capabilities] models = ["default"]`.

    import faas_nn

    model = faas_nn.Model("default")
    text = model.generate(faas_nn.chatml([("user", "Hi")]), {"n-predict": 64})
    for piece in model.stream(prompt):       # as it is made
        ...
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from componentize_py_types import Err
from wit_world.imports import graph
from wit_world.imports.tensor import Tensor, TensorType


class ModelError(Exception):
    """A refused call; `code` is one of `NOT_FOUND`, `INVALID_ARGUMENT`, `TOO_LARGE`, `RUNTIME_ERROR`, …"""

    def __init__(self, error: Any) -> None:
        self.code: str = error.code().name
        self.detail: str = error.data()
        super().__init__(f"{self.code}: {self.detail}")

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed a little later."""
        return self.detail.startswith("busy: ")


class Model:
    """A model by the name that the host gave it; raises ModelError when it was not granted."""

    def __init__(self, name: str) -> None:
        try:
            self._graph = graph.load_by_name(name)
        except Err as exc:
            raise ModelError(exc.value) from exc

    def generate(self, prompt: str, config: Mapping[str, Any] | None = None) -> str:
        """
        The whole answer to *prompt*, which has the model's own template around it.

        Special tokens are visible, and it ends in the token that ended it: see without_end.
        """
        with self._context() as context:
            outputs = _compute(context, _inputs(prompt, config))
        return outputs.get("output", b"").decode("utf-8", "replace")

    def stream(self, prompt: str, config: Mapping[str, Any] | None = None) -> Iterator[str]:
        """The answer as it is made, in pieces of whole characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._context() as context:
            inputs = [*_inputs(prompt, config), ("stream", b"")]
            while (piece := _compute(context, inputs).get("output")) is not None:
                if text := decoder.decode(piece):
                    yield text
                inputs = [("stream", b"")]
        if text := decoder.decode(b"", final=True):
            yield text

    def embed(self, text: str, config: Mapping[str, Any] | None = None) -> list[float]:
        """The embedding of *text*."""
        with self._context() as context:
            outputs = _compute(context, _inputs(text, {"embedding": True, **(config or {})}))
        return json.loads(outputs["output"])["embedding"]

    def _context(self) -> Any:
        try:
            return self._graph.init_execution_context()
        except Err as exc:
            raise ModelError(exc.value) from exc


def chatml(messages: Iterable[tuple[str, str]]) -> str:
    """Messages of (role, text) as a prompt for models that know ChatML, up to where the assistant begins."""
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
    return f"{said}<|im_start|>assistant\n"


def without_end(text: str) -> str:
    """An answer without the token that ended it, and without space around it."""
    text = text.strip()
    for end in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>"):
        if text.endswith(end):
            return text.removesuffix(end).rstrip()
    return text


def _inputs(prompt: str, config: Mapping[str, Any] | None) -> list[tuple[str, bytes]]:
    inputs = [("prompt", prompt.encode())]
    return [*inputs, ("config", json.dumps(config).encode())] if config else inputs


def _compute(context: Any, inputs: list[tuple[str, bytes]]) -> dict[str, bytes]:
    try:
        outputs = context.compute([(name, Tensor([len(data)], TensorType.U8, data)) for name, data in inputs])
    except Err as exc:
        raise ModelError(exc.value) from exc
    given = {}
    for name, tensor in outputs:
        with tensor:
            given[name] = tensor.data()
    return given
