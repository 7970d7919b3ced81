"""The wrapper around the stock class: positions, images, chosen rows, and what does not belong together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import IMAGE_TOKENS, SPECIAL, VOCABULARY, make_batch, small_vlm

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import autoregressive_sequence
from echo_pl.structs import Batch


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return small_vlm()


def forward(vlm: VLM, batch: Batch, **options) -> torch.Tensor:
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    with torch.no_grad():
        return vlm(sequence.input_ids_BT, positions, sequence.rule, **{"images": batch.images, **options})


def test_positions_of_a_context_with_an_image(vlm):
    """M-RoPE: one word, a 2 x 2 image on three axes, then words from behind the image's largest position."""
    batch = make_batch([8, 6], [4, 4])
    positions, behind = vlm.context_positions(batch.context_ids_BP, batch.context_lengths_B, batch.image_grid_thw)
    time, height, width = positions[:, 0].tolist()
    assert time == [0, 1, 1, 1, 1, 3, 4, 5]
    assert height == [0, 1, 1, 2, 2, 3, 4, 5]
    assert width == [0, 1, 2, 1, 2, 3, 4, 5]
    assert behind.tolist() == [6, 4]


def test_like_contexts_are_computed_once_and_are_the_same(vlm):
    batch = make_batch([8, 8, 8], [4, 4, 4])
    alike = batch.context_ids_BP[:1].repeat(3, 1)
    positions, behind = vlm.context_positions(alike, batch.context_lengths_B, batch.image_grid_thw)
    one, one_behind = vlm.context_positions(alike[:1], batch.context_lengths_B[:1], batch.image_grid_thw[:1])
    assert torch.equal(positions, one.expand(-1, 3, -1))
    assert behind.tolist() == one_behind.tolist() * 3


def test_like_ids_with_other_images_keep_their_own_positions(vlm):
    """The same ids over images of another shape: 1 x 4 tokens instead of 2 x 2."""
    batch = make_batch([8, 8], [4, 4])
    alike = batch.context_ids_BP[:1].repeat(2, 1)
    grid = torch.tensor([[1, 4, 4], [1, 2, 8]])
    positions, behind = vlm.context_positions(alike, batch.context_lengths_B, grid)
    assert positions[2, 0].tolist() == [0, 1, 2, 1, 2, 3, 4, 5]
    assert positions[2, 1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert behind.tolist() == [6, 8]


def test_select_chooses_rows_of_the_logits(vlm):
    batch = make_batch([8, 6], [4, 4])
    everything = forward(vlm, batch)
    assert everything.shape == (2, 12, VOCABULARY)
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.allclose(forward(vlm, batch, select=mask), everything[mask], atol=1e-5)
    assert torch.allclose(forward(vlm, batch, select=3), everything[:, -3:], atol=1e-5)
    assert forward(vlm, batch, select=0).shape == (2, 0, VOCABULARY)


def test_placeholders_and_images_must_agree(vlm):
    batch = make_batch([8, 6], [4, 4])
    short = replace(batch, pixel_values=batch.pixel_values[:16], image_grid_thw=batch.image_grid_thw[:1])
    with pytest.raises(ValueError, match=f"{2 * IMAGE_TOKENS} image placeholders for {IMAGE_TOKENS} image tokens"):
        forward(vlm, batch, images=short.images)


def test_a_frozen_tower_keeps_no_graph_and_a_trained_one_does():
    vlm = small_vlm()
    batch = make_batch([8], [4])
    assert vlm.vision_features(batch.pixel_values, batch.image_grid_thw).requires_grad
    vlm.freeze_vision()
    assert not vlm.vision_features(batch.pixel_values, batch.image_grid_thw).requires_grad
    assert not any(p.requires_grad for n, p in vlm.named_parameters() if "visual" in n)
    assert all(p.requires_grad for n, p in vlm.named_parameters() if "visual" not in n)


def test_a_tokenizer_that_does_not_belong_to_the_weights_is_rejected(vlm):
    with pytest.raises(ValueError, match="token id 200 of the tokenizer is outside the model's vocabulary of 96"):
        VLM(vlm.network, replace(SPECIAL, mask=200))
    with pytest.raises(ValueError, match="image token is 93, the tokenizer's is 94"):
        VLM(vlm.network, replace(SPECIAL, image=94))


@pytest.mark.parametrize("backend", ["sdpa", "split"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(backend):
    batch = make_batch([8, 6], [4, 4])
    found = []
    for checkpointing in (False, True):
        options = {"width": 32, "layers": 2, "heads": 2, "key_heads": 1, "mlp_width": 32, "vision_width": 32}
        options |= {"vision_layers": 1, "vision_heads": 2, "vision_mlp_width": 32}
        vlm = TinyBackbone(train_attention=backend, gradient_checkpointing=checkpointing, **options).build(SPECIAL, VOCABULARY)
        vlm.freeze_vision()
        vlm.train()
        layers = vlm.network.model.language_model.layers
        assert all(layer.gradient_checkpointing == checkpointing for layer in layers)
        sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
        logits = vlm(
            sequence.input_ids_BT,
            vlm.sequence_positions(sequence, batch.image_grid_thw),
            sequence.rule,
            images=batch.images,
        )
        loss = logits.square().mean()
        loss.backward()
        found.append((loss, [p.grad for p in vlm.parameters() if p.grad is not None]))
    (plain, plain_gradients), (checkpointed, gradients) = found
    assert torch.equal(plain, checkpointed)
    assert len(gradients) == len(plain_gradients) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, gradients, strict=True))
