"""`search`, `index` and `info` with --server, against the service over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from indexer.errors import NotAVideoError
from indexer.ingest.synchronisation import SyncReport
from indexer.store.records import NewVideo
from service.auth.keys import add_key
from tests.faults.dying_worker import read_by_rote
from tests.support.servers.service_fakes import Service, add_video, running, working
from tests.support.servers.serving_thread import served
from xclip_search import app
from xclip_search import client as client_module
from xclip_search.videos import Uploads, iso_time


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker takes every file that does not begin with `bad`."""

    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        if path.read_bytes().startswith(b"bad"):
            raise NotAVideoError("text, not a video")
        return replace(read_by_rote(path), partial=path.read_bytes().startswith(b"part"), fraction_read=0.5)

    service = Service(tmp_path_factory.mktemp("remote") / "index", upload_limit_bytes=5000, max_queued_jobs=3)
    with working(service, read):
        yield service
    service.catalog.close()


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[str]:
    with served(service.app) as url:
        yield url


@pytest.fixture(autouse=True)
def settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XCLIP_SERVER", "XCLIP_KEY", "XCLIP_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "FIRST_POLL_SECONDS", 0.01)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        (folder / f"clip {number}.mp4").write_bytes(f"clip {number} {tmp_path}".encode())
    return folder


