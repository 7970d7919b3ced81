"""Forward process: random masking of response tokens (docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion").

Noise is drawn from (seed, sample key, epoch) alone, so it is the same on one rank and on eight, in any batch, with any padding, and
after a resume. t is drawn per block and does not depend on the block's position.

Shapes: B batch, K noisy copies, R response positions (whole blocks), N blocks, L block size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Noise schedule (linear: a token is masked with probability t)."""

    seed: int = 0
    t_min: float = 0.05
    """Lower end of t ~ U(t_min, t_max); it bounds the weight 1/t."""
    t_max: float = 1.0
    noise_copies: int = 1
    """K noisy copies of the response per context, with independent t."""

    def __post_init__(self) -> None:
        if not 0.0 < self.t_min <= self.t_max <= 1.0:
            raise ValueError(f"t_min and t_max must satisfy 0 < t_min <= t_max <= 1, got {self.t_min} and {self.t_max}")
        if self.noise_copies < 1:
            raise ValueError(f"noise_copies must be at least 1, got {self.noise_copies}")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of a batch."""

    masked_BKR: Tensor
    """bool: replaced by the mask token."""
    t_BKR: Tensor
    """float32: masking probability of the position's block."""


def sample_generator(seed: int, key: str, epoch: int) -> torch.Generator:
    """Return a CPU generator that depends on nothing but (seed, sample key, epoch)."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_noise(config: NoiseConfig, keys: Sequence[str], epoch: int, maskable_BR: Tensor, block_size: int) -> Noise:
    """Draw t for every block and mask its tokens with probability t; at least one maskable token per block is masked.

    Args:
        config: schedule.
        keys: B sample keys.
        epoch: number of earlier passes over the corpus.
        maskable_BR: bool, positions that may be masked (not the context tail of the absolute grid).
        block_size: L; R must be a multiple of it.

    Returns:
        Noise on the device of ``maskable_BR``.
    """
    B, R = maskable_BR.shape
    N, K = R // block_size, config.noise_copies
    t_BKN = torch.empty(B, K, N)
    u_BKNL = torch.empty(B, K, N, block_size)
    for row, key in enumerate(keys):
        generator = sample_generator(config.seed, key, epoch)
        # Block by block, so that the first blocks of a sample get the same noise however far its batch is padded.
        draws_NKx = torch.rand(N, K, 1 + block_size, generator=generator)
        t_BKN[row] = draws_NKx[..., 0].T
        u_BKNL[row] = draws_NKx[..., 1:].transpose(0, 1)
    t_BKN = config.t_min + (config.t_max - config.t_min) * t_BKN
    maskable_B1NL = maskable_BR.cpu().view(B, 1, N, block_size)
    u_BKNL = u_BKNL.masked_fill(~maskable_B1NL, torch.inf)
    # The smallest u is always masked: at least one position, without a preferred one.
    lowest = u_BKNL == u_BKNL.amin(-1, keepdim=True)
    masked = ((u_BKNL < t_BKN[..., None]) | lowest) & maskable_B1NL
    return Noise(
        masked_BKR=masked.flatten(2).to(maskable_BR.device),
        t_BKR=t_BKN.repeat_interleave(block_size, dim=2).to(maskable_BR.device),
    )
