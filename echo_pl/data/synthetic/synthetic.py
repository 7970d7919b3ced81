"""The procedural corpus: latent findings, the picture drawn from them and the report written about them.

Study ``i`` of a split depends on (seed, split, i) alone, so that any part of the corpus can be made on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from PIL import Image

from echo_pl.data.store.study import Study, Version
from echo_pl.data.synthetic.chest_findings import CHEST_FINDINGS
from echo_pl.data.synthetic.drawing import DRAWING_VERSION, draw_chest
from echo_pl.data.synthetic.grammar import Observation, ReportGrammar, Wording
from echo_pl.data.synthetic.grammar_judge import GrammarJudge

SPLIT_CODES: Final[Mapping[str, int]] = {"train": 0, "val": 1, "test": 2}
RATES: Final[Mapping[str, float]] = {"cardiomegaly": 0.18, "effusion_left": 0.14, "effusion_right": 0.14}
"""Rates of findings; the others have :data:`DEFAULT_RATE`. A study has two on average, and one in seven has none."""
DEFAULT_RATE: Final = 0.095


class SyntheticCorpus:
    """Makes synthetic studies.

    Args:
        seed: Seed of the whole corpus.
        image_size: Width and height of the images in pixels.
        wording: ``peaked`` or ``even`` shares of the wordings.
        max_findings: Most findings in one study, which bounds the length of its report.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "synthetic"

    def __init__(self, *, seed: int = 0, image_size: int = 64, wording: Wording = "peaked", max_findings: int = 3) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels for the findings to be visible, got {image_size}")
        self.seed = seed
        self.image_size = image_size
        self.grammar = ReportGrammar(CHEST_FINDINGS, wording=wording, max_findings=max_findings)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every finding label, in the order in which a report names them."""
        return tuple(self.grammar.findings)

    @property
    def options(self) -> dict[str, str | int]:
        """Everything that decides what the studies are."""
        return {
            "seed": self.seed,
            "image_size": self.image_size,
            "wording": self.grammar.wording,
            "max_findings": self.grammar.max_findings,
            "grammar": self.grammar.digest,
            "drawing": DRAWING_VERSION,
            "rates": repr((sorted(RATES.items()), DEFAULT_RATE)),
        }

    def study(self, split: str, index: int) -> Study:
        """Make one study."""
        if split not in SPLIT_CODES:
            raise ValueError(f"split must be one of {sorted(SPLIT_CODES)}, got {split!r}")
        rng = np.random.default_rng([self.seed, SPLIT_CODES[split], index])
        observations = self._observations(rng)
        pixels = draw_chest({o.name: o.size for o in observations}, self.image_size, rng)
        return Study(
            key=f"{split}-{index:07d}",
            images=(Image.fromarray(pixels),),
            normalized=self.grammar.normalized(observations, rng),
            raw=self.grammar.raw(observations, rng),
            labels=tuple(o.name for o in observations),
            meta={o.name: o.size for o in observations if o.size},
        )

    def studies(self, split: str, count: int) -> Iterator[Study]:
        """Make the first ``count`` studies of a split, one by one."""
        return (self.study(split, index) for index in range(count))

    def _observations(self, rng: np.random.Generator) -> Sequence[Observation]:
        """Draw the latent findings, each by itself; above the most allowed, some are left out at random."""
        findings = list(self.grammar.findings.values())
        rates = np.array([RATES.get(finding.name, DEFAULT_RATE) for finding in findings])
        present = np.flatnonzero(rng.random(len(findings)) < rates)
        kept = np.sort(rng.permutation(present)[: self.grammar.max_findings])
        sizes = rng.random(len(findings))
        return [
            Observation(
                name=findings[i].name,
                size=findings[i].sizes[int(sizes[i] * len(findings[i].sizes))] if findings[i].sizes else "",
            )
            for i in kept
        ]


def synthetic_judge(version: Version = "normalized", *, detailed: bool = False) -> GrammarJudge:
    """Return the judge of synthetic reports; it is the same for every seed, size and wording."""
    return GrammarJudge(ReportGrammar(CHEST_FINDINGS), version=version, detailed=detailed)
