"""An HTTP proxy that fails as it is told, and remembers what passed through it."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LOST = "the answer is lost after the work was done"


@dataclass
class Refusal:
    """An answer in place of the server's."""

    status: int
    body: bytes = b"<h1>Bad Gateway</h1>"
    headers: dict[str, str] = field(default_factory=dict)


def refusal(code, status, *, retryable, **headers):
    """In the server's own form."""
    error = {"code": code, "message": "not now", "retryable": retryable}
    return Refusal(status, json.dumps({"error": error}).encode(), headers)


class FaultyProxy:
    """Passes requests on, but for those that it was told to fail.

    Attributes:
        url: where it listens.
        requests: (path, body) in order, failed ones too.
    """

    def __init__(self, target):
        self.requests: list[tuple[str, bytes]] = []
        self._faults: list[tuple[str, object]] = []
        self._target = urlsplit(target).netloc
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.serve(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, path, *faults):
        """What happens to the next requests of a path: a Refusal, LOST, or a function that changes
        the answer's JSON in place."""
        self._faults += [(path, fault) for fault in faults]

    @property
    def unused(self):
        return self._faults

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def serve(self, handler):
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        self.requests.append((handler.path, body))
        fault = self._next(handler.path)
        if isinstance(fault, Refusal):
            answer(handler, fault.status, fault.body, fault.headers)
            return
        status, found = self._passed_on(handler, body)
        if fault == LOST:
            return  # closes the connection, and curl has an empty reply
        if fault is not None:
            changed = json.loads(found)
            fault(changed)
            found = json.dumps(changed).encode()
        answer(handler, status, found, {})

    def _next(self, path):
        for place, (failing, fault) in enumerate(self._faults):
            if path.endswith(failing):
                del self._faults[place]
                return fault
        return None

    def _passed_on(self, handler, body):
        connection = HTTPConnection(self._target, timeout=20)
        with contextlib.closing(connection):
            kept = {"content-type": handler.headers.get("content-type", "")}
            connection.request(handler.command, handler.path, body or None, kept)
            response = connection.getresponse()
            return response.status, response.read()


def answer(handler, status, body, headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
