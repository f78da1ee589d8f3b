"""Words beside meaning, measured on made data with known answers: tokenizers, recall, time and size.

    python -m benchmarks.text_match [--migrate INDEX] [--search INDEX] [--parts 1234] [--num-videos N]

1. Titles are put together from words of ten kinds of text, so that it is known which of them each word is in.
   FTS5's `unicode61` and `trigram` and the terms of `indexer.store.words` are asked for every word: recall is
   the share of the titles with the word that is found, precision the share of the found ones that have it.
2. An index of N videos with drawn features, made titles and transcripts is searched for known titles and
   lines with each `text_match`: the share whose video is first, or among the first ten.
3. Of a million titles: how long words take that are in one, in many and in all of them.
4. Titles in which words are as common as words are (their shares fall as 1 / rank, small words besides),
   asked for by sentences of two subjects: for each share from which on a word counts as common, what the
   first 200 found videos have to do with the question, and how many of those that do are found.
5. Of copies of indexes (`benchmarks/synthetic_index.py` makes them) that are given made titles: the migration
   from format 5, its size, and searches with each `text_match`, interleaved.
"""

# ruff: noqa: RUF001, letters of many scripts are what is measured.

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery, TextMatch
from indexer.store.records import IndexFacts, NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.words import find_words
from indexer.store.transcripts import Line, Transcript
from indexer.store.words import terms_of, words_of_query
from model import XClip, XClipConfig

TITLES_OF_A_KIND = 400
WORDS_OF_A_TITLE = 3
NUM_ASKED = 60
MODES: tuple[TextMatch, ...] = ("off", "boost", "only")
NUM_ROUNDS = 15

_ENGLISH = (
    "dog cat beach holiday mountain river bicycle guitar kitchen birthday wedding garden snow train airport"
    " football concert sunset market church castle horse camel lighthouse waterfall desert harbour balloon"
    " parade circus violin picnic campfire sailing skiing tv cup map ox boy"
)
ENGLISH = _ENGLISH.split()
_PARTS = (
    "kinder wagen garten haus schule fahrt boot wasser fall berg bahn hof turm spiel platz strand korb feuer"
    " werk schiff reise bus tag abend essen"
)
GERMAN_PARTS = _PARTS.split()
WORDS_IN_WORDS = "cat education rain train car scarf art party ape paper ten kitten ear pearl"
FILE_NAMES = " ".join(f"{word.upper()}_2019{n:02}17" for n, word in enumerate(ENGLISH[:12], start=1))
KINDS: dict[str, tuple[str, str]] = {
    "English": (_ENGLISH, " "),
    "English, words in words": (WORDS_IN_WORDS, " "),
    "file names": (FILE_NAMES, "_"),
    "French, accents": (
        "été forêt élève château pâtisserie fenêtre école hôtel garçon leçon noël crème frère évêque",
        " ",
    ),
    "German, words": ("Straße Größe Mädchen Übung Fuß Käse Bär Löwe Tür Vögel Schlüssel Öl", " "),
    "Russian": ("собака кошка пляж гора река велосипед гитара ёлка свадьба сад снег поезд", " "),
    "Hindi": ("कुत्ता बिल्ली समुद्र पहाड़ नदी साइकिल बाज़ार शादी बगीचा बर्फ़ रेलगाड़ी हाथी", " "),
    "Chinese": (
        "猫 狗 鱼 海滩 沙滩 山 河流 自行车 吉他 厨房 生日 婚礼 花园 雪 火车 机场 足球 音乐会 日落 市场",
        "",
    ),
    "Japanese": (
        "猫 犬 海 海岸 山 川 自転車 ギター 台所 誕生日 結婚式 庭 雪 電車 空港 サッカー コンサート 夕日"
        " さくら",
        "の",
    ),
    "Thai": ("แมว สุนัข ชายหาด ภูเขา แม่น้ำ จักรยาน กีตาร์ ห้องครัว วันเกิด สวน หิมะ รถไฟ สนามบิน ปลา", ""),
}
"""Words, and what stands between them in a title."""


