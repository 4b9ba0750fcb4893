"""
Tool calls: the grammar that forces one, and finding them in what a model writes.

Two forms are understood: ``<tool_call>{"name": …, "arguments": …}</tool_call>`` (Hermes, Qwen), any number of them
among text, and an answer that is nothing but such an object or a list of them (Llama 3, Mistral; its marks are special
tokens, which don't show).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from faas.gateway.openai.requests import Tool

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


class CallText(msgspec.Struct, frozen=True):
    """A function call; ``arguments`` is JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call as it stands in a message."""

    id: str
    function: CallText
    type: str = "function"


class ToolFinder:
    """
    Parts the text of one answer into what is for the reader and what is calls; lives as long as the generation.

    Text is handed on as soon as it can't be the beginning of a call any more.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        only_calls: bool = False,
        at_most_one: bool = False,
        new_id: Callable[[], str] = lambda: "call_" + secrets.token_hex(12),
    ) -> None:
        """Args: *only_calls*: the grammar allows nothing but a call object."""
        self._names = names
        self._only_calls = only_calls
        self._at_most_one = at_most_one
        self._new_id = new_id
        self._held = ""
        self._began = False
        self._whole = only_calls
        self.n_calls = 0

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take the next text and return what became certain: text for the reader, and calls."""
        self._held += text
        if not self._began:
            start = self._held.lstrip()
            if not start:
                return "", []
            self._began = True
            if start[0] in "{[":
                self._whole = True  # only the end tells whether it is a call
        if self._whole:
            return "", []
        shown: list[str] = []
        calls: list[ToolCall] = []
        while True:
            at = self._held.find(OPEN)
            if at < 0:
                keep = _overlap(self._held, OPEN)
                cut = len(self._held) - keep
                shown.append(self._held[:cut])
                self._held = self._held[cut:]
                break
            end = self._held.find(CLOSE, at)
            if end < 0:
                shown.append(self._held[:at])
                self._held = self._held[at:]
                break
            shown.append(self._held[:at])
            found = self._parse(self._held[at + len(OPEN) : end])
            if found is None:
                shown.append(self._held[at : end + len(CLOSE)])
            else:
                calls += found
            self._held = self._held[end + len(CLOSE) :]
        return self._visible(shown, calls), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what was still held back when the answer ended."""
        held, self._held = self._held, ""
        # A model may end its answer without closing its last call.
        inner = held.partition(OPEN)[2] if held.startswith(OPEN) else held
        found = self._parse(inner) if self._whole or held.startswith(OPEN) else None
        if found is None:
            return self._visible([held], []), []
        return "", found

    def _visible(self, shown: list[str], calls: list[ToolCall]) -> str:
        text = "".join(shown)
        # Line ends between calls are the template's, not the reader's.
        return "" if (self.n_calls or calls) and not text.strip() else text

    def _parse(self, text: str) -> list[ToolCall] | None:
        """Return the calls that *text* is, None if it is something else."""
        try:
            written = json.loads(text.strip().removesuffix(CLOSE), strict=False)
        except (ValueError, RecursionError):
            return None
        calls: list[ToolCall] = []
        for one in written if isinstance(written, list) else [written]:
            if not isinstance(one, dict):
                return None
            inner = one.get("function", one)
            called = inner if isinstance(inner, dict) else {**one, "name": inner}
            name = called.get("name")
            arguments = called.get("arguments", called.get("parameters"))
            if not isinstance(name, str) or name not in self._names:
                return None
            if not isinstance(arguments, (dict, str, type(None))):
                return None
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments or {}, ensure_ascii=False)
            calls.append(ToolCall(self._new_id(), CallText(name, arguments)))
        if not calls:
            return None  # an empty list is an answer, not a call
        if self._at_most_one:
            calls = calls[: 1 - self.n_calls]
        self.n_calls += len(calls)
        return calls


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """
    Return the JSON schema of one call of one of *tools*.

    References within a tool's parameters count from their own root, so their definitions move to ours, renamed.
    """
    definitions: dict[str, Any] = {}
    forms: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        parameters: Any = _moved(tool.function.parameters or {"type": "object", "properties": {}}, i)
        for key in ("$defs", "definitions"):
            for name, definition in parameters.pop(key, {}).items():
                definitions[f"t{i}_{name}"] = definition
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {**schema, "$defs": definitions} if definitions else schema


def _moved(schema: Any, i: int) -> Any:
    """Return a copy of *schema* whose references point to the definitions of tool *i*."""
    if isinstance(schema, list):
        return [_moved(item, i) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, i) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        for root in ("#/$defs/", "#/definitions/"):
            if reference.startswith(root):
                moved["$ref"] = f"#/$defs/t{i}_{reference.removeprefix(root)}"
    return moved


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of *text* may be the beginning of *mark*."""
    for n in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-n:]):
            return n
    return 0
