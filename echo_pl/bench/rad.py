"""Cost of a training step: autoregressive, full duplication as in earlier work, and RAD in all its forms.

A step is what the trainer does with one batch: forward, backward, clipping, AdamW. All variants of a model and context take turns.
The language model is timed by itself, on text; the two rows with a vision tower show what stored features save.

Shapes: B batch, P context, R response, K noisy copies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.bench.full_duplication import full_duplication, full_duplication_positions
from echo_pl.bench.models import BenchModel, text_prompts
from echo_pl.bench.roofline import ModelShape
from echo_pl.diffusion.losses import divergence_rows, masked_diffusion_loss, next_token_loss
from echo_pl.diffusion.noise import NoiseConfig, draw_noise
from echo_pl.diffusion.sequence import (
    BlockedResponse,
    BlockLayout,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.io.clock import now
from echo_pl.io.memory import memory_gb, peak_memory_gb, restart_peak_memory, return_free_memory
from echo_pl.structs import Batch

Row = dict[str, Any]
"""One variant of one model at one context, as in ``outputs/bench/rad.json``."""
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of training on a study."""

    name: str
    layout: Literal["autoregressive", "full_duplication", "rad", "distillation"]
    """``distillation``: RAD's, all of the response masked, with whole distributions as targets (stage 3); not in the table."""
    attention: Literal["sdpa", "split"]
    copies: int = 1
    vision: Literal["none", "pixels", "stored"] = "none"
    checkpointing: bool = False


def variants(copies: Sequence[int]) -> list[Variant]:
    """All that are timed; the second is what the others are compared with."""
    return [
        Variant(name="ar", layout="autoregressive", attention="split"),
        Variant(name="full_duplication", layout="full_duplication", attention="sdpa"),
        Variant(name="rad_dense", layout="rad", attention="sdpa"),
        Variant(name="rad_split", layout="rad", attention="split"),
        *(Variant(name=f"rad_split_k{k}", layout="rad", attention="split", copies=k) for k in copies),
        Variant(name="rad_pixels", layout="rad", attention="split", vision="pixels"),
        Variant(name="rad_stored_features", layout="rad", attention="split", vision="stored"),
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingGrid:
    """What is timed."""

    contexts: tuple[int, ...]
    response: int
    """R, a multiple of the block size."""
    block_size: int
    batch_size: int
    copies: tuple[int, ...]
    repetitions: int
    precision: Precision

    def __post_init__(self) -> None:
        if not self.contexts or min(self.contexts) < 1 or self.repetitions < 1 or self.batch_size < 1:
            raise ValueError("contexts, batch_size and repetitions must be positive")
        if self.response < 1 or self.response % self.block_size:
            raise ValueError(f"response must be a multiple of block_size, got {self.response} and {self.block_size}")
        if any(k < 2 for k in self.copies):
            raise ValueError(f"copies must be at least 2 (1 is timed anyway), got {list(self.copies)}")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision must be 32-true or bf16-mixed, got {self.precision!r}")


@dataclass(kw_only=True)
class _Timed:
    variant: Variant
    step: Callable[[], int]
    """Takes a step; returns the number of supervised positions."""
    tokens: int
    seconds: list[float] = field(default_factory=list)
    supervised: int = 0

    def repeat(self, device: torch.device) -> None:
        started = now(device)
        self.supervised = self.step()
        self.seconds.append(now(device) - started)


def time_training(
    name: str, model: BenchModel, grid: TrainingGrid, device: torch.device, progress: Callable[[str], None]
) -> Iterator[list[Row]]:
    """Time all variants at every context; yields the rows of one context at a time."""
    for context in grid.contexts:
        progress(f"{name}, context {context}")
        memory = {variant.name: memory_of(variant, model, context, grid, device) for variant in variants(grid.copies)}
        timed = [_prepared(variant, model, context, grid, device) for variant in variants(grid.copies)]
        for one in timed:
            one.step()
        for _ in range(grid.repetitions):
            for one in timed:
                one.repeat(device)
        yield [_with_memory(row, memory[row["variant"]]) for row in _rows(name, context, grid, timed)]


def _with_memory(row: Row, megabytes: float | None) -> Row:
    per_token = None if megabytes is None else 1e3 * megabytes / row["supervised_tokens"]
    return row | {"peak_memory_mb": megabytes, "peak_memory_kb_per_supervised_token": per_token}


def memory_of(
    variant: Variant,
    model: BenchModel,
    context: int,
    grid: TrainingGrid,
    device: torch.device,
    place: Callable[[VLM], VLM] | None = None,
) -> float | None:
    """Most memory of a step, in MB: weights, gradients, optimizer states and activations of this variant alone.

    None where the system does not tell. ``place`` may shard the model.
    """
    return_free_memory()
    before = memory_gb(device)
    one = _prepared(variant, model, context, grid, device, place)
    one.step()  # makes the optimizer's states
    if before is None or not restart_peak_memory(device):
        return None
    one.step()
    return 1e3 * (peak_memory_gb(device) - before)


def _prepared(
    variant: Variant,
    model: BenchModel,
    context: int,
    grid: TrainingGrid,
    device: torch.device,
    place: Callable[[VLM], VLM] | None = None,
) -> _Timed:
    vlm = model.trainable(variant.attention).to(device)
    vlm.freeze_vision()
    if variant.checkpointing:
        vlm.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if place is not None:
        vlm = place(vlm)
    batch = _batch(model, context, grid, device, vlm, variant.vision)
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-4, foreach=True)
    parameters = [p for p in vlm.parameters() if p.requires_grad]

    def step() -> int:
        with torch.autocast(device.type, torch.bfloat16, enabled=grid.precision == "bf16-mixed"):
            loss, supervised = step_loss(vlm, variant, batch, model, grid)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return supervised

    copies = {"autoregressive": 0, "full_duplication": 1, "distillation": 1, "rad": variant.copies}[variant.layout]
    contexts = 2 if variant.layout == "full_duplication" else 1
    return _Timed(variant=variant, step=step, tokens=contexts * context + (copies + 1) * grid.response)


