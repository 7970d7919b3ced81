"""Attention rule without masks: packed sequences of queries over packed keys, for kernels of variable lengths.

Adjacent queries with the same keys are one sequence, whose keys are gathered. A query may be in several parts, whose results are
merged by their log-sum-exps.

Shapes: B batch, Q query and K key positions, P context, S sequences, X queries and Y keys of a part, packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VarlenPart:
    """Sequences of queries, each over a sequence of keys."""

    query_X: Tensor
    """int64: indices of the queries among all (B * Q)."""
    key_Y: Tensor
    """int64: indices of the keys among all (B * K)."""
    query_ends: Tensor
    """int32 (S + 1): cumulative lengths of the sequences of ``query_X``, from 0."""
    key_ends: Tensor
    """int32 (S + 1): those of ``key_Y``."""
    longest_query: int
    longest_key: int
    causal: bool = False
    """A query attends to the keys of its sequence up to its own index; both have the same length."""


def part(query_X: Tensor, key_Y: Tensor, query_lengths_S: Tensor, key_lengths_S: Tensor, causal: bool = False) -> VarlenPart:
    """Assemble a part from indices and lengths."""
    return VarlenPart(
        query_X=query_X,
        key_Y=key_Y,
        query_ends=_ends(query_lengths_S),
        key_ends=_ends(key_lengths_S),
        longest_query=int(query_lengths_S.max()),
        longest_key=int(key_lengths_S.max()),
        causal=causal,
    )


def _ends(lengths_S: Tensor) -> Tensor:
    ends = torch.zeros(len(lengths_S) + 1, dtype=torch.int32, device=lengths_S.device)
    ends[1:] = lengths_S.cumsum(0)
    return ends


def masked_part(allowed_BQK: Tensor, first_query: int, first_key: int, queries: int, keys: int) -> VarlenPart:
    """Mask as sequences: a new one starts where a query's row differs from the one before.

    Args:
        allowed_BQK: mask of adjacent queries and keys; every query attends to at least one key.
        first_query: index of the first of these queries in a full row.
        first_key: index of the first of these keys in a full row.
        queries: length of a full row of queries.
        keys: length of a full row of keys.
    """
    B, Q, _ = allowed_BQK.shape
    device = allowed_BQK.device
    begins_BQ = torch.ones(B, Q, dtype=torch.bool, device=device)
    begins_BQ[:, 1:] = (allowed_BQK[:, 1:] != allowed_BQK[:, :-1]).any(-1)
    sample_S, query_S = begins_BQ.nonzero(as_tuple=True)
    flat_S = sample_S * Q + query_S
    query_lengths_S = torch.diff(flat_S, append=flat_S.new_tensor([B * Q]))
    seen_SK = allowed_BQK[sample_S, query_S]
    sequence_Y, key_Y = seen_SK.nonzero(as_tuple=True)
    row_B = torch.arange(B, device=device)
    query_X = (row_B[:, None] * queries + first_query + torch.arange(Q, device=device)).flatten()
    return part(query_X, sample_S[sequence_Y] * keys + first_key + key_Y, query_lengths_S, seen_SK.sum(-1))


def whole_part(query_BQ: Tensor, key_BK: Tensor, causal: bool = False, documents_BT: Tensor | None = None) -> VarlenPart:
    """One sequence per sample, or per document of it: the marked queries over the marked keys (bool, over rows of all).

    Args:
        query_BQ: marked queries.
        key_BK: marked keys; every document that has queries has some, and they come in the same order. Those of documents
            without queries are left out.
        causal: as in :class:`VarlenPart`.
        documents_BT: document of each token, if rows hold several.
    """
    query_X, key_Y = query_BQ.flatten().nonzero()[:, 0], key_BK.flatten().nonzero()[:, 0]
    if documents_BT is None:
        return part(query_X, key_Y, query_BQ.sum(-1), key_BK.sum(-1), causal)
    document = documents_BT.flatten()
    key_Y = key_Y[torch.isin(document[key_Y], document[query_X])]
    query_lengths, key_lengths = (document[places].unique_consecutive(return_counts=True)[1] for places in (query_X, key_Y))
    return part(query_X, key_Y, query_lengths, key_lengths, causal)


def rest_of_block_part(real_BP: Tensor, block_BP: Tensor, keys: int) -> VarlenPart | None:
    """Part of ``block_causal`` beyond ``causal``: the later tokens of a query's own block. None if all blocks have one token.

    Reversed, this is causal again: the k-th query from the end of a block attends to its last k tokens.

    Args:
        real_BP: bool, context tokens that are not padding; they come first.
        block_BP: their block numbers.
        keys: length of a row of all tokens; contexts begin at its start.
    """
    _B, P = real_BP.shape
    follows_BP = torch.zeros_like(real_BP)
    follows_BP[:, 1:] = real_BP[:, 1:] & (block_BP[:, 1:] == block_BP[:, :-1])
    precedes_BP = follows_BP.roll(-1, 1)  # the first token follows no other, so nothing wraps around
    if not bool(follows_BP.any()):
        return None

    def backwards(marked_BP: Tensor) -> tuple[Tensor, Tensor]:
        sample, back = marked_BP.flip(1).nonzero(as_tuple=True)
        return sample, P - 1 - back

    (query_sample, query), (key_sample, key) = backwards(precedes_BP), backwards(follows_BP)
    block_of_query = query_sample * (int(block_BP.max()) + 1) + block_BP[query_sample, query]
    lengths_S = block_of_query.unique_consecutive(return_counts=True)[1]
    return part(query_sample * keys + query, key_sample * keys + key, lengths_S, lengths_S, causal=True)
