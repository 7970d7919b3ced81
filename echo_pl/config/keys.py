"""Configuration keys: the valid ones, the nearest to a misspelt one, and objects built so that a wrong key is named.

Hydra rejects misspelt keys on the command line; these checks do the same for keys that come from YAML files.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ROOT = """stage backbone data trainer callbacks task block_size max_response_tokens grid context_attention seed threads run_name
outputs data_root start start_stage start_block_size resume min_free_gb mlflow run sweep"""
STAGE = """name max_steps batch_size eval_batch_size limit_train length_window validate_every accumulate gradient_clip
checkpoint_every on_nonfinite_loss module"""
KEYS = {"": ROOT, "stage": STAGE, "backbone": "needs_warmup factory", "mlflow": "tracking_uri experiment on_failure"}
"""Keys by node; nodes with a ``_target_`` are checked when they are built."""
TASKS = ("fit", "validate")


def nearest(word: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """Return the candidates that ``word`` may be a misspelling of, the nearest first.

    Of dotted names, those with the same last part come first.

    >>> nearest("blok_size", ["block_size", "stage.batch_size", "seed"])
    ['block_size']
    >>> nearest("learning_rate", ["stage.module.optimization.learning_rate", "seed"])
    ['stage.module.optimization.learning_rate']
    """
    candidates = list(candidates)
    last = word.rpartition(".")[2]
    same = [name for name in candidates if name.rpartition(".")[2] == last]
    close = difflib.get_close_matches(word, candidates, most, 0.7)
    ratio = {name: difflib.SequenceMatcher(None, word, name).ratio() for name in close}
    close = [name for name in close if ratio[name] > ratio[close[0]] - 0.1]
    return list(dict.fromkeys(same + close))[:most]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return the end of a sentence: the question for the nearest candidates, if there are any.

    >>> did_you_mean("pretain", ["dcd", "pretrain", "rad"])
    ', did you mean pretrain?'
    >>> did_you_mean("x", ["dcd", "pretrain", "rad"])
    '.'
    """
    found = nearest(word, candidates)
    return f", did you mean {' or '.join(found)}?" if found else "."


def dotted_names(node: Any, prefix: str = "") -> list[str]:
    """Return the names of all keys of nested dictionaries, inner nodes included.

    >>> dotted_names({"a": {"b": 1}, "c": 2})
    ['a', 'a.b', 'c']
    """
    if not isinstance(node, dict):
        return []
    return [name for key, child in node.items() for name in (f"{prefix}{key}", *dotted_names(child, f"{prefix}{key}."))]


def check_keys(config: DictConfig) -> None:
    """Check that something reads every key, and that the task exists.

    Raises:
        ValueError: naming the key, the nearest and all valid ones.
    """
    for name, text in KEYS.items():
        node, keys = config[name] if name else config, text.split()
        unknown = sorted(set(map(str, node or {})) - set(keys))
        if unknown:
            key = f"{name}.{unknown[0]}" if name else unknown[0]
            raise ValueError(f"unknown configuration key {key}{did_you_mean(unknown[0], keys)} There are {', '.join(sorted(keys))}")
    if config.task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {config.task!r}")


def flat_settings(config: DictConfig) -> dict[str, Any]:
    """Return every value of a configuration by its dotted name, resolved; without the values that exist only in a run."""

    def flat(node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {key: value for child in node for key, value in flat(node[child], f"{name}.{child}" if name else child).items()}
        try:
            value = OmegaConf.select(config, name)
        except OmegaConfBaseException:  # it refers to the run node
            return {name: node}
        return {name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value}

    return flat(OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "run"])), "")


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a copy of a configuration with other values at these dotted names."""
    changed = copy.deepcopy(config)
    OmegaConf.set_readonly(changed, False)
    for name, value in values.items():
        OmegaConf.update(changed, name, value, merge=False)
    return changed


def target(node: DictConfig) -> Any:
    """Return the class that a node names as its ``_target_``.

    Raises:
        ValueError: there is no such class.
    """
    try:
        return get_class(node._target_)
    except ImportError as error:
        raise ValueError(f"{node._target_} cannot be imported: {error}") from error


def build(node: DictConfig, **ready: Any) -> Any:
    """Call the ``_target_`` of a node with its own keys and with ready-made arguments.

    Raises:
        ValueError: a key that the target does not accept, or one that is missing.
    """
    # Partial first: Hydra would turn frozen records among the arguments into dictionaries.
    partial = instantiate(node, _partial_=True, _convert_="all")
    signature = inspect.signature(partial.func)
    try:
        signature.bind(**partial.keywords, **ready)
    except TypeError as error:
        unknown = next((name for name in partial.keywords if name not in signature.parameters), "")
        raise ValueError(f"{node._target_} {error}{did_you_mean(unknown, signature.parameters)}") from error
    return partial(**ready)
