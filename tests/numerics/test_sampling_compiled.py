"""Steps of fixed shapes against the ordinary ones: same tokens, same counts, same distributions to 1e-10 in float64.

Most of it runs the fixed-shape functions as they are; one test has torch's compiler take each of them as a whole graph (without
generating code), and one generates code where there is a C++ compiler.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from models import SPECIAL, decoding_vlm, make_batch, small_vlm
from pairwise import pairwise

from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.static_cache import StaticCache
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, LoopStop, TokenChoice, TrajectoryRecorder
from echo_pl.sampling import compiled as compiled_module
from echo_pl.structs import Batch, DecodeResult

pytestmark = pytest.mark.slow

L, LIMIT = 4, 20
RULES = ["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded", "random"]


@pytest.fixture(scope="module")
def vlm():
    return decoding_vlm().requires_grad_(False)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)


@pytest.fixture
def uncompiled(monkeypatch):
    """The functions that would be compiled, as they are."""
    monkeypatch.setattr(compiled_module, "compiled", lambda function: function)


def config(**changes) -> DecodeConfig:
    return DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "confidence_threshold": 0.5, **changes})


def assert_same(one: DecodeResult, other: DecodeResult) -> None:
    assert [t.tolist() for t in one.tokens] == [t.tolist() for t in other.tokens]
    for name in ("stopped_B", "looped_B", "nfe_B", "kv_write_nfe_B", "written_B"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("contexts", "layout", "rule", "kv_cache"),
    pairwise(
        ([9, 9, 9], [9, 12, 11, 14]),
        (("response", "causal"), ("absolute", "block_causal")),
        (("low_confidence_dynamic", 1), *((rule, 2) for rule in RULES)),
        ("vanilla", "fused"),
    ),
)
def test_fixed_shapes_decode_the_same(vlm, contexts, layout, rule, kv_cache):
    (grid, mode), (remasking, steps) = layout, rule
    batch = make_batch(contexts, [10, 7, 5, 6][: len(contexts)], seed=3, dtype=torch.float64)
    way = {"grid": grid, "context_attention": mode, "remasking": remasking, "denoising_steps": steps, "kv_cache": kv_cache}
    found = []
    for compile in (False, True):
        recorder = TrajectoryRecorder(distributions=True)
        result = BlockSampler(vlm, SPECIAL, config(compile=compile, **way)).generate(batch, recorder)
        found.append((result, recorder.trajectories(batch.keys)))
    (plain, plain_trajectories), (fixed, fixed_trajectories) = found
    assert_same(fixed, plain)
    for a, b in zip(fixed_trajectories, plain_trajectories, strict=True):
        assert torch.equal(a.commit_step_R, b.commit_step_R)
        assert float((a.target_RV - b.target_RV).abs().max()) < 1e-10


@pytest.mark.usefixtures("uncompiled")
def test_fixed_shapes_decode_the_same_token_by_token(vlm, batch):
    plain = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    fixed = AutoregressiveSampler(vlm, SPECIAL, LIMIT, compile=True).generate(batch)
    assert_same(fixed, plain)
    assert 0 < int(plain.stopped_B.sum()) < len(batch)


@pytest.mark.usefixtures("uncompiled")
def test_values_left_in_memory_do_not_matter(vlm, batch):
    """A step reads slots that nothing was written to."""
    sampler = BlockSampler(vlm, SPECIAL, config(compile=True))
    expected = sampler.generate(batch)
    start = sampler.prefill(batch)
    for buffer in (*start.cache._keys, *start.cache._values):
        buffer[:, :, start.width :] = torch.nan
    assert_same(sampler.generate(batch, start=start), expected)


def test_the_compiler_takes_every_step_as_one_graph(monkeypatch, vlm, batch):
    torch._dynamo.reset()
    made = {}

    def whole_graph(function):
        if function not in made:
            made[function] = torch.compile(function, fullgraph=True, backend="eager")
        return made[function]

    monkeypatch.setattr(compiled_module, "compiled", whole_graph)
    for way in ({"denoising_steps": 1}, {"kv_cache": "vanilla"}, {"remasking": "entropy_bounded"}):
        plain = BlockSampler(vlm, SPECIAL, config(**way)).generate(batch)
        assert_same(BlockSampler(vlm, SPECIAL, config(compile=True, **way)).generate(batch), plain)
    plain = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    assert_same(AutoregressiveSampler(vlm, SPECIAL, LIMIT, compile=True).generate(batch), plain)
    assert len(made) == 3
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_decodes_the_same():
    torch._dynamo.reset()
    vlm = small_vlm(sharp=20.0).requires_grad_(False)
    batch = make_batch([9, 9], [10, 7], seed=3)
    never_ends = replace(SPECIAL, eos=-1)
    options = {"denoising_steps": 1, "loop_stop": LoopStop(enabled=False), "max_response_tokens": 12}
    plain = BlockSampler(vlm, never_ends, config(**options)).generate(batch)
    assert_same(BlockSampler(vlm, never_ends, config(compile=True, **options)).generate(batch), plain)
    torch._dynamo.reset()


def test_decodes_that_cannot_be_compiled_raise(batch):
    with pytest.raises(ValueError, match=r"compile=true needs a cache .* got kv_cache=none"):
        config(compile=True, kv_cache="none")
    with pytest.raises(ValueError, match=r"greedy tokens .* temperature 0\.7"):
        config(compile=True, token_choice=TokenChoice(temperature=0.7))
    with pytest.raises(ValueError, match="needs greedy tokens"):
        AutoregressiveSampler(small_vlm(), SPECIAL, L, token_choice=TokenChoice(temperature=0.7), compile=True)
    in_training = decoding_vlm()
    with pytest.raises(ValueError, match=r"decode\.compile needs a frozen, dense model"):
        BlockSampler(in_training, SPECIAL, config(compile=True)).generate(batch)
    flex = decoding_vlm().requires_grad_(False)
    flex.decode_attention = "flex"
    with pytest.raises(ValueError, match=r"decode\.compile needs decode_attention sdpa or split, got 'flex'"):
        BlockSampler(flex, SPECIAL, config(compile=True)).generate(batch)


def test_a_static_cache_needs_a_prefill_and_room():
    with pytest.raises(ValueError, match="the cache is empty"):
        StaticCache(BlockKVCache(1, 1, 8), 4, 1, torch.float32)
    cache = BlockKVCache(1, 1, 12)
    cache.update(torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8), 0)
    cache.keep(4)
    static = StaticCache(cache, 4, 1, torch.float32)
    static.keep(4)
    with pytest.raises(ValueError, match="KV cache is full: 8 tokens and 4 more"):
        static.keep(4)
