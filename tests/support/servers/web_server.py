"""A web server on this machine that misbehaves on purpose, for downloads: raw sockets, so that it can lie."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Answer = Callable[[socket.socket, str], None]
"""Gets the connection and the path that was asked for; writes what it likes. Then the connection ends."""


@dataclass
class WebServer:
    """Listens on 127.0.0.1:port. requests: the heads of all requests so far, as text."""

    port: int
    answer: Answer
    requests: list[str] = field(default_factory=list)
    is_stopped: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/clip.mp4", host: str = "videos.example", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


def reply(
    body: bytes = b"", status: str = "200 OK", *headers: str, length: bool = True
) -> Callable[[socket.socket, str], None]:
    """An ordinary answer."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length and not any(line.lower().startswith("content-length") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    message = "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def answer(connection: socket.socket, path: str) -> None:
        connection.sendall(message)

    return answer


def by_path(answers: dict[str, Answer]) -> Answer:
    """Different answers for different paths; 404 for any other."""

    def answer(connection: socket.socket, path: str) -> None:
        answers.get(path, reply(status="404 Not Found"))(connection, path)

    return answer


def dripping(head: bytes, drop: bytes, pause_seconds: float, server_stopped: Callable[[], bool]) -> Answer:
    """Sends the head, then a drop now and then, without an end."""

    def answer(connection: socket.socket, path: str) -> None:
        connection.sendall(head)
        while not server_stopped():
            connection.sendall(drop)
            time.sleep(pause_seconds)

    return answer


@contextlib.contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    """A running server; every connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    server = WebServer(listener.getsockname()[1], answer)
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(10)
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    received = connection.recv(65536)
                    if not received:
                        return
                    head += received
                server.requests.append(head.decode("latin-1"))
                server.answer(connection, head.split(b" ", 2)[1].decode("latin-1"))
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

    def accept() -> None:
        while not server.is_stopped.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        server.is_stopped.set()
        acceptor.join()
        listener.close()
        for thread in threads:
            thread.join(15)


def make_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate for these names that signs itself, and its key, made by the openssl command."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={alternatives}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key
