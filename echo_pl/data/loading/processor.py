"""Tensors of one study: image patches, context ids, response ids.

The library's PIL image processor, a tokenizer and our own expansion of the image placeholder; the library's complete
processor needs torchvision, which this project does without.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from echo_pl.data.loading.request import request_of
from echo_pl.data.loading.tokenizer import EOS, IMAGE, TURN_START, VISION_END, VISION_START, ReportTokenizer
from echo_pl.data.store.study import Study, Version
from echo_pl.reports.response import FORMS, format_response, report_form
from echo_pl.structs import ReportText, SpecialTokens

Template = Literal["plain", "chat"]

_INSTRUCTIONS = frozenset(form.instruction for form in FORMS.values())
SYSTEM_PROMPT = "You are a helpful assistant."
"""Default system prompt of Qwen2.5-VL's chat format."""


class LongResponseError(ValueError):
    """A response has more tokens than allowed."""


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Settings of the tensors of a study."""

    version: Version = "normalized"
    """Version of a study's report that is the response."""
    language: str = "en"
    """Language of the instruction and of the headings of a response, for reports that do not say theirs: ``en`` or ``zh``."""
    template: Template = "plain"
    """``plain``: images, instruction, line feed; ``chat``: the same as a user's turn in Qwen's chat format."""
    patch_size: int = 8
    """Side of a vision patch in pixels."""
    merge_size: int = 2
    """Patches along one side that are merged into one vision token."""
    temporal_patch_size: int = 2
    """Times a still image is repeated in its patch."""
    min_pixels: int = 64 * 64
    """Smaller images are enlarged to this many pixels."""
    max_pixels: int = 64 * 64
    """Larger images are reduced to this many pixels."""
    max_response_tokens: int = 128
    """Longest response, eos included."""

    def __post_init__(self) -> None:
        report_form(self.language)
        if self.version not in ("normalized", "raw"):
            raise ValueError(f"version must be 'normalized' or 'raw', got {self.version!r}")
        if self.template not in ("plain", "chat"):
            raise ValueError(f"template must be 'plain' or 'chat', got {self.template!r}")
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels ({self.max_pixels}) must not be less than min_pixels ({self.min_pixels})")
        factor = self.patch_size * self.merge_size
        if self.max_pixels < factor * factor:
            raise ValueError(f"max_pixels ({self.max_pixels}) must hold one vision token of {factor}x{factor} pixels")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One study as tensors."""

    key: str
    context_ids_P: Tensor
    response_ids_R: Tensor
    """Ends with eos."""
    pixel_values: Tensor
    image_grid_thw: Tensor
    labels: tuple[str, ...]
    reference: ReportText
    image_features: Tensor | None = None
    """In the place of ``pixel_values``, which then are none."""


class ReportProcessor:
    """Turns studies into samples.

    Args:
        tokenizer: As returned by :func:`echo_pl.data.loading.tokenizer.load_tokenizer`.
        special: As returned beside it.
        config: Everything else.
    """

    def __init__(self, tokenizer: ReportTokenizer, special: SpecialTokens, config: ProcessorConfig) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._special = special
        self._images = Qwen2VLImageProcessorPil(
            patch_size=config.patch_size,
            merge_size=config.merge_size,
            temporal_patch_size=config.temporal_patch_size,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
        )
        self._contexts: dict[tuple[tuple[int, ...], str], Tensor] = {}

    def __call__(self, study: Study) -> Sample:
        """Process one study.

        Raises:
            LongResponseError: If the response has more than ``max_response_tokens`` tokens.
            ValueError: If the study lacks this version of its report, or its image has an impossible shape.
        """
        request = request_of(study, version=self.config.version, language=self.config.language)
        response_ids_R = self._response_ids(request.response)
        if len(response_ids_R) > self.config.max_response_tokens:
            raise LongResponseError(
                f"the response of study {study.key} has {len(response_ids_R)} tokens, more than max_response_tokens="
                f"{self.config.max_response_tokens}; raise it, or set on_long_response=skip"
            )
        stored = study.stored
        pixel_values, grid = self.patches(study) if stored is None else (torch.zeros(0, self._patch_width), stored.grid_thw)
        merged = (grid.prod(dim=1) // self.config.merge_size**2).tolist()
        return Sample(
            key=study.key,
            context_ids_P=self.context_ids(tuple(merged), request.instruction),
            response_ids_R=response_ids_R,
            pixel_values=pixel_values,
            image_grid_thw=grid,
            labels=study.labels,
            reference=request.report,
            image_features=None if stored is None else stored.features,
        )

    def patches(self, study: Study) -> tuple[Tensor, Tensor]:
        """Pixels of all images of a study in patches, as in :class:`echo_pl.structs.Batch`, and the grid of each image.

        Raises:
            ValueError: If an image has an impossible shape.
        """
        try:
            features = self._images([image.convert("RGB") for image in study.images], return_tensors="pt")
        except (ValueError, OSError) as error:
            raise ValueError(f"an image of study {study.key} cannot be processed: {error}") from error
        return features["pixel_values"], features["image_grid_thw"]

    def save(self, folder: Path) -> None:
        """Write tokenizer and image processor as transformers loads them."""
        self._tokenizer.save_pretrained(folder)
        self._images.save_pretrained(folder)

    @property
    def _patch_width(self) -> int:
        return 3 * self.config.temporal_patch_size * self.config.patch_size**2

    def context_ids(self, image_tokens: tuple[int, ...], instruction: str | None = None) -> Tensor:
        """Token ids of the context for images of so many vision tokens each, shape (P,).

        Args:
            image_tokens: of each image.
            instruction: None: that of a report in the configuration's language.
        """
        asked = report_form(self.config.language).instruction if instruction is None else instruction
        if asked not in _INSTRUCTIONS:  # prompts of general samples: as many as there are samples
            return self._context_ids(image_tokens, asked)
        if (image_tokens, asked) not in self._contexts:
            self._contexts[image_tokens, asked] = self._context_ids(image_tokens, asked)
        return self._contexts[image_tokens, asked]

    def _context_ids(self, image_tokens: tuple[int, ...], instruction: str) -> Tensor:
        images = "".join(f"{VISION_START}{IMAGE * count}{VISION_END}" for count in image_tokens)
        prompt = images + instruction
        if self.config.template == "chat":
            system = f"{TURN_START}system\n{SYSTEM_PROMPT}{EOS}\n"
            prompt = f"{system}{TURN_START}user\n{prompt}{EOS}\n{TURN_START}assistant"
        ids = self._tokenizer(f"{prompt}\n", add_special_tokens=False)["input_ids"]
        return torch.tensor(ids)

    def response_ids(self, report: ReportText) -> Tensor:
        """Token ids of a report with eos at its end, shape (R,); a control token's name in a report is mere text."""
        return self._response_ids(format_response(report, self.config.language))

    def _response_ids(self, text: str) -> Tensor:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return torch.tensor([*ids, self._special.eos])

    def detokenize(self, tokens: Tensor) -> str:
        """Text of response tokens, control tokens left out."""
        text = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence was decoded, not a batch
        return text
