"""One job of a sweep: make one part of a chain (a run, or stored trajectories) if it is not there, and score what writes reports.

What there is to make is in :mod:`echo_pl.sweeps.plan`. A job that is started again goes on where it was cut off.
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
from echo_pl.sweeps.plan import SCORES, STUDIES, Part, measurement, parts


def carry_out(config: DictConfig) -> None:
    """The part that ``sweep.part`` names.

    Raises:
        ValueError: a bad value; several processes that no launcher has started.
        OSError: a file is missing, or the job's process was ended from outside.
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
    context.set_forkserver_preload([__name__])  # imports are shared, memory is not
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_make_apart, part).result()
        except BrokenProcessPool as error:
            raise OSError(f"the process of {part.name} was ended from outside ({error}): is there enough memory?") from error


def _make_apart(part: Part) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(part)


def _end_with_parent() -> None:
    """When the sweep's own process is killed, its job ends as if it had been told to: a run at the end of its step, on record."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is the job's process
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def make(part: Part) -> None:
    """Train or collect what is missing of a part, then score it; nothing where all is there."""
    with alone(part):
        if not part.trained:
            with together():  # ranks part before the scores, which take one of them as long as they take
                if part.stage == "trajectories":
                    collect_trajectories(part.config, part.folder, kept_tokens=part.config.sweep.kept_tokens, student=part.student)
                else:
                    run(part.config)
        if part.writes_reports and part.scores is None and detect().rank == 0:
            content = {"measured": measurement(part.config), "scores": measure(part)}
            write_json(part.folder / SCORES, content)


@contextmanager
def alone(part: Part) -> Iterator[None]:
    """Refuse to make what another job is making, perhaps of a sweep that was started twice. The lock ends with the process.

    Raises:
        OSError: it is being made.
    """
    if detect().rank > 0:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(Path(part.config.outputs) / "sweeps" / "locks" / part.name))
        except LockedError as error:
            raise OSError(f"another job is making {part.name}: wait for it, then start the sweep again") from error
        yield


def measure(part: Part) -> dict[str, float]:
    """Scores on held-out studies, and the speed of decoding them one by one (``tps``) and together (``tps_together``).

    Leaves what each study counts for in the run folder.
    """
    config, asked = part.config, part.config.sweep
    data = prepare(config)
    device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    vlm: VLM = instantiate(config.backbone.factory, _convert_="all").build(data.special, data.vocab_size)
    layout = () if part.stage == "pretrain" else (config.block_size, config.grid, config.context_attention)
    load_weights(vlm, part.checkpoint, (part.stage,), *layout)
    decoder = stage_decoder(config, data, kv_cache="fused")
    sampler = decoder.for_stage(part.stage, vlm.to(device).eval().requires_grad_(False))

    def decoded(studies: int, batch_size: int) -> tuple[MethodScores, list[ReportText]]:
        batches = [batch.to(device) for batch in data.held_out_batches(asked.split, batch_size, studies)]
        outcome = evaluate(sampler, batches, data.detokenize, data.judge, description=part.name)
        return outcome, [reference for batch in batches for reference in batch.references]

    with torch.no_grad():
        outcome, references = decoded(asked.studies, asked.batch_size)
        one_by_one = decoded(min(asked.timed_studies, asked.studies), 1)[0].scores
    study_counts(outcome, references, data.judge).save(part.folder / STUDIES)
    together = outcome.scores
    return together | {"tps": one_by_one["tps"], "tps_together": together["tps"]}
