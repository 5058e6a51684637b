"""A chat server that behaves, or misbehaves, as a test tells it to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A completion; ``after_s`` later."""

    text: str | None
    finish: str = "stop"
    after_s: float = 0.0
    usage: bool = True


@dataclass(frozen=True)
class Status:
    """An HTTP error."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "no"


@dataclass(frozen=True)
class Raw:
    """Some bytes with status 200 in place of a completion."""

    content: bytes
    type: str = "application/json"


@dataclass(frozen=True)
class Disconnect:
    """The connection ends in the middle of the answer."""


@dataclass(frozen=True)
class Drip:
    """A byte now and then, without end."""

    every_s: float = 0.05


Behaviour = Answer | Status | Raw | Disconnect | Drip


def system_of(body: Body) -> str:
    first = body["messages"][0]
    return first["content"] if first["role"] == "system" else ""


def text_of(body: Body) -> str:
    content = body["messages"][-1]["content"]
    return next(part["text"] for part in content if part["type"] == "text")


def is_probe(body: Body) -> bool:
    return len(body["messages"]) == 1


class ChatServer:
    """Serves ``POST /v1/chat/completions`` in threads; ``behave`` decides about each request.

    Attributes:
        asked: bodies of all requests but probes, in the order of their arrival.
        keys: the Authorization headers.
        at: when each request (probes too) arrived.
    """

    def __init__(self, behave: Callable[[Body], Behaviour]) -> None:
        self.behave = behave
        self.asked: list[Body] = []
        self.probes = 0
        self.keys: list[str | None] = []
        self.at: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{self.address}/v1"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> ChatServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                owner._connections.add(self.connection)

            def finish(self) -> None:
                owner._connections.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._json(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.at.append(time.monotonic())
                    owner.keys.append(self.headers["Authorization"])
                    if is_probe(body):
                        owner.probes += 1
                    else:
                        owner.asked.append(body)
                    owner._at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner._at_once)
                try:
                    self._behave(owner.behave(body))
                except OSError:  # the client has gone
                    self.close_connection = True
                finally:
                    with owner._lock:
                        owner._at_once -= 1

            def _behave(self, behaviour: Behaviour) -> None:
                if isinstance(behaviour, Status):
                    self._json(behaviour.code, {"error": {"message": behaviour.message}}, behaviour.headers)
                elif isinstance(behaviour, Raw):
                    self._send(200, behaviour.content, {"Content-Type": behaviour.type})
                elif isinstance(behaviour, Disconnect | Drip):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"id": "1", "choi')
                    while isinstance(behaviour, Drip):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(behaviour.every_s)
                    self.close_connection = True
                else:
                    time.sleep(behaviour.after_s)
                    self._json(200, completion(behaviour))

            def _json(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
                self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

            def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(self._connections):  # kept alive, they would go on answering
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ChatServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def completion(answer: Answer) -> dict[str, Any]:
    content: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "finish_reason": answer.finish,
                "message": {"role": "assistant", "content": answer.text},
            }
        ],
    }
    if answer.usage:
        content["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return content
