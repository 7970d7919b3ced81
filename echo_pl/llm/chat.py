"""One exchange with an OpenAI-compatible chat endpoint: a request in, an answer out, or an error that says whether to ask again.

Knows HTTP and the chat format. Knows nothing of reports, of trying again, or of a cache. No message holds words of a request or of
an answer, nor the key.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Any, Final, Literal

Again = Literal["never", "at_once", "later"]
"""Whether the same request may succeed: never, with another roll of the dice, or after a while."""

MAX_ANSWER_BYTES: Final = 32 * 2**20
_REFUSED: Final = {
    401: "the API key is missing or wrong",
    403: "this API key may not use it",
    404: "there is no such address or model",
    405: "it takes no POST, so it is no chat endpoint",
}
_LATER: Final = frozenset({408, 409, 425, 429})
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LENGTHS: Final = ("max_tokens", "max_completion_tokens")


class AnswerError(ValueError):
    """There is no answer to one request that can be used. Says why, in none of a report's words.

    Args:
        reason: a short name that is counted: ``timeout``, ``truncated`` ...
        detail: more of it, for a person.
        again: whether to ask again.
        retry_after: seconds that the endpoint asks to wait.
    """

    def __init__(self, reason: str, detail: str = "", *, again: Again = "never", retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.again: Again = again
        self.retry_after = retry_after


class EndpointError(RuntimeError):
    """No request can succeed any more: the endpoint refuses, or has failed too often."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What is asked: a system message, a user message, and the form of the answer."""

    system: str
    user: str
    response_format: Mapping[str, Any]
    """``{"type": "json_schema", ...}`` or ``{"type": "json_object"}``."""
    prompt_version: str
    """Name and version of the prompt: part of the answer's identity, not sent."""
    max_tokens: int
    temperature: float = 0.0

    def body(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON to send.

        Args:
            model: its name at the endpoint.
            options: further fields, or other values of these; None takes a field out.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}],
            "response_format": dict(self.response_format),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        return {name: value for name, value in {**body, **options}.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What a model answered, and what it cost."""

    text: str
    prompt_tokens: int | None
    """None: the endpoint did not say."""
    completion_tokens: int | None
    finish_reason: str


def with_more_room(body: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """The same request with a longer answer allowed: one that was cut off would be cut off again."""
    return {name: value * factor if name in _LENGTHS else value for name, value in body.items()}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key and the report to a host that nobody named."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def exchange(url: str, body: Mapping[str, Any], *, key: str | None, timeout: float) -> ChatAnswer:
    """Send one request and read its answer.

    Args:
        url: of the chat completions.
        body: what :meth:`ChatRequest.body` made.
        key: sent as a bearer token; None: none.
        timeout: seconds for connecting, for every read, and for all of the answer.

    Raises:
        AnswerError: of this request; ``again`` says whether to send it once more.
        EndpointError: the endpoint refuses every request (wrong address, key or model).
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    sent = json.dumps(body, ensure_ascii=False).encode()
    opener = urllib.request.build_opener(_NoRedirects)
    deadline = time.monotonic() + timeout
    try:
        with opener.open(urllib.request.Request(url, data=sent, headers=headers, method="POST"), timeout=timeout) as response:
            content = _read(response, deadline)
    except urllib.error.HTTPError as error:
        with error:
            raise _of_status(error, url, str(body["model"])) from None
    except TimeoutError:
        raise AnswerError("timeout", f"no answer within {timeout:g} s", again="later") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise AnswerError("timeout", f"no connection within {timeout:g} s", again="later") from None
        raise AnswerError("connection", type(error.reason).__name__, again="later") from None
    except (http.client.HTTPException, OSError) as error:
        raise AnswerError("connection", type(error).__name__, again="later") from None
    return _parse(content)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read to the end, but not past the deadline: a socket's own time-out starts anew with every byte."""
    content = bytearray()
    while piece := response.read1(65536):
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise AnswerError("too_large", f"more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _of_status(error: urllib.error.HTTPError, url: str, model: str) -> AnswerError | EndpointError:
    status = error.code
    if status in _REFUSED or 300 <= status < 400:
        why = _REFUSED.get(status, "it redirects elsewhere; give the address it redirects to")
        return EndpointError(f"{url} refuses model {model!r} with status {status}: {why}")
    wait = retry_after(error.headers.get("Retry-After"), time.time())
    if status == 429:
        return AnswerError("rate_limit", again="later", retry_after=wait)
    if status >= 500 or status in _LATER:
        return AnswerError("server_error", f"status {status}", again="later", retry_after=wait)
    return AnswerError("bad_request", f"status {status} {_code(error)}".strip())


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date; None where there is none that can be read.

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


def _code(error: urllib.error.HTTPError) -> str:
    """The error's own code (``context_length_exceeded``); its message may quote the request and is not read."""
    try:
        found = json.loads(error.read(65536))
        inner = found.get("error", found)
        codes = [inner.get(name) for name in ("code", "type")]
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""
    return next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), "")


def _parse(content: bytes) -> ChatAnswer:
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        usage = found.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise AnswerError("broken_json", "the endpoint's answer is no chat completion", again="later") from None
    prompt, completion = (value if type(value) is int and value >= 0 else None for value in tokens)
    return ChatAnswer(
        text=text if isinstance(text, str) else "",
        prompt_tokens=prompt,
        completion_tokens=completion,
        finish_reason=finish if isinstance(finish, str) else "",
    )


def check_finished(answer: ChatAnswer) -> None:
    """Refuse an answer that is not whole.

    Raises:
        AnswerError: it was cut off, was filtered, or is empty.
    """
    if answer.finish_reason == "length":
        raise AnswerError("truncated", "the answer was cut off at the allowed number of tokens", again="at_once")
    if answer.finish_reason == "content_filter":
        raise AnswerError("content_filter", "the endpoint's filter held the answer back")
    if not answer.text.strip():
        raise AnswerError("empty", "the endpoint answered nothing", again="at_once")
