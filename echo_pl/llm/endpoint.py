"""Client of an OpenAI-compatible chat endpoint: cache, retries, concurrency, cost.

Neither logs nor messages hold report text or the API key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from echo_pl.io.stop_signals import stop_on_signals, wait_for
from echo_pl.llm.answer_cache import AnswerCache, answer_key
from echo_pl.llm.chat import AnswerError, ChatRequest, EndpointError, exchange, new_client, with_more_room
from echo_pl.llm.pacing import Pacing
from echo_pl.llm.usage import Usage, UsageMeter

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # otherwise a line for each request

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_ROOM: Final = 4
"""Largest factor of the allowed length after truncated answers."""
_WARMER: Final = 0.2
"""Increase of the temperature after each rejected answer: at 0 a model repeats itself."""
_LOOKAHEAD: Final = 8
_FIXED: Final = ("model", "messages", "response_format", "stream")
"""Fields of a request that options may not replace."""


@dataclass(frozen=True, kw_only=True)
class EndpointSpec:
    """One model at one endpoint.

    Raises:
        ValueError: a number or an address out of range, a missing key, or an option that the client
            sets itself.
    """

    base_url: str
    """Address without ``/chat/completions``, such as ``http://localhost:8000/v1``."""
    model: str
    """Its name at the endpoint."""
    answers: Path | None = None
    """Folder of the answer cache; None requests every answer again."""
    api_key_variable: str | None = None
    """Environment variable that holds the key; None sends none."""
    concurrency: int = 8
    """Requests at once."""
    timeout: float = 300.0
    """Seconds for one answer."""
    attempts: int = 5
    """Most requests for one question."""
    retry_budget: int = 1000
    """Most retries over the life of a client; then it stops."""
    failures_in_a_row: int = 25
    """Most questions in a row without an answer; then the client stops."""
    longest_rest: float = 600.0
    """Longest rest in seconds that the endpoint may ask for; a longer one stops the client."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further fields of every request (``{"chat_template_kwargs": {"enable_thinking": False}}``),
    or other values of ``temperature`` and ``max_tokens``; None removes a field."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("attempts", 1), ("failures_in_a_row", 1), ("retry_budget", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        if not self.model:
            raise ValueError("model must be the model's name at the endpoint, got none")
        if fixed := [name for name in self.options if name in _FIXED]:
            raise ValueError(f"the request option {fixed[0]!r} is set by the client; leave it out")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be http:// or https:// and a host, got {parts.scheme!r} and {parts.hostname!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"the base_url of {parts.hostname} must hold no user, password, query or fragment")
        self.read_key()

    @property
    def url(self) -> str:
        """Address of the chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def name(self) -> str:
        """The model, with a hash of the options if there are any: part of a corpus's identity."""
        if not self.options:
            return self.model
        return f"{self.model}-{hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()[:8]}"

    def read_key(self) -> str | None:
        """Return the API key from its environment variable."""
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "")
        variable = f"the environment variable {self.api_key_variable}"
        if not key:
            raise ValueError(f"{variable}, which is to hold the endpoint's API key, is not set")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"{variable} holds no API key: it has spaces, line ends or other such characters")
        return key


def request_options(given: Iterable[str], *, temperature: float | None = None, max_tokens: int | None = None) -> dict[str, Any]:
    """Return the options of a command line; each of ``given`` is NAME=JSON.

    >>> request_options(['chat_template_kwargs={"enable_thinking": false}'], temperature=0.7)
    {'temperature': 0.7, 'chat_template_kwargs': {'enable_thinking': False}}

    Raises:
        ValueError: an option that is not NAME=JSON.
    """
    named = {"temperature": temperature, "max_tokens": max_tokens}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for one in given:
        name, equals, text = one.partition("=")
        try:
            options[name] = json.loads(text)
        except ValueError:
            name = ""
        if not name or not equals:
            raise ValueError(f"a request option must be NAME=JSON, such as top_p=0.9, got {one!r}")
    return options


