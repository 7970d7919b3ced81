"""Parts of layers through torch.compile in training: the same logits and gradients to rounding, at any length."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from models import SPECIAL, VOCABULARY, make_batch
from stage_parts import BACKBONE, lively
from torch import Tensor
from torch._dynamo.utils import counters

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import autoregressive_sequence
from echo_pl.sampling import BlockSampler, DecodeConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]


def built(compile_layers: bool, checkpointing: bool) -> VLM:
    factory = replace(BACKBONE, train_attention="split", gradient_checkpointing=checkpointing, compile_layers=compile_layers)
    vlm = lively(factory.build(SPECIAL, VOCABULARY), SPECIAL).train()
    vlm.prepare_to_train()
    return vlm


def step(vlm: VLM, lengths: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = make_batch(lengths, [n - 2 for n in lengths])
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    vlm.zero_grad()
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    logits = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images)[:, sequence.context_width :]
    logits.log_softmax(-1)[..., 5].mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_compute_what_plain_ones_do(checkpointing):
    torch.compiler.reset()
    plain, compiled = built(False, checkpointing), built(True, checkpointing)
    before = counters["stats"]["unique_graphs"]
    for lengths in ([12, 9], [17, 17, 11]):
        (one, ours), (other, theirs) = step(plain, lengths), step(compiled, lengths)
        assert torch.allclose(one, other, rtol=0, atol=1e-5 * float(one.abs().max()))
        largest = max(float(gradient.abs().max()) for gradient in ours.values())
        assert all(float((ours[name] - theirs[name]).abs().max()) <= 1e-5 * largest for name in ours)
    assert counters["stats"]["unique_graphs"] >= before + 2, "a norm and a feed-forward layer"
    config, batch = DecodeConfig(block_size=4, max_response_tokens=8), make_batch([9, 12], [7, 6])
    with torch.no_grad():
        decoded = [BlockSampler(vlm.eval(), SPECIAL, config).generate(batch).tokens for vlm in (plain, compiled)]
    assert [t.tolist() for t in decoded[0]] == [t.tolist() for t in decoded[1]]
