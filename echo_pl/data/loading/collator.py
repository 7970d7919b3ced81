"""Collation of samples to a :class:`~echo_pl.structs.Batch`: padding on the right, images one after the other.

Shapes: B batch, P context, R response, F findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echo_pl.data.loading.processor import Sample
from echo_pl.structs import Batch, SpecialTokens


class ReportCollator:
    """Collates samples.

    Args:
        special: Contexts are padded with its ``pad``, responses with its ``eos``.
        labels: Finding labels of the corpus, the columns of ``labels_BF``; empty for a corpus without labels.
        references: Whether batches carry the reference reports.
        vision_fingerprint: Of the tower whose output the samples carry; None where they carry pixels.
    """

    def __init__(
        self, special: SpecialTokens, labels: Sequence[str], *, references: bool, vision_fingerprint: str | None = None
    ) -> None:
        self._special = special
        self._columns = {label: column for column, label in enumerate(labels)}
        self._references = references
        self._vision_fingerprint = vision_fingerprint

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make one batch.

        Raises:
            ValueError: If a sample has a label that the corpus does not name.
        """
        contexts = [sample.context_ids_P for sample in samples]
        responses = [sample.response_ids_R for sample in samples]
        features = [sample.image_features for sample in samples if sample.image_features is not None]
        return Batch(
            keys=tuple(sample.key for sample in samples),
            context_ids_BP=pad_sequence(contexts, batch_first=True, padding_value=self._special.pad),
            context_lengths_B=torch.tensor([len(ids) for ids in contexts]),
            response_ids_BR=pad_sequence(responses, batch_first=True, padding_value=self._special.eos),
            response_lengths_B=torch.tensor([len(ids) for ids in responses]),
            pixel_values=torch.cat([sample.pixel_values for sample in samples]),
            image_grid_thw=torch.cat([sample.image_grid_thw for sample in samples]),
            labels_BF=self._labels(samples) if self._columns else None,
            references=tuple(sample.reference for sample in samples) if self._references else (),
            image_features=torch.cat(features) if features else None,
            vision_fingerprint=self._vision_fingerprint,
        )

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        labels_BF = torch.zeros(len(samples), len(self._columns))
        for row, sample in enumerate(samples):
            for label in sample.labels:
                if label not in self._columns:
                    raise ValueError(f"study {sample.key} has label {label!r}, which its corpus does not name")
                labels_BF[row, self._columns[label]] = 1.0
        return labels_BF
