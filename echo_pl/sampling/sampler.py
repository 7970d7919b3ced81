"""Block-diffusion decoding (METHOD.md 4): blocks left to right, inside a block up to ``denoising_steps`` forwards.

One loop for one step and many, vanilla and fused caches, one sample and a ragged batch. Knows the model only through
:mod:`echo_pl.sampling.forwards`.

Shapes: B batch, A active samples, L block size, N blocks, R response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.kv_cache import compact_row_order
from echo_pl.backbone.sharding import whole
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.sequence import BlockedContext, block_context
from echo_pl.io.clock import now
from echo_pl.sampling.bigrams import Bigrams
from echo_pl.sampling.compiled import CompiledBlocks
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.forced_prefix import ForcedPrefix
from echo_pl.sampling.forwards import CachedBlocks, NfeCounter, UncachedBlocks, cache_capacity
from echo_pl.sampling.prefill import Prefill, prefill
from echo_pl.sampling.repetition import in_loop, is_loop_check_due
from echo_pl.sampling.step import TokenPath, commit
from echo_pl.sampling.tilted import Tilt, TiltedBlocks
from echo_pl.sampling.trajectory import Recorder
from echo_pl.structs import Batch, DecodeResult, SpecialTokens


class _Progress:
    """What has been decoded, for the whole batch; put together when it is all there."""

    def __init__(self, tail_B: Tensor, block_size: int) -> None:
        self.tail_B, self._L = tail_B, block_size
        self._blocks: list[tuple[Tensor, Tensor]] = []

    def add(self, rows_A: Tensor, known: Tensor) -> None:
        """The next block of these samples: (A, L + 2) its tokens, whether eos is among them, whether they are a loop."""
        self._blocks.append((rows_A, known))

    def reports(self, eos: int, limit: int) -> dict[str, Any]:
        """The fields of the result: tokens behind the context tail and before the first eos, at most ``limit``; why they end."""
        B, L = len(self.tail_B), self._L
        tokens_BR = torch.zeros(B, len(self._blocks) * L, dtype=torch.long)
        written_B, looped_B = -self.tail_B, torch.zeros(B, dtype=torch.bool)
        for block, (rows_A, known) in enumerate(self._blocks):
            tokens_BR[rows_A, block * L : (block + 1) * L] = known[:, :L]
            written_B[rows_A] += L
            looped_B[rows_A] |= known[:, L + 1].bool()
        reports = []
        stopped_B = torch.zeros(B, dtype=torch.bool)
        for row, (tail, written) in enumerate(zip(self.tail_B.tolist(), written_B.tolist(), strict=True)):
            tokens = tokens_BR[row, tail : tail + min(written, limit)]
            at_eos = (tokens == eos).nonzero()
            stopped_B[row] = len(at_eos) > 0
            reports.append(tokens[: int(at_eos[0, 0])] if len(at_eos) else tokens)
        return {"tokens": tuple(reports), "stopped_B": stopped_B, "looped_B": looped_B, "written_B": written_B}


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
        """Bind a model to a way of decoding.

        Args:
            vlm: decodes.
            special: token ids.
            config: how.
            tilt: a student that the model leans to while it decodes.
            bigrams: chooses the tokens of a one-step decode together. What is committed when is decided without it.

        Raises:
            ValueError: a tilt without a cache, or under torch.compile; bigrams for another decode than a greedy one of one step.
        """
        if tilt is not None and (config.compile or config.kv_cache == "none"):
            raise ValueError("a tilted decode runs eagerly and with a cache: compile=false, and kv_cache vanilla or fused")
        if bigrams is not None and (config.denoising_steps != 1 or config.compile or config.token_choice.temperature):
            raise ValueError(
                "bigrams are for eager, greedy decoding in one step: denoising_steps=1, compile=false and temperature 0, "
                f"got {config.denoising_steps}, {config.compile} and {config.token_choice.temperature}"
            )
        self.vlm, self.special, self.config, self.tilt, self.bigrams = vlm, special, config, tilt, bigrams
        self._ways = config.by_step
        self._never = torch.empty(0, dtype=torch.long)

    def prefill(self, batch: Batch) -> Prefill:
        """Compute the contexts of a batch, for one or several decodings with a cache."""
        return self._prefill(self._prompt(batch), batch)

    @torch.no_grad()
    def generate(
        self, batch: Batch, recorder: Recorder | None = None, start: Prefill | None = None, prefix: ForcedPrefix | None = None
    ) -> DecodeResult:
        """Decode the contexts of a batch; its responses are not looked at.

        Args:
            batch: contexts, padded on the right, with their images.
            recorder: sees every commit.
            start: this batch's prefill by a sampler of the same layout; None: it is made here.
            prefix: blocks that the reports begin with. A forward is spent on each, in step with the rest of the batch.

        Returns:
            Tokens, counts and times.

        Raises:
            ValueError: the model has too few positions, or ``start`` too little room, fewer samples or another layout.
        """
        with whole(self.vlm), nullcontext() if self.tilt is None else whole(self.tilt.student):
            return self._generate(batch, recorder, start, prefix)

    def _generate(
        self, batch: Batch, recorder: Recorder | None, start: Prefill | None, prefix: ForcedPrefix | None
    ) -> DecodeResult:
        device, config = batch.context_ids_BP.device, self.config
        self._never = torch.tensor(self.special.never_sampled, device=device)
        self.bigrams = None if self.bigrams is None else self.bigrams.to(device)
        counter = NfeCounter(len(batch))
        prompt = self._prompt(batch)
        blocks: CachedBlocks | TiltedBlocks | UncachedBlocks
        if config.kv_cache == "none":
            if start is not None:
                raise ValueError("kv_cache=none decodes without a prefill, got one as start")
            prefill_seconds, prefilled = 0.0, now(device)
            blocks = UncachedBlocks(self.vlm, prompt, batch, config, counter)
        else:
            start = start or self._prefill(prompt, batch)
            start.check(prompt.context_ids_BP.shape[1], config.context_attention, config.block_size)
            prefill_seconds, prefilled = start.seconds, now(device)
            blocks = self._cached(prompt, batch, start, counter)
        progress = self._decode(prompt, batch.keys, blocks, recorder, prefix)
        finished = now(device)
        return DecodeResult(
            **progress.reports(self.special.eos, config.max_response_tokens),
            nfe_B=counter.nfe_B,
            kv_write_nfe_B=counter.kv_write_nfe_B,
            forwards=counter.forwards,
            prefill_seconds=prefill_seconds,
            decode_seconds=finished - prefilled,
            block_size=config.block_size,
        )

    def _prompt(self, batch: Batch) -> BlockedContext:
        return block_context(batch.context_ids_BP, batch.context_lengths_B, self.config.layout, self.special.image)

    def _cached(self, prompt: BlockedContext, batch: Batch, start: Prefill, counter: NfeCounter) -> CachedBlocks | TiltedBlocks:
        if self.config.compile:
            return CompiledBlocks(self.vlm, start, self.config, counter)
        blocks = CachedBlocks(self.vlm, start, self.config, counter)
        if self.tilt is None:
            return blocks
        student = self.tilt.student
        theirs = CachedBlocks(student, self._prefill(prompt, batch, student), self.config, NfeCounter(len(batch)))
        return TiltedBlocks(blocks, theirs, self.tilt.weight)

    def _prefill(self, prompt: BlockedContext, batch: Batch, vlm: VLM | None = None) -> Prefill:
        return prefill(
            vlm or self.vlm,
            prompt.context_ids_BP,
            prompt.context_lengths_B,
            batch,
            room=cache_capacity(self.config),
            block_size=self.config.block_size,
            context_attention=self.config.context_attention,
            logits="none",
        )

    def _decode(
        self,
        prompt: BlockedContext,
        keys: Sequence[str],
        blocks: CachedBlocks | TiltedBlocks | UncachedBlocks,
        recorder: Recorder | None,
        prefix: ForcedPrefix | None,
    ) -> _Progress:
        L, limit = self.config.block_size, self.config.max_response_tokens
        # A tail takes room in the first block, so the absolute grid may need one block more for the same response.
        N = limit // L + int(bool((prompt.tail_lengths_B > 0).any()))
        device = prompt.context_ids_BP.device
        generator = torch.Generator().manual_seed(self.config.token_choice.seed)
        order_BR = self._random_order(keys, N * L) if self.config.remasking == "random" else None
        progress = _Progress(prompt.tail_lengths_B.cpu(), L)
        history: list[Tensor] = []
        for block in range(N):
            canvas_AL, open_AL = self._open_block(prompt, blocks.rows_A, block, device)
            order_AL = None if order_BR is None else order_BR[blocks.rows_A, block * L : (block + 1) * L].to(device)
            rows_A = blocks.rows_A
            left_A = torch.full((len(rows_A),), L)
            if block == 0:
                left_A -= progress.tail_B
            if prefix is not None:
                canvas_AL, open_AL = prefix.fill(canvas_AL, open_AL, rows_A, progress.tail_B, block)
                left_A = open_AL.sum(-1).cpu()
            path = None if self.bigrams is None else self._path(history, prompt)
            final_AL = self._denoise_block(canvas_AL, open_AL, left_A, order_AL, path, block, blocks, recorder, generator)
            history.append(final_AL)
            ended_A = ((final_AL == self.special.eos) & open_AL).any(-1)
            looped_A = torch.zeros_like(ended_A)
            if is_loop_check_due(block * L, (block + 1) * L, limit):
                looped_A = in_loop(torch.cat(history, dim=1), self.config.loop_stop) & ~ended_A
                if prefix is not None:
                    looped_A &= open_AL.any(-1)  # what was given is not this decode's fault
            # The one host sync of a block whose number of steps is known: what was written, and who goes on?
            known = torch.cat([final_AL, ended_A[:, None], looped_A[:, None]], dim=1).cpu()
            progress.add(rows_A, known)
            active = known[:, L:].sum(-1) == 0
            if block + 1 == limit // L:  # only samples with a tail have another block to go
                active &= progress.tail_B[rows_A] > 0
            if block + 1 == N or not bool(active.any()):
                break
            if not bool(active.all()):
                going = compact_row_order(active).to(device)
                blocks.keep_rows(going)
                final_AL, history = final_AL[going], [past[going] for past in history]
            blocks.finish_block(final_AL, block)
        return progress

    def _path(self, history: Sequence[Tensor], prompt: BlockedContext) -> TokenPath:
        """How bigrams choose the next block's tokens, behind the blocks so far."""
        assert self.bigrams is not None
        if history:
            return partial(self.bigrams.best_path, before_A=history[-1][:, -1])
        return partial(self.bigrams.best_path, first_A=prompt.tail_lengths_B)

    def _random_order(self, keys: Sequence[str], positions: int) -> Tensor:
        """Scores (B, R) that belong to a sample and not to its batch."""
        seed = self.config.token_choice.seed
        return torch.stack([torch.rand(positions, generator=sample_generator(seed, key, 0)) for key in keys])

    def _open_block(self, prompt: BlockedContext, rows_A: Tensor, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """A block of mask tokens and which of them are open; the first block may begin with the context tail."""
        A, L = len(rows_A), self.config.block_size
        canvas_AL = torch.full((A, L), self.special.mask, dtype=torch.long, device=device)
        open_AL = torch.ones(A, L, dtype=torch.bool, device=device)
        if block == 0 and prompt.tail_ids_BL.shape[1]:
            in_tail = torch.arange(L, device=device)[None] < prompt.tail_lengths_B[:, None]
            width = prompt.tail_ids_BL.shape[1]
            canvas_AL[:, :width] = torch.where(in_tail[:, :width], prompt.tail_ids_BL, canvas_AL[:, :width])
            open_AL &= ~in_tail
        return canvas_AL, open_AL

    def _denoise_block(
        self,
        canvas_AL: Tensor,
        open_AL: Tensor,
        left_A: Tensor,
        order_AL: Tensor | None,
        path: TokenPath | None,
        block: int,
        blocks: CachedBlocks | TiltedBlocks | UncachedBlocks,
        recorder: Recorder | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Fill a block; ``left_A`` (on the CPU) is how many positions of each sample are open."""
        for step, way in enumerate(self._ways, start=1):
            # Every sample has open positions when its block begins, or its block is given and waits for the others.
            working = blocks.rows_A if step == 1 else blocks.rows_A[left_A > 0]
            if not len(working):
                break
            if isinstance(blocks, CompiledBlocks):
                done = blocks.step(canvas_AL, open_AL, order_AL, self._never, block, working, way)
            else:
                logits_ALV = blocks.denoise(canvas_AL, block, working)
                done = commit(logits_ALV, canvas_AL, open_AL, order_AL, self._never, way, generator, path)
            canvas_AL, open_AL = done.canvas_AL, done.open_AL
            if recorder is not None:
                recorder.on_commit(
                    rows_A=blocks.rows_A,
                    block=block,
                    step=step,
                    committed_AL=done.committed_AL,
                    token_AL=done.token_AL,
                    log_probs_ALV=done.prediction.log_probs_ALV,
                )
            if way.commits_vary and step < len(self._ways):
                left_A = open_AL.sum(-1).cpu()  # a host sync: whether there is another forward depends on it
            else:
                left_A = left_A - way.quota
        return canvas_AL
