"""Ask a running api for what users ask for; `verify.sh` runs this inside the api's container.

    python - KEY VIDEO < docker/smoke.py

Standard library alone. Ends with a traceback, and status 1, at the first answer that is not as it should be.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

ADDRESS = ("127.0.0.1", int(os.environ.get("XCLIP_PORT") or 8000))


def ask(
    method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection(*ADDRESS, timeout=90)
    connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def search(key: str, text: str) -> tuple[int, Any]:
    """Status and answer of a search."""
    body = json.dumps({"query": text}).encode()
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    status, headers, content = ask("POST", "/search", body, Content_Type="application/json", **authorization)
    assert len(headers.get_all("Content-Security-Policy", [])) == 1
    return status, json.loads(content)


def upload(key: str, file: bytes) -> tuple[int, Any]:
    """Status and answer of an upload that waits until the video is searchable, or is refused."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n\r\n'
    status, _, content = ask(
        "POST",
        "/videos?wait=true",
        head.encode() + file + f"\r\n--{boundary}--\r\n".encode(),
        Content_Type=f"multipart/form-data; boundary={boundary}",
        Authorization=f"Bearer {key}",
    )
    return status, json.loads(content)


def main(key: str, video: Path) -> None:
    """Upload, search, look, be refused without a key."""
    status, answer = search("", "a red circle")
    assert status == 401, (status, answer)
    status, answer = upload(key, video.read_bytes())
    # 200: the same bytes are in already, when this runs for the second time.
    assert status in (200, 201), (status, answer)
    video_id = answer["video"]["id"]
    first_time = status == 201
    status, answer = search(key, "a red circle")
    assert status == 200, (status, answer)
    (result,) = [result for result in answer["results"] if result["id"] == video_id]
    status, _, picture = ask("GET", result["thumbnail_url"], Authorization=f"Bearer {key}")
    assert status == 200, status
    assert picture[:3] == b"\xff\xd8\xff"
    status, _, content = ask("GET", result["media_url"], Authorization=f"Bearer {key}", Range="bytes=0-99")
    assert status == 206, status
    assert content == video.read_bytes()[:100]
    status, refusal = upload(key, b"#EXTM3U\n/etc/passwd\n")
    assert status >= 400 or refusal["job"]["state"] == "failed", (status, refusal)
    how = "uploaded" if first_time else "was there already"
    place = f"rank {result['rank']} of {answer['num_videos']}"
    sys.stdout.write(f"{how}, found at {place}, shown and played; a playlist is refused\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
