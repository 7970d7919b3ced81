"""A small model, its special tokens and made-up batches, for tests of mathematics and decoding."""

from __future__ import annotations

import torch

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.structs import Batch, SpecialTokens

SPECIAL = SpecialTokens(pad=90, eos=91, mask=92, image=93, never_sampled=(90, 92, 93, 94, 95))
VOCABULARY = 96
IMAGE_TOKENS = 4


def small_vlm(dtype: torch.dtype = torch.float32, seed: int = 0, train_attention: str = "sdpa", sharp: float = 1.0) -> VLM:
    """Two layers of width 64 with grouped heads. ``sharp`` scales the head, so that some confidences pass a threshold."""
    factory = TinyBackbone(
        width=64, layers=2, heads=4, key_heads=2, mlp_width=96, vision_width=32, vision_layers=1, vision_heads=2,
        vision_mlp_width=48, seed=seed, train_attention=train_attention,
    )  # fmt: skip
    vlm = factory.build(SPECIAL, VOCABULARY).to(dtype).eval()
    with torch.no_grad():
        # Fresh weights are so small that every context looks alike; larger ones make attention matter.
        for name, parameter in vlm.network.named_parameters():
            if "layers" in name and parameter.dim() == 2:
                parameter.mul_(4.0)
        vlm.network.lm_head.weight.mul_(sharp)
    return vlm


def make_batch(
    context_lengths: list[int], response_lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    """Random contexts (one 2x2-token image each, right-padded) and responses that end in eos."""
    generator = torch.Generator().manual_seed(seed)

    def words(n: int) -> torch.Tensor:
        return torch.randint(0, 90, (n,), generator=generator)

    B, P, R = len(context_lengths), max(context_lengths), max(response_lengths)
    context = torch.full((B, P), SPECIAL.pad)
    response = torch.full((B, R), SPECIAL.eos)
    for row, (p, r) in enumerate(zip(context_lengths, response_lengths, strict=True)):
        context[row, :p] = words(p)
        context[row, 1 : 1 + IMAGE_TOKENS] = SPECIAL.image
        response[row, : r - 1] = words(r - 1)
    return Batch(
        keys=tuple(f"study-{row}" for row in range(B)),
        context_ids_BP=context,
        context_lengths_B=torch.tensor(context_lengths),
        response_ids_BR=response,
        response_lengths_B=torch.tensor(response_lengths),
        pixel_values=torch.randn(B * 16, 3 * 2 * 8 * 8, generator=generator, dtype=torch.float64).to(dtype),
        image_grid_thw=torch.tensor([[1, 4, 4]]).repeat(B, 1),
    )


def rows_of(batch: Batch, row: int) -> Batch:
    """One sample of a batch, without the padding that its neighbours caused."""
    p, r = int(batch.context_lengths_B[row]), int(batch.response_lengths_B[row])
    return Batch(
        keys=(batch.keys[row],),
        context_ids_BP=batch.context_ids_BP[row : row + 1, :p],
        context_lengths_B=batch.context_lengths_B[row : row + 1],
        response_ids_BR=batch.response_ids_BR[row : row + 1, :r],
        response_lengths_B=batch.response_lengths_B[row : row + 1],
        pixel_values=batch.pixel_values[row * 16 : (row + 1) * 16],
        image_grid_thw=batch.image_grid_thw[row : row + 1],
    )
