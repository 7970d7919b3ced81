"""Context -> report: commit rules, block sampler, autoregressive sampler, trajectories."""

from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.sampling.config import DecodeConfig, LoopStop, TokenChoice
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.trajectory import Recorder, TrajectoryRecorder

__all__ = [
    "AutoregressiveSampler",
    "BlockSampler",
    "DecodeConfig",
    "LoopStop",
    "Recorder",
    "TokenChoice",
    "TrajectoryRecorder",
]
