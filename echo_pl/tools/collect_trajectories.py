"""Collect the teacher's trajectories once, for stage 3 to read: METHOD.md 3, phase 1.

    python -m echo_pl.tools.collect_trajectories --out outputs/trajectories/L8 --studies 2500 block_size=8
    echo-pl stage=dcd block_size=8 stage.module.trajectories=outputs/trajectories/L8 stage.limit_train=2500

The teacher is the newest stage-2 run, unless start=<checkpoint> says otherwise.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm.auto import tqdm

from echo_pl.__main__ import reported
from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.fingerprint import weights_fingerprint
from echo_pl.lineage import refuse_other_data, resolve_start
from echo_pl.run import prepare
from echo_pl.sampling.collect import collect, store_identity
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.trajectory_store import CollectionCounts
from echo_pl.tools.compose import compose_config


def collect_trajectories(config: DictConfig, out: Path, distributions: bool = True) -> tuple[Path, CollectionCounts]:
    """Decode one pass over the training studies of a stage-3 configuration with its teacher.

    Args:
        config: composed with ``stage=dcd``; ``stage.limit_train`` says how many studies, ``stage.batch_size`` how many at once.
        out: folder to make.
        distributions: also store the whole distribution of every position (objectives ``dcd`` and ``sdtt`` need it).

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: no stage-2 run to start from.
        ValueError: an unknown key in the configuration, no start checkpoint, or one with another vocabulary.
    """
    data = prepare(config)
    start, before = resolve_start(config, None)
    if start is None:
        raise ValueError("trajectories come from a stage-2 checkpoint: give start=<path>")
    refuse_other_data(data, None, start, before)
    factory = instantiate(config.backbone.factory, _convert_="all")
    teacher = factory.build(data.special, data.vocab_size).eval().requires_grad_(False)
    load_weights(teacher, start, ("rad",), config.block_size, config.grid, config.context_attention)
    decode: DecodeConfig = instantiate(config.stage.module.decode, _convert_="all")
    sampler = BlockSampler(teacher, data.special, replace(decode, kv_cache="fused"))
    identity = store_identity(decode, weights_fingerprint(teacher), data.fingerprint, distributions)
    batches = data.train_batches_once(config.stage.batch_size)
    return collect(sampler, tqdm(batches, total=len(batches), desc="trajectories", unit="batch"), out, identity)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--studies", type=int, required=True, help="training studies to decode")
    parser.add_argument("--batch-size", type=int, default=64, help="studies decoded at once (default 64)")
    parser.add_argument("--no-distributions", action="store_true", help="tokens and steps only (objectives with hard targets)")
    parser.add_argument("overrides", nargs="*", help="configuration, as for echo-pl: block_size=8 start=<checkpoint> ...")
    args = parser.parse_args()
    with reported():
        sizes = [f"stage.limit_train={args.studies}", f"stage.batch_size={min(args.batch_size, args.studies)}"]
        config = compose_config(["stage=dcd", *sizes, *args.overrides])
        folder, counts = collect_trajectories(config, args.out, not args.no_distributions)
        print(f"{counts.kept} trajectories in {folder}; dropped: {counts.dropped_loops} loops, {counts.dropped_endless} endless")


if __name__ == "__main__":
    main()
