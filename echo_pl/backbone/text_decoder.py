"""Fused language model for decoding: the stock weights without the library's Python.

A block step of a small model is mostly interpreter time, and that of a large one reads every weight once. So the three projections
of an attention layer are one matrix here, and the two of a feed-forward layer another. The stock modules' parameters become views
of the joined matrices: nothing is stored twice, and loading weights into the modules changes them here too.

Shapes: B batch, Q queries, E width, H query heads, G key heads, D head size, S slots of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_pl.backbone.attention import AttentionBackend, QueryGroup, attend_groups, attend_two_blocks, last_queries
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.matrix import Matrix, PackedMatrix
from echo_pl.backbone.static_cache import StaticCache


@dataclass(frozen=True, kw_only=True)
class _Layer:
    norm1: Tensor
    qkv: Matrix
    qkv_bias: Tensor
    out: Matrix
    norm2: Tensor
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.qkv, self.out, self.gate_up, self.down


def reason_not_fusible(language_model: Any) -> str | None:
    """Reason why a language model must stay the stock class; None if it can be fused."""
    for name, parameter in language_model.named_parameters():
        if parameter.requires_grad:
            return f"{name} is in training"
        if type(parameter.data) is not Tensor or not parameter.dtype.is_floating_point:
            return f"{name} is a {type(parameter.data).__name__} of {parameter.dtype}, not a dense one of floats"
    for name, module in language_model.layers.named_modules():
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"{name} is a {type(module).__name__}, not a plain linear layer"
    activation = language_model.config.hidden_act
    return None if activation == "silu" else f"its activation is {activation}, not silu"


class TextDecoder:
    """Decode forwards of a ``Qwen2_5_VLTextModel`` over cached keys."""

    def __init__(self, network: Any, pack: bool = False) -> None:
        """Join the projections of every layer, in place.

        Args:
            network: stock model.
            pack: multiply by packed copies of all matrices (:class:`echo_pl.backbone.matrix.PackedMatrix`).

        Raises:
            ValueError: the model cannot be fused, or its weights cannot be packed.
        """
        language_model = network.model.language_model
        if reason := reason_not_fusible(language_model):
            raise ValueError(f"this model cannot be decoded in one piece: {reason}")
        config = language_model.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.hidden_size // self.heads
        self.scale = self.head_size**-0.5
        self.eps = config.rms_norm_eps
        self.embedding: Tensor = language_model.embed_tokens.weight
        self.norm: Tensor = language_model.norm.weight
        self._rotary = language_model.rotary_emb
        self._model = language_model
        matrix = PackedMatrix if pack else Matrix
        self._layers = [_join_layer(layer, matrix) for layer in language_model.layers]
        self._network = network
        self._packed_head = PackedMatrix(network.lm_head.weight, [network.lm_head.weight]) if pack else None
        # A replaced parameter shows in its module's own dictionary, which is cheap to read at every step.
        self._sources = [
            (module._parameters, name, parameter)
            for module in (network.lm_head, *language_model.modules())
            for name, parameter in module._parameters.items()
        ]
        matrices = (self._packed_head, *(m for layer in self._layers for m in layer.matrices))
        self._packed = [m for m in matrices if isinstance(m, PackedMatrix)]
        self._cos_SD = self._sin_SD = self.embedding.new_empty(0, self.head_size)

    @torch.no_grad()
    def __call__(
        self,
        ids_BQ: Tensor,
        first_B: Tensor,
        cache: BlockKVCache | StaticCache,
        groups: tuple[QueryGroup, ...],
        select: int,
        backend: AttentionBackend = "sdpa",
    ) -> Tensor:
        """One forward.

        Args:
            ids_BQ: token ids.
            first_B: position of each sample's first query; the others follow one by one (text only).
            cache: written and read in place.
            groups: cached keys that the queries attend to.
            select: number of last queries whose hidden states are returned; of the others, the last layer computes only keys and
                values.
            backend: attention backend.

        Returns:
            Hidden states (B, select, E), normalized.
        """
        B, Q = ids_BQ.shape
        E = self.embedding.shape[1]
        self.prepare(cache.capacity)
        position_BQ = first_B[:, None] + torch.arange(Q, device=ids_BQ.device)
        cos, sin = self._cos_SD[position_BQ].unsqueeze(2), self._sin_SD[position_BQ].unsqueeze(2)
        x = F.embedding(ids_BQ, self.embedding).view(B * Q, E)
        bias = None
        if len(groups) == 2 and backend in ("sdpa", "split"):  # two adjacent blocks
            bias = cache.two_blocks_bias(Q // 2, self.heads // self.key_heads, x)
        for number, layer in enumerate(self._layers):
            query, key, value = self._project(x, layer, cos, sin)
            keys, values = cache.update(key, value, number)
            if number + 1 == len(self._layers) and select < Q:
                x = x.view(B, Q, E)[:, Q - select :].reshape(B * select, E)
                if not select:
                    return x.view(B, 0, E)
                query, groups, bias = query[:, :, Q - select :], last_queries(groups, select), None
            if bias is None:
                attended = attend_groups(query, keys, values, groups, cache.padding, self.scale, backend)
            else:
                attended = attend_two_blocks(query, keys, values, bias, self.scale)
            x = self._add_attended(x, attended, layer)
            x = self._add_feed_forward(x, layer)
        return F.rms_norm(x, (E,), self.norm, self.eps).view(B, -1, E)

    @property
    def packed_matrices(self) -> int:
        """Number of packed matrices, the head included."""
        return len(self._packed)

    def head(self, hidden_BQE: Tensor) -> Tensor:
        """Logits (B, Q, V)."""
        if self._packed_head is None:
            return self._network.lm_head(hidden_BQE)
        return self._packed_head.matmul(hidden_BQE.flatten(0, 1)).unflatten(0, hidden_BQE.shape[:2])

    def _project(self, x: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, Q, D), keys and values (B, G, Q, D) of hidden states (B * Q, E)."""
        H, G, D = self.heads, self.key_heads, self.head_size
        normed = F.rms_norm(x, (x.shape[1],), layer.norm1, self.eps)
        qkv = layer.qkv.matmul(normed, layer.qkv_bias).view(*cos.shape[:2], H + 2 * G, D)
        turned = qkv[:, :, : H + G]
        turned = turned * cos + turned.roll(D // 2, -1) * sin
        return turned[:, :, :H].transpose(1, 2), turned[:, :, H:].transpose(1, 2), qkv[:, :, H + G :].transpose(1, 2)

    def _add_attended(self, x: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        return layer.out.matmul_add(x, attended.reshape(x.shape))

    def _add_feed_forward(self, x: Tensor, layer: _Layer) -> Tensor:
        gate, up = layer.gate_up.matmul(F.rms_norm(x, (x.shape[1],), layer.norm2, self.eps)).chunk(2, -1)
        return layer.down.matmul_add(x, F.silu(gate) * up)

    @property
    def fits(self) -> bool:
        """True if the matrices are still the model's: moving or converting replaces them, loading makes packed ones stale."""
        first = self._model.layers[0].self_attn.q_proj.weight
        return (
            self._layers[0].qkv.weight.data_ptr() == first.data_ptr()
            and all(owner[name] is parameter for owner, name, parameter in self._sources)
            and not any(matrix.stale for matrix in self._packed)
        )

    def prepare(self, positions: int) -> None:
        """Extend the tables of cosines and sines to so many positions (a position never exceeds the token's index)."""
        if positions > len(self._cos_SD):
            self._extend_rotary(positions)

    def _extend_rotary(self, positions: int) -> None:
        """Compute cosines and signed sines up to the next power of two, as the library does."""
        rows = 1 << positions.bit_length()
        position_31S = torch.arange(rows, device=self.embedding.device).expand(3, 1, -1)
        cos, sin = self._rotary(self.embedding, position_31S)
        half = self.head_size // 2
        # rotate_half(x) = (-x2, x1) is a roll of (x1, x2) with the first half negated: the sign goes into the table.
        self._cos_SD, self._sin_SD = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


def _join_layer(layer: Any, matrix: type[Matrix]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    into, gates = [p.weight for p in projections], [mlp.gate_proj.weight, mlp.up_proj.weight]
    return _Layer(
        norm1=layer.input_layernorm.weight,
        qkv=matrix(_join(into), into),
        qkv_bias=_join([p.bias for p in projections]),
        out=matrix(attention.o_proj.weight, [attention.o_proj.weight]),
        norm2=layer.post_attention_layernorm.weight,
        gate_up=matrix(_join(gates), gates),
        down=matrix(mlp.down_proj.weight, [mlp.down_proj.weight]),
    )


def _join(parameters: list[nn.Parameter]) -> Tensor:
    """Concatenate parameters along their first dimension; each becomes a view of its part."""
    joined = torch.cat([p.data for p in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = joined[start : start + len(parameter)]
        start += len(parameter)
    return joined
