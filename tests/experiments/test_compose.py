"""Every YAML under experiments/ composes and builds what it names; one block size reaches every place."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from echo_pl.backbone.checkpoint import StageRecord
from echo_pl.backbone.factory import PretrainedBackbone, TinyBackbone
from echo_pl.backbone.lora import LoraSettings
from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.config.keys import check_keys
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.diffusion.objectives import DirectConditional
from echo_pl.distributed.fsdp2 import FSDP2Strategy
from echo_pl.runs.assemble import make_stage, make_trainer
from echo_pl.runs.lineage import SavedCheckpoint, make_lineage
from echo_pl.runs.start import BEFORE, start_layout, start_stages
from echo_pl.structs import SpecialTokens

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(EXPERIMENTS.iterdir())
    if folder.is_dir()
    and list(folder.glob("*.yaml"))
    and folder.name not in ("bench", "demo")  # of no run: test_bench.py, test_tools_demo.py
}
# Found by no glob here: pieces that only other files name.
PIECES = {"ablation/base/no_objective.yaml", "stage/base/shared.yaml", "stage/base/decode.yaml", "config.yaml"}


@pytest.fixture(scope="module")
def data_root(tiny_data) -> Path:
    return tiny_data


def build(config: DictConfig, data_root: Path) -> L.LightningModule:
    check_keys(config)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    stage = config.start_stage or next(iter(BEFORE[config.stage.name]), None)
    start = stage and SavedCheckpoint(path=Path("before.ckpt"), record=StageRecord(stage=stage, backbone="TinyBackbone"))
    return make_stage(config, data, make_lineage(config, data, start, "chain"))


@cache
def composed(*overrides: str) -> DictConfig:
    return compose_config(list(overrides))


def compose(data_root: Path, *overrides: str) -> DictConfig:
    return deepcopy(composed(f"data_root={data_root}", *overrides))


def test_every_file_is_in_a_group_that_is_tested():
    files = {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.yaml")}
    files -= {
        "bench/decode.yaml",
        "bench/rad.yaml",
        "demo/quick.yaml",
        "demo/full.yaml",
        "hydra/launcher/slurm.yaml",
    }  # the last needs submitit: make test-slurm
    files -= {"hydra/sweeper/chain.yaml"}  # of sweep/*.yaml: tests/unit/test_tools_sweep.py
    assert files == PIECES | {f"{group}/{name}.yaml" for group, names in GROUPS.items() for name in names}
    assert set(GROUPS) == {"stage", "backbone", "data", "trainer", "callbacks", "lora", "ablation", "sweep"}
    assert set(GROUPS["stage"]) == set(BEFORE)


@pytest.mark.parametrize("stage", GROUPS["stage"])
def test_every_stage_composes_and_builds(data_root, stage):
    module = build(compose(data_root, f"stage={stage}"), data_root)
    assert module.stage_name == stage
    assert module.optimization.schedule == "cosine"


OF_STAGE_2 = {"grow", "rad_scale"}


@pytest.mark.parametrize("ablation", sorted({*GROUPS["ablation"]} - OF_STAGE_2))
def test_every_ablation_composes_and_builds(data_root, ablation):
    stored = ["stage.module.trajectories=somewhere"] if "bigrams" in ablation else []  # where they count pairs
    config = compose(data_root, "stage=dcd", f"ablation={ablation}", *stored)
    module = build(config, data_root)
    assert module.objective.name == (ablation if ablation != "raw" else "dcd"), "raw is of all stages, which have no objective"
    usual = compose(data_root, "stage=dcd", *stored)
    assert ablation == "dcd" or nameless(config) != nameless(usual), "a name alone is no ablation"


def test_stage_3_distils_by_dcd(data_root):
    assert type(build(compose(data_root, "stage=dcd"), data_root).objective) is DirectConditional


def nameless(config: DictConfig) -> Any:
    """Without the name of the objective."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    content["stage"]["module"]["objective"].pop("name", None)
    return content


def test_less_data_composes_for_stage_2(data_root):
    config = compose(data_root, "stage=rad", "ablation=rad_scale")
    assert config.data.limit_train == 600
    assert config.stage.max_steps == compose(data_root, "stage=rad").stage.max_steps, "less data, not fewer steps"


