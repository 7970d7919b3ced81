"""Attention rule over token coordinates, and its views: dense, FlexAttention, split and variable lengths.

It is the attention table of docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion", for training sequences, prefill and
decoding without a cache. With a cache it becomes :class:`echo_pl.backbone.attention.QueryGroup`. AR attention is the same rule at
block size 1.

Shapes: B batch (or 1, shared by the batch), T tokens, Q query and K key positions, P context, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from echo_pl.diffusion.varlen import VarlenPart, masked_part, rest_of_block_part, whole_part

ContextAttention = Literal["causal", "block_causal", "full"]

PADDING = -1
CONTEXT = 0
CLEAN = 1
FIRST_NOISY = 2
"""Copy numbers: noisy copy k of the response has ``FIRST_NOISY + k``."""


@dataclass(frozen=True, kw_only=True)
class TokenCoords:
    """Copy, block and index of tokens, int64, (B, T) or (1, T)."""

    copy_BT: Tensor
    """PADDING, CONTEXT, CLEAN or FIRST_NOISY + k."""
    block_BT: Tensor
    """Block number: response blocks from 0; context blocks from 0 too (read only by ``block_causal``)."""
    index_BT: Tensor
    """Index within the context, for causality there; not read for response tokens."""
    document_BT: Tensor | None = None
    """Study of each token in a packed row (-1: padding), as studies do not attend to each other; None: one study a row."""

    def __len__(self) -> int:
        return self.copy_BT.shape[1]

    def slice(self, start: int, stop: int) -> TokenCoords:
        """Return the coordinates of tokens ``start:stop``, as views."""
        return TokenCoords(
            copy_BT=self.copy_BT[:, start:stop],
            block_BT=self.block_BT[:, start:stop],
            index_BT=self.index_BT[:, start:stop],
            document_BT=None if self.document_BT is None else self.document_BT[:, start:stop],
        )


def concatenate(*parts: TokenCoords) -> TokenCoords:
    """Join coordinates of one study a row along the tokens; shared rows are expanded to the batch of the other parts."""
    batch = max(part.copy_BT.shape[0] for part in parts)

    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name).expand(batch, -1) for part in parts], dim=1)

    return TokenCoords(copy_BT=join("copy_BT"), block_BT=join("block_BT"), index_BT=join("index_BT"))


def context_coords(lengths_B: Tensor, width: int, block_size: int) -> TokenCoords:
    """Coordinates of contexts padded on the right to ``width`` tokens; one shared row when none is padded."""
    index_1P = torch.arange(width, device=lengths_B.device)[None]
    if bool((lengths_B == width).all()):
        return TokenCoords(copy_BT=torch.full_like(index_1P, CONTEXT), block_BT=index_1P // block_size, index_BT=index_1P)
    index_BP = index_1P.expand(len(lengths_B), -1)
    copy_BP = torch.where(index_BP < lengths_B[:, None], CONTEXT, PADDING)
    return TokenCoords(copy_BT=copy_BP, block_BT=index_BP // block_size, index_BT=index_BP)


def response_coords(copy: int, start: int, length: int, block_size: int, device: torch.device) -> TokenCoords:
    """Coordinates of one copy of response positions ``start .. start + length``, shared by the batch."""
    index_1R = torch.arange(start, start + length, device=device)[None]
    return TokenCoords(copy_BT=torch.full_like(index_1R, copy), block_BT=index_1R // block_size, index_BT=index_1R)


def allowed(query: TokenCoords, key: TokenCoords, context_attention: ContextAttention) -> Tensor:
    """Attention rule: bool (B or 1, Q, K), True where the query may attend to the key.

    Padding attends only to itself (a softmax needs one key), and no other token attends to it.
    """
    q_copy, q_block, q_index = (x[:, :, None] for x in (query.copy_BT, query.block_BT, query.index_BT))
    k_copy, k_block, k_index = (x[:, None, :] for x in (key.copy_BT, key.block_BT, key.index_BT))
    seen_BQK = allowed_between(q_copy, q_block, q_index, k_copy, k_block, k_index, context_attention)
    if query.document_BT is None or key.document_BT is None:
        return seen_BQK
    return seen_BQK & (query.document_BT[:, :, None] == key.document_BT[:, None, :])


def allowed_between(
    q_copy: Tensor,
    q_block: Tensor,
    q_index: Tensor,
    k_copy: Tensor,
    k_block: Tensor,
    k_index: Tensor,
    context_attention: ContextAttention,
) -> Tensor:
    """Attention rule on coordinates that broadcast against each other, row by row of the table."""
    if context_attention == "causal":
        within_context = k_index <= q_index
    elif context_attention == "block_causal":
        within_context = k_block <= q_block
    else:
        within_context = k_index >= 0
    key_in_context = k_copy == CONTEXT
    response_to_context = (q_copy >= CLEAN) & key_in_context
    context_to_context = (q_copy == CONTEXT) & key_in_context & within_context
    # xt attends to clean blocks strictly before its own; x0 to its own block as well.
    reach = torch.where(q_copy == CLEAN, q_block, q_block - 1)
    to_clean = (q_copy >= CLEAN) & (k_copy == CLEAN) & (k_block <= reach)
    to_own_noisy_block = (q_copy >= FIRST_NOISY) & (k_copy == q_copy) & (k_block == q_block)
    padding_to_itself = (q_copy == PADDING) & (k_copy == PADDING) & (k_index == q_index)
    return response_to_context | context_to_context | to_clean | to_own_noisy_block | padding_to_itself


@dataclass(frozen=True, kw_only=True)
class AttentionRule:
    """Attention rule of given queries and keys; tests hold all views against the dense one."""

    query: TokenCoords
    key: TokenCoords
    context_attention: ContextAttention = "causal"
    context_width: int | None = None
    """Width P of the padded context if the queries are a whole sequence ``[context | response copies]``.

    The split and varlen views need it. The response may be empty (prefill).
    """
    _varlen: dict[int, VarlenView] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.context_attention not in get_args(ContextAttention):
            raise ValueError(f"context_attention must be one of {get_args(ContextAttention)}, got {self.context_attention!r}")

    @cached_property
    def dense_BQK(self) -> Tensor:
        """Reference view, bool (B or 1, Q, K)."""
        return allowed(self.query, self.key, self.context_attention)

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """FlexAttention ``mask_mod(batch, head, q, k) -> bool``."""
        query, key = self.query, self.key

        def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            bq = b if query.copy_BT.shape[0] > 1 else torch.zeros_like(b)
            bk = b if key.copy_BT.shape[0] > 1 else torch.zeros_like(b)
            seen = allowed_between(
                query.copy_BT[bq, q],
                query.block_BT[bq, q],
                query.index_BT[bq, q],
                key.copy_BT[bk, k],
                key.block_BT[bk, k],
                key.index_BT[bk, k],
                self.context_attention,
            )
            if query.document_BT is None or key.document_BT is None:
                return seen
            return seen & (query.document_BT[bq, q] == key.document_BT[bk, k])

        return mod

    @cached_property
    def flex_mask(self) -> BlockMask:
        """View as a ``torch.nn.attention.flex_attention.BlockMask``."""
        batch = max(self.query.copy_BT.shape[0], self.key.copy_BT.shape[0])
        return create_block_mask(
            self.mask_mod(),
            B=batch if batch > 1 else None,
            H=None,
            Q_LEN=len(self.query),
            KV_LEN=len(self.key),
            device=str(self.query.copy_BT.device),
        )

    @cached_property
    def split(self) -> SplitView:
        """View in pieces, for a whole training sequence.

        Raises:
            ValueError: the queries are not a whole ``[context | response copies]`` sequence.
        """
        P = self._checked_width("split")
        response_q = self.query.slice(P, len(self.query))
        response_k = self.key.slice(P, len(self.key))
        context_k = self.key.slice(0, P)
        packed = self.key.document_BT is not None
        context_mask = to_context = None
        if packed or self.context_attention != "causal":
            context_mask = allowed(self.query.slice(0, P), context_k, self.context_attention)
        if packed:
            # Padding after the responses attends to every key here, as a softmax needs one; its output is not used.
            to_context = allowed(response_q, context_k, self.context_attention) | (response_q.copy_BT == PADDING)[:, :, None]
        elif bool((context_k.copy_BT == PADDING).any()):
            to_context = (context_k.copy_BT == CONTEXT)[:, None]
        return SplitView(
            context_width=P,
            context_BPP=context_mask,
            response_to_context_BQK=to_context,
            response_BQK=allowed(response_q, response_k, self.context_attention),
        )

    def varlen(self, batch_size: int) -> VarlenView:
        """View as packed sequences, for a whole training sequence or a context, cached for all layers.

        Every block of every copy is a sequence with gathered keys: of R response tokens in blocks of L, R^2 / 2L keys per copy.

        Args:
            batch_size: B, as coordinates may be one row for all samples.

        Raises:
            ValueError: the queries are not a whole ``[context | response copies]`` sequence.
        """
        if batch_size not in self._varlen:
            self._varlen[batch_size] = self._make_varlen(batch_size)
        return self._varlen[batch_size]

    def _make_varlen(self, B: int) -> VarlenView:
        P, T = self._checked_width("flash_attn"), len(self.key)
        parts: list[VarlenPart | None] = []
        copy_BT, block_BT = (x.expand(B, -1) for x in (self.key.copy_BT, self.key.block_BT))
        document_BT = self.key.document_BT
        in_context_BT = copy_BT == CONTEXT
        in_response_BT = copy_BT >= CLEAN
        plainly_causal = self.context_attention == "causal" and document_BT is None
        if not plainly_causal:
            parts.append(whole_part(in_context_BT, in_context_BT, self.context_attention != "full", document_BT))
        if self.context_attention == "block_causal":
            blocks_BT = block_BT
            if document_BT is not None:  # blocks of different studies have different numbers here
                blocks_BT = block_BT + document_BT * (int(block_BT.max()) + 1)
            parts.append(rest_of_block_part(in_context_BT[:, :P], blocks_BT[:, :P], T))
        if T > P:
            parts.append(whole_part(in_response_BT, in_context_BT, documents_BT=document_BT))
        if T > P and self._is_autoregressive(P, copy_BT, block_BT):
            # Causal: one sequence per token would gather all keys before it.
            parts.append(whole_part(in_response_BT, in_response_BT, True, document_BT))
        elif T > P:
            among_themselves = allowed(self.query.slice(P, T), self.key.slice(P, T), self.context_attention)
            parts.append(masked_part(among_themselves.expand(B, -1, -1), P, P, T, T))
        return VarlenView(causal_width=P if plainly_causal else 0, parts=tuple(part for part in parts if part is not None))

    def _is_autoregressive(self, P: int, copy_BT: Tensor, block_BT: Tensor) -> bool:
        """Return True if responses are clean blocks of one token, in order."""
        copies, follows = copy_BT[:, P:], block_BT[:, P:].diff(dim=1) == 1
        if self.key.document_BT is None:
            return bool((copies == CLEAN).all()) and bool(follows.all())
        another = self.key.document_BT[:, P:].diff(dim=1) != 0
        padding = copies == PADDING
        return bool(((copies == CLEAN) | padding).all()) and bool((follows | another | padding[:, 1:]).all())

    def _checked_width(self, backend: str) -> int:
        if self.context_width is None:
            raise ValueError(
                f"{backend} attention needs a whole training sequence [context | response copies]; "
                "for anything else use sdpa or flex"
            )
        return self.context_width


@dataclass(frozen=True, kw_only=True)
class VarlenView:
    """Rule without masks."""

    causal_width: int
    """Number of first tokens that are causal among themselves and not queries of any part; 0 if none are."""
    parts: tuple[VarlenPart, ...]
    """Parts of all other queries."""


@dataclass(frozen=True, kw_only=True)
class SplitView:
    """Pieces of a training sequence's rule, without a mask between response and an unpadded context."""

    context_width: int
    context_BPP: Tensor | None
    """None: plain causal attention (padding comes last, so real context tokens do not attend to it)."""
    response_to_context_BQK: Tensor | None
    """None: response tokens attend to every context token. Else (B, 1, K), the real context tokens of each sample, or (B, Q, K),
    those of each query's own study."""
    response_BQK: Tensor
    """Response copies among themselves."""
