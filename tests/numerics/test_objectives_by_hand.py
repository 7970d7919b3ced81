"""Every objective on probabilities that are simple fractions: the losses of the method worked out with a pencil, as logarithms.

Nothing is computed here but what stands in the comments; tests/numerics/test_objectives.py has loops over random numbers.
"""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from torch import Tensor

from echo_pl.diffusion.losses import DistillationConfig
from echo_pl.diffusion.objectives import (
    CertaintyForcing,
    DirectConditional,
    Discriminative,
    NestedConsistency,
    PseudoLabels,
    Rows,
    SequenceLevel,
    TrajectoryOrder,
)

A, B, EOS = 0, 1, 2
STUDENT = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 4, 1 / 2], [1 / 8, 3 / 4, 1 / 8]]
TOKENS = [A, A, EOS, B]
"""The student's argmax is right at the first, the third and the fourth position."""
TARGET = [[1.0, 0.0, 0.0], [1 / 2, 1 / 2, 0.0], [1 / 4, 1 / 4, 1 / 2], [0.0, 1.0, 0.0]]


def logits(probabilities: list[list[float]]) -> Tensor:
    """Up to a constant for each row, which must make no difference."""
    return torch.tensor(probabilities).log() + torch.arange(len(probabilities))[:, None]


def rows(**changes) -> Rows:
    return replace(
        Rows(
            logits_MV=logits(STUDENT),
            token_M=torch.tensor(TOKENS),
            commit_step_M=torch.tensor([1, 2, 1, 4]),
            sample_M=torch.tensor([0, 0, 1, 1]),
            copy_M=torch.tensor([0, 0, 1, 1]),
            block_M=torch.tensor([0, 1, 0, 0]),
            eos=EOS,
            target_MV=torch.tensor(TARGET),
        ),
        **changes,
    )


# KL(P || p): 1 log(1 / .5); .5 log(.5 / .25) + .5 log(.5 / .5); 0; log(1 / .75).
KL = [log(2), log(2) / 2, 0.0, log(4 / 3)]
# -log p(token): 1/2, 1/4, 1/2, 3/4.
CE = [log(2), log(4), log(2), log(4 / 3)]


def dcd(**options) -> float:
    return DirectConditional(config=DistillationConfig(**options)).loss(rows(), 0.0)[0].item()


def test_dcd():
    """Weights 1, 2, 1, 4; the one eos has probability 1/2."""
    weighted = (1 * KL[0] + 2 * KL[1] + 1 * KL[2] + 4 * KL[3]) / 8
    assert dcd() == pytest.approx(weighted + log(2), rel=1e-6)
    assert dcd(eos_weight=0.5) == pytest.approx(weighted + log(2) / 2, rel=1e-6)
    assert dcd(eos_weight=0.0, weight_norm="positions") == pytest.approx(2 * weighted, rel=1e-6)


def test_sdtt_is_without_weights_and_eos():
    assert dcd(step_weight="none", eos_weight=0.0) == pytest.approx(sum(KL) / 4, rel=1e-6)


def test_mixed_with_cross_entropy():
    """A quarter cross-entropy; with all of it, steps still weigh."""
    kl, ce = (sum(w * x for w, x in zip((1, 2, 1, 4), values, strict=True)) / 8 for values in (KL, CE))
    assert dcd(ce_share=0.25, eos_weight=0.0) == pytest.approx(0.75 * kl + 0.25 * ce, rel=1e-6)
    assert dcd(ce_share=1.0, eos_weight=0.0) == pytest.approx(ce, rel=1e-6)


def test_sharpened_targets():
    """At T = 1/2 the third target (1, 1, 2)/4 becomes (1, 1, 4)/6; halves and ones stay what they were."""
    third = 2 / 6 * log((1 / 6) / (1 / 4)) + 4 / 6 * log((4 / 6) / (1 / 2))
    found = dcd(target_temperature=0.5, step_weight="none", eos_weight=0.0)
    assert found == pytest.approx((KL[0] + KL[1] + third + KL[3]) / 4, rel=1e-6)


def test_reverse_kl():
    """KL(p || P) of targets without zeros: (1, 1, 2)/4 everywhere."""
    even = torch.tensor([[1 / 4, 1 / 4, 1 / 2]]).expand(4, 3)
    objective = DirectConditional(config=DistillationConfig(divergence="reverse_kl", step_weight="none", eos_weight=0.0))
    # 1/2 log 2 + 1/4 log 1 + 1/4 log 1/2, twice; 0; 1/8 log 1/2 + 3/4 log 3 + 1/8 log 1/4.
    expected = [log(2) / 4, log(2) / 4, 0.0, 3 / 4 * log(3) - 3 / 8 * log(2)]
    assert objective.loss(rows(target_MV=even), 0.0)[0].item() == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_ce():
    assert SequenceLevel().loss(rows(), 0.0)[0].item() == pytest.approx(sum(CE) / 4, rel=1e-6)


def halved(p: list[float]) -> float:
    """Entropy of softmax(z / 0.5), that is of the squares."""
    squares = [x * x / sum(y * y for y in p) for x in p]
    return -sum(x * log(x) for x in squares)


# (4, 1, 1)/6: log 6 - 4/6 log 4.
H_PEAKED = log(6) - 2 / 3 * log(4)
# (1, 36, 1)/38: log 38 - 36/38 log 36.
H_SURE = log(38) - 36 / 38 * log(36)


