"""Start the cluster of docker-compose.yml, and see that it does what docs/cluster.md promises.

    POSTGRES_PASSWORD=... VIDEOS_DIR=$HOME/clips python docker/cluster/verify.py NEW.mp4

NEW.mp4 is a video that is not among those of VIDEOS_DIR. Needs Docker with Compose, takes its variables
(POSTGRES_IMAGE, RAY_CPUS, HTTP_PORT, ...), and works in a project of its own, whose volumes it deletes.
Standard library alone. Ends with a traceback, and status 1, at the first thing that is not as it should be.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
COMPOSE = ("docker", "compose", "--project-name", "xclip-cluster-verify", "--profile", "cluster")
COMPOSE += ("--file", str(FOLDER / "docker-compose.yml"))
PORT = int(os.environ.get("HTTP_PORT") or 8000)
NUM_SEARCHING = 2
"""Clients that search meanwhile; so many searches at most are under way."""
DECODERS = os.environ.get("RAY_CPUS") or "2"

ASK = """
import http.client, json, sys
method, path, body, headers = json.loads(sys.argv[1])
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
connection.request(method, path, body, headers)
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders()), answer.read().decode()]))
"""
"""Run inside an api's container, which publishes no port."""


class Answer(NamedTuple):
    """An answer, and how long it took."""

    status: int
    headers: dict[str, str]
    content: Any
    seconds: float


def compose(*arguments: str, limit_seconds: float = 900) -> str:
    """Output of a command of Compose; CalledProcessError where it fails."""
    done = subprocess.run([*COMPOSE, *arguments], capture_output=True, text=True, timeout=limit_seconds)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout


