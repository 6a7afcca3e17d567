"""A local HTTP server for the chat completions protocol, with scripted faults."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = json.dumps({"with": "A grey cat on a red sofa.", "without": "A red sofa by a window."})


def completion(text=GOOD, finish="stop"):
    """Return the body of a well-formed answer."""
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}, "logprobs": None}
        ],
    }


class Reply:
    """One response: status, body (bytes, or a value for JSON), headers. ``length``: a false Content-Length."""

    def __init__(self, body=None, *, status=200, headers=None, delay=0.0, length=None, hang_up=False):
        body = completion() if body is None else body
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.headers, self.delay = status, headers or {}, delay
        self.length, self.hang_up = length, hang_up


class BadServer:
    """A context manager that runs the server. ``script``: a function (request number, JSON body) -> `Reply`."""

    def __init__(self, script: Callable[[int, dict], Reply] = lambda number, body: Reply()):
        self.script = script
        self.bodies, self.keys, self.times = [], [], []
        self.most_at_once = 0
        self._open = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                owner.handle(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def handle(self, http):
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(http.headers.get("Authorization"))
            self.times.append(time.monotonic())
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            reply = self.script(number, body)
            time.sleep(reply.delay)
            if reply.hang_up:
                http.close_connection = True
                return
            http.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                http.send_header(name, value)
            http.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
            http.end_headers()
            http.wfile.write(reply.body)
            if reply.length is not None:
                http.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self._open -= 1

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
