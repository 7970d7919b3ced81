"""Decoding with a tilted teacher: at every step its distribution p becomes p q^w / Z.

q is the student's one-step prediction of the block, a product over positions. Among all r, p q^w / Z minimizes
KL(r || p) + w E_r[-log q]: it stays close to the teacher and is likely under a student that takes one step. Where the teacher
finds two wordings about equally good, the report gets the one that the student prefers.

Shapes: A active samples, L block size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.commit import BlockState, Commit, CommitRule, commit
from echo_pl.sampling.config import check_weight
from echo_pl.sampling.forwards import CachedForwards


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """A student that the teacher is tilted towards."""

    student: VLM
    weight: float
    """w, above 0. At 1 teacher and student count equally."""

    def __post_init__(self) -> None:
        check_weight(self.weight, "a tilt")
        if self.weight == 0.0:
            raise ValueError("the weight of a tilt must be above 0, got 0: leave the tilt out")


class TiltedForwards:
    """The teacher's forwards, and one forward of the student per block.

    Both see the same block and write the same tokens to their caches. Forwards are counted for the teacher only.
    """

    def __init__(self, teacher: CachedForwards, student: CachedForwards, weight: float) -> None:
        """Take both after their own prefill of the same contexts."""
        self.teacher, self.student, self.weight = teacher, student, weight
        self._number = -1
        self._log_q_ALV: Tensor | None = None

    @property
    def rows_A(self) -> Tensor:
        """See :class:`echo_pl.sampling.forwards.BlockForwards`."""
        return self.teacher.rows_A

    def step(self, number: int, state: BlockState, working_rows: Tensor, rule: CommitRule) -> Commit:
        """Commit by log p + w log q, not normalised; see :class:`echo_pl.sampling.forwards.BlockForwards`."""
        if number != self._number:
            self._number = number
            self._log_q_ALV = self.student.denoise(number, state.block_ids_AL, self.rows_A).log_softmax(-1)
        assert self._log_q_ALV is not None
        log_p_ALV = self.teacher.denoise(number, state.block_ids_AL, working_rows).log_softmax(-1)
        return commit(log_p_ALV + self.weight * self._log_q_ALV, state, rule)

    def finish_block(self, number: int, block_ids_AL: Tensor) -> None:
        """See :class:`echo_pl.sampling.forwards.BlockForwards`."""
        self.teacher.finish_block(number, block_ids_AL)
        self.student.finish_block(number, block_ids_AL)

    def keep_rows(self, kept_rows_A: Tensor) -> None:
        """See :class:`echo_pl.sampling.forwards.BlockForwards`."""
        self.teacher.keep_rows(kept_rows_A)
        self.student.keep_rows(kept_rows_A)
