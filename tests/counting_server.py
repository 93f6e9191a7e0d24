"""A server on 127.0.0.1 that speaks OpenAI's chat interface, counts questions, and fails in every way servers do.

Questions in the form of the Perspective API are taken, too.
"""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CountingServer(ThreadingHTTPServer):
    """`answer(question)` gives an answer's text, or a (status, content type, body), or "drop" or "hang"."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: CountingServer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"] if "messages" in body else body["comment"]["text"]
        with self.server.lock:
            self.server.asked[question] += 1
            self.server.keys.add(self.headers["Authorization"])
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
        try:
            self._answer(self.server.answer(question))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the one who asked has gone
        finally:
            with self.server.lock:
                self.server.now -= 1

    def _answer(self, answer):
        if answer == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if answer == "hang":
            time.sleep(30)
            return
        if isinstance(answer, str):
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            answer = (200, "application/json", json.dumps(about | {"choices": [choice], "usage": usage}))
        status, kind, body = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        """Keep the tests quiet."""


@contextmanager
def counting_server(answer):
    with serving(CountingServer(answer)) as server:
        yield server


@contextmanager
def serving(server):
    """Let a server answer in a thread of its own, and stop it."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
