"""Attention backends against each other, against the library's own attention under a dense mask, and against the definition.

Tolerances. float64 with norms in float64: 1e-10, a thousand times the rounding of sums this long. float32: 1e-5 of the largest
value, some hundred roundings of 6e-8.
"""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_stand_in import flash_on_cpu  # noqa: F401
from models import SPECIAL, VOCABULARY, exact_norms, make_batch, small_vlm, stock_network
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from echo_pl.backbone import attention, flash_attention, split_attention
from echo_pl.backbone.attention import NAME, AttentionCall, QueryGroup, echo_attention
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.split_attention import merged_attention
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import CLEAN, FIRST_NOISY, AttentionRule, concatenate, context_coords, response_coords
from echo_pl.diffusion.sequence import (
    BlockLayout,
    TrainingSequence,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.structs import Batch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MODES = [("response", "causal"), ("response", "full"), ("absolute", "block_causal")]


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def vlm(request) -> VLM:
    vlm = small_vlm(request.param)
    return exact_norms(vlm) if request.param == torch.float64 else vlm


def made_batch(vlm: VLM, contexts: list[int]) -> Batch:
    return make_batch(contexts, [10, 12, 7], dtype=next(vlm.parameters()).dtype)


def rad(batch: Batch, grid: str, context_attention: str, copies: int = 2) -> TrainingSequence:
    layout = BlockLayout(block_size=4, grid=grid, context_attention=context_attention)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    clean = blocked.clean_ids_BR[:, None].expand(-1, copies, -1)
    masked = torch.rand(clean.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    return rad_sequence(blocked, torch.where(masked, SPECIAL.mask, clean))


def logits(vlm: VLM, sequence: TrainingSequence, batch: Batch, backend: str) -> Tensor:
    vlm.train_attention = backend
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    out = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images)
    return out[real_tokens(sequence)]


def real_tokens(sequence: TrainingSequence) -> Tensor:
    """bool (B, T): not padding."""
    T = sequence.input_ids_BT.shape[1]
    place = torch.arange(T)[None]
    return (place < sequence.context_lengths_B[:, None]) | (place >= sequence.context_width)


def assert_close(one: Tensor, other: Tensor) -> None:
    tolerance = TOLERANCE[one.dtype] * float(other.detach().abs().max())
    assert float((one - other).detach().abs().max()) <= tolerance


@pytest.mark.parametrize("contexts", [[9, 12, 11], [12, 12, 12]], ids=["ragged", "even"])
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_the_library_s_own_attention_under_the_dense_mask_agrees(vlm, grid, mode, contexts):
    batch = made_batch(vlm, contexts)
    sequence = rad(batch, grid, mode)
    stock = stock_network(vlm)
    with torch.no_grad():
        ours = logits(vlm, sequence, batch, "sdpa")
        mask = sequence.rule.dense_BQK.expand(3, -1, -1)[:, None]
        theirs = stock(
            input_ids=sequence.input_ids_BT,
            position_ids=vlm.sequence_positions(sequence, batch.image_grid_thw),
            attention_mask={"full_attention": mask},
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            use_cache=False,
        ).logits[real_tokens(sequence)]
    assert_close(ours, theirs)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["split", "flex", "flash_attn"])
@pytest.mark.parametrize("contexts", [[9, 12, 11], [12, 12, 12]], ids=["ragged", "even"])
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_every_backend_is_sdpa(vlm, grid, mode, contexts, backend):
    batch = made_batch(vlm, contexts)
    sequence = rad(batch, grid, mode)
    with torch.no_grad():
        assert_close(logits(vlm, sequence, batch, backend), logits(vlm, sequence, batch, "sdpa"))


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["split", "flex", "flash_attn"])
def test_every_backend_is_sdpa_for_autoregressive_sequences(vlm, backend):
    batch = made_batch(vlm, [9, 12, 11])
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    with torch.no_grad():
        assert_close(logits(vlm, sequence, batch, backend), logits(vlm, sequence, batch, "sdpa"))


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("other", ["split", "flash_attn"])
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_gradients_are_those_of_sdpa(vlm, grid, mode, other):
    batch = made_batch(vlm, [9, 12, 11])
    sequence = rad(batch, grid, mode)
    gradients = []
    for backend in ("sdpa", other):
        vlm.zero_grad()
        out = logits(vlm, sequence, batch, backend)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        (out * weight).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None})
    vlm.zero_grad()
    reference, ours = gradients
    assert reference.keys() == ours.keys()
    assert any("visual" in name for name in reference)
    largest = max(float(g.abs().max()) for g in reference.values())
    for name in reference:
        difference = float((reference[name] - ours[name]).abs().max())
        assert difference <= TOLERANCE[reference[name].dtype] * largest, name


