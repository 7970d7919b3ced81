"""The sweeper of ``echo-pl -m sweep=...``: Hydra takes plugins from this namespace alone, so its class stands here.

What it does with the jobs is in :mod:`echo_pl.sweeps.sweep`. Hydra imports every plugin at each start, so this file is light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import DictConfig


class ChainSweeper(BasicSweeper):
    """Reads the command line as Hydra's own sweeper does, and launches what the jobs start from before the jobs."""

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out every job, with what it starts from; a job that fails does not end the others."""
        from echo_pl.sweeps.sweep import sweep  # imports torch

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (cells,) = self.split_arguments(overrides, None)
        swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
        sweep(cells, swept, self.compose, self.launch)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job."""
        assert self.config is not None
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))

    def launch(self, jobs: Sequence[Sequence[str]], number: int) -> Sequence[JobReturn]:
        """Start jobs and wait for them: one at a time on this machine, so that each is on record before the next begins."""
        assert self.launcher is not None
        alone = isinstance(self.launcher, BasicLauncher)
        size = self.max_batch_size or (1 if alone else len(jobs))
        return self.launcher.launch(list(jobs[:size]), initial_job_idx=number)
