"""Files of transcripts: read as leniently as people's files are broken, and followed like the videos."""

# ruff: noqa: RUF001, letters of many scripts are what is tested.

from __future__ import annotations

import time
from pathlib import Path

import pytest

from indexer.errors import ManifestError, TranscriptError
from indexer.ingest.library import FoundFile
from indexer.ingest.manifest import VideoSource, read_manifest
from indexer.ingest.synchronisation import Progress
from indexer.ingest.transcript_files import find_transcripts, parse_transcript
from indexer.store.transcripts import MAX_LINES, MAX_TRANSCRIPT_BYTES, Line, Transcript
from tests.support.catalog_builders import create_catalog
from tests.support.library_stand_in import StandInLibrary, counts, touch, write_file

SUBRIP = (
    "1\r\n00:00:01,000 --> 00:00:04,000\r\n<i>Hello</i> {\\an8}world\r\n\r\n"
    '2\r\n00:00:05,000 --> 00:00:06,000 X1:1 X2:2\r\n<font color="red">Second</font>\r\nline\r\n\r\n'
    "3\r\nnonsense --> 00:00:09,000\r\nbroken\r\n\r\n"
    "4\r\n01:00,000 --> 01:02,000\r\nhours missing\r\n"
    "5\r\n1:2:3.5 --> 1:2:4,25\r\nno blank line before\r\n\r\n"
    "6\r\n00:00:20,000 --> 00:00:21,000\r\n\r\n7\r\n00:00:30,000 --> 00:00:29,000\r\nbackwards"
)
WEBVTT = """\ufeffWEBVTT - Some title

STYLE
::cue { color: red }

NOTE
a comment --> not a cue

intro
00:01.000 --> 00:04.000 align:start position:10%
<v Roger>Hello <b>world</b> &amp; friends &lt;3

00:05.000 --> 00:06.500
- Bye <00:05.500><c>timed</c>

NOTE 00:07.000 --> 00:08.000 of nothing

00:00:10.000 --> 00:00:11.000
last
"""


def texts(data: bytes) -> list[str]:
    return [line.text for line in parse_transcript("en", data).lines]


def test_subrip_is_read_although_it_is_broken():
    assert parse_transcript("en", SUBRIP.encode()).lines == (
        Line(1.0, 4.0, "Hello world"),
        Line(5.0, 6.0, "Second line"),
        Line(30.0, 30.0, "backwards"),
        Line(60.0, 62.0, "hours missing"),
        Line(3723.5, 3724.25, "no blank line before"),
    )


def test_webvtt_is_read_without_notes_styles_settings_and_markup():
    assert parse_transcript("en", WEBVTT.encode()).lines == (
        Line(1.0, 4.0, "Hello world & friends <3"),
        Line(5.0, 6.5, "- Bye timed"),
        Line(10.0, 11.0, "last"),
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_do_not_matter(encoding, newline):
    text = "1\n00:00:01,000 --> 00:00:02,000\nÜber den Wolken\n\n2\n00:00:03,000 --> 00:00:04,000\n黑猫\n"
    assert texts(text.replace("\n", newline).encode(encoding)) == ["Über den Wolken", "黑猫"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Das Mädchen läuft über die Straße und ruft: schöne Grüße an Frau Müller!"),
        ("cp1251", "Собака бежит по пляжу вместе с детьми и смеётся над волнами"),
        ("gb18030", "一只黑色的猫在沙滩上奔跑，孩子们在玩水"),
    ],
)
def test_older_encodings_are_told_by_the_text(encoding, text):
    cues = "\n\n".join(f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},900\n{text}" for n in range(20))
    assert set(texts(cues.encode(encoding))) == {text}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no line with times"),
        (b"just text\n\nmore", "no line with times"),
        (b"00:00:01,000 --> 00:00:02,000\n\n", "no line with times"),
        (b"x" * (MAX_TRANSCRIPT_BYTES + 1), "4 MiB"),
        (b"00:00:01.0 --> 00:00:02.0\nx\n" * (MAX_LINES + 1), str(MAX_LINES)),
    ],
)
def test_what_is_no_transcript_is_refused_with_a_reason(data, reason):
    with pytest.raises(TranscriptError, match=reason):
        parse_transcript("en", data)