def random_qkv(Q: int, K: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads over two key heads."""
    generator = torch.Generator().manual_seed(Q + K)
    shapes = (2, 4, Q, 16), (2, 2, K, 16), (2, 2, K, 16)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def definition(q: Tensor, k: Tensor, v: Tensor, mask_BQK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with -inf where forbidden; (B, Q, H, D)."""
    groups = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        keys, values = k[:, head // groups], v[:, head // groups]
        scores = q[:, head] @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
        heads.append(torch.softmax(scores.masked_fill(~mask_BQK, -torch.inf), -1) @ values)
    return torch.stack(heads, dim=2)


def long_rule() -> AttentionRule:
    """Three FlexAttention tiles wide, ragged."""
    lengths = torch.tensor([101, 140])
    coords = concatenate(
        context_coords(lengths, 140, 8),
        response_coords(FIRST_NOISY, 0, 96, 8, lengths.device),
        response_coords(CLEAN, 0, 96, 8, lengths.device),
    )
    return AttentionRule(query=coords, key=coords, context_width=140)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flex", "flash_attn"])
def test_attention_is_the_masked_softmax_of_its_definition(backend):
    rule = long_rule()
    q, k, v = random_qkv(332, 332)
    out, weights = echo_attention(torch.nn.Identity(), q, k, v, AttentionCall(rule=rule, backend=backend))
    assert weights is None
    real = rule.query.copy_BT >= 0
    assert_close(out[real], definition(q, k, v, rule.dense_BQK)[real])


def test_a_call_has_either_a_rule_or_groups():
    for wrong in ({}, {"rule": long_rule(), "groups": (QueryGroup(1, 1),)}):
        with pytest.raises(ValueError, match="either the rule of a whole sequence or the query groups of a decode step"):
            AttentionCall(**wrong)


def test_bf16_on_a_cpu_is_computed_in_float32():
    q, k, v = random_qkv(332, 332, torch.bfloat16)
    call = AttentionCall(rule=long_rule(), backend="split")
    out, _ = echo_attention(torch.nn.Identity(), q, k, v, call)
    precise, _ = echo_attention(torch.nn.Identity(), q.float(), k.float(), v.float(), call)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, precise.bfloat16())


def two_parts(dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Queries, two parts of keys and values; the mask over the first part (padding) and over the second."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    tensors = (random(2, 2, 3, 8), *(random(2, 2, n, 8) for n in (5, 5, 4, 4)))
    padding = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None]
    mask = torch.rand(2, 1, 3, 4, generator=generator) < 0.6
    mask[..., 0] = True
    return tensors, padding, mask


@pytest.mark.parametrize("kernel", [split_attention.CpuKernel(), split_attention.PLAIN], ids=["cpu", "plain"])
@pytest.mark.parametrize("padded", [True, False])
def test_merged_attention_has_the_gradients_of_its_definition(monkeypatch, kernel, padded):
    monkeypatch.setitem(split_attention.KERNELS, "cpu", kernel)
    tensors, padding, mask = two_parts()

    def merged(*tensors: Tensor) -> Tensor:
        q, k1, v1, k2, v2 = tensors
        return merged_attention(q, (k1, v1, padding if padded else None), (k2, v2, mask), 0.3)

    q, k1, v1, k2, v2 = tensors
    first = padding.expand(-1, -1, 3, -1) if padded else torch.ones(2, 1, 3, 5, dtype=torch.bool)
    whole = torch.cat([first, mask], -1)
    scores = (q @ torch.cat([k1, k2], 2).transpose(2, 3) * 0.3).masked_fill(~whole, -torch.inf)
    assert_close(merged(*tensors), scores.softmax(-1) @ torch.cat([v1, v2], 2))
    assert torch.autograd.gradcheck(merged, tensors)


class EfficientOnCpu:
    """Stand-in for the CUDA ops, as their callers see them: log-sum-exps in rows of 32, biases in aligned rows."""

    def __init__(self) -> None:
        self.plain = split_attention.PlainKernel()

    def check_bias(self, bias: Tensor | None, q: Tensor, k: Tensor) -> None:
        if bias is not None:
            assert bias.shape == (*q.shape[:3], k.shape[2])
            assert all(stride % 16 == 0 for stride in bias.stride()[:3])

    def forward(self, q, k, v, bias, with_lse, dropout, causal, *, scale):
        assert (with_lse, dropout, causal) == (True, 0.0, False)
        self.check_bias(bias, q, k)
        out, lse = self.plain.forward(q, k, v, bias, scale)
        rows = torch.full((*lse.shape[:2], -(-lse.shape[2] // 32) * 32), torch.inf, dtype=lse.dtype)
        rows[..., : lse.shape[2]] = lse
        return out, rows, torch.zeros(()), torch.zeros(())

    def backward(self, grad, q, k, v, bias, out, lse, seed, offset, dropout, wanted, causal, *, scale):
        assert (dropout, wanted, causal) == (0.0, [True, True, True, False], False)
        assert lse.shape[2] % 32 == 0
        assert bool(lse[..., q.shape[2] :].isinf().all())
        self.check_bias(bias, q, k)
        return *self.plain.backward(grad, q, k, v, bias, out, lse[..., : q.shape[2]], scale), None


@pytest.mark.parametrize("padded", [True, False])
def test_the_cuda_kernel_is_called_as_it_wants_and_merges_to_the_same(monkeypatch, padded):
    tensors, padding, mask = two_parts(torch.float32)

    def gradients() -> list[Tensor]:
        q, k1, v1, k2, v2 = tensors
        out = merged_attention(q, (k1, v1, padding if padded else None), (k2, v2, mask), 0.3)
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    expected = gradients()
    stand_in = EfficientOnCpu()
    ops = SimpleNamespace(
        _scaled_dot_product_efficient_attention=stand_in.forward,
        _scaled_dot_product_efficient_attention_backward=stand_in.backward,
    )
    monkeypatch.setattr(split_attention.torch.ops, "aten", ops)
    monkeypatch.setitem(split_attention.KERNELS, "cpu", split_attention.CudaKernel())
    for got, wanted in zip(gradients(), expected, strict=True):
        assert_close(got, wanted)


def test_torch_has_the_ops_that_the_cuda_kernel_calls(monkeypatch):
    """Their own shape functions, on the meta device, take our arguments; the stand-in above pads as they do."""
    monkeypatch.setitem(split_attention.KERNELS, "meta", split_attention.CudaKernel())
    tensors, padding, mask = two_parts(torch.bfloat16)
    tensors = tuple(tensor.detach().to("meta").requires_grad_() for tensor in tensors)
    q, k1, v1, k2, v2 = tensors
    out = merged_attention(q, (k1, v1, padding.to("meta")), (k2, v2, mask.to("meta")), 0.3)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k1, v1, None, True)[1]
    assert lse.shape[2] == split_attention.CudaKernel.LSE_MULTIPLE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_on_a_gpu_is_split_on_a_cpu(dtype):
    tensors, padding, mask = two_parts(torch.float32)

    def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
        q, k1, v1, k2, v2 = moved = [tensor.detach().to(device, dtype).requires_grad_() for tensor in tensors]
        out = merged_attention(q, (k1, v1, padding.to(device)), (k2, v2, mask.to(device)), 0.3)
        return [result.float().cpu() for result in (out, *torch.autograd.grad(out.float().square().sum(), moved))]

    tolerance = 1e-4 if dtype == torch.float32 else 5e-2  # bf16 keeps 8 bits
    for got, wanted in zip(gradients("cuda", dtype), gradients("cpu", torch.float32), strict=True):
        assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_the_plain_kernel_is_precise_in_bf16():
    """Scores near 20 have steps of 0.125 in bf16: exponentials of them must not be taken there."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 2, 6, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    bias = torch.full((1, 1, 6, 6), 20.0, dtype=torch.float64)
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        cast = [tensor.bfloat16().to(dtype) for tensor in (q, k, v, grad)]
        out, lse = split_attention.PLAIN.forward(*cast[:3], bias.to(dtype), 0.35)
        results.append([out, *split_attention.PLAIN.backward(cast[3], *cast[:3], bias.to(dtype), out, lse, 0.35)])
    for exact, got in zip(*results, strict=True):
        assert got.dtype == torch.bfloat16
        assert float((got - exact).abs().max()) < 0.02 * float(exact.abs().max())  # a few roundings of 2^-8


def test_devices_and_dtypes_without_a_fused_kernel_get_the_plain_one():
    assert isinstance(split_attention.kernel_for(torch.empty(1)), split_attention.CpuKernel)
    assert isinstance(split_attention.kernel_for(torch.empty(1, dtype=torch.float64)), split_attention.CpuKernel)
    assert split_attention.kernel_for(torch.empty(1, device="meta")) is split_attention.PLAIN


def test_backends_reject_unsupported_requests():
    q, k, v = random_qkv(332, 332)
    rule = long_rule()
    with pytest.raises(ValueError, match=r"attention backend must be one of .* got 'flash'"):
        AttentionCall(rule=rule, backend="flash")
    for backend in ("split", "flex", "flash_attn"):
        with pytest.raises(ValueError, match=f"'{backend}' has no dropout( here)?, got 0.1"):
            echo_attention(torch.nn.Identity(), q, k, v, AttentionCall(rule=rule, backend=backend), dropout=0.1)
    with pytest.raises(ValueError, match="no backward on a CPU"):
        echo_attention(torch.nn.Identity(), q.requires_grad_(), k, v, AttentionCall(rule=rule, backend="flex"))


def test_only_the_text_layers_use_our_entry(vlm):
    config = vlm.network.config
    assert config.text_config._attn_implementation == NAME
    assert config.vision_config._attn_implementation == "sdpa"


def test_flex_is_eager_on_a_cpu_and_compiled_elsewhere(monkeypatch):
    eager = []

    def counted(*tensors: Tensor, **options: Any) -> Tensor:
        eager.append(options["enable_gqa"])
        return flex_attention(*tensors, **options)

    def fail() -> None:
        raise AssertionError("nothing is compiled for a CPU")

    monkeypatch.setattr(attention, "flex_attention", counted)
    monkeypatch.setattr(attention, "compiled_flex_attention", fail)
    q, k, v = random_qkv(332, 332)
    call = AttentionCall(rule=long_rule(), backend="flex")
    echo_attention(torch.nn.Identity(), q, k, v, call)
    assert eager == [True]
    with pytest.raises(AssertionError, match="nothing is compiled"):
        attention._flex(*(tensor.to("meta") for tensor in (q, k, v)), call.rule, 0.25, 0.0)


def test_flash_attention_says_what_it_cannot_do():
    q, k, v = random_qkv(4, 4)
    call = AttentionCall(groups=(QueryGroup(4, 4),), backend="flash_attn")
    message = r"'flash_attn' cannot be used here: .*a CUDA GPU, the model is on cpu.*choose sdpa, split or flex"
    with pytest.raises(ValueError, match=message):
        echo_attention(torch.nn.Identity(), q, k, v, call)


@pytest.mark.parametrize(
    ("dtype", "size", "message"),
    [
        (torch.float32, 64, "float16 or bfloat16, got torch.float32"),
        (torch.bfloat16, 60, "multiple of 8 and at most 256 dimensions, got 60"),
        (torch.bfloat16, 264, "multiple of 8 and at most 256 dimensions, got 264"),
        (torch.bfloat16, 128, None),
    ],
)
def test_flash_attention_s_dtypes_and_sizes(dtype, size, message):
    query = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 1, 1, size))
    reason = flash_attention.reason_unsupported(query)
    assert reason is None if message is None else message in reason


def test_an_old_flash_attention_is_named(monkeypatch):
    flash_attention.package.cache_clear()
    monkeypatch.setattr(flash_attention, "version", lambda package: "2.6.3")
    monkeypatch.setattr(flash_attention.importlib, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(ValueError, match=r"needs flash-attn 2\.8 or newer and below 3, found 2\.6\.3"):
        flash_attention.package()
    monkeypatch.setattr(flash_attention, "version", lambda package: "2.8.3.post1")
    assert flash_attention.package() is not None
    flash_attention.package.cache_clear()


@pytest.mark.usefixtures("flash_on_cpu")
def test_a_context_without_keys_does_not_spoil_flash_attention():
    """Absolute grid, a context shorter than a block: all of it is in the tail. The package then says +inf for no keys."""
    lengths = torch.tensor([0, 4])
    coords = concatenate(
        context_coords(lengths, 4, 4),
        response_coords(FIRST_NOISY, 0, 8, 4, lengths.device),
        response_coords(CLEAN, 0, 8, 4, lengths.device),
    )
    rule = AttentionRule(query=coords, key=coords, context_width=4)
    q, k, v = random_qkv(20, 20)
    out, _ = echo_attention(torch.nn.Identity(), q, k, v, AttentionCall(rule=rule, backend="flash_attn"))
    real = rule.query.copy_BT >= 0
    assert_close(out[real], definition(q, k, v, rule.dense_BQK)[real])
    cache = BlockKVCache(1, 2, 12)
    cache.hide_padding(lengths, 4, torch.float64)
    seen = torch.ones(2, 1, 12, dtype=torch.bool)
    seen[0, :, :4] = False
    q = random_qkv(8, 8)[0]
    k, v = random_qkv(12, 12)[1:]
    got = attention.attend_groups(q, k, v, (QueryGroup(8, 12),), cache.padding, 0.25, "flash_attn")
    assert_close(got, definition(q, k, v, seen.expand(-1, 8, -1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("lengths", [[6, 6], [6, 3]], ids=["alike", "ragged"])
def test_flash_attention_decodes_on_a_gpu_like_sdpa(lengths):
    pytest.importorskip("flash_attn")
    cache = BlockKVCache(1, 2, 32)
    cache.hide_padding(torch.tensor(lengths, device="cuda"), 6, torch.bfloat16)
    q, k, v = (x.to("cuda", torch.bfloat16) for x in (random_qkv(16, 16)[0], *random_qkv(30, 30)[1:]))
    groups = (QueryGroup(8, 22), QueryGroup(8, 30))
    got, wanted = (attention.attend_groups(q, k, v, groups, cache.padding, 0.25, name) for name in ("flash_attn", "sdpa"))
    assert float((got - wanted).abs().max()) < 5e-2 * float(wanted.abs().max())  # bf16 keeps 8 bits


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
@pytest.mark.parametrize("option", ["train_attention", "decode_attention"])
def test_flash_attention_asked_for_but_absent_is_an_error_when_the_model_is_built(option):
    with pytest.raises(ValueError, match=r"'flash_attn' needs the flash-attn package .* pip install .*echo-pl\[cuda\]"):
        TinyBackbone(**{option: "flash_attn"}).build(SPECIAL, VOCABULARY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_flash_attention_on_a_gpu_is_sdpa(grid, mode):
    pytest.importorskip("flash_attn")
    rule = rad(make_batch([9, 12, 11], [10, 12, 7]).to("cuda"), grid, mode).rule
    q, k, v = (x[:1].repeat(3, 1, 1, 1).to("cuda", torch.bfloat16) for x in random_qkv(len(rule.query), len(rule.key)))
    real = rule.query.copy_BT.expand(3, -1) >= 0
    results = []
    for backend in ("flash_attn", "sdpa"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, _ = echo_attention(torch.nn.Identity(), *leaves, AttentionCall(rule=rule, backend=backend))
        gradients = torch.autograd.grad(out[real].float().square().sum(), leaves)
        results.append([out[real], *gradients])
    for got, wanted in zip(*results, strict=True):
        assert float((got - wanted).abs().max()) < 5e-2 * float(wanted.abs().max())  # bf16 keeps 8 bits