def test_dparallel():
    """Copy 0: positions 0 and 1, of which 0 is right; copy 1: positions 2 and 3, both right."""
    assert (halved(STUDENT[2]), halved(STUDENT[3])) == (pytest.approx(H_PEAKED), pytest.approx(H_SURE))
    ce = (CE[0] + CE[1]) / 2 + (CE[2] + CE[3]) / 2
    assert CertaintyForcing().loss(rows(), 0.0)[0].item() == pytest.approx(ce + 2 * (H_PEAKED + (H_PEAKED + H_SURE) / 2), rel=1e-6)


def test_d3llm():
    """The same copies; only the first has its entropy, and all is divided by four."""
    ce = (CE[0] + CE[1]) / 2 + (CE[2] + CE[3]) / 2
    assert TrajectoryOrder().loss(rows(), 0.0)[0].item() == pytest.approx((ce + 2 * H_PEAKED) / 4, rel=1e-6)


def test_dscd():
    """T = 2 takes roots: of the student (1/4, 1/2, 1/4) and of a teacher (1/4, 1/4, 1/2), at the second position alone."""
    teacher = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 4, 1 / 4, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]])
    given = rows(reference_logits_MV=teacher.log() - 3, reference_masked_M=torch.tensor([False, True, False, False]))
    # Roots (1, 1, sqrt 2) / (2 + sqrt 2): log of the ratio is 0, -log sqrt 2 and log sqrt 2.
    kl = (sqrt(2) - 1) / (2 + sqrt(2)) * log(sqrt(2))
    assert NestedConsistency().loss(given, 0.0)[0].item() == pytest.approx(0.7 * 4 * kl + 0.3 * sum(CE) / 4, rel=1e-6)


def test_dscd_over_all_that_the_student_sees_masked():
    """The teacher is the student but at the second position, so the mean is over four with three zeros."""
    teacher = torch.tensor([STUDENT[0], [1 / 4, 1 / 4, 1 / 2], STUDENT[2], STUDENT[3]])
    given = rows(reference_logits_MV=teacher.log(), reference_masked_M=torch.tensor([False, True, False, False]))
    kl = (sqrt(2) - 1) / (2 + sqrt(2)) * log(sqrt(2)) / 4
    found = NestedConsistency(kl_positions="student").loss(given, 0.0)[0].item()
    assert found == pytest.approx(0.7 * 4 * kl + 0.3 * sum(CE) / 4, rel=1e-5)


def test_ddo():
    """With b = 1 the sigmoids are ratios: sig(log r) = r / (1 + r)."""
    reference = torch.tensor([[1 / 8, 3 / 4, 1 / 8], [1 / 8, 3 / 4, 1 / 8], [1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 4, 1 / 2]])
    given = rows(reference_logits_MV=reference.log() + 1)
    # Sample 0, tokens A A: phi 1/2, 1/4; ref 1/8, 1/8: mean log-ratio (log 4 + log 2) / 2 = log sqrt 8.
    # Its fake tokens B B: phi 1/4, 1/2; ref 3/4, 3/4: (log 1/3 + log 2/3) / 2 = log (sqrt 2 / 3).
    # Sample 1, tokens EOS B: phi 1/2, 3/4; ref 1/2, 1/4: (0 + log 3) / 2 = log sqrt 3.
    # Its fake tokens EOS EOS: phi 1/2, 1/8; ref 1/2, 1/2: (0 - log 4) / 2 = log 1/2.
    real = [-log(r / (1 + r)) for r in (sqrt(8), sqrt(3))]
    fake = [-log(1 / (1 + r)) for r in (sqrt(2) / 3, 1 / 2)]
    expected = sum(real) / 2 + 0.5 * sum(fake) / 2 + 0.2 * sum(CE) / 4
    assert Discriminative(beta=1.0).loss(given, 0.0)[0].item() == pytest.approx(expected, rel=1e-6)
    # At b = 0.1, its default: sig(0.1 log r) = r^0.1 / (1 + r^0.1).
    real = [-log(r**0.1 / (1 + r**0.1)) for r in (sqrt(8), sqrt(3))]
    fake = [-log(1 / (1 + r**0.1)) for r in (sqrt(2) / 3, 1 / 2)]
    expected = sum(real) / 2 + 0.5 * sum(fake) / 2 + 0.2 * sum(CE) / 4
    assert Discriminative().loss(given, 0.0)[0].item() == pytest.approx(expected, rel=1e-6)


def one_block(steps: list[int]) -> PseudoLabels:
    return PseudoLabels(
        token_BR=torch.zeros(1, len(steps), dtype=torch.long),
        commit_step_BR=torch.tensor([steps]),
        supervised_BR=torch.tensor([steps]) > 0,
        block_size=len(steps),
    )


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(3)]


def test_d3llm_at_the_end_masks_the_last_four_fifths_of_the_teachers_commits():
    """r = .8 of five positions: four, those committed last; the complement is the one committed first."""
    masks = TrajectoryOrder().student_masks(one_block([3, 1, 5, 2, 4]), 1.0, seeded())
    assert masks.int().tolist() == [[[1, 0, 1, 1, 1], [0, 1, 0, 0, 0]]]


def test_what_the_student_wrote_is_no_target():
    """Commit step 0, a prefix: no mask reaches it but that of objectives that mask all, whose rows are the supervised ones."""
    labels = one_block([0, 0, 2, 1])
    for objective in (CertaintyForcing(), TrajectoryOrder(), NestedConsistency(), Discriminative()):
        assert not objective.student_masks(labels, 0.5, seeded())[..., :2].any()
