"""Decode held-out studies with a checkpoint of any stage that writes reports.

Stage 1 decodes token by token, stage 2 by ``stage.module.decode``, stage 3 in one step per block with the additions of
``stage.module.student``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from echo_pl.backbone.checkpoint import StageRecord, load_weights, read_checkpoint
from echo_pl.backbone.vlm import VLM
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import EvalSplit
from echo_pl.distill.decoder import stage_decoder
from echo_pl.evaluation.cases import Case, parsed_prediction
from echo_pl.evaluation.harness import MethodScores, Sampler, evaluate
from echo_pl.evaluation.inputs import Inputs
from echo_pl.evaluation.options import Options
from echo_pl.evaluation.predictions import Images
from echo_pl.evaluation.score_files import write_records
from echo_pl.runs.lineage import SavedCheckpoint, check_same_data
from echo_pl.runs.run import explained_misfit, prepare
from echo_pl.sampling import Recorder
from echo_pl.structs import Batch, DecodeResult, ReportText

STAGES = {
    "pretrain": "stage 1, token by token",
    "rad": "stage 2, blocks of {block}",
    "dcd": "stage 3, blocks of {block} in one step",
}
"""Stages that write reports, and their names in a report; a stage-3 checkpoint does not record its objective."""
_STEPS = tuple(
    f"stage.module.decode.{name}" for name in ("denoising_steps", "remasking", "confidence_threshold", "entropy_bound", "gate")
)
"""Options that have no effect with one step per block."""
COUNTS = ("nfe", "tpf", "tpf_published", "forwards_per_block", "stopped", "looped")
"""Scores of the decode to keep; no seconds, as a recorder takes time (the decode benchmark measures them)."""

BATCH_SIZE = 16
"""Studies decoded at once unless the options give a number."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Reports of a checkpoint."""

    name: str
    cases: list[Case]
    judge: str | None
    """Name of the corpus, if it has a judge."""
    about: dict[str, Any]
    images: Images
    """The first images of studies, by id."""


class EosConfidence:
    """Recorder of the probability of each row's first eos token when it was committed."""

    def __init__(self, eos: int) -> None:
        self.eos = eos
        self._first: dict[int, tuple[int, int, float]] = {}

    def on_commit(
        self, *, rows_A: Tensor, block: int, step: int, committed_AL: Tensor, token_AL: Tensor, log_probs_ALV: Tensor
    ) -> None:
        """See :class:`~echo_pl.sampling.trajectory.Recorder`."""
        for active, place in (committed_AL & (token_AL == self.eos)).nonzero().tolist():
            row = int(rows_A[active])
            found = (block, place, float(log_probs_ALV[active, place, self.eos].exp()))
            self._first[row] = min(self._first.get(row, found), found)

    def confidence(self, row: int) -> float | None:
        """None: the report has no eos."""
        return self._first[row][2] if row in self._first else None


class Watched:
    """A sampler that records eos confidences by sample key; a batch is on the device while it is decoded."""

    def __init__(self, sampler: Sampler, eos: int, device: str) -> None:
        self.sampler = sampler
        self.eos = eos
        self.device = device
        self.confidences: dict[str, float | None] = {}

    def generate(self, batch: Batch, recorder: Recorder | None = None) -> DecodeResult:
        """Decode every prompt of ``batch``."""
        assert recorder is None, "one watches already"
        watch = EosConfidence(self.eos)
        result = self.sampler.generate(batch.to(self.device), watch)
        self.confidences |= {key: watch.confidence(row) for row, key in enumerate(batch.keys)}
        return result


