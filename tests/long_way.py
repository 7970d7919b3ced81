"""Phase 1 of distillation (docs/explain/method.md) done the long way: the reference of the tests of trajectories.

The teacher's distribution is computed for every step by a full forward of the library's own network over
``[context | finished blocks | current block]`` under the table of ``tests/method.py``, with the committed tokens put in; the loop
around it is the method's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from method import allowed_QK, context_tokens, response_tokens
from models import SPECIAL
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.structs import Batch

L, LIMIT, TAU = 4, 16, 0.5


@dataclass
class LongWay:
    """Algorithm 1, phase 1, for one sample."""

    network: Qwen2_5_VLForConditionalGeneration
    sample: Batch
    grid: str
    context_attention: str
    given: list[int] = field(default_factory=list)
    """Tokens that the report begins with, in whole blocks; they are nobody's choice."""

    def __post_init__(self) -> None:
        ids = self.sample.context_ids_BP
        tail = ids.shape[1] % L if self.grid == "absolute" else 0
        self.context = ids[:, : ids.shape[1] - tail]
        self.canvas = [int(token) for token in ids[0, ids.shape[1] - tail :]] + self.given
        self.token: list[int] = []
        self.step: list[int] = []
        self.confidence: list[float] = []
        self.target: list[Tensor] = []

    def run(self) -> None:
        while len(self.given) + len(self.token) < LIMIT:
            self.block()
            if SPECIAL.eos in self.token:
                return

    def block(self) -> None:
        start = len(self.canvas) // L * L
        first = len(self.canvas) - start  # the context tail, which is not open
        canvas = self.canvas[start:] + [SPECIAL.mask] * (L - first)
        U, s = set(range(first, L)), 1
        commit: dict[int, int] = {}
        target: dict[int, Tensor] = {}
        while U:
            p = self.distributions(self.canvas[:start], canvas)
            confidence = {i: float(p[i].max()) for i in U}
            committed = {i for i in U if confidence[i] >= TAU} or {max(sorted(U), key=lambda i: confidence[i])}
            for i in committed:
                target[i], commit[i], canvas[i] = p[i], s, int(p[i].argmax())
            U -= committed
            s += 1
        self.canvas = self.canvas[:start] + canvas
        for i in range(first, L):
            self.token.append(canvas[i])
            self.step.append(commit[i])
            self.target.append(target[i])
            self.confidence.append(float(target[i].max()))

    @torch.no_grad()
    def distributions(self, finished: list[int], canvas: list[int]) -> Tensor:
        """Softmax at the L places of the current block; tokens that no decoder may emit have no probability."""
        P = self.context.shape[1]
        tokens = context_tokens(P, P, L) + response_tokens("x0", len(finished), L)
        tokens += response_tokens("xt", len(finished) + L, L)[len(finished) :]
        is_image = (self.context == SPECIAL.image).int()
        positions, _ = self.network.model.get_rope_index(
            self.context, mm_token_type_ids=is_image, image_grid_thw=self.sample.image_grid_thw
        )
        behind = int(positions.max()) + 1
        response = torch.arange(behind, behind + len(finished) + L).expand(3, 1, -1)
        logits = self.network(
            input_ids=torch.cat([self.context, torch.tensor([finished + canvas])], dim=1),
            position_ids=torch.cat([positions, response], dim=2),
            attention_mask={"full_attention": allowed_QK(tokens, tokens, self.context_attention)[None, None]},
            pixel_values=self.sample.pixel_values,
            image_grid_thw=self.sample.image_grid_thw,
            use_cache=False,
        ).logits[0, -L:]
        logits[:, list(SPECIAL.never_sampled)] = -torch.inf
        return logits.softmax(-1)
