"""Before stage 1: warm the vision tower up, unless a finished warm-up fits already or none is needed.

    python -m echo_pl.cli.warmup_once backbone=tiny

Takes the configuration of stage 1; keys of the stage itself (stage.max_steps=...) are stage 1's and do not reach the warm-up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_pl.config.compose import compose_config
from echo_pl.config.errors import reported
from echo_pl.io.run_folders import newest
from echo_pl.runs.lineage import backbone_name, data_name
from echo_pl.runs.run import run


def warmup_once(overrides: list[str]) -> bool:
    """Run the warm-up if stage 1 would look for one and find none; say whether it ran."""
    config = compose_config(["stage=pretrain", *overrides])
    if config.start != "auto" or not config.backbone.needs_warmup:
        return False
    if newest(Path(config.outputs), ("warmup",), backbone_name(config), data_name(config)) is not None:
        return False
    mine = [item for item in overrides if not item.lstrip("+~").startswith(("stage", "run_name=", "start=", "resume="))]
    run(compose_config(["stage=warmup", *mine]))
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="configuration of stage 1, as for echo-pl")
    with reported():
        warmup_once(parser.parse_args().overrides)


if __name__ == "__main__":
    main()
