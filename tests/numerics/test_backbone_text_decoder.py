"""The language model in one piece against the stock class, step by step over the same cache.

Tolerances. float64 with norms in float64: 1e-10. float32: 1e-5 of the largest value. bfloat16: 5e-2 of it, ten roundings of 2^-8;
the stock norm rounds once more than ours.
"""

from __future__ import annotations

import copy

import pytest
import torch
from models import SPECIAL, VOCABULARY, exact_norms, make_batch, small_vlm
from torch import Tensor

from echo_pl.backbone import attention
from echo_pl.backbone.attention import QueryGroup, attend_groups
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.matrix import Matrix, PackedMatrix
from echo_pl.backbone.text_decoder import TextDecoder
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import CLEAN, FIRST_NOISY, AttentionRule, concatenate, context_coords, response_coords
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}
L = 4


def made_vlm(dtype: torch.dtype) -> VLM:
    vlm = small_vlm(dtype).requires_grad_(False)
    return exact_norms(vlm) if dtype == torch.float64 else vlm


@torch.no_grad()
def steps(vlm: VLM, contexts: list[int]) -> list[Tensor]:
    """Logits of a block step, a fused step, one token, a write and the part of a block after it, and a step of two samples."""
    batch = make_batch(contexts, [5] * len(contexts), dtype=vlm.dtype)
    B, P = batch.context_ids_BP.shape
    cache = BlockKVCache(vlm.layers, B, P + 6 * L)
    positions, behind_B = vlm.context_positions(batch.context_ids_BP, batch.context_lengths_B, batch.image_grid_thw)
    coords = context_coords(batch.context_lengths_B, P, L)
    vlm(
        batch.context_ids_BP,
        positions,
        AttentionRule(query=coords, key=coords, context_width=P),
        images=batch.images,
        cache=cache,
        select=0,
    )
    cache.keep(P)
    cache.hide_padding(batch.context_lengths_B, P, vlm.dtype)
    generator = torch.Generator().manual_seed(1)

    def words(rows: int, tokens: int) -> Tensor:
        return torch.randint(0, 90, (rows, tokens), generator=generator)

    def prefix(*ends: int) -> tuple[QueryGroup, ...]:
        return tuple(QueryGroup(L, cache.length + end) for end in ends)

    out = [vlm.decode_step(words(B, L), behind_B, prefix(L), cache, L)]
    out.append(vlm.decode_step(words(B, 2 * L), behind_B, prefix(L, 2 * L), cache, L))
    cache.keep(L)
    out.append(vlm.decode_step(words(B, 1), behind_B + L, (QueryGroup(1, cache.length + 1),), cache, 1))
    written = vlm.decode_step(words(B, L), behind_B + L, prefix(L), cache, 0)
    assert written.shape[:2] == (B, 0)  # the next step sees what it wrote
    cache.keep(L)
    out.append(vlm.decode_step(words(B, 2 * L), behind_B + L, prefix(L, 2 * L), cache, L + 1))
    rows = torch.tensor([0, B - 1])
    cache.keep_rows(rows)
    out.append(vlm.decode_step(words(2, 2 * L), behind_B[rows] + L, prefix(L, 2 * L), cache, 2 * L))
    return out