@pytest.mark.parametrize("unit", ["<", "{\\", "&", "0:", "1:1:1,1-->", "<a", "&#", "\0"])
def test_hostile_bytes_are_read_in_linear_time(unit):
    data = b"1\n00:00:01,000 --> 00:00:04,000\nx" + unit.encode() * (2_000_000 // len(unit))
    started = time.perf_counter()
    assert len(parse_transcript("en", data).lines) == 1
    assert time.perf_counter() - started < 5.0


def test_files_belong_to_the_video_whose_name_they_begin_with():
    names = (
        "m.srt",
        "m.en.srt",
        "m.part2.srt",
        "m.part2.de.forced.vtt",
        "m.English (SDH).SRT",
        "n.vtt",
        "x.srt",
    )
    found = find_transcripts(
        ["/a/m.mkv", "/a/m.part2.mkv", "/a/n.mp4", "/b/x.mp4"],
        [FoundFile(f"/a/{name}", 1, 1) for name in names],
    )
    assert {path: [track for track, _ in tracks] for path, tracks in found.items()} == {
        "/a/m.mkv": ["English-SDH", "en", "und"],
        "/a/m.part2.mkv": ["de.forced", "und"],
        "/a/n.mp4": ["und"],
    }


@pytest.fixture
def library(tmp_path, monkeypatch):
    with create_catalog(tmp_path / "index") as catalog:
        yield StandInLibrary(catalog, monkeypatch)


def write_transcript(path: Path, text: str, seconds: float = 1_000_000.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n", encoding="utf-8")
    touch(path, seconds)
    return path


def said(library: StandInLibrary) -> dict[str, dict[str, str]]:
    """By title and track, the first line."""
    videos = {video.id: video.title for video in library.catalog.list_videos(100)}
    found = library.catalog.transcripts.of_videos(list(videos))
    return {
        videos[video_id]: {one.track: one.lines[0].text for one in transcripts}
        for video_id, transcripts in found.items()
    }


def test_transcripts_beside_a_video_come_and_go_with_their_files_and_nothing_is_decoded_again(
    library, tmp_path
):
    root = tmp_path / "library"
    write_file(root / "movie.mkv", "a movie")
    english = write_transcript(root / "movie.en.srt", "hello")
    stray = write_transcript(root / "other.srt", "of nothing")
    report = library.sync(root)
    assert counts(report) == {"added": 1, "transcripts": 1, "left_out": 1}
    assert said(library) == {"movie": {"en": "hello"}}
    assert counts(library.sync(root)) == {"unchanged": 1, "left_out": 1}

    write_transcript(root / "movie.de.vtt", "hallo")
    write_transcript(english, "goodbye", seconds=2_000_000.0)
    stray.unlink()
    assert counts(library.sync(root)) == {"updated": 1, "transcripts": 2}
    assert library.read == library.encoded == []
    assert said(library) == {"movie": {"de": "hallo", "en": "goodbye"}}

    english.unlink()
    assert counts(library.sync(root)) == {"updated": 1}
    assert said(library) == {"movie": {"de": "hallo"}}
    assert library.catalog.find_words("goodbye").video_keys.tolist() == []


def test_a_transcript_moves_with_its_video(library, tmp_path):
    root = tmp_path / "library"
    write_file(root / "a" / "movie.mkv", "a movie")
    write_transcript(root / "a" / "movie.srt", "hello")
    library.sync(root)
    (root / "a").rename(root / "b")
    assert counts(library.sync(root)) == {"moved": 1, "transcripts": 1}
    (file,) = library.catalog.transcripts.files_of_videos([library.catalog.video_ids()[0]]).values()
    assert file["und"].uri == (root / "b" / "movie.srt").as_uri()


def test_a_broken_transcript_is_noted_and_keeps_the_former_one(library, tmp_path):
    root = tmp_path / "library"
    write_file(root / "movie.mkv", "a movie")
    transcript = write_transcript(root / "movie.srt", "hello")
    library.sync(root)
    transcript.write_text("nothing of the kind")
    report = library.sync(root)
    assert counts(report) == {"unchanged": 1} and "no line with times" in report.notes[0]
    assert said(library) == {"movie": {"und": "hello"}}


def test_what_a_client_sent_stays_whatever_lies_beside(library, tmp_path):
    root = tmp_path / "library"
    write_file(root / "movie.mkv", "a movie")
    library.sync(root)
    (video_id,) = library.catalog.video_ids()
    library.catalog.transcripts.put(video_id, Transcript("und", (Line(0.0, 1.0, "by hand"),)))
    write_transcript(root / "movie.srt", "from a file")
    assert counts(library.sync(root)) == {"unchanged": 1}
    assert said(library) == {"movie": {"und": "by hand"}}


def test_a_file_that_is_named_has_its_transcripts_too_and_a_dry_run_stores_none(library, tmp_path):
    movie = write_file(tmp_path / "library" / "movie.mkv", "a movie")
    write_transcript(tmp_path / "library" / "movie.srt", "hello")
    library.sync(movie, dry_run=True)
    library.sync(movie)
    assert said(library) == {"movie": {"und": "hello"}}


def test_a_transcript_that_is_still_being_written_waits(library, tmp_path):
    root = tmp_path / "library"
    write_file(root / "movie.mkv", "a movie")
    library.sync(root)
    write_transcript(root / "movie.srt", "hello")
    report = library.sync(root, progress=Progress(is_settled=lambda file: not file.path.endswith(".srt")))
    assert counts(report) == {"unchanged": 1, "waiting": 1} and said(library) == {}
    assert counts(library.sync(root)) == {"updated": 1, "transcripts": 1}


def test_a_manifest_names_transcripts_instead_of_those_beside(library, tmp_path):
    root = tmp_path / "library"
    write_file(root / "movie.mkv", "a movie")
    write_transcript(root / "movie.srt", "beside")
    write_transcript(root / "texts" / "talk.en.srt", "named")
    write_transcript(root / "texts" / "talk.de.srt", "genannt")
    manifest = root / "list.jsonl"
    manifest.write_text(
        '{"path": "movie.mkv", "transcript": ["texts/talk.en.srt", "texts/talk.de.srt", "gone.srt"]}'
    )
    report = library.sync(sources=read_manifest(manifest).sources)
    assert said(library) == {"movie": {"en": "named", "de": "genannt"}}
    assert any("gone.srt" in note for note in report.notes)
    table = root / "list.csv"
    table.write_text("path,transcript\nmovie.mkv,texts/talk.de.srt\n")
    library.sync(sources=read_manifest(table).sources)
    assert said(library) == {"movie": {"de": "genannt"}}
    manifest.write_text('{"path": "movie.mkv", "transcript": 5}')
    with pytest.raises(ManifestError, match="transcript"):
        read_manifest(manifest)


def test_a_source_without_transcripts_of_its_own_takes_those_beside(library, tmp_path):
    movie = write_file(tmp_path / "library" / "movie.mkv", "a movie")
    write_transcript(tmp_path / "library" / "movie.srt", "beside")
    library.sync(sources=[VideoSource(movie, title="A film")])
    assert said(library) == {"A film": {"und": "beside"}}