def _batch(
    model: BenchModel, context: int, grid: TrainingGrid, device: torch.device, vlm: VLM, vision: Literal["none", "pixels", "stored"]
) -> Batch:
    """Random studies; with a vision tower the context is one image and a few words."""
    text = text_prompts(grid.batch_size, context, model.vocabulary, torch.device("cpu"))
    B, R = grid.batch_size, grid.response
    ids = torch.randint(1, model.vocabulary - 3, (B, R), generator=torch.Generator().manual_seed(1))
    batch = replace(text, response_ids_BR=ids, response_lengths_B=torch.full((B,), R))
    if vision != "none":
        batch = _with_images(batch, model.special.image, context)
    batch = batch.to(device)
    if vision == "stored":
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=grid.precision == "bf16-mixed"):
            features = vlm.vision_features(batch.pixel_values, batch.image_grid_thw)
        batch = replace(
            batch, pixel_values=batch.pixel_values[:0], image_features=features, vision_fingerprint=vlm.vision_fingerprint
        )
    return batch


_WORDS_BESIDE_AN_IMAGE = 10


def _with_images(batch: Batch, image: int, context: int) -> Batch:
    tokens = context - _WORDS_BESIDE_AN_IMAGE
    rows = max(n for n in range(1, int(tokens**0.5) + 1) if tokens % n == 0)
    ids = batch.context_ids_BP.clone()
    ids[:, 1 : 1 + tokens] = image
    grid = torch.tensor([[1, 2 * rows, 2 * tokens // rows]]).repeat(len(batch), 1)
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(2))
    return replace(batch, context_ids_BP=ids, image_grid_thw=grid, pixel_values=pixels)


def step_loss(vlm: VLM, variant: Variant, batch: Batch, model: BenchModel, grid: TrainingGrid) -> tuple[Tensor, int]:
    """Loss of a batch, and how many positions it is over."""
    special, P = model.special, batch.context_ids_BP.shape[1]
    if variant.layout == "autoregressive":
        sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
        predicts_BT = torch.zeros_like(sequence.input_ids_BT, dtype=torch.bool)
        predicts_BT[:, P - 1 : -1] = True
        positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
        logits_MV = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images, select=predicts_BT)
        return next_token_loss(logits_MV, batch.response_ids_BR.flatten()), len(logits_MV)
    layout = BlockLayout(block_size=grid.block_size)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, special.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, special)
    if variant.layout == "distillation":
        return _distillation_loss(vlm, batch, blocked)
    noise = draw_noise(NoiseConfig(noise_copies=variant.copies), batch.keys, 0, blocked.maskable_BR, grid.block_size)
    clean_BKR = blocked.clean_ids_BR[:, None].expand_as(noise.masked_BKR)
    noisy_BKR = torch.where(noise.masked_BKR, special.mask, clean_BKR)
    sequence = rad_sequence(blocked, noisy_BKR)
    if variant.layout == "rad":
        logits_MV = vlm(
            sequence.input_ids_BT,
            vlm.sequence_positions(sequence, batch.image_grid_thw),
            sequence.rule,
            images=batch.images,
            select=sequence.noisy_positions(noise.masked_BKR),
        )
    else:
        ids, rule = full_duplication(blocked, noisy_BKR[:, 0])
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        chosen[:, P : P + grid.response] = noise.masked_BKR[:, 0]
        logits_MV = vlm(ids, full_duplication_positions(vlm, sequence, batch.image_grid_thw), rule, select=chosen)
    masked = noise.masked_BKR
    loss = masked_diffusion_loss(logits_MV, clean_BKR[masked], noise.t_BKR[masked], "elbo", masked.numel())
    return loss, len(logits_MV)


