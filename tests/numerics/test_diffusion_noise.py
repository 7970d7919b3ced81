"""The forward process: whose noise depends on what, and its statistics at a fixed seed.

Statistical bounds are four standard errors of the number of draws, so that a right implementation passes at nearly any seed.
"""

from __future__ import annotations

import math

import pytest
import torch
from models import SPECIAL, make_batch

from echo_pl.diffusion.noise import Noise, NoiseConfig, draw_noise, sample_generator
from echo_pl.diffusion.sequence import BlockLayout, block_context, block_response

L = 8


def everything(B: int, R: int) -> torch.Tensor:
    return torch.ones(B, R, dtype=torch.bool)


def keys_of(numbers) -> list[str]:
    return [f"study-{number}" for number in numbers]


def same(one: Noise, other: Noise) -> bool:
    return torch.equal(one.masked_BKR, other.masked_BKR) and torch.equal(one.t_BKR, other.t_BKR)


def rows(noise: Noise, which: list[int], R: int) -> Noise:
    return Noise(masked_BKR=noise.masked_BKR[which, :, :R], t_BKR=noise.t_BKR[which, :, :R])


@pytest.mark.parametrize("copies", [1, 3])
def test_noise_is_the_same_in_any_order_batch_and_padding(copies):
    config = NoiseConfig(seed=4, noise_copies=copies)
    together = draw_noise(config, keys_of(range(8)), 2, everything(8, 5 * L), L)
    shuffled = [5, 0, 7, 2]
    other = draw_noise(config, keys_of(shuffled), 2, everything(4, 9 * L), L)
    assert same(rows(other, [0, 1, 2, 3], 5 * L), rows(together, shuffled, 5 * L))
    short = draw_noise(config, keys_of([3]), 2, everything(1, 2 * L), L)
    assert same(short, rows(together, [3], 2 * L))


def test_two_ranks_draw_what_one_rank_draws():
    """The global batch of one rank, dealt to two: every sample keeps its noise, whatever its neighbours and their padding."""
    config = NoiseConfig(seed=0, noise_copies=2)
    lengths = [10, 37, 22, 16, 5, 40]
    batch = make_batch([9] * 6, lengths)
    layout = BlockLayout(block_size=L)

    def noise_of(rank_rows: list[int]) -> tuple[Noise, list[int]]:
        prompt = block_context(batch.context_ids_BP[rank_rows], batch.context_lengths_B[rank_rows], layout, SPECIAL.image)
        widest = max(lengths[row] for row in rank_rows)
        blocked = block_response(
            prompt, batch.response_ids_BR[rank_rows, :widest], batch.response_lengths_B[rank_rows], layout, SPECIAL
        )
        keys = [batch.keys[row] for row in rank_rows]
        return draw_noise(config, keys, 1, blocked.maskable_BR, L), [-(-lengths[row] // L) * L for row in rank_rows]

    whole, _ = noise_of(list(range(6)))
    for rank_rows in ([0, 2, 4], [1, 3, 5]):
        part, widths = noise_of(rank_rows)
        for place, (row, width) in enumerate(zip(rank_rows, widths, strict=True)):
            assert same(rows(part, [place], width), rows(whole, [row], width))


def test_the_global_random_state_plays_no_part():
    torch.manual_seed(1)
    one = draw_noise(NoiseConfig(), keys_of([0]), 0, everything(1, L), L)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    other = draw_noise(NoiseConfig(), keys_of([0]), 0, everything(1, L), L)
    assert same(one, other)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_key_and_epoch_each_change_it():
    def draw(seed: int, key: str, epoch: int) -> Noise:
        return draw_noise(NoiseConfig(seed=seed), [key], epoch, everything(1, 4 * L), L)

    base = draw(0, "a", 0)
    assert same(base, draw(0, "a", 0))
    for other in (draw(1, "a", 0), draw(0, "b", 0), draw(0, "a", 1), draw(0, "a", -1)):
        assert not torch.equal(base.t_BKR, other.t_BKR)
    # Keys and numbers must not run into each other: (1, "1") is not (11, "").
    assert sample_generator(1, "1", 0).initial_seed() != sample_generator(11, "", 0).initial_seed()


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 1.0])
def test_the_share_that_is_masked_is_t_with_one_at_the_least(t):
    B, N = 200, 10
    noise = draw_noise(NoiseConfig(t_min=t, t_max=t), keys_of(range(B)), 0, everything(B, N * L), L)
    blocks = noise.masked_BKR.view(B, N, L).sum(-1)
    assert int(blocks.min()) >= 1
    # A block would have none with probability (1 - t)^L; then one is masked in any case.
    expected = t + (1 - t) ** L / L
    error = math.sqrt(t * (1 - t) / (B * N * L)) + 1e-9
    assert abs(float(noise.masked_BKR.float().mean()) - expected) < 4 * error
    places = noise.masked_BKR.view(B * N, L).float().mean(0)
    assert float((places - expected).abs().max()) < 4 * error * math.sqrt(L), "no place in a block is preferred"