class ChatEndpoint:
    """Client of one model at one endpoint; threads may share it."""

    def __init__(self, settings: EndpointSpec, *, pacing: Pacing | None = None) -> None:
        self.settings = settings
        self._cache = None if settings.answers is None else AnswerCache(settings.answers)
        self._client = new_client(settings.read_key(), settings.timeout)
        self._pacing = Pacing() if pacing is None else pacing
        self._meter = UsageMeter()
        self._stopped: str | None = None

    @property
    def usage(self) -> Usage:
        """Requests, tokens and failures so far."""
        return self._meter.usage

    def complete(self, request: ChatRequest, parse: Callable[[str], Result]) -> Result:
        """Answer one question from the cache or the endpoint.

        Args:
            request: the question.
            parse: makes the result of the answer's text, or raises :class:`AnswerError`, which
                tells whether to ask again. Only answers that it accepts are cached.

        Raises:
            AnswerError: no try gave a usable answer; the reason is that of the last try.
            EndpointError: the endpoint is unusable.
        """
        body = request.body(self.settings.model, self.settings.options)
        key = answer_key(self.settings.model, request.prompt_version, body)
        if self._cache is not None and (text := self._cache.get(key)) is not None:
            try:
                found = parse(text)
            except AnswerError as error:
                log.warning("answer %s in the cache is not accepted (%s); it is requested again", key[:12], error.reason)
            else:
                self._meter.count(cached=1)
                return found
        text, found = self._ask(body, parse)
        if self._cache is not None:
            self._cache.put(key, text)
        self._meter.count(answered=1)
        return found

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result | AnswerError]:
        """Apply a function that uses this endpoint to many items at once; yield in order.

        An item that fails yields its error. Items are read as needed, at most eight for each
        concurrent request. If the caller stops early, running requests are completed, so that their
        answers are cached, and no other is sent.

        Raises:
            EndpointError: the endpoint is unusable; received answers are in the cache.
        """
        waiting: deque[Future[Result | AnswerError]] = deque()
        executor = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="endpoint")
        try:
            with stop_on_signals((signal.SIGINT,)):
                for item in items:
                    waiting.append(executor.submit(_settle, function, item))
                    if len(waiting) >= _LOOKAHEAD * self.settings.concurrency:
                        yield wait_for(waiting.popleft())
                while waiting:
                    yield wait_for(waiting.popleft())
        except BaseException:
            self._pacing.interrupt()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            self._pacing.resume()

    def _ask(self, body: Mapping[str, Any], parse: Callable[[str], Result]) -> tuple[str, Result]:
        """Send requests until an answer is accepted; return its text and its result."""
        room, warmth = 1, 0.0

        def attempt() -> tuple[str, Result]:
            try:
                text = self._send(with_more_room(_warmer(body, warmth), room))
                return text, parse(text)
            except AnswerError as error:
                self._meter.error(error.reason)
                raise

        def before_retry(state: RetryCallState) -> None:
            nonlocal room, warmth
            error = _error(state)
            if error.reason == "truncated":
                room = min(_MOST_ROOM, 2 * room)
            elif error.again == "at_once":
                warmth += _WARMER
            self._check_retry(error)

        retrying = Retrying(
            stop=stop_after_attempt(self.settings.attempts),
            retry=retry_if_exception(lambda error: isinstance(error, AnswerError) and error.again != "never"),
            wait=self._seconds_before_retry,
            sleep=self._pacing.sleep,
            before_sleep=before_retry,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except AnswerError as error:
            self._give_up(error, retrying.statistics["attempt_number"])

    def _send(self, body: Mapping[str, Any]) -> str:
        """Send one request; return the text of a complete answer."""
        self._pacing.before_sending()
        if self._pacing.interrupted:
            raise EndpointError("interrupted")
        if self._stopped is not None:
            raise EndpointError(self._stopped)
        self._meter.count(requests=1)
        try:
            answer = exchange(self._client, self.settings.url, body, timeout=self.settings.timeout)
        except EndpointError as error:
            self._stop(str(error))
        prompt, completion = answer.tokens.prompt_tokens, answer.tokens.completion_tokens
        unmetered = prompt is None or completion is None
        self._meter.count(prompt_tokens=prompt or 0, completion_tokens=completion or 0, unmetered=unmetered)
        answer.check_finished()
        return answer.text

    def _seconds_before_retry(self, state: RetryCallState) -> float:
        error = _error(state)
        return self._pacing.back_off(state) if error.again == "later" and error.retry_after is None else 0.0

    def _check_retry(self, error: AnswerError) -> None:
        """Count a retry and begin the endpoint's rest; stop if either is over its limit."""
        settings = self.settings
        if not self._meter.retry(settings.retry_budget):
            self._stop(
                f"{settings.url}: all {settings.retry_budget} retries for model {settings.model!r} are used up "
                f"(the last try: {error}); run again later: finished answers are cached"
            )
        if error.retry_after is not None:
            if error.retry_after > settings.longest_rest:
                self._stop(
                    f"{settings.url} asks to wait {error.retry_after:.0f} s ({error}), more than "
                    f"longest_rest={settings.longest_rest:g}; run again later: finished answers are cached"
                )
            self._pacing.rest(error.retry_after)

    def _give_up(self, error: AnswerError, tries: int) -> NoReturn:
        settings = self.settings
        if self._meter.failure(error.reason) >= settings.failures_in_a_row:
            self._stop(
                f"{settings.url}: the last {settings.failures_in_a_row} questions to model {settings.model!r} got no usable answer "
                f"(the last: {error}); see that it runs and gives the form asked for, then run again: finished answers are cached"
            )
        detail = f"{error.detail}, " if error.detail else ""
        raise AnswerError(error.reason, f"{detail}after {tries} of {settings.attempts} tries") from error

    def _stop(self, why: str) -> NoReturn:
        self._stopped = why
        raise EndpointError(why) from None


def _error(state: RetryCallState) -> AnswerError:
    """Return the error of a failed try."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, AnswerError)
    return error


def _warmer(body: Mapping[str, Any], warmth: float) -> Mapping[str, Any]:
    """Return the request with a higher temperature, if it has one."""
    if not warmth or "temperature" not in body:
        return body
    return {**body, "temperature": round(min(1.0, body["temperature"] + warmth), 3)}


def _settle(function: Callable[[Item], Result], item: Item) -> Result | AnswerError:
    try:
        return function(item)
    except AnswerError as error:
        return error