@pytest.mark.parametrize("stage", GROUPS["stage"])
def test_raw_reports_are_for_every_stage(data_root, stage):
    config = compose(data_root, f"stage={stage}", "ablation=raw")
    assert config.data.version == "raw"
    assert build(config, data_root).stage_name == stage


@pytest.mark.parametrize("name", GROUPS["sweep"])
def test_every_sweep_composes_and_builds(data_root, name):
    config = compose(data_root, f"sweep={name}", "sweep.store=false")
    assert build(config, data_root).stage_name == "dcd"
    assert config.data.limit_train == config.sweep.trajectories == 2400


def test_growing_blocks_composes_for_stage_2(data_root):
    config = compose(data_root, "stage=rad", "ablation=grow")
    assert build(config, data_root).block_size == 8
    assert (start_stages(config), start_layout(config)) == (("rad",), (4, "response", "causal"))


@pytest.mark.parametrize("stage", ["rad", "dcd"])
@pytest.mark.parametrize("lora", GROUPS["lora"])
def test_every_set_of_adapters_builds(data_root, stage, lora):
    module = build(compose(data_root, f"stage={stage}", f"lora={lora}", "stage.module.lora.rank=4"), data_root)
    assert module.lora == LoraSettings(rank=4)
    assert module.lineage.lora == module.lora.record
    assert build(compose(data_root, f"stage={stage}"), data_root).lineage.lora is None


def test_stage_1_has_no_adapters(data_root):
    with pytest.raises(ValueError, match="NormalizedPretrain got an unexpected keyword argument 'lora'"):
        build(compose(data_root, "stage=pretrain", "lora=all_linear"), data_root)


@pytest.mark.parametrize("ablation", GROUPS["ablation"])
def test_ablations_hold_only_the_difference(ablation):
    lines = [
        line
        for line in (EXPERIMENTS / "ablation" / f"{ablation}.yaml").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.strip().startswith("#")  # "# @package" is one, too
    ]
    assert 3 <= len(lines) <= 6


def test_the_tiny_backbone_s_defaults_are_those_of_its_class(data_root):
    assert instantiate(compose(data_root).backbone.factory, _convert_="all") == TinyBackbone(train_attention="sdpa")


def test_the_7b_backbone_asks_for_its_path_and_takes_it(data_root):
    with pytest.raises(MissingMandatoryValue, match=r"backbone\.factory\.path"):
        OmegaConf.to_container(compose(data_root, "backbone=qwen2_5_vl_7b"), resolve=True, throw_on_missing=True)
    config = compose(data_root, "backbone=qwen2_5_vl_7b", "backbone.factory.path=/models/lingshu")
    check_keys(config)
    factory = instantiate(config.backbone.factory, _convert_="all")
    assert factory == PretrainedBackbone(path="/models/lingshu")
    assert config.backbone.needs_warmup is False


@pytest.mark.parametrize("name", GROUPS["data"])
def test_every_corpus_configuration_builds(data_root, name):
    config = compose(data_root, f"data={name}")
    data = instantiate(config.data, _convert_="all")
    assert isinstance(data, ReportDataModule)
    roots = [corpus.folder.path for corpus in data.corpora.corpora]
    assert roots == ([data_root / "synthetic", data_root / "nih"] if name == "mixed" else [data_root / name])


@pytest.mark.parametrize("name", GROUPS["callbacks"])
def test_every_set_of_callbacks_builds(data_root, tmp_path, name):
    config = compose(data_root, f"callbacks={name}")
    fill(config)
    callbacks = [instantiate(entry, _convert_="all") for entry in (config.callbacks or {}).values()]
    assert all(isinstance(callback, L.Callback) for callback in callbacks)
    assert bool(callbacks) == (name != "none")


STRATEGIES = {"cpu": SingleDeviceStrategy, "ddp": DDPStrategy, "fsdp2": FSDP2Strategy, "fsdp2_bf16": FSDP2Strategy, "gpu": None}


