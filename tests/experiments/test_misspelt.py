"""Misspelt keys, in a YAML file or on the command line: one message with the right ones, exit status 2, and nothing trained."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from commands import command
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from echo_pl.__main__ import main
from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.config.errors import TRACEBACK, explain, reported
from echo_pl.config.keys import target
from echo_pl.runs.run import run


@pytest.fixture(scope="module")
def data_root(medium_data) -> Path:
    return medium_data


TYPOS = [
    ("config.yaml", "max_response_tokens: 128", "max_respons_tokens: 128\nmax_response_tokens: 128", "max_respons_tokens"),
    ("config.yaml", "  experiment: echo_pl", "  experiment: echo_pl\n  experimet: x", "mlflow.experimet"),
    ("stage/base/shared.yaml", "gradient_clip:", "gradient_klip: 2.0\ngradient_clip:", "stage.gradient_klip"),
    ("stage/rad.yaml", "  loss_weight: elbo", "  los_weight: elbo", "los_weight"),
    ("stage/base/decode.yaml", "confidence_threshold: 0.9", "confidence_treshold: 0.9", "confidence_treshold"),
    ("stage/rad.yaml", "    t_min: 0.05", "    tmin: 0.05", "tmin"),
    ("stage/rad.yaml", "    warmup_steps:", "    warm_up_steps:", "warm_up_steps"),
    ("data/synthetic.yaml", "shuffle_buffer:", "shufle_buffer:", "shufle_buffer"),
    ("backbone/tiny.yaml", "  mlp_width:", "  mlp_widht:", "mlp_widht"),
    ("backbone/tiny.yaml", "needs_warmup:", "neds_warmup: true\nneeds_warmup:", "backbone.neds_warmup"),
    ("trainer/cpu.yaml", "precision:", "precission:", "precission"),
    ("callbacks/default.yaml", "  num_samples:", "  num_sample:", "num_sample"),
]


@pytest.mark.parametrize(("file", "line", "typo", "named"), TYPOS, ids=[typo[3] for typo in TYPOS])
def test_a_misspelt_key_in_a_file_is_named(data_root, tmp_path, capsys, monkeypatch, file, line, typo, named):
    monkeypatch.delenv(TRACEBACK, raising=False)
    experiments = tmp_path / "experiments"
    shutil.copytree(EXPERIMENTS, experiments)
    path = experiments / file
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1
    path.write_text(text.replace(line, typo), encoding="utf-8")
    own = ["threads=1", "start=null", "min_free_gb=0", "mlflow.tracking_uri=null"]
    with initialize_config_dir(version_base="1.3", config_dir=str(experiments)):
        config = compose("config", [f"data_root={data_root}", f"outputs={tmp_path / 'outputs'}", *own])
    if not named.startswith("mlflow."):
        config.mlflow = None
    with pytest.raises(SystemExit) as ended, reported():
        run(config)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert named in message
    assert len(message.strip().splitlines()) == 2, "one message, and how to see more"
    assert not list((tmp_path / "outputs").rglob("*.ckpt"))


def test_a_missing_class_is_named():
    with pytest.raises(ValueError, match=r"echo_pl.stages.rad.RADModul cannot be imported"):
        target(OmegaConf.create({"_target_": "echo_pl.stages.rad.RADModul"}))


def test_the_command_names_the_key_nearest_to_a_misspelt_one(capsys, monkeypatch):
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "argv", ["echo-pl", "blok_size=4"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "unknown configuration key blok_size, did you mean block_size?" in message
    assert len(message.strip().splitlines()) == 2, "one message, and how to see more"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("stage=foo", r"there is no stage=foo. Choose one of dcd, pretrain, rad, warmup"),
        ("stage=pretain", r"there is no stage=pretain, did you mean pretrain\? Choose one of dcd"),
        ("stage=dcd ablation=tilt", r"there is no ablation=tilt, did you mean tilted\?"),
        ("stag=rad", r"unknown configuration key stag, did you mean stage\?"),
        ("stage.modul.x=1", r"unknown configuration key stage.modul, did you mean stage.module\?"),
        ("learning_rate=1", r"key learning_rate, did you mean stage.module.optimization.learning_rate\?"),
        ("stage=rad stage.module.tilt=1", r"stage.module.tilt is a key of stage=dcd, but not with the stage"),
        ("stage=rad predict", r"'predict' is not of the form key=value"),
        ("block_size 8", r"'block_size' is not of the form key=value, did you mean block_size=\?"),
        ("seed=[1,2", r"seed=\[1,2 cannot be parsed .*in quotes"),
    ],
)
def test_a_bad_word_on_the_command_line_is_answered_with_the_right_ones(overrides, message):
    with pytest.raises(HydraException) as caught:
        compose_config(overrides.split())
    assert re.search(message, explain(caught.value))


def test_help_lists_the_groups(capsys):
    assert command("train")(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("stage: dcd, pretrain, rad, warmup", "echo-pl train stage=rad block_size=8", "backbone: qwen2_5_vl_7b, tiny"):
        assert word in shown
