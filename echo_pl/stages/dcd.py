"""Stage 3: Direct Conditional Distillation of one step per block (METHOD.md 3, Algorithm 1), or another objective.

Wires a source of trajectories (phase 1) and what an objective makes of them (phase 2), and logs. The frozen teacher is no
submodule: it is in no checkpoint, and is built anew from the stage-2 checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, load_weights, record_dict, refuse_other_geometry
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.lora import LoraSettings, add_lora
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.objectives import Objective
from echo_pl.sampling.bigrams import Bigrams, check_greedy, check_pairs, check_source, stored_bigrams
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.stages.distillation import Distillation
from echo_pl.stages.mean_field import GapCheck
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.placement import shard_if_needed
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.teacher_decode import Found
from echo_pl.stages.trajectory_source import TrajectorySource
from echo_pl.stages.validation import GenerationCheck, TextTools, refuse_compile
from echo_pl.structs import Batch

DROPPED_KEY = "dropped_trajectories"
"""Where a checkpoint keeps the counts of trajectories dropped so far."""


class DCDModule(L.LightningModule):
    """Distils a frozen block-diffusion teacher into a student that decodes a block in one forward."""

    stage_name = "dcd"
    previous_stages = ("rad",)
    teacher: VLM
    """The frozen stage-2 model, once ``configure_model`` has run; None (and not asked) for a validation without a start."""

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
        student_gate: float = 0.0,
        student_bigrams: float = 0.0,
        student_bigrams_min_count: int = 1,
        student_bigrams_repeats: bool = True,
        generation_batches: int = 1,
    ) -> None:
        """Take everything ready-made; student and teacher are built in ``configure_model``.

        Args:
            backbone: builds both models.
            text: ids and texts.
            optimization: optimizer and schedule.
            lineage: written into every checkpoint.
            decode: how the teacher decodes its trajectories; the student's validation is the same at one step.
            objective: what the student is trained on.
            start: the stage-2 checkpoint, teacher and start of the student; None: a student to validate, which needs none.
            trajectories: a folder of stored trajectories, or None to decode each training batch on the fly.
            lora: train low-rank adapters of the student alone; None: its whole language model.
            pack_tokens: most tokens of a row of several studies; None: one study a row.
            seed: of the objective's own masks, where it has any, and of ``student_prefix``.
            student_prefix: share of the studies whose first blocks the student writes, as it is now, and the teacher completes.
            tilt: weight of the student that the teacher leans to while it decodes (:mod:`echo_pl.sampling.tilted`); 0: none.
            student_gate: in validation, the student takes a second step for blocks with a position below this confidence.
            student_bigrams: in validation, weight of how often tokens follow each other in the stored trajectories
                (:mod:`echo_pl.sampling.bigrams`); 0: the student alone.
            student_bigrams_min_count: pairs that are seen less often there count as never seen.
            student_bigrams_repeats: whether a token that begins a word may follow itself.
            generation_batches: validation batches that are decoded and scored, and whose mean-field gap is measured.

        Raises:
            ValueError: a share that is none, or one of stored trajectories; a weight or a least count that is none; bigrams
                without a folder, or for drawn tokens.
        """
        super().__init__()
        refuse_compile(decode)
        check_source(trajectories, student_bigrams)
        check_pairs(student_bigrams, student_bigrams_min_count, student_bigrams_repeats)
        check_greedy(student_bigrams, decode.token_choice.temperature)
        self.backbone, self.text, self.optimization, self.lineage = backbone, text, optimization, lineage
        self.decode, self.objective, self.start, self.lora = decode, objective, start, lora
        self.student_gate, self.student_bigrams, self._trajectories = student_gate, student_bigrams, trajectories
        self._bigrams: Bigrams | None = None
        self._min_count = student_bigrams_min_count
        self._once = None if student_bigrams_repeats else text.word_starts
        self.logits = SequenceLogits(pack_tokens)
        self.generation = GenerationCheck(text, generation_batches)
        self.gap = GapCheck(generation_batches)
        self.special = text.special
        self.phase_1 = TrajectorySource(
            text.special,
            decode,
            distributions=objective.needs_targets,
            whole=objective.needs_whole_targets,
            folder=trajectories,
            student_prefix=student_prefix,
            tilt=tilt,
            seed=seed,
        )
        self.phase_2 = Distillation(text.special, decode.layout, objective, self.logits, seed)
        self.vlm: VLM | None = None
        # Past nn.Module's registration, so that no checkpoint holds the teacher and no optimizer or DDP hook sees it.
        object.__setattr__(self, "teacher", None)

    def configure_model(self) -> None:
        """Build the teacher and the student from the stage-2 checkpoint; read stored trajectories.

        Raises:
            ValueError: training without a start checkpoint; one that does not fit; trajectories that hold other tokens.
        """
        if self.vlm is not None:
            return
        self._bigrams = stored_bigrams(
            self._trajectories,
            self.student_bigrams,
            self.text.vocab_size,
            self.text.fingerprint,
            min_count=self._min_count,
            once=self._once,
        )
        if self.start is None:
            self._configure_to_validate()
            return
        teacher = self._build(self.start)
        teacher.requires_grad_(False)
        teacher.eval()
        self.phase_1.open(teacher, self.text.fingerprint)
        object.__setattr__(self, "teacher", shard_if_needed(self, teacher))
        student = self._build(self.start)
        student.freeze_vision()
        student.check_stored_features(self.text.vision_fingerprint)
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = shard_if_needed(self, student)

    def _configure_to_validate(self) -> None:
        if self.trainer.training:
            raise ValueError("stage dcd needs a stage-2 checkpoint as its teacher: give start=<path>")
        student = self.backbone.build(self.text.special, self.text.vocab_size)
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = shard_if_needed(self, student)

    def _build(self, start: str) -> VLM:
        vlm = self.backbone.build(self.text.special, self.text.vocab_size)
        layout, lineage = self.decode.layout, self.lineage
        stages = self.previous_stages if lineage.start_stage is None else (lineage.start_stage,)
        block_size = lineage.start_block_size or layout.block_size
        load_weights(vlm, start, stages, block_size, layout.grid, layout.context_attention)
        return vlm

    @property
    def model(self) -> VLM:
        """The student, once it has been built."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    @property
    def block_size(self) -> int:
        """L."""
        return self.decode.block_size

    @property
    def sampler(self) -> BlockSampler:
        """The student's: one step per block (and a second one behind a gate), with the fused cache."""
        return self.make_student_sampler()

    def make_student_sampler(self, **changes: Any) -> BlockSampler:
        """The same with some fields of its decode configuration changed."""
        one = {"denoising_steps": 1, "kv_cache": "fused", "gate": self.student_gate}
        return BlockSampler(self.model, self.special, replace(self.decode, **{**one, **changes}), bigrams=self._bigrams)

    def make_sampler(self, vlm: VLM, **changes: Any) -> BlockSampler:
        """A sampler like the teacher's, with some fields of its decode configuration changed."""
        return BlockSampler(vlm, self.special, replace(self.decode, **changes))

    def on_fit_start(self) -> None:
        """The teacher follows the student's device; it is no submodule, so nobody else moves it."""
        self.teacher.to(self.device)

    def on_validation_start(self) -> None:
        """Likewise where there is no fit, and perhaps no teacher."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def collect(self, batch: Batch) -> Found:
        """Phase 1: the teacher's trajectories of a batch, stored or decoded now; None where there is no usable one.

        Raises:
            ValueError: the store has never seen a sample.
        """
        tail_B = self.phase_2.prompt(batch).tail_lengths_B
        return self.phase_1.collect(batch, self.teacher, self.model, self.current_epoch, tail_B)

    def decode_teacher(self, batch: Batch) -> Found:
        """The teacher's own trajectories of a batch, decoded now and without distributions; nothing is counted."""
        return self.phase_1.decode(self.teacher, batch, distributions=False)[0]

    def loss(
        self, batch: Batch, trajectories: Found, epoch: int, progress: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Phase 2; ``progress`` runs from 0 to 1, None: where the trainer is."""
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
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch), sync_dist=True)
        self.log_dict(self.logits.padding, batch_size=len(batch), sync_dist=True)
        used = sum(t is not None for t in trajectories)
        self.log("train/usable_trajectories", used / len(batch), batch_size=len(batch), sync_dist=True)
        self.log_dict(self.phase_1.scores(), batch_size=len(batch))
        if self.phase_1.student_prefix:
            given = sum(int((t.commit_step_R == 0).sum()) for t in trajectories if t is not None)
            self.log("train/student_prefix_tokens", given / len(batch), batch_size=len(batch), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin to collect texts and gaps."""
        self.generation.start(self.device)
        self.gap.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """One-step loss on the references (cross-entropy of fully masked blocks); generation on the first batches."""
        self.log("val/loss", self.phase_2.reference_loss(self.model, batch), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.generation.update(self.sampler, batch, batch_index)
        if self.teacher is None:  # a student that is only looked at, far from where it was trained
            return
        self.gap.update(
            batch,
            batch_index,
            decode=lambda: self.decode_teacher(batch),
            student=lambda trajectories: self.mean_field_gaps(self.model, batch, trajectories),
            teacher=lambda trajectories: self.mean_field_gaps(self.teacher, batch, trajectories),
        )

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the generated reports, and the gaps."""
        self.log_dict(self.generation.compute() | self.gap.compute(), prog_bar=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """See :class:`Optimization`."""
        return self.optimization.configure(self, self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say where the checkpoint comes from, and how many trajectories were dropped until now."""
        checkpoint[RECORD_KEY] = record_dict(self.lineage, self.vlm)
        checkpoint[DROPPED_KEY] = dict(self.phase_1.dropped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of the same shapes and another meaning; go on counting dropped trajectories where the run was."""
        refuse_other_geometry(checkpoint[RECORD_KEY].get("geometry"), self.model.geometry, "the checkpoint to resume")
        self.phase_1.dropped |= checkpoint.get(DROPPED_KEY, {})