def say(text: str) -> None:
    """A line of the report, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Cluster:
    """Requests to the proxy, or to one api, with a key."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, content: object = None, *, api: str = "") -> Answer:
        """An answer of the proxy, or of the service `api`."""
        headers = self._headers | ({} if content is None else {"Content-Type": "application/json"})
        body = None if content is None else json.dumps(content)
        if not api:
            return request(method, path, body and body.encode(), headers)
        begin = time.monotonic()
        sent = json.dumps([method, path, body, headers])
        status, received, text = json.loads(compose("exec", "-T", api, "python", "-c", ASK, sent))
        return Answer(status, received, _content(text.encode()), time.monotonic() - begin)

    def search(self) -> Answer:
        """A search through the proxy, of another text each time."""
        return self.ask("POST", "/search", {"query": f"a red circle {uuid.uuid4().hex[:6]}", "limit": 5})

    def upload(self, video: bytes, query: str = "?wait=true") -> Answer:
        """Upload through the proxy."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="new.mp4"\r\n\r\n'
        body = head.encode() + video + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return request("POST", f"/videos{query}", body, self._headers | headers)


def request(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    """One request to the proxy over a connection of its own."""
    begin = time.monotonic()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
    return Answer(answer.status, dict(answer.getheaders()), _content(content), time.monotonic() - begin)


def _content(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


def index() -> str:
    """The summary of the command that indexes the folder of videos on the Ray nodes."""
    arguments = ("index", "/videos", "--ray", "auto", "--workers", DECODERS)
    output = compose("exec", "-T", "ray-head", "xclip-search", *arguments)
    return next(line for line in output.splitlines() if " unchanged, " in line)


def check_indexing(cluster: Cluster) -> int:
    """Index the folder twice; returns how many videos there are."""
    first, second = index(), index()
    num_videos = int(cluster.ask("GET", "/stats").content["num_videos"])
    assert first.startswith(f"{num_videos} added") and " 0 failed" in first, first
    assert second.startswith("0 added") and f" {num_videos} unchanged" in second, second
    assert (
        request("POST", "/search", b'{"query": "a dog"}', {"Content-Type": "application/json"}).status == 401
    )
    found = cluster.search()
    assert found.status == 200 and found.content["num_videos"] == num_videos, found
    say(f"on three Ray nodes: {first}; again: {second}; a search without the key: 401")
    return num_videos


def check_sharing(cluster: Cluster, video: bytes) -> None:
    """What is added or deleted at one api is so at the other; lists and sessions go on there."""
    added = cluster.upload(video)
    assert added.status == 201 and added.content["job"]["state"] == "done", added
    path = f"/videos/{added.content['video']['id']}"
    assert [cluster.ask("GET", path, api=api).status for api in ("api-1", "api-2")] == [200, 200]
    assert cluster.upload(video).status == 200, "the same bytes again"
    whole = [one["id"] for one in cluster.ask("GET", "/videos?limit=6").content["videos"]]
    begun = cluster.ask("GET", "/videos?limit=3", api="api-1").content
    rest = cluster.ask("GET", f"/videos?limit=3&after={begun['next']}", api="api-2").content
    assert [one["id"] for one in begun["videos"] + rest["videos"]] == whole
    assert cluster.ask("DELETE", path, api="api-1").status == 204
    assert [cluster.ask("GET", path, api=api).status for api in ("api-2", "api-1")] == [404, 404]
    session = cluster.ask("POST", "/session", {"key": cluster.key}, api="api-1").headers["set-cookie"]
    asked = json.dumps(["GET", "/session", None, {"Cookie": session.partition(";")[0]}])
    assert '"write"' in json.loads(compose("exec", "-T", "api-2", "python", "-c", ASK, asked))[2]
    say(
        f"an upload was at both apis after {added.seconds:.2f} s; deleted at one it was gone at the other;"
        " a list and a browser's session went on there"
    )


@contextlib.contextmanager
def searching(cluster: Cluster) -> Iterator[list[tuple[float, Answer]]]:
    """Search again and again meanwhile; gives when each began and its answer, and has them all at the end."""
    answers: list[tuple[float, Answer]] = []
    ended = threading.Event()

    def search() -> None:
        while not ended.wait(0.05):
            answers.append((time.monotonic(), cluster.search()))

    threads = [threading.Thread(target=search) for _ in range(NUM_SEARCHING)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def check_killed_api(cluster: Cluster) -> None:
    """Searches go on while an api is stopped or killed, but for those under way in one that is killed."""
    for how, most_lost in (("stop", 0), ("kill", NUM_SEARCHING)):
        with searching(cluster) as answers:
            time.sleep(2)
            compose(how, "api-1")
            time.sleep(6)
            compose("up", "--detach", "--wait")
            time.sleep(3)
        wrong = [answer for _, answer in answers if answer.status != 200]
        assert len(wrong) <= most_lost and all(answer.status == 502 for answer in wrong), (how, wrong)
        slowest = max(answer.seconds for _, answer in answers)
        say(
            f"api-1: {how}, and up again: {len(answers)} searches, the slowest in {slowest:.2f} s; "
            f"{len(wrong)} answered 502"
        )


def check_outage(cluster: Cluster, how: tuple[str, str]) -> None:
    """The database is away for 10 s: refusals in time, and searches go on by themselves."""
    with searching(cluster) as answers:
        time.sleep(2)
        compose(how[0], "postgres")
        time.sleep(10)
        alive = cluster.ask("GET", "/healthz").status
        compose(how[1], "postgres")
        back = time.monotonic()
        deadline = back + 60
        while cluster.search().status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        recovered = time.monotonic() - back
        while compose("ps", "--format", "{{.Health}}", "postgres").strip() != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.5)
    refused = [answer for _, answer in answers if answer.status != 200]
    assert alive == 200 and refused
    for answer in refused:
        assert answer.status == 503 and answer.content["type"].endswith(":index-unavailable"), answer
        assert "Retry-After" in answer.headers
    slowest = max(answer.seconds for answer in refused)
    assert slowest < 2.5, slowest
    assert answers[-1][1].status == 200
    say(
        f"postgres: {how[0]}: {len(refused)} searches refused as index-unavailable, "
        f"the slowest in {slowest:.2f} s; {recovered:.1f} s after {how[1]} they were answered"
    )


def check_ray(num_videos: int) -> None:
    """Workers cannot reach Ray, and its nodes come back after a new head."""
    connect = "import socket; socket.create_connection(('ray-head', 6379), 3)"
    asked = subprocess.run([*COMPOSE, "exec", "-T", "worker", "python", "-c", connect], capture_output=True)
    assert asked.returncode and b"gaierror" in asked.stderr, asked
    compose("restart", "ray-head")
    compose("up", "--detach", "--wait")
    deadline = time.monotonic() + 180
    status = ""
    while status.count(" 1 node_") < 3:
        assert time.monotonic() < deadline, status
        time.sleep(2)
        with contextlib.suppress(subprocess.CalledProcessError):
            status = compose("exec", "-T", "ray-head", "ray", "status")
    assert f" {num_videos} unchanged" in index()
    say("Ray cannot be reached from a worker; its nodes joined again when its head was restarted")


def check_workers(cluster: Cluster, video: bytes) -> None:
    """Three workers take uploads; a killed one's job is done by another."""
    compose("up", "--detach", "--wait", "--scale", "worker=3")
    names = compose("ps", "--format", "{{.Name}}", "worker").split()
    assert len(names) == 3, names
    num_uploads = 12
    # Other bytes in each, or it would be known: an empty box at the end.
    boxes = [b"\0\0\0\x08free" * (number + 1) for number in range(num_uploads)]
    answers = [cluster.upload(video + box, "") for box in boxes]
    assert {answer.status for answer in answers} == {202}, answers
    subprocess.run(["docker", "kill", names[0]], check=True, capture_output=True)
    deadline = time.monotonic() + 180
    while (jobs := cluster.ask("GET", "/stats").content["jobs"])["queued"] + jobs["running"]:
        assert time.monotonic() < deadline, jobs
        time.sleep(0.2)
    assert jobs["failed"] == 0, jobs
    for answer in answers:
        assert cluster.ask("DELETE", f"/videos/{answer.content['video']['id']}").status == 204
    say(f"three workers, one killed: all of {num_uploads} uploads were read")


def main(video: bytes) -> None:
    """Build, start, use, break, start again."""
    compose("build")
    key = compose(
        "run", "--rm", "--no-TTY", "admin", "keys", "add", "--name", "verify", "--scope", "write"
    ).strip()
    begin = time.monotonic()
    compose("up", "--detach", "--wait")
    say(f"up after {time.monotonic() - begin:.0f} s")
    cluster = Cluster(key)
    num_videos = check_indexing(cluster)
    check_sharing(cluster, video)
    check_killed_api(cluster)
    check_outage(cluster, ("stop", "start"))
    assert "not properly shut down" not in compose("logs", "postgres")
    check_outage(cluster, ("pause", "unpause"))
    check_workers(cluster, video)
    check_ray(num_videos)
    compose("down")
    compose("up", "--detach", "--wait")
    assert cluster.ask("GET", "/stats").content["num_videos"] == num_videos
    assert f" {num_videos} unchanged" in index()
    assert "clean" in compose("run", "--rm", "--no-TTY", "admin", "verify")
    say("down and up again: the index is there, nothing is indexed twice, and verify finds it whole")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).read_bytes())
    except BaseException:
        services = ("postgres", "api-1", "api-2", "worker", "ray-head", "ray-worker")
        sys.stderr.write(compose("logs", "--no-color", "--tail", "20", *services))
        raise
    finally:
        compose("down", "--volumes", "--timeout", "5")
