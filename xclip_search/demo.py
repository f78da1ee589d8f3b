"""`xclip-search demo`: a small corpus, indexed and searched as any other.

Heavy imports happen inside the functions.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import RESUMES, errors_explained, make_app, printable, progress_bars, video_progress

if TYPE_CHECKING:
    from rich.console import Console

    from indexer.search.searcher import Searcher

app = make_app()

NUM_SHOWN = 3
NUM_CAPTIONS_SHOWN = 2


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option(help="Where the videos and the index go; reused by the next run.")
    ] = Path("demo-data"),
    num_videos: Annotated[int, typer.Option(help="Videos in the corpus.", min=10, max=5000)] = 80,
    seed: Annotated[int, typer.Option(help="Another seed gives other videos.")] = 1,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the page afterwards.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page.", min=0, max=65535)] = 8000,
) -> None:
    """Make a small captioned corpus, index it with the demo model, search it, then serve the page.

    The corpus is indexed, searched and served by the same commands that serve any other; each is printed.
    """
    from rich.console import Console

    from indexer.index import Index
    from indexer.ingest.manifest import read_manifest as read_sources

    console = Console()
    folder = directory / f"{num_videos}-videos-seed-{seed}"  # Another corpus is another index.
    index = folder / "index"
    manifest = make_corpus(folder / "videos", num_videos, seed)
    command = ["xclip-search", "index", "--manifest", str(manifest), "--index", str(index), "--model", "demo"]
    console.print(f"[bold]$ {shlex.join(command)}")
    with errors_explained(RESUMES), Index.open_or_create(index, "demo") as opened:
        sources = read_sources(manifest).sources
        with video_progress("indexing") as count:
            opened.add_all(sources, lambda event: count(len(sources), event.outcome == "failed"))
        console.print(f"{len(opened)} videos are in")
        videos = read_manifest(manifest)
        show_searches(opened.searcher, videos, console)
        found = count_found_first(opened.searcher, videos)
    console.print(f"{found} of {len(videos)} captions find their own video first.")
    if serve:
        command = ["serve", "--index", str(index), "--port", str(port)]
        console.print(f"\n[bold]$ xclip-search {shlex.join(command)}")
        # In place of this process, so that Ctrl-C reaches the server as if the user had started it.
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "xclip_search", *command])


@dataclass(frozen=True)
class CaptionedVideo:
    """A line of the demo manifest: `caption` is true of this video alone in the corpus."""

    id: str
    caption: str
    kinds: tuple[str, ...]


def make_corpus(directory: Path, num_videos: int, seed: int) -> Path:
    """Write the corpus with a progress bar and return its manifest; clips already there are kept."""
    from training.demo_corpus.corpus import write_corpus

    with progress_bars() as on_progress:
        return write_corpus(
            directory,
            num_videos,
            seed,
            lambda num_done, total: on_progress("drawing videos", num_done, total),
        )


def read_manifest(manifest: Path) -> list[CaptionedVideo]:
    """The videos of a manifest that `make_corpus` wrote."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        CaptionedVideo(
            row["id"],
            row["metadata"]["caption"],
            tuple(event["kind"] for event in row["metadata"]["events"]),
        )
        for row in rows
    ]


def queries_to_show(videos: Sequence[CaptionedVideo]) -> list[str]:
    """Captions of two videos, a kind of thing alone, and one with a word that the model does not know."""
    captions = [video.caption for video in videos[-NUM_CAPTIONS_SHOWN:]]
    kind = videos[0].kinds[0]
    return [*captions, f"a {kind}", f"a {kind} and an elephant"]


def show_searches(searcher: Searcher, videos: Sequence[CaptionedVideo], console: Console) -> None:
    """Print a few searches with their scores and moments."""
    from rich.markup import escape

    from indexer.search.types import SearchQuery

    own_video = {video.caption: video.id for video in videos}
    for text in queries_to_show(videos):
        answer = searcher.search(SearchQuery(text=text, limit=NUM_SHOWN))
        console.print(f"\n[bold]{escape(text)}")
        for warning in answer.warnings:
            console.print(f"   [yellow]{escape(warning)}")
        for result in answer.results:
            mark = "→" if result.id == own_video.get(text) else " "
            parts = ", ".join(
                f"{name.replace('_', '-')} {score:.1f}"
                for name, score in result.scores.items()
                if score is not None
            )
            moments = ", ".join(f"{moment.time_seconds:.0f} s" for moment in result.moments)
            console.print(f" {mark} {result.rank}. {escape(printable(result.title or result.id))}")
            console.print(f"      [dim]{result.score:.1f} ({parts}), best at {moments}", highlight=False)


def count_found_first(searcher: Searcher, videos: Sequence[CaptionedVideo]) -> int:
    """How many captions have their own video as the first result."""
    from indexer.search.types import SearchQuery

    answers = (searcher.search(SearchQuery(text=video.caption, limit=1)) for video in videos)
    return sum(answer.results[0].id == video.id for answer, video in zip(answers, videos, strict=True))
