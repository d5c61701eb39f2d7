"""What stands between the network and ``slt-demo``'s page: it lets through what the page needs, and no more.

Gradio has addresses that serve files of the machine, fetch others from the network on a visitor's word, take
recordings and edit code; and within another app it takes any path of the machine for an upload (6.31). Here a request
must be one that the page makes: a known address, from this page, of limited size, and with no file in it but an
upload. What the page shows is in its answers, so no file is served, not even an upload.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/[\w./@~+-]+)?"
    r"|/gradio_api/(info|app_id|startup-events|theme\.css|queue/data|upload_progress|heartbeat/\w+)/?"
)
_UPLOAD = "/gradio_api/upload"
_WRITE = re.compile(rf"/gradio_api/(queue/join|cancel|reset)/?|{_UPLOAD}")
_MAX_JSON = 1 << 20
_FORM = 1 << 16  # what a form adds to the file in it
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        hosts: names under which the page may be asked for (the header Host, without port); () for any. A page of the
            network whose name leads to this machine (DNS rebinding) has another one.
        uploads: where uploaded files are.
        max_upload: bytes of an uploaded file.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hosts: tuple[str, ...],
        uploads: Path,
        max_upload: int,
    ):
        self.app, self.hosts, self.max_upload = app, hosts, max_upload
        self.uploads = Path(os.path.realpath(uploads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websocket is accepted
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["method"], scope["path"], headers)
        if refused is None and scope["method"] == "POST" and scope["path"] != _UPLOAD:
            body = await _body(receive)
            refused = self._refused_body(body)
            receive = _replay(body, receive)
        if refused is not None:
            await _answer(send, *refused)
            return
        await self.app(scope, receive, _with_headers(send))

    def _refused(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and message where the request is not let through."""
        host = headers.get("host", "")
        if self.hosts and re.sub(r":\d+$", "", host) not in self.hosts:
            return 403, f"slt-demo is not asked for as {host!r}"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "not allowed"
        if not (_WRITE if method == "POST" else _READ).fullmatch(path) or ".." in path:
            return 403, "slt-demo serves nothing here"
        if method != "POST":
            return None
        origin = headers.get("origin")
        if origin is not None and re.sub(r"^https?://", "", origin) != host:
            return 403, f"slt-demo takes no requests from pages of {origin}"
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "content-length is needed"
        if path == _UPLOAD and int(length) > self.max_upload + _FORM:
            return (
                413,
                f"the file is larger than {self.max_upload / 1e6:g} MB, the limit of this page (--max-upload-mb)",
            )
        if path != _UPLOAD and int(length) > _MAX_JSON:
            return 413, "the request is too large"
        return None

    def _refused_body(self, body: bytes) -> tuple[int, str] | None:
        try:
            value = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return 400, "the request is no JSON"
        if not all(map(self._is_upload, _paths(value))):
            return 403, "slt-demo takes uploaded files only"
        return None

    def _is_upload(self, path: object) -> bool:
        """An address (http://...) is none either: Gradio would download it, from within the machine's network."""
        if not isinstance(path, str) or "\0" in path:
            return False
        return os.path.isabs(path) and Path(os.path.realpath(path)).is_relative_to(self.uploads)


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return waiting.pop() if waiting else await receive()

    return replayed


def _paths(value: object) -> Iterator[object]:
    """Whatever a request calls a "path": so are files named in it."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield item["path"]
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
