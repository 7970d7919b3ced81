"""Counts of a language model's use: requests, tokens, failures by reason."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counts so far."""

    requests: int = 0
    """All tries."""
    answered: int = 0
    """Questions that the endpoint answered."""
    cached: int = 0
    """Questions that the cache answered."""
    retries: int = 0
    prompt_tokens: int = 0
    """As the endpoint counts them, unusable answers included."""
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers whose tokens the endpoint did not count."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed tries by reason."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Questions without an answer, by the reason of the last try."""

    def cost(self, *, prompt_price: float, completion_price: float) -> float:
        """Return the cost at these prices for a million tokens, without ``unmetered`` answers.

        >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(prompt_price=0.5, completion_price=2.0)
        2.0
        """
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6

    def __str__(self) -> str:
        """All counts in one line."""
        line = (
            f"{self.requests} requests, {self.answered} questions answered and {self.cached} found in the cache, "
            f"{self.prompt_tokens} + {self.completion_tokens} tokens"
        )
        for name, counts in (("errors", self.errors), ("given up", self.failures)):
            if counts:
                line += f", {name}: {', '.join(f'{reason} {count}' for reason, count in sorted(counts.items()))}"
        return line


class UsageMeter:
    """Counter that threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._in_a_row = 0

    def count(self, **counts: int) -> None:
        """Add to counts of :class:`Usage`."""
        with self._lock:
            self._counts.update(counts)
            self._in_a_row *= not counts.get("answered")

    def retry(self, budget: int) -> bool:
        """Count a retry if the budget allows it; return True if it does."""
        with self._lock:
            allowed = self._counts["retries"] < budget
            self._counts["retries"] += allowed
            return allowed

    def error(self, reason: str) -> None:
        """Count a failed try."""
        with self._lock:
            self._errors[reason] += 1

    def failure(self, reason: str) -> int:
        """Count a question without an answer; return their number since the last answer."""
        with self._lock:
            self._failures[reason] += 1
            self._in_a_row += 1
            return self._in_a_row

    @property
    def usage(self) -> Usage:
        """The counts now."""
        with self._lock:
            return Usage(**self._counts, errors=dict(self._errors), failures=dict(self._failures))
