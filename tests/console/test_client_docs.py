"""The example of docs/client.md runs, and its table names every method."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from service.ingest.worker import Worker
from service.settings import Settings
from tests.faults.dying_worker import read_by_rote
from tests.support.servers.service_fakes import running
from tests.support.servers.serving_thread import served
from xclip_search.client import Client

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text(encoding="utf-8")


def test_the_example_runs_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    content = b"\x00\x00\x00\x18ftypmp42" + bytes(100_000)
    (tmp_path / "clip.mp4").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "index") as service, served(service.app) as url:
        assert "http://127.0.0.1:8000" in example
        stop = threading.Event()
        store = service.app.state.service.media_store
        settings = Settings(index=service.directory, poll_seconds=0.01)
        worker = threading.Thread(
            target=Worker(settings, service.catalog, store, read_by_rote).run, args=(stop,)
        )
        worker.start()
        try:
            exec(compile(example.replace("http://127.0.0.1:8000", url), "docs/client.md", "exec"), {})
        finally:
            stop.set()
            worker.join()
    printed = capsys.readouterr().out
    assert f"{len(content)} of {len(content)} bytes" in printed and " 10.00 a clip at 5.0 s" in printed
    assert "404 video-not-found No video has this id." in printed
    assert (tmp_path / "copy.mp4").read_bytes() == content


def test_the_table_names_every_method() -> None:
    first_cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    named = set(re.findall(r"`(\w+)`", "".join(first_cells)))
    methods = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    assert methods == named
