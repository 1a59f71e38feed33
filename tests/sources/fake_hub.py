"""A hub on this machine: the few endpoints of huggingface.co that a download uses, over real HTTP."""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository with one commit. Use as a context manager."""

    repository: str
    files: dict[str, bytes]
    token: str = ""
    """If set, only this token reads the repository."""
    gated: bool = False
    cut_after: dict[str, int] = field(default_factory=dict)
    """Files whose next download breaks off after so many bytes, once."""
    ranges: list[str] = field(default_factory=list)
    """The Range headers that came."""
    host: str = "127.0.0.1"
    port: int = 0
    delay_s: float = 0.0
    """How long a file of more than 1 MB keeps one waiting."""
    downloads: list[str] = field(default_factory=list)
    """The files that were read, in order."""

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _answer(hub, self)

            def do_HEAD(self) -> None:
                _answer(hub, self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((self.host, self.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


def _answer(hub: FakeHub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(urlsplit(request.path).path)
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if hub.gated and token != hub.token:
        return _refuse(request, 403, "GatedRepo")
    if hub.token and token != hub.token:
        return _refuse(request, 401, "RepoNotFound")
    if path.startswith(f"/api/models/{hub.repository}/"):
        kind, _, revision = path.removeprefix(f"/api/models/{hub.repository}/").partition("/")
        if revision not in ("main", COMMIT):
            return _refuse(request, 404, "RevisionNotFound")
        return _send(request, json.dumps(_tree(hub) if kind == "tree" else _info(hub)).encode())
    if path.startswith(f"/{hub.repository}/resolve/"):
        name = path.removeprefix(f"/{hub.repository}/resolve/").partition("/")[2]
        return _send_file(hub, request, name)
    return _refuse(request, 404, "RepoNotFound")


def _info(hub: FakeHub) -> dict[str, object]:
    siblings = [{"rfilename": name} for name in hub.files]
    return {"id": hub.repository, "modelId": hub.repository, "sha": COMMIT, "private": False, "siblings": siblings}


def _tree(hub: FakeHub) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in hub.files.items()
    ]


def _send_file(hub: FakeHub, request: BaseHTTPRequestHandler, name: str) -> None:
    content = hub.files[name]
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
    begin = 0
    if wanted := request.headers.get("Range"):
        hub.ranges.append(wanted)
        begin = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
    if request.command == "GET":
        hub.downloads.append(name)
        if len(content) > 1_000_000:
            time.sleep(hub.delay_s)
    cut = hub.cut_after.pop(name, None) if request.command == "GET" else None
    _send(request, content[begin:], headers, status=206 if begin else 200, cut=cut)


def _send(
    request: BaseHTTPRequestHandler,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    status: int = 200,
    cut: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body[:cut])
        request.wfile.flush()
    if cut is not None:
        request.connection.shutdown(2)
        request.close_connection = True


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _send(request, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status=status)
