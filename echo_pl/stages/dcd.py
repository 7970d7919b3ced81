"""Stage 3: Direct Conditional Distillation of one step per block (METHOD.md 3, Algorithm 1), or another objective.

Wires teacher trajectories, the RAD sequence of masked pseudo-labels and an objective. The frozen teacher is no
submodule: it is in no checkpoint, and is built anew from the stage-2 checkpoint.

Shapes: B batch, K masked copies, R response in whole blocks, M chosen positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, load_weights, record_dict, refuse_other_geometry
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.fingerprint import weights_fingerprint
from echo_pl.backbone.lora import LoraSettings, add_lora
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import own
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.objectives import Objective, Rows
from echo_pl.diffusion.sequence import BlockedContext, BlockedResponse, block_context, block_response, rad_sequence
from echo_pl.sampling.collect import store_identity
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.trajectory_store import CollectionCounts, TrajectoryStore
from echo_pl.stages.mean_field import GapCheck, gaps_of
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.placement import placed
from echo_pl.stages.pseudo_labels import align, pseudo_labels, rows_of
from echo_pl.stages.reduction import is_alone, share_of_ranks
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.teacher_decode import TeacherDecode
from echo_pl.stages.validation import GenerationCheck, TextTools, refuse_compile
from echo_pl.structs import Batch, Trajectory

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
        student_gate: float = 0.0,
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
            student_gate: in validation, the student takes a second step for blocks with a position below this confidence.
            generation_batches: validation batches that are decoded and scored, and whose mean-field gap is measured.

        Raises:
            ValueError: a share that is none, or one of stored trajectories.
        """
        super().__init__()
        refuse_compile(decode)
        if not 0.0 <= student_prefix <= 1.0:
            raise ValueError(f"student_prefix must be in [0, 1], got {student_prefix}")
        if student_prefix and trajectories is not None:
            raise ValueError("student_prefix follows the student as it learns: it decodes on the fly, leave trajectories unset")
        self.backbone, self.text, self.optimization, self.lineage = backbone, text, optimization, lineage
        self.student_prefix, self.student_gate = student_prefix, student_gate
        self.decode, self.objective, self.start, self.seed = decode, objective, start, seed
        self.trajectories_folder, self.lora = trajectories, lora
        self.logits = SequenceLogits(pack_tokens)
        self.generation = GenerationCheck(text, generation_batches)
        self.gap = GapCheck(generation_batches)
        self.special = text.special
        self.phase_1 = TeacherDecode(text.special, decode, seed)
        self.vlm: VLM | None = None
        # Past nn.Module's registration, so that no checkpoint holds the teacher and no optimizer or DDP hook sees it.
        object.__setattr__(self, "teacher", None)
        self._store: TrajectoryStore | None = None
        self.dropped = {"loops": 0, "endless": 0}
        """Trajectories dropped so far on all ranks, when decoded on the fly."""

    def configure_model(self) -> None:
        """Build the teacher and the student from the stage-2 checkpoint; read stored trajectories.

        Raises:
            ValueError: training without a start checkpoint; one that does not fit.
        """
        if self.vlm is not None:
            return
        if self.start is None:
            self._configure_to_validate()
            return
        teacher = self._build(self.start)
        teacher.requires_grad_(False)
        teacher.eval()
        if self.trajectories_folder is not None:
            store = TrajectoryStore(self.trajectories_folder)
            store.check(
                store_identity(self.decode, weights_fingerprint(teacher), self.text.fingerprint, self.objective.needs_targets)
            )
            self._store = store
        object.__setattr__(self, "teacher", placed(self, teacher))
        student = self._build(self.start)
        student.freeze_vision()
        student.check_stored_features(self.text.vision_fingerprint)
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = placed(self, student)

    def _configure_to_validate(self) -> None:
        if self.trainer.training:
            raise ValueError("stage dcd needs a stage-2 checkpoint as its teacher: give start=<path>")
        student = self.backbone.build(self.text.special, self.text.vocab_size)
        if self.lora is not None:
            add_lora(student, self.lora)
        self.vlm = placed(self, student)

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
        """One step per block (and a second one behind a gate), with the fused cache."""
        return self.make_sampler(self.model, denoising_steps=1, kv_cache="fused", gate=self.student_gate)

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

    def collect(self, batch: Batch) -> list[Trajectory | None]:
        """Phase 1: the teacher's trajectories of a batch, stored or decoded now; None where there is no usable one.

        Raises:
            ValueError: the store has never seen a sample.
        """
        if self._store is not None:
            return [self._store.get(key) for key in batch.keys]
        if self.student_prefix:
            found, counts = self.phase_1.behind_student(
                self.teacher,
                self.model,
                batch,
                self.objective.needs_targets,
                self.student_prefix,
                self.current_epoch,
                self._prompt(batch).tail_lengths_B,
            )
        else:
            found, counts = self.phase_1(self.teacher, batch, self.objective.needs_targets)
        self._count(counts)
        return found

    def decode_teacher(self, batch: Batch) -> list[Trajectory | None]:
        """The teacher's own trajectories of a batch, decoded now and without distributions; nothing is counted."""
        return self.phase_1(self.teacher, batch, distributions=False)[0]

    def _count(self, counts: CollectionCounts) -> None:
        dropped = torch.tensor([counts.dropped_loops, counts.dropped_endless], device=self.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(dropped)
        loops, endless = dropped.tolist()
        self.dropped = {"loops": self.dropped["loops"] + loops, "endless": self.dropped["endless"] + endless}

    def loss(
        self, batch: Batch, trajectories: list[Trajectory | None], epoch: int, progress: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Phase 2: the student sees the pseudo-labels as x0 and the objective's masks as xt.

        ``progress`` runs from 0 to 1; None: where the trainer is.
        """
        blocked = self._blocked(batch, trajectories)
        labels = align(trajectories, blocked, self.objective.needs_targets)
        progress = self._progress() if progress is None else progress
        maskable_B1R = blocked.maskable_BR[:, None]
        masked_BKR = maskable_B1R & self.objective.student_masks(labels, progress, self._generators(batch, epoch))
        chosen_BKR = masked_BKR & labels.supervised_BR[:, None]
        logits_MV = self._predict(self.model, batch, blocked, masked_BKR, chosen_BKR)
        share = own if is_alone() else share_of_ranks
        rows = rows_of(logits_MV, labels, chosen_BKR, self.special.eos, self.objective.needs_targets, share)
        teacher_BKR = self.objective.teacher_masks(labels, progress, self._generators(batch, epoch))
        if teacher_BKR is not None:
            rows = self._teacher_rows(rows, batch, blocked, teacher_BKR & maskable_B1R, chosen_BKR)
        if not bool(share_of_ranks(chosen_BKR.sum()) > 0):
            # No usable trajectory on any rank: a zero on the graph, as there must be a backward.
            return logits_MV.sum() * 0.0, {}
        return self.objective.loss(rows, progress)

    def _prompt(self, batch: Batch) -> BlockedContext:
        return block_context(batch.context_ids_BP, batch.context_lengths_B, self.decode.layout, self.special.image)

    def _blocked(self, batch: Batch, trajectories: list[Trajectory | None]) -> BlockedResponse:
        tokens_BR, lengths_B = pseudo_labels(trajectories, self.special.eos, batch.context_ids_BP.device)
        return block_response(self._prompt(batch), tokens_BR, lengths_B, self.decode.layout, self.special)

    @torch.no_grad()
    def mean_field_gaps(self, vlm: VLM, batch: Batch, trajectories: list[Trajectory | None]) -> Tensor:
        """Gaps (G,) of all blocks of the teacher's trajectories under one step of a model, in nats.

        See :func:`echo_pl.diffusion.mean_field.mean_field_gaps`. In the weights' own precision: rounding would be a gap, too.
        """
        blocked = self._blocked(batch, trajectories)
        labels = align(trajectories, blocked, with_targets=False)
        with torch.autocast(self.device.type, enabled=False):
            logits_MV = self._predict(vlm, batch, blocked, blocked.maskable_BR[:, None], labels.supervised_BR[:, None])
        return gaps_of(trajectories, labels, logits_MV, self.special.never_sampled)

    def _generators(self, batch: Batch, epoch: int) -> list[torch.Generator]:
        return [sample_generator(self.seed, key, epoch) for key in batch.keys]

    def _predict(self, vlm: VLM, batch: Batch, blocked: BlockedResponse, masked_BKR: Tensor, chosen_BKR: Tensor) -> Tensor:
        """Logits (M, V) at the chosen positions of masked copies, all copies in one forward."""
        clean_BKR = blocked.clean_ids_BR[:, None].expand_as(masked_BKR)
        sequence = rad_sequence(blocked, torch.where(masked_BKR, self.special.mask, clean_BKR))
        return self.logits(vlm, sequence, batch.images, sequence.noisy_positions(chosen_BKR))

    def _teacher_rows(self, rows: Rows, batch: Batch, blocked: BlockedResponse, masked_BKR: Tensor, chosen_BKR: Tensor) -> Rows:
        """Add what the frozen teacher predicts at the same positions, seeing its own masks."""
        with torch.no_grad():
            logits_MV = self._predict(self.teacher, batch, blocked, masked_BKR, chosen_BKR)
        never = torch.tensor(self.special.never_sampled, device=logits_MV.device)
        return replace(
            rows,
            reference_logits_MV=logits_MV.index_fill(-1, never, -torch.inf),
            reference_masked_M=masked_BKR[chosen_BKR],
        )

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
        self.log_dict(self._drop_scores(), batch_size=len(batch))
        if self.student_prefix:
            given = sum(int((t.commit_step_R == 0).sum()) for t in trajectories if t is not None)
            self.log("train/student_prefix_tokens", given / len(batch), batch_size=len(batch), sync_dist=True)
        return loss

    def _drop_scores(self) -> dict[str, float]:
        """Dropped trajectories: so far, or of the whole collection."""
        if self._store is None:
            loops, endless = self.dropped["loops"], self.dropped["endless"]
        else:
            loops, endless = self._store.counts.dropped_loops, self._store.counts.dropped_endless
        return {"train/dropped_loops": float(loops), "train/dropped_endless": float(endless)}

    def on_validation_epoch_start(self) -> None:
        """Begin to collect texts and gaps."""
        self.generation.start(self.device)
        self.gap.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """One-step loss on the references (cross-entropy of fully masked blocks); generation on the first batches."""
        self.log("val/loss", self._reference_loss(batch), prog_bar=True, batch_size=len(batch), sync_dist=True)
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

    def _reference_loss(self, batch: Batch) -> Tensor:
        special, layout = self.special, self.decode.layout
        blocked = block_response(self._prompt(batch), batch.response_ids_BR, batch.response_lengths_B, layout, special)
        masked_BR = blocked.maskable_BR
        chosen_BR = masked_BR & blocked.supervised_BR
        logits_MV = self._predict(self.model, batch, blocked, masked_BR[:, None], chosen_BR[:, None])
        return torch.nn.functional.cross_entropy(logits_MV.float(), blocked.clean_ids_BR[chosen_BR])

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the generated reports, and the gaps."""
        self.log_dict(self.generation.compute() | self.gap.compute(), prog_bar=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """See :class:`Optimization`."""
        return self.optimization.configure(self, self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say where the checkpoint comes from, and how many trajectories were dropped until now."""
        checkpoint[RECORD_KEY] = record_dict(self.lineage, self.vlm)
        checkpoint[DROPPED_KEY] = dict(self.dropped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of the same shapes and another meaning; go on counting dropped trajectories where the run was."""
        refuse_other_geometry(checkpoint[RECORD_KEY].get("geometry"), self.model.geometry, "the checkpoint to resume")
        self.dropped |= checkpoint.get(DROPPED_KEY, {})
