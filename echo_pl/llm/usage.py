"""What asking a language model cost, and what went wrong: requests, tokens, failures by reason. Knows numbers only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counts up to one moment."""

    requests: int = 0
    """Sent, all tries counted."""
    answered: int = 0
    """Questions that got an answer from the endpoint."""
    cached: int = 0
    """Questions that were answered from the cache."""
    retries: int = 0
    prompt_tokens: int = 0
    """As the endpoint counts them, those of answers that could not be used among them."""
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers of which the endpoint did not say how many tokens they took."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Tries that went wrong, by reason."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Questions that were given up, by the reason of the last try."""

    def cost(self, *, prompt_price: float, completion_price: float) -> float:
        """What was paid, at these prices for a million tokens. Answers in ``unmetered`` are not in it.

        >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(prompt_price=0.5, completion_price=2.0)
        2.0
        """
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6

    def __str__(self) -> str:
        """In one line, for a person."""
        told = (
            f"{self.requests} requests, {self.answered} questions answered and {self.cached} found in the cache, "
            f"{self.prompt_tokens} + {self.completion_tokens} tokens"
        )
        for name, counts in (("errors", self.errors), ("given up", self.failures)):
            if counts:
                told += f", {name}: {', '.join(f'{reason} {count}' for reason, count in sorted(counts.items()))}"
        return told


class UsageMeter:
    """Counts from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._in_a_row = 0

    def sent(self) -> None:
        """Count a request."""
        with self._lock:
            self._counts["requests"] += 1

    def retry(self, budget: int) -> bool:
        """Count a second or later try of a question, if so many are not used up; returns whether."""
        with self._lock:
            allowed = self._counts["retries"] < budget
            self._counts["retries"] += allowed
            return allowed

    def received(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count the tokens of an answer, whether it can be used or not."""
        with self._lock:
            self._counts["prompt_tokens"] += prompt_tokens or 0
            self._counts["completion_tokens"] += completion_tokens or 0
            self._counts["unmetered"] += prompt_tokens is None or completion_tokens is None

    def answered(self, *, cached: bool) -> None:
        """Count a question that has its answer."""
        with self._lock:
            self._counts["cached" if cached else "answered"] += 1
            if not cached:
                self._in_a_row = 0

    def error(self, reason: str) -> None:
        """Count a try that went wrong."""
        with self._lock:
            self._errors[reason] += 1

    def failure(self, reason: str) -> int:
        """Count a question that is given up; returns how many were since the endpoint last answered one."""
        with self._lock:
            self._failures[reason] += 1
            self._in_a_row += 1
            return self._in_a_row

    @property
    def usage(self) -> Usage:
        """The counts as they are now."""
        with self._lock:
            return Usage(**self._counts, errors=dict(self._errors), failures=dict(self._failures))
