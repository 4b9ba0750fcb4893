"""
A model's own chat template, from messages to the prompt; the only file that knows jinja2.

Templates come out of model files that somebody downloaded, so they run in jinja2's immutable sandbox, with bounds on
what an expression may build. What the environment offers them is what transformers does, since that is what they
are written for.

Source: huggingface transformers `utils/chat_template_utils.py`; jinja2 "Sandbox".
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from faas.errors import ModelsMissingError
from faas.gateway.openai.shape import refusal
from faas.wire.models import ModelCard

try:
    import jinja2
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser
    import jinja2.sandbox
except ImportError:  # it comes with the models extra, and plain functions are served without
    HAVE_JINJA = False
else:
    HAVE_JINJA = True

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For models that bring no template."""
CHATML_END = b"<|im_end|>"

MAX_CACHED = 64
MAX_REPEATED = 1_000_000
MAX_POWER_BITS = 4096

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


class TemplateCache:
    """The templates in use, each compiled once; lives as long as the endpoints."""

    def __init__(self) -> None:
        self._templates: dict[tuple[str, str, str], ChatTemplate] = {}

    def of(self, card: ModelCard) -> ChatTemplate:
        """
        Return the template of a model, ChatML for one that has none.

        Raises: ModelsMissingError, MalformedRequestError (the template is no jinja).
        """
        key = (card.chat_template, card.bos, card.eos)
        template = self._templates.get(key)
        if template is None:
            template = ChatTemplate(card.chat_template, bos=card.bos, eos=card.eos)
            if len(self._templates) >= MAX_CACHED:
                self._templates.pop(next(iter(self._templates)))
            self._templates[key] = template
        return template


class ChatTemplate:
    """One compiled chat template; immutable, lives as long as its cache entry."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        """Raises: ModelsMissingError, MalformedRequestError (the template is no jinja)."""
        if not HAVE_JINJA:
            raise ModelsMissingError("chat needs jinja2, which comes with the models extra: pip install 'faas[models]'")
        self.is_fallback = not source.strip()
        self._bos = bos
        self._eos = eos
        source = CHATML if self.is_fallback else source
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._compiled = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise refusal(f"the model's chat template can't be used: {exc}", param="model") from exc
        self.has_tools = any(name.name == "tools" for name in tree.find_all(jinja2.nodes.Name))
        self.has_tool_tags = "<tool_call>" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """
        Return the prompt that asks for the assistant's next message.

        *extra* are variables that some templates know (``enable_thinking``); they never replace ours.
        Raises: MalformedRequestError with the template's reason.
        """
        variables = {key: value for key, value in (extra or {}).items() if key not in RESERVED}
        try:
            return self._compiled.render(
                {
                    **variables,
                    "messages": messages,
                    "tools": list(tools) or None,
                    "add_generation_prompt": True,
                    "bos_token": self._bos,
                    "eos_token": self._eos,
                }
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as exc:
            raise refusal(f"the model's chat template refused these messages: {exc}", param="messages") from exc
        except (RecursionError, MemoryError) as exc:
            raise refusal("the model's chat template needs too much for these messages", param="messages") from exc

    def adds_bos(self, prompt: str) -> bool:
        """Return whether the rendered *prompt* begins with the model's BOS already, so that none may be added."""
        return bool(self._bos) and prompt.startswith(self._bos)


if HAVE_JINJA:

    class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """The immutable sandbox, in which an expression can't build huge values either."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
                    raise jinja2.exceptions.SecurityError("** is for numbers")
                if isinstance(left, int) and left.bit_length() * max(right, 0) > MAX_POWER_BITS:
                    raise jinja2.exceptions.SecurityError("a power is too large")
            else:
                for one, other in ((left, right), (right, left)):
                    if isinstance(one, int) and hasattr(other, "__len__") and one * len(other) > MAX_REPEATED:
                        raise jinja2.exceptions.SecurityError("a repetition is too long")
            return super().call_binop(context, operator, left, right)

    class _Generation(jinja2.ext.Extension):
        """``{% generation %}…{% endgeneration %}`` marks the assistant's words for training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], cache_size=0
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = time.strftime
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
