"""A Hugging Face Hub on this machine: the part of its HTTP API that publishing and fetching a model use.

Repositories, branches, commits, the LFS batch and PUT, the file tree and downloads behave as the real ones do
for huggingface_hub; nothing is persisted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Branches lead to commits, commits to files; a file is its bytes and whether it went through LFS."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, changes: dict[str, tuple[bytes, bool]], message: str) -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        name = hashlib.sha1(f"{branch} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        self.messages.append(message)
        return name


class Hub:
    """What the server holds. tokens: of people, by what they may do: `write` or `read`."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.tokens = {"hf_may_write": "write", "hf_may_read": "read"}
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken_path: str | None = None


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)", "info"),
    ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
    ("GET", r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "upload"),
    ("(GET|HEAD)", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """One request. Private repositories do not exist for those who may not see them, as on the Hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep silent."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.broken_path and self.hub.broken_path in path:
                raise Refused(501, message="not today")
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and re.fullmatch(method, self.command):
                    values = {key: unquote(value) for key, value in match.groupdict().items()}
                    getattr(self, action)(body, **values)
                    return
            raise Refused(404, "EntryNotFound")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self.send(refused.status, {"error": refused.message}, headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Permission

    @property
    def right(self) -> str | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def require_write(self) -> None:
        if self.right is None:
            raise Refused(401, message="Invalid username or password.")
        if self.right != "write":
            raise Refused(403, message="You don't have the rights to create a model under this namespace")

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.right is None):
            raise Refused(401 if self.right is None else 404, "RepoNotFound", "Repository not found")
        return found

    def commit_of(self, repository: Repository, revision: str) -> str:
        name = repository.branches.get(revision, revision)
        if name not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return name

    # Publishing

    def create(self, body: bytes) -> None:
        self.require_write()
        asked = json.loads(body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            self.send(409, {"error": "You already created this model repo", "url": url})
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.repositories[name] = Repository(private)
        repository.commit("main", {".gitattributes": (b"", False)}, "initial commit")
        self.send(200, {"url": url, "name": name})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if not content.startswith("---\n") or "\n---\n" not in content:
            self.send(400, {"errors": [{"message": "no metadata"}]}, {"X-Error-Code": "BadRequest"})
            return
        self.send(200, {"errors": [], "warnings": []})

    def branch(self, body: bytes, name: str, revision: str) -> None:
        self.require_write()
        repository = self.repository(name)
        if revision in repository.branches:
            raise Refused(409, message="Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        self.send(200, {})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self.require_write()
        self.commit_of(self.repository(name), revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self.require_write()
        objects = [
            {
                **one,
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(422, message="checksum")
        self.hub.uploads[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self.require_write()
        repository = self.repository(name)
        self.commit_of(repository, revision)
        changes: dict[str, tuple[bytes, bool]] = {}
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                changes[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                changes[value["path"]] = (self.hub.uploads[value["oid"]], True)
        made = repository.commit(revision, changes, message)
        url = f"{self.hub.endpoint}/{name}/commit/{made}"
        self.send(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    # Fetching

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repository = self.repository(name)
        commit = self.commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        facts = {"_id": "1", "id": name, "sha": commit, "private": repository.private, "siblings": siblings}
        self.send(200, {**facts, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        repository = self.repository(name)
        entries = []
        for path, (content, is_lfs) in repository.commits[self.commit_of(repository, revision)].items():
            entry: dict[str, Any] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_hash(content),
            }
            if is_lfs:
                entry["lfs"] = {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 130,
                }
            entries.append(entry)
        self.send(200, entries)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        commit = self.commit_of(repository, revision)
        if path not in repository.commits[commit]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, is_lfs = repository.commits[commit][path]
        etag = hashlib.sha256(content).hexdigest() if is_lfs else git_hash(content)
        self.send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})


def git_hash(content: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers at `endpoint` until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