def test_a_folder_is_uploaded_and_the_same_command_again_finds_all_in(
    service: Service, server: str, corpus: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    result = run("index", corpus, "--server", server, "--report", report)
    assert result.exit_code == 0, result.output
    assert "5 added, 0 unchanged, 0 failed" in result.stdout
    written = json.loads(report.read_text())
    assert written.keys() == SyncReport().to_dict().keys()
    assert (written["num_added"], written["num_unchanged"], written["failures"]) == (5, 0, [])
    titles = {video.title for video in service.catalog.list_videos(1000)}
    assert {f"clip {number}" for number in range(5)} <= titles
    num_jobs = len(service.job_queue.list_jobs(1000))
    again = run("index", corpus, "--server", server)
    assert again.exit_code == 0 and "0 added, 5 unchanged, 0 failed" in again.stdout
    assert len(service.job_queue.list_jobs(1000)) == num_jobs, "what is known is not even sent"


def test_transcripts_go_with_their_videos_also_to_those_that_are_there_already(
    service: Service, server: str, corpus: Path, tmp_path: Path
) -> None:
    def tracks(title: str) -> dict[str, str]:
        (video,) = (video for video in service.catalog.list_videos(1000) if video.title == title)
        read = service.catalog.transcripts.of_videos([video.id]).get(video.id, [])
        return {one.track: one.lines[0].text for one in read}

    def say(path: Path, text: str) -> None:
        path.write_text(f"00:00:01.000 --> 00:00:02.000\n{text}\n", encoding="utf-8")

    report = tmp_path / "report.json"
    for number in range(5):
        (corpus / f"clip {number}.mp4").rename(corpus / f"film {number}.mp4")
    say(corpus / "film 1.en.srt", "Hello")
    say(corpus / "film 1.vtt", "Hallo")
    (corpus / "film 2.srt").write_text("nothing with a time", encoding="utf-8")
    assert run("index", corpus, "--server", server, "--report", report).exit_code == 0
    assert tracks("film 1") == {"en": "Hello", "und": "Hallo"} and tracks("film 2") == {}
    written = json.loads(report.read_text())
    assert (written["num_transcripts"], written["num_added"]) == (2, 5)
    assert len(written["notes"]) == 1 and "film 2.srt is left out" in written["notes"][0]
    say(corpus / "film 1.de.srt", "Guten Tag")
    say(corpus / "film 1.en.srt", "is there already")
    say(corpus / "elsewhere.srt", "Bonjour")
    manifest = corpus / "corpus.jsonl"
    rows = [
        {"path": "film 1.mp4"},
        {"path": "film 3.mp4", "transcript": "elsewhere.srt"},
        {"path": "film 4.mp4", "transcript": "absent.srt"},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("index", "--manifest", manifest, "--server", server, "--report", report)
    assert result.exit_code == 0, result.output
    assert tracks("film 1") == {"en": "Hello", "und": "Hallo", "de": "Guten Tag"}
    assert tracks("film 3") == {"und": "Bonjour"}
    assert "absent.srt is left out: there is no such file" in json.loads(report.read_text())["notes"][0]


def test_files_that_fail_are_listed_and_the_status_is_3(
    service: Service, server: str, corpus: Path, tmp_path: Path
) -> None:
    folder = run("index", corpus, "--server", server, "--report", tmp_path)
    assert folder.exit_code == 2 and "name a file for the report" in folder.stderr
    (corpus / "bad.mp4").write_bytes(b"bad " + str(tmp_path).encode())
    (corpus / "large.mp4").write_bytes(bytes(5001))
    (corpus / "part.mp4").write_bytes(b"part " + str(tmp_path).encode())
    (corpus / "twice.mp4").write_bytes((corpus / "clip 0.mp4").read_bytes())
    (corpus / "empty.mp4").touch()
    rows = [
        f"{name};Title of {name};{'mine' if name == 'part.mp4' else ''};manifest;2020;2024-05-01"
        for name in ("bad.mp4", "large.mp4", "part.mp4", "clip 0.mp4", "twice.mp4", "empty.mp4", "absent.mp4")
    ]
    manifest, report = corpus / "corpus.csv", tmp_path / "report.json"
    manifest.write_text("\n".join(["Path;Title;id;from;year;recorded_at", *rows]))
    result = run("index", "--manifest", manifest, "--server", server, "--report", report)
    assert result.exit_code == 3, result.output
    assert "2 added, 1 unchanged, 4 failed" in result.stdout
    assert "manifest: columns read as numbers: year\nmanifest: columns read as text: from\n" in result.stdout
    assert "1 of the added are damaged or truncated" in result.stdout
    assert f"failed: {corpus / 'bad.mp4'}: text, not a video" in result.stderr
    assert f"failed: {corpus / 'absent.mp4'}: no such file or directory" in result.stderr
    assert "id and uri of the manifest are ignored" in result.stderr
    reasons = {Path(one["path"]).name: one["reason"] for one in json.loads(report.read_text())["failures"]}
    assert reasons["large.mp4"] == "The file is larger than 5000 bytes."
    assert reasons["empty.mp4"] == "file: The file is empty."
    (partial,) = (video for video in service.catalog.list_videos(1000) if video.title == "Title of part.mp4")
    assert partial.metadata == {"from": "manifest", "year": 2020} and partial.partial
    assert partial.recorded_at == 1_714_521_600
    listed = run("list", "--server", server, "--sort", "-recorded_at", "--limit", 1, "--json")
    (video,) = json.loads(listed.stdout)["videos"]
    assert video["recorded_at"] == "2024-05-01T00:00:00+00:00"
    assert "2024-05-01  Title of" in run("list", "--server", server, "--sort=recorded_at").stdout


def test_a_search_prints_what_the_local_one_prints(service: Service, server: str) -> None:
    add_video(service.catalog, "newest", title="the newest")
    result = run("search", "a dog", "--server", server, "--limit", 2, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    from dataclasses import asdict

    from indexer.search.types import SearchQuery

    local = json.loads(json.dumps(asdict(service.searcher.search(SearchQuery("a dog", limit=2)))))
    for one in local["results"]:
        del one["explanation"]
        one["recorded_at"] = iso_time(one["recorded_at"])
    assert local.pop("stale_seconds") is None  # A header says it, over HTTP.
    assert answer == local
    table = run("search", "a dog", "--server", server, "--mode", "coarse")
    assert table.exit_code == 0 and "the newest" in table.stdout and "videos in 600 ms" in table.stdout
    assert service.searcher.queries[-1].mode == "coarse"
    run("search", "a dog", "--server", server, "--filter", '{"title": "x"}')
    assert service.searcher.queries[-1].filter is not None


def test_the_facts_have_the_shape_of_the_local_ones(service: Service, server: str, tmp_path: Path) -> None:
    from tests.support.servers.service_fakes import make_catalog

    make_catalog(tmp_path / "index").close()
    there = json.loads(run("info", "--server", server, "--json").stdout)
    here = json.loads(run("info", "--index", tmp_path / "index", "--json").stdout)
    assert there.keys() == here.keys()
    assert (there["num_videos"], there["fingerprint"]) == (service.catalog.num_videos, here["fingerprint"])
    text = run("info", "--server", server)
    assert "model_spec" not in text.stdout and "fingerprint" in text.stdout


def test_videos_are_listed_and_deleted_there_as_here(tmp_path: Path) -> None:
    with running(tmp_path / "index") as service, served(service.app) as url:
        for number in range(3):
            add_video(service.catalog, f"video-{number}", title=f"Title {number}")
        here, there = ("--index", tmp_path / "index"), ("--server", url)
        listed = run("list", *here, "--json")
        assert listed.exit_code == 0, listed.output
        assert run("list", *there, "--json").stdout == listed.stdout
        assert [one["id"] for one in json.loads(listed.stdout)["videos"]] == ["video-2", "video-1", "video-0"]
        for place in (here, there):
            found = run("list", *place, "--limit", 1)
            assert found.stdout.split() == ["video-2", "0:10", "Title", "2"], found.output
            assert found.stderr == "1 of 3 videos\n"
            chosen = run("list", *place, "--filter", '{"title": "Title 1"}', "--json")
            assert [one["id"] for one in json.loads(chosen.stdout)["videos"]] == ["video-1"]
            assert run("list", *place, "--filter", '{"x": 1}').exit_code == 2
        deleted = run("delete", "video-0", *here)
        assert (deleted.exit_code, deleted.stdout, deleted.stderr) == (0, "1 deleted\n", "")
        some = run("delete", "video-0", "video-1", "video-1", *there)
        assert (some.exit_code, some.stdout) == (3, "1 deleted\n")
        assert some.stderr == "failed: video-0: no video has this id\n"
        again = run("delete", "video-1", *here)
        assert (again.exit_code, again.stdout) == (3, "0 deleted\n")
        assert [one.id for one in service.catalog.list_videos(10)] == ["video-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "a dog"], "--index DIR on this machine, or --server URL"),
        (["search", "a dog", "--index", "here", "--server", "http://a"], "not both"),
        (
            ["search", "a dog", "--server", "http://a", "--model", "demo"],
            "--model cannot be given with --server",
        ),
        (["index", "x", "--server", "http://a", "--workers", "1", "--device", "cpu"], "--device, --workers"),
        (["index", "--server", "http://a"], "name files or folders"),
        (["search", "a dog", "--server", "localhost:8000"], "begins with http:// or https://"),
        (["index", "no-such-folder", "--server", "http://a"], "there is no file or folder"),
        (["search", "a dog", "--server", "http://a", "--filter", "{"], "--filter is not JSON"),
    ],
)
def test_wrong_use_is_explained_and_the_status_is_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr, result.output


def test_the_environment_names_the_server_and_the_key_but_an_index_that_is_named_goes_first(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XCLIP_SERVER", server)
    monkeypatch.setenv("XCLIP_KEY", "secret")
    assert run("info").exit_code == 0
    result = run("info", "--index", tmp_path / "none")
    assert result.exit_code == 2 and "there is no index" in result.stderr
    assert "secret" not in run("info", "--help").stdout
    monkeypatch.setenv("XCLIP_INDEX", str(tmp_path / "none"))
    assert run("info").exit_code == 0, "a server that is named goes before"
    monkeypatch.delenv("XCLIP_SERVER")
    assert "there is no index" in run("info").stderr


def test_the_way_to_give_a_key_is_that_of_the_command_line(tmp_path: Path) -> None:
    add_key(tmp_path / "index" / "keys.json", "me", "read")
    with running(tmp_path / "index") as service, served(service.app) as url:
        without = run("info", "--server", url)
        assert without.exit_code == 1
        assert without.stderr == "error: the server requires a key: give it as --key KEY or in XCLIP_KEY\n"
        assert "the server requires another key" in run("info", "--server", url, "--key", "wrong").stderr


def test_errors_of_the_server_are_one_line(server: str) -> None:
    wrong = run("search", " ", "--server", server)
    assert wrong.exit_code == 2 and "The query is blank" in wrong.stderr
    absent = run("info", "--server", "http://127.0.0.1:9")
    assert absent.exit_code == 1 and "nothing answers at http://127.0.0.1:9" in absent.stderr
    assert len(absent.stderr.splitlines()) == 1


def test_an_interruption_says_that_it_can_go_on(
    server: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Uploads, "run", interrupt)
    result = run("index", corpus, "--server", server)
    assert result.exit_code == 130 and "the same command resumes" in result.stderr