def decode_checkpoint(
    checkpoint: Path, overrides: Sequence[str], split: EvalSplit, studies: int | None, batch_size: int
) -> Decoded:
    """Decode the first ``studies`` studies of a split (None: all).

    Args:
        checkpoint: of stage 1, 2 or 3.
        overrides: configuration; stage and block layout are the checkpoint's own.
        split: which studies.
        studies: how many.
        batch_size: at once.

    Raises:
        FileNotFoundError: no checkpoint or corpus.
        ValueError: a checkpoint of another vocabulary or model, or of a stage that writes nothing; fewer studies than asked for.
    """
    record, _ = read_checkpoint(checkpoint)
    if record.stage not in STAGES:
        raise ValueError(f"{checkpoint} is of stage {record.stage}, which writes no reports: give one of {', '.join(STAGES)}")
    _check_overrides(record, overrides)
    config = compose_config([*_own_settings(record), *overrides])
    data = prepare(config)
    check_same_data(data, SavedCheckpoint(path=checkpoint, record=record))
    there = data.index.count(split)
    limit = there if studies is None else studies
    if limit < 1 or batch_size < 1:
        raise ValueError(f"there is nothing to decode: {limit} studies of split {split}, {batch_size} at once")
    if limit > there:
        raise ValueError(f"split {split} has {there} studies, {limit} were asked for: leave --studies out to decode all of them")
    device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU on this machine; leave it out")
    vlm: VLM = instantiate(config.backbone.factory, _convert_="all").build(data.special, data.vocab_size)
    with explained_misfit(checkpoint):
        layout = () if record.block_size is None else (config.block_size, config.grid, config.context_attention)
        load_weights(vlm, checkpoint, (record.stage,), *layout)
    sampler = Watched(
        stage_decoder(config, data).for_stage(record.stage, vlm.to(device).eval().requires_grad_(False)), data.special.eos, device
    )
    with torch.no_grad():
        batches = data.held_out_batches(split, batch_size, limit)
        outcome = evaluate(sampler, batches, data.detokenize, None, warmup=0, description="decode")
    about = {
        "checkpoint": str(checkpoint),
        "stage": record.stage,
        "block_size": record.block_size,
        "corpus": data.index.fingerprint,
        "split": split,
        "overrides": list(overrides),
        **{name: outcome.scores[name] for name in COUNTS if record.block_size is not None or name != "forwards_per_block"},
    }
    return Decoded(
        name=f"{checkpoint.parent.parent.name} ({STAGES[record.stage].format(block=record.block_size)})",
        cases=_cases(outcome, [reference for batch in batches for reference in batch.references], sampler.confidences, record),
        judge=None if data.judge is None else data.index.corpus,
        about=about,
        images=partial(data.images, split),
    )


def _cases(
    outcome: MethodScores, references: Sequence[ReportText], confidences: Mapping[str, float | None], record: StageRecord
) -> list[Case]:
    blocks = record.block_size is not None  # none in autoregressive decodes
    ends = [
        (bool(stopped), bool(looped), int(nfe), float(nfe - written) / float(begun) if blocks else None)
        for result in outcome.results
        for stopped, looped, nfe, written, begun in zip(
            result.stopped_B, result.looped_B, result.nfe_B, result.kv_write_nfe_B, result.blocks_B, strict=True
        )
    ]
    return [
        Case(
            key=key,
            prediction=replace(
                parsed_prediction(text),
                stopped=stopped,
                looped=looped,
                eos_confidence=confidences[key],
                nfe=nfe,
                forwards_per_block=forwards_per_block,
            ),
            reference=reference,
        )
        for key, text, (stopped, looped, nfe, forwards_per_block), reference in zip(
            outcome.keys, outcome.texts, ends, references, strict=True
        )
    ]


def _check_overrides(record: StageRecord, overrides: Sequence[str]) -> None:
    """Refuse configuration that the checkpoint has decided.

    Raises:
        ValueError: naming it.
    """
    given = [override.lstrip("+~").partition("=")[0] for override in overrides]
    own = [name for name in given if name in ("stage", "block_size", "grid", "context_attention")]
    if own:
        raise ValueError(f"{', '.join(own)}: these are the checkpoint's own, leave them out")
    steps = [name for name in given if name in _STEPS]
    if record.stage == "dcd" and steps:
        raise ValueError(
            f"{', '.join(steps)}: a student writes each block in one step, and these say how its teacher decodes; for a second "
            "step where it is unsure give stage.module.student.gate=<confidence>"
        )


def _own_settings(record: StageRecord) -> list[str]:
    """Overrides that make a configuration the checkpoint's own."""
    layout = [] if record.block_size is None else [f"block_size={record.block_size}"]
    return [f"stage={record.stage}", *layout, f"grid={record.grid}", f"context_attention={record.context_attention}"]


def decoded_inputs(options: Options) -> Inputs:
    """Decode the studies that the options of an evaluation name, and write the reports to its folder at once."""
    assert options.checkpoint is not None
    options.folder.mkdir(parents=True, exist_ok=True)  # before the decode, which would be lost
    size = BATCH_SIZE if options.batch_size is None else options.batch_size
    decoded = decode_checkpoint(options.checkpoint, options.overrides, options.split or "test", options.studies, size)
    path = write_records(options.folder, decoded.cases)  # decoding takes long: no later error may lose it
    print(f"{len(decoded.cases)} decoded reports are in {path}", flush=True)
    return Inputs(
        title=f"Evaluation of {decoded.name}",
        cases=decoded.cases,
        corpus=decoded.judge,
        about={"decoding": decoded.about},
        images=decoded.images,
    )
