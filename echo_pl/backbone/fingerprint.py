"""A hash of weights, to tell whose output was stored. Knows tensors only."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of all weights of a module, whole ones (sharded parameters must be fingerprinted before they are sharded)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def refuse_other_tower(stored: str, own: str) -> None:
    """Raise ValueError when stored vision features are of another tower than a model's; both are fingerprints."""
    if stored != own:
        raise ValueError(
            f"the stored vision features are of tower {stored}, this model has {own}: make them anew with "
            "echo-pl corpus features, or set data.stored_features=null"
        )
