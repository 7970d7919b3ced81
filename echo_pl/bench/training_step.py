"""A training step of the language model on random studies: forward, backward, clipping, AdamW.

Full duplication is the layout of earlier work, ``[c | xt | c' | x0]``: the whole sequence noisy (its context unharmed) and the
whole sequence clean, under a dense mask. Its logits on the response are RAD's.

Shapes: B batch, P context, R response in whole blocks, K noisy copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.bench.models import BenchModel, text_prompts
from echo_pl.diffusion.block_mask import CLEAN, CONTEXT, FIRST_NOISY, AttentionRule, allowed, concatenate
from echo_pl.diffusion.losses import divergence_rows, masked_diffusion_loss, next_token_loss
from echo_pl.diffusion.noise import NoiseConfig, draw_noise
from echo_pl.diffusion.sequence import (
    BlockedResponse,
    BlockLayout,
    TrainingSequence,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.io.memory import memory_gb, peak_memory_gb, restart_peak_memory, return_free_memory
from echo_pl.structs import Batch

_WORDS_BESIDE_AN_IMAGE = 10


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One way of training, and the sizes of its batch."""

    layout: Literal["autoregressive", "full_duplication", "rad", "distillation"]
    """``distillation``: RAD's, all of the response masked, with whole distributions as targets (stage 3)."""
    context: int
    response: int
    batch_size: int
    block_size: int
    precision: Literal["32-true", "bf16-mixed"]
    attention: Literal["sdpa", "split"] = "split"
    noise_copies: int = 1
    vision: Literal["none", "pixels", "stored"] = "none"
    checkpointing: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one study's sequence."""
        if self.layout == "full_duplication":
            return 2 * (self.context + self.response)
        return self.context + self.response * (1 if self.layout == "autoregressive" else self.noise_copies + 1)


def memory_of(
    step: TrainingStep, model: BenchModel, device: torch.device, place: Callable[[VLM], VLM] | None = None
) -> float | None:
    """Peak memory of a step in MB: weights, gradients, optimizer states and activations of this step alone.

    None where the system does not report it. ``place`` may shard the model.
    """
    return_free_memory()
    before = memory_gb(device)
    run = prepare_step(step, model, device, place)
    run()  # makes the optimizer's states
    if before is None or not restart_peak_memory(device):
        return None
    run()
    return 1e3 * (peak_memory_gb(device) - before)


