"""The decoder of a configuration's stage: for sweeps, evaluations and comparisons, which decode checkpoints without a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.student import StudentDecode


def stage_decoder(config: DictConfig, data: ReportDataModule, **changes: Any) -> StageDecoder:
    """Build the decoder; read the bigrams of a student that has some.

    Args:
        config: composed for the stage.
        data: ids and fingerprint of the data to decode.
        changes: fields of the decode configuration to replace.

    Raises:
        FileNotFoundError: bigrams without the folder of stored trajectories.
        ValueError: an invalid value; bigrams without stored trajectories, or of another vocabulary.
    """
    module = config.stage.module
    decoder = StageDecoder(special=data.special, max_response_tokens=config.max_response_tokens)
    if "decode" not in module:
        return decoder
    decode = replace(instantiate(module.decode, _convert_="all"), **changes)
    decoder = replace(decoder, decode=decode)
    if "student" not in module:
        return decoder
    student = student_decode(module)
    student.check(decode, module.trajectories)
    bigrams = student.count_bigrams(module.trajectories, data.vocab_size, data.fingerprint, data.word_starts)
    return replace(decoder, student=student, bigrams=bigrams)


def student_decode(module: DictConfig) -> StudentDecode:
    """The node ``student`` of ``stage.module``; raise ValueError for an invalid value."""
    return StudentDecode(**{name: value for name, value in module.student.items() if name != "_target_"})
