"""A server on this machine that can go wrong in the ways that downloads must survive."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slt_plugin.common import download


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files`` with Range and If-Range; ``server.faults`` go wrong one after another."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        server = self.server
        server.log.append((self.command, self.headers.get("Range"), self.headers.get("If-Range")))
        fault = server.faults.pop(0) if body and server.faults else {}
        content = server.files.get(self.path)
        status = fault.get("status", server.refuse if content is None else None)
        if status is not None:
            self.send_error(status)
            return
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(start[1]) if start and server.ranges else 0
        if self.headers.get("If-Range") not in (None, server.etag):
            start = 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault.get("length", True):
            self.send_header("Content-Length", str(len(content) - start + fault.get("lie", 0)))
        self.send_header("Content-Type", fault.get("type", "application/octet-stream"))
        self.send_header("ETag", server.etag)
        self.send_header("Last-Modified", "Sun, 29 Dec 2024 10:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(content[start : fault.get("end")])
            self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """files: path (with its query) -> content; refuse: the status of all others."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.log = files, [], []
        self.etag, self.ranges, self.refuse = '"one"', True, 403
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Server]:
    """A running server of these files; downloads in this process retry at once, three times."""
    with pytest.MonkeyPatch.context() as patch, Server(files) as server:
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setattr(download, "PAUSE_SECONDS", (0, 0, 0))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
