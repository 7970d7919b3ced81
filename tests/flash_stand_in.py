"""The functions of flash-attn 2.8 that we call, in plain torch on any device: same signatures, layouts and refusals.

Written from its documentation: sequences first and heads second (B, S, H, D); key heads may be fewer; ``causal`` is aligned at the
bottom right; log-sum-exps are natural, (B, H, S) for rectangular and (H, total) for packed queries, +inf where there is no key; the
backward takes whatever (out, log-sum-exp) it is given.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from echo_pl.backbone import flash_attention


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend ``flash_attn`` compute with the functions of this file, on a CPU and in any dtype."""
    monkeypatch.setattr(flash_attention, "package", lambda: _Package)
    monkeypatch.setattr(flash_attention, "reason_unsupported", lambda query: "")


def _scores(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    """(H, Q, K) of one sequence: q (Q, H, D), k (K, H / G, D)."""
    assert q.stride(-1) == k.stride(-1) == 1, "the kernels read heads in one piece"
    assert q.dtype == k.dtype
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if causal:
        Q, K = scores.shape[1:]
        scores = scores.masked_fill(torch.ones(Q, K, dtype=torch.bool).triu(K - Q + 1), -torch.inf)
    return scores


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    if not len(k):  # the kernels fill these in for nothing
        return torch.zeros_like(q), torch.full((q.shape[1], len(q)), torch.inf, dtype=q.dtype)
    scores = _scores(q, k, scale, causal)
    values = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1)


def _sequences(ends: Tensor, longest: int, total: int) -> list[slice]:
    assert ends.dtype == torch.int32
    places = ends.tolist()
    assert places[0] == 0
    assert places[-1] == total
    lengths = [b - a for a, b in itertools.pairwise(places)]
    assert max(lengths) == longest
    return [slice(a, b) for a, b in itertools.pairwise(places)]


class _Package:
    @staticmethod
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert dropout_p == 0.0
        return torch.stack([_attend(*row, softmax_scale, causal)[0] for row in zip(q, k, v, strict=True)])

    @staticmethod
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=None, softmax_scale=None, causal=False, return_softmax_lse=False
    ):
        lengths = [cache_seqlens] * len(q)
        if isinstance(cache_seqlens, Tensor):
            assert cache_seqlens.dtype == torch.int32
            lengths = cache_seqlens.tolist()
        assert all(0 <= length <= k_cache.shape[1] for length in lengths)
        rows = [
            _attend(q[row], k_cache[row, :length], v_cache[row, :length], softmax_scale, causal)
            for row, length in enumerate(lengths)
        ]
        out, lse = (torch.stack(x) for x in zip(*rows, strict=True))
        return (out, lse) if return_softmax_lse else out

    @staticmethod
    def _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal
    ):
        assert dropout_p == 0.0
        rows = [
            _attend(q[a], k[b], v[b], softmax_scale, causal)
            for a, b in zip(
                _sequences(cu_seqlens_q, max_seqlen_q, len(q)), _sequences(cu_seqlens_k, max_seqlen_k, len(k)), strict=True
            )
        ]
        out, lse = zip(*rows, strict=True)
        return torch.cat(out), torch.cat(lse, dim=1), torch.empty(0), torch.empty(2)

    @staticmethod
    def _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
        assert softmax_lse.shape == (q.shape[1], len(q))
        assert softmax_lse.is_contiguous()
        group = q.shape[1] // k.shape[1]
        pairs = zip(_sequences(cu_seqlens_q, max_seqlen_q, len(q)), _sequences(cu_seqlens_k, max_seqlen_k, len(k)), strict=True)
        for a, b in pairs:
            weights = (_scores(q[a], k[b], softmax_scale, causal) - softmax_lse[:, a, None]).exp()
            values, keys = v[b].repeat_interleave(group, 1), k[b].repeat_interleave(group, 1)
            own = (dout[a] * out[a]).sum(-1).T[..., None]
            dscores = weights * (torch.einsum("qhd,khd->hqk", dout[a], values) - own) * softmax_scale
            dq[a] = torch.einsum("hqk,khd->qhd", dscores, keys)
            dk[b] = torch.einsum("hqk,qhd->khd", dscores, q[a]).unflatten(1, (-1, group)).sum(2)
            dv[b] = torch.einsum("hqk,qhd->khd", weights, dout[a]).unflatten(1, (-1, group)).sum(2)
