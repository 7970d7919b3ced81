"""The trajectories of a teacher, collected once for stage 3 to read: phase 1 of distillation (docs/explain/method.md)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm.auto import tqdm

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.vlm import VLM, weights_fingerprint
from echo_pl.config.compose import compose_config
from echo_pl.config.keys import flat_settings
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import agreed, check_same_settings, open_group, raise_on_all_ranks, together
from echo_pl.distributed.launch import Launch, detect, warn_of_idle_tasks
from echo_pl.runs.lineage import check_same_data
from echo_pl.runs.run import prepare
from echo_pl.runs.start import read_start, start_layout, start_stages
from echo_pl.sampling.collect import collect_part, store_identity
from echo_pl.sampling.config import DecodeConfig, check_weight
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.tilted import Tilt
from echo_pl.sampling.trajectory_store import CollectionCounts, CollectionPlan, StoreIdentity, TrajectoryStore
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
from echo_pl.structs import Batch

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
"""Interval of the checks for parts of other processes."""


def collect_trajectories(
    config: DictConfig,
    out: Path,
    distributions: bool = True,
    kept_tokens: int = 0,
    batches_per_part: int = 1,
    student: Path | None = None,
) -> tuple[Path, CollectionCounts]:
    """Decode this process's part of the training studies of a stage-3 configuration with its teacher.

    Args:
        config: composed with ``stage=dcd``; decodes ``stage.limit_train`` studies, ``stage.batch_size`` at once.
        out: folder to make; ``<out>.part`` until it is complete.
        distributions: also store the distribution of every position (objectives ``dcd`` and ``sdtt`` need it).
        kept_tokens: likeliest tokens to store of each, with the probability of all others as one; 0: all tokens.
        batches_per_part: batches in a file.
        student: a stage-3 checkpoint that the teacher is tilted towards; None: its own one-step predictions.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: no stage-2 run to start from.
        ValueError: an unknown key in the configuration, no start checkpoint, or one with another vocabulary; another unfinished
            collection; processes with different configurations.
    """
    launch = detect()
    warn_of_idle_tasks(launch)
    open_group(launch, config.trainer.accelerator)
    own = {"out": str(out), "distributions": distributions, "kept_tokens": kept_tokens, "batches_per_part": batches_per_part}
    own["student"] = str(student)
    check_same_settings(launch, flat_settings(config) | own)
    data = prepare(config)
    asked, there = config.stage.limit_train, data.training_studies
    if asked is not None and there < asked and launch.rank == 0:
        log.warning("the corpus has %d training studies, %d were asked for: all of them are decoded", there, asked)
    sampler, identity = teacher(config, data, launch, distributions, kept_tokens, student)
    size = config.stage.batch_size
    plan = CollectionPlan(
        studies=data.training_studies,
        batches=len(data.train_batches_once(size)),
        batch_size=size,
        batches_per_part=batches_per_part,
    )
    writer, parts = begin(launch, out, identity, plan)
    numbers = [number for part in parts for number in plan.batches_of(part)]
    batches = iter(data.train_batches_once(size, numbers) if numbers else ())
    name = "trajectories" if launch.world_size == 1 else f"trajectories, process {launch.rank + 1} of {launch.world_size}"
    total = sum(min(size, plan.studies - number * size) for number in numbers)
    with tqdm(total=total, desc=name, unit="study", disable=True if launch.rank else None) as bar:
        for part in parts:
            share = islice(batches, len(plan.batches_of(part)))
            collect_part(sampler, counted(share, sampler.vlm.device, bar), writer, part)
    return finish(launch, writer)


def teacher(
    config: DictConfig, data: ReportDataModule, launch: Launch, distributions: bool, kept_tokens: int, student: Path | None
) -> tuple[BlockSampler, StoreIdentity]:
    """Sampler of the frozen teacher on this process's device, and the identity of its trajectories."""
    weight = config.stage.module.tilt
    check_weight(weight, "a tilt")
    if student is not None and not weight:
        raise ValueError(f"{student} is a student to tilt the teacher to, but stage.module.tilt is 0: give ablation=tilted too")
    start = read_start(config)
    if start is None:
        raise ValueError("trajectories come from a stage-2 checkpoint: give start=<path>")
    check_same_data(data, start)
    factory = instantiate(config.backbone.factory, _convert_="all")

    def frozen(path: Path, stages: tuple[str, ...], layout: tuple[int, str, str]) -> VLM:
        vlm: VLM = factory.build(data.special, data.vocab_size)
        load_weights(vlm, path, stages, *layout)
        return vlm.eval().requires_grad_(False)

    vlm = frozen(start.path, start_stages(config), start_layout(config))
    fingerprint = weights_fingerprint(vlm)
    student_vlm, student_fingerprint = vlm, fingerprint if weight else ""
    if student is not None:
        student_vlm = frozen(student, ("dcd",), (config.block_size, config.grid, config.context_attention))
        student_fingerprint = weights_fingerprint(student_vlm)
    if config.trainer.accelerator == "gpu":
        device = torch.device("cuda", launch.rank % launch.processes_per_node)
        vlm, student_vlm = vlm.to(device), student_vlm.to(device)
    tilt = Tilt(student=student_vlm, weight=weight) if weight else None
    decode: DecodeConfig = instantiate(config.stage.module.decode, _convert_="all")
    identity = store_identity(decode, fingerprint, data.fingerprint, distributions, kept_tokens, weight, student_fingerprint)
    decoder = StageDecoder(special=data.special, max_response_tokens=decode.max_response_tokens, decode=decode)
    return decoder.multi_step(vlm, tilt, kv_cache="fused"), identity


