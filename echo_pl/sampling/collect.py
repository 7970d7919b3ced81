"""On-policy trajectories of a frozen teacher (docs/explain/method.md, "Stage 3: Direct Conditional Distillation", phase 1).

Trajectories that fall into a repetition loop, or never reach eos, are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.forced_prefix import ForcedPrefix
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.trajectory import TrajectoryRecorder
from echo_pl.sampling.trajectory_store import CollectionCounts, CollectionPlan, StoreIdentity
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
from echo_pl.structs import Batch, Trajectory


def usable_trajectories(
    sampler: BlockSampler, batch: Batch, distributions: bool, top: int = 0, prefix: ForcedPrefix | None = None
) -> tuple[list[Trajectory | None], CollectionCounts]:
    """Decode one batch with the teacher.

    Args:
        sampler: the teacher's.
        batch: contexts.
        distributions: also record the distribution of every position.
        top: likeliest tokens to record of each distribution, with the probability of all others as one; 0: all tokens.
        prefix: blocks that the reports begin with.

    Returns:
        A trajectory per sample, None where it was dropped; and the counts.
    """
    recorder = TrajectoryRecorder(distributions, top)
    result = sampler.generate(batch, recorder, prefix=prefix)
    usable = result.stopped_B.tolist()
    trajectories = [t if ok else None for t, ok in zip(recorder.trajectories(batch.keys), usable, strict=True)]
    loops = int(result.looped_B.sum())
    return trajectories, CollectionCounts(kept=sum(usable), dropped_loops=loops, dropped_endless=len(usable) - sum(usable) - loops)


def store_identity(
    config: DecodeConfig, teacher: str, data: str, distributions: bool, top: int = 0, tilt: float = 0.0, tilt_student: str = ""
) -> StoreIdentity:
    """Identity of trajectories decoded with this configuration.

    It leaves out the KV cache mode, which changes no token, and the seed, as samples of any seed are valid.
    """
    return StoreIdentity(
        teacher_fingerprint=teacher,
        data_fingerprint=data,
        block_size=config.block_size,
        confidence_threshold=config.confidence_threshold,
        denoising_steps=config.steps,
        remasking=config.remasking,
        distributions=distributions,
        kept_tokens=top if distributions else 0,
        entropy_bound=config.entropy_bound,
        grid=config.grid,
        context_attention=config.context_attention,
        temperature=config.token_choice.temperature,
        top_k=config.token_choice.top_k,
        top_p=config.token_choice.top_p,
        gate=config.gate,
        tilt=tilt,
        tilt_student=tilt_student,
    )


def collect_part(sampler: BlockSampler, batches: Iterable[Batch], writer: TrajectoryWriter, part: int) -> None:
    """Decode and write the batches of one part."""
    trajectories: list[Trajectory] = []
    dropped: list[str] = []
    total = CollectionCounts()
    for batch in batches:
        found, counts = usable_trajectories(sampler, batch, writer.identity.distributions, writer.identity.kept_tokens)
        trajectories += [t for t in found if t is not None]
        dropped += [key for key, t in zip(batch.keys, found, strict=True) if t is None]
        total += counts
    writer.write(part, trajectories, dropped, total)


def collect(
    sampler: BlockSampler, batches: Sequence[Batch], folder: str | Path, identity: StoreIdentity
) -> tuple[Path, CollectionCounts]:
    """Decode batches, one part each, into ``folder``; raise FileExistsError if it exists."""
    plan = CollectionPlan(studies=sum(map(len, batches)), batches=len(batches), batch_size=max(map(len, batches)))
    writer = TrajectoryWriter(folder, identity, plan)
    for part in writer.missing():
        collect_part(sampler, [batches[part]], writer, part)
    return writer.finish()
