"""A local fake of the Hugging Face hub: one repository at one commit, with configurable faults."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/tiny"
LARGE = "model.safetensors"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class SmallHub:
    """``files``: contents by name; ``LARGE`` is a large file (LFS), the others are in git.

    ``served``: contents that differ from the listing. ``breaks``: number of responses with ``LARGE`` that end in the
    middle. ``refusal``: status and error code of every response. ``gated``: the same for file responses only.
    ``token``: the required token, if any.
    """

    files: dict = field(
        default_factory=lambda: {
            "config.json": b'{"model_type": "tiny"}',
            "README.md": b"not read by any library",
            "pytorch_model.bin": b"not read beside safetensors",
            LARGE: bytes(range(256)) * 4000,
        }
    )
    served: dict = field(default_factory=dict)
    breaks: int = 0
    refusal: tuple | None = None
    gated: bool = False
    token: str | None = None
    requests: list = field(default_factory=list)

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        if self.refusal:
            return self._refuse(request, *self.refusal)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._refuse(request, 401, "RepoNotFound")
        if not path.startswith((f"/api/models/{NAME}/tree/", f"/{NAME}/resolve/")):
            return self._refuse(request, 404, "RepoNotFound")
        if COMMIT not in path:
            return self._refuse(request, 404, "RevisionNotFound")
        if path.startswith("/api/"):
            return self._send(request, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        if name not in self.files:
            return self._refuse(request, 404, "EntryNotFound")
        if self.gated:
            return self._refuse(request, 403, "GatedRepo")
        return self._send_file(request, name)

    def _tree(self):
        entries = []
        for name, content in self.files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if name == LARGE:
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _send_file(self, request, name):
        told = self.files[name]
        content = self.served.get(name, told)
        etag = sha256(told) if name == LARGE else git_sha1(told)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        broken = name == LARGE and request.command == "GET" and self.breaks > 0
        self.breaks -= broken
        self._send(request, content[start:], headers, status=206 if asked else 200, broken=broken)

    def _refuse(self, request, status, code):
        self._send(request, b"", {"X-Error-Code": code} if code else {}, status=status)

    def _send(self, request, content, headers, *, status=200, broken=False):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if broken:
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(2)
            return
        request.wfile.write(content)