@pytest.mark.parametrize("contexts", [[9, 9, 9], [9, 14, 11, 10]], ids=["alike", "ragged"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_in_one_piece_is_the_stock_class(dtype, contexts):
    vlm = made_vlm(dtype)
    stock = copy.deepcopy(vlm)
    stock.text_decoder = lambda: None
    for got, expected in zip(steps(vlm, contexts), steps(stock, contexts), strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype == dtype
        assert float((got - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())
    assert vlm.text_decoder() is not None


@pytest.mark.parametrize("lengths", [[6, 6], [6, 3]], ids=["alike", "ragged"])
def test_groups_are_what_the_rule_comes_to_behind_a_cache(lengths):
    """Context, two finished blocks, a block being written and one being denoised: the fused step."""
    generator = torch.Generator().manual_seed(0)
    P, H, G, D = 6, 4, 2, 16
    context = context_coords(torch.tensor(lengths), P, L)
    finished = response_coords(CLEAN, 0, 2 * L, L, torch.device("cpu"))
    query = concatenate(
        response_coords(CLEAN, 2 * L, L, L, torch.device("cpu")), response_coords(FIRST_NOISY, 3 * L, L, L, torch.device("cpu"))
    )
    K = P + 4 * L
    q, k, v = (torch.randn(2, heads, n, D, generator=generator).double() for heads, n in ((H, 2 * L), (G, K), (G, K)))
    mask = AttentionRule(query=query, key=concatenate(context, finished, query)).dense_BQK[:, None]
    repeated = [x.repeat_interleave(H // G, 1) for x in (k, v)]
    scores = (q @ repeated[0].transpose(2, 3) * 0.3).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ repeated[1]).transpose(1, 2)

    cache = BlockKVCache(1, 2, K + 5)
    cache.hide_padding(torch.tensor(lengths), P, torch.float64)
    got = attend_groups(q, k, v, (QueryGroup(L, K - L), QueryGroup(L, K)), cache.padding, 0.3)
    assert float((got - expected).abs().max()) < 1e-12


def test_the_joined_matrices_are_the_model_s_own_memory():
    vlm = made_vlm(torch.float32)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    decoder = vlm.text_decoder()
    assert vlm.text_decoder() is decoder
    for name, tensor in vlm.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    first = steps(vlm, [9, 9])
    vlm.load_state_dict({name: 1.5 * tensor for name, tensor in before.items()})
    assert vlm.text_decoder() is decoder
    changed = steps(vlm, [9, 9])
    fresh = made_vlm(torch.float32)
    fresh.load_state_dict({name: 1.5 * tensor for name, tensor in before.items()})
    for one, other, old in zip(changed, steps(fresh, [9, 9]), first, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, old)


@pytest.mark.parametrize("contexts", [[9, 9], [9, 5]], ids=["alike", "ragged"])
def test_packed_weights_give_the_same_logits(contexts):
    """Up to the places where a bfloat16 sum is rounded: a residual is added before or after."""
    plain, packed = made_vlm(torch.bfloat16), made_vlm(torch.bfloat16)
    packed.pack_weights = True
    for got, expected in zip(steps(packed, contexts), steps(plain, contexts), strict=True):
        assert got.dtype == torch.bfloat16
        assert float((got - expected).abs().max()) <= TOLERANCE[torch.bfloat16] * float(expected.abs().max())
    decoder = packed.text_decoder()
    assert decoder.packed_matrices == 4 * packed.layers + 1


def test_a_packed_product_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    weight, x, residual, bias = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((48, 64), (5, 64), (5, 48), (48,))
    )
    plain, packed = Matrix(weight), PackedMatrix(weight)
    exact = x.double() @ weight.double().T
    for got, expected in (
        (packed.matmul(x), exact),
        (packed.matmul(x, bias), exact + bias.double()),
        (packed.matmul_add(residual, x), exact + residual.double()),
        (plain.matmul_add(residual, x), exact + residual.double()),
    ):
        assert float((got - expected).abs().max()) <= 2**-8 * float(expected.abs().max())
    assert torch.equal(packed.matmul(x), plain.matmul(x))


def test_packed_weights_follow_what_is_loaded():
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = True
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    decoder, first = vlm.text_decoder(), steps(vlm, [9, 9])
    assert vlm.text_decoder() is decoder
    vlm.load_state_dict({name: 1.5 * tensor for name, tensor in before.items()})
    assert vlm.text_decoder() is not decoder
    changed = steps(vlm, [9, 9])
    fresh = made_vlm(torch.bfloat16)
    fresh.pack_weights = True
    fresh.load_state_dict({name: 1.5 * tensor for name, tensor in before.items()})
    for one, other, old in zip(changed, steps(fresh, [9, 9]), first, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, old)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"])
def test_every_packed_weight_is_watched(name):
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = True
    decoder = vlm.text_decoder()
    assert vlm.text_decoder() is decoder
    weight = next(
        p for full, p in reversed(list(vlm.named_parameters())) if full.endswith(f"{name}.weight") and "visual" not in full
    )
    with torch.no_grad():
        weight[0] += 1.0
    assert vlm.text_decoder() is not decoder


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_a_replaced_parameter_is_noticed(pack):
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = pack
    decoder = vlm.text_decoder()
    down = vlm.network.model.language_model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(torch.zeros_like(down.weight), requires_grad=False)
    assert vlm.text_decoder() is not decoder


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_a_decoder_made_in_inference_mode_leaves_the_model_as_it_was(pack):
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = pack
    with torch.inference_mode():
        decoder = vlm.text_decoder()
        assert vlm.text_decoder() is decoder
    vlm.requires_grad_(True)
    assert not any(p.is_inference() for p in vlm.parameters())


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_a_model_that_has_decoded_can_be_copied(pack):
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = pack
    expected = steps(vlm, [9, 9])
    other = copy.deepcopy(vlm)
    assert vlm.text_decoder() is not other.text_decoder()
    assert all(torch.equal(one, two) for one, two in zip(steps(other, [9, 9]), expected, strict=True))


@pytest.mark.parametrize("kv_cache", ["vanilla", "fused"])
def test_packed_weights_decode_the_same_tokens(kv_cache):
    plain, packed = made_vlm(torch.bfloat16), made_vlm(torch.bfloat16)
    packed.pack_weights = True
    batch = make_batch([9, 12, 11], [4, 4, 4], dtype=torch.bfloat16)
    config = DecodeConfig(block_size=L, max_response_tokens=4 * L, denoising_steps=1, kv_cache=kv_cache)
    for sampler in (lambda vlm: BlockSampler(vlm, SPECIAL, config), lambda vlm: AutoregressiveSampler(vlm, SPECIAL, 12)):
        one, other = (sampler(vlm).generate(batch) for vlm in (plain, packed))
        assert [tokens.tolist() for tokens in one.tokens] == [tokens.tolist() for tokens in other.tokens]


def test_unused_packed_weights_are_reported():
    vlm = made_vlm(torch.bfloat16)
    vlm.pack_weights = True
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="pack_weights=true is not used under autocast"):
        assert vlm.text_decoder() is None


def test_weights_that_cannot_be_packed_are_an_error_and_not_another_path():
    vlm = made_vlm(torch.float32)
    vlm.pack_weights = True
    with pytest.raises(ValueError, match="pack_weights=true is for bfloat16 weights on a CPU: these are float32 on cpu"):
        steps(vlm, [9, 9])
    vlm.bfloat16().requires_grad_(True)
    assert vlm.text_decoder() is None, "a model in training decodes as the stock class, packing is for later"


def test_a_converted_model_is_joined_again():
    vlm = made_vlm(torch.float32)
    decoder = vlm.text_decoder()
    vlm.double()
    assert vlm.text_decoder() is not decoder
    assert steps(vlm, [9, 9])[0].dtype == torch.float64


def test_a_model_in_training_or_under_autocast_stays_the_stock_class():
    vlm = small_vlm()
    assert vlm.text_decoder() is None
    with pytest.raises(ValueError, match=r"cannot be decoded in one piece: .* is in training"):
        TextDecoder(vlm.network)
    vlm.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert vlm.text_decoder() is None
    assert vlm.text_decoder() is not None


def layer(vlm: VLM) -> torch.nn.Module:
    return vlm.network.model.language_model.layers[1]


def adapted(vlm: VLM) -> None:
    class Adapter(torch.nn.Linear):
        pass

    layer(vlm).mlp.up_proj = Adapter(64, 96, bias=False).requires_grad_(False)


def half_trained(vlm: VLM) -> None:
    layer(vlm).requires_grad_(True)


def quantized(vlm: VLM) -> None:
    weight = torch.zeros(96, 64, dtype=torch.int8)
    layer(vlm).mlp.up_proj.weight = torch.nn.Parameter(weight, requires_grad=False)


def other_activation(vlm: VLM) -> None:
    vlm.network.model.language_model.config.hidden_act = "gelu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapted, "mlp.up_proj is a Adapter, not a plain linear layer"),
        (half_trained, "is in training"),
        (quantized, "is a Tensor of torch.int8, not a dense one of floats"),
        (other_activation, "activation is gelu"),
    ],
)
def test_what_cannot_be_joined_stays_the_stock_class(change, reason):
    vlm = made_vlm(torch.float32)
    change(vlm)
    assert vlm.text_decoder() is None
    with pytest.raises(ValueError, match=reason):
        TextDecoder(vlm.network)


def test_added_tokens_are_seen():
    vlm = made_vlm(torch.float32)
    assert vlm.text_decoder() is not None
    vlm.network.resize_token_embeddings(VOCABULARY + 8)
    vlm.requires_grad_(False)
    stock = copy.deepcopy(vlm)
    stock.text_decoder = lambda: None
    for got, expected in zip(steps(vlm, [9, 9]), steps(stock, [9, 9]), strict=True):
        assert got.shape[-1] == VOCABULARY + 8
        assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_kernels_may_lay_their_results_out_as_they_like(monkeypatch):
    """The CUDA ones put heads behind positions in memory."""
    original = attention.F.scaled_dot_product_attention

    def heads_last(*args, **kwargs):
        return original(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    vlm = made_vlm(torch.float32)
    expected = steps(vlm, [9, 11])
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", heads_last)
    for one, other in zip(steps(vlm, [9, 11]), expected, strict=True):
        assert torch.equal(one, other)


def test_the_head_is_computed_where_it_is_asked_for():
    vlm = made_vlm(torch.float32)
    rows = []
    vlm.network.lm_head.register_forward_hook(lambda _, inputs, out: rows.append(inputs[0].shape[:2]))
    logits = steps(vlm, [9, 11])
    assert [tuple(r) for r in rows[1:]] == [(2, L), (2, L), (2, 1), (2, 0), (2, L + 1), (2, 2 * L)]
    assert logits[0].shape == (2, L, VOCABULARY)
    assert max(SPECIAL.never_sampled) < VOCABULARY