# 1. Tokenizers


def made_titles(
    words: Sequence[str], joint: str, draw: random.Random
) -> tuple[list[str], dict[str, set[int]]]:
    """Titles of a few words each, and for each word in which of them it is, by their numbers from 1."""
    titles, where = [], dict[str, set[int]]()
    for number in range(1, TITLES_OF_A_KIND + 1):
        some = draw.sample(list(words), WORDS_OF_A_TITLE)
        titles.append(joint.join(some))
        for word in some:
            where.setdefault(word, set()).add(number)
    return titles, where


def german_compounds(draw: random.Random) -> tuple[list[str], dict[str, set[int]]]:
    """Titles of words that are put together of two, asked for by either."""
    titles, where = [], dict[str, set[int]]()
    for number in range(1, TITLES_OF_A_KIND + 1):
        first, second = draw.sample(GERMAN_PARTS, 2)
        titles.append(f"{draw.choice(('Unser', 'Der alte', 'Ein'))} {(first + second).capitalize()}")
        for word in (first, second):
            where.setdefault(word, set()).add(number)
    return titles, where


def asked_of_file_names(
    titles: Sequence[str], where: dict[str, set[int]]
) -> tuple[list[str], dict[str, set[int]]]:
    """The parts that people ask for: the word, and the year."""
    asked = {word.partition("_")[0].lower(): numbers for word, numbers in where.items()}
    return list(titles), {**asked, "2019": set(range(1, len(titles) + 1))}


def found_by_fts5(tokenizer: str, titles: Sequence[str]) -> Callable[[str], set[int]]:
    """A search of one of FTS5's own tokenizers, each word of the query quoted."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE titles USING fts5 (title, tokenize = '{tokenizer}')")
    connection.executemany("INSERT INTO titles (title) VALUES (?)", ((title,) for title in titles))

    def find(query: str) -> set[int]:
        quoted = " OR ".join('"' + word.replace('"', "") + '"' for word in query.split())
        rows = connection.execute("SELECT rowid FROM titles WHERE titles MATCH ?", (quoted,))
        return {number for (number,) in rows}

    return find


def found_by_terms(titles: Sequence[str]) -> Callable[[str], set[int]]:
    """The search of `indexer.store.words`."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE titles USING fts5 (title, tokenize = 'ascii')")
    rows = ((" ".join(terms_of(title)),) for title in titles)
    connection.executemany("INSERT INTO titles (title) VALUES (?)", rows)

    def find(query: str) -> set[int]:
        words = words_of_query(query)
        quoted = " OR ".join(f'"{" ".join(word.terms)}"{" *" * word.is_prefix}' for word in words)
        return {n for (n,) in connection.execute("SELECT rowid FROM titles WHERE titles MATCH ?", (quoted,))}

    return find


def compare_tokenizers() -> None:
    """Print recall and precision of each tokenizer on each kind of text."""
    kinds = {}
    for name, (words, joint) in KINDS.items():
        titles, where = made_titles(words.split(), joint, random.Random(name))
        kinds[name] = asked_of_file_names(titles, where) if name == "file names" else (titles, where)
    kinds["German, compounds"] = german_compounds(random.Random(0))
    short = [word for word in ENGLISH if len(word) < 3]
    titles, where = made_titles(ENGLISH, " ", random.Random(1))
    kinds["English, 2 letters"] = titles, {word: where[word] for word in short}
    titles, where = kinds["Chinese"]
    kinds["Chinese, 1 and 2"] = titles, {word: found for word, found in where.items() if len(word) < 3}
    print("| recall / precision, % | `unicode61` | `trigram` | terms of ours |")
    print("| --- | --- | --- | --- |")
    for name, (titles, where) in kinds.items():
        finders = (
            found_by_fts5("unicode61 remove_diacritics 2", titles),
            found_by_fts5("trigram", titles),
            found_by_terms(titles),
        )
        cells = []
        for find in finders:
            found = {word: find(word) for word in where}
            hits = sum(len(found[word] & numbers) for word, numbers in where.items())
            num_relevant, num_found = sum(map(len, where.values())), sum(map(len, found.values()))
            precision = f"{100 * hits / num_found:.0f}" if num_found else "-"
            cells.append(f"{100 * hits / num_relevant:.0f} / {precision}")
        print(f"| {name} | {' | '.join(cells)} |")


