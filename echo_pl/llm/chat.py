"""One request to an OpenAI-compatible chat endpoint, and its answer or error.

No message of an error holds text of a request or of an answer, nor the API key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

import httpx
from pydantic import BaseModel, NonNegativeInt, ValidationError, ValidatorFunctionWrapHandler, field_validator

Again = Literal["never", "at_once", "later"]
"""When the same request may succeed: never, with another sample, or after a wait."""

MAX_ANSWER_BYTES: Final = 32 * 2**20
_REFUSED: Final = {
    401: "the API key is missing or wrong",
    403: "this API key may not use it",
    404: "no such address or model",
    405: "it takes no POST, so it is no chat endpoint",
}
_LATER: Final = frozenset({408, 409, 425, 429})
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LENGTHS: Final = ("max_tokens", "max_completion_tokens")


class AnswerError(ValueError):
    """No usable answer to one request; the message has no report text.

    Args:
        reason: a short name to count: ``timeout``, ``truncated`` ...
        detail: more of it, for a person.
        again: whether to send the request again.
        retry_after: seconds that the endpoint wants to rest.
    """

    def __init__(self, reason: str, detail: str = "", *, again: Again = "never", retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.again: Again = again
        self.retry_after = retry_after


class EndpointError(RuntimeError):
    """The endpoint is unusable: it rejects every request, or has failed too often."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A system message, a user message, and the form of the answer."""

    system: str
    user: str
    response_format: Mapping[str, Any]
    """``{"type": "json_schema", ...}`` or ``{"type": "json_object"}``."""
    prompt_version: str
    """Name and version of the prompt: part of the cache key, not sent."""
    max_tokens: int
    temperature: float = 0.0

    def body(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON to send; ``options`` add or replace fields, and None removes one."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}],
            "response_format": dict(self.response_format),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        return {name: value for name, value in {**body, **options}.items() if value is not None}


class Tokens(BaseModel):
    """Tokens of one answer; None if the endpoint does not count them."""

    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: Tokens = Tokens()

    @field_validator("usage", mode="wrap")
    @classmethod
    def _tolerate(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Tokens:
        """Accept an answer whose counts are missing or invalid."""
        try:
            return Tokens() if value is None else handler(value)
        except ValidationError:
            return Tokens()


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """Answer of a model."""

    text: str
    tokens: Tokens
    finish_reason: str | None

    def check_finished(self) -> None:
        """Raise AnswerError if the answer is truncated, filtered or empty."""
        if self.finish_reason == "length":
            raise AnswerError("truncated", "the answer was cut off at the allowed number of tokens", again="at_once")
        if self.finish_reason == "content_filter":
            raise AnswerError("content_filter", "the endpoint's filter held the answer back")
        if not self.text.strip():
            raise AnswerError("empty", "the endpoint answered nothing", again="at_once")


def with_more_room(body: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """Return the request with a longer answer allowed: a truncated one would be truncated again."""
    return {name: value * factor if name in _LENGTHS else value for name, value in body.items()}


def new_client(key: str | None, timeout: float) -> httpx.Client:
    """Return an HTTP client, which threads may share.

    It follows no redirect, which would take key and report to another host, and keeps no
    connection, which a forked process could share.

    Args:
        key: sent as a bearer token; None: none.
        timeout: seconds for connecting and for every read.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.Client(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)


def exchange(client: httpx.Client, url: str, body: Mapping[str, Any], *, timeout: float) -> ChatAnswer:
    """Send one request and read its answer.

    Args:
        client: see :func:`new_client`.
        url: of the chat completions.
        body: see :meth:`ChatRequest.body`.
        timeout: seconds for the whole answer.

    Raises:
        AnswerError: this request failed; ``again`` tells whether to repeat it.
        EndpointError: the endpoint rejects every request (wrong address, key or model).
    """
    sent = json.dumps(body, ensure_ascii=False).encode()
    deadline = time.monotonic() + timeout
    try:
        with client.stream("POST", url, content=sent) as response:
            if not response.is_success:
                raise _status_error(response, url, str(body["model"]))
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_ANSWER_BYTES:
                    raise AnswerError("too_large", f"more than {MAX_ANSWER_BYTES} bytes")
                if time.monotonic() > deadline:  # the client's own time-out starts again with every byte
                    raise httpx.ReadTimeout("")
    except httpx.TimeoutException:
        raise AnswerError("timeout", f"no answer within {timeout:g} s", again="later") from None
    except httpx.HTTPError as error:
        raise AnswerError("connection", type(error).__name__, again="later") from None
    try:
        found = _Completion.model_validate_json(bytes(content))
        choice = found.choices[0]
    except (ValidationError, IndexError):
        raise AnswerError("broken_json", "the endpoint's answer is no chat completion", again="later") from None
    return ChatAnswer(text=choice.message.content or "", tokens=found.usage, finish_reason=choice.finish_reason)


def _status_error(response: httpx.Response, url: str, model: str) -> AnswerError | EndpointError:
    status = response.status_code
    if status in _REFUSED or 300 <= status < 400:
        why = _REFUSED.get(status, "it redirects elsewhere; give the address it redirects to")
        return EndpointError(f"{url} rejects model {model!r} with status {status}: {why}")
    wait = retry_after(response.headers.get("Retry-After"), time.time())
    if status == 429:
        return AnswerError("rate_limit", again="later", retry_after=wait)
    if status >= 500 or status in _LATER:
        return AnswerError("server_error", f"status {status}", again="later", retry_after=wait)
    return AnswerError("bad_request", f"status {status} {_error_code(response)}".strip())


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, number or date; None if there is none.

    >>> retry_after("7", 0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20.0), retry_after("soon", 0.0)
    (7.0, 40.0, None)
    """
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _error_code(response: httpx.Response) -> str:
    """Return the code of an error; its message may quote the request and is not read."""
    try:
        found = json.loads(next(response.iter_bytes(65536), b""))
        inner = found.get("error", found)
        codes = [inner.get(name) for name in ("code", "type")]
    except (ValueError, AttributeError, RecursionError, httpx.HTTPError):
        return ""
    return next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), "")
