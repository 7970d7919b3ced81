"""Decoding with a teacher that leans to its student: at every step its distributions p become p q^w / Z.

q is what the student says of the block in one step, from mask tokens alone, so q is a product over positions. Of all r, p q^w / Z
minimizes KL(r || p) + w E_r[-log q]: close to what the teacher may say, and likely for a student that takes one step. Where the
teacher finds two wordings about equally good, the report has the one that the student leans to already, and all of it.
Knows forwards alone; nothing of commit rules.

Shapes: A active samples, L block size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.config import check_weight
from echo_pl.sampling.forwards import CachedBlocks


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """What a teacher leans to, and how far."""

    student: VLM
    weight: float
    """w, above 0. At 1 teacher and student count alike."""

    def __post_init__(self) -> None:
        check_weight(self.weight, "a tilt")
        if self.weight == 0.0:
            raise ValueError("a tilt of 0 is none: leave it out")


class TiltedBlocks:
    """The teacher's forwards and one of the student's for every block, as one source of logits.

    Both see the same canvas and take the same tokens into their caches. Counts of forwards are the teacher's.
    """

    def __init__(self, teacher: CachedBlocks, student: CachedBlocks, weight: float) -> None:
        """Take both behind their own prefill of the same contexts."""
        self.teacher, self.student, self.weight = teacher, student, weight
        self._block = -1
        self._log_q_ALV: Tensor | None = None

    @property
    def rows_A(self) -> Tensor:
        """Samples of the batch that are still decoded (int64, on the CPU)."""
        return self.teacher.rows_A

    def denoise(self, canvas_AL: Tensor, block: int, working: Tensor) -> Tensor:
        """Log p + w log q, (A, L, V), not normalised; see :meth:`CachedBlocks.denoise`."""
        if block != self._block:
            self._block = block
            self._log_q_ALV = self.student.denoise(canvas_AL, block, self.rows_A).log_softmax(-1)
        assert self._log_q_ALV is not None
        return self.teacher.denoise(canvas_AL, block, working).log_softmax(-1) + self.weight * self._log_q_ALV

    def finish_block(self, final_AL: Tensor, block: int) -> None:
        """See :meth:`CachedBlocks.finish_block`."""
        self.teacher.finish_block(final_AL, block)
        self.student.finish_block(final_AL, block)

    def keep_rows(self, rows_A: Tensor) -> None:
        """See :meth:`CachedBlocks.keep_rows`. Between blocks alone: what the student said of the last one is not needed again."""
        self.teacher.keep_rows(rows_A)
        self.student.keep_rows(rows_A)
