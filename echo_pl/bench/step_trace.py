"""A training step on fake tensors, to count what it allocates and computes.

The training code itself runs on tensors that have shapes and no numbers, while all live bytes are counted. ``echo-pl plan --check``
compares the count with the memory of real steps.

Shapes: B studies of one GPU in one step, P context, R response, K noisy copies, M positions with a loss, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import SplitView
from echo_pl.diffusion.losses import divergence_rows, masked_diffusion_loss, next_token_loss
from echo_pl.diffusion.sequence import (
    BlockLayout,
    TrainingSequence,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.structs import SpecialTokens

_SPECIAL = SpecialTokens(pad=13, eos=12, mask=14, image=15, never_sampled=(13, 14, 15))
Stage = Literal["pretrain", "rad", "dcd"]
TracedPrecision = Literal["32-true", "bf16-mixed", "bf16-true"]


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


_CPU_ATTENTION = {  # torch counts the kernels of GPUs only; like theirs, these counts include pairs that a mask forbids
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True, kw_only=True)
class StepTokens:
    """Lengths of one step of one GPU, and their layout."""

    batch_size: int
    """B."""
    context: int
    """P, image tokens and instruction."""
    response: int
    """R with eos; in stages 2 and 3 a multiple of the block size."""
    block_size: int = 8
    noise_copies: int = 1
    """K."""

    def length(self, stage: Stage) -> int:
        """Tokens of one study's sequence."""
        return self.context + self.response * (1 if stage == "pretrain" else self.noise_copies + 1)

    def supervised(self, stage: Stage) -> int:
        """Number of a study's positions with a loss: all in stages 1 and 3, half of every copy (t is uniform) in stage 2."""
        return self.response * self.noise_copies // 2 if stage == "rad" else self.response


class LiveBytes(TorchDispatchMode):
    """Bytes of all live tensors that operations have made since the mode was entered, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size

    def ignore(self, tensors: Any) -> None:
        """Leave existing tensors out of the count, which operations in place return."""
        for tensor in tensors:
            self._sizes[tensor.untyped_storage()] = 0


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Memory of a step in bytes above the weights, and its operations."""

    forward_backward: int
    """Peak of forward and backward."""
    optimizer: int
    """Peak while gradients are clipped and AdamW steps, with its states and the gradients."""
    flops: int
    """Forward and backward; checkpointing counts operations twice."""


def trace_step(
    build: Callable[[], VLM],
    special: SpecialTokens,
    stage: Stage,
    tokens: StepTokens,
    *,
    precision: TracedPrecision,
    checkpointing: bool,
    keep_gradients: bool,
) -> Traced:
    """Trace a training step of the language model on fake tensors.

    Args:
        build: builds the model with attention ``split``; called under fake tensors.
        special: special ids of its vocabulary.
        stage: stage whose loss is computed.
        tokens: sizes.
        precision: ``32-true``; ``bf16-mixed``, autocast over float32 weights; ``bf16-true``, a layer of FSDP2 whose weights were
            gathered in bfloat16. Kernels are those of a CPU, which attend in float32: for bfloat16 an upper bound.
        checkpointing: keep the layers' inputs only, and compute the rest again.
        keep_gradients: False: free a weight's gradient as soon as it is made, as FSDP2 does.
    """
    sequence = _sequence(stage, tokens, special)
    view = sequence.rule.split  # depends on numbers, which fake tensors do not have
    positions = torch.arange(sequence.input_ids_BT.shape[1]).expand(3, tokens.batch_size, -1)
    rows = tokens.batch_size * tokens.supervised(stage)
    with FakeTensorMode() as mode:
        vars(sequence.rule)["split"] = _faked(view, mode)
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        with _default_dtype(dtype):  # fake parameters cannot be converted later
            vlm = build().train()
        if checkpointing:
            vlm.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        vlm.freeze_vision()
        trained = [p for p in vlm.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=True)
        ids, places = mode.from_tensor(sequence.input_ids_BT), mode.from_tensor(positions)
        vocabulary = len(vlm.network.lm_head.weight)
        target, level = torch.zeros(rows, dtype=torch.long), torch.ones(rows)
        distribution = torch.ones(rows, vocabulary) if stage == "dcd" else None

        def forward_backward() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = step_loss()
            loss.backward()

        def step_loss() -> Tensor:
            logits = vlm(ids, places, sequence.rule, select=tokens.supervised(stage)).flatten(0, 1)
            if distribution is not None:
                return divergence_rows(logits, distribution, "forward_kl", 1.0).mean()
            if stage == "rad":
                return masked_diffusion_loss(logits, target, level, "elbo", rows)
            return next_token_loss(logits, target)

        with gradients_kept(trained, keep_gradients):
            # Two passes: the counter of operations hooks modules and keeps tensors that checkpointing frees.
            with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as flops:
                forward_backward()
            for parameter in trained:
                parameter.grad = None
            live = LiveBytes()
            live.ignore(vlm.state_dict().values())
            with live:
                forward_backward()
            optimizer_peak = 0
            if keep_gradients:
                step = LiveBytes()
                gradients = [p.grad for p in trained if p.grad is not None]
                step.ignore([*vlm.state_dict().values(), *gradients])
                with step:
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                optimizer_peak = step.peak + sum(gradient.nbytes for gradient in gradients)
    return Traced(
        forward_backward=live.peak + (0 if distribution is None else rows * vocabulary * 4),
        optimizer=optimizer_peak,
        flops=flops.get_total_flops(),
    )


