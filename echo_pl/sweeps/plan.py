"""Chain of parts of one job of a sweep; the name of each part is a digest of every setting that affects its training.

Two jobs share a base, a teacher or stored trajectories exactly if they would train the same one, and a restarted sweep finds its
finished parts. This file plans only: it trains, launches and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distill.decoder import student_decode
from echo_pl.io.run_folders import FINAL, read_info
from echo_pl.metrics.words import cut_words_variant
from echo_pl.sampling.student import StudentDecode

PartStage = Literal["warmup", "pretrain", "rad", "trajectories", "dcd"]
STAGES: tuple[PartStage, ...] = ("warmup", "pretrain", "rad", "trajectories", "dcd")
"""Order of the parts. Trajectories of a teacher that is tilted to a student come after that student."""
FIRST_STUDENT = "ce"
"""Ablation of the first student that a teacher is tilted to."""
SCORES = "sweep_scores.json"
"""File in a run folder: scores of its final checkpoint on held-out studies."""
STUDIES = "sweep_studies.json"
"""File beside it: counts of each of these studies (:mod:`echo_pl.sweeps.contrasts`)."""
MEASURED = ("studies", "batch_size", "timed_studies", "split")
"""Settings of ``sweep`` that affect the scores."""
_MEASUREMENT = 4
"""Version of the files; a new one makes finished parts be measured again."""

_NO_EFFECT = {
    "resume", "start", "run_name", "task", "threads", "min_free_gb", "outputs", "data_root",
    "data.root", "data.cache_dir", "data.cache_bytes", "data.num_workers", "data.prefetch_batches", "data.cache_samples",
    "data.stored_features", "data.limit_val", "data.eval_batch_size", "stage.eval_batch_size", "stage.validate_every",
    "stage.checkpoint_every", "stage.module.generation_batches", "stage.module.trajectories",
}  # fmt: skip
"""Settings without effect on training; the data itself is in its fingerprint."""
_BLOCK_SETTINGS = {"block_size", "grid", "context_attention"}
"""Settings that only the diffusion stages read."""
_TRAINER_SETTINGS = ("precision", "devices", "num_nodes")


@dataclass(frozen=True, kw_only=True)
class SweepPart:
    """One product of a sweep: a run, or stored trajectories."""

    stage: PartStage
    name: str
    config: DictConfig
    before: tuple[str, ...]
    """Names of the parts that it starts from."""
    student: Path | None = None
    """Checkpoint that the teacher of trajectories is tilted to."""

    @property
    def folder(self) -> Path:
        """Folder of the run or of the trajectories."""
        kind = "trajectories" if self.stage == "trajectories" else "runs"
        return Path(self.config.outputs) / kind / self.name

    @property
    def checkpoint(self) -> Path:
        """Final checkpoint of a finished run."""
        return self.folder / "checkpoints" / FINAL

    @property
    def writes_reports(self) -> bool:
        """True if the part is scored."""
        return self.stage in ("pretrain", "rad", "dcd")

    @property
    def trained(self) -> bool:
        """True if everything but the scores exists."""
        if self.stage == "trajectories":
            return self.folder.is_dir()
        info = read_info(self.folder)
        return info is not None and info.status == "finished" and self.checkpoint.exists()

    @property
    def scores(self) -> dict[str, float] | None:
        """Scores of the configured measurement; None: not measured."""
        path = self.folder / SCORES
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content["scores"] if content.get("measured") == measurement(self.config) else None

    @property
    def done(self) -> bool:
        """True if nothing is left to do."""
        return self.trained and (not self.writes_reports or self.scores is not None)


def measurement(config: DictConfig) -> dict[str, Any]:
    """Settings of the measurement of checkpoints."""
    settings = {name: config.sweep[name] for name in MEASURED} | {"version": _MEASUREMENT}
    # English is split the same everywhere; Chinese depends on the installed splitter.
    is_english = config.data.language == "en" and not config.data.get("corpora")
    return settings if is_english else settings | {"words": cut_words_variant()}


def parts(config: DictConfig) -> list[SweepPart]:
    """Chain of one job, from the first part to its own student.

    Args:
        config: configuration of the job: stage 3, with a ``sweep`` node.

    Raises:
        ValueError: see :func:`check_job`.
    """
    check_job(config)
    if config.start_stage == "dcd":  # the student of another chain is the teacher
        chain = parts(_student_before(config, config.sweep.round_before))
        stored = _part(config, "trajectories", start=chain[-1])
        return [*chain, stored, _part(config, "dcd", start=chain[-1], stored=stored)]
    chain = []
    for stage in STAGES[: STAGES.index("rad")]:
        if stage != "warmup" or config.backbone.needs_warmup:
            chain.append(_part(config, stage, start=chain[-1] if chain else None))
    for blocks in _teachers(config):
        chain.append(_part(blocks, "rad", start=chain[-1]))
    teacher = chain[-1]
    if not _stores(config):
        return [*chain, _part(config, "dcd", start=teacher)]
    rounds = [config]
    if config.stage.module.tilt:
        rounds = [_student_before(config, FIRST_STUDENT), *[config] * config.sweep.tilt_rounds]
    student: SweepPart | None = None
    for own in rounds:
        stored = _part(own, "trajectories", start=teacher, student=student)
        student = _part(own, "dcd", start=teacher, stored=stored)
        chain += [stored, student]
    return chain


def _teachers(config: DictConfig) -> list[DictConfig]:
    """Configurations of the stage-2 runs up to a job's teacher, one per block size of ``sweep.grow``; the job's own is last."""
    sizes = [size for size in config.sweep.grow if size < config.block_size]
    found = []
    for before, size in zip([None, *sizes], [*sizes, config.block_size], strict=True):
        own = deepcopy(config)
        own.block_size = size
        if before is not None:
            own.start_stage, own.start_block_size = "rad", before
            with open_dict(own):
                own.sweep.stages.rad = OmegaConf.merge(own.sweep.stages.rad, own.sweep.stages.grown)
        found.append(own)
    return found


def _student_before(config: DictConfig, ablation: str) -> DictConfig:
    """Configuration of a student before the job's own, which learns from trajectories of the untilted teacher of stage 2."""
    own = deepcopy(config)
    own.start_stage = None
    own.stage.module.tilt = 0.0
    own.stage.module.student = {"_target_": own.stage.module.student._target_, **asdict(StudentDecode())}
    own.stage.module.objective = compose_config(["stage=dcd", f"ablation={ablation}"]).stage.module.objective
    return own


