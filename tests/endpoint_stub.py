"""A local chat endpoint that answers and misbehaves as a test specifies, and records its requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Reply to one request."""

    content: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    """Send nothing until the stub is closed."""
    drip: bool = False
    """Send the headers and then a space every few milliseconds, until the stub is closed."""
    close: bool = False
    """Close the connection without a reply."""
    half: bool = False
    """Announce the whole content, send half of it, and close."""


def says(text: str | None, *, finish: str = "stop", usage: Mapping[str, int] | None = None) -> Reply:
    """Return a chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    counts = {"prompt_tokens": 100, "completion_tokens": 10} if usage is None else dict(usage)
    return Reply(content=json.dumps({"object": "chat.completion", "choices": [choice], "usage": counts}).encode())


def pieces_asked(request: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbered pieces of the report in a request of the normalizer."""
    return dict(re.findall(r"^([FI]\d+): (.*)$", request["messages"][1]["content"], re.MULTILINE))


def normal_answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a valid answer to a request of the normalizer: all findings, word for word, under the lungs."""
    pieces = pieces_asked(request)
    sentences = [{"text": text, "from": [name]} for name, text in pieces.items()]
    missing = ("thorax", "mediastinum", "heart", "hila", "diaphragm", "bones")
    regions: dict[str, Any] = {name: {"mentioned": False, "sentences": []} for name in missing}
    lungs = {"mentioned": bool(sentences), "sentences": sentences}
    impression = [{"text": "Summed up.", "from": list(pieces)}]
    return {**regions, "lungs": lungs, "other": [], "impression": impression, "dropped": []}


class EndpointStub:
    """Server of ``/v1/chat/completions`` on a free port, as a context manager.

    Args:
        answer: (JSON of the request, its number from 0) -> reply.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> EndpointStub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def users(self) -> list[str]:
        """Return the user messages in order of arrival."""
        return [request["messages"][1]["content"] for request in self.requests]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._send(handler, self._answer(request, number))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has closed the connection, as some tests want
        finally:
            with self._lock:
                self._at_once -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.close_connection = True
        if reply.close:
            return
        if reply.hang:
            self._closing.wait()
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.content) if not reply.drip else 10**6))
        handler.end_headers()
        while reply.drip and not self._closing.wait(0.01):
            handler.wfile.write(b" ")
        handler.wfile.write(reply.content[: len(reply.content) // 2] if reply.half else reply.content)
