"""A tilted teacher decodes from p q^w / Z, where q is the student's one-step prediction of a block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from long_way import LIMIT, TAU, L, LongWay
from models import SPECIAL, TEXT, decoding_vlm, exact_norms, make_batch, rows_of, small_vlm, stock_network
from stage_parts import dcd
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.collect import store_identity
from echo_pl.sampling.tilted import Tilt
from echo_pl.sampling.trajectory_store import StoreIdentity
from echo_pl.structs import Batch, Trajectory

WEIGHT = 0.7


@pytest.fixture(scope="module")
def teacher() -> VLM:
    return decoding_vlm().requires_grad_(False)


@pytest.fixture(scope="module")
def student() -> VLM:
    return exact_norms(small_vlm(torch.float64, seed=11, sharp=12.0)).requires_grad_(False)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)


class TiltedLongWay(LongWay):
    """Algorithm 1, phase 1, with p q^w / Z in the place of p."""

    def __init__(self, teacher: VLM, student: VLM, weight: float, *rest) -> None:
        super().__init__(stock_network(teacher), *rest)
        self.student, self.weight = LongWay(stock_network(student), *rest), weight
        self.q: tuple[int, Tensor] = (-1, torch.empty(0))

    def distributions(self, finished: list[int], canvas: list[int]) -> Tensor:
        if self.q[0] != len(finished):  # the first step of a block: nothing in it is committed
            self.q = (len(finished), self.student.distributions(finished, canvas))
        tilted = super().distributions(finished, canvas) * self.q[1] ** self.weight
        return tilted / tilted.sum(-1, keepdim=True)


def decode(teacher: VLM, tilt: Tilt | None, batch: Batch, **changes) -> list[Trajectory]:
    config = DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "confidence_threshold": TAU, **changes})
    recorder = TrajectoryRecorder(distributions=True)
    BlockSampler(teacher, SPECIAL, config, tilt).generate(batch, recorder)
    return recorder.trajectories(batch.keys)


@pytest.mark.parametrize("kv_cache", ["vanilla", "fused"])
@pytest.mark.parametrize(("grid", "mode"), [("response", "causal"), ("absolute", "block_causal")])
def test_the_distributions_are_those_of_the_long_way(teacher, student, batch, grid, mode, kv_cache):
    tilt = Tilt(student=student, weight=WEIGHT)
    trajectories = decode(teacher, tilt, batch, grid=grid, context_attention=mode, kv_cache=kv_cache)
    plain = decode(teacher, None, batch, grid=grid, context_attention=mode, kv_cache=kv_cache)
    rounds = set()
    for row, trajectory in enumerate(trajectories):
        long_way = TiltedLongWay(teacher, student, WEIGHT, rows_of(batch, row), grid, mode)
        long_way.run()
        assert trajectory.token_R.tolist() == long_way.token
        assert trajectory.commit_step_R.tolist() == long_way.step
        assert float((trajectory.target_RV - torch.stack(long_way.target)).abs().max()) < 1e-10
        rounds |= set(long_way.step)
    assert len(rounds) > 2, "the example must take several steps per block"
    assert any(one.token_R.tolist() != other.token_R.tolist() for one, other in zip(trajectories, plain, strict=True))


def test_a_large_weight_gives_the_student_s_own_decode(teacher, student, batch):
    """As w grows, p q^w / Z is all on the student's own token, at every position."""
    tilted = decode(teacher, Tilt(student=student, weight=1e6), batch)
    alone = decode(student, None, batch, denoising_steps=1)
    for one, other in zip(tilted, alone, strict=True):
        assert one.token_R.tolist() == other.token_R.tolist()


def test_nfe_is_the_teacher_s(teacher, batch):
    """With the teacher's own marginals as the student and little weight, tokens and counts are those of the teacher alone."""
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU)
    plain = BlockSampler(teacher, SPECIAL, config).generate(batch)
    tilted = BlockSampler(teacher, SPECIAL, config, Tilt(student=teacher, weight=1e-12)).generate(batch)
    assert [t.tolist() for t in tilted.tokens] == [t.tolist() for t in plain.tokens]
    assert tilted.nfe_B.tolist() == plain.nfe_B.tolist()


def test_stage_3_is_tilted_towards_the_student_in_training(teacher, student, batch):
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU)
    module = dcd(TEXT, Path("teacher.ckpt"), decode=config, tilt=WEIGHT)
    module.vlm = student
    object.__setattr__(module, "teacher", teacher)
    expected = decode(teacher, Tilt(student=student, weight=WEIGHT), batch)
    found = module.collect(batch)
    assert any(trajectory is not None for trajectory in found)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            assert torch.equal(one.token_R, other.token_R)
            assert torch.equal(one.target_RV, other.target_RV)
    own = decode(teacher, None, batch)
    for one, other in zip(module.decode_teacher(batch), own, strict=True):
        assert one is None or torch.equal(one.token_R, other.token_R), "the gap is measured on the teacher's own"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_invalid_weights_raise(student, weight):
    with pytest.raises(ValueError, match="tilt"):
        Tilt(student=student, weight=weight)


@pytest.mark.parametrize("changes", [{"kv_cache": "none"}, {"compile": True}])
def test_decodes_that_cannot_be_tilted_raise(teacher, student, batch, changes):
    with pytest.raises(ValueError, match="a tilted decode runs eagerly and with a cache"):
        decode(teacher, Tilt(student=student, weight=1.0), batch, **changes)


def test_a_collection_records_the_tilt_of_its_teacher():
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT)
    leant = store_identity(config, "t", "d", True, tilt=1.0, tilt_student="s")
    assert (leant.tilt, leant.tilt_student) == (1.0, "s")
    assert store_identity(config, "t", "d", True) == StoreIdentity(**{**vars(leant), "tilt": 0.0, "tilt_student": ""})
