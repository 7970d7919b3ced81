"""Greedy autoregressive decoding over the same cache, with the same result record: the baseline of every speed figure.

nfe is what METHOD.md 4 says: forwards after prefill. The first token comes out of prefill, so a report of n tokens and its eos
takes n forwards, and tokens per forward are exactly 1.

Shapes: B batch, A active samples, P context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.kv_cache import BlockKVCache, compact_row_order
from echo_pl.backbone.sharding import whole
from echo_pl.backbone.static_cache import StaticCache
from echo_pl.backbone.vlm import VLM
from echo_pl.io.clock import now
from echo_pl.sampling.config import LoopStop, TokenChoice
from echo_pl.sampling.forwards import NfeCounter
from echo_pl.sampling.prefill import Prefill, prefill
from echo_pl.sampling.remasking import Prediction, predict
from echo_pl.sampling.repetition import in_loop, is_loop_check_due
from echo_pl.sampling.step import compiled, fixed_token, static_parts
from echo_pl.sampling.trajectory import Recorder
from echo_pl.structs import Batch, DecodeResult, SpecialTokens


class AutoregressiveSampler:
    """Decodes reports token by token with an AR model. A RAD model is no AR model any more: give it the stage-1 weights."""

    def __init__(
        self,
        vlm: VLM,
        special: SpecialTokens,
        max_response_tokens: int,
        token_choice: TokenChoice | None = None,
        loop_stop: LoopStop | None = None,
        compile: bool = False,  # the name that torch gives it
    ) -> None:
        """Bind a model to a limit (tokens, eos included).

        Args:
            vlm: the model.
            special: the tokenizer's special ids.
            max_response_tokens: the limit.
            token_choice: greedy when None.
            loop_stop: what a repetition loop is.
            compile: each step as one compiled function, as in :class:`echo_pl.sampling.config.DecodeConfig`.

        Raises:
            ValueError: no tokens allowed, or ``compile`` with drawn tokens.
        """
        if max_response_tokens < 1:
            raise ValueError(f"max_response_tokens must be at least 1, got {max_response_tokens}")
        self.vlm, self.special, self.max_response_tokens = vlm, special, max_response_tokens
        self.token_choice = token_choice or TokenChoice()
        self.loop_stop = loop_stop or LoopStop()
        if compile and self.token_choice.temperature:
            raise ValueError(f"compile=true needs greedy tokens, got temperature {self.token_choice.temperature}")
        self.compile = compile

    def prefill(self, batch: Batch) -> Prefill:
        """Compute the contexts of a batch, for one or several decodings."""
        return prefill(
            self.vlm,
            batch.context_ids_BP,
            batch.context_lengths_B,
            batch,
            room=self.max_response_tokens,
            logits="last",
        )

    @torch.no_grad()
    def generate(self, batch: Batch, recorder: Recorder | None = None, start: Prefill | None = None) -> DecodeResult:
        """Decode the contexts of a batch; see :meth:`echo_pl.sampling.sampler.BlockSampler.generate`."""
        with whole(self.vlm):
            return self._generate(batch, recorder, start)

    def _generate(self, batch: Batch, recorder: Recorder | None, start: Prefill | None) -> DecodeResult:
        device = batch.context_ids_BP.device
        start = start or self.prefill(batch)
        if start.logits_BV is None:
            raise ValueError("this prefill has no logits behind its contexts: prefill with the autoregressive sampler")
        start.check(batch.context_ids_BP.shape[1], "causal", 1)
        prefilled = now(device)
        decode = _Decode(self, start)
        decode.run(start.logits_BV.clone(), recorder)  # a decode marks what is never sampled in its logits
        finished = now(device)
        counter = decode.counter
        return DecodeResult(
            **decode.reports(),
            nfe_B=counter.nfe_B,
            kv_write_nfe_B=counter.kv_write_nfe_B,
            forwards=counter.forwards,
            prefill_seconds=start.seconds,
            decode_seconds=finished - prefilled,
            block_size=1,
        )


class _Decode:
    """State of one batch while it is decoded."""

    def __init__(self, sampler: AutoregressiveSampler, start: Prefill) -> None:
        self.s = sampler
        self.behind_A = start.behind_B
        self.cache: BlockKVCache | StaticCache = start.rewind(sampler.max_response_tokens)
        if sampler.compile:
            self._parts = decoder, _ = static_parts(sampler.vlm)
            self.cache = StaticCache(start.cache, 1, decoder.heads // decoder.key_heads, sampler.vlm.dtype)
            decoder.prepare(self.cache.capacity)
        B, self.device = len(start.behind_B), start.behind_B.device
        self.counter = NfeCounter(B)
        self.rows_A = torch.arange(B)
        self.looped_B = torch.zeros(B, dtype=torch.bool)
        self._written: list[tuple[Tensor, Tensor]] = []
        self.never = torch.tensor(sampler.special.never_sampled, device=self.device)
        self.generator = torch.Generator().manual_seed(sampler.token_choice.seed)

    def run(self, logits_AV: Tensor, recorder: Recorder | None) -> None:
        """Token by token, until every sample has stopped or the limit is reached."""
        history: list[Tensor] = []
        prediction = predict(logits_AV[:, None], self.never, self.s.token_choice, self.generator)
        for place in range(self.s.max_response_tokens):
            token_A1 = prediction.token_AL
            if recorder is not None:
                recorder.on_commit(
                    rows_A=self.rows_A,
                    block=place,
                    step=1,
                    committed_AL=torch.ones_like(token_A1, dtype=torch.bool),
                    token_AL=token_A1,
                    log_probs_ALV=prediction.log_probs_ALV,
                )
            history.append(token_A1)
            going_A = self._take(token_A1, history, place)
            if place + 1 == self.s.max_response_tokens or not bool(going_A.any()):
                return
            if not bool(going_A.all()):
                going = compact_row_order(going_A).to(self.device)
                self.rows_A, self.behind_A = self.rows_A[going.cpu()], self.behind_A[going]
                self.cache.keep_rows(going)
                token_A1, history = token_A1[going], [past[going] for past in history]
            prediction = self._step(token_A1, place)

    def _take(self, token_A1: Tensor, history: list[Tensor], place: int) -> Tensor:
        """Book one token per active sample; return who goes on (bool (A,), on the CPU)."""
        token = token_A1[:, 0].cpu()
        self._written.append((self.rows_A, token))
        going = token != self.s.special.eos
        if is_loop_check_due(place, place + 1, self.s.max_response_tokens):
            looped = in_loop(torch.cat(history, dim=1), self.s.loop_stop).cpu() & going
            self.looped_B[self.rows_A] |= looped
            going &= ~looped
        return going

    def reports(self) -> dict[str, Any]:
        """The fields of the result, put together when it is all there."""
        B = len(self.looped_B)
        tokens_BR = torch.zeros(B, len(self._written), dtype=torch.long)
        written_B, stopped_B = torch.zeros(B, dtype=torch.long), torch.zeros(B, dtype=torch.bool)
        for place, (rows_A, token_A) in enumerate(self._written):
            tokens_BR[rows_A, place] = token_A
            written_B[rows_A] += 1
            stopped_B[rows_A] |= token_A == self.s.special.eos
        lengths = (written_B - stopped_B.long()).tolist()
        tokens = tuple(tokens_BR[row, :length] for row, length in enumerate(lengths))
        return {"tokens": tokens, "stopped_B": stopped_B, "looped_B": self.looped_B, "written_B": written_B}

    def _step(self, token_A1: Tensor, place: int) -> Prediction:
        """One forward of one token per active sample, and what it predicts."""
        self.counter.count(self.rows_A)
        first_A = self.behind_A + place
        if isinstance(self.cache, StaticCache):
            step = compiled(fixed_token)
            token_A1, logits_A1V = step(
                *self._parts, self.cache, self.cache.groups(1), token_A1, first_A, self.never, self.s.token_choice
            )
            self.cache.keep(1)
            return Prediction(token_AL=token_A1, logits_ALV=logits_A1V)
        groups = (QueryGroup(1, self.cache.length + 1),)
        logits_A1V = self.s.vlm.decode_step(token_A1, first_A, groups, self.cache, select=1)
        self.cache.keep(1)
        return predict(logits_A1V, self.never, self.s.token_choice, self.generator)
