"""Stages 2 and 3 with low-rank adapters, as runs: what is trained, cut off and resumed, validated, handed on and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import SIZES, SMALL, pretrained_checkpoint, weights
from stage_parts import BACKBONE, write_checkpoint
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.checkpoint import load_weights, read_checkpoint
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.runs.checkpoint_files import describe, to_hf
from echo_pl.runs.run import RunOutcome, run

pytestmark = pytest.mark.slow

LORA = ["lora=all_linear", "stage.module.lora.rank=4"]
OWN = ["stage.batch_size=4", "stage.checkpoint_every=1", "stage.max_steps=4", "stage.validate_every=4"]


@pytest.fixture(scope="module")
def data_root(tiny_data) -> Path:
    return tiny_data


@pytest.fixture(scope="module")
def pretrained(data_root, tmp_path_factory) -> Path:
    return pretrained_checkpoint(data_root, tmp_path_factory.mktemp("pretrained"))


def start_run(data_root: Path, outputs: Path, *overrides: str) -> RunOutcome:
    return run(compose_config([f"data_root={data_root}", f"outputs={outputs}", *SMALL, *SIZES, *OWN, *overrides]))


@pytest.fixture(scope="module")
def adapted(data_root, pretrained, tmp_path_factory) -> RunOutcome:
    """Stage 2 with adapters."""
    return start_run(data_root, tmp_path_factory.mktemp("rad"), "stage=rad", f"start={pretrained}", *LORA)


def stored(checkpoint: Path) -> dict[str, Tensor]:
    return read_checkpoint(checkpoint)[1]["state_dict"]


def is_adapter(name: str) -> bool:
    return "lora_" in name or name == "vlm.mask_embedding"


def test_adapters_alone_are_trained(adapted, pretrained):
    record, content = read_checkpoint(adapted.checkpoint)
    assert (record.stage, record.lora["rank"], record.lora["alpha"]) == ("rad", 4, 32)
    base = {name.replace(".base_layer", ""): value for name, value in content["state_dict"].items() if not is_adapter(name)}
    before = stored(pretrained)
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in base)
    seconds = [value for name, value in content["state_dict"].items() if "lora_B" in name]
    assert len(seconds) == 2 * 7
    assert all(float(value.abs().max()) > 0 for value in seconds)
    (optimizer,) = content["optimizer_states"]
    assert len(optimizer["state"]) == sum(map(is_adapter, content["state_dict"]))
    assert describe(adapted.checkpoint)["lora"] == record.lora


def test_a_run_with_adapters_resumes_bit_by_bit(data_root, pretrained, adapted, tmp_path):
    own = ["stage=rad", f"start={pretrained}", *LORA]
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *own, "+callbacks.cut={_target_: stage_parts.CutOff, at: 3}")
    with pytest.raises(ValueError, match=r"was trained with lora \{'rank': 4, .*, this run has None; give lora=all_linear"):
        start_run(data_root, tmp_path, "stage=rad", "resume=auto")
    with pytest.raises(ValueError, match=r"was trained with lora \{'rank': 4, .*, this run has \{'rank': 8, "):
        start_run(data_root, tmp_path, *own, "stage.module.lora.rank=8", "resume=auto")
    rest = start_run(data_root, tmp_path, *own, "resume=auto")
    one, other = stored(rest.checkpoint), stored(adapted.checkpoint)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_validation_finds_the_adapters_itself(data_root, adapted, tmp_path):
    seen = start_run(data_root, tmp_path, "stage=rad", "task=validate", f"resume={adapted.checkpoint}")
    compared = {name: value for name, value in adapted.metrics.items() if name.startswith("val/")}
    assert compared
    assert {name: seen.metrics[name] for name in compared} == pytest.approx(compared)


@pytest.mark.parametrize("lora", [LORA, []], ids=["adapters", "dense"])
def test_stage_3_starts_from_their_sum(data_root, adapted, tmp_path, lora):
    made = start_run(
        data_root, tmp_path, "stage=dcd", f"start={adapted.checkpoint}", "stage.module.decode.denoising_steps=3", *lora
    )
    base = {name.replace(".base_layer", ""): value for name, value in stored(made.checkpoint).items() if not is_adapter(name)}
    summed = {f"vlm.{name}": value for name, value in weights(adapted.checkpoint, data_root).items()}
    assert base.keys() == summed.keys()
    changed = [name for name in base if not torch.equal(base[name], summed[name])]
    assert (not changed) == bool(lora)
    assert (read_checkpoint(made.checkpoint)[0].lora is None) == (not lora)


def test_trajectories_are_collected_from_their_sum(data_root, adapted, tmp_path):
    """As from the same model without adapters."""
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = BACKBONE.build(data.special, data.vocab_size)
    about = replace(load_weights(vlm, adapted.checkpoint, ("rad",)), lora=None)
    plain = write_checkpoint(tmp_path / "plain.ckpt", vlm, about)
    stores = []
    for name, start in (("adapters", adapted.checkpoint), ("dense", plain)):
        places = [f"data_root={data_root}", f"outputs={tmp_path}", f"start={start}", "stage.limit_train=6", "stage.batch_size=6"]
        config = compose_config(["stage=dcd", *SMALL, *SIZES, *places, "stage.module.decode.denoising_steps=2"])
        stores.append(collect_trajectories(config, tmp_path / name))
    (one, counts), (other, other_counts) = stores
    assert counts == other_counts
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_it_is_exported_as_their_sum(data_root, adapted, tmp_path):
    to_hf(adapted.checkpoint, tmp_path / "model")
    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    summed = {name.removeprefix("network."): value for name, value in weights(adapted.checkpoint, data_root).items()}
    assert exported.keys() == summed.keys()
    assert all(torch.equal(exported[name], summed[name]) for name in exported)


def test_the_speed_of_a_deployed_student_is_what_is_compared(data_root, pretrained, tmp_path):
    """Timed as it would be deployed: its adapters are summed for a while, and its checkpoint is none the wiser."""
    speedup = [
        "+callbacks.speedup={_target_: echo_pl.callbacks.speedup_ablation.SpeedupAblation, block_sizes: [8], studies: 2, "
        "progress: false}",
        "stage.max_steps=1",
    ]
    made = start_run(data_root, tmp_path, "stage=rad", f"start={pretrained}", *LORA, *speedup)
    assert (made.folder / "speedup" / "fit.json").is_file()
    assert any(is_adapter(name) for name in stored(made.checkpoint))
