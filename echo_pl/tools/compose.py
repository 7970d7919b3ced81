"""What the tools share: composing the configuration outside ``echo-pl`` itself."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from echo_pl.__main__ import EXPERIMENTS


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose ``experiments/config.yaml`` with overrides, as ``echo-pl`` would."""
    with initialize_config_dir(version_base="1.3", config_dir=str(EXPERIMENTS)):
        return compose("config", overrides=list(overrides))
