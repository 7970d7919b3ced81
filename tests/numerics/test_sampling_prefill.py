"""One prefill, several decodings; and the library's generate as a yardstick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import SPECIAL, decoding_vlm, make_batch, small_vlm

from echo_pl.backbone.stock_generate import stock_generate
from echo_pl.bench.models import text_prompts
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, LoopStop
from echo_pl.sampling import compiled as compiled_module

L, LIMIT = 4, 20
NEVER_ENDS = replace(SPECIAL, eos=-1)
NO_LOOP_STOP = LoopStop(enabled=False)


def config(**changes) -> DecodeConfig:
    return DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "confidence_threshold": 0.5, **changes})


@pytest.fixture
def vlm():
    return decoding_vlm().requires_grad_(False)


@pytest.fixture
def batch():
    return make_batch([9, 9], [10, 7], seed=3, dtype=torch.float64)


def test_one_prefill_serves_any_number_of_decodings(vlm, batch):
    """The response of an earlier decode is behind the contexts, where the next one writes over it."""
    # Samples that end take their rows of the cache with them
    fused, vanilla = (BlockSampler(vlm, NEVER_ENDS, config(kv_cache=kv, loop_stop=NO_LOOP_STOP)) for kv in ("fused", "vanilla"))
    start = fused.prefill(batch)
    expected = fused.generate(batch)
    for sampler in (fused, vanilla, fused):
        result = sampler.generate(batch, start=start)
        assert [t.tolist() for t in result.tokens] == [t.tolist() for t in expected.tokens]
        assert result.prefill_seconds == start.seconds


def test_an_autoregressive_prefill_serves_twice(vlm, batch):
    sampler = AutoregressiveSampler(vlm, NEVER_ENDS, LIMIT, loop_stop=LoopStop(enabled=False))
    start = sampler.prefill(batch)
    expected = [t.tolist() for t in sampler.generate(batch).tokens]
    for _ in range(2):
        assert [t.tolist() for t in sampler.generate(batch, start=start).tokens] == expected


@pytest.mark.parametrize("contexts", [[9, 9], [9, 12]], ids=["alike", "ragged"])
@pytest.mark.parametrize("compile", [False, True])
def test_one_prefill_serves_every_block_size(monkeypatch, vlm, contexts, compile):
    monkeypatch.setattr(compiled_module, "compiled", lambda function: function)
    batch = make_batch(contexts, [10, 7], seed=3, dtype=torch.float64)
    options = {"loop_stop": NO_LOOP_STOP, "max_response_tokens": 16, "denoising_steps": 2}
    start = BlockSampler(vlm, NEVER_ENDS, config(**options, block_size=8)).prefill(batch)
    for size in (2, 8, 4, 2):
        for kv_cache in ("fused", "vanilla"):
            sampler = BlockSampler(vlm, NEVER_ENDS, config(**options, block_size=size, kv_cache=kv_cache, compile=compile))
            shared = [t.tolist() for t in sampler.generate(batch, start=start).tokens]
            assert shared == [t.tolist() for t in sampler.generate(batch).tokens]


def test_a_prefill_of_another_layout_raises(vlm, batch):
    way = {"grid": "absolute", "context_attention": "block_causal"}
    start = BlockSampler(vlm, SPECIAL, config(**way)).prefill(batch)
    for other in (config(), config(**way, block_size=2), config(grid="absolute")):
        with pytest.raises(
            ValueError, match=r"this prefill has contexts of 8 tokens, block_causal at block size 4; the decode needs"
        ):
            BlockSampler(vlm, SPECIAL, other).generate(batch, start=start)
    with pytest.raises(ValueError, match="kv_cache=none decodes without a prefill"):
        BlockSampler(vlm, SPECIAL, config(kv_cache="none")).generate(batch, start=start)


def test_a_prefill_without_room_or_samples_raises(vlm, batch):
    sampler = BlockSampler(vlm, SPECIAL, config())
    small = BlockSampler(vlm, SPECIAL, config(max_response_tokens=L)).prefill(batch)
    with pytest.raises(ValueError, match=r"capacity for 16 tokens after its context of 9, the decode needs 32"):
        sampler.generate(batch, start=small)
    start = sampler.prefill(batch)
    start.cache.keep_rows(torch.tensor([0]))
    with pytest.raises(ValueError, match="samples have left this prefill's cache in an earlier decode"):
        sampler.generate(batch, start=start)
    with pytest.raises(ValueError, match="no logits after its contexts"):
        AutoregressiveSampler(vlm, SPECIAL, L).generate(batch, start=sampler.prefill(batch))


def test_a_context_longer_than_the_model_s_positions_raises(vlm, batch):
    vlm.network.model.language_model.config.max_position_embeddings = 40
    BlockSampler(vlm, SPECIAL, config(max_response_tokens=L)).generate(batch)
    with pytest.raises(ValueError, match=r"context of 9 tokens and 32 for .* are 41, the model has 40 positions"):
        BlockSampler(vlm, SPECIAL, config()).generate(batch)
    with pytest.raises(ValueError, match=r"context of 9 tokens and 32 for .* are 41, the model has 40 positions"):
        AutoregressiveSampler(vlm, SPECIAL, 32).generate(batch)


def test_the_library_s_generate_writes_what_our_decoder_writes():
    vlm = small_vlm(sharp=20.0).requires_grad_(False)
    batch = text_prompts(2, 9, 90, torch.device("cpu"))
    ours = AutoregressiveSampler(vlm, NEVER_ENDS, 12, loop_stop=NO_LOOP_STOP).generate(batch)
    before = AutoregressiveSampler(vlm, NEVER_ENDS, 12).generate(make_batch([9], [3])).tokens[0]
    theirs, prefill_seconds, decode_seconds = stock_generate(vlm, batch, 12, suppress=True)
    assert theirs.tolist() == [t.tolist() for t in ours.tokens]
    assert min(prefill_seconds, decode_seconds) > 0
    after = AutoregressiveSampler(vlm, NEVER_ENDS, 12).generate(make_batch([9], [3])).tokens[0]
    assert torch.equal(before, after), "our attention is back in its place"
    with pytest.raises(ValueError, match="contexts of one length"):
        stock_generate(vlm, make_batch([9, 7], [3, 3]), 4)
