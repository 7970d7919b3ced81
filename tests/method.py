"""The attention table of docs/explain/method.md with plain loops over named tokens: the reference for the rule and its views.

Nothing here calls the package: a sequence is a list of tokens that says where each stands, and ``sees`` is the table row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a training sequence."""

    kind: Literal["context", "padding", "xt", "x0"]
    block: int
    """Block of its grid: of the context for context tokens, of the response for the others."""
    place: int
    """Place within its part."""
    copy: int = 0
    """Index of the noisy copy."""


def sees(query: Token, key: Token, context_attention: str) -> bool:
    """Return True if the table lets this query attend to this key. Padding attends to itself alone."""
    if query.kind == "padding" or key.kind == "padding":
        return query == key
    if query.kind == "context":
        if key.kind != "context":
            return False
        reach = {"causal": key.place <= query.place, "block_causal": key.block <= query.block, "full": True}
        return reach[context_attention]
    if key.kind == "context":
        return True
    if query.kind == "xt":
        if key.kind == "x0":
            return key.block < query.block
        return key.copy == query.copy and key.block == query.block
    return key.kind == "x0" and key.block <= query.block


def context_tokens(length: int, width: int, block_size: int) -> list[Token]:
    """A context of ``length`` tokens, padded on the right to ``width``."""
    return [
        Token(kind="context" if place < length else "padding", block=place // block_size, place=place) for place in range(width)
    ]


def response_tokens(kind: Literal["xt", "x0"], width: int, block_size: int, copy: int = 0) -> list[Token]:
    """One copy of a response."""
    return [Token(kind=kind, block=place // block_size, place=place, copy=copy) for place in range(width)]


def rad_tokens(length: int, width: int, response_width: int, block_size: int, copies: int) -> list[Token]:
    """``[context | xt_1 .. xt_K | x0]``."""
    noisy = [token for k in range(copies) for token in response_tokens("xt", response_width, block_size, k)]
    return context_tokens(length, width, block_size) + noisy + response_tokens("x0", response_width, block_size)


def allowed_QK(queries: list[Token], keys: list[Token], context_attention: str) -> Tensor:
    """The table as a bool matrix."""
    return torch.tensor([[sees(query, key, context_attention) for key in keys] for query in queries])


def reachable_QK(allowed: Tensor, layers: int) -> Tensor:
    """Tokens that can influence each token after this many attention layers; residuals keep the token itself."""
    reach = torch.eye(len(allowed), dtype=torch.bool)
    for _ in range(layers):
        reach = reach | (allowed.float() @ reach.float() > 0)
    return reach
