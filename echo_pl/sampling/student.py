"""Decode settings of a one-step student: a second step for uncertain blocks, and bigrams (docs/explain/method.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_pl.sampling.bigrams import Bigrams, stored_bigrams
from echo_pl.sampling.config import DecodeConfig, check_weight


@dataclass(frozen=True, kw_only=True)
class StudentDecode:
    """Additions to one step per block; the defaults add nothing."""

    gate: float = 0.0
    """A second step for blocks with a position below this confidence; 0: never."""
    bigrams: float = 0.0
    """Weight of the pair counts of the stored trajectories in the choice of tokens; 0: the student alone."""
    min_count: int = 1
    """Pairs that are seen less often count as never seen."""
    repeats: bool = True
    """False: a token that begins a word never follows itself."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gate <= 1.0:
            raise ValueError(f"student.gate must be in [0, 1], got {self.gate}")
        check_weight(self.bigrams, "bigrams")
        if isinstance(self.min_count, bool) or not isinstance(self.min_count, int) or self.min_count < 1:
            raise ValueError(f"student.min_count must be a whole number and at least 1, got {self.min_count!r}")
        if not isinstance(self.repeats, bool):
            raise ValueError(f"student.repeats must be true or false, got {self.repeats!r}")
        if not self.bigrams and (self.min_count > 1 or not self.repeats):
            rule = "student.repeats=false" if self.min_count == 1 else f"student.min_count={self.min_count}"
            raise ValueError(f"{rule} has no effect without student.bigrams=<weight>")

    def check(self, decode: DecodeConfig, trajectories: str | Path | None) -> None:
        """Raise ValueError if bigrams have no stored trajectories to be counted in, or the tokens are sampled."""
        if self.bigrams and trajectories is None:
            raise ValueError(
                f"student.bigrams={self.bigrams} counts pairs of tokens in stored trajectories: give "
                "stage.module.trajectories=<folder> (echo-pl trajectories collect makes it)"
            )
        self.check_greedy(decode.token_choice.temperature)

    def check_greedy(self, temperature: float) -> None:
        """Raise ValueError for bigrams with sampled tokens."""
        if self.bigrams and temperature:
            raise ValueError(
                f"student.bigrams={self.bigrams} needs greedy tokens: stage.module.decode.token_choice.temperature=0, "
                f"got {temperature}"
            )

    def count_bigrams(
        self, trajectories: str | Path | None, vocabulary: int, data: str, word_starts: Callable[[], Sequence[int]]
    ) -> Bigrams | None:
        """Count the bigrams; None if their weight is 0. See :func:`echo_pl.sampling.bigrams.stored_bigrams`."""
        if not self.bigrams or trajectories is None:
            return None
        never_repeated = None if self.repeats else word_starts()
        return stored_bigrams(trajectories, self.bigrams, vocabulary, data, min_count=self.min_count, never_repeated=never_repeated)
