"""Roofline of a forward: the least it must read and compute, and how long that takes at a machine's limits.

By arithmetic alone: every matrix is read once per forward, whatever the number of queries, and multiplied by each of
them; the cached keys and values are read once per sample. The slower of reading and computing counts, matrix by matrix.

Shapes: A samples, Q queries of one sample, E width.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_pl.bench.machine import Limits


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a language model with grouped heads and a gated feed-forward layer."""

    width: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    mlp_width: int
    vocabulary: int
    bytes_per_weight: int

    @property
    def layer_matrices(self) -> list[int]:
        """Weights of a layer's matrices: projections in, projection out, gate and up, down."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        return [
            self.width * (queries + 2 * keys),
            queries * self.width,
            2 * self.width * self.mlp_width,
            self.mlp_width * self.width,
        ]

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        return self.layers * sum(self.layer_matrices)


QWEN2_5_VL_7B = ModelShape(
    width=3584, layers=28, heads=28, key_heads=4, head_size=128, mlp_width=18944, vocabulary=152064, bytes_per_weight=2
)
"""The language model of Qwen2.5-VL-7B, from its published configuration."""

DATA_SHEETS = {
    "H100 SXM": Limits(dtype="bfloat16", bandwidth=3.35e12, flops=989e12),
    "H200 SXM": Limits(dtype="bfloat16", bandwidth=4.8e12, flops=989e12),
}
"""NVIDIA's data sheets: memory bandwidth, dense bfloat16 tensor cores."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One decode forward."""

    samples: int
    queries: int
    head_rows: int
    """Queries of a sample whose logits are computed; the last layer is computed for these alone."""
    cached: int
    """Keys that the queries attend to, their own included."""


def least_seconds(shape: ModelShape, forward: Forward, limits: Limits) -> float:
    """Shortest time of one forward at these limits."""
    A, Q = forward.samples, forward.queries
    total = 0.0
    for layer in range(shape.layers):
        first, *others = shape.layer_matrices
        rows = forward.head_rows if layer + 1 == shape.layers else Q
        total += _product(first, A * Q, shape, limits) + sum(_product(m, A * rows, shape, limits) for m in others if rows)
        cache_bytes = 2 * A * forward.cached * shape.key_heads * shape.head_size * shape.bytes_per_weight
        attention = 4 * A * rows * forward.cached * shape.heads * shape.head_size
        total += max(cache_bytes / limits.bandwidth, attention / limits.flops)
    if forward.head_rows:
        total += _product(shape.width * shape.vocabulary, A * forward.head_rows, shape, limits)
    return total


def _product(weights: int, rows: int, shape: ModelShape, limits: Limits) -> float:
    return max(weights * shape.bytes_per_weight / limits.bandwidth, 2 * weights * rows / limits.flops)


def least_one_step(shape: ModelShape, limits: Limits, *, block_size: int, samples: int, context: int, tokens: int) -> float:
    """Shortest time of a fused one-step decode of ``tokens`` tokens."""
    L, total = block_size, 0.0
    for block in range(tokens // L):
        queries = L if block == 0 else 2 * L
        total += least_seconds(
            shape, Forward(samples=samples, queries=queries, head_rows=L, cached=context + (block + 1) * L), limits
        )
    return total


def least_autoregressive(shape: ModelShape, limits: Limits, *, samples: int, context: int, tokens: int) -> float:
    """Shortest time of an autoregressive decode of ``tokens`` tokens, the first of which comes out of prefill."""
    forwards = (Forward(samples=samples, queries=1, head_rows=1, cached=context + place) for place in range(1, tokens))
    return sum(least_seconds(shape, forward, limits) for forward in forwards)


def calculation(
    shape: ModelShape, limits: Limits, *, block_sizes: tuple[int, ...], samples: int, context: int, tokens: int
) -> list[dict[str, float]]:
    """Upper bounds by arithmetic: AR and fused one-step tokens per second and their ratio, one entry per block size.

    ``tokens`` of the response must be a multiple of every block size.
    """
    ar = least_autoregressive(shape, limits, samples=samples, context=context, tokens=tokens)
    found = []
    for L in block_sizes:
        least = least_one_step(shape, limits, block_size=L, samples=samples, context=context, tokens=tokens)
        ideal_speedup = (tokens - 1) / (tokens // L)
        found.append(
            {
                "block_size": L,
                "ar_tps": samples * tokens / ar,
                "one_step_tps": samples * tokens / least,
                "speedup_over_ar": ar / least,
                "efficiency": ar / least / ideal_speedup,
            }
        )
    return found
