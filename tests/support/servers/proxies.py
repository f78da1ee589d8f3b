"""nginx and Caddy in front of a server on this machine, configured as docs/deployment.md says."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers.web_server import make_certificate

NAME = "search.test"
"""What browsers call the proxies: no name of this machine, as for them it would be more trustworthy."""

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "deployment.md"
USER, PASSWORD = "ann", "open sesame"


@dataclass(frozen=True)
class Front:
    """A proxy to be started.

    program: `nginx` or `caddy`. prefix: path below which it shows the server, `strips` whether it takes it
    off. says_prefix: whether it sends X-Forwarded-Prefix. host: nginx's variable for the header Host.
    """

    program: str = "nginx"
    tls: bool = False
    prefix: str = ""
    strips: bool = False
    says_prefix: bool = False
    asks_password: bool = False
    host: str = "$http_host"


def find_program(name: str) -> str:
    """The path of a proxy. A test that needs one was asked for by its mark: it fails where there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    assert found is not None, f"{name} is not installed; apt-get install {name}"
    return found


@contextlib.contextmanager
def proxied(front: Front, upstream_port: int, folder: Path) -> Iterator[str]:
    """Run a proxy; gives the address of the page behind it."""
    program, port = find_program(front.program), free_port()
    folder.mkdir()
    if front.tls:
        make_certificate(folder, NAME)
    if front.program == "nginx":
        (folder / "nginx.conf").write_text(nginx_config(front, port, upstream_port, folder))
        command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "errors.log"]
    else:
        (folder / "Caddyfile").write_text(caddyfile(front, port, upstream_port, folder))
        command = [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(port, process, folder / "output.log")
        yield f"{'https' if front.tls else 'http'}://{NAME}:{port}{front.prefix}/"
    finally:
        process.terminate()
        process.wait(20)


def nginx_config(front: Front, port: int, upstream_port: int, folder: Path) -> str:
    """The guide's server block, with what `front` changes of it."""
    block = re.search(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    server = block[1]
    listen = f"listen 127.0.0.1:{port}"
    if front.tls:
        listen += (
            f" ssl;\n  ssl_certificate {folder}/certificate.pem;\n  ssl_certificate_key {folder}/key.pem"
        )
    changes = {
        "listen 443 ssl": listen,
        "search.example.org": NAME,
        "location / ": f"location {front.prefix}/ ",
        "http://127.0.0.1:8000": f"http://127.0.0.1:{upstream_port}{'/' if front.strips else ''}",
        "Host $http_host;": f"Host {front.host};",
    }
    added = []
    if front.says_prefix:
        added.append(f"proxy_set_header X-Forwarded-Prefix {front.prefix};")
    if front.asks_password:
        hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True)
        (folder / "passwords").write_text(f"{USER}:{hashed.stdout}")
        added += ["auth_basic test;", f"auth_basic_user_file {folder}/passwords;"]
    changes["proxy_request_buffering off;"] = "\n    ".join(["proxy_request_buffering off;", *added])
    for before, after in changes.items():
        assert before in server, before
        server = server.replace(before, after)
    temporary = "".join(
        f"  {kind}_temp_path {folder}/temporary;\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nevents {{}}\n"
        f"http {{\n  access_log {folder}/requests.log;\n{temporary}{server}}}\n"
    )


def caddyfile(front: Front, port: int, upstream_port: int, folder: Path) -> str:
    """The guide's lines for Caddy."""
    scheme = "https" if front.tls else "http"
    lines = [f"reverse_proxy 127.0.0.1:{upstream_port}"]
    if front.strips:
        lines = [
            f"redir {front.prefix} {front.prefix}/",
            f"handle_path {front.prefix}/* {{",
            *lines,
            "}",
        ]
    elif front.prefix:
        lines = [
            f"redir {front.prefix} {front.prefix}/",
            f"reverse_proxy {front.prefix}/* 127.0.0.1:{upstream_port}",
        ]
    if front.tls:
        lines.insert(0, f"tls {folder}/certificate.pem {folder}/key.pem")
    if front.asks_password:
        hashed = subprocess.run(
            [find_program("caddy"), "hash-password", "--plaintext", PASSWORD], capture_output=True, text=True
        ).stdout.strip()
        lines[:0] = ["basicauth {", f"{USER} {hashed}", "}"]
    body = "\n\t".join(lines)
    options = "{\n\tadmin off\n\tauto_https off\n\tstorage file_system " + str(folder / "storage") + "\n}\n"
    return f"{options}{scheme}://{NAME}:{port} {{\n\t{body}\n}}\n"


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `process` listens; fails with its log where it ends or takes half a minute."""
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
