"""Distillation objectives over pseudo-labels behind one protocol, which stage 3 calls.

Targets of a configuration are ``echo_pl.diffusion.objectives.<Class>``.
"""

from echo_pl.diffusion.objectives.certainty import CertaintyForcing
from echo_pl.diffusion.objectives.discriminative import Discriminative
from echo_pl.diffusion.objectives.fully_masked import DirectConditional, SequenceLevel
from echo_pl.diffusion.objectives.nested import NestedConsistency
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows
from echo_pl.diffusion.objectives.trajectory_order import TrajectoryOrder

__all__ = [
    "CertaintyForcing",
    "DirectConditional",
    "Discriminative",
    "NestedConsistency",
    "Objective",
    "PseudoLabels",
    "Rows",
    "SequenceLevel",
    "TrajectoryOrder",
]
