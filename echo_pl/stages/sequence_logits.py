"""Logits of training sequences at the positions of a loss, with one study per row or several."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.packing import Packing, pack
from echo_pl.diffusion.sequence import TrainingSequence
from echo_pl.structs import Images


class SequenceLogits:
    """Forwards of training sequences.

    Args:
        pack_tokens: most tokens of a packed row; None: one study per row.

    Raises:
        ValueError: ``pack_tokens`` is not positive.
    """

    def __init__(self, pack_tokens: int | None = None) -> None:
        if pack_tokens is not None and pack_tokens < 1:
            raise ValueError(f"pack_tokens must be positive, or null for one study per row; got {pack_tokens}")
        self.pack_tokens = pack_tokens
        self.padding: dict[str, float] = {}
        """Share of padding in the last packed forward, and the share without packing."""

    def __call__(self, vlm: VLM, sequence: TrainingSequence, images: Images, chosen_BT: Tensor) -> Tensor:
        """Logits (M, V) at chosen tokens, row after row of ``chosen_BT``.

        Args:
            vlm: the model.
            sequence: one study per row.
            images: images of all studies, in their order.
            chosen_BT: bool, positions of the logits.
        """
        positions = vlm.sequence_positions(sequence, images.grid_thw)
        if self.pack_tokens is None:
            return vlm(sequence.input_ids_BT, positions, sequence.rule, images=images, select=chosen_BT)
        packing = pack(sequence, self.pack_tokens)
        self.padding = {"train/padding": packing.padding_after, "train/padding_unpacked": packing.padding_before}
        logits_MV = vlm(
            packing.rows(sequence.input_ids_BT, vlm.special.pad),
            packing.rows(positions, 0),
            packing.rule,
            images=images.chosen(images_in_order(sequence, images, packing, vlm.special.image)),
            select=packing.rows(chosen_BT, 0),
        )
        return packing.unpacked(logits_MV, chosen_BT)


def images_in_order(sequence: TrainingSequence, images: Images, packing: Packing, image_token: int) -> Tensor:
    """Numbers of the images in the order of their placeholders in packed rows."""
    if not len(images):
        return torch.zeros(0, dtype=torch.long)
    patches_I = images.grid_thw.prod(-1).cpu()
    tokens_B = (sequence.input_ids_BT == image_token).sum(-1).cpu()
    per_token = int(patches_I.sum()) // int(tokens_B.sum())
    # An image belongs to the study that holds its last placeholder.
    study_I = torch.searchsorted(tokens_B.cumsum(0), (patches_I // per_token).cumsum(0))
    return torch.cat([(study_I == b).nonzero()[:, 0] for b in packing.studies])
