"""Generations over the wire: every ending, exactly once, with the right tokens."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from rigging import ENDLESS, GREEDY, Client, MakeRig, Rig, chat, needs_llama, wait_for

from faas.testing.fake_backend import EOG, FakeFile
from faas.wire.models import Cancel, Describe, Embed, Finish, Generate, More, Sampling, Tokenize

pytestmark = pytest.mark.timeout(60)

PARIS = chat("What is the capital of France?")
LONG = chat("Repeat after me: " + "one two three four five six seven eight nine ten " * 20)
FAKE_PARIS = FakeFile(answers={PARIS.decode(): "The capital of France is Paris."})


@pytest.fixture(params=["fake", pytest.param("llama", marks=needs_llama)])
async def france(request: pytest.FixtureRequest, make_rig: MakeRig) -> Client:
    """A client of a model that knows the capital of France."""
    return await (await make_rig(request.param, files={"m": FAKE_PARIS})).connect()


async def test_generation_ends_with_eog_when_the_model_ends_it(france: Client) -> None:
    answer = await france.generate(PARIS)
    assert answer.text == b"The capital of France is Paris."
    assert answer.final.finish is Finish.EOG
    assert answer.final.n_generated_tokens == len(answer.tokens)
    assert answer.pieces[-1] == b""
    assert answer.finishes == [*[None] * (len(answer.tokens) - 1), Finish.EOG]


async def test_render_special_shows_the_end_of_generation_token(france: Client) -> None:
    answer = await france.generate(PARIS, render_special=True)
    assert answer.text in (b"The capital of France is Paris.<|im_end|>", b"The capital of France is Paris.<eog>")


async def test_generation_ends_with_length_after_max_tokens(client: Client) -> None:
    answer = await client.generate(PARIS, max_tokens=5, sampling=ENDLESS)
    assert answer.final.finish is Finish.LENGTH
    assert answer.finishes == [None, None, None, None, Finish.LENGTH]


async def test_the_model_does_not_end_a_generation_that_ignores_its_end(france: Client) -> None:
    answer = await france.generate(PARIS, max_tokens=40, sampling=ENDLESS)
    assert answer.text.startswith(b"The capital of France is Paris.")
    assert answer.final.finish is Finish.LENGTH
    assert len(answer.tokens) == 40


async def test_max_tokens_zero_generates_nothing(client: Client) -> None:
    answer = await client.generate(PARIS, max_tokens=0)
    assert answer.final.finish is Finish.LENGTH
    assert answer.tokens == []
    assert answer.final.n_prompt_tokens > 0


async def test_stop_string_ends_the_generation_and_stays_out_of_the_text(france: Client) -> None:
    answer = await france.generate(PARIS, stop=(b"France is",))
    assert answer.final.finish is Finish.STOP
    assert answer.text == b"The capital of "
    assert answer.finishes[-1] is Finish.STOP


async def test_stop_string_stays_in_the_text_when_not_hidden(france: Client) -> None:
    answer = await france.generate(PARIS, stop=(b"France",), hide_stop=False)
    assert answer.final.finish is Finish.STOP
    assert answer.text == b"The capital of France"


async def test_text_that_only_begins_like_a_stop_string_is_not_lost(france: Client) -> None:
    answer = await france.generate(PARIS, stop=(b"France was", b"Paris. And"))
    assert answer.final.finish is Finish.EOG
    assert answer.text == b"The capital of France is Paris."
    assert answer.finishes == [*[None] * (len(answer.tokens) - 1), Finish.EOG]


async def test_cancel_ends_the_generation_soon(rig: Rig) -> None:
    client = await rig.connect()
    request_id = await client.start(PARIS, sampling=ENDLESS, credit=2)
    await client.first_piece(request_id)
    await client.channel.send(Cancel(request_id))
    answer = (await client.collect(request_id))[request_id]
    assert answer.final.finish is Finish.CANCELLED
    assert (await wait_for(rig, lambda row: row["active"] == 0))["waiting"] == 0


async def test_cancel_of_an_unknown_request_is_ignored(client: Client) -> None:
    await client.channel.send(Cancel(99))
    assert (await client.generate(PARIS, max_tokens=1, sampling=ENDLESS)).final.finish is Finish.LENGTH


async def test_deadline_ends_the_generation(client: Client) -> None:
    deadline = time.monotonic() + 0.3
    answer = await client.generate(PARIS, sampling=ENDLESS, credit=1, deadline=deadline)
    assert answer.final.finish is Finish.DEADLINE
    assert time.monotonic() >= deadline


async def test_context_full_ends_the_generation_with_the_text_so_far(client: Client) -> None:
    answer = await client.generate(PARIS, sampling=ENDLESS, n_ctx=100)
    assert answer.final.finish is Finish.CONTEXT_FULL
    assert answer.final.n_prompt_tokens + len(answer.tokens) == 101
    assert answer.finishes == [*[None] * (len(answer.tokens) - 1), Finish.CONTEXT_FULL]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"sampling": Sampling(grammar="root ::= (")}, "grammar-invalid"),
        ({"sampling": Sampling(grammar='start ::= "a"')}, "grammar-invalid"),
        ({"sampling": Sampling(grammar="(" * 5000)}, "grammar-invalid"),
        ({"sampling": Sampling(json_schema="{")}, "grammar-invalid"),
        ({"sampling": Sampling(json_schema='{"properties": {"a": {"type": "no such"}}}')}, "grammar-invalid"),
        ({"sampling": Sampling(json_schema="[" * 5000)}, "grammar-invalid"),
        ({"sampling": Sampling(grammar='root ::= "a"', json_schema="{}")}, "options-invalid"),
        ({"sampling": Sampling(top_p=float("nan"))}, "options-invalid"),
        ({"sampling": Sampling(mirostat=3)}, "options-invalid"),
        ({"n_probs": 10**6}, "options-invalid"),
        ({"model": "nobody"}, "model-not-found"),
        ({"n_ctx": 4}, "prompt-too-long"),
    ],
)
async def test_a_bad_request_fails_with_its_code(client: Client, options: dict[str, object], code: str) -> None:
    answer = await client.generate(PARIS, **options)
    assert answer.final.finish is Finish.FAILED
    assert answer.code == code
    assert (await client.generate(PARIS, max_tokens=1)).final.finish is Finish.LENGTH


@pytest.mark.parametrize(("prompt", "code"), [(b"\xff\xfe", "prompt-invalid"), (b"word " * 2000, "prompt-too-long")])
async def test_a_bad_prompt_fails_with_its_code(client: Client, prompt: bytes, code: str) -> None:
    assert (await client.generate(prompt)).code == code


async def test_grammar_is_obeyed(client: Client) -> None:
    answer = await client.generate(PARIS, sampling=Sampling(grammar='root ::= "maybe" | "perhaps"', seed=1))
    assert answer.text in (b"maybe", b"perhaps")
    assert answer.final.finish is Finish.EOG


async def test_greedy_grammar_is_obeyed(client: Client) -> None:
    answer = await client.generate(PARIS, sampling=Sampling(grammar='root ::= "zebra"', temperature=0.0))
    assert answer.text == b"zebra"


async def test_json_schema_output_parses_and_validates(client: Client) -> None:
    kinds = {"ok": {"type": "boolean"}, "n": {"type": "integer"}}
    schema = json.dumps({"type": "object", "properties": kinds, "required": ["ok", "n"]})
    answer = await client.generate(
        chat("Answer in JSON."), sampling=Sampling(json_schema=schema, seed=1), max_tokens=60
    )
    assert answer.final.finish is Finish.EOG
    found = json.loads(answer.text)
    assert isinstance(found["ok"], bool)
    assert isinstance(found["n"], int)


async def test_equal_seeds_give_equal_texts_and_others_differ(client: Client) -> None:
    texts = [
        (
            await client.generate(PARIS, max_tokens=24, sampling=Sampling(temperature=1.5, seed=seed, ignore_eos=True))
        ).text
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(mirostat=1, seed=1),
        Sampling(mirostat=2, seed=1),
        Sampling(repeat_penalty=1.3, frequency_penalty=0.1, presence_penalty=0.1, seed=1),
        Sampling(dry_multiplier=0.8, top_n_sigma=1.0, xtc_probability=0.5, seed=1),
        Sampling(dynatemp_range=0.5, typical_p=0.9, min_keep=2, seed=1),
        Sampling(temperature=0.0, repeat_penalty=1.5, last_n_penalty=-1),
        Sampling(top_k=0, top_p=0.0, min_p=1.0, seed=1),
    ],
)
async def test_every_sampling_option_is_accepted(client: Client, sampling: Sampling) -> None:
    sampling = msgspec.structs.replace(sampling, ignore_eos=True)
    assert (await client.generate(PARIS, max_tokens=4, sampling=sampling)).final.finish is Finish.LENGTH


async def test_n_probs_gives_alternatives_with_the_sampled_token_first(client: Client) -> None:
    answer = await client.generate(PARIS, max_tokens=3, n_probs=2, sampling=ENDLESS)
    assert [row[0][0] for row in answer.probs] == answer.tokens
    assert all(len(row) == 3 and all(logprob <= 0 for _, _, logprob in row) for row in answer.probs)


async def test_prompt_shares_the_prefix_of_a_finished_one(client: Client) -> None:
    first = await client.generate(LONG[:300], max_tokens=1, function="a")
    again = await client.generate(LONG[:300], max_tokens=1, function="b")
    assert first.final.n_cached_tokens == 0
    assert again.final.n_cached_tokens == again.final.n_prompt_tokens - 1
    assert again.tokens == first.tokens


async def test_prompt_shares_the_prefix_of_a_running_one(client: Client) -> None:
    running = await client.start(LONG[:200], credit=1, sampling=ENDLESS)
    await client.first_piece(running)
    other = await client.start(LONG[:230], max_tokens=1, function="b", sampling=ENDLESS)
    final = (await client.collect(other))[other].final
    assert final.n_cached_tokens > final.n_prompt_tokens // 2
    await client.channel.send(Cancel(running))
    await client.collect(running)


@pytest.mark.timeout(180)
async def test_eight_greedy_generations_equal_their_solo_runs(make_rig: MakeRig, rig: Rig) -> None:
    # With all threads, as hosts run it: slow where others want the processors.
    questions = ["Name a colour.", "What is two plus two?", "Why is the sky blue?", "Who wrote Hamlet?"]
    prompts = [chat(question + extra) for question in questions for extra in ("", " Be brief.")]
    solo_client = await (await make_rig(rig.kind, threads=0)).connect()
    solos = [(await solo_client.generate(p, max_tokens=24, sampling=ENDLESS)).tokens for p in prompts]
    fresh = await make_rig(rig.kind, threads=0)
    client = await fresh.connect()
    ids = [await client.start(p, max_tokens=24, sampling=ENDLESS, function=f"f{i % 4}") for i, p in enumerate(prompts)]
    answers = await client.collect(*ids)
    assert [answers[i].tokens for i in ids] == solos
    steps = (await fresh.stats()).models["m"]["decode_steps"]
    assert steps < 8 * 24  # they ran together


async def test_a_greedy_text_is_the_same_whoever_ends_beside_it(make_rig: MakeRig, rig: Rig) -> None:
    solo = await (await rig.connect()).generate(PARIS, max_tokens=60, sampling=ENDLESS)
    client = await (await make_rig(rig.kind)).connect()
    ids = [await client.start(PARIS, max_tokens=n, sampling=ENDLESS) for n in (3, 6, 12, 20, 60)]
    answers = await client.collect(*ids)
    assert [answers[i].tokens for i in ids] == [solo.tokens[:n] for n in (3, 6, 12, 20, 60)]


async def test_texts_stay_the_same_when_room_is_made_in_quiet_moments(make_rig: MakeRig, rig: Rig) -> None:
    small = await make_rig(rig.kind, n_ctx=256, n_cells=512, n_slots=2)
    client = await small.connect()
    prompts = [chat(f"Tell me about the number {n}.") for n in range(12)]
    rounds = []
    for _ in range(2):
        answers = [await client.generate(prompt, max_tokens=24, sampling=ENDLESS) for prompt in prompts]
        rounds.append([answer.tokens for answer in answers])
    assert rounds[0] == rounds[1]


async def test_a_text_stays_the_same_when_its_cells_are_moved(make_rig: MakeRig, rig: Rig) -> None:
    small = {"n_ctx": 512, "n_cells": 1024, "n_slots": 4}
    solo = await (await (await make_rig(rig.kind, **small)).connect()).generate(PARIS, max_tokens=30, sampling=ENDLESS)
    busy = await make_rig(rig.kind, **small)
    client = await busy.connect()
    request_id = await client.start(PARIS, max_tokens=30, sampling=ENDLESS, credit=3)
    tokens = [token for _ in range(3) for token in (await client.first_piece(request_id)).tokens]
    for n in range(6):
        await client.generate(chat(f"{n} " * 30), max_tokens=2, sampling=ENDLESS)
    row = (await busy.stats()).models["m"]
    assert row["active"] == 1
    assert row["saved_bytes"] > 0
    await client.channel.send(More(request_id, 100))
    assert tokens + (await client.collect(request_id))[request_id].tokens == solo.tokens


async def test_a_prefix_that_left_its_cells_is_copied_back(make_rig: MakeRig, rig: Rig) -> None:
    small = await make_rig(rig.kind, n_ctx=256, n_cells=512, n_slots=2)
    client = await small.connect()
    prompt = LONG[:150] + b" One."
    first = await client.generate(prompt, max_tokens=16, sampling=ENDLESS)
    for n in range(6):
        await client.generate(f"{n} ".encode() * 40, max_tokens=1, sampling=ENDLESS)
    gauges = (await small.stats()).models["m"]
    assert gauges["saved_bytes"] > 0
    again = await client.generate(prompt, max_tokens=16, sampling=ENDLESS)
    assert again.final.n_cached_tokens == again.final.n_prompt_tokens - 1
    assert again.tokens == first.tokens


async def test_a_logit_bias_changes_a_greedy_text_and_nobody_elses(rig: Rig) -> None:
    client = await rig.connect()
    plain = await client.generate(PARIS, max_tokens=6, sampling=ENDLESS)
    banned = msgspec.structs.replace(ENDLESS, logit_bias={plain.tokens[0]: -100.0})
    ids = [await client.start(PARIS, max_tokens=6, sampling=sampling) for sampling in (ENDLESS, banned)]
    answers = await client.collect(*ids)
    assert answers[ids[0]].tokens == plain.tokens
    if rig.kind == "llama":  # the fake one knows no logits
        assert answers[ids[1]].tokens[0] != plain.tokens[0]


async def test_a_burst_of_equal_prompts_is_computed_once(make_rig: MakeRig, rig: Rig) -> None:
    client = await (await make_rig(rig.kind)).connect()
    ids = [await client.start(LONG[:300], max_tokens=2, sampling=ENDLESS, function=f"f{n}") for n in range(4)]
    finals = [answer.final for answer in (await client.collect(*ids)).values()]
    computed = sum(final.n_prompt_tokens - final.n_cached_tokens for final in finals)
    assert computed == finals[0].n_prompt_tokens + 3


async def test_credit_pauses_the_generation_until_there_is_more(rig: Rig) -> None:
    client = await rig.connect()
    request_id = await client.start(PARIS, sampling=ENDLESS, credit=3, max_tokens=8)
    pieces = [await client.first_piece(request_id) for _ in range(3)]
    # Another generation runs to its end meanwhile: had the first gone on, its pieces would be among these.
    assert (await client.generate(PARIS, max_tokens=6, sampling=ENDLESS)).final.finish is Finish.LENGTH
    await client.channel.send(More(request_id, 100))
    answer = (await client.collect(request_id))[request_id]
    assert len(pieces) + len(answer.tokens) == 8


async def test_tokenize_and_describe_answer_with_one_final(client: Client) -> None:
    tokens = (await client.ask(Tokenize, "m", b"hello world")).tokens
    assert tokens
    card = (await client.ask(Describe, "m", load=True)).cards[0]
    assert card.loaded
    assert card.n_vocab > max(tokens)
    assert [c.name for c in (await client.ask(Describe)).cards] == ["m"]
    assert (await client.ask(Describe, "nobody")).problem is not None
    assert (await client.ask(Tokenize, "m", b"\xff")).problem is not None


async def test_embeddings_are_unit_vectors_and_deterministic(client: Client) -> None:
    inputs = tuple(f"sentence number {n}".encode() for n in range(5))
    first = (await client.ask(Embed, "m", "f", inputs)).vectors
    again = (await client.ask(Embed, "m", "f", inputs[::-1])).vectors
    assert len(first) == 5
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-6 for vector in first)
    assert max(abs(a - b) for a, b in zip(first[0], again[4], strict=True)) < 1e-6
    assert max(abs(a - b) for a, b in zip(first[0], first[1], strict=True)) > 1e-3


async def test_a_bad_embedding_request_fails_with_its_code(client: Client) -> None:
    problem = (await client.ask(Embed, "m", "f", (b"fine", b"\xff"))).problem
    assert problem is not None
    assert problem["code"] == "prompt-invalid"
    problem = (await client.ask(Embed, "m", "f", (b"one two three four",), max_tokens_each=2)).problem
    assert problem is not None
    assert problem["code"] == "prompt-too-long"


async def test_eviction_keeps_serving_when_cells_run_out(make_rig: MakeRig, rig: Rig) -> None:
    small = await make_rig(rig.kind, n_ctx=256, n_cells=256, n_slots=2)
    client = await small.connect()
    for n in range(8):
        answer = await client.generate(
            f"{n} different words begin this prompt ".encode() * 3, max_tokens=4, sampling=ENDLESS
        )
        assert answer.final.finish is Finish.LENGTH
    assert (await small.stats()).models["m"]["cells_used"] <= 256


async def test_generations_that_do_not_fit_together_all_complete(make_rig: MakeRig, rig: Rig) -> None:
    small = await make_rig(rig.kind, n_ctx=256, n_cells=256, n_slots=4)
    client = await small.connect()
    prompts = [chat(f"Question number {n}: what is it?") for n in range(4)]
    ids = [await client.start(prompt, max_tokens=80, sampling=ENDLESS) for prompt in prompts]
    answers = await client.collect(*ids)
    assert [answers[i].final.finish for i in ids] == [Finish.LENGTH] * 4
    assert [len(answers[i].tokens) for i in ids] == [80] * 4


async def test_chunked_prefill_lets_running_generations_flow(make_rig: MakeRig) -> None:
    rig = await make_rig("fake", gated=True)
    client = await rig.connect()
    running = await client.start(b"short", sampling=ENDLESS, function="a")
    rig.let_through(1)
    await client.first_piece(running)
    long = await client.start(b"x" * 200, sampling=ENDLESS, max_tokens=1, function="b")
    rig.let_through(10)
    n_tokens = 0
    while n_tokens < 10:  # a piece may carry the tokens of several steps
        n_tokens += len((await client.first_piece(running)).tokens)
    await client.channel.send(Cancel(running))
    await client.heard()
    rig.let_through(50)
    answers = await client.collect(running, long)
    assert answers[long].final.finish is Finish.LENGTH


async def test_a_busy_function_does_not_keep_another_waiting(make_rig: MakeRig) -> None:
    rig = await make_rig("fake", gated=True, n_slots=2)
    client = await rig.connect()
    greedy = [await client.start(b"busy %d" % n, max_tokens=5, function="busy", sampling=ENDLESS) for n in range(6)]
    quiet = await client.start(b"quiet", max_tokens=5, function="quiet", sampling=ENDLESS)
    await client.heard()
    rig.let_through(1000)
    ended = []
    while len(ended) < 7:
        message = await client.receive()
        if not hasattr(message, "pieces"):
            ended.append(message.id)
    assert ended.index(quiet) <= 3
    assert set(ended) == {quiet, *greedy}


async def test_cancel_frees_the_slot_within_one_step(make_rig: MakeRig) -> None:
    rig = await make_rig("fake", gated=True)
    client = await rig.connect()
    request_id = await client.start(b"go on", sampling=ENDLESS)
    rig.let_through(1)
    await client.first_piece(request_id)
    await client.channel.send(Cancel(request_id))
    await client.heard()
    rig.let_through(2)
    await client.collect(request_id)
    row = (await rig.stats()).models["m"]
    assert row["active"] == 0
    assert row["decode_steps"] <= 3


async def test_a_failed_decode_ends_its_sequences_and_the_next_ones_work(make_rig: MakeRig) -> None:
    client = await (await make_rig("fake", files={"m": FakeFile(fail_after=2)})).connect()
    failed = await client.generate(b"one", sampling=ENDLESS, max_tokens=5)
    assert failed.code == "generation-failed"
    assert (await client.generate(b"two", sampling=ENDLESS, max_tokens=5)).final.finish is Finish.LENGTH


async def test_a_paused_generation_does_not_take_a_slot(make_rig: MakeRig) -> None:
    rig = await make_rig("fake", n_slots=1)
    client = await rig.connect()
    paused = await client.start(b"paused", sampling=ENDLESS, credit=1)
    await client.first_piece(paused)
    assert (await client.generate(b"other", max_tokens=3, sampling=ENDLESS)).final.finish is Finish.LENGTH
    await client.channel.send(Cancel(paused))
    assert (await client.collect(paused))[paused].final.finish is Finish.CANCELLED


async def test_ignore_eos_keeps_going(make_rig: MakeRig) -> None:
    client = await (await make_rig("fake", files={"m": FakeFile(eog_every=3)})).connect()
    assert (await client.generate(b"x", max_tokens=50, sampling=GREEDY)).tokens[-1] == EOG
    assert len((await client.generate(b"x", max_tokens=50, sampling=ENDLESS)).tokens) == 50


def test_requests_are_the_wires_own() -> None:
    """The default request is what the wire says it is: no credit limit, no deadline, hidden stops."""
    request = Generate(1, "m", "f", b"")
    assert (request.credit, request.deadline, request.hide_stop) == (0, 0.0, True)
