"""Decode configuration: the options of docs/explain/method.md, "Decoding", checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from echo_pl.diffusion.block_mask import ContextAttention
from echo_pl.diffusion.sequence import BlockLayout, Grid

Remasking = Literal["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded", "random"]
KVCacheMode = Literal["none", "vanilla", "fused"]


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """Choice of the token of a position. It does not change which positions are committed."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability mass."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class LoopStop:
    """Definition of a repetition loop: a report ends in one n-gram of up to ``max_period`` tokens, repeated."""

    enabled: bool = True
    max_period: int = 16
    min_repeats: int = 4
    min_tokens: int = 16
    """The repeated stretch must be at least this long, so that a short period needs more repeats."""

    def __post_init__(self) -> None:
        if self.max_period < 1 or self.min_repeats < 2 or self.min_tokens < 2:
            raise ValueError(
                "max_period must be >= 1, min_repeats >= 2 and min_tokens >= 2, "
                f"got {self.max_period}, {self.min_repeats} and {self.min_tokens}"
            )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Block-diffusion decoding."""

    block_size: int
    max_response_tokens: int
    """Most response positions; a multiple of the block size."""
    denoising_steps: int | None = None
    """Most forwards per block; None: the block size (one token per forward at the least)."""
    remasking: Remasking = "low_confidence_dynamic"
    confidence_threshold: float = 0.9
    entropy_bound: float = 0.5
    """``entropy_bounded``: commit in order of rising entropy while the entropies before the last sum to at most this (nats)."""
    kv_cache: KVCacheMode = "fused"
    grid: Grid = "response"
    context_attention: ContextAttention = "causal"
    token_choice: TokenChoice = TokenChoice()
    loop_stop: LoopStop = LoopStop()
    gate: float = 0.0
    """One-step decoding only: a second forward for blocks with a position below this confidence. Their first forward commits the
    positions at or above it, at least the most confident one, and the second one the rest. 0: never."""
    compile: bool = False
    """Run the denoising step as one compiled function of fixed shapes. Needs a C++ compiler or a GPU; compiling takes a minute."""

    def __post_init__(self) -> None:
        _ = self.layout  # checks block_size, grid and context_attention
        if self.max_response_tokens < 1 or self.max_response_tokens % self.block_size:
            raise ValueError(
                f"block_size {self.block_size} does not fit the grid: max_response_tokens must be a positive multiple of it, "
                f"got {self.max_response_tokens}"
            )
        if self.denoising_steps is not None and not 1 <= self.denoising_steps <= self.block_size:
            raise ValueError(f"denoising_steps must be between 1 and block_size {self.block_size}, got {self.denoising_steps}")
        if self.remasking not in get_args(Remasking):
            raise ValueError(f"remasking must be one of {get_args(Remasking)}, got {self.remasking!r}")
        if self.kv_cache not in get_args(KVCacheMode):
            raise ValueError(f"kv_cache must be one of {get_args(KVCacheMode)}, got {self.kv_cache!r}")
        if not 0.0 < self.confidence_threshold <= 1.0:
            raise ValueError(f"confidence_threshold must be in (0, 1], got {self.confidence_threshold}")
        if self.compile and (self.kv_cache == "none" or self.token_choice.temperature):
            raise ValueError(
                "compile=true needs a cache (kv_cache vanilla or fused) and greedy tokens (temperature 0), "
                f"got kv_cache={self.kv_cache} and temperature {self.token_choice.temperature}"
            )
        if not 0.0 <= self.gate <= 1.0:
            raise ValueError(f"gate must be in [0, 1], got {self.gate}")
        if self.gate and self.denoising_steps != 1:
            raise ValueError(
                f"gate={self.gate} is a second step for one-step decoding: it needs denoising_steps=1, got {self.denoising_steps}"
            )
        if self.entropy_bound < 0:
            raise ValueError(f"entropy_bound must not be negative, got {self.entropy_bound}")

    @property
    def layout(self) -> BlockLayout:
        """The block grid, as in training."""
        return BlockLayout(block_size=self.block_size, grid=self.grid, context_attention=self.context_attention)

    @property
    def steps(self) -> int:
        """Most forwards per block."""
        if self.gate:
            return 2
        return self.block_size if self.denoising_steps is None else self.denoising_steps

    @property
    def step_configs(self) -> tuple[DecodeConfig, ...]:
        """The commit rule of each forward of a block; with a gate the second one commits the rest."""
        return (self, replace(self, gate=0.0)) if self.gate else (self,) * self.steps

    @property
    def quota(self) -> int:
        """Fewest positions that a forward commits, if as many are masked."""
        return 1 if self.gate else math.ceil(self.block_size / self.steps)

    @property
    def commits_vary(self) -> bool:
        """True if a forward may commit more than its quota, depending on its prediction."""
        varies = self.gate > 0 or self.remasking in ("low_confidence_dynamic", "entropy_bounded")
        return varies and self.quota < self.block_size


def check_weight(weight: float, of: str) -> None:
    """Raise ValueError for a weight that is negative or not finite."""
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"the weight of {of} must be at least 0 and finite, got {weight}")
