"""``echo-pl`` and ``python -m echo_pl``: compose the configuration under ``experiments/`` and run it, or one of :data:`COMMANDS`.

Tools stand beside it: ``python -m echo_pl.tools.<name> --help``.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.echo_pl_sweeper import ChainSweeper

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
COMMANDS = {
    "prepare": "echo_pl.tools.prepare_corpus",
    "view": "echo_pl.tools.view_shard",
    "collect": "echo_pl.tools.collect_trajectories",
    "gap": "echo_pl.tools.mean_field_gap",
    "evaluate": "echo_pl.tools.evaluate",
    "compare": "echo_pl.tools.compare",
    "upload": "echo_pl.tools.upload_run",
}
"""First words of a command line that are no override: each is a tool with options of its own, and nothing is composed."""
TRACEBACK = "ECHO_PL_TRACEBACK"
"""Set this environment variable to see where an error came from."""


def explain(error: Exception) -> str:
    """One message for a person: what is wrong, and for a configuration value also where it stands."""
    if isinstance(error, InstantiationException):
        cause = error.__cause__ or error.__context__
        where = [line for line in str(error).splitlines() if line.startswith("full_key:")]
        text = str(cause) if cause is not None else str(error).splitlines()[0]
        return f"{text} ({where[0].replace('full_key:', 'in the configuration at')})" if where else text
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {error.filename or 'a file'}: make room, then resume=auto"
    return str(error)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors a person can act on into one message and exit status 2."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"echo-pl: {explain(error)}\n(set {TRACEBACK}=1 to see where)", file=sys.stderr)
        raise SystemExit(2) from None


@hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")
def _run(config: DictConfig) -> None:
    from echo_pl.checkpointing import StoppedError  # after Hydra has answered --help: importing torch takes seconds
    from echo_pl.distributed.agree import together
    from echo_pl.run import run

    if config.get("sweep") is not None:  # a job among others: what it raises is the sweeper's, which names it at the end
        from echo_pl.tools.sweep_job import carry_out

        carry_out(config)
        return
    try:
        with reported(), together():
            run(config)
    except StoppedError as told:
        print(f"echo-pl: {told}", file=sys.stderr)
        raise SystemExit(128 + told.number) from None


def main() -> None:
    """Entry point of the console script."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        raise SystemExit(importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
    Plugins.instance().register(ChainSweeper)  # an editable installation is not where Hydra looks for plugins
    _run()


if __name__ == "__main__":
    main()
