"""Low-rank adapters: what they compute, what is trained, and that a model with them and their sum are the same model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import SPECIAL, VOCABULARY, exact_norms, make_batch, small_vlm
from stage_parts import BACKBONE, record, write_checkpoint
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from echo_pl.backbone.checkpoint import load_weights, read_checkpoint
from echo_pl.backbone.hf_folder import network_weights, write_network
from echo_pl.backbone.lora import LoraSettings, add_lora, has_lora, merge_lora, merged_lora
from echo_pl.backbone.sharding import ShardPolicy, shard
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import BlockLayout, block_context, block_response, rad_sequence
from echo_pl.sampling import BlockSampler, DecodeConfig

SETTINGS = LoraSettings(rank=3, alpha=5, targets=("q_proj", "down_proj"), seed=4)


def adapted(dtype: torch.dtype = torch.float64, settings: LoraSettings = SETTINGS) -> VLM:
    """A model whose adapters add something: their second factor is zero at first."""
    vlm = small_vlm(dtype, seed=3, sharp=20.0)
    if dtype == torch.float64:
        exact_norms(vlm)
    add_lora(vlm, settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name or name == "mask_embedding":
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return vlm


def rad_logits(vlm: VLM) -> Tensor:
    batch = make_batch([9, 12, 11], [10, 12, 7], dtype=vlm.dtype)
    layout = BlockLayout(block_size=4)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    masked = torch.rand(blocked.clean_ids_BR.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    sequence = rad_sequence(blocked, torch.where(masked, SPECIAL.mask, blocked.clean_ids_BR)[:, None])
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    return vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images)


def test_what_is_trained():
    vlm = adapted()
    trained = {name for name, parameter in vlm.named_parameters() if parameter.requires_grad}
    layer = "network.model.language_model.layers.{}.{}.lora_{}.default.weight"
    places = [(n, place, factor) for n in (0, 1) for place in ("self_attn.q_proj", "mlp.down_proj") for factor in "AB"]
    assert trained == {"mask_embedding"} | {layer.format(*place) for place in places}
    assert all(p.dtype == torch.float32 for p in vlm.parameters() if p.requires_grad), "whatever the weights are"
    rad_logits(vlm).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in vlm.parameters())


def test_at_first_nothing_is_added():
    vlm = small_vlm()
    with torch.no_grad():
        before = rad_logits(vlm)
        add_lora(vlm, SETTINGS)
        assert torch.equal(rad_logits(vlm), before)


def test_an_adapter_adds_alpha_by_rank_times_its_product():
    """Against the definition, W + (alpha / rank) B A, written out here (float32: the library's product is of float32 factors)."""
    vlm = adapted(torch.float32)
    plain = small_vlm(torch.float32, seed=3, sharp=20.0)
    weights = dict(vlm.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            stem = name.removesuffix(".weight")
            if f"{stem}.lora_A.default.weight" in weights:
                product = weights[f"{stem}.lora_B.default.weight"] @ weights[f"{stem}.lora_A.default.weight"]
                parameter += 5 / 3 * product
        plain.network.model.language_model.embed_tokens.weight[SPECIAL.mask] = weights["mask_embedding"]
        expected, ours = rad_logits(plain), rad_logits(vlm)
        untouched = rad_logits(small_vlm(torch.float32, seed=3, sharp=20.0))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert float((ours - untouched).abs().max()) > 0.05 * float(expected.abs().max())


@torch.no_grad()
def test_their_sum_is_the_same_model():
    vlm = adapted()
    before = rad_logits(vlm)
    merge_lora(vlm)
    assert not has_lora(vlm.network)
    assert vlm.state_dict().keys() == small_vlm().state_dict().keys()
    # Adapters are float32: products and sums of those are not rounded at the same places.
    assert torch.allclose(rad_logits(vlm), before, rtol=0, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("mask_embedding", [True, False])
@torch.no_grad()
def test_merged_for_a_while_is_merged_and_then_as_before(mask_embedding):
    """With embedding and first layer unchanged, a decoder might wrongly assume that it is up to date."""
    settings = SETTINGS if mask_embedding else replace(SETTINGS, mask_embedding=False, targets=("down_proj",))
    vlm, merged = adapted(settings=settings), adapted(settings=settings)
    merge_lora(merged)
    weights = {name: value.clone() for name, value in vlm.state_dict().items()}
    before = rad_logits(vlm)
    config = DecodeConfig(block_size=4, max_response_tokens=16)
    batch = make_batch([9, 12, 11], [10, 12, 7], dtype=vlm.dtype)
    vlm.requires_grad_(False)
    merged.requires_grad_(False)
    with merged_lora(vlm):
        assert torch.equal(rad_logits(vlm), rad_logits(merged))
        assert vlm.text_decoder() is not None, "decoded in one piece, as any frozen model"
        ours = BlockSampler(vlm, SPECIAL, config).generate(batch).tokens
    theirs = BlockSampler(merged, SPECIAL, config).generate(batch).tokens
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert vlm.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in vlm.state_dict().items())
    assert torch.equal(rad_logits(vlm), before)
    assert vlm.text_decoder() is None


def checkpoint_with_adapters(folder: Path) -> tuple[VLM, Path]:
    vlm = BACKBONE.build(SPECIAL, VOCABULARY)
    add_lora(vlm, SETTINGS)
    for number, parameter in enumerate(p for p in vlm.parameters() if p.requires_grad):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return vlm, write_checkpoint(folder / "rad.ckpt", vlm, record("rad", lora=SETTINGS.record))


@torch.no_grad()
def test_a_checkpoint_with_adapters_is_loaded_as_their_sum(tmp_path):
    trained, path = checkpoint_with_adapters(tmp_path)
    vlm = replace(BACKBONE, seed=9).build(SPECIAL, VOCABULARY)
    vlm.freeze_vision()
    flags = {name: parameter.requires_grad for name, parameter in vlm.named_parameters()}
    about = load_weights(vlm, path, ("rad",), block_size=8)
    assert LoraSettings(**about.lora) == SETTINGS
    assert {name: parameter.requires_grad for name, parameter in vlm.named_parameters()} == flags
    expected = rad_logits(trained)
    assert torch.allclose(rad_logits(vlm), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_hugging_face_folder_has_their_sum(tmp_path):
    trained, path = checkpoint_with_adapters(tmp_path)
    stored, weights = network_weights(path)
    write_network(weights, BACKBONE, SPECIAL, tmp_path, None, LoraSettings(**stored.lora))
    from transformers import Qwen2_5_VLForConditionalGeneration

    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    merge_lora(trained)
    expected = trained.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in exported.state_dict().items())
    assert exported.state_dict().keys() == expected.keys()
    # The checkpoint that was read is as it was.
    again = read_checkpoint(path)[1]["state_dict"]
    assert any("lora_A" in name for name in again)
    assert not torch.equal(again["vlm.network.model.language_model.embed_tokens.weight"][SPECIAL.mask], again["vlm.mask_embedding"])


def test_bfloat16_weights_keep_float32_adapters():
    vlm = adapted(torch.bfloat16)
    with torch.no_grad():
        logits = rad_logits(vlm)
        merge_lora(vlm)
        merged = rad_logits(vlm)
    assert logits.dtype == merged.dtype == torch.bfloat16
    # Both round to bfloat16 (3 digits) at different places.
    assert float((logits - merged).abs().mean()) < 0.05 * float(logits.abs().mean())


def test_without_the_mask_embedding_adapters_alone_are_trained():
    vlm = adapted(settings=replace(SETTINGS, mask_embedding=False))
    assert vlm.mask_embedding is None
    assert all("lora_" in name for name, parameter in vlm.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_proj", "head"]}, "lora.targets must be some of q_proj, .*; got head"),
        ({"targets": []}, "got none"),
        ({"rank": 0}, "lora.rank and lora.alpha must be positive, got 0 and 32"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        LoraSettings(**options)


def test_adapters_are_not_put_on_adapters():
    vlm = adapted()
    with pytest.raises(ValueError, match="low-rank adapters already"):
        add_lora(vlm, SETTINGS)


def test_without_peft_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"need the peft package .*pip install 'echo-pl\[lora\]'"):
        add_lora(small_vlm(), SETTINGS)


@torch.no_grad()
def test_packed_weights_are_not_asked_of_adapters_in_training():
    vlm = adapted(torch.bfloat16)
    vlm.pack_weights = True
    assert vlm.text_decoder() is None


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("param_dtype", [None, "bfloat16"])
def test_adapters_beside_weights_of_another_type_in_shards(one_rank, param_dtype):
    """bfloat16 weights, float32 adapters: the same as in one piece; to rounding where layers compute with adapters in bfloat16."""
    found = []
    for policy in (None, ShardPolicy(param_dtype=param_dtype)):
        vlm = adapted(torch.bfloat16)
        if policy is not None:
            shard(vlm, one_rank, policy)
            assert all(isinstance(parameter, DTensor) for parameter in vlm.parameters())
        logits = rad_logits(vlm)
        logits.float().square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in vlm.named_parameters() if parameter.requires_grad}
        whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
        assert all(gradient.dtype == torch.float32 for gradient in whole.values())
        found.append((logits.detach(), whole))
    (logits, gradients), (sharded_logits, sharded_gradients) = found
    assert gradients.keys() == sharded_gradients.keys()
    if param_dtype is None:
        assert torch.equal(logits, sharded_logits)
        assert all(torch.equal(gradients[name], sharded_gradients[name]) for name in gradients)
    else:
        assert not torch.equal(logits, sharded_logits), "nothing was rounded"
        assert float((logits - sharded_logits).float().norm() / logits.float().norm()) < 0.05
