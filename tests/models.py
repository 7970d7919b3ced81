"""A small model, its special tokens and made-up batches, for tests of mathematics and decoding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.stages.validation import TextTools
from echo_pl.structs import Batch, ReportText, SpecialTokens

SPECIAL = SpecialTokens(pad=90, eos=91, mask=92, image=93, never_sampled=(90, 92, 93, 94, 95))
VOCABULARY = 96
TEXT = TextTools(
    special=SPECIAL,
    vocab_size=VOCABULARY,
    labels=(),
    to_report=lambda tokens: ReportText(findings="", impression=""),
    judge=None,
    fingerprint="f00d",
)
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


def decoding_vlm() -> VLM:
    """A float64 model with norms in float64 whose reports differ: some stop early, some never, confidences are of all sizes."""
    vlm = exact_norms(small_vlm(torch.float64, seed=3, sharp=20.0))
    with torch.no_grad():
        vlm.network.lm_head.weight[SPECIAL.eos] *= 1.6
    return vlm


def exact_norms(vlm: VLM) -> VLM:
    """Let every RMS norm compute in the model's own precision, in place.

    The library's norm rounds to float32 inside, so that even a float64 model is exact to 1e-7 only; with this one a float64
    comparison may ask for 1e-10.
    """

    def in_own_precision(norm: nn.Module, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return norm.weight * hidden * torch.rsqrt(variance + norm.variance_epsilon)

    for module in vlm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = in_own_precision.__get__(module)
    return vlm


def stock_network(vlm: VLM) -> Qwen2_5_VLForConditionalGeneration:
    """A copy of the network under the library's own attention: what our attention entry is compared with."""
    network = copy.deepcopy(vlm.network)
    network.set_attn_implementation("sdpa")
    return network


def make_batch(context_lengths: list[int], response_lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
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