@pytest.mark.parametrize("name", GROUPS["trainer"])
def test_every_trainer_composes_and_builds_where_it_can(data_root, tmp_path, name):
    config = compose(data_root, f"trainer={name}", "callbacks=none", "stage.max_steps=7", "stage.accumulate=3")
    strategy = STRATEGIES[name]
    assert config.trainer.accelerator == ("gpu" if strategy is None else "cpu")
    if strategy is not None:
        trainer = make_trainer(config, tmp_path, None)
        assert (trainer.max_steps, trainer.accumulate_grad_batches) == (7, 3)
        assert trainer.precision == ("32-true" if name == "fsdp2_bf16" else "bf16-mixed")
        assert type(trainer.strategy) is strategy
        assert trainer.world_size == config.trainer.devices * config.trainer.num_nodes


def fill(config: DictConfig) -> None:
    """Fill in the values that only a run has."""
    config.run = dict.fromkeys(config.run, "x")


def places_of(node: Any, key: str, at: str = "") -> dict[str, Any]:
    """Every place of a resolved configuration that has this key."""
    if not isinstance(node, dict):
        return {}
    own = {f"{at}{name}": value for name, value in node.items() if name == key}
    return own | {place: v for name, value in node.items() for place, v in places_of(value, key, f"{at}{name}.").items()}


@pytest.mark.parametrize("stage", ["rad", "dcd"])
@pytest.mark.parametrize(
    ("key", "value"), [("block_size", 4), ("max_response_tokens", 64), ("grid", "absolute"), ("context_attention", "full")]
)
def test_a_value_given_once_reaches_every_place(data_root, stage, key, value):
    config = compose(data_root, f"stage={stage}", f"{key}={value}", "callbacks=speedup")
    fill(config)
    places = places_of(OmegaConf.to_container(config, resolve=True), key)
    assert f"stage.module.decode.{key}" in places
    assert set(places.values()) == {value}
    module = build(config, data_root)
    assert getattr(module.decode, key) == value
    if key == "max_response_tokens":
        assert config.data.max_response_tokens == 64
    else:
        assert getattr(module.lineage, key) == value


def test_the_seed_reaches_noise_order_weights_and_draws(data_root):
    config = compose(data_root, "seed=7")
    seeds = places_of(OmegaConf.to_container(config, resolve=False), "seed")
    resolved = {place: OmegaConf.select(config, place) for place in seeds}
    assert set(resolved) == {
        "seed",
        "data.seed",
        "backbone.factory.seed",
        "stage.module.noise.seed",
        "stage.module.decode.token_choice.seed",
    }
    assert set(resolved.values()) == {7}


def test_a_block_size_that_does_not_divide_the_limit_is_named(data_root):
    with pytest.raises(InstantiationException, match=r"block_size 7 does not fit the grid: max_response_tokens .* got 128"):
        build(compose(data_root, "block_size=7"), data_root)


@pytest.mark.parametrize("override", ["blok_size=4", "stage.module.decode.blok_size=4", "stage.max_step=3"])
def test_a_misspelt_key_on_the_command_line_is_rejected(data_root, override):
    with pytest.raises(ConfigCompositionException) as caught:
        compose(data_root, override)
    assert override.split("=")[0].split(".")[-1] in str(caught.value.__cause__ or caught.value)


def test_an_unknown_stage_is_rejected_with_those_that_exist(data_root):
    with pytest.raises(MissingConfigException, match=r"stage/pretain") as caught:
        compose(data_root, "stage=pretain")
    assert "pretrain" in str(caught.value)


def test_an_unknown_task_is_rejected(data_root):
    with pytest.raises(ValueError, match=r"task must be one of .* got 'train'"):
        check_keys(compose(data_root, "task=train"))


def test_the_ar_row_needs_no_tokenizer_of_a_folder(data_root):
    """A corpus behind a URL, and a mixture, have none beside their shards: it is that of the data."""
    config = compose(data_root, "stage=rad", "callbacks=speedup", "data.root=https://host/corpus", "data.tokenizer_path=null")
    fill(config)
    config.run.ar_checkpoint = None
    make = instantiate(config.callbacks.speedup).autoregressive
    assert make(special=SpecialTokens(pad=0, eos=1, image=2, mask=3, never_sampled=()), vocab_size=4) is None
    assert not any("host/corpus" in str(value) for value in make.keywords.values())