def test_at_least_one_is_masked_per_block_at_any_t():
    noise = draw_noise(NoiseConfig(t_min=1e-6, t_max=1e-6), keys_of(range(50)), 0, everything(50, 6 * L), L)
    assert noise.masked_BKR.view(-1, L).sum(-1).tolist() == [1] * 300


def test_t_is_uniform_and_does_not_depend_on_the_block_s_place():
    B, N = 600, 12
    config = NoiseConfig(t_min=0.2, t_max=0.9)
    t_BN = draw_noise(config, keys_of(range(B)), 0, everything(B, N * L), L).t_BKR.view(B, N, L)[..., 0]
    assert float(t_BN.min()) >= 0.2
    assert float(t_BN.max()) <= 0.9
    deviation = 0.7 / math.sqrt(12)
    assert float((t_BN.mean(0) - 0.55).abs().max()) < 4 * deviation / math.sqrt(B)
    assert float((t_BN.std(0) - deviation).abs().max()) < 4 * deviation / math.sqrt(B)
    correlation = torch.corrcoef(t_BN.T) - torch.eye(N)
    assert float(correlation.abs().max()) < 4 / math.sqrt(B), "blocks draw independently"


def test_t_belongs_to_a_block_and_masking_follows_it():
    noise = draw_noise(NoiseConfig(), keys_of(range(300)), 0, everything(300, 4 * L), L)
    t = noise.t_BKR.view(-1, L)
    assert bool((t == t[:, :1]).all())
    low, high = t[:, 0] < 0.3, t[:, 0] > 0.8
    masked = noise.masked_BKR.view(-1, L).float().mean(-1)
    assert float(masked[low].mean()) < 0.35
    assert float(masked[high].mean()) > 0.8


def test_copies_are_independent():
    B, K, N = 500, 3, 6
    noise = draw_noise(NoiseConfig(noise_copies=K), keys_of(range(B)), 0, everything(B, N * L), L)
    t_KX = noise.t_BKR.view(B, K, N, L)[..., 0].transpose(0, 1).reshape(K, -1)
    assert float((torch.corrcoef(t_KX) - torch.eye(K)).abs().max()) < 4 / math.sqrt(B * N)
    # And the masks at given t: what one copy masks beyond its t says nothing of the other.
    rest_KX = (noise.masked_BKR.float() - noise.t_BKR).transpose(0, 1).reshape(K, -1)
    assert float((torch.corrcoef(rest_KX) - torch.eye(K)).abs().max()) < 4 / math.sqrt(B * N * L)


def test_the_context_tail_is_never_masked():
    maskable = everything(20, 3 * L)
    maskable[:, :3] = False
    noise = draw_noise(NoiseConfig(t_min=1.0), keys_of(range(20)), 0, maskable, L)
    assert torch.equal(noise.masked_BKR[:, 0], maskable)
    rare = draw_noise(NoiseConfig(t_min=1e-6, t_max=1e-6), keys_of(range(20)), 0, maskable, L)
    assert not bool(rare.masked_BKR[:, 0, :3].any())
    assert rare.masked_BKR.view(-1, L).sum(-1).tolist() == [1] * 60


@pytest.mark.parametrize("changes", [{"t_min": 0.0}, {"t_min": 0.5, "t_max": 0.4}, {"t_max": 1.5}, {"noise_copies": 0}])
def test_impossible_schedules_are_rejected(changes):
    with pytest.raises(ValueError, match=str(next(iter(changes)))):
        NoiseConfig(**changes)
