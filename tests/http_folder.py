"""A folder behind a local HTTP server that can misbehave on request and records requests."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OK = "ok"


@dataclass
class HTTPFolder:
    """Interface of the server for a test."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """File names, in the order in which they were asked for."""
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """File name to what its next requests get: ``503``, ``404``, ``403``, ``cut``, ``silent``, ``wrong``, ``longer``, or a
    length that is not its own: ``says_less``, ``says_more``, ``says_nothing``, ``says_nonsense``."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Event that ``silent`` waits for."""
    connections: int = 0
    """That were made."""
    pause: float = 0.0
    """Seconds before every answer."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.removeprefix("/corpus/")
        self.asked.append(name)
        time.sleep(self.pause)
        fault = self.faults[name].pop(0) if self.faults[name] else OK
        path = self.folder / name
        if fault.isdigit() or not path.is_file():
            request.send_error(int(fault) if fault.isdigit() else 404)
            return
        content = path.read_bytes()
        if fault == "silent":
            self.closing.wait()
            return
        if fault == "wrong":
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        if fault == "longer":
            content += b"\0" * 100_000
        request.send_response(200)
        declared = {"says_less": len(content) - 600, "says_more": 10**15, "says_nothing": None, "says_nonsense": "many"}
        if (length := declared.get(fault, len(content))) is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if fault == "cut" else content)


@contextmanager
def serving(folder: Path, protocol: str = "HTTP/1.0") -> Iterator[HTTPFolder]:
    """Serve a folder at ``<url>``; with ``HTTP/1.1``, over one connection as long as the client keeps it."""
    state = HTTPFolder(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
                state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/corpus"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
