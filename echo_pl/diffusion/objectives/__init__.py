"""Distillation objectives over pseudo-labels (METHOD.md 3, phase 2): one file each, one protocol for the stage to wire.

Targets of a configuration are ``echo_pl.diffusion.objectives.<Class>``.
"""

from echo_pl.diffusion.objectives.certainty import CertaintyForcing
from echo_pl.diffusion.objectives.conditional import DirectConditional
from echo_pl.diffusion.objectives.discriminative import Discriminative
from echo_pl.diffusion.objectives.nested import NestedConsistency
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows
from echo_pl.diffusion.objectives.sequence_level import SequenceLevel
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