def _sequence(stage: Stage, tokens: StepTokens, special: SpecialTokens) -> TrainingSequence:
    B, P, R = tokens.batch_size, tokens.context, tokens.response
    context = torch.zeros(B, P, dtype=torch.long)
    lengths, response = torch.full((B,), P), torch.zeros(B, R, dtype=torch.long)
    if stage == "pretrain":
        return autoregressive_sequence(context, lengths, response)
    layout = BlockLayout(block_size=tokens.block_size)
    prompt = block_context(context, lengths, layout, special.image)
    blocked = block_response(prompt, response, torch.full((B,), R), layout, special)
    return rad_sequence(blocked, blocked.clean_ids_BR[:, None].expand(-1, tokens.noise_copies, -1))


def _faked(view: SplitView, mode: FakeTensorMode) -> SplitView:
    tensors: dict[str, Any] = {f.name: value for f in fields(view) if isinstance(value := getattr(view, f.name), Tensor)}
    faked: dict[str, Any] = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
    return replace(view, **faked)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def gradients_kept(parameters: list[nn.Parameter], keep: bool) -> Iterator[None]:
    """Keep the gradients of weights, or free each as soon as it is made, as FSDP2 does."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [] if keep else [p.register_post_accumulate_grad_hook(drop) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class TowerBytes:
    """Bytes of a vision tower's activations, which are linear in patches and so are found on a few real ones."""

    layer: float
    """Bytes of one layer and patch, kept for the backward."""
    rest: float
    """Bytes of one patch outside of the layers, and while one layer is in its backward."""
    input: float
    """Bytes of one patch, a layer's input: all that checkpointing keeps."""
    frozen: float
    """Peak bytes of one patch when nothing is kept."""
    flops: float
    """Operations of the forward of one layer and patch, without attention."""

    def training(self, patches: int, layers: int, checkpointing: bool) -> float:
        """Peak bytes of forward and backward."""
        kept = layers * self.input + self.layer if checkpointing else layers * self.layer
        return patches * (kept + self.rest)


def trace_tower(width: int, mlp_width: int, heads: int, dtype: torch.dtype) -> TowerBytes:
    """Count on towers of one and two layers and on small images; differences leave out what does not grow with the patches.

    Tensors are real here, as attention cuts images at positions that must be numbers.
    """
    small, large = 16, 32
    one = {side: _run_tower(width, mlp_width, heads, 1, side, dtype) for side in (small, large)}
    two = {side: _run_tower(width, mlp_width, heads, 2, side, dtype) for side in (small, large)}

    def per_patch(runs: dict[int, tuple[int, int, int]], figure: int) -> float:
        return (runs[large][figure] - runs[small][figure]) / (large**2 - small**2)

    layer = per_patch(two, 0) - per_patch(one, 0)
    return TowerBytes(
        layer=layer,
        rest=per_patch(one, 0) - layer,
        input=width * dtype.itemsize,
        frozen=per_patch(one, 1),
        flops=per_patch(two, 2) - per_patch(one, 2),
    )


def _run_tower(width: int, mlp_width: int, heads: int, layers: int, side: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Peak bytes in training and when frozen, and operations of a forward."""
    grid = torch.tensor([[1, side, side]])
    with _default_dtype(dtype):
        factory = TinyBackbone(
            width=128, layers=1, vision_width=width, vision_layers=layers, vision_heads=heads, vision_mlp_width=mlp_width
        )
        visual = factory.build(_SPECIAL, 16).network.model.visual
        pixels = torch.zeros(side * side, 3 * 2 * factory.patch_size**2)
    training, still = LiveBytes(), LiveBytes()
    for live in (training, still):
        live.ignore(visual.state_dict().values())  # they would hide the peak of so few patches
    with gradients_kept(list(visual.parameters()), keep=False), training:
        visual(pixels, grid_thw=grid).pooler_output.sum().backward()
    with FlopCounterMode(display=False) as flops, torch.no_grad(), still:
        visual(pixels, grid_thw=grid)
    return training.peak, still.peak, flops.get_total_flops()
