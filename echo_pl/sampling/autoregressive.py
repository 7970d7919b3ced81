"""Autoregressive decoding over the same cache, with the same result record: the baseline of every speed figure.

Forwards are counted after prefill (docs/explain/method.md, "Decoding"). The first token comes from prefill, so a report of n tokens
and its eos takes n forwards, and tokens per forward are exactly 1.

Shapes: B batch, A active samples, P context.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.kv_cache import compact_row_order
from echo_pl.backbone.sharding import whole_weights
from echo_pl.backbone.vlm import VLM
from echo_pl.io.clock import now
from echo_pl.sampling.compiled import CompiledTokenStep
from echo_pl.sampling.config import LoopStop, TokenChoice
from echo_pl.sampling.forwards import NfeCounter
from echo_pl.sampling.prefill import Prefill, prefill
from echo_pl.sampling.remasking import Prediction, predict
from echo_pl.sampling.repetition import in_loop, is_loop_check_due
from echo_pl.sampling.reports import DecodedReports
from echo_pl.sampling.trajectory import Recorder
from echo_pl.structs import Batch, DecodeResult, SpecialTokens


class AutoregressiveSampler:
    """Decodes reports token by token with an AR model. After RAD a model is no longer autoregressive: use the stage-1 weights."""

    def __init__(
        self,
        vlm: VLM,
        special: SpecialTokens,
        max_response_tokens: int,
        token_choice: TokenChoice | None = None,
        loop_stop: LoopStop | None = None,
        compile: bool = False,  # named as in torch
    ) -> None:
        """Bind a model to a limit.

        Args:
            vlm: the model.
            special: the tokenizer's special ids.
            max_response_tokens: most tokens of a report, eos included.
            token_choice: greedy when None.
            loop_stop: definition of a repetition loop.
            compile: run each step as one compiled function, see :class:`echo_pl.sampling.config.DecodeConfig`.

        Raises:
            ValueError: no tokens allowed, or ``compile`` with sampled tokens.
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
        """Compute the contexts of a batch, for one or several decodes."""
        return prefill(
            self.vlm,
            batch.context_ids_BP,
            batch.context_lengths_B,
            batch,
            capacity=self.max_response_tokens,
            logits="last",
        )

    @torch.no_grad()
    def generate(self, batch: Batch, recorder: Recorder | None = None, start: Prefill | None = None) -> DecodeResult:
        """Decode the contexts of a batch; see :meth:`echo_pl.sampling.sampler.BlockSampler.generate`."""
        device = batch.context_ids_BP.device
        with whole_weights(self.vlm):
            start = start or self.prefill(batch)
            if start.logits_BV is None:
                raise ValueError("this prefill has no logits after its contexts: prefill with the autoregressive sampler")
            start.check(batch.context_ids_BP.shape[1], "causal", 1)
            started = now(device)
            decode = _Decode(self, start, recorder)
            decode.run(start.logits_BV.clone())  # a decode masks the ids that are never sampled in its logits
            seconds = now(device) - started
        return decode.reports.result(self.special.eos, self.max_response_tokens, decode.counter, start.seconds, seconds)


class _TokenStep(Protocol):
    """One forward of one token per active sample."""

    def __call__(self, token_A1: Tensor, position_A: Tensor) -> Prediction: ...

    def keep_rows(self, kept_rows_A: Tensor) -> None: ...


class _EagerTokenStep:
    """The forward over a cache of growing length."""

    def __init__(
        self, vlm: VLM, start: Prefill, never_sampled: Tensor, choice: TokenChoice, generator: torch.Generator | None
    ) -> None:
        self.vlm, self.cache, self.keep_rows = vlm, start.cache, start.cache.keep_rows
        self._choose = (never_sampled, choice, generator)

    def __call__(self, token_A1: Tensor, position_A: Tensor) -> Prediction:
        groups = (QueryGroup(1, self.cache.length + 1),)
        logits_A1V = self.vlm.decode_step(token_A1, position_A, groups, self.cache, select=1)
        self.cache.keep(1)
        return predict(logits_A1V, *self._choose)


class _Decode:
    """State of one batch while it is decoded."""

    def __init__(self, sampler: AutoregressiveSampler, start: Prefill, recorder: Recorder | None) -> None:
        self.special, self.limit, self.loop_stop = sampler.special, sampler.max_response_tokens, sampler.loop_stop
        self.recorder, self.choice = recorder, sampler.token_choice
        B, self.device = len(start.next_position_B), start.next_position_B.device
        self.next_position_A, self.rows_A = start.next_position_B, torch.arange(B)
        self.counter, self.reports = NfeCounter(B), DecodedReports(torch.zeros(B, dtype=torch.long), 1)
        self.never_sampled = torch.tensor(self.special.never_sampled, device=self.device)
        self.generator = torch.Generator().manual_seed(self.choice.seed) if self.choice.temperature else None
        start.rewind(self.limit)
        self.step: _TokenStep
        if sampler.compile:
            self.step = CompiledTokenStep(sampler.vlm, start, self.never_sampled, self.choice)
        else:
            self.step = _EagerTokenStep(sampler.vlm, start, self.never_sampled, self.choice, self.generator)

    def run(self, logits_AV: Tensor) -> None:
        """Decode token by token, until every sample has stopped or the limit is reached."""
        history: list[Tensor] = []
        prediction = predict(logits_AV[:, None], self.never_sampled, self.choice, self.generator)
        for place in range(self.limit):
            token_A1 = prediction.token_AL
            if self.recorder is not None:
                self.recorder.on_commit(
                    rows_A=self.rows_A,
                    block=place,
                    step=1,
                    committed_AL=torch.ones_like(token_A1, dtype=torch.bool),
                    token_AL=token_A1,
                    log_probs_ALV=prediction.log_probs_ALV,
                )
            history.append(token_A1)
            continues_A = self._append(token_A1, history, place)
            if place + 1 == self.limit or not bool(continues_A.any()):
                return
            if not bool(continues_A.all()):
                kept_rows = compact_row_order(continues_A).to(self.device)
                self.rows_A, self.next_position_A = self.rows_A[kept_rows.cpu()], self.next_position_A[kept_rows]
                self.step.keep_rows(kept_rows)
                token_A1, history = token_A1[kept_rows], [past[kept_rows] for past in history]
            self.counter.count(self.rows_A)
            prediction = self.step(token_A1, self.next_position_A + place)

    def _append(self, token_A1: Tensor, history: list[Tensor], place: int) -> Tensor:
        """Append one token to each active report; return which samples continue (bool (A,), on the CPU)."""
        token, looped = token_A1.cpu(), None
        continues_A = token[:, 0] != self.special.eos
        if is_loop_check_due(place, place + 1, self.limit):
            looped = in_loop(torch.cat(history, dim=1), self.loop_stop).cpu() & continues_A
            continues_A &= ~looped
        self.reports.add(self.rows_A, token, looped)
        return continues_A
