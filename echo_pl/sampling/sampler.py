"""Block-diffusion decoding (docs/explain/method.md, "Decoding"): one loop for one step and many, with every kind of cache.

Shapes: B batch, A active samples, L block size, N blocks, R response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from echo_pl.backbone.kv_cache import compact_row_order
from echo_pl.backbone.sharding import whole_weights
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.sequence import BlockedContext, block_context
from echo_pl.io.clock import now
from echo_pl.sampling.bigrams import Bigrams
from echo_pl.sampling.commit import BlockState, CommitRule, TokenPath
from echo_pl.sampling.compiled import CompiledForwards
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.forced_prefix import ForcedPrefix
from echo_pl.sampling.forwards import BlockForwards, CachedForwards, NfeCounter, UncachedForwards, cache_capacity
from echo_pl.sampling.prefill import Prefill, prefill
from echo_pl.sampling.repetition import in_loop, is_loop_check_due
from echo_pl.sampling.reports import DecodedReports
from echo_pl.sampling.tilted import Tilt, TiltedForwards
from echo_pl.sampling.trajectory import Recorder
from echo_pl.structs import Batch, DecodeResult, SpecialTokens


class BlockSampler:
    """Decodes reports block by block with a diffusion model."""

    def __init__(
        self,
        vlm: VLM,
        special: SpecialTokens,
        config: DecodeConfig,
        tilt: Tilt | None = None,
        bigrams: Bigrams | None = None,
    ) -> None:
        """Bind a model to a decode configuration.

        Args:
            vlm: decodes.
            special: token ids.
            config: the decode.
            tilt: a student that the model is tilted towards while it decodes.
            bigrams: chooses the tokens of a one-step decode jointly. It does not change when a position is committed.

        Raises:
            ValueError: a tilt without a cache or with torch.compile; bigrams with anything but a greedy, eager decode of one step.
        """
        if tilt is not None and (config.compile or config.kv_cache == "none"):
            raise ValueError("a tilted decode runs eagerly and with a cache: compile=false, and kv_cache vanilla or fused")
        if bigrams is not None and (config.denoising_steps != 1 or config.compile or config.token_choice.temperature):
            raise ValueError(
                "bigrams are for eager, greedy decoding in one step: denoising_steps=1, compile=false and temperature 0, "
                f"got {config.denoising_steps}, {config.compile} and {config.token_choice.temperature}"
            )
        self.vlm, self.special, self.config, self.tilt, self.bigrams = vlm, special, config, tilt, bigrams

    def prefill(self, batch: Batch) -> Prefill:
        """Compute the contexts of a batch, for one or several decodes with a cache."""
        return self._prefill(self._prompt(batch), batch, self.vlm)

    @torch.no_grad()
    def generate(
        self, batch: Batch, recorder: Recorder | None = None, start: Prefill | None = None, prefix: ForcedPrefix | None = None
    ) -> DecodeResult:
        """Decode the contexts of a batch; its responses are not read.

        Args:
            batch: contexts, padded on the right, with their images.
            recorder: receives every commit.
            start: prefill of this batch by a sampler of the same layout; None: it is computed here.
            prefix: blocks that the reports begin with. One forward is spent on each, in step with the rest of the batch.

        Returns:
            Tokens, counts and times.

        Raises:
            ValueError: the model has too few positions; ``start`` has too little capacity, fewer samples or another layout.
        """
        device, counter = batch.context_ids_BP.device, NfeCounter(len(batch))
        with whole_weights(self.vlm), nullcontext() if self.tilt is None else whole_weights(self.tilt.student):
            prompt = self._prompt(batch)
            start = self._start(prompt, batch, start)
            started = now(device)
            decode = _Decode(self, prompt, batch.keys, self._forwards(prompt, batch, start, counter), recorder, prefix)
            decode.run()
            seconds = now(device) - started
        limit, prefill_seconds = self.config.max_response_tokens, 0.0 if start is None else start.seconds
        return decode.reports.result(self.special.eos, limit, counter, prefill_seconds, seconds)

    def _prompt(self, batch: Batch) -> BlockedContext:
        return block_context(batch.context_ids_BP, batch.context_lengths_B, self.config.layout, self.special.image)

    def _start(self, prompt: BlockedContext, batch: Batch, start: Prefill | None) -> Prefill | None:
        """The prefill to decode from; None without a cache."""
        if self.config.kv_cache == "none":
            if start is not None:
                raise ValueError("kv_cache=none decodes without a prefill, got one as start")
            return None
        start = start or self._prefill(prompt, batch, self.vlm)
        start.check(prompt.context_ids_BP.shape[1], self.config.context_attention, self.config.block_size)
        return start

    def _forwards(self, prompt: BlockedContext, batch: Batch, start: Prefill | None, counter: NfeCounter) -> BlockForwards:
        if start is None:
            return UncachedForwards(self.vlm, prompt, batch, self.config, counter)
        if self.config.compile:
            return CompiledForwards(self.vlm, start, self.config, counter)
        forwards = CachedForwards(self.vlm, start, self.config, counter)
        if self.tilt is None:
            return forwards
        student = self.tilt.student
        student_start = self._prefill(prompt, batch, student)
        student_forwards = CachedForwards(student, student_start, self.config, NfeCounter(len(batch)))
        return TiltedForwards(forwards, student_forwards, self.tilt.weight)

    def _prefill(self, prompt: BlockedContext, batch: Batch, vlm: VLM) -> Prefill:
        return prefill(
            vlm,
            prompt.context_ids_BP,
            prompt.context_lengths_B,
            batch,
            capacity=cache_capacity(self.config),
            block_size=self.config.block_size,
            context_attention=self.config.context_attention,
            logits="none",
        )


class _Block(NamedTuple):
    """A block before its first forward."""

    number: int
    state: BlockState
    n_masked_A: Tensor
    """Masked positions of each sample, on the CPU."""


class _Decode:
    """State of one batch while it is decoded."""

    def __init__(
        self,
        sampler: BlockSampler,
        prompt: BlockedContext,
        keys: Sequence[str],
        forwards: BlockForwards,
        recorder: Recorder | None,
        prefix: ForcedPrefix | None,
    ) -> None:
        self.config, self.special, self.prompt, self.prefix = sampler.config, sampler.special, prompt, prefix
        self.forwards, self.recorder = forwards, recorder
        self.device = prompt.context_ids_BP.device
        self.bigrams = None if sampler.bigrams is None else sampler.bigrams.to(self.device)
        self.reports = DecodedReports(prompt.tail_lengths_B.cpu(), self.config.block_size)
        self.history: list[Tensor] = []
        """Final ids (A, L) of the blocks so far, of the active samples."""
        # The context tail takes part of the first block, so the absolute grid may need one block more for the same response.
        self.n_response_blocks = self.config.max_response_tokens // self.config.block_size
        self.n_blocks = self.n_response_blocks + int(bool((prompt.tail_lengths_B > 0).any()))
        choice = self.config.token_choice
        never_sampled = torch.tensor(self.special.never_sampled, device=self.device)
        generator = torch.Generator().manual_seed(choice.seed) if choice.temperature else None
        self.rules = [CommitRule(config, never_sampled, generator) for config in self.config.step_configs]
        self.order_BR: Tensor | None = None
        if self.config.remasking == "random":  # an order belongs to a sample and not to its batch
            places = self.n_blocks * self.config.block_size
            self.order_BR = torch.stack([torch.rand(places, generator=sample_generator(choice.seed, key, 0)) for key in keys])

    def run(self) -> None:
        """Decode, block after block; see docs/explain/method.md, "Decoding"."""
        # 1. Prepare once: the contexts are in the cache ("Block KV cache"), done by the caller.
        for number in range(self.n_blocks):
            # 2. Open: a block of mask tokens ("blocks left to right").
            block = self.open_block(number)
            # 3. Denoise: forward, choose tokens, commit positions ("inside a block up to denoising_steps forwards; a commit rule").
            block_ids_AL = self.denoise(block)
            # 4. Append: the block joins the reports ("stop at the block with the first eos, or at a repetition loop").
            continues_A = self.append_block(block, block_ids_AL)
            if number + 1 == self.n_blocks or not bool(continues_A.any()):
                return
            # 5. Finish: keys and values of the block enter the cache, now ("vanilla") or with the next forward ("fused").
            self.finish(number, block_ids_AL, continues_A)

    def open_block(self, number: int) -> _Block:
        """A block of mask tokens; the first block may begin with the context tail, and any with forced tokens."""
        rows_A, L, tail_ids_BL = self.forwards.rows_A, self.config.block_size, self.prompt.tail_ids_BL
        block_ids_AL = torch.full((len(rows_A), L), self.special.mask, dtype=torch.long, device=self.device)
        is_masked_AL = torch.ones(len(rows_A), L, dtype=torch.bool, device=self.device)
        n_masked_A = torch.full((len(rows_A),), L)
        if number == 0:
            n_masked_A -= self.reports.tail_B
            if width := tail_ids_BL.shape[1]:
                in_tail = torch.arange(L, device=self.device)[None] < self.prompt.tail_lengths_B[:, None]
                block_ids_AL[:, :width] = torch.where(in_tail[:, :width], tail_ids_BL, block_ids_AL[:, :width])
                is_masked_AL &= ~in_tail
        if self.prefix is not None:
            block_ids_AL, is_masked_AL = self.prefix.fill(block_ids_AL, is_masked_AL, rows_A, self.reports.tail_B, number)
            n_masked_A = is_masked_AL.sum(-1).cpu()
        order_AL = None if self.order_BR is None else self.order_BR[rows_A, number * L : (number + 1) * L].to(self.device)
        return _Block(number, BlockState(block_ids_AL, is_masked_AL, order_AL), n_masked_A)

    def denoise(self, block: _Block) -> Tensor:
        """Final ids (A, L) of a block; each step commits tokens in :func:`echo_pl.sampling.commit.commit`."""
        number, state, n_masked_A = block
        path = self._path()
        for step, rule in enumerate(self.rules, start=1):
            # In the first step every sample takes part, also one whose block is forced and waits for the others.
            working_rows = self.forwards.rows_A if step == 1 else self.forwards.rows_A[n_masked_A > 0]
            if not len(working_rows):
                break
            done = self.forwards.step(number, state, working_rows, rule._replace(path=path))
            state = done.state
            if self.recorder is not None:
                self.recorder.on_commit(
                    rows_A=self.forwards.rows_A,
                    block=number,
                    step=step,
                    committed_AL=done.committed_AL,
                    token_AL=done.token_AL,
                    log_probs_ALV=done.log_probs_ALV,
                )
            if rule.config.commits_vary and step < len(self.rules):
                n_masked_A = state.is_masked_AL.sum(-1).cpu()  # a host sync: it decides if there is another forward
            else:
                n_masked_A = n_masked_A - rule.config.quota
        return state.block_ids_AL

    def _path(self) -> TokenPath | None:
        """Joint choice of the next block's tokens by bigrams, given the blocks so far."""
        if self.bigrams is None:
            return None
        if self.history:
            return partial(self.bigrams.best_path, before_A=self.history[-1][:, -1])
        return partial(self.bigrams.best_path, first_A=self.prompt.tail_lengths_B)

    def append_block(self, block: _Block, block_ids_AL: Tensor) -> Tensor:
        """Append a block to the reports; return which samples continue (bool (A,), on the CPU)."""
        L, rows_A, was_masked_AL = self.config.block_size, self.forwards.rows_A, block.state.is_masked_AL
        self.history.append(block_ids_AL)
        ended_A = ((block_ids_AL == self.special.eos) & was_masked_AL).any(-1)
        looped_A = torch.zeros_like(ended_A)
        if is_loop_check_due(block.number * L, (block.number + 1) * L, self.config.max_response_tokens):
            looped_A = in_loop(torch.cat(self.history, dim=1), self.config.loop_stop) & ~ended_A
            if self.prefix is not None:
                looped_A &= was_masked_AL.any(-1)  # a loop in forced tokens is no failure of this decode
        # The only host sync of a block whose number of steps is fixed.
        block_stats = torch.cat([block_ids_AL, ended_A[:, None], looped_A[:, None]], dim=1).cpu()
        self.reports.add(rows_A, block_stats[:, :L], block_stats[:, L + 1].bool())
        continues_A = block_stats[:, L:].sum(-1) == 0
        if block.number + 1 == self.n_response_blocks:  # only samples with a tail have another block
            continues_A &= self.reports.tail_B[rows_A] > 0
        return continues_A

    def finish(self, number: int, block_ids_AL: Tensor, continues_A: Tensor) -> None:
        """Drop samples that have ended, and make the block visible to the next ones."""
        if not bool(continues_A.all()):
            kept_rows = compact_row_order(continues_A).to(self.device)
            self.forwards.keep_rows(kept_rows)
            block_ids_AL, self.history = block_ids_AL[kept_rows], [past[kept_rows] for past in self.history]
        self.forwards.finish_block(number, block_ids_AL)
