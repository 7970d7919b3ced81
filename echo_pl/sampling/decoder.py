"""The samplers of the three stages: the only place that decides how a stage's model is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.sampling.bigrams import Bigrams
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.student import StudentDecode
from echo_pl.sampling.tilted import Tilt
from echo_pl.structs import SpecialTokens


@dataclass(frozen=True, kw_only=True)
class StageDecoder:
    """Makes samplers for the models of a chain, all with one tokenizer and one decode configuration."""

    special: SpecialTokens
    max_response_tokens: int
    """Limit of autoregressive decodes."""
    decode: DecodeConfig | None = None
    """Decode of a block-diffusion model; its block grid is also the student's. None: stage ``pretrain`` alone is decoded."""
    student: StudentDecode = field(default_factory=StudentDecode)
    bigrams: Bigrams | None = None
    """Counted for ``student``."""

    def for_stage(self, stage: str, vlm: VLM) -> AutoregressiveSampler | BlockSampler:
        """Sampler of a model of stage ``pretrain``, ``rad`` or ``dcd``."""
        if stage == "pretrain":
            return self.autoregressive(vlm)
        return self.one_step(vlm) if stage == "dcd" else self.multi_step(vlm)

    def autoregressive(self, vlm: VLM) -> AutoregressiveSampler:
        """Sampler of a stage-1 model."""
        return AutoregressiveSampler(vlm, self.special, self.max_response_tokens)

    def multi_step(self, vlm: VLM, tilt: Tilt | None = None, **changes: Any) -> BlockSampler:
        """Sampler of a block-diffusion model, with some fields of the decode configuration changed."""
        assert self.decode is not None, "this chain decodes no blocks"
        return BlockSampler(vlm, self.special, replace(self.decode, **changes), tilt)

    def one_step(self, vlm: VLM, **changes: Any) -> BlockSampler:
        """Sampler of a student: one step per block, and the additions of ``student``."""
        assert self.decode is not None, "this chain decodes no blocks"
        config = replace(self.decode, **{"denoising_steps": 1, "gate": self.student.gate, **changes})
        return BlockSampler(vlm, self.special, config, bigrams=self.bigrams)
