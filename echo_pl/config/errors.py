"""Errors as one message to the user: the value, its place, and the nearest right words."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.config.keys import ROOT, did_you_mean, dotted_names

TRACEBACK = "ECHO_PL_TRACEBACK"
"""Set this environment variable to see the traceback of an error."""
_WRONG_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of the system that a wrong argument causes."""


def explain(error: Exception) -> str:
    """Return one message: the problem, and for a configuration value its place or the nearest right words.

    Args:
        error: an error of a run, or of composing its configuration.
    """
    cause = error.__cause__
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"there is no {group}={option}{did_you_mean(option, error.options)} Choose one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return _explain_override(error)
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return unknown_key(cause.full_key)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {error.filename or 'a file'}: make room, then resume=auto"
    return str(error)


def _explain_instantiation(error: InstantiationException) -> str:
    cause = error.__cause__ or error.__context__
    place = [line for line in str(error).splitlines() if line.startswith("full_key:")]
    text = str(cause) if cause is not None else str(error).splitlines()[0]
    return f"{text} ({place[0].replace('full_key:', 'in the configuration at')})" if place else text


def _explain_override(error: OverrideParseException) -> str:
    word = error.override
    if "=" in word:
        return f"{word} cannot be parsed ({str(error).splitlines()[0]}): put values with special characters in quotes"
    words = [f"{name}=" for name in dict.fromkeys([*groups(), *ROOT.split()])]
    return f"{word!r} is not of the form key=value{did_you_mean(word, words)} `echo-pl --help` lists commands and groups"


def unknown_key(key: str) -> str:
    """Return the message for a key of the command line that the composed configuration does not have."""
    stages = {stage: dotted_names(OmegaConf.to_container(compose_config([f"stage={stage}"]))) for stage in options("stage")}
    found = [stage for stage, names in stages.items() if key in names]
    if found:
        where = " and ".join(f"stage={stage}" for stage in found)
        return f"{key} is a key of {where}, but not with the stage and ablation of this command: leave it out"
    names = dict.fromkeys([name for names in stages.values() for name in names] + groups())
    extra = f"; if its class accepts it, add it as +{key}=..." if "." in key else ""
    return f"unknown configuration key {key}{did_you_mean(key, names)} `echo-pl --cfg job` prints all keys{extra}"


def groups() -> list[str]:
    """Return the groups of the configuration."""
    others = ("bench", "demo", "hydra")
    return sorted(folder.name for folder in EXPERIMENTS.iterdir() if folder.is_dir() and folder.name not in others)


def options(group: str) -> list[str]:
    """Return the choices of a group."""
    return sorted(path.stem for path in (EXPERIMENTS / group).glob("*.yaml"))


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors that a user can act on into one message, and exit.

    Exit status 2: wrong usage, such as a bad value or a missing file. Exit status 1: the work failed, such as on a full disk.
    """
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"echo-pl: {explain(error)}\n(set {TRACEBACK}=1 to see the traceback)", file=sys.stderr)
        failed = isinstance(error, OSError) and not isinstance(error, _WRONG_PATHS)
        raise SystemExit(1 if failed else 2) from None


@contextmanager
def hydra_errors_reported() -> Iterator[None]:
    """Report errors of the command line too, around a function of ``hydra.main``, which would print them by itself."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with reported():
            yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
