"""Ask a running api for what users ask for; `verify.sh` runs this inside the api's container.

    python - KEY VIDEO FOREIGN < docker/smoke.py

VIDEO is one that browsers play, FOREIGN one that they do not.

Standard library alone. Ends with a traceback, and status 1, at the first answer that is not as it should be.
"""

from __future__ import annotations

import http.client
import json
import os
import re
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


def upload(key: str, name: str, file: bytes) -> tuple[int, Any]:
    """Status and answer of an upload that waits until the video is searchable, or is refused."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    status, _, content = ask(
        "POST",
        "/videos?wait=true",
        head.encode() + file + f"\r\n--{boundary}--\r\n".encode(),
        Content_Type=f"multipart/form-data; boundary={boundary}",
        Authorization=f"Bearer {key}",
    )
    return status, json.loads(content)


def look_at_page() -> int:
    """Fetch the page and all that it loads; returns how many files that was. No key is needed for them."""
    seen: set[str] = set()
    left = {"/", "/docs"}
    while left:
        path = left.pop()
        seen.add(path)
        status, headers, content = ask("GET", path)
        assert status == 200, (path, status)
        if headers.get_content_type() in ("text/html", "text/javascript"):
            named = re.findall(r"""(?:page|\.)/([a-z_-]+\.(?:js|css|svg))["']""", content.decode())
            left |= {f"/page/{name}" for name in named} - seen
    return len(seen)


def look_at_preview(key: str, video_id: str) -> int:
    """Play a video that browsers cannot: an MP4 made from it; returns its size in bytes."""
    status, _, content = ask("GET", f"/videos/{video_id}", Authorization=f"Bearer {key}")
    assert status == 200, status
    described = json.loads(content)
    assert described["playable"] is False, described
    status, headers, clip = ask("GET", described["preview_url"], Authorization=f"Bearer {key}")
    assert status == 200, (status, clip[:500])
    assert headers.get_content_type() == "video/mp4"
    assert clip[4:8] == b"ftyp"
    return len(clip)


def main(key: str, video: Path, foreign: Path) -> None:
    """Load the page, upload, search, look, play, be counted, be refused without a key."""
    num_files = look_at_page()
    status, answer = search("", "a red circle")
    assert status == 401, (status, answer)
    status, answer = upload(key, video.name, video.read_bytes())
    # 200: the same bytes are in already, when this runs for the second time.
    assert status in (200, 201), (status, answer)
    video_id = answer["video"]["id"]
    first_time = status == 201
    status, answer = upload(key, foreign.name, foreign.read_bytes())
    assert status in (200, 201), (status, answer)
    preview_bytes = look_at_preview(key, answer["video"]["id"])
    status, answer = search(key, "a red circle")
    assert status == 200, (status, answer)
    (result,) = [result for result in answer["results"] if result["id"] == video_id]
    assert result["playable"] is True, result
    status, _, picture = ask("GET", result["thumbnail_url"], Authorization=f"Bearer {key}")
    assert status == 200, status
    assert picture[:3] == b"\xff\xd8\xff"
    status, _, content = ask("GET", result["media_url"], Authorization=f"Bearer {key}", Range="bytes=0-99")
    assert status == 206, status
    assert content == video.read_bytes()[:100]
    status, refusal = upload(key, "clip.mp4", b"#EXTM3U\n/etc/passwd\n")
    assert status >= 400 or refusal["job"]["state"] == "failed", (status, refusal)
    status, _, content = ask("GET", "/metrics", Authorization=f"Bearer {key}")
    assert status == 200, status
    assert re.search(rb"^xclip_ready 1\.0$", content, flags=re.MULTILINE), content[:2000]
    how = "uploaded" if first_time else "was there already"
    place = f"rank {result['rank']} of {answer['num_videos']}"
    sys.stdout.write(f"page of {num_files} files; {how}, found at {place}, shown and played; ")
    sys.stdout.write(
        f"{foreign.suffix} shown as {preview_bytes} bytes of MP4; counted; a playlist is refused\n"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
