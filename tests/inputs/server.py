"""An HTTP server on loopback that answers as it is told, one by one: the right thing, or one of many wrong ones."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:  # the name that http.server asks for
        self.server.requests.append(Request(self.path, dict(self.headers.items())))
        answers = self.server.answers.get(self.path.partition("?")[0])
        if answers is None:
            send(self, b"", status=404)
            return
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, format: str, *args: object) -> None:
        return


@dataclass
class Request:
    path: str
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """`answers`: by path, one after the other, the last again and again. `requests`: what was asked. With a `tls`
    context it speaks HTTPS."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._scheme = "https" if tls else "http"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        return  # clients that hang up are what is tested

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.server_port}{path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


def send(handler: Handler, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
    """Headers and a body; `length` is what is said of it."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    if length is not None and length > len(body):
        hang_up(handler)


def hang_up(handler: Handler) -> None:
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def empty(status: int = 200, **headers: str) -> Answer:
    return lambda handler: send(handler, b"", status=status, **headers)


def rest(body: bytes, start: int, total: int, etag: str = '"one"') -> Answer:
    """A part of a file of `total` bytes, of which it says that it begins at `start`."""
    where = f"bytes {start}-{start + len(body) - 1}/{total}"
    return lambda handler: send(handler, body, status=206, Content_Range=where, **({"ETag": etag} if etag else {}))


def says(words: bytes) -> Answer:
    """These very bytes instead of an answer, and the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(words)
        hang_up(handler)

    return answer


def good(data: bytes, etag: str = '"one"', **headers: str) -> Answer:
    """As servers should: with ranges."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        if asked is None or condition not in (None, etag):
            send(handler, data, ETag=etag, Accept_Ranges="bytes", **headers)
            return
        start = int(asked[1])
        if start >= len(data):
            send(handler, b"", status=416, Content_Range=f"bytes */{len(data)}", ETag=etag)
            return
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        send(handler, data[start:], status=206, Content_Range=where, ETag=etag, **headers)

    return answer


def cut(data: bytes, at: int, etag: str = '"one"', **headers: str) -> Answer:
    """Says how long it is, and hangs up before."""
    return lambda handler: send(handler, data[:at], length=len(data), **({"ETag": etag} if etag else {}), **headers)


def cut_further(data: bytes, each: int, etag: str = '"one"') -> Answer:
    """With ranges as it should, but hangs up after so many bytes."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        if asked is None:
            send(handler, data[:each], length=len(data), ETag=etag)
            return
        start = int(asked[1])
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        send(handler, data[start:][:each], status=206, length=len(data) - start, Content_Range=where, ETag=etag)

    return answer


def drips(data: bytes, each: int, pause: float, etag: str = '"one"') -> Answer:
    """With ranges as it should, a few bytes at a time."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.send_header("ETag", etag)
        handler.end_headers()
        for at in range(start, len(data), each):
            handler.wfile.write(data[at : at + each])
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def stalls(data: bytes, at: int, release: threading.Event, etag: str = '"one"') -> Answer:
    """Sends a part, then nothing for as long as nobody says so."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(data[:at])
        handler.wfile.flush()
        release.wait(20)
        handler.close_connection = True

    return answer


def chunked(data: bytes, *, whole: bool = True) -> Answer:
    """In chunks, without a length; not `whole`: without the mark at the end."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        middle = len(data) // 2
        for piece in (data[:middle], data[middle:]) if whole else (data[:middle],):
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if whole:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            hang_up(handler)

    return answer


def until_the_end(data: bytes) -> Answer:
    """Without a length, as HTTP/1.0 did: the end of the connection is the end of the file."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)
        hang_up(handler)

    return answer


def redirect(to: str, status: int = 302, headers: Mapping[str, str] = {}) -> Answer:
    return lambda handler: send(handler, b"", status=status, Location=to, **headers)
