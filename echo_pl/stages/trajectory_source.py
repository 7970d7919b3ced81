"""METHOD.md 3, phase 1, in stage 3: where the trajectories of a batch come from, a store or the teacher; what was dropped so far.

Used by the stage by composition. Knows nothing of losses.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from echo_pl.backbone.fingerprint import weights_fingerprint
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.collect import store_identity
from echo_pl.sampling.config import DecodeConfig, check_weight
from echo_pl.sampling.trajectory_store import CollectionCounts, TrajectoryStore
from echo_pl.stages.reduction import is_distributed
from echo_pl.stages.teacher_decode import Found, TeacherDecode
from echo_pl.structs import Batch, SpecialTokens

log = logging.getLogger(__name__)


class TrajectorySource:
    """Stored trajectories, or those that the teacher decodes now."""

    def __init__(
        self,
        special: SpecialTokens,
        decode: DecodeConfig,
        *,
        distributions: bool,
        whole: bool,
        folder: str | None,
        student_prefix: float,
        tilt: float,
        seed: int,
    ) -> None:
        """Nothing is read yet.

        Args:
            special: token ids.
            decode: how the teacher decodes.
            distributions: whether trajectories must carry them.
            whole: whether the objective loses much on distributions of which only the likeliest tokens were stored.
            folder: of stored trajectories; None: decode on the fly.
            student_prefix: share of the studies whose first blocks the student writes.
            tilt: weight of the student that the teacher leans to; stored trajectories must have been collected with the same.
            seed: of the draws of prefixes.

        Raises:
            ValueError: a share that is none, or one of stored trajectories; a weight that is none.
        """
        if not 0.0 <= student_prefix <= 1.0:
            raise ValueError(f"student_prefix must be in [0, 1], got {student_prefix}")
        if student_prefix and folder is not None:
            raise ValueError("student_prefix follows the student as it learns: it decodes on the fly, leave trajectories unset")
        self.distributions, self.folder, self.student_prefix = distributions, folder, student_prefix
        check_weight(tilt, "a tilt")
        self.decode = TeacherDecode(special, decode, seed, tilt)
        self.dropped = {"loops": 0, "endless": 0}
        """Trajectories dropped so far on all ranks, when decoded on the fly."""
        self._whole = whole
        self._store: TrajectoryStore | None = None

    def open(self, teacher: VLM, data: str) -> None:
        """Read the store, if there is one; warn if it keeps less of the distributions than the objective should have.

        Args:
            teacher: the model that must have written it.
            data: fingerprint of the data that it must be of.

        Raises:
            FileNotFoundError: there is none in the folder.
            ValueError: it is damaged, or belongs to something else.
        """
        if self.folder is None:
            return
        store = TrajectoryStore(self.folder)
        store.check(
            store_identity(self.decode.decode, weights_fingerprint(teacher), data, self.distributions, tilt=self.decode.tilt)
        )
        kept, vocabulary = store.identity.kept_tokens, len(teacher.network.lm_head.weight)
        if self._whole and 0 < kept < vocabulary:
            log.warning(
                "the trajectories in %s keep the %s likeliest of %s tokens of every distribution, and reverse KL loses several per "
                "cent of itself on them: collect whole ones (echo-pl collect --keep 0; in a sweep sweep.kept_tokens=0), or leave "
                "stage.module.trajectories unset to decode on the fly",
                store.folder, kept, vocabulary,
            )  # fmt: skip
        self._store = store

    def collect(self, batch: Batch, teacher: VLM, student: VLM, epoch: int, tail_B: Tensor) -> Found:
        """The trajectories of a batch; None where there is no usable one.

        Args:
            batch: contexts.
            teacher: the frozen model.
            student: as it is now.
            epoch: for the draws of prefixes.
            tail_B: context tokens in each sample's first block.

        Raises:
            ValueError: the store has never seen a sample.
        """
        if self._store is not None:
            return [self._store.get(key) for key in batch.keys]
        if self.student_prefix:
            found, counts = self.decode.behind_student(
                teacher, student, batch, self.distributions, self.student_prefix, epoch, tail_B
            )
        else:
            found, counts = self.decode(teacher, batch, self.distributions, student)
        self._count(counts, tail_B.device)
        return found

    def _count(self, counts: CollectionCounts, device: torch.device) -> None:
        dropped = torch.tensor([counts.dropped_loops, counts.dropped_endless], device=device)
        if is_distributed():
            torch.distributed.all_reduce(dropped)
        loops, endless = dropped.tolist()
        self.dropped = {"loops": self.dropped["loops"] + loops, "endless": self.dropped["endless"] + endless}

    def scores(self) -> dict[str, float]:
        """Dropped trajectories: so far, or of the whole collection."""
        if self._store is None:
            loops, endless = self.dropped["loops"], self.dropped["endless"]
        else:
            loops, endless = self._store.counts.dropped_loops, self._store.counts.dropped_endless
        return {"train/dropped_loops": float(loops), "train/dropped_endless": float(endless)}
