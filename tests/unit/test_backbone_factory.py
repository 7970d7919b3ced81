"""Sources of models: random tiny ones, folders, and the 7B configuration on the meta device."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from models import SPECIAL, VOCABULARY, make_batch, small_vlm
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.factory import PretrainedBackbone, TinyBackbone, check_weight_names
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import CLEAN, AttentionRule, response_coords
from echo_pl.structs import SpecialTokens

SMALL = TinyBackbone(
    width=32, layers=1, heads=2, key_heads=1, mlp_width=32, vision_width=32, vision_layers=1, vision_heads=2,
    vision_mlp_width=32,
)  # fmt: skip
QWEN = SpecialTokens(pad=151643, eos=151645, mask=151665, image=151655, never_sampled=(151643, 151665, 151655))


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = SMALL.build(SPECIAL, VOCABULARY).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state stays as it was"
    torch.manual_seed(6)
    other = SMALL.build(SPECIAL, VOCABULARY).state_dict()
    third = replace(SMALL, seed=1).build(SPECIAL, VOCABULARY).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_the_default_tiny_model_is_small():
    vlm = TinyBackbone().build(SPECIAL, 640)
    assert type(vlm.network) is Qwen2_5_VLForConditionalGeneration
    assert 0.5e6 < sum(p.numel() for p in vlm.parameters()) < 3e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100, "heads": 3}, "width / heads must be a multiple of 16, got 100 / 3"),
        ({"width": 128, "heads": 4, "key_heads": 3}, "heads must be a multiple of key_heads, got 4 and 3"),
        ({"train_attention": "flash"}, "train_attention must be one of .* got 'flash'"),
        ({"decode_attention": "flash"}, "decode_attention must be one of .* got 'flash'"),
    ],
)
def test_impossible_sizes_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        TinyBackbone(**options)


def test_a_saved_folder_loads_as_it_was_and_grows_for_added_tokens(tmp_path, caplog):
    vlm = small_vlm()
    vlm.network.save_pretrained(tmp_path / "model")
    factory = PretrainedBackbone(path=str(tmp_path / "model"), dtype="float32", gradient_checkpointing=False)
    loaded = factory.build(SPECIAL, VOCABULARY)
    saved, own = vlm.state_dict(), loaded.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in saved)

    with caplog.at_level(logging.WARNING):
        grown = factory.build(replace(SPECIAL, mask=VOCABULARY), VOCABULARY + 1)
    assert "vocabulary grows from 96 to 97 rows" in caplog.text
    head = grown.network.lm_head.weight
    assert head.shape[0] == grown.network.get_input_embeddings().weight.shape[0] == 97
    assert torch.equal(head[:96], vlm.network.lm_head.weight)


@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 1])
def test_a_skeleton_has_the_shapes_and_types_of_the_model_and_no_numbers(tmp_path, rows):
    small_vlm().network.save_pretrained(tmp_path / "model")
    loaded = PretrainedBackbone(path=str(tmp_path / "model"), dtype="bfloat16")
    for factory in (loaded, TinyBackbone(width=32, layers=2, seed=3)):
        skeleton, built = factory.skeleton(SPECIAL, rows), factory.build(SPECIAL, rows)
        assert all(value.is_meta for value in skeleton.state_dict().values())
        about = [{name: (value.shape, value.dtype) for name, value in vlm.state_dict().items()} for vlm in (skeleton, built)]
        assert about[0] == about[1]
        assert skeleton.geometry == built.geometry


def test_a_loaded_folder_decodes_like_the_model_it_was_saved_from(tmp_path):
    from echo_pl.sampling import AutoregressiveSampler

    vlm, batch = small_vlm(), make_batch([8, 6], [4, 4])
    vlm.network.save_pretrained(tmp_path / "model")
    loaded = PretrainedBackbone(path=str(tmp_path / "model"), dtype="float32").build(SPECIAL, VOCABULARY).eval()
    one, other = (AutoregressiveSampler(model, SPECIAL, 8).generate(batch).tokens for model in (vlm, loaded))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_named_with_the_key_that_names_it(path):
    with pytest.raises(FileNotFoundError, match=rf"no model folder at {path}; give backbone\.factory\.path="):
        PretrainedBackbone(path=path).build(SPECIAL, VOCABULARY)


def test_an_unknown_dtype_is_rejected():
    with pytest.raises(ValueError, match=r"dtype must be .* got 'int8'"):
        PretrainedBackbone(path="/nowhere", dtype="int8")


def test_unmatched_weights_are_an_error_that_names_some():
    check_weight_names([], [], "model")
    with pytest.raises(
        ValueError, match=r"m.ckpt does not fit the model: 1 weights missing \['a'\], 2 without a place \['b', 'c'\]"
    ):
        check_weight_names({"a"}, {"c", "b"}, "m.ckpt")


def test_the_7b_model_is_wrapped_without_memory():
    """Qwen2.5-VL-7B's published numbers on the meta device: the same wrapper, the same rule, no allocation."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "use_sliding_window": False,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=QWEN.image,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        vlm = VLM(Qwen2_5_VLForConditionalGeneration(config), QWEN)
    assert sum(p.numel() for p in vlm.parameters()) == 8_292_166_656
    assert vlm.device.type == "meta"
    assert vlm.layers == 28
    vlm.freeze_vision()
    trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    assert 8_292_166_656 - trained == 676_550_144

    # Fake tensors: shapes go through every layer and our attention entry, numbers do not.
    with FakeTensorMode():
        vlm = VLM(Qwen2_5_VLForConditionalGeneration(config), QWEN)
        ids = torch.zeros(1, 8, dtype=torch.long)
        coords = response_coords(CLEAN, 0, 8, 4, ids.device)
        with torch.no_grad():
            logits = vlm(ids, ids.expand(3, -1, -1), AttentionRule(query=coords, key=coords), select=4)
    assert logits.shape == (1, 4, 152064)
