"""Sharded checkpoints, a folder with a file per rank as FSDP2 writes them, read as data into a model that is not sharded.

torch stores the list of tensors as a pickle; only the few plain classes of such a list are allowed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, Metadata, load
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

META = "meta.pt"
"""Lightning's file of everything but the tensors."""
LIST = ".metadata"
_WEIGHTS = "state_dict."
_OPTIMIZER = "optimizer_"
_PLAIN = {
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
}


def is_sharded_checkpoint(path: Path) -> bool:
    """Return True if the path is a complete sharded checkpoint."""
    return path.is_dir() and (path / META).is_file() and (path / LIST).is_file()


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Full names only: a pickle may also request "os.system" of a module that has imported os.
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _PLAIN.get(module, set()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint's list of tensors")


def _member(kind: Any, name: Any) -> Any:
    # Python 3.11.0 to 3.11.3 pickle a member of an enumeration as getattr(its class, its name); nothing else is allowed.
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"{name!r} of {kind!r} is not allowed in a checkpoint's list of tensors")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / LIST, "rb") as file:
            metadata: Metadata = _DataOnly(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_meta(path: Path) -> dict[str, Any]:
    """Everything but the tensors of a checkpoint.

    Raises:
        ValueError: the folder is torn, or holds code.
    """
    try:
        meta = torch.load(path / META, map_location="cpu", weights_only=True)
        for entry in (_Reader(str(path)).read_metadata().storage_data or {}).values():
            file, end = path / entry.relative_path, entry.offset + entry.length
            if not file.is_file() or file.stat().st_size < end:
                raise ValueError(f"{file.name} is missing or shorter than the {end} bytes it should have")
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint (torn or foreign): {str(error).splitlines()[0]}") from error
    return meta if isinstance(meta, dict) else {}


def stored_shapes(path: Path) -> dict[str, torch.Size]:
    """Shape of every weight by name, as in the ``state_dict`` of a checkpoint file."""
    entries = _Reader(str(path)).read_metadata().state_dict_metadata
    return {
        name.removeprefix(_WEIGHTS): entry.size
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """All weights, named as in the ``state_dict`` of a checkpoint file, without the optimizer.

    Raises:
        ValueError: a file of the folder is missing or torn.
    """
    entries = _Reader(str(path)).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
    read_into(path, weights)
    return weights


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, named as in the ``state_dict`` of a checkpoint file, in place.

    Raises:
        ValueError: a file of the folder is missing or torn.
    """
    try:
        load({"state_dict": dict(tensors)}, storage_reader=_Reader(str(path)), no_dist=True)
    except Exception as error:  # torch wraps every error in its own class
        raise ValueError(f"{path} cannot be read as a checkpoint (torn or foreign): {str(error).splitlines()[0]}") from error


class _PlainLoadPlanner(DefaultLoadPlanner):
    """Planner that reads values other than tensors (learning rates, counters) as data; torch's own would run pickled code."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, map_location="cpu", weights_only=True)


def read_full_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a sharded checkpoint in the form of Lightning's single file: weights, optimizer states and the rest.

    Raises:
        ValueError: the folder is torn, or holds code.
    """
    meta = read_meta(path)
    about = _Reader(str(path)).read_metadata()
    flat: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) if isinstance(entry, TensorStorageMetadata) else None
        for name, entry in about.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata | BytesStorageMetadata)
    }
    try:
        load(flat, storage_reader=_Reader(str(path)), planner=_PlainLoadPlanner(), no_dist=True)
        nested = unflatten_state_dict(flat, about.planner_data)
    except Exception as error:  # torch wraps every error in its own class
        raise ValueError(f"{path} cannot be read as a checkpoint (torn or foreign): {str(error).splitlines()[0]}") from error
    optimizers = sorted((name for name in nested if name.startswith(_OPTIMIZER)), key=lambda name: int(name[len(_OPTIMIZER) :]))
    return {**meta, "state_dict": nested["state_dict"], "optimizer_states": [nested[name] for name in optimizers]}
