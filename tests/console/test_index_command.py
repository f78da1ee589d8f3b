"""`xclip-search index`, `search` and `info` as a user meets them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from indexer.errors import IndexDamagedError, IndexFullError, IndexNotFoundError
from indexer.ingest.synchronisation import Synchronisation
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from tests.support.video_files import write_coloured_video
from xclip_search import app
from xclip_search.console import printable

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(5):
        write_coloured_video(folder / f"colour {number}.mp4", (50 * number, 20, 200), 1 + number)
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, model_directory: Path) -> Path:
    directory = tmp_path_factory.mktemp("made") / "index"
    result = _run("index", corpus, "--index", directory, "--model", model_directory, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "5 added (5 segments), 0 unchanged, 0 failed" in result.stdout
    return directory


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_was_indexed_is_found(indexed: Path) -> None:
    result = _run("search", "a blue square", "--index", indexed, "--limit", 3, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["query"], answer["mode"], answer["num_videos"]) == ("a blue square", "rerank", 5)
    assert [found["rank"] for found in answer["results"]] == [1, 2, 3]
    first = answer["results"][0]
    assert set(first["scores"]) == {"video_sentence", "video_word", "sentence_frame", "frame_word"}
    assert first["title"].startswith("colour")
    assert first["uri"].startswith("file:///")
    assert first["uri"].endswith(".mp4")
    assert first["moments"][0].keys() == {"time_seconds", "score"}
    assert "explanation" not in first

    table = _run("search", "a blue square", "--index", indexed, "--mode", "exhaustive")
    assert table.exit_code == 0, table.output
    assert "5 of 5 videos in" in table.stdout


def test_videos_that_look_the_same_are_one_line_that_names_them(
    corpus: Path, model_directory: Path, tmp_path: Path
) -> None:
    index, folder = tmp_path / "index", tmp_path / "copies"
    folder.mkdir()
    first = corpus / "colour 1.mp4"
    shutil.copy(first, folder / "first.mp4")
    copy = folder / "copy.mp4"
    copy.write_bytes(first.read_bytes() + b"\0\0\0\x08free")  # Another file that shows the same.
    added = _run("index", folder, "--index", index, "--model", model_directory, "--workers", 1)
    assert added.exit_code == 0, added.output
    one_each = _run("search", "a blue square", "--index", index)
    assert "2 of 2 videos" in one_each.stdout and "looks the same" not in one_each.stdout
    folded = _run("search", "a blue square", "--index", index, "--fold")
    assert folded.exit_code == 0, folded.output
    assert "1 of 2 videos" in folded.stdout
    answer = json.loads(_run("search", "a blue square", "--index", index, "--fold", "--json").stdout)
    [result] = answer["results"]
    assert f"looksthesame:{result['copies'][0]['id']}" in "".join(folded.stdout.split())


def test_indexing_again_skips_what_is_in(indexed: Path, corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(indexed, copy)
    new = write_coloured_video(tmp_path / "new.mp4", (9, 9, 9))
    report = tmp_path / "report.json"
    result = _run("index", corpus, new, "--index", copy, "--report", report, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "1 added (1 segments), 5 unchanged, 0 failed" in result.stdout
    written = json.loads(report.read_text())
    assert (written["num_added"], written["num_unchanged"], written["failures"]) == (1, 5, [])
    assert written["seconds"] > 0


def test_the_longest_duration_is_an_option_that_its_refusal_names(
    corpus: Path, model_directory: Path, tmp_path: Path
) -> None:
    long = corpus / "colour 4.mp4"  # five seconds
    arguments = ("index", long, "--index", tmp_path / "index", "--model", model_directory, "--workers", 1)
    refused = _run(*arguments, "--max-hours", 4 / 3600)
    assert refused.exit_code == 3
    assert "5 seconds long; at most 4 are allowed (--max-hours" in refused.output
    assert "XCLIP_MAX_VIDEO_SECONDS" in refused.output
    assert _run(*arguments, "--max-hours", 6 / 3600).exit_code == 0


def test_the_facts_of_an_index_are_printed(indexed: Path, model_directory: Path) -> None:
    facts = json.loads(_run("info", "--index", indexed, "--json").stdout)
    assert (facts["num_videos"], facts["num_segments"], facts["num_frames"]) == (5, 5, 8)
    assert facts["model_spec"] == str(model_directory)
    assert facts["sampling"]["max_segment_seconds"] == 60
    text = _run("info", "--index", indexed)
    assert text.exit_code == 0
    assert facts["fingerprint"] in text.stdout


def test_bad_files_are_listed_and_the_status_is_3(
    tmp_path: Path, corpus: Path, model_directory: Path
) -> None:
    shutil.copy(corpus / "colour 0.mp4", tmp_path / "good.mp4")
    (tmp_path / "words.mp4").write_text("words")
    rows = [
        {"path": "good.mp4", "id": "good", "title": "Good"},
        {"path": "words.mp4"},
        {"path": "absent.mp4"},
    ]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    index, report = tmp_path / "index", tmp_path / "report.json"
    result = _run(
        "index", "--manifest", manifest, "--index", index, "--model", model_directory, "--report", report
    )
    assert result.exit_code == 3, result.output
    assert "1 added (1 segments), 0 unchanged, 2 failed" in result.stdout
    assert f"failed: {tmp_path / 'words.mp4'}: not a video" in result.stderr
    assert len(json.loads(report.read_text())["failures"]) == 2
    with Catalog.open(index) as catalog:
        assert catalog.get_video("good").title == "Good"


def test_names_that_would_steer_the_terminal_are_escaped_by_every_command(
    tmp_path: Path, corpus: Path, model_directory: Path
) -> None:
    folder, index = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\x1b[2Jcaf\xe9")), tmp_path / "index"
    folder.mkdir()
    shutil.copy(corpus / "colour 0.mp4", folder / "good\x1b[31m\u202e.mp4")
    (folder / "bad\nfailed: all\x07.mp4").write_text("words")
    results = [
        _run("index", folder, "--index", index, "--model", model_directory, "--workers", 1),
        _run("list", "--index", index),
        _run("list", "--index", index, "--json"),
        _run("search", "a square", "--index", index),
        _run("search", "a square", "--index", index, "--json"),
        _run("index", folder / "absent\x1b.mp4", "--index", index),
    ]
    assert [result.exit_code for result in results] == [3, 0, 0, 0, 0, 2]
    for result in results:
        assert printable(result.output, keep_lines=True) == result.output
    assert r"\x1b[2Jcaf\xe9/bad\nfailed: all\x07.mp4: not a video" in results[0].stderr
    assert r"good\x1b[31m\u202e" in results[1].stdout and r"good\x1b[31m\u202e" in results[3].stdout
    (video,) = json.loads(results[2].stdout)["videos"]
    assert video["title"] == "good\x1b[31m\u202e"


def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, corpus: Path, indexed: Path, model_directory: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text("nonsense")
    (tmp_path / "file").write_text("x")
    fresh = tmp_path / "index"
    for arguments, reason in (
        (("index", "--index", fresh), "name files or folders"),
        (("index", tmp_path / "absent.mp4", "--index", fresh), "no file or folder"),
        (("index", tmp_path / "empty", "--index", fresh), "no videos in"),
        (("index", "--manifest", tmp_path / "bad.jsonl", "--index", fresh), "line 1"),
        (("index", corpus, "--index", fresh), "give its model with --model"),
        (("index", corpus, "--index", fresh, "--model", "nonsense"), "a model spec is one of"),
        (("index", corpus, "--index", tmp_path / "file", "--model", model_directory), "not a folder"),
        (("index", corpus, "--index", indexed, "--report", tmp_path / "no" / "r.json"), "no folder"),
        (("index", corpus, "--index", indexed, "--report", tmp_path), "name a file for the report"),
        (("index", corpus, "--index", corpus, "--model", model_directory), "a folder of videos"),
        (("index", corpus, "--index", indexed, "--max-segment-seconds", 7), "fingerprint"),
        (("index", corpus, "--index", indexed, "--frames-per-second", -1), "frames_per_second"),
        (("index", corpus, "--index", indexed, "--ray", "auto"), "an index that several machines share"),
        (("index", corpus, "--index", indexed, "--ray-actors", 2), "name the Ray cluster"),
        (("index", corpus, "--index", indexed, "--ray", ""), "name the Ray cluster"),
        (("search", "x", "--index", fresh), "there is no index"),
        (("search", " ", "--index", indexed), "text must have"),
        (("search", "x", "--index", indexed, "--limit", 0), "limit"),
        (("search", "x", "--index", indexed, "--filter", "camera=north"), "in single quotes, such as"),
        (("info", "--index", fresh), "there is no index"),
    ):
        result = _run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert reason in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("\n") == 1, "one line"
        assert not result.stdout
    assert not fresh.exists(), "wrong use makes no index"
    assert {path.suffix for path in corpus.iterdir()} == {".mp4"}


def test_a_text_may_be_given_without_quotes(indexed: Path) -> None:
    result = _run("search", "a", "blue", "square", "--index", indexed, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["query"] == "a blue square"


def test_the_environment_names_the_index(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLIP_INDEX", str(indexed))
    result = _run("info", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_videos"] == 5


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [
        (IndexFullError("the disk is full"), 2, "error: the disk is full; what is indexed is kept"),
        (
            OSError(errno.EROFS, "Read-only file system", "/here"),
            2,
            "error: /here: Read-only file system; what",
        ),
        (IndexDamagedError("it is damaged"), 1, "error: it is damaged"),
        (KeyboardInterrupt(), 130, "interrupted; what is indexed is kept"),
    ],
)
def test_what_ends_indexing_early_is_one_line_that_says_what_became_of_the_work(
    indexed: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
    status: int,
    said: str,
) -> None:
    def end(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(Synchronisation, "run", end)
    result = _run("index", corpus, "--index", indexed)
    assert result.exit_code == status, result.output
    assert said in result.stderr.splitlines()[-1]


def test_an_index_that_cannot_be_made_is_one_line(
    corpus: Path, tmp_path: Path, model_directory: Path
) -> None:
    (tmp_path / "file").touch()
    result = _run("index", corpus, "--index", tmp_path / "file" / "index", "--model", model_directory)
    assert result.exit_code == 2, result.output
    assert result.stderr == f"error: {tmp_path / 'file' / 'index'}: Not a directory\n"


def test_a_report_that_cannot_be_written_is_said_after_all_else_is_done(
    indexed: Path, corpus: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.symlink_to(tmp_path / "no" / "where.json")
    result = _run("index", corpus, "--index", indexed, "--report", report)
    assert result.exit_code == 2
    assert "5 unchanged" in result.stdout
    assert "cannot be written: No such file or directory; all else is done" in result.stderr


def test_another_model_is_refused(indexed: Path, corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other"
    XClip(XClipConfig.tiny()).eval().save(other)
    for arguments in (("index", corpus), ("search", "x")):
        result = _run(*arguments, "--index", indexed, "--model", other)
        assert result.exit_code == 2
        assert "fingerprint" in result.stderr


NUM_COPIES = 24
"""Enough that indexing is not done before the test sees the third and kills it."""


def test_indexing_killed_at_any_moment_goes_on_where_it_was(
    tmp_path: Path, model_directory: Path, corpus: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(NUM_COPIES):
        # The same pictures with other bytes at the end: a box of free space, which any reader skips.
        content = (corpus / "colour 0.mp4").read_bytes() + (12).to_bytes(4, "big") + b"free"
        (many / f"{number}.mp4").write_bytes(content + number.to_bytes(4, "big"))
    index = tmp_path / "index"
    command = [sys.executable, "-m", "xclip_search", "index", many, "--index", index, "--batch-size", "1"]
    process = subprocess.Popen(
        [*command, "--model", model_directory, "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    num_before = 0
    while num_before < 3:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
        try:
            with Catalog.open(index) as catalog:
                num_before = catalog.num_videos
        except IndexNotFoundError:
            continue
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Catalog.open(index) as catalog:
        num_before, num_segments = catalog.totals()
    assert 3 <= num_before < NUM_COPIES
    assert num_segments == num_before, "no video without its segments"

    result = _run("index", many, "--index", index, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert f"{NUM_COPIES - num_before} added" in result.stdout
    assert f"{num_before} unchanged" in result.stdout
    with Catalog.open(index) as catalog:
        assert catalog.totals() == (NUM_COPIES, NUM_COPIES)
        with sqlite3.connect(catalog.path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
