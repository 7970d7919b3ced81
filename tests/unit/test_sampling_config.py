"""Unknown decoding settings are rejected with the value named."""

from __future__ import annotations

import pytest

from echo_pl.sampling import DecodeConfig, LoopStop, TokenChoice


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 0),
        ("max_response_tokens", 0),
        ("denoising_steps", 0),
        ("denoising_steps", 5),
        ("remasking", "high_confidence"),
        ("kv_cache", "paged"),
        ("confidence_threshold", 1.3),
        ("confidence_threshold", 0.0),
        ("entropy_bound", -0.1),
        ("grid", "relative"),
        ("context_attention", "diagonal"),
    ],
)
def test_decode_config_names_invalid_values(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*got '?{value}"):
        DecodeConfig(**{"block_size": 4, "max_response_tokens": 16, name: value})


def test_a_limit_that_is_no_multiple_of_the_block_size_names_the_block_size():
    with pytest.raises(ValueError, match=r"block_size 5 does not fit the grid: max_response_tokens .* got 16"):
        DecodeConfig(block_size=5, max_response_tokens=16)


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)])
def test_token_choice_names_invalid_values(name, value):
    with pytest.raises(ValueError, match=f"{name}.*got {value}"):
        TokenChoice(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("max_period", 0), ("min_repeats", 1), ("min_tokens", 1)])
def test_loop_stop_names_invalid_values(name, value):
    with pytest.raises(ValueError, match=f"{name}.*got.*{value}"):
        LoopStop(**{name: value})


def test_steps_default_to_one_token_per_forward():
    assert DecodeConfig(block_size=8, max_response_tokens=16).steps == 8
    assert DecodeConfig(block_size=8, max_response_tokens=16, denoising_steps=3).steps == 3
