"""Block decoding whose every forward is a compiled function of fixed shapes: ``decode.compile=true``.

Shapes: A active samples, L block size, Q queries.
"""

from __future__ import annotations

from torch import Tensor

from echo_pl.backbone.static_cache import StaticCache
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.forwards import CachedBlocks, NfeCounter
from echo_pl.sampling.prefill import Prefill
from echo_pl.sampling.step import Step, compiled, fixed_step, fixed_write, static_parts


class CompiledBlocks(CachedBlocks):
    """The same forwards as :class:`CachedBlocks`, over a cache of fixed shapes."""

    cache: StaticCache

    def __init__(self, vlm: VLM, start: Prefill, config: DecodeConfig, counter: NfeCounter) -> None:
        """Start behind prefilled contexts.

        Raises:
            ValueError: this model cannot be compiled, see :func:`echo_pl.sampling.step.static_parts`.
        """
        super().__init__(vlm, start, config, counter)
        self._decoder, self._head = static_parts(vlm)
        heads = self._decoder.heads // self._decoder.key_heads
        self.cache = StaticCache(start.cache, config.block_size, heads, vlm.dtype)
        self._decoder.prepare(self.cache.capacity)

    def step(
        self,
        canvas_AL: Tensor,
        open_AL: Tensor,
        order_AL: Tensor | None,
        never: Tensor,
        block: int,
        working: Tensor,
        way: DecodeConfig,
    ) -> Step:
        """One denoising forward of a block and its commits; see :meth:`CachedBlocks.denoise` and :func:`commit`."""
        self.counter.count(working)
        ids_AQ, offset, keep = self._inputs(canvas_AL, block)
        done = compiled(fixed_step)(
            self._decoder,
            self._head,
            self.cache,
            self.cache.groups(ids_AQ.shape[1]),
            ids_AQ,
            self.behind_A + offset,
            canvas_AL,
            open_AL,
            order_AL,
            never,
            way,
        )
        self.cache.keep(keep)
        return done

    def finish_block(self, final_AL: Tensor, block: int) -> None:
        """See :meth:`CachedBlocks.finish_block`."""
        if self.config.kv_cache == "fused":
            self._pending_AL = final_AL
            return
        L = self.config.block_size
        self.counter.count(self.rows_A, kv_write=True)
        compiled(fixed_write)(self._decoder, self.cache, self.cache.groups(L), final_AL, self.behind_A + block * L)
        self.cache.keep(L)