def _distillation_loss(vlm: VLM, batch: Batch, blocked: BlockedResponse) -> tuple[Tensor, int]:
    """KL of the student's one step to a teacher's distributions, which are even ones here."""
    masked_BKR = blocked.maskable_BR[:, None]
    sequence = rad_sequence(blocked, torch.where(masked_BKR, vlm.special.mask, blocked.clean_ids_BR[:, None]))
    rows, V = int(masked_BKR.sum()), len(vlm.network.lm_head.weight)
    teacher_MV = torch.full((rows, V), 1 / V, device=vlm.device)
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    select = sequence.noisy_positions(masked_BKR)
    logits_MV = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images, select=select)
    return divergence_rows(logits_MV, teacher_MV, "forward_kl", 1.0).mean(), rows


def _rows(name: str, context: int, grid: TrainingGrid, timed: Sequence[_Timed]) -> list[Row]:
    reference = next(one for one in timed if one.variant.name == "full_duplication")
    return [_row(name, context, grid, one, reference) for one in timed]


def _row(name: str, context: int, grid: TrainingGrid, one: _Timed, reference: _Timed) -> Row:
    seconds, reference_seconds = statistics.median(one.seconds), statistics.median(reference.seconds)
    per_second = one.supervised / seconds
    with_tower = one.variant.vision == "pixels"
    return {
        "model": name,
        "context": context,
        "response": grid.response,
        "batch_size": grid.batch_size,
        "variant": one.variant.name,
        "noise_copies": one.variant.copies if one.variant.layout != "autoregressive" else 0,
        "attention": one.variant.attention,
        "precision": grid.precision,
        "tokens": one.tokens,
        "repetitions": len(one.seconds),
        "seconds": seconds,
        "seconds_spread": max(one.seconds) - min(one.seconds),
        "supervised_tokens": one.supervised,
        "supervised_tokens_per_second": per_second,
        "seconds_per_supervised_token": seconds / one.supervised,
        # Full duplication was timed without a vision tower, so a step with one is not compared with it.
        "speedup_over_full_duplication": None if with_tower else reference_seconds / seconds,
        "supervised_speedup_over_full_duplication": None if with_tower else per_second * reference_seconds / reference.supervised,
    }


def arithmetic(context: int, response: int, shape: ModelShape) -> dict[str, float]:
    """METHOD.md 2: what RAD saves over full duplication, counted: attention and all of it, with dense masks and without.

    A matrix product counts two operations per weight and token. Dense attention counts every pair of positions; sparse only the
    pairs that the rule allows: a causal half of the context, the response over the whole context and half of its own.
    """
    P, R = context, response
    linear = 2 * sum(shape.layer_matrices) * shape.layers
    pair = 4 * shape.heads * shape.head_size * shape.layers
    doubled, once = 2 * (P + R), P + 2 * R
    sparse_doubled = P * P + 2 * P * R + R * R  # two causal contexts, two responses over one of them, own blocks and those before
    sparse_once = P * P / 2 + 2 * P * R + R * R
    return {
        "attention_dense": doubled**2 / once**2,
        "attention_sparse": sparse_doubled / sparse_once,
        "total_dense": (linear * doubled + pair * doubled**2) / (linear * once + pair * once**2),
        "total_sparse": (linear * doubled + pair * sparse_doubled) / (linear * once + pair * sparse_once),
        "total_sparse_over_dense_duplication": (linear * doubled + pair * doubled**2) / (linear * once + pair * sparse_once),
    }
