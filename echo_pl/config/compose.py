"""The configuration under ``experiments/``, composed outside the ``echo-pl`` command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

_PACKAGE = Path(__file__).resolve().parents[1]
EXPERIMENTS = next(
    (folder for folder in (_PACKAGE / "experiments", _PACKAGE.parent / "experiments") if (folder / "config.yaml").is_file()),
    _PACKAGE / "experiments",
)
"""Folder of the configuration: inside the package in a wheel, beside it in a checkout."""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose ``experiments/config.yaml`` with overrides, as ``echo-pl`` would; also inside one of its jobs."""
    with _without_global_hydra(), initialize_config_dir(version_base="1.3", config_dir=str(EXPERIMENTS)):
        return compose("config", overrides=list(overrides))


@contextmanager
def _without_global_hydra() -> Iterator[None]:
    """Set a running Hydra aside, as another cannot be initialized beside it, and restore it afterwards."""
    running = GlobalHydra.instance().hydra
    if running is None:
        yield
        return
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().initialize(running)
