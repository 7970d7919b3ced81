"""How a stage-3 model is decoded, from a configuration. Used by sweeps and by evaluations of checkpoints."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from echo_pl.backbone.vlm import VLM
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.sampling import BlockSampler, DecodeConfig
from echo_pl.sampling.bigrams import check_pairs, stored_bigrams


def student_sampler(module: DictConfig, decode: DecodeConfig, vlm: VLM, data: ReportDataModule) -> BlockSampler:
    """One step per block; behind ``student_gate`` a second one, and with ``student_bigrams`` as a chain.

    Args:
        module: ``stage.module`` of the configuration.
        decode: cache, block grid and length.
        vlm: the student.
        data: its ids.

    Raises:
        FileNotFoundError: ``student_bigrams`` with a folder of trajectories that is not there.
        ValueError: ``student_bigrams`` without one, or with one of another vocabulary; a rule for pairs of no use.
    """
    check_pairs(module.student_bigrams, module.student_bigrams_min_count, module.student_bigrams_repeats)
    bigrams = stored_bigrams(
        module.trajectories,
        module.student_bigrams,
        data.vocab_size,
        data.fingerprint,
        min_count=module.student_bigrams_min_count,
        once=None if module.student_bigrams_repeats else data.word_starts,
    )
    return BlockSampler(vlm, data.special, replace(decode, denoising_steps=1, gate=module.student_gate), bigrams=bigrams)
