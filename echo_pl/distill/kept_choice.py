"""``echo-pl collect --keep auto``: the K of a collection, measured on its first studies, and one K whatever happens to it.

A collection that goes on has the K it began with, and all processes take that of rank 0. Knows nothing of how a K is measured
(:mod:`echo_pl.distill.check_kept`) or written.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Literal

from hydra.utils import instantiate
from omegaconf import DictConfig

from echo_pl.distill.check_kept import KS, TOLERANCE, check_kept, smallest, smallest_kept, table
from echo_pl.distributed.agree import agreed
from echo_pl.distributed.launch import Launch
from echo_pl.sampling.trajectory_writer import begun_with, refuse_finished

log = logging.getLogger(__name__)
LEAST = 32
"""Tokens that ``auto`` keeps at the least where no trained student says how far the loss falls: at 8 or 16 the smaller losses of
trained students were off by more than 1 % (docs/lab/objectives.md)."""
Kept = int | Literal["auto"]
AUTO: Literal["auto"] = "auto"


def kept_argument(text: str) -> Kept:
    """The value of ``--keep``.

    Raises:
        argparse.ArgumentTypeError: neither a number, 0 or more, nor ``auto``.
    """
    if text == AUTO:
        return AUTO
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be auto, or a number that is 0 (all) or more; got {text!r}")
    return int(text)


def choose_kept(launch: Launch, config: DictConfig, out: Path, studies: int, student: Path | None) -> int:
    """What ``auto`` comes to, as this process finds it.

    Of several processes each measures by itself, before there is a group of them: losses and counts would be summed over the group.

    Args:
        launch: of this process; rank 0 says what it found.
        config: composed with ``stage=dcd``.
        out: folder of the collection.
        studies: training studies to measure on; no more than there are to collect.
        student: a stage-3 checkpoint whose loss is taken; None: the teacher's weights, and at least :data:`LEAST`.

    Returns:
        The smallest K within 1 % of the whole loss; 0, the whole of every distribution, where none of :data:`KS` is.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: an objective without target distributions; no study with a usable trajectory; a damaged collection.
    """
    news = logging.INFO if launch.rank == 0 else logging.DEBUG
    refuse_finished(out)
    begun = begun_with(out)
    if begun is not None:
        log.log(news, "--keep auto: %s tokens of every distribution (0: all), as this unfinished collection began", begun)
        _warn_of_unused(config, student, "a collection that goes on")
        return begun
    if instantiate(config.stage.module.objective, _convert_="all").needs_whole_targets:
        log.log(news, "--keep auto: whole distributions, as reverse KL loses several per cent of itself at any small K")
        _warn_of_unused(config, student, "reverse KL")
        return 0
    limit = config.stage.limit_train
    rows = check_kept(config, studies if limit is None else min(studies, limit), KS, student)
    found = smallest_kept(rows if student is not None else [row for row in rows if (row.kept or 0) >= LEAST], TOLERANCE)
    log.log(news, "%s\n--keep auto: %s", table(rows).text(), smallest(rows, TOLERANCE))
    if found is None or found.kept is None:
        log.warning("--keep auto: no K was near enough; whole distributions take %s bytes a position", rows[-1].bytes_per_position)
        return 0
    if student is None:
        log.log(news, "--keep auto: %d are kept, at least %d where no --student says to what its loss falls", found.kept, LEAST)
    return found.kept


def _warn_of_unused(config: DictConfig, student: Path | None, what: str) -> None:
    if student is not None and not config.stage.module.tilt:
        log.warning("%s is not used: nothing is measured for %s", student, what)


def agreed_kept(launch: Launch, kept: int) -> int:
    """Rank 0's, on every rank: two machines may round differently."""
    return kept if launch.world_size == 1 else int(agreed(launch, {"kept_tokens": kept})["kept_tokens"])