def prepare_step(
    step: TrainingStep, model: BenchModel, device: torch.device, place: Callable[[VLM], VLM] | None = None
) -> Callable[[], int]:
    """Build model, batch and optimizer; the result carries out a step and returns the number of supervised positions."""
    vlm = model.trainable(step.attention).to(device)
    vlm.freeze_vision()
    if step.checkpointing:
        vlm.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if place is not None:
        vlm = place(vlm)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=step.precision == "bf16-mixed")
    batch = _random_batch(step, model).to(device)
    if step.vision == "stored":
        with torch.no_grad(), autocast:
            features = vlm.vision_features(batch.pixel_values, batch.image_grid_thw)
        batch = replace(
            batch, pixel_values=batch.pixel_values[:0], image_features=features, vision_fingerprint=vlm.vision_fingerprint
        )
    parameters = [p for p in vlm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)

    def run() -> int:
        with autocast:
            loss, supervised = step_loss(vlm, step, batch, model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return supervised

    return run


def _random_batch(step: TrainingStep, model: BenchModel) -> Batch:
    """Random studies; with a vision tower the context is one image and a few words."""
    B, R = step.batch_size, step.response
    prompts = text_prompts(B, step.context, model.vocabulary, torch.device("cpu"))
    ids_BR = torch.randint(1, model.vocabulary - 3, (B, R), generator=torch.Generator().manual_seed(1))
    batch = replace(prompts, response_ids_BR=ids_BR, response_lengths_B=torch.full((B,), R))
    if step.vision == "none":
        return batch
    tokens = step.context - _WORDS_BESIDE_AN_IMAGE
    rows = max(n for n in range(1, int(tokens**0.5) + 1) if tokens % n == 0)
    ids_BP = batch.context_ids_BP.clone()
    ids_BP[:, 1 : 1 + tokens] = model.special.image
    grid = torch.tensor([[1, 2 * rows, 2 * tokens // rows]]).repeat(B, 1)
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(2))
    return replace(batch, context_ids_BP=ids_BP, image_grid_thw=grid, pixel_values=pixels)


def step_loss(vlm: VLM, step: TrainingStep, batch: Batch, model: BenchModel) -> tuple[Tensor, int]:
    """Loss of a batch, and the number of positions that it is a mean over."""
    P, R, special = step.context, step.response, model.special
    if step.layout == "autoregressive":
        sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
        predicts_BT = torch.zeros_like(sequence.input_ids_BT, dtype=torch.bool)
        predicts_BT[:, P - 1 : -1] = True
        logits_MV = _logits(vlm, batch, sequence, predicts_BT)
        return next_token_loss(logits_MV, batch.response_ids_BR.flatten()), len(logits_MV)
    layout = BlockLayout(block_size=step.block_size)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, special.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, special)
    if step.layout == "distillation":
        masked_BKR = blocked.maskable_BR[:, None]
        sequence = rad_sequence(blocked, torch.where(masked_BKR, vlm.special.mask, blocked.clean_ids_BR[:, None]))
        rows, V = int(masked_BKR.sum()), len(vlm.network.lm_head.weight)
        even_MV = torch.full((rows, V), 1 / V, device=vlm.device)  # the teacher's distributions
        logits_MV = _logits(vlm, batch, sequence, sequence.noisy_positions(masked_BKR))
        return divergence_rows(logits_MV, even_MV, "forward_kl", 1.0).mean(), rows
    noise = draw_noise(NoiseConfig(noise_copies=step.noise_copies), batch.keys, 0, blocked.maskable_BR, step.block_size)
    masked_BKR = noise.masked_BKR
    clean_BKR = blocked.clean_ids_BR[:, None].expand_as(masked_BKR)
    noisy_BKR = torch.where(masked_BKR, special.mask, clean_BKR)
    sequence = rad_sequence(blocked, noisy_BKR)
    if step.layout == "rad":
        logits_MV = _logits(vlm, batch, sequence, sequence.noisy_positions(masked_BKR))
    else:
        ids, rule = full_duplication(blocked, noisy_BKR[:, 0])
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        chosen[:, P : P + R] = masked_BKR[:, 0]
        logits_MV = vlm(ids, full_duplication_positions(vlm, sequence, batch.image_grid_thw), rule, select=chosen)
    loss = masked_diffusion_loss(logits_MV, clean_BKR[masked_BKR], noise.t_BKR[masked_BKR], "elbo", masked_BKR.numel())
    return loss, len(logits_MV)


def _logits(vlm: VLM, batch: Batch, sequence: TrainingSequence, select_BT: Tensor) -> Tensor:
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    return vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images, select=select_BT)


@dataclass(frozen=True, kw_only=True)
class FullDuplicationRule(AttentionRule):
    """Each half has its own context; the response attends to the clean one. Dense view only: ``sdpa``."""

    half: int
    """P + R."""

    @cached_property
    def dense_BQK(self) -> Tensor:
        """Bool (B or 1, Q, K)."""
        mask = allowed(self.query, self.key, self.context_attention).clone()
        # The rule's context attention holds within a half; a noisy response token attends to no noisy context.
        in_context = self.key.copy_BT == CONTEXT
        first_half = torch.arange(len(self.key), device=in_context.device) < self.half
        context_query, context_key = in_context[:, :, None], in_context[:, None, :]
        other_half = first_half[:, None] != first_half[None, :]
        return mask & ~(context_query & context_key & other_half) & ~(~context_query & context_key & first_half[None, None, :])


def full_duplication(blocked: BlockedResponse, noisy_ids_BR: Tensor) -> tuple[Tensor, FullDuplicationRule]:
    """Token ids (B, 2 (P + R)) and their rule, for contexts of one length on the response grid.

    Raises:
        ValueError: ragged contexts, or the absolute grid.
    """
    context_BP, clean_BR = blocked.prompt.context_ids_BP, blocked.clean_ids_BR
    P, R = context_BP.shape[1], clean_BR.shape[1]
    if bool((blocked.prompt.context_lengths_B != P).any()) or blocked.layout.grid != "response":
        raise ValueError("full duplication is built for contexts of one length on the response grid")
    rad = rad_sequence(blocked, noisy_ids_BR[:, None])
    context, noisy, clean = rad.rule.key.slice(0, P), rad.rule.key.slice(P, P + R), rad.rule.key.slice(P + R, P + 2 * R)
    assert (int(noisy.copy_BT[0, 0]), int(clean.copy_BT[0, 0])) == (FIRST_NOISY, CLEAN)
    coords = concatenate(context, noisy, context, clean)
    rule = FullDuplicationRule(query=coords, key=coords, context_attention=blocked.layout.context_attention, half=P + R)
    return torch.cat([context_BP, noisy_ids_BR, context_BP, clean_BR], dim=1), rule


def full_duplication_positions(vlm: VLM, sequence: TrainingSequence, grid_thw: Tensor) -> Tensor:
    """(3, B, 2 (P + R)): positions of the RAD sequence of the same response, for both halves."""
    P, R = sequence.context_width, sequence.response_width
    half = vlm.sequence_positions(sequence, grid_thw)[:, :, : P + R]
    return torch.cat([half, half], dim=2)
