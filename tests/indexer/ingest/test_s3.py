"""Videos in S3, from a server of its protocol on this machine, with the real pipeline."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from indexer.errors import FetchError
from indexer.index import Index
from indexer.ingest import local_copies, remote_files
from indexer.ingest.manifest import VideoSource
from indexer.ingest.remote_files import RemoteFile
from tests.support.library_stand_in import counts
from tests.support.servers.web_server import reply, serving
from tests.support.video_files import write_coloured_video

moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

pytestmark = [
    # botocore and aiobotocore warn of what they do themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """The bucket `films` with two videos, in the way in which a user's machine is set up for it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    remote_files.forget_file_systems()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    file_system = fsspec.filesystem("s3", use_listings_cache=False)
    file_system.mkdir("films")
    yield file_system
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)  # A test may have set another one.
    file_system.rm("films", recursive=True)
    remote_files.forget_file_systems()


@pytest.fixture
def index(tmp_path: Path, model_directory: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", str(model_directory)) as index:
        yield index


def test_videos_in_a_bucket_are_indexed_and_known_by_their_etags(
    s3: fsspec.AbstractFileSystem, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a.mp4", "year 1999/ö 100%.mp4")):
        clip = write_coloured_video(tmp_path / f"{number}.mp4", (80 * number, 90, 200))
        s3.put_file(str(clip), f"films/{name}")
    s3.pipe_file("films/broken.mp4", b"this is no video")
    report = index.sync(["s3://films"], encoding={"num_workers": 1})
    assert counts(report) == {"added": 2, "failed": 1}
    assert {video.uri for video in index.catalog.list_videos(10)} == {
        "s3://films/a.mp4",
        "s3://films/year 1999/ö 100%.mp4",
    }
    monkeypatch.setattr(type(s3), "get_file", None)  # Nothing is fetched again.
    assert counts(index.sync(["s3://films/"], encoding={"num_workers": 1}))["unchanged"] == 2
    sources = [VideoSource(RemoteFile("s3://films/a.mp4"), title="A")]
    assert counts(index.sync(sources=sources)) == {"updated": 1}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://no-such-bucket/folder", "there is no such bucket|there is no such file"),
        ("s3://films/no/such/file.mp4", "there is no such file"),
    ],
)
def test_what_is_not_there_fails_with_a_plain_reason(
    s3: fsspec.AbstractFileSystem, index: Index, address: str, reason: str
) -> None:
    report = index.sync([address])
    assert counts(report) == {"failed": 1}
    (failure,) = report.failures
    assert failure[0] == address and failure[1].split(",")[0] in reason.split("|")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, r"no credentials for s3://: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "someone"}, r"no credentials.*missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found: AWS_PROFILE names it"),
    ],
)
def test_missing_credentials_are_said_at_once_with_where_they_go(
    s3: fsspec.AbstractFileSystem,
    index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    said: str,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    remote_files.forget_file_systems()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(FetchError, match=said) as raised:
        local_copies.fetch_to(RemoteFile("s3://films/a.mp4"), tmp_path / "copy.mp4")
    assert not raised.value.may_pass and "tries" not in raised.value.reason
    report = index.sync(["s3://films/a.mp4"])
    ((address, reason),) = report.failures
    assert address == "s3://films/a.mp4" and re.search(said, reason)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "InvalidAccessKeyId", r"the credentials are refused.*\(InvalidAccessKeyId\)"),
        (403, "AccessDenied", r"do not allow reading it \(AccessDenied\)"),
        (404, "NoSuchBucket", "there is no such bucket"),
    ],
)
def test_a_refusal_of_s3_is_final_and_says_what_s3_calls_it(
    s3: fsspec.AbstractFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    said: str,
) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with serving(reply(body, f"{status} No", "Content-Type: application/xml", "Connection: close")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url("", host="127.0.0.1"))
        remote_files.forget_file_systems()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(FetchError, match=said):
            local_copies.fetch_to(RemoteFile("s3://films/a.mp4", 5), tmp_path / "copy.mp4")
        assert len(server.requests) == 1
