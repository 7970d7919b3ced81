"""The files of a model on disk: which of them hold its weights, whether they are here at all, and a hash that says which they are.

Knows names and bytes, and nothing of models.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""What transformers looks for in a folder: the first of these that there is."""
_POINTER = b"version https://git-lfs.github.com/spec/"


def weight_files(path: Path) -> list[Path]:
    """The files of weights in a folder, in order of their names; a file is its own only one.

    An adapter that lies beside the weights of its model is loaded with them, so it is one of them.
    """
    if path.is_file():
        return [path]
    found = next((files for files in map(sorted, map(path.glob, _WEIGHTS)) if files), [])
    return [*found, *sorted(path.glob("adapter_model*"))]


def weights_digest(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all bytes of :func:`weight_files`, one file after another.

    Reads every byte (about a second for a gigabyte), as names, sizes and shapes are the same after any further training. The same
    weights cut into other files have another digest; tokenizer and configuration are not part of it.

    Raises:
        ValueError: there are no weights.
    """
    files = weight_files(path)
    if not files:
        raise ValueError(f"{path} has no weights: there is neither {' nor '.join(_WEIGHTS)}")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:12]


def refuse_pointers(path: Path) -> None:
    """Refuse weights, configuration or tokenizer that were never fetched: Git LFS leaves a few lines of text in their place.

    Raises:
        ValueError: with the way out.
    """
    beside = [] if path.is_file() else [*path.glob("*.json"), *path.glob("*.model")]
    for file in [*weight_files(path), *sorted(beside)]:
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull in {file.parent}")
