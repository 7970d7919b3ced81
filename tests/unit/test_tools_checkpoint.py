"""Checkpoints to Hugging Face folders and back: the weights, what they say of themselves, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import command
from ranks import SIZES, pretrained_checkpoint
from stage_parts import BACKBONE, record, write_checkpoint
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from echo_pl.backbone.checkpoint import load_weights, read_checkpoint
from echo_pl.backbone.factory import PretrainedBackbone
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.diffusion.block_mask import CLEAN, AttentionRule, response_coords
from echo_pl.runs.checkpoint_files import describe, from_hf, merge, to_hf

pytestmark = pytest.mark.slow

main = command("checkpoint")


@pytest.fixture(scope="module")
def data_root(tiny_data) -> Path:
    return tiny_data


@pytest.fixture(scope="module")
def data(data_root) -> ReportDataModule:
    return ReportDataModule(root=data_root / "synthetic")


@pytest.fixture(scope="module")
def checkpoint(data_root, tmp_path_factory) -> Path:
    return pretrained_checkpoint(data_root, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(checkpoint, data_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    to_hf(checkpoint, folder, None, (*SIZES, f"data_root={data_root}"))
    return folder


def test_transformers_loads_what_was_written(checkpoint, exported, data):
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported)
    ours = BACKBONE.build(data.special, data.vocab_size)
    load_weights(ours, checkpoint, ("pretrain",))
    theirs = network.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.network.state_dict().items())
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    coords = response_coords(CLEAN, 0, 9, 1, ids.device)  # blocks of one clean token: causal
    rule = AttentionRule(query=coords, key=coords)
    with torch.no_grad():
        logits = ours.eval()(ids, torch.arange(9).expand(3, 2, 9), rule)
        assert torch.allclose(network.eval()(ids).logits, logits, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab()
    images = Qwen2VLImageProcessorPil.from_pretrained(exported)
    assert (images.patch_size, images.merge_size) == (8, 2)
    about = json.loads((exported / "echo_pl.json").read_text())
    assert about["record"]["stage"] == "pretrain"
    assert about["prompt"]["template"] == "plain"
    assert not list(exported.parent.glob("*.partial"))


def test_there_and_back(checkpoint, exported, data, tmp_path):
    from_hf(exported, tmp_path / "back.ckpt")
    (had, before), (has, after) = read_checkpoint(checkpoint), read_checkpoint(tmp_path / "back.ckpt")
    assert (has.stage, has.block_size, has.vocabulary, has.chain) == (had.stage, had.block_size, had.vocabulary, had.chain)
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(torch.equal(before["state_dict"][name], value) for name, value in after["state_dict"].items())
    load_weights(BACKBONE.build(data.special, data.vocab_size), tmp_path / "back.ckpt", ("pretrain",))
    assert describe(tmp_path / "back.ckpt")["can_resume"] is False
    assert has.geometry == {"heads": 2, "key_heads": 1, "vision_heads": 2, "patch_size": 8, "spatial_merge_size": 2}


def test_an_export_is_a_backbone_to_start_from(exported, data):
    vlm = PretrainedBackbone(path=str(exported), gradient_checkpointing=False).build(data.special, data.vocab_size)
    assert vlm.dtype == torch.float32


def test_half_precision(checkpoint, data_root, tmp_path):
    to_hf(checkpoint, tmp_path / "half", "bfloat16", (*SIZES, f"data_root={data_root}"))
    assert Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16


def test_a_foreign_folder_says_nothing_of_stages(exported, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    for path in exported.iterdir():
        if path.name != "echo_pl.json":
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"there is no echo_pl.json in .*: say what the model is with --stage"):
        from_hf(folder, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="a model of stage dcd has a block size: give --block-size"):
        from_hf(folder, tmp_path / "x.ckpt", stage="dcd")
    made = from_hf(folder, tmp_path / "x.ckpt", stage="dcd", block_size=8, grid="absolute", context_attention="block_causal")
    assert (made.backbone, made.grid, made.start) == ("PretrainedBackbone", "absolute", None)
    with pytest.raises(FileExistsError, match="exists; give another place"):
        from_hf(folder, tmp_path / "x.ckpt", stage="dcd", block_size=8)


def test_a_model_that_does_not_fit_is_rejected_and_nothing_is_left(checkpoint, data, data_root, tmp_path):
    own = (*SIZES, f"data_root={data_root}")
    with pytest.raises(ValueError, match=r"does not fit the (model|backbone)"):
        to_hf(checkpoint, tmp_path / "out", None, (*own, "backbone.factory.layers=3"))
    heads = write_checkpoint(
        tmp_path / "heads.ckpt", BACKBONE.build(data.special, data.vocab_size), record("pretrain", geometry={"vision_heads": 4})
    )
    with pytest.raises(ValueError, match=r"the checkpoint was trained with vision_heads 4, the model of .* has 2"):
        to_hf(heads, tmp_path / "out", None, own)
    heads.unlink()
    other = write_checkpoint(
        tmp_path / "other.ckpt", BACKBONE.build(data.special, data.vocab_size), record("rad", vocabulary="another")
    )
    with pytest.raises(ValueError, match=r"was trained with vocabulary another, .*data.tokenizer_path"):
        to_hf(other, tmp_path / "out", None, own)
    with pytest.raises(ValueError, match=r"there is no .*config.yaml, the configuration of the run"):
        to_hf(checkpoint, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at"):
        to_hf(tmp_path / "nowhere.ckpt", tmp_path / "out", None, own)
    with pytest.raises(FileNotFoundError, match=r"no config.json in"):
        from_hf(tmp_path, tmp_path / "out.ckpt", stage="rad", block_size=8)
    with pytest.raises(ValueError, match="is one file already"):
        merge(checkpoint, tmp_path / "out.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.ckpt"]


def test_the_command_shows_a_checkpoint(checkpoint, monkeypatch, capsys):
    assert main(["show", checkpoint]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["stage"], shown["format"]) == ("pretrain", "one file")
    assert shown["parameters"] == sum(value.numel() for value in read_checkpoint(checkpoint)[1]["state_dict"].values())
