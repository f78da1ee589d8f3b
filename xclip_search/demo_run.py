"""`xclip-search demo`: a corpus to look at, indexed and searched as any other would be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from indexer.search.types import SearchQuery
from training.demo_corpus.corpus import write_corpus

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher

NUM_SHOWN = 3
NUM_CAPTIONS_SHOWN = 2


@dataclass(frozen=True)
class CaptionedVideo:
    """A line of the demo manifest: `caption` is true of this video alone in the corpus."""

    id: str
    caption: str
    kinds: tuple[str, ...]


def make_corpus(directory: Path, num_videos: int, seed: int, console: Console) -> Path:
    """Write the corpus with a progress bar and return its manifest; clips already there are kept."""
    columns = (TextColumn("drawing videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("drawing", total=num_videos)
        return write_corpus(
            directory, num_videos, seed, on_progress=lambda done, _: progress.update(task, completed=done)
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
            console.print(f" {mark} {result.rank}. {escape(result.title or result.id)}")
            console.print(f"      [dim]{result.score:.1f} ({parts}), best at {moments}", highlight=False)


def count_found_first(searcher: Searcher, videos: Sequence[CaptionedVideo]) -> int:
    """How many captions have their own video as the first result."""
    answers = (searcher.search(SearchQuery(text=video.caption, limit=1)) for video in videos)
    return sum(answer.results[0].id == video.id for answer, video in zip(answers, videos, strict=True))