def begin(launch: Launch, out: Path, identity: StoreIdentity, plan: CollectionPlan) -> tuple[TrajectoryWriter, list[int]]:
    """The writer, and this process's share of the missing parts. Rank 0 lists them, so that all ranks have the same list."""
    if launch.world_size == 1:
        writer = TrajectoryWriter(out, identity, plan)
        return writer, writer.missing()
    missing: list[int] = []
    problem = None
    if launch.rank == 0:
        try:
            missing = TrajectoryWriter(out, identity, plan).missing()
        except (ValueError, OSError) as error:
            problem = str(error)
    raise_on_all_ranks(launch, problem)
    missing = agreed(launch, {"missing": missing})["missing"]
    writer = TrajectoryWriter(out, identity, plan)
    dist.barrier()  # rank 0 may be about to rename the folder
    return writer, missing[launch.rank :: launch.world_size]


def counted(batches: Iterable[Batch], device: torch.device, bar: tqdm[Any]) -> Iterator[Batch]:
    """Batches on a device; the bar advances after each."""
    for batch in batches:
        yield batch.to(device)
        bar.update(len(batch))


def finish(launch: Launch, writer: TrajectoryWriter) -> tuple[Path, CollectionCounts]:
    """Wait for the other processes' parts; rank 0 writes the index and renames the folder."""
    if launch.rank == 0:
        if writer.missing() and launch.world_size > 1:
            log.info("this process's share is done; waiting for the others")
        while writer.missing():
            time.sleep(_POLL_SECONDS)
        return writer.finish()
    while not writer.folder.is_dir():
        time.sleep(_POLL_SECONDS)
    return writer.folder, TrajectoryStore(writer.folder).counts


def collect_and_report(
    out: Path,
    overrides: Sequence[str],
    *,
    studies: int,
    batch_size: int,
    batches_per_part: int,
    kept_tokens: int,
    distributions: bool,
    student: Path | None,
) -> None:
    """Collect as :func:`collect_trajectories` and print what was stored; all processes end when one fails."""
    with together():
        sizes = [f"stage.limit_train={studies}", f"stage.batch_size={min(batch_size, studies)}"]
        config = compose_config(["stage=dcd", *sizes, *overrides])
        folder, counts = collect_trajectories(config, out, distributions, kept_tokens, batches_per_part, student)
        if detect().rank == 0:
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            dropped = f"{counts.dropped_loops} loops, {counts.dropped_endless} endless"
            print(f"{counts.kept} trajectories in {folder}, {size:.1f} MB; dropped: {dropped}")
