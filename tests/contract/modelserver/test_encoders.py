"""Models that only make embeddings: encoders with pooling and without a KV cache, through llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
from rigging import Client, MakeRig, needs_llama
from tiny_encoder import N_CTX, N_EMBD, write_encoder

from faas.modelserver.backends.base import LoadOptions
from faas.wire.models import Describe, Embed, Finish

pytestmark = [pytest.mark.timeout(60), needs_llama]


@pytest.fixture
async def encoder(make_rig: MakeRig, tmp_path: Path) -> Client:
    """A client of a server with an encoder."""
    return await (await make_rig("llama", files={"m": write_encoder(tmp_path / "m.gguf")})).connect()


async def test_an_encoder_says_how_it_pools(encoder: Client) -> None:
    (card,) = (await encoder.ask(Describe, "m", load=True)).cards
    assert (card.architecture, card.pooling, card.n_embd, card.n_ctx) == ("bert", "mean", N_EMBD, N_CTX)


async def test_an_encoders_vectors_are_the_same_alone_and_in_company(encoder: Client) -> None:
    texts = (b"red", b"green sky", b"sky green", b"red red red green")
    together = (await encoder.ask(Embed, "m", "f", texts)).vectors
    for text, vector in zip(texts, together, strict=True):
        (alone,) = (await encoder.ask(Embed, "m", "f", (text,))).vectors
        assert alone == pytest.approx(vector, abs=1e-5)
        assert sum(x * x for x in vector) == pytest.approx(1)
    assert together[1] != pytest.approx(together[2], abs=1e-3)  # it knows the order of words


async def test_an_encoder_refuses_more_than_its_context(encoder: Client) -> None:
    final = await encoder.ask(Embed, "m", "f", (b"red " * N_CTX,))
    assert final.problem is not None
    assert final.problem["code"] == "prompt-too-long"


async def test_an_encoder_generates_nothing(encoder: Client) -> None:
    answer = await encoder.generate(b"red")
    assert (answer.final.finish, answer.code) == (Finish.FAILED, "options-invalid")


def test_an_encoder_counts_without_a_kv_cache(tmp_path: Path) -> None:
    from faas.modelserver.backends.llama import OVERHEAD_BYTES, open_backend

    path = write_encoder(tmp_path / "m.gguf")
    backend, options = open_backend(), LoadOptions(n_ctx=512, n_slots=8)
    assert backend.inspect(path, options).needs_bytes == path.stat().st_size + OVERHEAD_BYTES
    model = backend.load(path, options)
    assert model.resident_bytes <= path.stat().st_size
    model.close()
