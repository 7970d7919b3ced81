"""Every key of the YAML files has a comment, and every option of the configuration's classes has a key."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from echo_pl.backbone.factory import PretrainedBackbone, TinyBackbone
from echo_pl.backbone.lora import LoraSettings
from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.diffusion.losses import DistillationConfig
from echo_pl.diffusion.noise import NoiseConfig
from echo_pl.sampling.config import DecodeConfig, LoopStop, TokenChoice
from echo_pl.stages.optimization import Optimization

KEY = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: +(?P<value>[^#\s].*?))?(?: +(?P<comment>#.+))?")
SELF_EXPLAINING = {"_target_", "defaults"}
FILLED_OR_HYDRA = {"run", "hydra"}
"""Root nodes of config.yaml: filled in when a run starts, and Hydra's own."""

PLACES = [
    (DecodeConfig, "stage=rad", "stage.module.decode"),
    (DecodeConfig, "stage=dcd", "stage.module.decode"),
    (TokenChoice, "stage=rad", "stage.module.decode.token_choice"),
    (LoopStop, "stage=rad", "stage.module.decode.loop_stop"),
    (NoiseConfig, "stage=rad", "stage.module.noise"),
    (DistillationConfig, "stage=dcd", "stage.module.objective.config"),
    *((Optimization, f"stage={stage}", "stage.module.optimization") for stage in ("warmup", "pretrain", "rad", "dcd")),
    (LoraSettings, "lora=all_linear", "stage.module.lora"),
    (TinyBackbone, "backbone=tiny", "backbone.factory"),
    (PretrainedBackbone, "backbone=qwen2_5_vl_7b", "backbone.factory"),
]


@pytest.mark.parametrize(("kind", "override", "place"), PLACES, ids=[f"{kind.__name__}-{o}" for kind, o, _ in PLACES])
def test_every_option_is_in_the_configuration(kind, override, place):
    node = OmegaConf.select(compose_config([override]), place)
    assert isinstance(node, DictConfig)
    assert node._target_.endswith(f".{kind.__name__}")
    assert set(map(str, node)) - {"_target_"} == {field.name for field in fields(kind)}


def uncommented(text: str) -> list[str]:
    """Lines with a key and a plain value, and no comment beside or right above them."""
    found, above, root = [], "", ""
    for line in text.splitlines():
        key = KEY.fullmatch(line)
        if key is not None:
            root = root if key["indent"] else key["name"]
            explained = key["comment"] or above.lstrip().startswith("#") or key["name"] in SELF_EXPLAINING
            if key["value"] and not explained and root not in FILLED_OR_HYDRA:
                found.append(line.strip())
        above = line
    return found


def test_the_check_itself():
    assert uncommented("a: 1\nb: # of b\n  c: 2 # of c\n  d: [1, 2]\n# of e\ne: ${a}\nrun:\n  f: ???") == ["a: 1", "d: [1, 2]"]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_value_is_explained_beside_it(path: Path):
    assert uncommented(path.read_text(encoding="utf-8")) == []
