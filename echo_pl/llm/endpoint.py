"""Client of any OpenAI-compatible chat endpoint: cached answers, tries again, many questions at once, counts of what it cost.

Knows requests, answers and when to give up. What an answer means is said by the caller's ``parse``. Nothing of a report and nothing
of the key is in a log or a message.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from echo_pl.io.signal_safe_pool import SignalSafePool
from echo_pl.llm.answer_cache import AnswerCache, answer_key
from echo_pl.llm.chat import (
    AnswerError,
    ChatAnswer,
    ChatRequest,
    EndpointError,
    check_finished,
    exchange,
    with_more_room,
)
from echo_pl.llm.pacing import Pacing
from echo_pl.llm.usage import Usage, UsageMeter

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_ROOM: Final = 4
"""An answer that is cut off may become so many times longer before it is given up."""
_WARMER: Final = 0.2
"""At temperature 0 a model says the same again; by so much it is raised for each answer that was not accepted."""
_LOOKAHEAD: Final = 8


class ChatEndpoint:
    """Asks one model at one endpoint.

    Args:
        base_url: up to and without ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: its name there.
        api_key_variable: environment variable that holds the key; None sends none.
        cache: of answers; None asks anew each time.
        concurrency: requests under way at once.
        timeout: seconds for one answer.
        attempts: most requests for one question.
        retry_budget: most second and later tries over the life of this object; then it stops.
        failures_in_a_row: so many questions given up, with none answered between them, stop it.
        longest_rest: seconds that the endpoint may ask to wait; if it asks for more, it stops.
        pacing: of the tries.
        options: further fields of every request (``{"chat_template_kwargs": {"enable_thinking": False}}``), or other values of
            those that are sent; None takes one out (``{"temperature": None, "max_tokens": None, "max_completion_tokens": 4096}``).

    Raises:
        ValueError: an address that is none or holds a password; a variable that is not set or holds no key; numbers below 1.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_variable: str | None = None,
        cache: AnswerCache | None = None,
        concurrency: int = 8,
        timeout: float = 300.0,
        attempts: int = 5,
        retry_budget: int = 1000,
        failures_in_a_row: int = 25,
        longest_rest: float = 600.0,
        pacing: Pacing | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("attempts", attempts), ("failures_in_a_row", failures_in_a_row)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if timeout <= 0 or retry_budget < 0:
            raise ValueError(f"timeout must be above 0 and retry_budget not below, got {timeout} and {retry_budget}")
        if not model:
            raise ValueError("the endpoint's model must be named")
        self.url = _checked_url(base_url)
        self.model = model
        self.concurrency = concurrency
        self._key = None if api_key_variable is None else _key_of(api_key_variable)
        self._cache = cache
        self._timeout = timeout
        self._attempts = attempts
        self._retry_budget = retry_budget
        self._failures_in_a_row = failures_in_a_row
        self._longest_rest = longest_rest
        self._pacing = Pacing() if pacing is None else pacing
        self._options = dict(options or {})
        self._meter = UsageMeter()
        self._stopped: str | None = None

    @property
    def usage(self) -> Usage:
        """What was asked so far, and what became of it."""
        return self._meter.usage

    def complete(self, request: ChatRequest, parse: Callable[[str], Result]) -> Result:
        """Ask one question, or find its answer in the cache.

        Args:
            request: what to ask.
            parse: makes of the answer's text what the caller wants, or raises :class:`AnswerError`; it is then asked again as the
                error says. Only answers that it accepts are cached.

        Raises:
            AnswerError: no try gave an answer that can be used; the reason is the last one's.
            EndpointError: nothing more can be asked.
        """
        body = request.body(self.model, self._options)
        key = answer_key(self.model, request.prompt_version, body)
        if self._cache is not None and (text := self._cache.get(key)) is not None:
            try:
                found = parse(text)
            except AnswerError as error:
                log.warning("answer %s in the cache is not accepted (%s); it is asked for again", key[:12], error.reason)
            else:
                self._meter.answered(cached=True)
                return found
        text, found = self._ask(body, parse)
        if self._cache is not None:
            self._cache.put(key, text)
        self._meter.answered(cached=False)
        return found

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result | AnswerError]:
        """Apply a function that asks this endpoint to many items at once; yield what it gives in the order of the items.

        Items are read as they are needed, at most eight for each request that may be under way. An item that fails gives its error
        in its place. When the caller stops early, requests under way are waited for, so that their answers are cached; no other is
        sent.

        Raises:
            EndpointError: nothing more can be asked. Answers that came are in the cache.
        """
        waiting: deque[int] = deque()
        executor = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        pool: SignalSafePool[Result | AnswerError] = SignalSafePool(executor)
        whole = False
        try:
            with pool:
                for item in items:
                    waiting.append(pool.submit(_settle, function, item))
                    if len(waiting) >= _LOOKAHEAD * self.concurrency:
                        yield pool.result(waiting.popleft())
                while waiting:
                    yield pool.result(waiting.popleft())
                whole = True
        finally:
            if not whole:
                self._pacing.interrupt()
            executor.shutdown(wait=True, cancel_futures=True)
            self._pacing.go_on()

    def _ask(self, body: Mapping[str, Any], parse: Callable[[str], Result]) -> tuple[str, Result]:
        """Try until an answer is accepted: its text, and what was made of it."""
        room, warmth = 1, 0.0
        for tries in range(1, self._attempts + 1):
            try:
                answer = self._send(with_more_room(_warmer(body, warmth), room))
                return answer.text, parse(answer.text)
            except AnswerError as error:
                self._meter.error(error.reason)
                if error.again == "never" or tries == self._attempts:
                    self._give_up(error, tries)
                if error.reason == "truncated":
                    room = min(_MOST_ROOM, 2 * room)
                elif error.again == "at_once":
                    warmth += _WARMER
                self._before_next(error, tries)
        raise AssertionError("the last try returns or raises")

    def _send(self, body: Mapping[str, Any]) -> ChatAnswer:
        self._pacing.before_sending()
        if self._pacing.interrupted:
            raise EndpointError("interrupted")
        if self._stopped is not None:
            raise EndpointError(self._stopped)
        self._meter.sent()
        try:
            answer = exchange(self.url, body, key=self._key, timeout=self._timeout)
        except EndpointError as error:
            self._stop(str(error))
        self._meter.received(answer.prompt_tokens, answer.completion_tokens)
        check_finished(answer)
        return answer

    def _give_up(self, error: AnswerError, tries: int) -> NoReturn:
        if self._meter.failure(error.reason) >= self._failures_in_a_row:
            self._stop(
                f"{self.url}: the last {self._failures_in_a_row} questions to model {self.model!r} got no answer that can be used "
                f"(the last: {error}); see that it runs and gives the form asked for, then run again: finished answers are cached"
            )
        detail = f"{error.detail}, " if error.detail else ""
        raise AnswerError(error.reason, f"{detail}after {tries} of {self._attempts} tries") from error

    def _before_next(self, error: AnswerError, tries: int) -> None:
        """Wait as the error asks, within what is allowed."""
        if not self._meter.retry(self._retry_budget):
            self._stop(
                f"{self.url}: all {self._retry_budget} retries for model {self.model!r} are used up (the last try: {error}); "
                "run again later: finished answers are cached"
            )
        if error.retry_after is not None:
            if error.retry_after > self._longest_rest:
                self._stop(
                    f"{self.url} asks to wait {error.retry_after:.0f} s ({error}), more than longest_rest={self._longest_rest:g}; "
                    "run again later: finished answers are cached"
                )
            self._pacing.rest(error.retry_after)
        elif error.again == "later":
            self._pacing.back_off(tries)

    def _stop(self, why: str) -> NoReturn:
        self._stopped = why
        raise EndpointError(why) from None


def _settle(function: Callable[[Item], Result], item: Item) -> Result | AnswerError:
    try:
        return function(item)
    except AnswerError as error:
        return error


def _warmer(body: Mapping[str, Any], warmth: float) -> Mapping[str, Any]:
    if not warmth or "temperature" not in body:
        return body
    return {**body, "temperature": round(min(1.0, body["temperature"] + warmth), 3)}


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be http:// or https:// and a host, got {parts.scheme!r} and {parts.hostname!r}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"the base_url of {parts.hostname} must hold no user, password, query or fragment")
    return f"{base_url.rstrip('/')}/chat/completions"


def _key_of(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise ValueError(f"the environment variable {variable}, which is to hold the endpoint's API key, is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the environment variable {variable} holds no API key: it has spaces, line ends or other such characters")
    return key
