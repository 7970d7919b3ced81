"""Stage 3: Direct Conditional Distillation (DCD) of one step per block, or another objective.

Implements Algorithm 1 of docs/explain/method.md, "Stage 3: Direct Conditional Distillation".
Connects a source of trajectories (phase 1) and the loss of an objective (phase 2). The frozen
teacher is no submodule: no checkpoint holds it, and it is built from the stage-2 checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from echo_pl.backbone.checkpoint import StageRecord, load_weights
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.lora import LoraSettings, add_lora
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.objectives import Objective
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.student import StudentDecode
from echo_pl.stages.base import ReportStage
from echo_pl.stages.distillation import Distillation
from echo_pl.stages.mean_field import GapCheck
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.parallel import shard_if_needed
from echo_pl.stages.trajectory_source import Found, TrajectorySource
from echo_pl.stages.validation import TextTools, check_not_compiled
from echo_pl.structs import Batch

DROPPED_KEY = "dropped_trajectories"
"""Key of a checkpoint for the counts of trajectories dropped so far."""


class DCDModule(ReportStage):
    """Distils a frozen block-diffusion teacher into a student that decodes a block in one forward."""

    stage_name = "dcd"
    previous_stages = ("rad",)
    teacher: VLM
    """The frozen stage-2 model, once ``configure_model`` has run; None (and never used) for a validation without a start."""

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        text: TextTools,
        optimization: Optimization,
        lineage: StageRecord,
        decode: DecodeConfig,
        objective: Objective,
        start: str | None,
        trajectories: str | None = None,
        lora: LoraSettings | None = None,
        pack_tokens: int | None = None,
        seed: int = 0,
        student_prefix: float = 0.0,
        tilt: float = 0.0,
        student: StudentDecode | None = None,
        generation_batches: int = 1,
    ) -> None:
        """Take the ready-made parts; student and teacher are built in ``configure_model``.

        Args: those of :class:`ReportStage`, and
            decode: decode of the teacher's trajectories; the student's validation is the same at one step.
            objective: training objective of the student.
            start: the stage-2 checkpoint of the teacher, and the student's initial weights; None: a student to validate.
            trajectories: a folder of stored trajectories, or None to decode each training batch on the fly.
            lora: train low-rank adapters of the student alone; None: its whole language model.
            seed: seed of the objective's masks and of ``student_prefix``.
            student_prefix: share of the studies whose first blocks the student in training writes, and the teacher completes.
            tilt: weight of the student that the teacher is tilted towards (:mod:`echo_pl.sampling.tilted`); 0: none.
            student: additions to the student's one step in validation; None: none.
            generation_batches: also the batches of the mean-field gap.

        Raises:
            ValueError: a share or a weight outside its range; a share together with stored trajectories; bigrams without a folder,
                or for sampled tokens.
        """
        super().__init__(backbone, text, optimization, lineage, start, pack_tokens, generation_batches)
        student = student or StudentDecode()
        check_not_compiled(decode)
        student.check(decode, trajectories)
        self.decode, self.objective, self.lora = decode, objective, lora
        self._trajectories = trajectories
        self.decoder = StageDecoder(
            special=text.special, max_response_tokens=decode.max_response_tokens, decode=decode, student=student
        )
        self.gap = GapCheck(generation_batches)
        self.phase_1 = TrajectorySource(
            self.decoder,
            decode,
            distributions=objective.needs_targets,
            whole=objective.needs_whole_targets,
            folder=trajectories,
            student_prefix=student_prefix,
            tilt=tilt,
            seed=seed,
        )
        self.phase_2 = Distillation(text.special, decode.layout, objective, self.logits, seed)
        # Without nn.Module's registration: no checkpoint holds the teacher, and no optimizer or DDP hook sees it.
        object.__setattr__(self, "teacher", None)

    def configure_model(self) -> None:
        """Build the teacher and the student from the stage-2 checkpoint; read stored trajectories.

        Raises:
            ValueError: training without a start checkpoint; one that does not fit; trajectories that hold other tokens.
        """
        if self.vlm is not None:
            return
        text = self.text
        bigrams = self.decoder.student.count_bigrams(self._trajectories, text.vocab_size, text.fingerprint, text.word_starts)
        self.decoder = replace(self.decoder, bigrams=bigrams)
        if self.start is None:
            self._configure_to_validate()
            return
        teacher = self._build_from(self.start)
        teacher.requires_grad_(False)
        teacher.eval()
        self.phase_1.open(teacher, self.text.fingerprint)
        object.__setattr__(self, "teacher", shard_if_needed(self, teacher))
        student = self._build_from(self.start)
        student.freeze_vision()
        student.check_stored_features(self.text.vision_fingerprint)
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = shard_if_needed(self, student)

    def _configure_to_validate(self) -> None:
        if self.trainer.training:
            raise ValueError("stage dcd needs a stage-2 checkpoint as its teacher: give start=<path>")
        student = self.build()
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = shard_if_needed(self, student)

    def _build_from(self, start: str) -> VLM:
        vlm = self.build()
        layout, lineage = self.decode.layout, self.lineage
        stages = self.previous_stages if lineage.start_stage is None else (lineage.start_stage,)
        block_size = lineage.start_block_size or layout.block_size
        load_weights(vlm, start, stages, block_size, layout.grid, layout.context_attention)
        return vlm

    @property
    def block_size(self) -> int:
        """L."""
        return self.decode.block_size

    @property
    def sampler(self) -> BlockSampler:
        """The student's sampler: one step per block (and a second one after a gate), with the fused cache."""
        return self.make_student_sampler()

    def make_student_sampler(self, **changes: Any) -> BlockSampler:
        """The student's sampler with some fields of its decode configuration changed."""
        return self.decoder.one_step(self.model, **{"kv_cache": "fused", **changes})

    def make_sampler(self, vlm: VLM, **changes: Any) -> BlockSampler:
        """A sampler as the teacher's, with some fields of its decode configuration changed."""
        return self.decoder.multi_step(vlm, **changes)

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device; Lightning moves submodules only."""
        self.teacher.to(self.device)

    def on_validation_start(self) -> None:
        """See :meth:`on_fit_start`; a validation without a fit may have no teacher."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def collect(self, batch: Batch) -> Found:
        """Phase 1: the teacher's trajectories of a batch, stored or decoded now.

        Raises:
            ValueError: a sample is not in the store.
        """
        tail_B = self.phase_2.prompt(batch).tail_lengths_B
        return self.phase_1.collect(batch, self.teacher, self.model, self.current_epoch, tail_B)

    def decode_teacher(self, batch: Batch) -> Found:
        """The teacher's own trajectories of a batch, decoded now and without distributions; nothing is counted."""
        return self.phase_1.decode_teacher(batch, self.teacher)

    def loss(
        self, batch: Batch, trajectories: Found, epoch: int, progress: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Phase 2; ``progress`` runs from 0 to 1, None: the trainer's."""
        progress = self._progress() if progress is None else progress
        return self.phase_2.loss(self.model, self.teacher, batch, trajectories, epoch, progress)

    def mean_field_gaps(self, vlm: VLM, batch: Batch, trajectories: Found) -> Tensor:
        """See :meth:`Distillation.mean_field_gaps`."""
        return self.phase_2.mean_field_gaps(vlm, batch, trajectories)

    def _progress(self) -> float:
        total = self.trainer.estimated_stepping_batches
        return min(1.0, self.global_step / max(1.0, float(total)))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Phase 1, then phase 2."""
        trajectories = self.collect(batch)
        loss, parts = self.loss(batch, trajectories, self.current_epoch)
        self.log_training(loss, batch)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch), sync_dist=True)
        used = sum(t is not None for t in trajectories)
        self.log("train/usable_trajectories", used / len(batch), batch_size=len(batch), sync_dist=True)
        self.log_dict(self.phase_1.scores(), batch_size=len(batch))
        if self.phase_1.student_prefix:
            given = sum(int((t.commit_step_R == 0).sum()) for t in trajectories if t is not None)
            self.log("train/student_prefix_tokens", given / len(batch), batch_size=len(batch), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start to collect texts and gaps."""
        super().on_validation_epoch_start()
        self.gap.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log the loss of every batch; decode the first ones, and measure their mean-field gap."""
        super().validation_step(batch, batch_index)
        if self.teacher is None:  # a student that is only validated, without its stage-2 checkpoint
            return
        self.gap.update(
            batch,
            batch_index,
            decode=lambda: self.decode_teacher(batch),
            student=lambda trajectories: self.mean_field_gaps(self.model, batch, trajectories),
            teacher=lambda trajectories: self.mean_field_gaps(self.teacher, batch, trajectories),
        )

    def validation_loss(self, batch: Batch) -> Tensor:
        """One-step loss on the references: cross-entropy of fully masked blocks."""
        return self.phase_2.reference_loss(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the generated reports, and the gaps."""
        self.log_dict(self.generation.compute() | self.gap.compute(), prog_bar=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, and the counts of dropped trajectories."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[DROPPED_KEY] = dict(self.phase_1.dropped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights, and continue the counts of dropped trajectories."""
        super().on_load_checkpoint(checkpoint)
        self.phase_1.dropped |= checkpoint.get(DROPPED_KEY, {})
