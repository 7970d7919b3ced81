"""Which configuration keys exist, and building objects from configuration nodes so that a wrong key is named.

Hydra refuses misspelt keys on the command line; these checks do the same for keys that come from YAML files.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ROOT = """stage backbone data trainer callbacks task block_size max_response_tokens grid context_attention seed threads run_name
outputs data_root start start_stage start_block_size resume min_free_gb mlflow run sweep"""
STAGE = """name max_steps batch_size eval_batch_size limit_train length_window validate_every accumulate gradient_clip
checkpoint_every on_nonfinite_loss module"""
KEYS = {"": ROOT, "stage": STAGE, "backbone": "needs_warmup factory", "mlflow": "tracking_uri experiment on_failure"}
"""Keys by node; nodes with a ``_target_`` are checked by what they build."""
TASKS = ("fit", "validate")


def check_keys(config: DictConfig) -> None:
    """Refuse keys that nothing reads, and tasks that do not exist.

    Raises:
        ValueError: naming the key and those that exist.
    """
    for name, keys in KEYS.items():
        node = config[name] if name else config
        unknown = sorted(set(map(str, node or {})) - set(keys.split()))
        if unknown:
            key = f"{name}.{unknown[0]}" if name else unknown[0]
            raise ValueError(f"unknown configuration key {key}; there are {', '.join(sorted(keys.split()))}")
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
    """The class that a node names as its ``_target_``.

    Raises:
        ValueError: there is no such class.
    """
    try:
        return get_class(node._target_)
    except ImportError as error:
        raise ValueError(f"{node._target_} cannot be imported: {error}") from error


def build(node: DictConfig, **ready: Any) -> Any:
    """Call the ``_target_`` of a node with its own keys and with arguments that are ready-made.

    Raises:
        ValueError: a key that the target does not know, or one that it lacks.
    """
    # Partial first: Hydra would turn frozen records among the arguments into dictionaries.
    partial = instantiate(node, _partial_=True, _convert_="all")
    try:
        inspect.signature(partial.func).bind(**partial.keywords, **ready)
    except TypeError as error:
        raise ValueError(f"{node._target_} {error}") from error
    return partial(**ready)
