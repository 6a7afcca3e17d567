"""A program that serves captions by the OpenAI API, for tests that start a server by a command.

python small_caption_server.py --port N [--delay S] [--die-after N] [--child FILE] [--stubborn] [--say TEXT]
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil


def servers_of(text):
    """Return the processes of this machine whose command line contains a text: servers and their guards."""
    return [
        one for one in psutil.process_iter(["cmdline"]) if any(text in word for word in one.info["cmdline"] or ())
    ]


def are_gone(ids):
    """Return whether the processes that a server wrote to its ``--child`` file have ended."""
    return not any(_is_running(int(pid)) for pid in ids.read_text().split())


def _is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def caption(prompt, seed):
    """Return an answer that depends on the prompt and the seed alone."""
    nouns = " and a ".join(re.findall(r'use the word "([\w ]+)"', prompt))
    return json.dumps({"with": f"A grey {nouns} {seed}", "without": "Mist over still water."})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answered = 0
    die_after = 0

    def do_GET(self):
        self.reply({"status": "ok"} if self.path == "/health" else {"error": "no such path"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.die_after and Handler.answered >= self.die_after:
            print("the model was lost", flush=True)
            os._exit(9)
        Handler.answered += 1
        text = caption(body["messages"][0]["content"], body["seed"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self.reply(
            {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        )

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200 if "error" not in value else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before the server listens")
    parser.add_argument("--die-after", type=int, default=0, help="requests, after which the process exits with 9")
    parser.add_argument("--child", type=Path, help="start another process, and write both process ids to this file")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--say", default="loading the model")
    arguments = parser.parse_args()
    if arguments.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if arguments.child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        arguments.child.write_text(f"{os.getpid()} {child.pid}")
    print(arguments.say, flush=True)
    time.sleep(arguments.delay)
    Handler.die_after = arguments.die_after
    ThreadingHTTPServer((arguments.host, arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
