"""``echo-pl`` and ``python -m echo_pl``: compose the configuration under ``experiments/`` and run it, or one of :data:`COMMANDS`.

Tools stand beside it: ``python -m echo_pl.cli.<name> --help``.
"""

from __future__ import annotations

import importlib
import sys

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from echo_pl.config.compose import EXPERIMENTS
from echo_pl.config.errors import reported
from hydra_plugins.echo_pl_sweeper import ChainSweeper

COMMANDS = {
    "prepare": "echo_pl.cli.corpus_prepare",
    "view": "echo_pl.cli.corpus_view",
    "collect": "echo_pl.distill.collect_trajectories",
    "gap": "echo_pl.distill.gap",
    "evaluate": "echo_pl.cli.evaluate",
    "compare": "echo_pl.sweeps.compare",
    "upload": "echo_pl.cli.mlflow_upload",
}
"""First words of a command line that are no override: each is a tool with options of its own, and nothing is composed."""


@hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")
def _run(config: DictConfig) -> None:
    from echo_pl.distributed.agree import together
    from echo_pl.runs.checkpointing import StoppedError  # after Hydra has answered --help: importing torch takes seconds
    from echo_pl.runs.run import run

    if config.get("sweep") is not None:  # a job among others: what it raises is the sweeper's, which names it at the end
        from echo_pl.sweeps.job import carry_out

        carry_out(config)
        return
    try:
        with reported(), together():
            run(config)
    except StoppedError as stopped:
        print(f"echo-pl: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None


def main() -> None:
    """Entry point of the console script."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        raise SystemExit(importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
    Plugins.instance().register(ChainSweeper)  # an editable installation is not where Hydra looks for plugins
    _run()


if __name__ == "__main__":
    main()
