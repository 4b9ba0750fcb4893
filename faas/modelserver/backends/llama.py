"""
llama.cpp through llama-cpp-python's low-level API: the one file that imports it.

Three settings make a sequence's numbers independent of what else is in the batch, so that greedy texts are the same
alone and in company: flash attention, which skips the cells of other sequences instead of adding zeros; K cells in f16
and V cells in bf16, because for equal types ggml changes between three kernels by the size of the batch and of the
cache (and V is then summed up in f32, not f16); no repacked weights (``use_extra_bufts``), whose kernels differ for
one row and for many, and of which the AMX ones crash on some machines.
They suffice for the demo model, whose layers are Q4_1. A Gemma 3 in Q4_K_M (Q5_0, Q4_K, Q6_K and Q8_0 tensors) still
gave other numbers in batches of 8 rows and more than in smaller ones, so its greedy texts may depend on company.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faas.errors import GenerationFailedError, GrammarInvalidError, ModelFileError, ModelsMissingError
from faas.log import event
from faas.modelserver.backends.base import DEAD_END, Decoded, Inspected, LoadOptions
from faas.modelserver.gguf import GgufSummary, read_gguf
from faas.wire.models import Sampling

N_BATCH = 512
PREFILL_BUDGET_CPU = 64
SEQUENCES_PER_SLOT = 8
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
MIN_CELLS_PER_SLOT = 512
MAX_EMBED_TOKENS = 2048
EMBED_SEQUENCES = 16
MIROSTAT_M = 100
DRY_BREAKERS = (b"\n", b":", b'"', b"*")
OVERHEAD_BYTES = 64 * 1024 * 1024
"""Compute buffers and vocabulary, roughly: for the memory budget."""
_F16, _BF16 = 1, 30  # ggml_type
_K_BYTES, _V_BYTES = 2, 2
_POOLING = {-1: "", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_POOLING_NONE, _POOLING_LAST = 0, 3
_LEVELS = {3: logging.WARNING}

_log = logging.getLogger(__name__)


def open_backend() -> LlamaBackend:
    """
    Return llama.cpp, initialised.

    Raises: ModelsMissingError.
    """
    try:
        low = importlib.import_module("llama_cpp.llama_cpp")
        importlib.import_module("numpy")
    except (ImportError, OSError, RuntimeError) as exc:
        raise ModelsMissingError(f"llama-cpp-python can't be loaded ({exc}); pip install 'faas[models]'") from exc
    return LlamaBackend(low)


class LlamaBackend:
    """The initialised library; lives as long as the process."""

    name = "llama"

    def __init__(self, low: Any) -> None:
        self._low = low
        # The library keeps the bare pointer: without this reference the process would crash at the next log line.
        self._callback = low.llama_log_callback(_to_log)
        low.llama_log_set(self._callback, ctypes.c_void_p(0))
        low.llama_backend_init()
        self.build, self.commit = _build_of(low)
        self._has_gpu = bool(low.llama_supports_gpu_offload())

    def inspect(self, path: Path, options: LoadOptions) -> Inspected:
        """
        Return what the file's head says, once it is known to be whole.

        Raises: ModelFileError.
        """
        summary = read_gguf(path)
        n_ctx_train = summary.number("context_length")
        n_cells = _n_cells(options, n_ctx_train)
        kv_bytes = summary.kv_bytes_per_cell(_K_BYTES + _V_BYTES) * n_cells
        return Inspected(
            file_bytes=summary.file_bytes,
            needs_bytes=summary.file_bytes + kv_bytes + OVERHEAD_BYTES,
            architecture=summary.architecture,
            chat_template=str(summary.metadata.get("tokenizer.chat_template", "")),
            n_ctx_train=n_ctx_train,
            n_embd=summary.number("embedding_length"),
        )

    def load(self, path: Path, options: LoadOptions) -> LlamaModel:
        """
        Load weights (mapped, so shared with the page cache), vocabulary and KV cache.

        Raises: ModelFileError.
        """
        summary = read_gguf(path)
        low = self._low
        params = low.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers if self._has_gpu else 0
        params.use_extra_bufts = False
        handle = low.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise ModelFileError(
                f"llama.cpp refuses {path} (architecture {summary.architecture or 'unknown'}); try another conversion"
            )
        try:
            return LlamaModel(low, handle, options, summary, on_gpu=self._has_gpu and options.gpu_layers != 0)
        except BaseException:
            low.llama_model_free(handle)
            raise


class LlamaSampler:
    """One generation's chain of samplers, and its grammar; lives until ``close``."""

    __slots__ = ("_low", "bias", "chain", "grammar", "greedy", "sees_prompt")

    def __init__(
        self, low: Any, chain: Any, grammar: Any, *, greedy: bool, sees_prompt: bool, bias: Any = None
    ) -> None:
        """
        Args: *greedy* says the chain is none: the likeliest token is taken, after *bias* (tokens, what to add to their
        logits) if there is one. *sees_prompt*: penalties are on.
        """
        self._low = low
        self.bias = bias
        self.chain = chain
        self.grammar = grammar
        self.greedy = greedy
        self.sees_prompt = sees_prompt

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let penalties see the prompt."""
        if self.sees_prompt:
            for token in tokens:
                self._low.llama_sampler_accept(self.chain, token)

    def close(self) -> None:
        """Free it."""
        for sampler in (self.chain, self.grammar):
            if sampler:
                self._low.llama_sampler_free(sampler)
        self.chain = self.grammar = None


class LlamaModel:
    """
    One loaded model; lives until ``close``.

    Thread: made by any, then the owner's only.
    """

    def __init__(self, low: Any, handle: Any, options: LoadOptions, summary: GgufSummary, *, on_gpu: bool) -> None:
        self._low = low
        self._np = importlib.import_module("numpy")
        self._handle = handle
        self._options = options
        self._on_gpu = on_gpu
        self._vocab = low.llama_model_get_vocab(handle)
        self.n_vocab = int(low.llama_vocab_n_tokens(self._vocab))
        self.n_ctx_train = int(low.llama_model_n_ctx_train(handle))
        self.n_ctx = min(options.n_ctx or self.n_ctx_train, self.n_ctx_train)
        self.n_embd = int(low.llama_model_n_embd(handle))
        self.n_embed_tokens = min(self.n_ctx_train, MAX_EMBED_TOKENS)
        self.n_embed_batch = EMBED_SEQUENCES
        self.n_seqs = min(MAX_SEQUENCES, options.n_slots * SEQUENCES_PER_SLOT)
        self.n_batch = N_BATCH
        self.prefill_budget = N_BATCH if on_gpu else PREFILL_BUDGET_CPU
        self.architecture = summary.architecture
        self.description = _text(low.llama_model_desc, handle)
        template = low.llama_model_chat_template(handle, None)
        self.chat_template = template.decode("utf-8", "replace") if template else ""
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self.eog = frozenset(t for t in range(self.n_vocab) if low.llama_vocab_is_eog(self._vocab, t))
        self.bos_token = int(low.llama_vocab_bos(self._vocab))
        eos = int(low.llama_vocab_eos(self._vocab))
        self.bos = self.piece(self.bos_token, special=True).decode("utf-8", "replace") if self.bos_token >= 0 else ""
        self.eos = self.piece(eos, special=True).decode("utf-8", "replace") if eos >= 0 else ""
        self._embedder: Any = None
        self._context = self._open_context(summary)
        self.pooling = _POOLING.get(int(low.llama_pooling_type(self._context)), "")
        self._memory = low.llama_get_memory(self._context)
        self.can_generate = bool(self._memory)
        self.resident_bytes = int(low.llama_model_size(handle)) + self._kv_bytes
        self._scratch = self._np.zeros(self.n_vocab, dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._candidates = low.llama_token_data_array()
        self._open_batch()

    def _open_context(self, summary: GgufSummary) -> Any:
        low, options = self._low, self._options
        self.n_cells = _n_cells(options, self.n_ctx_train)
        params = self._context_params()
        params.n_ctx = self.n_cells
        params.n_seq_max = self.n_seqs
        params.type_k = _F16
        params.type_v = _F16 if self._on_gpu else _BF16
        context = low.llama_init_from_model(self._handle, params)
        if not context:
            raise ModelFileError(f"llama.cpp can't make a context of {self.n_cells} cells; lower n_ctx or n_slots")
        self.n_cells = int(low.llama_n_ctx(context))
        self._kv_bytes = summary.kv_bytes_per_cell(_K_BYTES + _V_BYTES) * self.n_cells
        return context

    def _context_params(self) -> Any:
        params = self._low.llama_context_default_params()
        threads = self._options.threads or len(os.sched_getaffinity(0))
        params.n_threads = params.n_threads_batch = threads
        params.n_batch = params.n_ubatch = N_BATCH
        params.flash_attn_type = 1
        params.kv_unified = True
        params.swa_full = True  # a sliding window would drop the prefixes that others want to share
        params.no_perf = True
        return params

    def _open_batch(self) -> None:
        """Allocate the batch once, and look at its arrays through numpy: filling it is a few slice assignments."""
        np, n = self._np, self.n_batch
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._outputs = np.zeros(n, np.int8)
        self._counts = np.ones(n, np.int32)
        self._sequences = np.zeros(n, np.int32)
        first = self._sequences.ctypes.data
        self._sequence_ptrs = np.arange(first, first + 4 * n, 4, dtype=np.uint64)
        batch = self._low.llama_batch()
        for field, values in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._sequence_ptrs),
            ("logits", self._outputs),
        ):
            kind = dict(batch._fields_)[field]
            setattr(batch, field, ctypes.cast(values.ctypes.data, kind))
        self._batch = batch
        self._n_rows = 0

    # vocabulary

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of *text*, which is UTF-8."""
        low = self._low
        room = len(text) + 8
        for _ in range(2):
            tokens = (low.llama_token * room)()
            n = low.llama_tokenize(self._vocab, text, len(text), tokens, room, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            room = -n
        raise GenerationFailedError("llama.cpp can't tokenise the prompt; shorten it")

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return the bytes of *token*, from a table that fills as tokens are met."""
        table = self._pieces[special]
        known = table.get(token)
        if known is None:
            known = table[token] = self._render(token, special)
        return known

    def _render(self, token: int, special: bool) -> bytes:
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            n = self._low.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n
        return b""

    # the batch

    def begin_batch(self) -> None:
        """Empty the batch."""
        self._n_rows = 0

    def add_token(self, token: int, position: int, sequence: int) -> int:
        """Add one row with an output."""
        row = self._n_rows
        self._tokens[row] = token
        self._positions[row] = position
        self._sequences[row] = sequence
        self._outputs[row] = 1
        self._n_rows = row + 1
        return row

    def add_prompt(self, tokens: Sequence[int], position: int, sequence: int, *, output: bool) -> int:
        """Add consecutive rows."""
        start, end = self._n_rows, self._n_rows + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = self._np.arange(position, position + len(tokens))
        self._sequences[start:end] = sequence
        self._outputs[start:end] = 0
        self._outputs[end - 1] = output
        self._n_rows = end
        return end - 1

    def decode(self) -> Decoded:
        """Run the batch."""
        self._batch.n_tokens = self._n_rows
        code = self._low.llama_decode(self._context, self._batch)
        if code == 0:
            return Decoded.OK
        if code == 1:
            return Decoded.NO_ROOM
        event(_log, "decode.failed", level=logging.ERROR, code=code, rows=self._n_rows)
        return Decoded.FAILED

    # sampling

    def new_sampler(self, sampling: Sampling) -> LlamaSampler:
        """Return the chain that llama.cpp's own programs would build."""
        low = self._low
        grammar = self._new_grammar(sampling)
        bias = self._bias(sampling)
        if sampling.temperature <= 0 and bias and grammar is None and not _sees_history(sampling):
            np = self._np
            tokens, added = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)
            return LlamaSampler(low, None, None, greedy=True, sees_prompt=False, bias=(tokens, added))
        steps = self._steps(sampling, bias)
        if not steps:
            return LlamaSampler(low, None, grammar, greedy=True, sees_prompt=False)
        params = low.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = low.llama_sampler_chain_init(params)
        for step in steps:
            low.llama_sampler_chain_add(chain, step)
        return LlamaSampler(low, chain, grammar, greedy=False, sees_prompt=_sees_history(sampling))

    def _bias(self, sampling: Sampling) -> dict[int, float]:
        """Return what is added to the logits of which tokens."""
        bias = dict(sampling.logit_bias)
        if sampling.ignore_eos:
            bias.update(dict.fromkeys(self.eog, float("-inf")))
        return bias

    def _steps(self, sampling: Sampling, bias: dict[int, float]) -> list[Any]:
        """Return the samplers in the order of llama.cpp's ``common_sampler_init``; none where only the best counts."""
        low, steps = self._low, []
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
        if bias:
            pairs = (low.llama_logit_bias * len(bias))(*((token, value) for token, value in bias.items()))
            steps.append(low.llama_sampler_init_logit_bias(self.n_vocab, len(bias), pairs))
        if sampling.mirostat and sampling.temperature > 0:
            steps.append(low.llama_sampler_init_temp(sampling.temperature))
            if sampling.mirostat == 1:
                m = MIROSTAT_M
                steps.append(
                    low.llama_sampler_init_mirostat(self.n_vocab, seed, sampling.mirostat_tau, sampling.mirostat_eta, m)
                )
            else:
                steps.append(low.llama_sampler_init_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta))
            return steps
        if _has_penalties(sampling):
            last_n = self.n_ctx if sampling.last_n_penalty < 0 else min(sampling.last_n_penalty, self.n_ctx)
            steps.append(
                low.llama_sampler_init_penalties(
                    self.n_vocab,
                    last_n,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.dry_multiplier != 0.0:
            breakers = (ctypes.c_char_p * len(DRY_BREAKERS))(*DRY_BREAKERS)
            steps.append(
                low.llama_sampler_init_dry(
                    self._vocab,
                    sampling.dry_multiplier,
                    sampling.dry_base,
                    sampling.dry_allowed_length,
                    self.n_ctx if sampling.dry_last_n < 0 else min(sampling.dry_last_n, self.n_ctx),
                    breakers,
                    len(DRY_BREAKERS),
                )
            )
        if sampling.temperature <= 0:
            if steps:
                steps.append(low.llama_sampler_init_greedy())
            return steps
        keep = sampling.min_keep
        if sampling.top_n_sigma > 0:
            steps.append(low.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        steps.append(low.llama_sampler_init_top_k(sampling.top_k))
        steps.append(low.llama_sampler_init_typical(sampling.typical_p, keep))
        steps.append(low.llama_sampler_init_top_p(sampling.top_p, keep))
        steps.append(low.llama_sampler_init_min_p(sampling.min_p, keep))
        steps.append(low.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, keep, seed))
        steps.append(
            low.llama_sampler_init_temp_ext(sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent)
        )
        steps.append(low.llama_sampler_init_dist(seed))
        return steps

    def _new_grammar(self, sampling: Sampling) -> Any:
        text = _gbnf_of(sampling.json_schema) if sampling.json_schema else sampling.grammar
        if not text:
            return None
        with _Complaints() as complaints:
            grammar = self._low.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not grammar:
            said = complaints.first or "no rule named root, or a left recursion"
            what = "json_schema" if sampling.json_schema else "grammar"
            raise GrammarInvalidError(f"the {what} is not accepted: {said}; see GBNF in llama.cpp's grammars/README.md")
        return grammar

    def sample(self, rows: Sequence[int], samplers: Sequence[Any]) -> list[int]:
        """Return a token for each row; greedy ones are found for all rows at once, without a copy."""
        low, context = self._low, self._context
        best: list[int] = []
        if any(sampler.greedy for sampler in samplers):
            # All rows with an output, in order, are one block of memory; rows has every one of them.
            logits = self._np.ctypeslib.as_array(low.llama_get_logits(context), (len(rows), self.n_vocab))
            best = self._likeliest(logits, samplers)
        chosen = []
        for index, (row, sampler) in enumerate(zip(rows, samplers, strict=True)):
            if sampler.grammar:
                chosen.append(self._sample_by_grammar(row, sampler, best[index] if sampler.greedy else None))
            elif sampler.greedy:
                chosen.append(best[index])
            else:
                chosen.append(int(low.llama_sampler_sample(sampler.chain, context, row)))
        return chosen

    def _likeliest(self, logits: Any, samplers: Sequence[Any]) -> list[int]:
        """Return the likeliest token of each row; biases are taken off again, since others may want to read."""
        changed = []
        for row, sampler in zip(logits, samplers, strict=True):
            if sampler.bias is not None:
                tokens, added = sampler.bias
                changed.append((row, tokens, row[tokens]))
                row[tokens] += added
        best: list[int] = logits.argmax(axis=1).tolist()
        for row, tokens, before in changed:
            row[tokens] = before
        return best

    def _sample_by_grammar(self, row: int, sampler: LlamaSampler, best: int | None) -> int:
        """Sample freely, and again among what the grammar admits only if it refuses: checking one token is cheap."""
        token = best if best is not None else self._choose(row, sampler, restrict=False)
        if not self._admits(sampler, token):
            token = self._choose(row, sampler, restrict=True)
            if not self._admits(sampler, token):
                # Accepting a refused token would abort the process.
                ended = next((t for t in self.eog if self._admits(sampler, t)), None)
                if ended is None:
                    return DEAD_END
                token = ended
        self._low.llama_sampler_accept(sampler.grammar, token)
        if sampler.chain:
            self._low.llama_sampler_accept(sampler.chain, token)
        return token

    def _choose(self, row: int, sampler: LlamaSampler, *, restrict: bool) -> int:
        np, low = self._np, self._low
        logits = np.ctypeslib.as_array(low.llama_get_logits_ith(self._context, row), (self.n_vocab,))
        scratch, candidates = self._scratch, self._candidates
        scratch["id"] = np.arange(self.n_vocab, dtype=np.int32)
        scratch["logit"] = logits
        candidates.data = ctypes.cast(scratch.ctypes.data, low.llama_token_data_p)
        candidates.size = self.n_vocab
        candidates.selected = -1
        candidates.sorted = False
        if restrict:
            low.llama_sampler_apply(sampler.grammar, ctypes.byref(candidates))
        if not sampler.chain:
            return int(scratch["id"][int(scratch["logit"].argmax())])
        low.llama_sampler_apply(sampler.chain, ctypes.byref(candidates))
        return int(candidates.data[max(0, candidates.selected)].id)

    def _admits(self, sampler: LlamaSampler, token: int) -> bool:
        low = self._low
        one = low.llama_token_data(token, 1.0, 0.0)
        single = low.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        low.llama_sampler_apply(sampler.grammar, ctypes.byref(single))
        return bool(one.logit != float("-inf"))

    def alternatives(self, row: int, token: int, n: int) -> list[tuple[int, float]]:
        """Return log-probabilities before any sampler changed them, as llama.cpp's server does."""
        np = self._np
        logits = np.ctypeslib.as_array(self._low.llama_get_logits_ith(self._context, row), (self.n_vocab,))
        highest = float(logits.max())
        total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
        n = min(n, self.n_vocab)
        top = np.argpartition(logits, self.n_vocab - n)[self.n_vocab - n :]
        top = top[np.argsort(-logits[top], kind="stable")]
        return [(int(t), float(logits[t]) - total) for t in (token, *top.tolist())]

    # the KV cache

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let *target* share cells of *source*."""
        self._low.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def trim(self, sequence: int, n_tokens: int) -> None:
        """Keep the first *n_tokens* of *sequence*."""
        if not self._low.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
            self._low.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def saved_size(self, sequence: int) -> int:
        """Return the size of a copy of the cells, in bytes."""
        return int(self._low.llama_state_seq_get_size(self._context, sequence))

    def save(self, sequence: int) -> memoryview:
        """Return a copy of the cells."""
        low, size = self._low, self.saved_size(sequence)
        saved = self._np.empty(size, self._np.uint8)
        at = saved.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        n = int(low.llama_state_seq_get_data(self._context, at, size, sequence)) if size else 0
        return memoryview(saved)[:n]

    def restore(self, sequence: int, saved: memoryview) -> bool:
        """Copy the cells back, to a stretch of free ones."""
        at = self._np.frombuffer(saved, self._np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(self._low.llama_state_seq_set_data(self._context, at, len(saved), sequence))

    def can_trim(self) -> bool:
        """Tell whether a sequence can be cut in its middle."""
        low = self._low
        return not (low.llama_model_is_recurrent(self._handle) or low.llama_model_is_hybrid(self._handle))

    # embeddings

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return unit vectors: pooled if the model pools, else the last token's."""
        np, low = self._np, self._low
        context = self._embed_context()
        memory = low.llama_get_memory(context)
        if memory:
            low.llama_memory_clear(memory, False)
        total = sum(map(len, inputs))
        batch = low.llama_batch_init(total, 0, 1)
        try:
            row = 0
            for sequence, tokens in enumerate(inputs):
                for position, token in enumerate(tokens):
                    batch.token[row], batch.pos[row] = token, position
                    batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, 1
                    row += 1
            batch.n_tokens = total
            code = low.llama_decode(context, batch)
        finally:
            low.llama_batch_free(batch)
        if code != 0:
            raise GenerationFailedError(f"llama.cpp failed to embed {total} tokens (code {code}); try again")
        vectors = []
        for sequence in range(len(inputs)):
            pointer = low.llama_get_embeddings_seq(context, sequence)
            if not pointer:
                raise GenerationFailedError("llama.cpp returned no embedding for this model")
            vector = np.array(np.ctypeslib.as_array(pointer, (self.n_embd,)), dtype=np.float64)
            norm = float(np.linalg.norm(vector))
            vectors.append((vector / norm if norm else vector).tolist())
        return vectors

    def _embed_context(self) -> Any:
        """Return the context for embeddings, on the same weights; made at the first use."""
        if self._embedder is None:
            params = self._context_params()
            params.n_ctx = params.n_batch = params.n_ubatch = self.n_embed_tokens
            params.n_seq_max = EMBED_SEQUENCES
            params.embeddings = True
            params.type_k, params.type_v = _F16, _F16 if self._on_gpu else _BF16
            if self.pooling in ("", _POOLING[_POOLING_NONE]):
                params.pooling_type = _POOLING_LAST
            self._embedder = self._low.llama_init_from_model(self._handle, params) or None
            if self._embedder is None:
                raise GenerationFailedError("llama.cpp can't make a context for embeddings of this model")
        return self._embedder

    def close(self) -> None:
        """Free contexts and weights."""
        for context in (self._embedder, self._context):
            if context:
                self._low.llama_free(context)
        self._embedder = self._context = None
        if self._handle:
            self._low.llama_model_free(self._handle)
            self._handle = None


class _Complaints:
    """Collects what the library logs on this thread, since its parsers return nothing but NULL."""

    _here = threading.local()

    def __enter__(self) -> _Complaints:
        self.first = ""
        self._here.open = self
        return self

    def __exit__(self, *exc: object) -> None:
        self._here.open = None

    @classmethod
    def hear(cls, text: str) -> None:
        """Remember the first line that says something."""
        listener = getattr(cls._here, "open", None)
        if listener is not None and not listener.first:
            listener.first = text[:200]


def _to_log(level: int, text: bytes | None, _user: Any) -> None:
    line = (text or b"").decode("utf-8", "replace").strip()
    if line:
        _Complaints.hear(line)
        event(_log, "llama.log", level=logging.DEBUG, severity=level, text=line)


def _n_cells(options: LoadOptions, n_ctx_train: int) -> int:
    """Return the cells of all sequences together: every masked cell costs time at each token, so not too many."""
    n_ctx = min(options.n_ctx or n_ctx_train, n_ctx_train)
    return max(n_ctx, options.n_cells or MIN_CELLS_PER_SLOT * options.n_slots)


def _sees_history(sampling: Sampling) -> bool:
    return _has_penalties(sampling) or sampling.dry_multiplier != 0.0


def _has_penalties(sampling: Sampling) -> bool:
    values = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return sampling.last_n_penalty != 0 and values != (1.0, 0.0, 0.0)


def _gbnf_of(schema: str) -> str:
    """Return the grammar of a JSON schema; nothing is fetched for it."""
    converter = importlib.import_module("llama_cpp.llama_grammar")
    try:
        return str(converter.json_schema_to_gbnf(schema))
    except (ValueError, AssertionError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
        said = str(exc) or type(exc).__name__
        raise GrammarInvalidError(f"the JSON schema can't be followed: {said[:200]}; simplify it") from exc


def _text(read: Any, handle: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    n = read(handle, buffer, 256)
    return buffer.raw[: max(0, min(n, 255))].decode("utf-8", "replace")


def _build_of(low: Any) -> tuple[int, str]:
    """
    Return llama.cpp's build number and which library it is.

    The number is 0 unless the library says ``b1234-abcdef``: what llama-cpp-python builds has a version, and no number.
    """
    said = low.llama_version().decode() if hasattr(low, "llama_version") else ""
    number, _, commit = said.removeprefix("b").partition("-")
    if number.isdecimal():
        return int(number), commit
    parts = [("llama-cpp-python", importlib.import_module("llama_cpp").__version__), ("llama.cpp", said)]
    parts += [("ggml", _ggml_says("ggml_version")), ("ggml-commit", _ggml_says("ggml_commit"))]
    return 0, " ".join(f"{name}/{version}" for name, version in parts if version)


def _ggml_says(name: str) -> str:
    """Return the text of a function of ggml without arguments, '' if this build of it has none of that name."""
    try:
        function = getattr(importlib.import_module("llama_cpp._ggml").libggml, name)
    except (ImportError, AttributeError):
        return ""
    function.restype = ctypes.c_char_p
    return (function() or b"").decode("utf-8", "replace")
