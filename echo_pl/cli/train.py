"""`echo-pl train`, `validate` and `sweep`: compose the configuration by Hydra and run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from echo_pl.cli.grammar import command

if TYPE_CHECKING:
    from omegaconf import DictConfig

OWN_FLAGS = ("-h", "--help", "--with-warmup")
GROUPS = ("stage", "backbone", "data", "trainer", "callbacks", "lora", "ablation", "sweep")
_NOT_OF_THE_WARMUP = ("stage", "run_name=", "start=", "resume=")


class HydraCommand(TyperCommand):
    """A command that leaves every argument but :data:`OWN_FLAGS` to Hydra."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the flags of this command and keep the rest in ``ctx.obj``."""
        ctx.obj = [argument for argument in args if argument not in OWN_FLAGS]
        return super().parse_args(ctx, [argument for argument in args if argument in OWN_FLAGS])

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples, then the groups of the configuration with their choices."""
        from echo_pl.config.compose import EXPERIMENTS

        super().format_epilog(ctx, formatter)
        formatter.write("\nConfiguration groups:\n")
        for group in GROUPS:
            names = sorted(path.stem for path in (EXPERIMENTS / group).glob("*.yaml"))
            formatter.write_text(f"  {group}: {', '.join(names)}")


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""

    @command(
        app,
        "train",
        "echo-pl train stage=rad block_size=8",
        "echo-pl stage=dcd ablation=ce                # the short form: without the word train",
        "echo-pl -m stage=rad block_size=4,8,16       # one run after the other",
        "echo-pl train stage=rad resume=auto          # continue the newest unfinished run",
        cls=HydraCommand,
    )
    def train(
        ctx: typer.Context,
        with_warmup: Annotated[
            bool,
            typer.Option("--with-warmup", help="First warm the vision tower up, unless a finished warm-up exists."),
        ] = False,
    ) -> None:
        """Train a stage: stage=warmup, pretrain, rad or dcd.

        Each stage starts from the newest finished run of the stage before. Keys are documented in experiments/config.yaml and
        its groups. Options of Hydra pass through: --cfg job prints the configuration, --hydra-help lists them.
        """
        if with_warmup:
            warm_up(ctx.obj)
        run_hydra(ctx.obj)

    @command(
        app,
        "validate",
        "echo-pl validate stage=rad resume=outputs/runs/RUN/checkpoints/final.ckpt",
        "echo-pl validate stage=dcd block_size=8 data=nih resume=outputs/runs/RUN/checkpoints/final.ckpt",
        cls=HydraCommand,
    )
    def validate(ctx: typer.Context) -> None:
        """Validate the checkpoint resume=PATH of a stage.

        Computes the losses and scores of its validation, without training.
        """
        run_hydra(["task=validate", *ctx.obj])

    @command(
        app,
        "sweep",
        "echo-pl sweep block_size=4,8 ablation=dcd,ce seed=0,1,2",
        "echo-pl sweep sweep=lab sweep.name=trials hydra/launcher=slurm",
        cls=HydraCommand,
    )
    def sweep(ctx: typer.Context) -> None:
        """Train all combinations of block size, objective and seed.

        The stages that they need are trained too. The plan is sweep=lab
        (experiments/sweep/lab.yaml) unless another one is named. The same command continues an
        interrupted sweep. `echo-pl compare` compares the results.
        """
        plan = [] if any(argument.startswith("sweep=") for argument in ctx.obj) else ["sweep=lab"]
        run_hydra(["-m", *plan, *ctx.obj])


def run_hydra(arguments: list[str]) -> None:
    """Compose the configuration from ``arguments`` and run it; imports take seconds, so they follow Hydra's --help."""
    import hydra
    from hydra.core.plugins import Plugins

    from echo_pl.config.compose import EXPERIMENTS
    from echo_pl.config.errors import hydra_errors_reported
    from hydra_plugins.echo_pl_sweeper import ChainSweeper

    Plugins.instance().register(ChainSweeper)  # Hydra does not look for plugins in an editable installation
    sys.argv = [sys.argv[0], *arguments]  # also what Lightning starts again for the other processes of a node
    with hydra_errors_reported():
        hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")(run_job)()


def run_job(config: DictConfig) -> None:
    """Run one composed configuration."""
    from echo_pl.config.errors import reported
    from echo_pl.distributed.agree import together
    from echo_pl.runs.checkpointing import StoppedError
    from echo_pl.runs.run import run

    if config.get("sweep") is not None:  # one job of several: the sweeper reports its errors at the end
        from echo_pl.sweeps.job import run_part

        run_part(config)
        return
    try:
        with reported(), together():
            run(config)
    except StoppedError as stopped:
        print(f"echo-pl: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None


def warm_up(overrides: list[str]) -> None:
    """Run the warm-up in a process of its own, unless the stage needs none or a finished one exists."""
    from echo_pl.config.compose import compose_config
    from echo_pl.io.run_folders import newest
    from echo_pl.runs.lineage import backbone_name, data_name

    config = compose_config(overrides)
    if config.start != "auto" or not config.backbone.needs_warmup:
        return
    if newest(Path(config.outputs), ("warmup",), backbone_name(config), data_name(config)) is not None:
        return
    own = [item for item in overrides if not item.lstrip("+~").startswith(_NOT_OF_THE_WARMUP)]
    ended = subprocess.run([sys.executable, "-m", "echo_pl", "stage=warmup", *own], check=False)
    if ended.returncode:
        raise SystemExit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)
