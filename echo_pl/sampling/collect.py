"""METHOD.md 3, phase 1: on-policy trajectories of a frozen teacher, batched, without gradients.

Trajectories that fall into a repetition loop, or never reach eos, are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.trajectory import TrajectoryRecorder
from echo_pl.sampling.trajectory_store import CollectionCounts, StoreIdentity, TrajectoryWriter
from echo_pl.structs import Batch, Trajectory


def usable_trajectories(
    sampler: BlockSampler, batch: Batch, distributions: bool
) -> tuple[list[Trajectory | None], CollectionCounts]:
    """Decode one batch with the teacher.

    Returns:
        Per sample its trajectory, or None where it was dropped; and the counts.
    """
    recorder = TrajectoryRecorder(distributions)
    result = sampler.generate(batch, recorder)
    usable = result.stopped_B.tolist()
    trajectories = [t if ok else None for t, ok in zip(recorder.trajectories(batch.keys), usable, strict=True)]
    loops = int(result.looped_B.sum())
    return trajectories, CollectionCounts(kept=sum(usable), dropped_loops=loops, dropped_endless=len(usable) - sum(usable) - loops)


def store_identity(config: DecodeConfig, teacher: str, data: str, distributions: bool) -> StoreIdentity:
    """What trajectories decoded this way belong to.

    Left out are the KV cache mode, which changes no token, and the seed: another draw from the same teacher is as good.
    """
    return StoreIdentity(
        teacher_fingerprint=teacher,
        data_fingerprint=data,
        block_size=config.block_size,
        confidence_threshold=config.confidence_threshold,
        denoising_steps=config.steps,
        remasking=config.remasking,
        distributions=distributions,
        entropy_bound=config.entropy_bound,
        grid=config.grid,
        context_attention=config.context_attention,
        temperature=config.token_choice.temperature,
        top_k=config.token_choice.top_k,
        top_p=config.token_choice.top_p,
    )


def collect(
    sampler: BlockSampler, batches: Iterable[Batch], folder: str | Path, identity: StoreIdentity
) -> tuple[Path, CollectionCounts]:
    """Decode all batches and write the usable trajectories to ``folder``.

    Raises:
        FileExistsError: ``folder`` exists already.
    """
    writer = TrajectoryWriter(folder, identity)
    total = CollectionCounts()
    for batch in batches:
        trajectories, counts = usable_trajectories(sampler, batch, identity.distributions)
        writer.add([t for t in trajectories if t is not None])
        writer.drop([key for key, t in zip(batch.keys, trajectories, strict=True) if t is None])
        total = replace(
            total,
            kept=total.kept + counts.kept,
            dropped_loops=total.dropped_loops + counts.dropped_loops,
            dropped_endless=total.dropped_endless + counts.dropped_endless,
        )
    return writer.finish(total), total
