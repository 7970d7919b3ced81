"""One job of a sweep: make one missing part of a chain (a run, or stored trajectories), and score it if it writes reports.

:mod:`echo_pl.sweeps.plan` defines the parts. A restarted job resumes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.vlm import VLM
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.distill.decoder import stage_decoder
from echo_pl.distributed.agree import together
from echo_pl.distributed.launch import detect
from echo_pl.evaluation.harness import MethodScores, evaluate
from echo_pl.io.atomic import write_json
from echo_pl.io.locks import LockedError, exclusive_lock
from echo_pl.runs.run import prepare, run
from echo_pl.structs import ReportText
from echo_pl.sweeps.contrasts import study_counts
from echo_pl.sweeps.plan import SCORES, STUDIES, SweepPart, measurement, parts


def run_part(config: DictConfig) -> None:
    """Make the part of ``sweep.part``.

    Raises:
        ValueError: an invalid value, or several processes without a launcher.
        OSError: a missing file, or a killed process of the job.
    """
    part = next(part for part in parts(config) if part.name == config.sweep.part)
    launch = detect()
    if launch.launcher == "python" and config.trainer.devices * config.trainer.num_nodes > 1:
        raise ValueError(
            "a sweep's runs of several processes are jobs of a cluster: add hydra/launcher=slurm, or give trainer.devices=1"
        )
    if launch.launcher != "python" or not config.sweep.apart:
        make(part)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # jobs share imports, not memory
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_make_apart, part).result()
        except BrokenProcessPool as error:
            raise OSError(f"the process of {part.name} was ended from outside ({error}): is there enough memory?") from error


def _make_apart(part: SweepPart) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(part)


def _end_with_parent() -> None:
    """End the job by SIGTERM when the sweep's own process dies, so that its run ends after its step with a record."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is the job's process
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def make(part: SweepPart) -> None:
    """Train or collect a part if it is missing, then score it if it has no scores."""
    with exclusive(part):
        if not part.trained:
            with together():  # ranks separate before the scores, which only rank 0 computes
                if part.stage == "trajectories":
                    collect_trajectories(part.config, part.folder, kept_tokens=part.config.sweep.kept_tokens, student=part.student)
                else:
                    run(part.config)
        if part.writes_reports and part.scores is None and detect().rank == 0:
            content = {"measured": measurement(part.config), "scores": measure(part)}
            write_json(part.folder / SCORES, content)


@contextmanager
def exclusive(part: SweepPart) -> Iterator[None]:
    """Hold the lock of a part until the process ends; raises OSError if another job is making the part."""
    if detect().rank > 0:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(Path(part.config.outputs) / "sweeps" / "locks" / part.name))
        except LockedError as error:
            raise OSError(f"another job is making {part.name}: wait for it, then start the sweep again") from error
        yield


def measure(part: SweepPart) -> dict[str, float]:
    """Scores on held-out studies, and the speed of decoding one by one (``tps``) and in batches (``tps_together``).

    Writes the counts by study into the run folder.
    """
    config, settings = part.config, part.config.sweep
    data = prepare(config)
    device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    vlm: VLM = instantiate(config.backbone.factory, _convert_="all").build(data.special, data.vocab_size)
    layout = () if part.stage == "pretrain" else (config.block_size, config.grid, config.context_attention)
    load_weights(vlm, part.checkpoint, (part.stage,), *layout)
    decoder = stage_decoder(config, data, kv_cache="fused")
    sampler = decoder.for_stage(part.stage, vlm.to(device).eval().requires_grad_(False))

    def decoded(studies: int, batch_size: int) -> tuple[MethodScores, list[ReportText]]:
        batches = [batch.to(device) for batch in data.held_out_batches(settings.split, batch_size, studies)]
        outcome = evaluate(sampler, batches, data.detokenize, data.judge, description=part.name)
        return outcome, [reference for batch in batches for reference in batch.references]

    with torch.no_grad():
        outcome, references = decoded(settings.studies, settings.batch_size)
        one_by_one = decoded(min(settings.timed_studies, settings.studies), 1)[0].scores
    study_counts(outcome, references, data.judge).save(part.folder / STUDIES)
    together = outcome.scores
    return together | {"tps": one_by_one["tps"], "tps_together": together["tps"]}
