"""Chat templates: what models are trained on comes out, and what a hostile template tries does not happen."""

from __future__ import annotations

import pytest
from openai_fakes import HERMES, LLAMA3, FakeModels, card, site

from faas.errors import MalformedRequestError, ModelsMissingError
from faas.gateway.openai import template as template_module
from faas.gateway.openai.template import ChatTemplate, TemplateCache

USER = [{"role": "user", "content": "hi"}]


def render(source: str, **options: object) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(USER, **options)  # type: ignore[arg-type]


def test_a_llama3_template_emits_its_own_bos() -> None:
    template = ChatTemplate(LLAMA3, bos="<|begin_of_text|>")
    prompt = template.render([{"role": "system", "content": " be brief "}, *USER])
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert template.adds_bos(prompt)
    assert not template.has_tools


@pytest.mark.parametrize(
    ("source", "bos", "add_special"), [(LLAMA3, "<s>", False), ("x", "<s>", True), ("x", "", True)]
)
async def test_bos_comes_once(source: str, bos: str, add_special: bool) -> None:
    models = FakeModels(card(template=source, bos=bos))
    async with site(models) as api:
        await api.chat()
    assert models.requests[0].add_special is add_special


async def test_a_model_without_a_template_talks_chatml() -> None:
    models = FakeModels(card(template=""))
    async with site(models) as api:
        await api.chat(stop="END")
    assert models.requests[0].prompt == b"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert models.requests[0].stop == (b"END", b"<|im_end|>")


def test_tools_are_seen_in_the_template() -> None:
    assert ChatTemplate(HERMES).has_tools
    assert ChatTemplate("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}").has_tools
    assert not ChatTemplate("{# tools #}{{ messages }}tools").has_tools


def test_what_transformers_offers_is_there() -> None:
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert render("{{ bos_token }}{{ eos_token }}") == "<s></s>"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}said{% endgeneration %}") == "said"
    assert render("  {% if true %}\nx\n  {% endif %}\n") == "x\n"


def test_variables_of_the_request_are_there_but_never_replace_ours() -> None:
    source = "{{ enable_thinking }}{{ bos_token }}{{ messages | length }}"
    extra = {"enable_thinking": False, "bos_token": "EVIL", "messages": [], "self": 1}
    assert render(source, extra=extra) == "False<s>1"


async def test_variables_of_the_request_reach_the_template() -> None:
    models = FakeModels(card(template="{{ mood }}"))
    async with site(models) as api:
        await api.chat(chat_template_kwargs={"mood": "calm"}, chat_template="{{ 'mine' }}")
    assert models.requests[0].prompt == b"calm"


async def test_a_template_that_refuses_says_why() -> None:
    models = FakeModels(card(template="{{ raise_exception('roles must alternate') }}"))
    async with site(models) as api:
        answer = await api.chat()
    assert answer.status == 400
    assert answer.error["param"] == "messages"
    assert "roles must alternate" in answer.error["message"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ 'a' * 100000000 }}",
        "{{ 100000000 * [0] }}",
        "{{ 10 ** 100000 }}",
        "{{ 'a' ** 2 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ undefined_thing.x }}",
    ],
)
def test_an_escape_or_a_bomb_is_refused(source: str) -> None:
    with pytest.raises(MalformedRequestError, match="chat template"):
        render(source)


@pytest.mark.parametrize("source", ["{{ raise_exception.__globals__ }}", "{{ strftime_now.__self__ }}"])
def test_private_attributes_are_nothing(source: str) -> None:
    assert render(source) == ""


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% for x in y %}", "{% nonsense %}"])
def test_a_template_that_is_no_jinja_is_refused(source: str) -> None:
    with pytest.raises(MalformedRequestError, match="can't be used"):
        ChatTemplate(source)


def test_a_template_is_compiled_once_and_forgotten_when_there_are_many() -> None:
    cache = TemplateCache()
    one = cache.of(card())
    assert cache.of(card("another name")) is one
    for i in range(template_module.MAX_CACHED):
        cache.of(card(template=f"{i}"))
    assert cache.of(card()) is not one


def test_without_jinja_chat_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "HAVE_JINJA", False)
    with pytest.raises(ModelsMissingError, match="models extra"):
        ChatTemplate(LLAMA3)