def _stores(config: DictConfig) -> bool:
    return bool(config.sweep.store and not config.stage.module.student_prefix)


def check_job(config: DictConfig) -> None:
    """Raise ValueError if a job cannot be part of a sweep."""
    if config.stage.name != "dcd" or config.task != "fit":
        raise ValueError(f"a sweep's jobs are of stage dcd, which brings the stages before; got {config.stage.name}, {config.task}")
    for name in ("start_block_size", "resume", "run_name"):
        if config[name] is not None:
            raise ValueError(f"a sweep sets the start and the names of its jobs: leave {name} out")
    if config.start_stage not in (None, "dcd") or (
        config.start_stage == "dcd" and (config.stage.module.tilt or not _stores(config))
    ):
        raise ValueError(
            "in a sweep start_stage=dcd makes the student of sweep.round_before the next teacher, whose trajectories are stored: "
            f"leave out tilt, student_prefix and sweep.store=false; got start_stage={config.start_stage}"
        )
    if config.start not in (None, "auto") or config.stage.module.trajectories is not None:
        raise ValueError("a sweep trains the teachers of its jobs itself: leave start and stage.module.trajectories out")
    module = config.stage.module
    student = student_decode(module)
    if student.bigrams and not _stores(config):
        raise ValueError(
            f"student.bigrams={student.bigrams} counts pairs of tokens in stored trajectories, and there are none with "
            "sweep.store=false or student_prefix"
        )
    student.check_greedy(module.decode.token_choice.temperature)
    if list(config.sweep.grow) != sorted(set(config.sweep.grow)):
        raise ValueError(f"sweep.grow must name block sizes from small to large, got {list(config.sweep.grow)}")
    if not isinstance(config.sweep.kept_tokens, int) or config.sweep.kept_tokens < 0:
        raise ValueError(
            f"sweep.kept_tokens must be a number, 0 (all) or more, got {config.sweep.kept_tokens!r}: all objectives share the "
            "trajectories of a teacher, so it is measured before (echo-pl trajectories collect --check-k)"
        )
    if config.sweep.tilt_rounds < 1:
        raise ValueError(f"sweep.tilt_rounds must be at least 1, got {config.sweep.tilt_rounds}; without a tilt it is not used")


