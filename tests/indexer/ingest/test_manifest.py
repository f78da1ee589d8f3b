"""Which files are indexed: folders and manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import ManifestError
from indexer.ingest.manifest import VideoSource, read_manifest


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_json_lines_manifest_gives_ids_titles_and_metadata(tmp_path: Path) -> None:
    rows = [
        {"path": "clips/a.mp4", "id": "a", "title": "Ä dog", "metadata": {"year": 2020, "tags": ["x"]}},
        {"path": "/else/b.mp4", "uri": "https://example.org/b.mp4"},
    ]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert read_manifest(manifest).sources == [
        VideoSource(tmp_path / "clips/a.mp4", "a", "Ä dog", {"year": 2020, "tags": ["x"]}),
        VideoSource(Path("/else/b.mp4"), uri="https://example.org/b.mp4"),
    ]


def test_a_csv_manifest_gives_the_same_and_its_other_columns_are_metadata(tmp_path: Path) -> None:
    manifest = tmp_path / "corpus.csv"
    manifest.write_text(
        '\ufeffpath,id,title,metadata,camera\r\na.mp4,a,"One, two","{""year"": 2020}",left\r\nb.mp4,,,,\r\n',
        encoding="utf-8",
    )
    assert read_manifest(manifest).sources == [
        VideoSource(tmp_path / "a.mp4", "a", "One, two", {"camera": "left", "year": 2020}),
        VideoSource(tmp_path / "b.mp4"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", "nonsense", "line 1 .* not JSON"),
        ("a.jsonl", '{"metadata": ' + "[" * 100_000, "line 1 .* not JSON"),
        ("a.jsonl", '{"path": "a"}\n[1]', "line 2 .* not a JSON object"),
        ("a.jsonl", '{"id": "a"}', "line 1 .* no path"),
        ("a.jsonl", '{"path": 5}', "path is not a text"),
        ("a.jsonl", '{"path": "a", "tittle": "b"}', "unknown fields tittle"),
        ("a.jsonl", '{"path": "a", "metadata": [1]}', "metadata is not an object"),
        ("a.jsonl", '{"path": "a", "id": "x"}\n{"path": "b", "id": "x"}', "'x' is in the manifest twice"),
        ("a.jsonl", '[{"path": "a"}]', "one JSON list: write each of its objects on a line"),
        ("a.jsonl", '{"path": "a", "title": "b", "title": "c"}', "line 1 .* occurs twice in one object"),
        ("a.jsonl", '{"path": "a", "metadata": {"n": NaN}}', "line 1 .* NaN is not a JSON number"),
        ("a.jsonl", '{"path": "a\\u0000b"}', r"line 1 .* zero character \(U\+0000\)"),
        ("a.jsonl", '{"path": "a", "metadata": {"b": [{"\\u0000": 1}]}}', r"line 1 .* \(U\+0000\)"),
        ("a.jsonl", '{"path": "a"}\n{"path": "b\0"}', r"line 2 .* \(U\+0000\)"),
        ("a.jsonl", '{"path": "\\ud800"}', "line 1 .* lone surrogate"),
        ("a.jsonl", '{"path": "file://elsewhere/a.mp4"}', "not a local file:// URI"),
        ("a.jsonl", '{"path": "file://nas/a.mp4"}', "not a local file:// URI"),
        ("a.jsonl", '{"path": "file:///C:/clips/a.mp4"}', "not a local file:// URI"),
        ("a.jsonl", '{"path": "~nobody-of-this-name/a.mp4"}', "unknown user"),
        ("a.csv", "path\nC:\\clips\\a.mp4\n", "line 2 .* drive letter of Windows: write it with /"),
        ("a.csv", "path\n\\\\nas\\clips\\a.mp4\n", "line 2 .* backslashes"),
        ("a.csv", "path\nclips\\a.mp4\n", "line 2 .* backslashes"),
        ("a.csv", "file,id\na,b\n", "`path` among them .*; this one names file, id"),
        ("a.csv", "File;Id\na;b\n", "this one names File, id"),
        ("a.csv", "", "this one names nothing"),
        ("a.csv", "path,id\na,b,c\n", "line 2 .* has 3 cells, its header has 2: .* holds a comma"),
        ("a.csv", 'path;title\r\n"a\nb";x\r\nc;d;e', "line 4 .* has 3 cells.* a semicolon"),
        ("a.csv", "path,,id\na,lost,b\n", "line 2 .* a column that the header does not name"),
        ("a.csv", "path,Path\na,b\n", "two columns of the manifest are called path"),
        ("a.csv", "path,year,year\na,1,2\n", "two columns of the manifest are called year"),
        ("a.csv", 'path,title\na,b\nc,"d\ne,f\n', "line 3 .* a quotation mark is not closed"),
        ("a.csv", 'path,title\na,"b" c\n', "line 2 .* not CSV"),
        ("a.csv", "path,title\na,b\0c\n", r"line 2 .* \(U\+0000\)"),
        ("a.csv", "path,title\n,b\n", "line 2 .* has no path"),
        ("a.csv", "path,metadata\na,{nonsense\n", "metadata is not JSON"),
        ("a.csv", "path,metadata\na," + "[" * 100_000 + "\n", "metadata is not JSON"),
        ("a.csv", "path,metadata\na,[1]\n", "metadata is not an object"),
        ("a.csv", 'path,year,metadata\na,1,"{""year"": 2}"\n', "line 2 .* year is a column and in"),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=reason):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfe\x00\xd8", "damaged UTF-16"),
        ("path,title\na,\u00e4\n".encode("cp1252"), r"line 2 .* iconv -f WINDOWS-1252 -t UTF-8 a\.csv"),
        ("path,title\na,b\n".encode("utf-16-le"), "line 1 .* where the file is UTF-16, save it as UTF-8"),
        (b"PK\x03\x04...", "is a workbook: save its sheet as CSV UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_manifest_that_is_no_text_is_refused_with_what_to_do(
    tmp_path: Path, data: bytes | None, reason: str
) -> None:
    manifest = tmp_path / "a.csv"
    if data is not None:
        manifest.write_bytes(data)
    with pytest.raises(ManifestError, match=reason):
        read_manifest(manifest)


@pytest.mark.parametrize(
    "data",
    [
        b'path,title,year\na.mp4,One,2020\nb.mp4,"Two, too",2021\n',
        b"\xef\xbb\xbfpath;title;year\r\na.mp4;One;2020\r\nb.mp4;Two, too;2021\r\n;;\r\n\r\n",
        "Path\tTitle\tyear\r\na.mp4\tOne\t2020\r\nb.mp4\tTwo, too\t2021\r\n".encode("utf-16"),
        b'PATH, Title , year\na.mp4, One , 2020\nb.mp4, "Two, too", 2021\n\n , ,\n',
        b"sep=;\r\npath;title;year\r\na.mp4;One;2020\r\nb.mp4;Two, too;2021\r\n",
        b"path|title|year|\ra.mp4|One|2020|\rb.mp4|Two, too|2021\r",
        b'\r\npath,title,year,,\r\na.mp4,One,2020,,\r\nb.mp4,"Two, too",2021\r\n',
    ],
    ids=[
        "plain",
        "excel-semicolons",
        "excel-unicode-text",
        "blanks-and-capitals",
        "sep",
        "bars",
        "empty-columns",
    ],
)
def test_every_dialect_of_spreadsheets_says_the_same(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "corpus.csv").write_bytes(data)
    listed = read_manifest(tmp_path / "corpus.csv")
    assert listed.sources == [
        VideoSource(tmp_path / "a.mp4", title="One", metadata={"year": 2020}),
        VideoSource(tmp_path / "b.mp4", title="Two, too", metadata={"year": 2021}),
    ]
    assert listed.notes == ["columns read as numbers: year"]


def test_a_text_inside_quotation_marks_keeps_its_line_breaks_and_a_file_may_have_one_column(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text('path,title\na.mp4,"One\ntwo"\n')
    assert [source.title for source in read_manifest(tmp_path / "a.csv").sources] == ["One\ntwo"]
    (tmp_path / "b.tsv").write_text("path\na; b.mp4\n")
    assert [source.path.name for source in read_manifest(tmp_path / "b.tsv").sources] == ["a; b.mp4"]


def test_a_path_may_be_an_address_of_a_user_home_or_hold_a_backslash_where_such_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _touch(tmp_path, "clips/odd\\name.mp4", "clips/~tilde.mp4")
    manifest = tmp_path / "clips" / "a.csv"
    paths = [
        "file:///videos/a%20b%E4.mp4",
        "file://localhost/c.mp4",
        "~/d.mp4",
        "odd\\name.mp4",
        "~tilde.mp4",
    ]
    manifest.write_text("\n".join(["path", *paths, "../e.mp4", "/f.mp4"]))
    assert [source.path for source in read_manifest(manifest).sources] == [
        Path(os.fsdecode(b"/videos/a b\xe4.mp4")),
        Path("/c.mp4"),
        tmp_path / "home" / "d.mp4",
        tmp_path / "clips" / "odd\\name.mp4",
        tmp_path / "clips" / "~tilde.mp4",
        tmp_path / "clips" / "../e.mp4",
        Path("/f.mp4"),
    ]


@pytest.mark.parametrize(
    ("delimiter", "cells", "expected", "note"),
    [
        (",", ["2020", "-1", "2.5", "1e3"], [2020, -1, 2.5, 1000.0], "numbers: x"),
        (",", ["2020", "", "2021"], [2020, None, 2021], "numbers: x"),
        (",", ["TRUE", "false"], [True, False], "true or false: x"),
        (",", ["007", "12"], ["007", "12"], "text: x (leading zeros in line 2)"),
        (",", ["12", "+4930"], ["12", "+4930"], "text: x (a plus sign in line 3)"),
        (",", ["12", "13", "n/a"], ["12", "13", "n/a"], "text: x (line 4 is not a number as in 1234.5)"),
        (",", ["9007199254740993"], ["9007199254740993"], "text: x (many digits in line 2)"),
        (",", ["1" * 5000], ["1" * 5000], "text: x (many digits in line 2)"),
        (",", ["1e999"], ["1e999"], "text: x"),
        (",", ["red", "3"], ["red", "3"], "text: x (line 2 is not a number as in 1234.5)"),
        (",", ["red", "blue", "3"], ["red", "blue", "3"], "text: x"),
        (",", ["2024-05-01", "2024-05-02"], ["2024-05-01", "2024-05-02"], "text: x"),
        (";", ["1,5", "2", "-0,25"], [1.5, 2, -0.25], "numbers: x"),
        (";", ["1.5", "2"], [1.5, 2], "numbers: x"),
        (";", ["1,500", "20"], ["1,500", "20"], "text: x (a comma or point may stand before decimals or"),
        (";", ["1.500", "20"], ["1.500", "20"], "text: x (a comma or point may stand before decimals or"),
        (";", ["1,5", "2.5"], ["1,5", "2.5"], "text: x (some decimals have a comma and some a point)"),
        ("\t", ["1,5", "2"], ["1,5", "2"], "text: x (line 2 is not a number as in 1234.5)"),
    ],
)
def test_a_column_is_numbers_where_each_of_its_cells_is_one(
    tmp_path: Path, delimiter: str, cells: list[str], expected: list[Any], note: str
) -> None:
    rows = [("path", "id", "x"), *((f"{n}.mp4", f"00{n}", cell) for n, cell in enumerate(cells))]
    (tmp_path / "a.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    listed = read_manifest(tmp_path / "a.csv")
    found = [source.metadata.get("x") for source in listed.sources]
    assert found == expected and [type(one) for one in found] == [type(one) for one in expected]
    assert [source.id for source in listed.sources] == [f"00{n}" for n in range(len(cells))]
    assert len(listed.notes) == 1 and listed.notes[0].startswith(f"columns read as {note}")


def test_what_a_manifest_lists_twice_or_leaves_empty_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,title,colour\na.mp4,One,\nb.mp4,Two,\na.mp4,Three,\n")
    listed = read_manifest(tmp_path / "a.csv")
    assert [source.title for source in listed.sources] == ["One", "Two"]
    assert listed.notes == [
        "columns without a value, left out: colour",
        "1 rows name the same file as an earlier row and are left out; the first of them is line 4",
    ]