# 2. Known titles and lines


def made_sentence(draw: random.Random, num_words: int) -> str:
    """A sentence with the small words that all sentences have."""
    return " ".join(
        draw.choice(("the", "a", "on", "in", "with")) if n % 2 else draw.choice(ENGLISH)
        for n in range(num_words)
    )


def fill(catalog: Catalog, num_videos: int, draw: random.Random) -> tuple[dict[str, int], dict[str, int]]:
    """Add videos of drawn features; NUM_ASKED titles and lines with the number of their video each."""
    features = np.random.default_rng(0)
    titles: dict[str, int] = {}
    lines: dict[str, int] = {}
    frames, dimension = catalog.num_frames, catalog.embedding_dim
    with catalog.transaction() as transaction:
        for number in range(num_videos):
            title = f"{made_sentence(draw, 5)} {draw.choice(ENGLISH)}{draw.randrange(10**6)}"
            said = [
                made_sentence(draw, 9) + f" {draw.choice(ENGLISH)}{draw.randrange(10**6)}" for _ in range(8)
            ]
            if len(titles) < NUM_ASKED:
                titles[title], lines[said[3]] = number, number
            vectors = features.standard_normal((frames + 1, dimension)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            segment = SegmentRecord(
                0.0, 60.0, vectors[0], vectors[1:].astype(np.float16), frames, np.arange(frames, dtype=float)
            )
            transcript = Transcript(
                "en", tuple(Line(7.0 * n, 7.0 * n + 3, text) for n, text in enumerate(said))
            )
            catalog.add_video(
                NewVideo(
                    content_sha256=f"{number:064x}", segments=[segment], duration_seconds=60.0, width=64,
                    height=48, frame_rate=25.0, codec="h264", size_bytes=1, id=f"v{number}", title=title,
                    transcripts=[transcript] if number % 4 == 0 or number < NUM_ASKED else [],
                ),
                transaction,
            )  # fmt: skip
    return titles, lines


def measure_recall(num_videos: int) -> None:
    """Print how often the video of a known title, or line, comes first and among the first ten."""
    from indexer.ingest.encoding import index_fingerprint

    model = XClip(XClipConfig.tiny()).eval()
    config = model.config
    facts = IndexFacts(
        fingerprint=index_fingerprint(model, "{}"), model_spec="none", embedding_dim=config.embedding_dim,
        num_frames=config.num_frames, sampling_json="{}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with Catalog.create(folder, facts) as catalog:
            titles, lines = fill(catalog, num_videos, random.Random(0))
        with Searcher(folder, model) as searcher:
            print(f"\n| {num_videos} videos; first / in the first ten, % | off | boost | only |")
            print("| --- | --- | --- | --- |")
            for what, asked in (("known titles", titles), ("known lines", lines)):
                halves = {" ".join(text.split()[len(text.split()) // 2 :]): n for text, n in asked.items()}
                for name, queries in ((what, asked), (f"the second half of {what}", halves)):
                    cells = []
                    for text_match in MODES:
                        ranks = []
                        for text, number in queries.items():
                            query = SearchQuery(text, text_match=text_match)
                            ids = [result.id for result in searcher.search(query).results]
                            ranks.append(ids.index(f"v{number}") if f"v{number}" in ids else 10)
                        first, ten = (100 * np.mean(np.array(ranks) < k) for k in (1, 10))
                        cells.append(f"{first:.0f} / {ten:.0f}")
                    print(f"| {name} | {' | '.join(cells)} |")


# 3. A million titles


def measure_many_rows(num_rows: int = 1_000_000) -> None:
    """Print how long finding takes where words are rare, common and in all rows."""
    draw = random.Random(0)
    facts = IndexFacts(
        fingerprint="a" * 64, model_spec="none", embedding_dim=4, num_frames=1, sampling_json="{}"
    )
    with tempfile.TemporaryDirectory() as folder, Catalog.create(folder, facts) as catalog:
        started = time.perf_counter()
        size_before = catalog.size_bytes
        with catalog.transaction() as transaction:
            connection = transaction.connection
            rows = (
                (
                    number << 20,
                    f"the {draw.choice(ENGLISH)} of {draw.choice(ENGLISH)} vid{draw.randrange(10**8):08}",
                )
                for number in range(1, num_rows + 1)
            )
            connection.executemany("INSERT INTO words (rowid, title) VALUES (?, ?)", rows)
            connection.execute("UPDATE totals SET num_videos = ?, num_segments = ?", (num_rows, num_rows))
            connection.execute(
                "INSERT INTO words (rowid, title) VALUES (?, 'zebra crossing')", ((num_rows + 1) << 20,)
            )
        seconds = time.perf_counter() - started
        size = catalog.size_bytes - size_before
        print(f"\n{num_rows} titles: {seconds:.0f} s to index, {size / num_rows:.0f} bytes each")
        print("| words of the query | found | median ms |")
        print("| --- | --- | --- |")
        with catalog.connections.reading() as connection:
            for query in ("zebra", "zebra the dog", "dog", "dog camel", "the", "the of", "vid0012", "vid0*"):
                times = []
                for _ in range(5):
                    started = time.perf_counter()
                    found = find_words(connection, query)
                    times.append(1000 * (time.perf_counter() - started))
                cut = " (cut)" if found.is_cut else ""
                print(f"| {query} | {len(found)}{cut} | {statistics.median(times):.0f} |")


# 4. Common words


COMMON_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SMALL_WORDS = {"the": 0.6, "a": 0.4, "on": 0.3, "in": 0.3, "with": 0.15, "my": 0.1}
"""And the share of titles that have each."""

NUM_SUBJECTS, SUBJECTS_OF_A_TITLE = 400, 3


def measure_common(num_rows: int = 10_000) -> None:
    """Print what the share from which on a word is common does to what is found."""
    draw = random.Random(0)
    subjects = [f"subject{number:03}" for number in range(NUM_SUBJECTS)]
    weights = [1 / rank for rank in range(1, NUM_SUBJECTS + 1)]
    where: dict[str, set[int]] = {}
    facts = IndexFacts(
        fingerprint="a" * 64, model_spec="none", embedding_dim=4, num_frames=1, sampling_json="{}"
    )
    with tempfile.TemporaryDirectory() as folder, Catalog.create(folder, facts) as catalog:
        with catalog.transaction() as transaction:
            for number in range(1, num_rows + 1):
                said = set(draw.choices(subjects, weights, k=SUBJECTS_OF_A_TITLE))
                for word in said:
                    where.setdefault(word, set()).add(number)
                small = [word for word, share in SMALL_WORDS.items() if draw.random() < share]
                words = draw.sample([*said, *small], len(said) + len(small))
                transaction.connection.execute(
                    "INSERT INTO words (rowid, title) VALUES (?, ?)", (number << 20, " ".join(words))
                )
            transaction.connection.execute(
                "UPDATE totals SET num_videos = ?, num_segments = ?", (num_rows, num_rows)
            )
        asked = [draw.choices(sorted(where), k=2) for _ in range(NUM_ASKED)]
        asked += [draw.choices(subjects, weights, k=2) for _ in range(NUM_ASKED)]
        print(f"\n| common from, % of {num_rows} titles | of the first 200 found have a subject, % |", end="")
        print(" of the titles with the rarer subject found, % | with either, % |")
        print("| --- | --- | --- | --- |")
        for share in COMMON_SHARES:
            figures = []
            with (
                catalog.connections.reading() as connection,
                patch("indexer.store.word_rows.COMMON_SHARE", share),
            ):
                for one, other in asked:
                    query = f"the {one} with a {other} on my {one}"
                    found = find_words(connection, query).video_keys.tolist()
                    right = where.get(one, set()) | where.get(other, set())
                    rarer = min(where.get(one, set()), where.get(other, set()), key=len)
                    first = found[:200]
                    figures.append(
                        (
                            len(right.intersection(first)) / max(1, len(first)),
                            len(rarer.intersection(found)) / max(1, len(rarer)),
                            len(right.intersection(found)) / max(1, len(right)),
                        )
                    )
            cells = " | ".join(f"{100 * mean:.0f}" for mean in np.mean(figures, axis=0))
            print(f"| {100 * share:g} | {cells} |")


# 5. Indexes as large as real ones


def measure_migration(source: Path) -> None:
    """Print how long an index of format 5 takes to be opened for the first time, and what it grows by."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        path = Path(shutil.copy(source / "catalog.sqlite3", folder))
        connection = sqlite3.connect(path)
        connection.create_function("sentence", 0, lambda: made_sentence(draw, 6))
        # Checksums of the records are not looked at by the migration.
        connection.execute("UPDATE videos SET title = sentence()")
        for table in ("words", "transcripts", "words_to_fill"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute("PRAGMA user_version = 5")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (num_videos,) = connection.execute("SELECT count(*) FROM videos").fetchone()
        (num_free,) = connection.execute("PRAGMA freelist_count").fetchone()
        connection.close()
        before = path.stat().st_size - 8192 * num_free
        started = time.perf_counter()
        with Catalog.open(folder, check=False) as catalog:
            seconds, after = time.perf_counter() - started, catalog.size_bytes
        print(
            f"\n{num_videos} videos: migrated in {seconds:.1f} s, {1e6 * seconds / num_videos:.0f} us each;"
            f" {(after - before) / num_videos:.0f} bytes each more, {100 * (after - before) / before:.1f} %"
        )


def measure_searches(source: Path) -> None:
    """Print how long searches with each `text_match` take, interleaved, in a copy with made titles."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        index = Path(folder) / "index"
        shutil.copytree(source, index)
        with Catalog.open(index) as catalog:
            ids, spec = catalog.video_ids(), catalog.model_spec
            for first in range(0, len(ids), 1_000):
                with catalog.transaction() as transaction:
                    for video_id in ids[first : first + 1_000]:
                        catalog.update_video(video_id, transaction, title=made_sentence(draw, 6))
        with Searcher(index, XClip.load(spec)) as searcher:
            searcher.prepare()
            for text_match in MODES:
                searcher.search(SearchQuery("warm", text_match=text_match))
            times: dict[TextMatch, list[float]] = {text_match: [] for text_match in MODES}
            for _ in range(NUM_ROUNDS):
                query = made_sentence(draw, 6)
                searcher.search(SearchQuery(query))  # Its text is encoded: what is compared is the rest.
                for text_match in draw.sample(MODES, len(MODES)):
                    started = time.perf_counter()
                    searcher.search(SearchQuery(query, text_match=text_match))
                    times[text_match].append(time.perf_counter() - started)
        off = statistics.median(times["off"])
        print(f"\n{len(ids)} videos, without encoding the text")
        for text_match, each in times.items():
            middle = statistics.median(each)
            print(f"text_match {text_match}: median {1000 * middle:.1f} ms, {middle / off:.2f} of off")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--migrate", type=Path, metavar="INDEX", help="an index of which a copy is migrated")
    parser.add_argument("--search", type=Path, metavar="INDEX", help="an index of which a copy is searched")
    parser.add_argument("--num-videos", type=int, default=5_000, help="of the second part")
    parser.add_argument("--parts", default="1234", help="which of the first four parts")
    options = parser.parse_args()
    if "1" in options.parts:
        compare_tokenizers()
    if "2" in options.parts:
        measure_recall(options.num_videos)
    if "3" in options.parts:
        measure_many_rows()
    if "4" in options.parts:
        measure_common()
    if options.migrate is not None:
        measure_migration(options.migrate)
    if options.search is not None:
        measure_searches(options.search)


if __name__ == "__main__":
    main()