def _part(
    config: DictConfig, stage: PartStage, start: SweepPart | None, stored: SweepPart | None = None, student: SweepPart | None = None
) -> SweepPart:
    before = tuple(part.name for part in (start, stored, student) if part is not None)
    own = _with_stage(config, stage)
    if start is not None:
        own.start = str(start.checkpoint)
    if stored is not None:
        own.stage.module.trajectories = str(stored.folder)
    if stage == "trajectories":
        own.stage.batch_size = config.sweep.collect_batch_size
    name = _name(own, stage, before)
    own.run_name, own.resume = name, "if_any"
    return SweepPart(stage=stage, name=name, config=own, before=before, student=None if student is None else student.checkpoint)


def _with_stage(config: DictConfig, stage: PartStage) -> DictConfig:
    """The job's configuration with another stage; everything else stays, references to the stage included."""
    own = deepcopy(config)
    if stage in ("trajectories", "dcd"):
        return own
    usual = _usual(stage)
    given = config.sweep.stages[stage] or {}
    with open_dict(own):
        own.stage = OmegaConf.create(OmegaConf.to_container(OmegaConf.merge(usual, given), resolve=False))
    return own


@cache
def _usual(stage: PartStage) -> DictConfig:
    """Configuration of a stage in its file."""
    node: DictConfig = compose_config([f"stage={stage}"]).stage
    return node


def _name(config: DictConfig, stage: PartStage, before: Sequence[str]) -> str:
    """Readable name with a digest of every setting that affects training."""
    flat = {name: value for name, value in _settings(config).items() if _has_effect(name, stage)}
    flat |= {f"trainer.{name}": config.trainer[name] for name in _TRAINER_SETTINGS}
    flat |= {"stage": stage, "before": list(before), "data": _data_fingerprint(_data_text(config))}
    if stage == "trajectories":
        flat["kept_tokens"] = config.sweep.kept_tokens
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:8]
    block = "" if stage in ("warmup", "pretrain") else f"-L{config.block_size}"
    return f"{stage}{block}-s{config.seed}-{digest}"


def _settings(config: DictConfig) -> dict[str, Any]:
    """Every value of a run by its dotted name, without trainer and callbacks."""

    def flat(node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {key: value for child in node for key, value in flat(node[child], f"{name}.{child}").items()}
        return {name: node}

    plain = {str(name): config[name] for name in config if name not in ("run", "callbacks", "mlflow", "trainer", "sweep")}
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= flat(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, name)
    return found


def _has_effect(name: str, stage: PartStage) -> bool:
    node = name.partition(".")[0]
    if name in _NO_EFFECT:
        return False
    if stage in ("warmup", "pretrain") and name in _BLOCK_SETTINGS:
        return False
    if stage == "trajectories" and node == "stage":  # the settings of students do not change the decodes of a teacher
        return name in ("stage.batch_size", "stage.limit_train", "stage.module.tilt") or name.startswith("stage.module.decode.")
    return True


def _data_text(config: DictConfig) -> str:
    node = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(node, dict)
    # These do not change the data, and every axis of a sweep would open it again.
    return json.dumps(
        node | {"seed": 0, "batch_size": 1, "eval_batch_size": 1, "limit_train": None, "length_window": 0}, sort_keys=True
    )


@cache
def _data_fingerprint(text: str) -> str:
    data: ReportDataModule = instantiate(json.loads(text), _convert_="all")
    data.setup()
    return data.fingerprint
